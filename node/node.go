package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
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
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
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
	return errors.Join(err, n.close())
}

// start makes the parts, those below first.
func (n *node) start(ctx context.Context) (err error) {
	c := n.config
	if n.identity, err = swarm.LoadIdentity(c.IdentityPath()); err != nil {
		return err
	}
	events := &storeEvents{}
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
	if err := n.limit(n.policy.Load()); err != nil {
		return err
	}
	n.upstream, err = upstream.New(upstream.Options{
		Upstreams: upstreams(c.Upstreams, c.Hub), Mirrors: n.mirrors, AllowAddresses: c.AllowAddresses(),
		Locate: n.locate,
		Limits: newRates(n.policy).of,
		Logger: n.log.With("part", "upstream"), Registerer: n.metrics,
	})
	if err != nil {
		return err
	}
	if n.kubeAPI, err = n.kubeConfig(); err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	zone := n.zone(ctx)
	n.inZone = zone
	memory := n.store.KV("peers")
	n.swarm, err = swarm.New(swarm.Options{
		Identity: n.identity, Listen: c.Swarm.Listen, Announce: c.Swarm.Announce, Bootstrap: c.BootstrapPeers(),
		LoadPeers: func(context.Context) []peer.AddrInfo { return loadPeers(memory) },
		SavePeers: func(_ context.Context, peers []peer.AddrInfo) { n.savePeers(memory, peers) },
		Zone:      zone, ProtocolPrefix: c.Swarm.ProtocolPrefix,
		Open: c.Swarm.Admission == config.AdmitAll, Admitted: n.listed(),
		LowConnections: c.Swarm.Connections.Low, HighConnections: c.Swarm.Connections.High,
		Store: n.store, Logger: n.log.With("part", "swarm"), Registerer: n.metrics,
	})
	if err != nil {
		return err
	}
	n.joined.Store(n.swarm)
	n.tags = swarm.NewTags(n.swarm, n.store.KV("tags"))
	n.files = swarm.NewFiles(n.swarm, n.fileOf)
	if n.gate, err = n.newGate(); err != nil { //nolint:contextcheck // what was proved is remembered whether the caller waits or not
		return err
	}
	n.fetcher = fetch.New(fetch.Options{
		Store: n.store, Swarm: n.swarm, Upstream: n.gate.Observe(n.upstream), Zone: zone,
		Sources:        sources{n.gate, n.policy},
		PeersOnly:      func(r content.Repository) bool { return n.policy.Load().For(r).Mode == policy.PeersOnly },
		VerifiedRanges: c.Registry.Ranges == config.RangesVerified, ReadAhead: c.Registry.ReadAhead.Bytes,
		Ended: n.told, Patience: c.Registry.FirstByteTimeout,
		Logger: n.log.With("part", "fetch"), Registerer: n.metrics,
	})
	n.front, err = registry.New(registry.Options{
		Fetcher: n.fetcher, Upstream: n.upstream, Gate: n.gate, Tags: n.tags,
		Rules:           func(r content.Repository) policy.Rule { return n.policy.Load().For(r) },
		DefaultRegistry: c.Registry.DefaultRegistry, FirstByteTimeout: c.Registry.FirstByteTimeout,
		Record:         n.pulls,
		ManifestServed: func(d digest.Digest) { n.kube.manifestServed(d) },
		Logger:         n.log.With("part", "registry"), Registerer: n.metrics,
	})
	if err != nil {
		return err
	}
	if n.hub, err = n.newHub(); err != nil {
		return err
	}
	if n.kube, err = n.newKubernetes(zone); err != nil {
		return err
	}
	events.follow(func(e store.Event) {
		switch e.Type {
		case store.Committed:
			n.swarm.Provide(e.Info.Digest)
			if n.hub != nil {
				n.hub.Committed(e.Info.Digest)
			}
		case store.Removed:
			n.kube.blobRemoved(e.Info.Digest)
		}
	})
	n.applyPolicy(n.policy.Load())
	n.policy.Subscribe(n.applyPolicy)
	return nil
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
	infos, err := n.store.List(context.Background())
	if err != nil {
		return "", 0, false
	}
	for _, i := range infos {
		if i.Root.Equals(root) {
			return i.Digest, i.Size, true
		}
	}
	return "", 0, false
}

// close ends the parts, those above first.
func (n *node) close() error {
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
	return errors.Join(errs...)
}

// server is an address and what answers at it.
type server struct {
	name, address string
	handler       http.Handler
	drain         func(context.Context) error // ends the running answers first, where it is not nil
	tls           *tls.Config                 // nil: plain HTTP
	listener      net.Listener
}

// serve runs the servers until ctx ends, then lets running answers end. All ports are bound before anything is served.
func (n *node) serve(ctx context.Context) error {
	servers, err := n.listenAll(ctx)
	if err != nil {
		for _, s := range servers {
			err = errors.Join(err, s.listener.Close())
		}
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range servers {
		group.Go(func() error { return n.answer(ctx, s) })
	}
	group.Go(func() error { n.kube.run(ctx); return nil })
	group.Go(func() error { n.followMirror(ctx); return nil })
	group.Go(func() error { n.pulls.Run(ctx); return nil })
	n.log.Info("agent started", "version", version, "peer", n.swarm.ID(), "addresses", n.swarm.Addrs())
	return group.Wait()
}

// listenAll opens the address of every server. On failure it returns those that it opened.
func (n *node) listenAll(ctx context.Context) ([]server, error) {
	servers := []server{
		{name: "admin", address: n.config.Admin.Listen, handler: n.adminHandler()}, //nolint:contextcheck // what it reads is on this node's disk
		{name: "registry", address: n.config.Registry.Listen, handler: n.watch.Handler(n.front), drain: n.front.Drain},
	}
	if n.hub != nil {
		servers = append(servers, server{name: "hub", address: n.config.Hub.Listen, handler: n.hub, drain: n.hub.Drain})
	}
	if n.config.Metrics.Listen != "" {
		s, err := n.metricsServer()
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
	}
	for i := range servers {
		l, err := listen(ctx, servers[i].name, servers[i].address)
		if err != nil {
			return servers[:i], err
		}
		if servers[i].tls != nil {
			l = tls.NewListener(l, servers[i].tls)
		}
		servers[i].listener = l
	}
	if s, ok := n.contentsServer(ctx); ok {
		servers = append(servers, s)
	}
	return servers, nil
}

func listen(ctx context.Context, name, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s.listen: %w", name, err)
	}
	return l, nil
}

// answer runs a server until ctx ends.
func (n *node) answer(ctx context.Context, s server) error {
	server := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(n.log.With("part", s.name).Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(s.listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("%s.listen: %w", s.name, err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.config.Registry.DrainTimeout)
	defer cancel()
	if s.drain != nil {
		if err := s.drain(ctx); err != nil {
			n.log.Warn("not all answers ended in time", "part", s.name, "error", err)
		}
	}
	if err := server.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("%s.listen: %w", s.name, err), server.Close())
	}
	return nil
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
	return n.store.SetLimits(store.Limits(p.Store.On(disk)))
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
