package pin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	crname "github.com/google/go-containerregistry/pkg/name"
	crv1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/agent/pin"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/upstream"
	"github.com/shoal-cache/shoal/test/registrytest"
)

// loopback is where the registries of tests are.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// libp2p's bandwidth meters share one sweeper for the whole process, which has no end.
		goleak.IgnoreTopFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run"),
		goleak.IgnoreTopFunction("github.com/libp2p/go-flow-metrics.(*sweeper).runActive"),
		// golang-lru's expirable cache sweeps on a goroutine that its API cannot end.
		goleak.IgnoreTopFunction("github.com/hashicorp/golang-lru/v2/expirable.NewLRU[...].func1"),
	)
}

// origin is a registry that refuses what a test says.
type origin struct{ *registrytest.Registry }

func newOrigin(t *testing.T) origin { return origin{registrytest.New(t)} }

// refusing answers a request in place of the registry where f gives a status other than 0.
func (o origin) refusing(f func(*http.Request) int) {
	o.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch status := f(r); status {
		case 0:
			o.Files.ServeHTTP(w, r)
		case http.StatusUnauthorized:
			w.Header().Set("WWW-Authenticate", registrytest.Challenge)
			fallthrough
		default:
			w.WriteHeader(status)
		}
	}))
}

func (o origin) down() {
	o.refusing(func(*http.Request) int { return http.StatusServiceUnavailable })
}

// push puts an index with an image for each platform at repo:tag.
func (o origin) push(t *testing.T, tag string,
	platforms ...string) (index crv1.ImageIndex, images map[string]crv1.Image) {
	t.Helper()
	index, images = empty.Index, map[string]crv1.Image{}
	for _, p := range platforms {
		platform, err := crv1.ParsePlatform(p)
		require.NoError(t, err)
		image, err := random.Image(3000, 2)
		require.NoError(t, err)
		images[p] = image
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image,
			Descriptor: crv1.Descriptor{Platform: platform}})
	}
	o.Push(t, "team/app:"+tag, index)
	return index, images
}

func digestOf(t *testing.T, x interface{ Digest() (crv1.Hash, error) }) digest.Digest {
	t.Helper()
	h, err := x.Digest()
	require.NoError(t, err)
	return digest.Digest(h.String())
}

// pull is the simplest fetcher: from the registry into the store.
type pull struct {
	store    *store.Store
	upstream *upstream.Client
	// shared are blobs that peers have and give to whoever asks, each with the authorization that it takes to play
	// them.
	shared map[digest.Digest]string
}

func (p *pull) Ensure(ctx context.Context, req content.Request) error {
	if _, err := p.store.Stat(req.Digest); err == nil {
		return nil
	}
	if req.Repository == (content.Repository{}) {
		return content.ErrNotFound
	}
	if authorization, ok := p.shared[req.Digest]; ok {
		req.Authorization = authorization
	}
	body, err := p.upstream.Open(ctx, req, 0, -1)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	return p.store.Put(ctx, req.Digest, body, body.Size)
}

func (p *pull) Open(ctx context.Context, req content.Request) (content.Reader, error) {
	if err := p.Ensure(ctx, req); err != nil {
		return nil, err
	}
	return p.store.Get(req.Digest)
}

// counted counts how often secrets are read.
type counted struct {
	vault
	reads atomic.Int32
}

func (c *counted) PullSecret(ctx context.Context, namespace, name string) (pullsecret.Credentials, error) {
	c.reads.Add(1)
	return c.vault.PullSecret(ctx, namespace, name)
}

// vault holds pull secrets by namespace/name.
type vault map[string]*corev1.Secret

func (v vault) PullSecret(_ context.Context, namespace, name string) (pullsecret.Credentials, error) {
	s, ok := v[namespace+"/"+name]
	if !ok {
		return nil, pin.ErrSecretNotFound
	}
	return pullsecret.Parse(s)
}

func (v vault) add(name, host, user, password string) {
	config := fmt.Sprintf(`{"auths": {%q: {"username": %q, "password": %q}}}`, host, user, password)
	v["team/"+name] = &corev1.Secret{
		Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(config)},
	}
}

// patience bounds every wait of a test. The machine may be busy with others.
const patience = 90 * time.Second

// node is a Keeper on a real store.
type node struct {
	*pin.Keeper
	store   *store.Store
	changed chan struct{}
	opts    pin.Options
	stop    func()
}

func newNode(t *testing.T, dir string, adjust func(*pin.Options, *store.Options)) *node {
	t.Helper()
	storeOptions := store.Options{Path: dir, FreeSpace: func(string) (int64, error) { return 1 << 40, nil }}
	n := &node{changed: make(chan struct{}, 1), opts: pin.Options{Secrets: vault{}}}
	if adjust != nil {
		adjust(&n.opts, &storeOptions)
	}
	storeOptions.OnEvent = func(e store.Event) {
		if e.Type == store.Removed && n.Keeper != nil {
			n.Lost(e.Info.Digest)
		}
	}
	var err error
	n.store, err = store.Open(t.Context(), storeOptions)
	require.NoError(t, err)
	client, err := upstream.New(upstream.Options{AllowAddresses: loopback,
		Timeouts: upstream.Timeouts{Retry: 50 * time.Millisecond}})
	require.NoError(t, err)
	n.opts.Store = n.store
	if n.opts.Upstream == nil {
		n.opts.Upstream = client
	}
	if n.opts.Fetcher == nil {
		n.opts.Fetcher = &pull{store: n.store, upstream: client}
	}
	n.opts.Changed = func() {
		select {
		case n.changed <- struct{}{}:
		default:
		}
	}
	n.Keeper, err = pin.New(n.opts)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { n.Run(ctx); close(done) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		client.Close()
		require.NoError(t, n.store.Close())
	})
	t.Cleanup(n.stop)
	return n
}

// await waits until the pin's progress is as wanted.
func (n *node) await(t *testing.T, uid string, wanted func(v1alpha1.PinProgress) bool) v1alpha1.PinProgress {
	t.Helper()
	deadline := time.After(patience)
	for {
		all := n.Progress()
		i := slices.IndexFunc(all, func(p v1alpha1.PinProgress) bool { return p.UID == uid })
		if i >= 0 && wanted(all[i]) {
			return all[i]
		}
		select {
		case <-n.changed:
		case <-deadline:
			require.FailNow(t, "not as wanted in time", "%+v", all)
		}
	}
}

func in(state v1alpha1.PinState, revision string) func(v1alpha1.PinProgress) bool {
	return func(p v1alpha1.PinProgress) bool { return p.State == state && p.Revision == revision }
}

// eventuallyPins waits until exactly these are pinned by uid.
func (n *node) eventuallyPins(t *testing.T, uid string, want []digest.Digest) {
	t.Helper()
	require.Eventually(t, func() bool {
		return slices.Equal(n.pinned(uid), sorted(want))
	}, patience, 5*time.Millisecond)
}

func (n *node) pinned(uid string) []digest.Digest { return sorted(n.store.Pins()["pin/"+uid]) }

func sorted(ds []digest.Digest) []digest.Digest { return slices.Sorted(slices.Values(ds)) }

func (n *node) requireHeld(t *testing.T, ds ...digest.Digest) {
	t.Helper()
	for _, d := range ds {
		_, err := n.store.Stat(d)
		require.NoError(t, err)
	}
}

func (n *node) requireAbsent(t *testing.T, ds ...digest.Digest) {
	t.Helper()
	for _, d := range ds {
		_, err := n.store.Stat(d)
		require.ErrorIs(t, err, content.ErrNotFound)
	}
}

// withPin returns a node on which the image of an origin is pinned by "a", and the image's digest.
func withPin(t *testing.T) (o origin, n *node, image digest.Digest) {
	t.Helper()
	o = newOrigin(t)
	index, _ := o.push(t, "1", own)
	n, image = newNode(t, t.TempDir(), nil), digestOf(t, index)
	n.Set([]v1alpha1.PinAssignment{assignment("a", "1", o.artifact(image))})
	n.await(t, "a", in(v1alpha1.PinReady, "1"))
	return o, n, image
}

func assignment(uid, revision string, artifacts ...v1alpha1.AssignedArtifact) v1alpha1.PinAssignment {
	return v1alpha1.PinAssignment{
		UID: uid, Namespace: "team", Name: uid, Revision: revision, Action: v1alpha1.ActionKeep, Artifacts: artifacts,
		Target: v1alpha1.TargetCache, Backoff: &v1alpha1.Backoff{Initial: metav1.Duration{Duration: time.Second},
			Max: metav1.Duration{Duration: time.Minute}},
	}
}

func (o origin) artifact(d digest.Digest) v1alpha1.AssignedArtifact {
	return v1alpha1.AssignedArtifact{Repository: o.Host + "/team/app", Digest: d.String()}
}

var own = runtime.GOOS + "/" + runtime.GOARCH

const other = "linux/s390x"

func TestAPinKeepsTheClosureOfTheNodesOwnPlatform(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, images := o.push(t, "1", own, other)
	n := newNode(t, t.TempDir(), nil)
	n.Set([]v1alpha1.PinAssignment{assignment("a", "1", o.artifact(digestOf(t, index)))})

	p := n.await(t, "a", in(v1alpha1.PinReady, "1"))
	want := append(registrytest.Closure(t, images[own]), digestOf(t, index))
	require.Equal(t, sorted(want), n.pinned("a"))
	n.requireHeld(t, want...)
	n.requireAbsent(t, registrytest.Closure(t, images[other])...)
	require.Positive(t, p.BytesWanted)
	require.Equal(t, p.BytesWanted, p.BytesHeld)
}

func TestTheEndOfAPinIsTold(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, _ := o.push(t, "1", own)
	ended := make(chan struct{}, 10)
	n := newNode(t, t.TempDir(), func(k *pin.Options, _ *store.Options) {
		k.Ended = func() { ended <- struct{}{} }
	})
	for revision, end := range map[string]struct {
		digest digest.Digest
		state  v1alpha1.PinState
	}{
		"whole":   {digestOf(t, index), v1alpha1.PinReady},
		"missing": {digest.FromString("missing"), v1alpha1.PinFailed},
	} {
		n.Set([]v1alpha1.PinAssignment{assignment("a", revision, o.artifact(end.digest))})
		select {
		case <-ended:
		case <-time.After(patience):
			require.FailNow(t, "no end was told")
		}
		require.True(t, in(end.state, revision)(n.Progress()[0]), "%+v", n.Progress())
	}
	require.Empty(t, ended)
}

func TestPlatforms(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, images := o.push(t, "1", own, other, "linux/arm/v6", "linux/arm/v7")
	for name, c := range map[string]struct {
		platforms []string
		kept      []string
		reason    string
	}{
		"a star keeps all":           {platforms: []string{"*"}, kept: slices.Collect(maps.Keys(images))},
		"a list keeps what it names": {platforms: []string{other, own}, kept: []string{own, other}},
		"a variant is told apart":    {platforms: []string{"linux/arm/v7"}, kept: []string{"linux/arm/v7"}},
		"without a variant every variant counts": {platforms: []string{"linux/arm"},
			kept: []string{"linux/arm/v6", "linux/arm/v7"}},
		"a platform that is missing has its own reason": {
			platforms: []string{own, "windows/amd64"}, reason: v1alpha1.ReasonNoSuchPlatform,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, t.TempDir(), nil)
			a := assignment("a", "1", o.artifact(digestOf(t, index)))
			a.Platforms = c.platforms
			n.Set([]v1alpha1.PinAssignment{a})
			if c.reason != "" {
				p := n.await(t, "a", in(v1alpha1.PinFailed, "1"))
				require.Equal(t, c.reason, p.Reason)
				require.Contains(t, p.Message, "windows/amd64")
				return
			}
			n.await(t, "a", in(v1alpha1.PinReady, "1"))
			want := []digest.Digest{digestOf(t, index)}
			for _, p := range c.kept {
				want = append(want, registrytest.Closure(t, images[p])...)
			}
			require.Equal(t, sorted(want), n.pinned("a"))
		})
	}
}

func TestPlatformsAreFoundInAnIndexWithinAnIndex(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	here, hereImages := o.push(t, "1", own)
	there, thereImages := o.push(t, "2", other)
	outer := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: here}, mutate.IndexAddendum{Add: there})
	ref, err := crname.ParseReference(o.Host + "/team/app:all")
	require.NoError(t, err)
	require.NoError(t, remote.WriteIndex(ref, outer))
	for name, c := range map[string]struct {
		platforms []string
		kept      []crv1.Image
		state     v1alpha1.PinState
	}{
		"the node's own is in one of them": {nil, []crv1.Image{hereImages[own]}, v1alpha1.PinReady},
		"each is in another": {[]string{own, other}, []crv1.Image{hereImages[own], thereImages[other]},
			v1alpha1.PinReady},
		"one is in neither": {[]string{own, "windows/amd64"}, nil, v1alpha1.PinFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, t.TempDir(), nil)
			a := assignment("a", "1", o.artifact(digestOf(t, outer)))
			a.Platforms = c.platforms
			n.Set([]v1alpha1.PinAssignment{a})
			p := n.await(t, "a", in(c.state, "1"))
			if c.state == v1alpha1.PinFailed {
				require.Equal(t, v1alpha1.ReasonNoSuchPlatform, p.Reason)
				return
			}
			want := []digest.Digest{digestOf(t, outer), digestOf(t, here), digestOf(t, there)}
			for _, image := range c.kept {
				want = append(want, registrytest.Closure(t, image)...)
			}
			require.Equal(t, sorted(want), n.pinned("a"))
		})
	}
}

func TestAManifestIsOneWhateverTypeTheRegistryGivesIt(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	_, images := o.push(t, "1", own)
	for _, mediaType := range []string{"application/json", "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
		"text/plain"} {
		n := newNode(t, t.TempDir(), nil)
		artifact := o.artifact(digestOf(t, images[own]))
		artifact.MediaType = mediaType
		n.Set([]v1alpha1.PinAssignment{assignment("a", "1", artifact)})
		n.await(t, "a", in(v1alpha1.PinReady, "1"))
		require.Equal(t, sorted(registrytest.Closure(t, images[own])), n.pinned("a"), mediaType)
	}
}

func TestReferrersAndPlainBlobsAreKept(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	_, images := o.push(t, "1", own)
	image := images[own]
	signature, err := random.Image(100, 1)
	require.NoError(t, err)
	ref, err := crname.ParseReference(o.Host + "/team/app:sig")
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, signature))
	layers, err := image.Layers()
	require.NoError(t, err)
	blob := digestOf(t, layers[0])
	c, err := content.DigestCID(registrytest.Closure(t, image)[3])
	require.NoError(t, err)

	signed := o.artifact(digestOf(t, image))
	signed.Referrers = []string{digestOf(t, signature).String()}
	byCID := v1alpha1.AssignedArtifact{Repository: o.Host + "/team/app", CID: c.String()}
	n := newNode(t, t.TempDir(), nil)
	n.Set([]v1alpha1.PinAssignment{
		assignment("signed", "1", signed), assignment("blob", "1", o.artifact(blob)), assignment("cid", "1", byCID),
	})
	for uid, want := range map[string][]digest.Digest{
		"signed": append(registrytest.Closure(t, image), registrytest.Closure(t, signature)...),
		"blob":   {blob},
		"cid":    {registrytest.Closure(t, image)[3]},
	} {
		n.await(t, uid, in(v1alpha1.PinReady, "1"))
		require.Equal(t, sorted(want), n.pinned(uid), uid)
		n.requireHeld(t, want...)
	}
}

// finder answers with the same file whatever it is asked for.
type finder struct {
	digest digest.Digest
	size   int64
}

func (f finder) Resolve(context.Context, cid.Cid) (digest.Digest, int64, error) {
	return f.digest, f.size, nil
}

func TestAFileIsPinnedByTheCIDOfItsRootIfItIsThatFile(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	image, err := random.Image(3<<20, 2)
	require.NoError(t, err)
	ref, err := crname.ParseReference(o.Host + "/team/app:large")
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, image))
	layers, err := image.Layers()
	require.NoError(t, err)
	asked, other := digestOf(t, layers[0]), digestOf(t, layers[1])

	first := newNode(t, t.TempDir(), nil)
	first.Set([]v1alpha1.PinAssignment{assignment("by digest", "1", o.artifact(asked), o.artifact(other))})
	first.await(t, "by digest", in(v1alpha1.PinReady, "1"))
	held, err := first.store.Stat(asked)
	require.NoError(t, err)
	root := v1alpha1.AssignedArtifact{Repository: o.Host + "/team/app", CID: held.Root.String()}

	for named, state := range map[digest.Digest]v1alpha1.PinState{asked: v1alpha1.PinReady, other: v1alpha1.PinFailed} {
		n := newNode(t, t.TempDir(), func(p *pin.Options, _ *store.Options) { p.Files = finder{named, held.Size} })
		n.Set([]v1alpha1.PinAssignment{assignment("by root", "1", root)})
		progress := n.await(t, "by root", in(state, "1"))
		if state == v1alpha1.PinFailed {
			require.Equal(t, v1alpha1.FetchDigestMismatch, progress.Reason)
		}
	}
}

func TestEveryFailureHasItsReason(t *testing.T) {
	t.Parallel()
	status := func(code int) func(origin, *pin.Options, *store.Options, *v1alpha1.PinAssignment) {
		return func(o origin, _ *pin.Options, _ *store.Options, _ *v1alpha1.PinAssignment) {
			o.refusing(func(*http.Request) int { return code })
		}
	}
	for name, c := range map[string]struct {
		prepare func(origin, *pin.Options, *store.Options, *v1alpha1.PinAssignment)
		reason  string
		message string
	}{
		"the registry has it no more":        {status(404), v1alpha1.ReasonNotFoundUpstream, "404"},
		"the registry fails":                 {status(503), v1alpha1.ReasonRegistryUnreachable, "503"},
		"the registry limits the rate":       {status(429), v1alpha1.ReasonRateLimited, "429"},
		"the registry refuses the anonymous": {status(401), v1alpha1.ReasonUnauthorized, "401"},
		"the registry is gone": {func(o origin, _ *pin.Options, _ *store.Options, _ *v1alpha1.PinAssignment) {
			o.Close()
		}, v1alpha1.ReasonRegistryUnreachable, "refused"},
		"a pull secret is missing": {func(o origin, _ *pin.Options, _ *store.Options, a *v1alpha1.PinAssignment) {
			o.refusing(func(*http.Request) int { return 401 })
			a.PullSecrets = []string{"missing"}
		}, v1alpha1.ReasonSecretNotFound, "team/missing"},
		"a pull secret holds something else": {func(o origin, p *pin.Options, _ *store.Options,
			a *v1alpha1.PinAssignment) {
			o.refusing(func(*http.Request) int { return 401 })
			p.Secrets.(vault)["team/tls"] = &corev1.Secret{Type: corev1.SecretTypeTLS}
			a.PullSecrets = []string{"tls"}
		}, v1alpha1.ReasonInvalidSecret, "kubernetes.io/dockerconfigjson"},
		"it is larger than the pin allows": {func(_ origin, _ *pin.Options, _ *store.Options,
			a *v1alpha1.PinAssignment) {
			a.SizeLimit = resource.NewQuantity(5000, resource.BinarySI)
		}, v1alpha1.ReasonSizeLimitExceeded, "of 5000"},
		"it is larger than the cache": {func(_ origin, _ *pin.Options, s *store.Options, _ *v1alpha1.PinAssignment) {
			s.Limits.Capacity = 5000
		}, v1alpha1.FetchExceedsCapacity, "5000 bytes of capacity"},
		"the disk is full": {func(_ origin, _ *pin.Options, s *store.Options, _ *v1alpha1.PinAssignment) {
			s.Limits.MinFree = 1 << 20
			s.FreeSpace = func(string) (int64, error) { return 0, nil }
		}, v1alpha1.FetchDiskFull, "no space"},
		"nobody can be asked": {func(_ origin, _ *pin.Options, _ *store.Options, a *v1alpha1.PinAssignment) {
			a.Artifacts[0].Repository = ""
		}, v1alpha1.FetchFailed, "names no repository"},
		"there is no runtime to load into": {func(_ origin, _ *pin.Options, _ *store.Options,
			a *v1alpha1.PinAssignment) {
			a.Target = v1alpha1.TargetCacheAndRuntime
		}, v1alpha1.FetchRuntimeFailed, "container runtime"},
		"a CID is of a DAG that nobody can look up": {func(_ origin, _ *pin.Options, _ *store.Options,
			a *v1alpha1.PinAssignment) {
			a.Artifacts[0] = v1alpha1.AssignedArtifact{CID: "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"}
		}, v1alpha1.FetchFailed, "names a DAG"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			index, _ := o.push(t, "1", own)
			a := assignment("a", "1", o.artifact(digestOf(t, index)))
			n := newNode(t, t.TempDir(), func(p *pin.Options, s *store.Options) { c.prepare(o, p, s, &a) })
			n.Set([]v1alpha1.PinAssignment{a})
			p := n.await(t, "a", in(v1alpha1.PinFailed, "1"))
			require.Equal(t, c.reason, p.Reason, p.Message)
			require.Contains(t, p.Message, c.message)
			require.LessOrEqual(t, len(p.Message), 512)
		})
	}
}

func TestAFailingArtifactHindersNoOther(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, _ := o.push(t, "1", own)
	missing := o.artifact(digest.FromString("missing"))
	missing.MediaType = "application/vnd.oci.image.index.v1+json"
	n := newNode(t, t.TempDir(), nil)
	n.Set([]v1alpha1.PinAssignment{
		assignment("a", "1", missing, o.artifact(digestOf(t, index))), assignment("b", "1", missing),
	})
	p := n.await(t, "a", in(v1alpha1.PinFailed, "1"))
	require.Equal(t, v1alpha1.ReasonNotFoundUpstream, p.Reason)
	require.Contains(t, p.Message, missing.Digest)
	require.Equal(t, p.BytesWanted, p.BytesHeld, "what can be read of the pin is held whole")
	require.Positive(t, p.BytesHeld)
	n.await(t, "b", in(v1alpha1.PinFailed, "1"))
}

func TestPullSecretsAreTriedInOrder(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, _ := o.push(t, "1", own)
	var refused atomic.Int64
	o.refusing(func(r *http.Request) int {
		if _, password, _ := r.BasicAuth(); password != "right" {
			refused.Add(1)
			return http.StatusUnauthorized
		}
		return 0
	})
	secrets := vault{}
	secrets.add("other", "elsewhere.example", "u", "right")
	secrets.add("stale", o.Host, "u", "stale")
	secrets.add("good", o.Host, "u", "right")
	n := newNode(t, t.TempDir(), func(p *pin.Options, _ *store.Options) { p.Secrets = secrets })
	a := assignment("a", "1", o.artifact(digestOf(t, index)))
	a.PullSecrets = []string{"missing", "other", "stale", "good"}
	n.Set([]v1alpha1.PinAssignment{a})
	n.await(t, "a", in(v1alpha1.PinReady, "1"))
	before := refused.Load()
	require.Less(t, before, int64(10), "once accepted, a credential is used for the rest")
}

func TestCredentialsAreNotTakenForGoodBecauseAPeerAskedForNone(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, _ := o.push(t, "1", own)
	o.refusing(func(r *http.Request) int {
		if _, password, _ := r.BasicAuth(); password != "right" {
			return http.StatusUnauthorized
		}
		return 0
	})
	secrets := vault{}
	secrets.add("stale", o.Host, "u", "stale")
	secrets.add("good", o.Host, "u", "right")
	n := newNode(t, t.TempDir(), func(p *pin.Options, _ *store.Options) { p.Secrets = secrets })
	n.opts.Fetcher.(*pull).shared = map[digest.Digest]string{digestOf(t, index): "Basic dTpyaWdodA=="}
	failed := false
	a := assignment("a", "1", o.artifact(digestOf(t, index)))
	a.PullSecrets = []string{"stale", "good"}
	n.Set([]v1alpha1.PinAssignment{a})
	n.await(t, "a", func(p v1alpha1.PinProgress) bool {
		failed = failed || p.State == v1alpha1.PinFailed
		return failed || p.State == v1alpha1.PinReady
	})
	require.False(t, failed)
}

func TestARevisionHoldsTheOldUntilTheNewIsWhole(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	first, firstImages := o.push(t, "1", own)
	second, secondImages := o.push(t, "2", own)
	old := append(registrytest.Closure(t, firstImages[own]), digestOf(t, first))
	n := newNode(t, t.TempDir(), nil)
	n.Set([]v1alpha1.PinAssignment{assignment("a", "1", o.artifact(digestOf(t, first)))})
	n.await(t, "a", in(v1alpha1.PinReady, "1"))

	o.down()
	n.Set([]v1alpha1.PinAssignment{assignment("a", "2", o.artifact(digestOf(t, second)))})
	p := n.await(t, "a", in(v1alpha1.PinFailed, "2"))
	require.Equal(t, "1", p.HeldRevision)
	require.Subset(t, n.pinned("a"), old)
	n.Set([]v1alpha1.PinAssignment{assignment("a", "3", o.artifact(digestOf(t, second)))})
	p = n.await(t, "a", in(v1alpha1.PinFailed, "3"))
	require.Equal(t, "1", p.HeldRevision, "whatever is asked for in between")

	o.refusing(func(*http.Request) int { return 0 })
	n.Retry()
	p = n.await(t, "a", in(v1alpha1.PinReady, "3"))
	require.Empty(t, p.HeldRevision)
	require.Equal(t, sorted(append(registrytest.Closure(t, secondImages[own]), digestOf(t, second))), n.pinned("a"))
}

func TestARevisionThatLosesABlobIsHeldNoMore(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	first, images := o.push(t, "1", own)
	second, _ := o.push(t, "2", own)
	n := newNode(t, t.TempDir(), nil)
	n.Set([]v1alpha1.PinAssignment{assignment("a", "1", o.artifact(digestOf(t, first)))})
	n.await(t, "a", in(v1alpha1.PinReady, "1"))
	o.down()
	n.Set([]v1alpha1.PinAssignment{assignment("a", "2", o.artifact(digestOf(t, second)))})
	n.await(t, "a", in(v1alpha1.PinFailed, "2"))
	n.Lost(registrytest.Closure(t, images[own])[2])
	p := n.await(t, "a", func(p v1alpha1.PinProgress) bool { return p.HeldRevision == "" })
	require.Equal(t, "2", p.Revision)
}

func TestARestartHoldsPinsWithoutAnybody(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, images := o.push(t, "1", own)
	held := append(registrytest.Closure(t, images[own]), digestOf(t, index))
	dir := t.TempDir()
	a := assignment("a", "1", o.artifact(digestOf(t, index)))
	n := newNode(t, dir, nil)
	n.Set([]v1alpha1.PinAssignment{a, assignment("gone", "1", o.artifact(digestOf(t, index)))})
	n.await(t, "a", in(v1alpha1.PinReady, "1"))
	n.await(t, "gone", in(v1alpha1.PinReady, "1"))
	n.stop()
	o.Close()

	n = newNode(t, dir, nil)
	n.Lost("") // wakes the keeper, which has not been told any assignment
	require.Equal(t, sorted(held), n.pinned("a"), "nothing is released before it is known what is assigned")
	n.Set([]v1alpha1.PinAssignment{a})
	n.await(t, "a", in(v1alpha1.PinReady, "1"))
	require.Equal(t, sorted(held), n.pinned("a"))
	n.eventuallyPins(t, "gone", nil)
}

func TestReleaseUnpinsAndKeepsTheBlobs(t *testing.T) {
	t.Parallel()
	_, n, image := withPin(t)
	n.Set(nil)
	n.eventuallyPins(t, "a", nil)
	n.requireHeld(t, image)
	require.Empty(t, n.Progress())
}

func TestAnEntryThatListsNothingUnpinsAndKeepsTheBlobs(t *testing.T) {
	t.Parallel()
	o, n, image := withPin(t)
	nothing := assignment("a", "2")
	require.True(t, nothing.LetsGo())
	n.Set([]v1alpha1.PinAssignment{nothing})
	n.await(t, "a", in(v1alpha1.PinReady, "2"))
	n.eventuallyPins(t, "a", nil)
	n.requireHeld(t, image)

	o.down()
	another, _ := o.push(t, "2", own)
	n.Set([]v1alpha1.PinAssignment{assignment("a", "3", o.artifact(digestOf(t, another)))})
	require.Empty(t, n.await(t, "a", in(v1alpha1.PinFailed, "3")).HeldRevision, "of revision 2 there is nothing to hold")
}

func TestPurgeRemovesWhatNoOtherPinKeeps(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, images := o.push(t, "1", own, other)
	n := newNode(t, t.TempDir(), nil)
	a := assignment("a", "1", o.artifact(digestOf(t, index)))
	a.Platforms = []string{"*"}
	b := assignment("b", "1", o.artifact(digestOf(t, images[own])))
	n.Set([]v1alpha1.PinAssignment{a, b})
	n.await(t, "a", in(v1alpha1.PinReady, "1"))
	n.await(t, "b", in(v1alpha1.PinReady, "1"))

	a.Action, a.Revision = v1alpha1.ActionPurge, "2"
	n.Set([]v1alpha1.PinAssignment{a, b})
	p := n.await(t, "a", in(v1alpha1.PinPurged, "2"))
	require.Zero(t, p.BytesHeld)
	n.requireAbsent(t, append(registrytest.Closure(t, images[other]), digestOf(t, index))...)
	n.requireHeld(t, registrytest.Closure(t, images[own])...)
	require.Empty(t, n.pinned("a"))
}

func TestALostBlobIsFetchedAgain(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, images := o.push(t, "1", own)
	n := newNode(t, t.TempDir(), nil)
	n.Set([]v1alpha1.PinAssignment{assignment("a", "1", o.artifact(digestOf(t, index)))})
	n.await(t, "a", in(v1alpha1.PinReady, "1"))

	layer := registrytest.Closure(t, images[own])[2]
	require.NoError(t, n.store.Unpin("pin/a"))
	require.NoError(t, n.store.Delete(layer))
	require.Eventually(t, func() bool {
		_, err := n.store.Stat(layer)
		return err == nil
	}, patience, 5*time.Millisecond)
	n.await(t, "a", in(v1alpha1.PinReady, "1"))
	n.eventuallyPins(t, "a", append(registrytest.Closure(t, images[own]), digestOf(t, index)))
}

func TestWhatOnlyTheRuntimeHoldsIsCopied(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, images := o.push(t, "1", own)
	first := newNode(t, t.TempDir(), nil)
	first.Set([]v1alpha1.PinAssignment{assignment("a", "1", o.artifact(digestOf(t, index)))})
	first.await(t, "a", in(v1alpha1.PinReady, "1"))

	held := append(registrytest.Closure(t, images[own]), digestOf(t, index))
	damaged := held[2]
	o.refusing(func(r *http.Request) int {
		if strings.HasSuffix(r.URL.Path, damaged.String()) {
			return 0
		}
		return http.StatusServiceUnavailable
	})
	runtime := t.TempDir()
	for _, d := range held {
		blob, err := first.store.Get(d)
		require.NoError(t, err)
		body, err := blob.Range(t.Context(), 0, blob.Size())
		require.NoError(t, err)
		data, err := io.ReadAll(body)
		require.NoError(t, errors.Join(err, body.Close(), blob.Close()))
		if d == damaged {
			data[0]++
		}
		path := filepath.Join(runtime, "blobs", d.Algorithm().String(), d.Encoded())
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, data, 0o600))
	}
	n := newNode(t, t.TempDir(), func(_ *pin.Options, s *store.Options) { s.RuntimePath = runtime })
	n.Set([]v1alpha1.PinAssignment{assignment("a", "1", o.artifact(digestOf(t, index)))})
	p := n.await(t, "a", in(v1alpha1.PinReady, "1"))
	require.Equal(t, p.BytesWanted, p.BytesHeld)
	require.NoError(t, os.RemoveAll(runtime)) // as the kubelet's collection of images does
	n.requireHeld(t, held...)
}

// loads is a container runtime that takes images from those who show the right password.
type loads struct {
	password string
	mu       sync.Mutex
	images   []pin.Image
}

func (l *loads) Holds(_ context.Context, image pin.Image) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.images, func(i pin.Image) bool {
		return i.Tag == image.Tag && i.Digest == image.Digest
	}), nil
}

func (l *loads) Load(_ context.Context, image pin.Image) error {
	if image.Credential.Password != l.password {
		return errors.New("pull access denied")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.images = append(l.images, image)
	return nil
}

func TestTheRuntimeLoadsTheImageWithThePinsCredentials(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, _ := o.push(t, "1", own)
	secrets := vault{}
	secrets.add("good", o.Host, "u", "right")
	into := &loads{password: "right"}
	reads := &counted{vault: secrets}
	dir := t.TempDir()
	n := newNode(t, dir, func(p *pin.Options, _ *store.Options) { p.Secrets, p.Runtime = reads, into })
	a := assignment("a", "1", o.artifact(digestOf(t, index)))
	a.Artifacts[0].Tag, a.Target, a.PullSecrets = "1", v1alpha1.TargetCacheAndRuntime, []string{"good"}
	n.Set([]v1alpha1.PinAssignment{a})
	n.await(t, "a", in(v1alpha1.PinReady, "1"))
	loaded := []pin.Image{{
		Repository: content.Repository{Registry: o.Host, Name: "team/app"}, Tag: "1", Digest: digestOf(t, index),
		Credential: pullsecret.Credential{Username: "u", Password: "right"},
	}}
	require.Equal(t, loaded, into.images)
	require.EqualValues(t, 1, reads.reads.Load(), "for the blobs and for the runtime")

	n.stop()
	n = newNode(t, dir, func(p *pin.Options, _ *store.Options) { p.Secrets, p.Runtime = reads, into })
	n.Set([]v1alpha1.PinAssignment{a})
	n.await(t, "a", in(v1alpha1.PinReady, "1"))
	require.Equal(t, loaded, into.images, "what the runtime holds is not loaded again")
	require.EqualValues(t, 1, reads.reads.Load(), "to look takes no secret")
}

func TestTheRuntimeIsNotSentForWhatTheNodeCouldNotGet(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, _ := o.push(t, "1", own)
	o.refusing(func(r *http.Request) int {
		if strings.Contains(r.URL.Path, "/blobs/") {
			return http.StatusTooManyRequests
		}
		return 0
	})
	into := &loads{}
	n := newNode(t, t.TempDir(), func(p *pin.Options, _ *store.Options) { p.Runtime = into })
	a := assignment("a", "1", o.artifact(digestOf(t, index)))
	a.Target = v1alpha1.TargetCacheAndRuntime
	n.Set([]v1alpha1.PinAssignment{a})
	require.Equal(t, v1alpha1.ReasonRateLimited, n.await(t, "a", in(v1alpha1.PinFailed, "1")).Reason)
	require.Empty(t, into.images)
}

// answers are what is remembered of tags.
type answers struct {
	mu   sync.Mutex
	tags []string
}

func (a *answers) Remember(_ context.Context, repo content.Repository, tag string, d ocispec.Descriptor) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tags = append(a.tags, fmt.Sprintf("%s:%s %s", repo.Name, tag, d.Digest))
}

func TestATagIsRememberedWhenItsArtifactComesAndNotAgainLater(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	first, _ := o.push(t, "1", own)
	second, _ := o.push(t, "2", own)
	dir, tags := t.TempDir(), &answers{}
	tagged := func(revision string, index crv1.ImageIndex) []v1alpha1.PinAssignment {
		a := assignment("a", revision, o.artifact(digestOf(t, index)))
		a.Artifacts[0].Tag = "latest"
		return []v1alpha1.PinAssignment{a}
	}
	life := func() *node { return newNode(t, dir, func(p *pin.Options, _ *store.Options) { p.Tags = tags }) }
	n := life()
	n.Set(tagged("1", first))
	n.await(t, "a", in(v1alpha1.PinReady, "1"))
	n.stop()
	n = life() // by now the registry may have given the runtime a newer answer
	n.Set(tagged("1", first))
	n.await(t, "a", in(v1alpha1.PinReady, "1"))
	n.Set(tagged("2", second))
	n.await(t, "a", in(v1alpha1.PinReady, "2"))
	n.stop()
	require.Equal(t, []string{"team/app:latest " + digestOf(t, first).String(),
		"team/app:latest " + digestOf(t, second).String()}, tags.tags)
}

func TestUseIsKnownToTheHour(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, _ := o.push(t, "1", own)
	n := newNode(t, t.TempDir(), nil)
	n.Set([]v1alpha1.PinAssignment{assignment("a", "1", o.artifact(digestOf(t, index)))})
	require.Nil(t, n.await(t, "a", in(v1alpha1.PinReady, "1")).LastUsed, "its own fetch is no use")
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	n.Used(digestOf(t, index), at)
	n.Used(digestOf(t, index), at.Add(-2*time.Hour))
	p := n.await(t, "a", func(p v1alpha1.PinProgress) bool { return p.LastUsed != nil })
	require.Equal(t, at.Truncate(time.Hour), p.LastUsed.UTC())
}

// The operator takes a use that has yet to come for one of now, each time that it is told of it.
func TestAUseByAClockThatWasAheadIsOfNoTimeToCome(t *testing.T) {
	t.Parallel()
	_, n, image := withPin(t)
	n.Used(image, time.Now().AddDate(1, 0, 0))
	p := n.await(t, "a", func(p v1alpha1.PinProgress) bool { return p.LastUsed != nil })
	require.False(t, p.LastUsed.After(time.Now()), p.LastUsed)
}

// gate is one that says no until it is opened.
type gate struct {
	open     atomic.Bool
	mu       sync.Mutex
	admitted []string
}

func (g *gate) Admit(_ context.Context, req content.Request) error {
	if !g.open.Load() {
		return content.ErrUnavailable
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.admitted = append(g.admitted, req.Kind.String()+" "+req.Digest.String()+" "+req.Authorization)
	return nil
}

func TestTheGateKnowsOfAPinBeforeTheRegistryIsDown(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	index, images := o.push(t, "1", own)
	secrets, dir, g := vault{}, t.TempDir(), &gate{}
	secrets.add("good", o.Host, "u", "right")
	life := func() *node {
		return newNode(t, dir, func(p *pin.Options, _ *store.Options) { p.Secrets, p.Gate = secrets, g })
	}
	a := assignment("a", "1", o.artifact(digestOf(t, index)))
	a.PullSecrets = []string{"good"}
	n := life()
	n.Set([]v1alpha1.PinAssignment{a})
	n.await(t, "a", in(v1alpha1.PinReady, "1")) // though the gate can't be told
	require.Empty(t, g.admitted)
	g.open.Store(true)
	n.Lost(digestOf(t, index)) // has the pin looked at
	want := []string{"manifest " + digestOf(t, index).String(), "manifest " + digestOf(t, images[own]).String()}
	for _, d := range registrytest.Closure(t, images[own])[1:] {
		want = append(want, "blob "+d.String())
	}
	for i := range want {
		want[i] += " Basic dTpyaWdodA=="
	}
	slices.Sort(want)
	require.Eventually(t, func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return slices.Equal(want, slices.Sorted(slices.Values(g.admitted)))
	}, patience, 5*time.Millisecond)

	n.stop()
	n = life()
	n.Set([]v1alpha1.PinAssignment{a})
	n.await(t, "a", in(v1alpha1.PinReady, "1"))
	n.stop()
	require.ElementsMatch(t, want, g.admitted, "the gate remembers by itself")
}

// script is a fetcher for tests of time: it has blobs in memory, and does what it is told before it gives one. Like the
// real one it fetches no chunk that no reader asked for, and keeps what has come.
type script struct {
	store  *store.Store
	blobs  map[digest.Digest]string
	before func(ctx context.Context, req content.Request) error

	mu    sync.Mutex
	begun map[digest.Digest]map[int64]bool // chunks that have come, by their offset
}

func (s *script) begin(ctx context.Context, req content.Request) error {
	s.mu.Lock()
	chunks := s.begun[req.Digest]
	s.mu.Unlock()
	if chunks != nil {
		return nil
	}
	if err := s.before(ctx, req); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun[req.Digest] = map[int64]bool{}
	return nil
}

func (s *script) Ensure(ctx context.Context, req content.Request) error {
	if _, err := s.store.Stat(req.Digest); err == nil {
		return nil
	}
	if err := s.begin(ctx, req); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.begun, req.Digest)
	s.mu.Unlock()
	blob := s.blobs[req.Digest]
	return s.store.Put(ctx, req.Digest, strings.NewReader(blob), int64(len(blob)))
}

func (s *script) Open(ctx context.Context, req content.Request) (content.Reader, error) {
	if blob, err := s.store.Get(req.Digest); err == nil {
		return blob, nil
	}
	if err := s.begin(ctx, req); err != nil {
		return nil, err
	}
	return arriving{s, req.Digest}, nil
}

type arriving struct {
	*script
	digest digest.Digest
}

func (a arriving) Size() int64  { return int64(len(a.blobs[a.digest])) }
func (a arriving) Close() error { return nil }

func (a arriving) Arrived() (n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int64(len(a.begun[a.digest])) * content.ChunkSize
}

func (a arriving) Range(_ context.Context, off, n int64) (io.ReadCloser, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begun[a.digest][off] = true
	return io.NopCloser(strings.NewReader(a.blobs[a.digest][off : off+n])), nil
}

type anonymous struct{}

func (anonymous) Authorize(context.Context, content.Repository, pullsecret.Credential) (string, error) {
	return "", nil
}

func (anonymous) Renew(context.Context, content.Repository, pullsecret.Credential, string) (string, error) {
	return "", nil
}

// timed runs a Keeper in a bubble of fake time.
func timed(t *testing.T, f func(k *pin.Keeper, s *script)) {
	synctest.Test(t, func(t *testing.T) {
		st, err := store.Open(t.Context(), store.Options{Path: t.TempDir(), FreeSpace: func(string) (int64, error) {
			return 1 << 40, nil
		}})
		require.NoError(t, err)
		s := &script{store: st, blobs: map[digest.Digest]string{}, begun: map[digest.Digest]map[int64]bool{}}
		k, err := pin.New(pin.Options{Store: st, Fetcher: s, Upstream: anonymous{}, Secrets: vault{},
			Changed: func() {}, Registerer: prometheus.NewRegistry()})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { k.Run(ctx); close(done) }()
		defer func() {
			cancel()
			<-done
			require.NoError(t, st.Close())
		}()
		f(k, s)
	})
}

func blobArtifact(d digest.Digest) v1alpha1.AssignedArtifact {
	return v1alpha1.AssignedArtifact{Repository: "registry.example/a", Digest: d.String(),
		MediaType: "application/octet-stream"}
}

func TestAttemptsBackOff(t *testing.T) {
	t.Parallel()
	timed(t, func(k *pin.Keeper, s *script) {
		var at []time.Duration
		start := time.Now()
		s.before = func(context.Context, content.Request) error {
			at = append(at, time.Since(start))
			return content.ErrUnavailable
		}
		a := assignment("a", "1", blobArtifact(digest.FromString("x")))
		a.Backoff.Max.Duration = 10 * time.Second
		k.Set([]v1alpha1.PinAssignment{a})
		time.Sleep(40 * time.Second)
		synctest.Wait()
		require.GreaterOrEqual(t, len(at), 6)
		for i, want := range []time.Duration{1, 2, 4, 8, 10} { // seconds
			pause := at[i+1] - at[i]
			require.LessOrEqual(t, pause, want*time.Second)
			require.GreaterOrEqual(t, pause, want*time.Second*9/10)
		}
	})
}

func TestARegistrysWishToWaitIsHonoured(t *testing.T) {
	t.Parallel()
	timed(t, func(k *pin.Keeper, s *script) {
		var attempts atomic.Int32
		s.before = func(context.Context, content.Request) error {
			attempts.Add(1)
			return &content.UpstreamError{Op: "GET x", Status: http.StatusTooManyRequests, RetryAfter: 5 * time.Minute}
		}
		k.Set([]v1alpha1.PinAssignment{assignment("a", "1", blobArtifact(digest.FromString("x")))})
		time.Sleep(5*time.Minute - time.Second)
		synctest.Wait()
		require.EqualValues(t, 1, attempts.Load())
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.EqualValues(t, 2, attempts.Load())
	})
}

func TestTheTimeLimitEndsAnAttempt(t *testing.T) {
	t.Parallel()
	timed(t, func(k *pin.Keeper, s *script) {
		s.before = func(ctx context.Context, _ content.Request) error { <-ctx.Done(); return ctx.Err() }
		a := assignment("a", "1", blobArtifact(digest.FromString("x")))
		a.TimeLimit = &metav1.Duration{Duration: 30 * time.Second}
		k.Set([]v1alpha1.PinAssignment{a})
		time.Sleep(29 * time.Second)
		synctest.Wait()
		require.Equal(t, v1alpha1.PinPending, k.Progress()[0].State)
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, v1alpha1.PinFailed, k.Progress()[0].State)
		require.Equal(t, v1alpha1.FetchTimedOut, k.Progress()[0].Reason)
	})
}

func TestBandwidthBoundsAFetch(t *testing.T) {
	t.Parallel()
	timed(t, func(k *pin.Keeper, s *script) {
		s.before = func(context.Context, content.Request) error { return nil }
		blob := strings.Repeat("x", 5*content.ChunkSize)
		d := digest.FromString(blob)
		s.blobs[d] = blob
		a := assignment("a", "1", blobArtifact(d))
		a.Bandwidth = resource.NewQuantity(content.ChunkSize, resource.BinarySI)
		k.Set([]v1alpha1.PinAssignment{a})
		time.Sleep(3 * time.Second) // of the five that it takes, but for the first chunk
		synctest.Wait()
		require.NotEqual(t, v1alpha1.PinReady, k.Progress()[0].State)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Equal(t, v1alpha1.PinReady, k.Progress()[0].State)
	})
}

func TestWhatCameInAnEarlierAttemptCostsNoTime(t *testing.T) {
	t.Parallel()
	timed(t, func(k *pin.Keeper, s *script) {
		s.before = func(context.Context, content.Request) error { return nil }
		blob := strings.Repeat("x", 25*content.ChunkSize)
		d := digest.FromString(blob)
		s.blobs[d] = blob
		a := assignment("a", "1", blobArtifact(d))
		a.Bandwidth = resource.NewQuantity(content.ChunkSize, resource.BinarySI)
		a.TimeLimit = &metav1.Duration{Duration: 10 * time.Second}
		k.Set([]v1alpha1.PinAssignment{a})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Equal(t, v1alpha1.FetchTimedOut, k.Progress()[0].Reason, k.Progress()[0].Message)
		time.Sleep(30 * time.Second) // three attempts and their pauses
		synctest.Wait()
		require.Equal(t, v1alpha1.PinReady, k.Progress()[0].State)
	})
}

func TestABlobAboveTheSizeLimitIsNotFetched(t *testing.T) {
	t.Parallel()
	for name, repository := range map[string]string{"of a registry": "registry.example/a", "of peers": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			timed(t, func(k *pin.Keeper, s *script) {
				s.before = func(context.Context, content.Request) error { return nil }
				blob := strings.Repeat("x", 10*content.ChunkSize)
				d := digest.FromString(blob)
				s.blobs[d] = blob
				a := assignment("a", "1", v1alpha1.AssignedArtifact{Repository: repository, Digest: d.String()})
				a.SizeLimit = resource.NewQuantity(content.ChunkSize, resource.BinarySI)
				k.Set([]v1alpha1.PinAssignment{a})
				synctest.Wait()
				require.Equal(t, v1alpha1.ReasonSizeLimitExceeded, k.Progress()[0].Reason)
				require.EqualValues(t, 10*content.ChunkSize, k.Progress()[0].BytesWanted)
				require.Zero(t, arriving{s, d}.Arrived())
				require.Zero(t, s.store.Usage().Blobs)
			})
		})
	}
}

func TestABlobThatIsLostDuringTheFetchIsFetchedAgainAtOnce(t *testing.T) {
	t.Parallel()
	timed(t, func(k *pin.Keeper, s *script) {
		first, second := digest.FromString("first"), digest.FromString("second")
		s.blobs[first], s.blobs[second] = "first", "second"
		lost := false
		s.before = func(_ context.Context, req content.Request) error {
			if req.Digest == second && !lost {
				lost = true
				require.NoError(t, s.store.Unpin("pin/a"))
				require.NoError(t, s.store.Delete(first))
				k.Lost(first)
			}
			return nil
		}
		k.Set([]v1alpha1.PinAssignment{assignment("a", "1", blobArtifact(first), blobArtifact(second))})
		synctest.Wait()
		require.True(t, lost)
		require.Equal(t, v1alpha1.PinReady, k.Progress()[0].State)
		_, err := s.store.Stat(first)
		require.NoError(t, err)
	})
}

func TestPinsThatTakeLongKeepNobodyWaiting(t *testing.T) {
	t.Parallel()
	timed(t, func(k *pin.Keeper, s *script) {
		stuck := func(name string) v1alpha1.PinAssignment {
			return assignment(name, "1", blobArtifact(digest.FromString(name)))
		}
		quick := func(name string, priority int32) v1alpha1.PinAssignment {
			d := digest.FromString(name)
			s.blobs[d] = name
			a := assignment(name, "1", blobArtifact(d))
			a.Priority = priority
			return a
		}
		s.before = func(ctx context.Context, req content.Request) error {
			if _, ok := s.blobs[req.Digest]; ok {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		is := func(want map[string]v1alpha1.PinState) {
			t.Helper()
			synctest.Wait()
			got := map[string]v1alpha1.PinState{}
			for _, p := range k.Progress() {
				got[p.UID] = p.State
			}
			require.Equal(t, want, got)
		}
		released, held := quick("released", 0), quick("held", 0)
		k.Set([]v1alpha1.PinAssignment{released, held})
		is(map[string]v1alpha1.PinState{"released": v1alpha1.PinReady, "held": v1alpha1.PinReady})
		held.Revision = "2" // all of which is here
		all := []v1alpha1.PinAssignment{stuck("a"), stuck("b"), held, quick("same", 0), quick("urgent", 1)}
		k.Set(all)
		is(map[string]v1alpha1.PinState{
			"a": v1alpha1.PinPending, "b": v1alpha1.PinPending, "held": v1alpha1.PinReady, "same": v1alpha1.PinPending,
			"urgent": v1alpha1.PinReady,
		})
		require.Nil(t, s.store.Pins()["pin/released"])
		k.Set(all[1:])
		is(map[string]v1alpha1.PinState{
			"b": v1alpha1.PinPending, "held": v1alpha1.PinReady, "same": v1alpha1.PinReady, "urgent": v1alpha1.PinReady,
		})
	})
}

func TestHighPriorityGoesFirst(t *testing.T) {
	t.Parallel()
	timed(t, func(k *pin.Keeper, s *script) {
		var order []string
		var mu sync.Mutex
		names := map[digest.Digest]string{}
		s.before = func(ctx context.Context, req content.Request) error {
			mu.Lock()
			order = append(order, names[req.Digest])
			mu.Unlock()
			return sleepFor(ctx, time.Second)
		}
		var all []v1alpha1.PinAssignment
		for i := range 6 {
			blob := fmt.Sprint(i)
			d := digest.FromString(blob)
			s.blobs[d], names[d] = blob, blob
			a := assignment(blob, "1", blobArtifact(d))
			a.Priority = int32(i)
			all = append(all, a)
		}
		k.Set(all)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for pair := range slices.Chunk([]int{0, 1, 2, 3, 4, 5}, 2) { // two at a time
			require.ElementsMatch(t, []string{fmt.Sprint(5 - pair[0]), fmt.Sprint(5 - pair[1])},
				order[pair[0]:pair[1]+1])
		}
	})
}

func sleepFor(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestANewRevisionEndsARunningAttempt(t *testing.T) {
	t.Parallel()
	timed(t, func(k *pin.Keeper, s *script) {
		stuck, good := digest.FromString("stuck"), digest.FromString("good")
		s.blobs[good] = "good"
		s.before = func(ctx context.Context, req content.Request) error {
			if req.Digest == stuck {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		k.Set([]v1alpha1.PinAssignment{assignment("a", "1", blobArtifact(stuck))})
		synctest.Wait()
		k.Set([]v1alpha1.PinAssignment{assignment("a", "2", blobArtifact(good))})
		synctest.Wait()
		require.Equal(t, v1alpha1.PinReady, k.Progress()[0].State)
		require.Equal(t, "2", k.Progress()[0].Revision)
		k.Set([]v1alpha1.PinAssignment{assignment("a", "3", blobArtifact(stuck))})
		synctest.Wait()
		k.Set(nil)
		synctest.Wait()
		require.Empty(t, s.store.Pins())
	})
}

func FuzzManifest(f *testing.F) {
	image, err := random.Image(10, 1)
	require.NoError(f, err)
	raw, err := image.RawManifest()
	require.NoError(f, err)
	f.Add(raw)
	f.Add([]byte(`{"manifests":[{"digest":"sha256:x","size":-1,"platform":{}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if digests, err := pin.ManifestDigests(data); err == nil {
			require.True(t, json.Valid(data))
			for _, d := range digests {
				require.NoError(t, d.Validate())
			}
		}
	})
}
