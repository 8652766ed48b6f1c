package pin_test

import (
	"crypto/rand"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/libp2p/go-libp2p/core/crypto"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/agent/pin"
	"github.com/shoal-cache/shoal/node/internal/fetch"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
	"github.com/shoal-cache/shoal/test/registrytest"
)

// tokens gives out tokens that are good for a number of requests, to whoever has the password.
type tokens struct {
	life  int  // requests
	most  int  // after so many tokens the password is revoked; 0: never
	down  bool // it answers nobody
	vague bool // whose password is wrong gets a token that is good for nothing, as some registries have it

	mu      sync.Mutex
	good    int // tokens given to who had the password
	refused int // requests of others who showed one
}

const guarded = "images.test"

// guard puts tokens before o, and returns a client to which o's images are then at guarded.
func (k *tokens) guard(t *testing.T, o origin) *upstream.Client {
	t.Helper()
	server := httptest.NewServer(registrytest.NewTokens(o.Files, k.issue))
	t.Cleanup(server.Close)
	client, err := upstream.New(upstream.Options{
		Upstreams: []upstream.Upstream{{Registry: guarded, Endpoints: []string{server.URL}}},
		Timeouts:  upstream.Timeouts{Retry: time.Second},
	})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func (k *tokens) issue(r *http.Request) registrytest.Token {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, password, shown := r.BasicAuth()
	switch {
	case k.down:
		return registrytest.Token{Status: http.StatusServiceUnavailable}
	case password == "right" && (k.most == 0 || k.good < k.most):
		k.good++
		return registrytest.Token{Requests: k.life}
	case shown:
		k.refused++
	}
	if k.vague {
		return registrytest.Token{}
	}
	return registrytest.Token{Status: http.StatusUnauthorized}
}

// late is a fetcher that is made once the node's store is there.
type late struct{ pin.Fetcher }

// newFetcher is the real one, on a node without peers.
func newFetcher(t *testing.T, n *node, client *upstream.Client) *fetch.Fetcher {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	log := slog.New(slog.DiscardHandler)
	sw, err := swarm.New(swarm.Options{
		Identity: key, Listen: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}, Open: true,
		Store: n.store, Logger: log, Registerer: prometheus.NewRegistry(),
	})
	require.NoError(t, err)
	fetcher := fetch.New(fetch.Options{
		Store: n.store, Swarm: sw, Upstream: client, Logger: log, Registerer: prometheus.NewRegistry(),
		// Fewer at one time than a token is good for, so that none is refused before anyone has seen it accepted.
		UpstreamStreams: 2,
	})
	t.Cleanup(func() {
		fetcher.Close()
		require.NoError(t, sw.Close())
	})
	return fetcher
}

func TestTokensThatLiveShorterThanThePull(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	image, err := random.Image(8<<20, 2)
	require.NoError(t, err)
	o.Push(t, "team/app:1", image)
	for name, c := range map[string]struct {
		password string
		tokens   *tokens
		state    v1alpha1.PinState
		// refused is the most requests for tokens that have no good password: one of each blob on its way.
		refused int
	}{
		"are replaced within one attempt": {"right", &tokens{life: 4}, v1alpha1.PinReady,
			0},
		"end the attempt once the pull secret is revoked": {"right", &tokens{life: 4, most: 2},
			v1alpha1.PinFailed, 3},
		"end it where a revoked secret still gets tokens, but useless": {"right",
			&tokens{life: 4, most: 2, vague: true}, v1alpha1.PinFailed, 3},
		"are not asked for again with a wrong secret": {"wrong", &tokens{life: 4}, v1alpha1.PinFailed,
			1},
		"are not asked for again where those for a wrong secret are useless": {
			"wrong", &tokens{life: 4, vague: true}, v1alpha1.PinFailed, 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := c.tokens
			client := k.guard(t, o)
			secrets, fetcher := vault{}, &late{}
			secrets.add("secret", guarded, "u", c.password)
			n := newNode(t, t.TempDir(), func(p *pin.Options, _ *store.Options) {
				p.Secrets, p.Fetcher, p.Upstream = secrets, fetcher, client
			})
			fetcher.Fetcher = newFetcher(t, n, client)
			a := assignment("a", "1", v1alpha1.AssignedArtifact{Repository: guarded + "/team/app",
				Digest: digestOf(t, image).String()})
			a.PullSecrets = []string{"secret"}
			a.Backoff = &v1alpha1.Backoff{Initial: metav1.Duration{Duration: time.Hour}} // there is no second attempt
			n.Set([]v1alpha1.PinAssignment{a})

			p := n.await(t, "a", func(p v1alpha1.PinProgress) bool {
				return p.State == v1alpha1.PinReady || p.State == v1alpha1.PinFailed
			})
			k.mu.Lock()
			defer k.mu.Unlock()
			t.Logf("%d tokens, %d refused: %s", k.good, k.refused, p.Message)
			require.Equal(t, c.state, p.State, p.Message)
			require.LessOrEqual(t, k.refused, c.refused)
			require.Equal(t, c.refused > 0, k.refused > 0)
			if c.state == v1alpha1.PinReady {
				n.requireHeld(t, registrytest.Closure(t, image)...)
				require.Greater(t, k.good, 2, "it took some")
				return
			}
			require.Equal(t, v1alpha1.ReasonUnauthorized, p.Reason)
			require.Contains(t, p.Message, "upstream answered 401 Unauthorized")
		})
	}
}

func TestATokenServerThatIsDownIsNamedAsTheCause(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	k := &tokens{down: true}
	client := k.guard(t, o)
	secrets, fetcher := vault{}, &late{}
	secrets.add("secret", guarded, "u", "right")
	n := newNode(t, t.TempDir(), func(p *pin.Options, _ *store.Options) {
		p.Secrets, p.Fetcher, p.Upstream = secrets, fetcher, client
	})
	fetcher.Fetcher = newFetcher(t, n, client)
	a := assignment("a", "1", v1alpha1.AssignedArtifact{Repository: guarded + "/team/app",
		Digest: digest.FromString("a manifest").String()})
	a.PullSecrets = []string{"secret"}
	n.Set([]v1alpha1.PinAssignment{a})
	p := n.await(t, "a", func(p v1alpha1.PinProgress) bool { return p.State == v1alpha1.PinFailed || p.Message != "" })
	require.Equal(t, v1alpha1.ReasonRegistryUnreachable, p.Reason, p.Message)
	require.Contains(t, p.Message, "authorize at "+guarded+"/team/app")
}
