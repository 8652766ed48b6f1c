package swarm

import (
	"crypto/rand"
	"log/slog"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// libp2p's bandwidth meters share one sweeper for the whole process, which has no end.
		goleak.IgnoreTopFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run"),
		goleak.IgnoreTopFunction("github.com/libp2p/go-flow-metrics.(*sweeper).runActive"),
	)
}

// testSwarm is a node's part in the swarm, with a store below it.
type testSwarm struct {
	*Swarm
	store *store.Store
	reg   *prometheus.Registry
}

func newKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	return key
}

// slack is how many times as long as an agent a node waits that no test has wait for what does not come.
const slack = 20

// newTestSwarm starts a node on IPv4 loopback that admits everyone, unless set says otherwise.
func newTestSwarm(t testing.TB, set ...func(*Options)) *testSwarm {
	t.Helper()
	s := &testSwarm{reg: prometheus.NewRegistry()}
	log := slog.New(slog.DiscardHandler)
	var err error
	s.store, err = store.Open(t.Context(), store.Options{Path: t.TempDir(), Logger: log})
	require.NoError(t, err)
	o := Options{
		Identity: newKey(t), Listen: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}, Open: true,
		Store: s.store, Logger: log, Registerer: s.reg, Slack: slack,
	}
	for _, f := range set {
		f(&o)
	}
	s.Swarm, err = New(o)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.NoError(t, s.store.Close())
	})
	return s
}

func (s *testSwarm) info() peer.AddrInfo { return peer.AddrInfo{ID: s.ID(), Addrs: s.Addrs()} }

// startingFrom makes a node look for others at those given.
func startingFrom(others ...*testSwarm) func(*Options) {
	return func(o *Options) {
		for _, s := range others {
			o.Bootstrap = append(o.Bootstrap, s.info())
		}
	}
}

// eventually is for what other goroutines and peers bring about; the limit is only there to end a test that fails.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 5*time.Minute, 10*time.Millisecond, what)
}

// leaves is the plan of a blob in leaves.
func leaves(d digest.Digest) Plan { return Plan{d, content.Leaves} }
