package fetch

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
	"github.com/shoal-cache/shoal/test/registrytest"
)

// origin is a registry, which may want tokens.
type origin struct {
	*registrytest.Registry
	tokens *tokens
}

func newOrigin(t testing.TB) *origin { return &origin{Registry: registrytest.New(t)} }

func (o *origin) add(_ testing.TB, size int) digest.Digest { return o.AddRandom(size) }

func (o *origin) request(d digest.Digest) content.Request {
	return content.Request{Repository: content.Repository{Registry: "images.test", Name: "a/b"}, Digest: d}
}

// testNode is a node agent but for its HTTP side.
type testNode struct {
	*Fetcher
	store  *store.Store
	swarm  *swarm.Swarm
	reg    *prometheus.Registry
	closed sync.Once
}

func testLogger(name string) *slog.Logger {
	if os.Getenv("SHOAL_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
}

func newNode(t testing.TB, o *origin, name string, bootstrap []peer.AddrInfo,
	set ...func(*Options, *swarm.Options)) *testNode {
	t.Helper()
	return newNodeOn(t, o, name, bootstrap, store.Options{Path: t.TempDir()}, set...)
}

// newNodeOn starts a node on a store of its own kind, or one that holds something already.
func newNodeOn(
	t testing.TB, o *origin, name string, bootstrap []peer.AddrInfo, disk store.Options, set ...func(*Options,
		*swarm.Options),
) *testNode {
	t.Helper()
	n := &testNode{reg: prometheus.NewRegistry()}
	log := testLogger(name)
	var sw atomic.Pointer[swarm.Swarm]
	var err error
	disk.Logger = log
	disk.OnEvent = func(e store.Event) {
		if s := sw.Load(); s != nil && e.Type == store.Committed {
			s.Provide(e.Info.Digest)
		}
	}
	n.store, err = store.Open(t.Context(), disk)
	require.NoError(t, err)
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	so := swarm.Options{
		Identity: key, Listen: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}, Bootstrap: bootstrap, Open: true,
		Store: n.store, Logger: log, Registerer: n.reg,
		// A machine that runs tests may be slow; none of these times is what a test is about.
		Slack: 5, DiscoveryGrace: 30 * time.Second,
		Schedule: schedule.Config{LeaseTimeout: time.Minute, ChunkTimeout: 2 * time.Minute},
	}
	up, err := upstream.New(upstream.Options{
		Upstreams: []upstream.Upstream{{Registry: "images.test", Endpoints: []string{o.URL}}}, Logger: log,
		Timeouts: upstream.Timeouts{Retry: time.Second, Dial: patience, Header: patience, Stall: time.Minute},
	})
	require.NoError(t, err)
	fo := Options{Store: n.store, Upstream: up, Logger: log, Registerer: n.reg, PeerSilence: time.Minute,
		PeerPatience: 2 * time.Minute, CoordinatorPatience: 2 * time.Minute, Patience: patience}
	for _, f := range set {
		f(&fo, &so)
	}
	n.swarm, err = swarm.New(so)
	require.NoError(t, err)
	sw.Store(n.swarm)
	fo.Swarm, fo.Zone = n.swarm, so.Zone
	n.Fetcher = New(fo)
	t.Cleanup(func() { n.stop(t); up.Close() })
	return n
}

func (n *testNode) stop(t testing.TB) {
	n.closed.Do(func() {
		n.Fetcher.Close()
		require.NoError(t, n.swarm.Close())
		require.NoError(t, n.store.Close())
	})
}

func (n *testNode) info() peer.AddrInfo {
	return peer.AddrInfo{ID: n.swarm.ID(), Addrs: n.swarm.Addrs()}
}

// newSwarm starts nodes that all know each other.
func newSwarm(t testing.TB, o *origin, count int, set ...func(i int, fo *Options, so *swarm.Options)) []*testNode {
	t.Helper()
	var nodes []*testNode
	var boot []peer.AddrInfo
	for i := range count {
		n := newNode(t, o, fmt.Sprint("n", i), boot, func(fo *Options, so *swarm.Options) {
			for _, f := range set {
				f(i, fo, so)
			}
		})
		nodes = append(nodes, n)
		boot = append(boot, n.info())
	}
	for _, n := range nodes {
		<-n.swarm.Started()
		require.Eventually(t, func() bool {
			return len(n.swarm.Peers()) == count-1
		}, patience, 10*time.Millisecond)
	}
	return nodes
}

func (n *testNode) read(ctx context.Context, req content.Request) ([]byte, error) {
	var data bytes.Buffer
	err := n.readTo(ctx, &data, req)
	return data.Bytes(), err
}

func (n *testNode) readTo(ctx context.Context, w io.Writer, req content.Request) error {
	r, err := n.Open(ctx, req)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if all, ok := w.(*bytes.Buffer); ok { // what is copied and let go of is dear with the race detector
		all.Grow(int(min(r.Size(), 64<<20)) + bytes.MinRead)
	}
	body, err := r.Range(ctx, 0, r.Size())
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	_, err = io.Copy(w, body)
	return err
}

func (n *testNode) metric(t testing.TB, name string) float64 {
	families, err := n.reg.Gather()
	require.NoError(t, err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// pullAll reads a blob through every node, each started a while after the one before, and checks the bytes.
func pullAll(t testing.TB, nodes []*testNode, req content.Request, stagger time.Duration) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(nodes))
	for i, n := range nodes {
		wg.Go(func() {
			got := req.Digest.Algorithm().Digester() // blobs are large, and the race detector makes memory dear
			err := n.readTo(t.Context(), got.Hash(), req)
			if err == nil && got.Digest() != req.Digest {
				err = fmt.Errorf("node %d: the bytes are those of %s", i, got.Digest())
			}
			errs[i] = err
		})
		if stagger > 0 {
			<-time.After(stagger)
		}
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
}
