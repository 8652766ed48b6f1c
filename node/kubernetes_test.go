package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/agent"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/mirror"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/registry"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/upstream"
	"github.com/shoal-cache/shoal/test/registrytest"
)

// holding is a fetcher of what the store holds.
type holding struct{ *store.Store }

func (h holding) Open(_ context.Context, req content.Request) (content.Reader, error) {
	return h.Get(req.Digest)
}

func (h holding) OpenPast(ctx context.Context, req content.Request) (content.Reader, error) {
	return h.Open(ctx, req)
}

func (h holding) Stat(_ context.Context, req content.Request) (int64, string, error) {
	info, err := h.Store.Stat(req.Digest)
	return info.Size, info.MediaType, err
}

func (holding) Progress(content.Request) (int64, int64) { return 0, 0 }

func (holding) ReadAhead(content.Request) {}

// cached is the registry front of a node, an origin behind it, and a store that holds what is pushed there.
type cached struct {
	t      *testing.T
	origin *registrytest.Registry
	gate   *gate.Gate
	client *upstream.Client
	front  *registry.Front
	held   *store.Store
	repo   content.Repository
}

func newCached(t *testing.T) *cached {
	c := &cached{t: t, origin: registrytest.New(t)}
	var err error
	c.held, err = store.Open(t.Context(), store.Options{Path: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.held.Close()) })
	c.repo = content.Repository{Registry: c.origin.Host, Name: "team/app"}
	c.client, err = upstream.New(upstream.Options{
		Upstreams: []upstream.Upstream{{Registry: c.repo.Registry, Endpoints: []string{c.origin.URL}}},
	})
	require.NoError(t, err)
	t.Cleanup(c.client.Close)
	c.gate, err = gate.New(gate.Options{Cache: cache{store: c.held}})
	require.NoError(t, err)
	c.front, err = registry.New(registry.Options{Fetcher: holding{c.held}, Upstream: c.client, Gate: c.gate})
	require.NoError(t, err)
	return c
}

// push puts an image of one layer into the store and the origin.
func (c *cached) push() (manifest, layer digest.Digest) {
	image, err := random.Image(100, 1)
	require.NoError(c.t, err)
	c.origin.Push(c.t, c.repo.Name+":latest", image)
	raw, err := image.RawManifest()
	require.NoError(c.t, err)
	all := registrytest.Closure(c.t, image)
	manifest, layer = all[0], all[2]
	for d, data := range map[digest.Digest][]byte{manifest: raw, layer: c.origin.Blob(layer)} {
		require.NoError(c.t, c.held.Put(c.t.Context(), d, bytes.NewReader(data), int64(len(data))))
	}
	return manifest, layer
}

// admit is what the keeper of pins does once it has the image.
func (c *cached) admit(manifest, layer digest.Digest, authorization string) error {
	pins := pinGate{c.gate, c.client, policy.NewLive(policy.Default())}
	req := content.Request{Repository: c.repo, Kind: content.Manifest, Digest: manifest, Authorization: authorization}
	if err := pins.Admit(c.t.Context(), req); err != nil {
		return err
	}
	req.Kind, req.Digest = content.Blob, layer
	return pins.Admit(c.t.Context(), req)
}

// get is what a runtime does.
func (c *cached) get(kind string, d digest.Digest, authorization string) int {
	u := "/v2/" + c.repo.Name + "/" + kind + "/" + d.String() + "?ns=" + url.QueryEscape(c.repo.Registry)
	r := httptest.NewRequestWithContext(c.t.Context(), http.MethodGet, u, nil)
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	c.front.ServeHTTP(w, r)
	return w.Code
}

func TestWhatThePinsTellTheFrontIsServedWhileTheRegistryIsDown(t *testing.T) {
	t.Parallel()
	password := registrytest.Basic("u", "pass")
	c := newCached(t)
	c.origin.Protect(c.repo.Name, password)
	told, toldLayer := c.push()
	untold, untoldLayer := c.push()

	require.True(t, content.Denied(c.admit(told, toldLayer, "")),
		"the registry's own no is told from a registry that is down")
	require.NoError(t, c.admit(told, toldLayer, password))
	c.origin.Close()
	require.Error(t, c.admit(untold, untoldLayer, password))

	require.Equal(t, http.StatusOK, c.get("manifests", told, password))
	require.Equal(t, http.StatusOK, c.get("blobs", toldLayer, password))
	require.Equal(t, http.StatusUnauthorized, c.get("manifests", told, ""), "for the runtime to show its pull secret")
	require.NotEqual(t, http.StatusOK, c.get("manifests", told, "Basic b3RoZXI6eA=="))
	require.NotEqual(t, http.StatusOK, c.get("manifests", untold, password))
}

// Most public registries give anyone a token. Once they are down nobody gets one.
func TestAPinnedPublicImageIsServedWithoutATokenWhileTheRegistryIsDown(t *testing.T) {
	t.Parallel()
	c := newCached(t)
	anyones := registrytest.Token{Requests: registrytest.Forever}
	tokens := registrytest.NewTokens(c.origin.Files, func(*http.Request) registrytest.Token { return anyones })
	c.origin.Handle(tokens)
	manifest, layer := c.push()
	require.NoError(t, c.admit(manifest, layer, tokens.Give(anyones)))
	require.Eventually(t, func() bool {
		return c.gate.Public(gate.Repository(c.repo))
	}, 5*time.Minute, time.Millisecond)
	c.origin.Close()
	for _, authorization := range []string{"", "Bearer another"} {
		require.Equal(t, http.StatusOK, c.get("manifests", manifest, authorization))
		require.Equal(t, http.StatusOK, c.get("blobs", layer, authorization))
	}
}

func TestFindings_EveryReasonHasAFigure(t *testing.T) {
	t.Parallel()
	n := &node{mirrorFindings: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "findings", Help: "Findings."}, []string{"reason"})}
	figure := func(reason string) float64 { return testutil.ToFloat64(n.mirrorFindings.WithLabelValues(reason)) }
	n.countFindings(nil)
	require.Equal(t, len(agent.FindingReasons()), testutil.CollectAndCount(n.mirrorFindings))
	require.Zero(t, figure(v1alpha1.ReasonConfigPathList))
	n.countFindings([]agent.Finding{{Reason: v1alpha1.ReasonConfigPathList}, {Reason: v1alpha1.ReasonConfigPathList}})
	require.EqualValues(t, 2, figure(v1alpha1.ReasonConfigPathList))
	n.countFindings(nil)
	require.Zero(t, figure(v1alpha1.ReasonConfigPathList), "what has been mended")
}

func TestFindings_TheReasonIsSaidOnce(t *testing.T) {
	t.Parallel()
	require.Equal(t, []agent.Finding{{Reason: v1alpha1.ReasonConfigPathUnset, Message: "/etc/config.toml: names none"}},
		findings(mirror.Result{Findings: []mirror.Finding{{Kind: mirror.ConfigPathUnset, Path: "/etc/config.toml",
			Message: "names none"}}}))
}

func TestReadyz_TellsOfKubernetesOnlyWhereThatIsThere(t *testing.T) {
	t.Parallel()
	names := func(n *node) (all []string) {
		for _, c := range n.checks() {
			all = append(all, c.Name)
		}
		return all
	}
	require.Equal(t, []string{"swarm", "store"}, names(&node{}))
	require.Equal(t, []string{"swarm", "store", "kubernetes"}, names(&node{kube: kubernetes{agent: &agent.Agent{}}}))
}

func TestMirror_IsAwaitedUntilTheGuardHasInstalledItAndNoLonger(t *testing.T) {
	t.Parallel()
	for what, tc := range map[string]struct {
		installed, stopped, want time.Duration
		goesOn                   bool
	}{
		"there before":         {0, time.Hour, 0, true},
		"installed soon":       {2500 * time.Millisecond, time.Hour, 3 * time.Second, true},
		"never installed":      {time.Hour, time.Hour, time.Minute, true},
		"the agent ends first": {time.Hour, 5500 * time.Millisecond, 5500 * time.Millisecond, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), tc.stopped)
			defer cancel()
			start := time.Now()
			goesOn := within(ctx, time.Minute, func() bool { return time.Since(start) >= tc.installed })
			require.Equal(t, tc.goesOn, goesOn, what)
			require.Equal(t, tc.want, time.Since(start), what)
		})
	}
}
