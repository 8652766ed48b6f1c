package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/client-go/rest"

	"github.com/shoal-cache/shoal/node/internal/agent"
	"github.com/shoal-cache/shoal/node/internal/bypass"
	"github.com/shoal-cache/shoal/node/internal/config"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/fetch"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/hub"
	"github.com/shoal-cache/shoal/node/internal/mirror"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/pulls"
	"github.com/shoal-cache/shoal/node/internal/registry"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/trace"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// node is the agent's parts.
type node struct {
	config   *config.Config
	log      *slog.Logger
	metrics  *prometheus.Registry
	started  time.Time
	identity crypto.PrivKey
	policy   *policy.Live
	store    *store.Store
	upstream *upstream.Client
	swarm    *swarm.Swarm
	tags     *swarm.Tags
	fetcher  *fetch.Fetcher
	front    *registry.Front
	gate     *gate.Gate
	hub      *hub.Front                  // nil where it is off
	joined   atomic.Pointer[swarm.Swarm] // the swarm, for the store, which is there before it
	inZone   string
	files    *swarm.Files
	kubeAPI  *rest.Config // nil where the Kubernetes side is off
	kube     kubernetes
	watch    *bypass.Watch // of pulls past this agent
	// mirrorFindings counts what is amiss with the runtime's mirror configuration.
	mirrorFindings *prometheus.GaugeVec
	found          atomic.Pointer[[]agent.Finding] // the same in words; nil while it is not known
	pulls          *pulls.Record
	tracer         *trace.Tracer // nil: there are no traces
}

// run starts the agent and serves until ctx ends.
func run(ctx context.Context, c *config.Config) error {
	tuneMemory()
	log, err := newLogger(c.Log)
	if err != nil {
		return err
	}
	for _, w := range c.Warnings() {
		log.Warn(w)
	}
	n := &node{config: c, log: log, started: time.Now(), metrics: prometheus.NewRegistry(),
		policy: policy.NewLive(c.EffectivePolicy())}
	n.metrics.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	n.watch = bypass.New(n.mirrored)
	n.pulls = pulls.New(log.With("part", "pulls"), n.metrics)
	n.mirrorFindings = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "shoal_mirror_findings",
		Help: "What keeps the container runtime from asking this agent, or may do so, by reason. All 0: it asks.",
	}, []string{"reason"})
	n.metrics.MustRegister(n.mirrorFindings)
	n.registerInfo()
	err = n.start(ctx)
	if err == nil {
		err = n.serve(ctx)
	}
	return errors.Join(err, n.close(ctx))
}

// start makes the parts, those below first.
func (n *node) start(ctx context.Context) (err error) {
	c := n.config
	if n.identity, err = swarm.LoadIdentity(c.IdentityPath()); err != nil {
		return storePathProblem(c.Store.Path, err)
	}
	n.tracer, err = trace.New(ctx, trace.Options{Endpoint: c.Tracing.Endpoint, Protocol: c.Tracing.Protocol,
		Ratio: c.Tracing.Ratio, Node: n.name(), Version: version, Log: n.log.With("part", "trace")})
	if err != nil {
		return fmt.Errorf("tracing: %w", err)
	}
	events := &storeEvents{}
	if err := n.openStore(ctx, events); err != nil {
		return storePathProblem(c.Store.Path, err)
	}
	documents := room.New(room.Share(4))
	n.upstream, err = upstream.New(upstream.Options{
		Upstreams: upstreams(c.Upstreams, c.Hub), Mirrors: n.mirrors, AllowAddresses: c.Upstream.AllowAddresses,
		Locate: n.locate, Outward: c.Hub.Below(),
		Limits: newRates(n.policy).of, Documents: documents, Tracer: n.tracer,
		Logger: n.log.With("part", "upstream"), Registerer: n.metrics,
	})
	if err != nil {
		return fmt.Errorf("upstreams: %w", err)
	}
	if n.kubeAPI, err = n.kubeConfig(); err != nil {
		return fmt.Errorf("kubernetes.%w", err)
	}
	n.inZone = n.zone(ctx)
	if err := n.joinSwarm(); err != nil { //nolint:contextcheck // the swarm has a context of its own
		return err
	}
	if err := n.makeFronts(documents); err != nil {
		return err
	}
	if n.kube, err = n.newKubernetes(n.inZone); err != nil {
		return err
	}
	events.follow(n.storeChanged)
	n.applyPolicy(n.policy.Load())
	n.policy.Subscribe(n.applyPolicy)
	return nil
}

// openStore opens the store, and gives it the limits of the policy that was in force last.
func (n *node) openStore(ctx context.Context, events *storeEvents) (err error) {
	c := n.config
	// It opens without limits: which are in force is known from what it remembers itself.
	n.store, err = store.Open(ctx, store.Options{
		Path: c.Store.Path, RuntimePath: c.Store.RuntimePath, OnEvent: events.on, Holders: n.holders,
		ScrubInterval: c.Store.ScrubInterval,
		Logger:        n.log.With("part", "store"), Registerer: n.metrics,
	})
	if err != nil {
		return err
	}
	if c.Kubernetes.Enabled {
		if p, ok := agent.RememberedPolicy(n.store.KV("kubernetes"), c.EffectivePolicy(), n.log); ok {
			n.policy.Store(p)
		}
	}
	return n.limit(n.policy.Load())
}

// joinSwarm starts the node's part in the swarm.
func (n *node) joinSwarm() (err error) {
	c := n.config
	if err := checkSwarmListen(c.Swarm.Listen); err != nil {
		return err
	}
	memory := n.store.KV("peers")
	n.swarm, err = swarm.New(swarm.Options{
		Identity: n.identity, Listen: c.Swarm.Listen, Announce: c.Swarm.Announce, Bootstrap: c.BootstrapPeers(),
		LoadPeers: func(context.Context) []peer.AddrInfo { return loadPeers(memory) },
		SavePeers: func(_ context.Context, peers []peer.AddrInfo) { n.savePeers(memory, peers) },
		Zone:      n.inZone, ProtocolPrefix: c.Swarm.ProtocolPrefix,
		CongestionControl: c.Swarm.CongestionControl,
		Open:              c.Swarm.Admission == config.AdmitAll, Admitted: n.listed(),
		LowConnections: c.Swarm.Connections.Low, HighConnections: c.Swarm.Connections.High,
		Store: n.store, Tracer: n.tracer, Logger: n.log.With("part", "swarm"), Registerer: n.metrics,
	})
	if err != nil {
		return err
	}
	n.joined.Store(n.swarm)
	n.tags = swarm.NewTags(n.swarm, n.store.Notes("tags"))
	n.files = swarm.NewFiles(n.swarm, n.fileOf)
	return nil
}

// makeFronts makes what stands between the swarm and those who ask: the gate, the fetcher and the fronts.
func (n *node) makeFronts(documents *room.Room) (err error) {
	c := n.config
	if n.gate, err = n.newGate(); err != nil {
		return err
	}
	n.fetcher = fetch.New(fetch.Options{
		Store: n.store, Swarm: n.swarm, Upstream: n.gate.Observe(n.upstream), Zone: n.inZone,
		Sources:        sources{n.gate, n.policy, c.Hub.Name(), func() fetch.Sources { return n.hub }},
		Gave:           n.gate.Gave,
		PeersOnly:      func(r content.Repository) bool { return n.policy.Load().For(r).Mode == policy.PeersOnly },
		Connections:    func(r content.Repository) int { return n.policy.Load().For(r).RateLimit.Connections },
		VerifiedRanges: c.Registry.Ranges == config.RangesVerified, ReadAhead: c.Registry.ReadAhead.Bytes,
		Ended: n.told, Tracer: n.tracer, Patience: c.Registry.FirstByteTimeout,
		Logger: n.log.With("part", "fetch"), Registerer: n.metrics,
	})
	n.front, err = registry.New(registry.Options{
		Fetcher: n.fetcher, Upstream: n.upstream, Gate: n.gate, Tags: n.tags,
		Rules:           func(r content.Repository) policy.Rule { return n.policy.Load().For(r) },
		DefaultRegistry: c.Registry.DefaultRegistry, FirstByteTimeout: c.Registry.FirstByteTimeout,
		Record: n.pulls, Tracer: n.tracer, Documents: documents,
		ManifestServed: func(d digest.Digest) { n.kube.manifestServed(d) },
		Logger:         n.log.With("part", "registry"), Registerer: n.metrics,
	})
	if err != nil {
		return err
	}
	n.hub, err = n.newHub(documents)
	return err
}

// storeChanged tells those who are to know of blobs that come and go.
func (n *node) storeChanged(e store.Event) {
	switch e.Type {
	case store.Committed:
		n.swarm.Provide(e.Info.Digest)
	case store.Removed:
		n.kube.blobRemoved(e.Info.Digest)
	}
}

// name is how others know the node: by its name in the cluster, or else by its peer ID.
func (n *node) name() string {
	if name := n.config.Kubernetes.NodeName; name != "" {
		return name
	}
	id, err := peer.IDFromPrivateKey(n.identity)
	if err != nil {
		return ""
	}
	return id.String()
}

// holders is how many other nodes are known to hold a blob.
func (n *node) holders(d digest.Digest) int {
	s := n.joined.Load()
	if s == nil {
		return 0
	}
	return s.Holders(d)
}

// fileOf finds the blob of this node whose UnixFS root a CID is.
func (n *node) fileOf(root cid.Cid) (digest.Digest, int64, bool) {
	info, err := n.store.ByRoot(root)
	return info.Digest, info.Size, err == nil
}

// close ends the parts, those above first.
func (n *node) close(ctx context.Context) error {
	errs := []error{n.kube.close()}
	if n.hub != nil {
		n.hub.Close()
	}
	if n.fetcher != nil {
		n.fetcher.Close()
	}
	if n.swarm != nil {
		errs = append(errs, n.swarm.Close())
	}
	if n.upstream != nil {
		n.upstream.Close()
	}
	if n.gate != nil {
		errs = append(errs, n.gate.Close())
	}
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	errs = append(errs, n.tracer.Close(ctx))
	return errors.Join(errs...)
}

// applyPolicy puts a policy into force where it is not asked for anew each time.
func (n *node) applyPolicy(p *policy.Policy) {
	n.swarm.SetBandwidth(p.Bandwidth.Upload.Bytes, p.Bandwidth.Download.Bytes)
	if err := n.limit(p); err != nil {
		n.log.Error("limits of the policy are not in force", "error", err)
	}
}

// limit gives the store its limits under a policy.
func (n *node) limit(p *policy.Policy) error {
	disk, err := n.store.DiskSize()
	if err != nil {
		return err
	}
	l := store.Limits(p.Store.On(disk))
	if !n.config.Hub.Enabled {
		l.ModelCapacity = 0 // nothing comes into that pool
	}
	return n.store.SetLimits(l)
}

// listed are the peers that the configuration admits by name.
func (n *node) listed() []peer.ID {
	ids := append([]peer.ID(nil), n.config.Swarm.Peers...)
	for _, p := range n.config.BootstrapPeers() {
		ids = append(ids, p.ID)
	}
	return ids
}

// mirrors are the hosts that the node's administrator has the runtime ask for a registry.
func (n *node) mirrors(registry string) ([]upstream.Mirror, error) {
	if n.config.Mirror.StateDir == "" {
		return nil, nil
	}
	hosts, err := mirror.Hosts(n.config.MirrorOptions(), registry)
	out := make([]upstream.Mirror, len(hosts))
	for i, h := range hosts {
		out[i] = upstream.Mirror(h)
	}
	return out, err
}

// storeEvents hands the store's events on, once there is someone to hand them to. Blobs that are committed before that
// are provided with all others when the swarm starts.
type storeEvents struct {
	mu sync.Mutex
	to func(store.Event)
}

func (s *storeEvents) on(e store.Event) {
	s.mu.Lock()
	to := s.to
	s.mu.Unlock()
	if to != nil {
		to(e)
	}
}

func (s *storeEvents) follow(to func(store.Event)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = to
}

const lastPeers = "last"

func loadPeers(kv store.KV) []peer.AddrInfo {
	raw, ok := kv.Get(lastPeers)
	var peers []peer.AddrInfo
	if !ok || json.Unmarshal(raw, &peers) != nil {
		return nil
	}
	return peers
}

func (n *node) savePeers(kv store.KV, peers []peer.AddrInfo) {
	raw, err := json.Marshal(peers)
	if err == nil {
		err = kv.Put(lastPeers, raw)
	}
	if err != nil {
		n.log.Warn("peers not remembered", "error", err)
	}
}
