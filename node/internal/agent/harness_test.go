package agent_test

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/shoal-cache/shoal/api/apitest"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/agent"
	"github.com/shoal-cache/shoal/node/internal/agent/pin"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/fetch"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// The control plane that the tests share; nil where its programs are missing.
var cluster *apitest.Cluster

// loopback is where the registries of tests are.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard()) // of the test's own clients
	apitest.Main(m, func(c *apitest.Cluster) { cluster = c })
}

// patience bounds every wait of a test. An informer tries again within 30 s when the API server was away.
const patience = 90 * time.Second

// watched is the real swarm; it also notes what the agent told it.
type watched struct {
	*swarm.Swarm
	mu        sync.Mutex
	admitted  []peer.ID
	bootstrap []peer.AddrInfo
}

func (w *watched) SetAdmitted(ids []peer.ID) {
	w.mu.Lock()
	w.admitted = ids
	w.mu.Unlock()
	w.Swarm.SetAdmitted(ids)
}

func (w *watched) SetBootstrap(peers []peer.AddrInfo) {
	w.mu.Lock()
	w.bootstrap = peers
	w.mu.Unlock()
	w.Swarm.SetBootstrap(peers)
}

func (w *watched) admits(id peer.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.admitted, id)
}

func (w *watched) startsFrom(id peer.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.bootstrap, func(i peer.AddrInfo) bool { return i.ID == id })
}

// machine is one node with its agent. It can be stopped and started again on the same disk.
type machine struct {
	t    *testing.T
	name string
	dir  string
	key  crypto.PrivKey
	addr ma.Multiaddr // to listen at: of any port in the first life, of the same in the next
	// config reaches the API server as the agent of this node.
	config *rest.Config

	agent    *agent.Agent
	store    *store.Store
	swarm    *watched
	live     *policy.Live
	zone     string // as it was looked up at the start; see LookupZone
	registry *prometheus.Registry
	stop     func()
	// held, where set before a start, is who reads blobs for pins, and is kept from it; see heldFetcher.
	held *heldFetcher
}

// heldFetcher tells of each blob that is to be read, and lets nobody read before it is closed.
type heldFetcher struct {
	pin.Fetcher
	asked chan struct{}
	open  chan struct{}
}

func (f *heldFetcher) Open(ctx context.Context, req content.Request) (content.Reader, error) {
	select {
	case f.asked <- struct{}{}:
	case <-f.open:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case <-f.open:
		return f.Fetcher.Open(ctx, req)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// newMachine makes the Node and, where labelled, gives it a zone. The agent is not started.
func newMachine(t *testing.T, name, zone string) *machine {
	t.Helper()
	apitest.Require(t, cluster)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name,
		Labels: map[string]string{corev1.LabelTopologyZone: zone}}}
	require.NoError(t, cluster.Client.Create(t.Context(), node))
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	require.NoError(t, err)
	config, err := cluster.AgentConfig(t.Context(), name)
	require.NoError(t, err)
	return &machine{t: t, name: name, dir: t.TempDir(), key: key, addr: ma.StringCast("/ip4/127.0.0.1/tcp/0"),
		config: config}
}

func (m *machine) start() {
	t := m.t
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	var err error
	m.store, err = store.Open(t.Context(), store.Options{Path: m.dir, OnEvent: func(e store.Event) {
		if e.Type == store.Removed && m.agent != nil {
			m.agent.BlobRemoved(e.Info.Digest)
		}
	}})
	require.NoError(t, err)
	lookup, cancelLookup := context.WithTimeout(t.Context(), patience)
	m.zone, err = agent.LookupZone(lookup, m.config, m.name, m.store.KV("agent"), log)
	cancelLookup()
	if err != nil {
		t.Log(err) // the agent starts all the same
	}
	m.registry = prometheus.NewRegistry()
	m.swarm = &watched{}
	m.swarm.Swarm, err = swarm.New(swarm.Options{
		Identity: m.key, Listen: []ma.Multiaddr{m.addr}, Store: m.store, Logger: log,
		Registerer: prometheus.NewRegistry(), Slack: 10,
	})
	require.NoError(t, err)
	m.addr = m.swarm.Addrs()[0]
	up, err := upstream.New(upstream.Options{AllowAddresses: loopback,
		Timeouts: upstream.Timeouts{Retry: 100 * time.Millisecond}})
	require.NoError(t, err)
	fetcher := fetch.New(fetch.Options{Store: m.store, Swarm: m.swarm.Swarm, Upstream: up, Logger: log,
		Registerer: prometheus.NewRegistry()})
	var reads pin.Fetcher = fetcher
	if m.held != nil {
		m.held.Fetcher, reads = fetcher, m.held
	}
	m.live = policy.NewLive(nil)
	m.agent, err = agent.New(agent.Options{
		Config: m.config, NodeName: m.name, Version: "v0-test", Zone: m.zone, Key: m.key, Swarm: m.swarm,
		Memory: m.store.KV("agent"),
		Policy: m.live, BasePolicy: policy.Default(), Store: m.store, StoreHealth: m.store.Health, Fetcher: reads, Upstream: up, Registerer: m.registry,
		Counters: func() agent.Counters { return agent.Counters{Hits: 7, PeerBytes: 1 << 20} },
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { m.agent.Run(ctx); close(done) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		fetcher.Close()
		require.NoError(t, m.swarm.Close())
		up.Close()
		require.NoError(t, m.store.Close())
	})
	t.Cleanup(m.stop)
}

func (m *machine) id() peer.ID {
	id, err := peer.IDFromPrivateKey(m.key)
	require.NoError(m.t, err)
	return id
}

// writes is how often the agent has written an object of the kind.
func (m *machine) writes(kind string) int {
	families, err := m.registry.Gather()
	require.NoError(m.t, err)
	n := 0.0
	for _, f := range families {
		if f.GetName() != "shoal_agent_api_writes_total" {
			continue
		}
		for _, metric := range f.GetMetric() {
			for _, l := range metric.GetLabel() {
				if l.GetName() == "kind" && l.GetValue() == kind {
					n += metric.GetCounter().GetValue()
				}
			}
		}
	}
	return int(n)
}

// peer is the node's Peer once it is as wanted.
func (m *machine) peer(wanted func(*v1alpha1.Peer) bool) *v1alpha1.Peer {
	m.t.Helper()
	return await(m.t, &v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: m.name}}, wanted)
}

// cache is the node's NodeCache once it is as wanted.
func (m *machine) cache(wanted func(*v1alpha1.NodeCache) bool) *v1alpha1.NodeCache {
	m.t.Helper()
	return await(m.t, &v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: m.name}}, wanted)
}

// await reads an object until it is there and as wanted.
func await[T client.Object](t *testing.T, object T, wanted func(T) bool) T {
	t.Helper()
	eventually(t, func() bool {
		err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(object), object)
		if err != nil && !apierrors.IsNotFound(err) {
			t.Log(err)
		}
		return err == nil && wanted(object)
	})
	return object
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, patience, 50*time.Millisecond)
}

// operator acts as the operator.
func operator(t *testing.T) client.Client {
	t.Helper()
	c, err := client.New(cluster.Impersonate("", apitest.OperatorServiceAccount),
		client.Options{Scheme: cluster.Scheme})
	require.NoError(t, err)
	return c
}

// judge has the operator admit the peer that the node's Peer claims now, or refuse it.
func judge(t *testing.T, node string, admitted bool) {
	t.Helper()
	var p v1alpha1.Peer
	require.NoError(t, cluster.Client.Get(t.Context(), client.ObjectKey{Name: node}, &p))
	judged := p.DeepCopy()
	judged.Status.Admitted, judged.Status.AdmittedPeerID, judged.Status.ObservedGeneration = admitted, p.Spec.PeerID, p.Generation
	require.NoError(t, operator(t).Status().Patch(t.Context(), judged, client.MergeFrom(&p)))
}

// assign has the operator tell the node what to keep.
func assign(t *testing.T, node string, pins ...v1alpha1.PinAssignment) {
	t.Helper()
	c := &v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: node}}
	err := cluster.Client.Get(t.Context(), client.ObjectKey{Name: node}, c)
	before := c.DeepCopy()
	c.Spec.Pins = pins
	if apierrors.IsNotFound(err) {
		require.NoError(t, operator(t).Create(t.Context(), c))
		return
	}
	require.NoError(t, err)
	require.NoError(t, operator(t).Patch(t.Context(), c, client.MergeFrom(before))) // it may not update
}
