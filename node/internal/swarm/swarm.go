package swarm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/bootstrap"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	bandwidth "github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	libp2pswarm "github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	connrate "github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/shoal-cache/shoal/node/internal/bitswapnet"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/trace"
)

// Store is what the swarm serves from.
type Store interface {
	// ChunkMap fails with content.ErrNotFound for a blob that is not held whole.
	ChunkMap(d digest.Digest) (*content.ChunkMap, error)
	// Unmapped is how many bytes ChunkMap would have to read for that.
	Unmapped(d digest.Digest) int64
	// PieceMap is that of its pieces. It may have to read the whole blob. It calls pay before that begins.
	PieceMap(ctx context.Context, d digest.Digest, pay func(ctx context.Context, bytes int64) error) (*content.ChunkMap,
		error)
	// Digests lists the blobs held whole.
	Digests(ctx context.Context) ([]digest.Digest, error)
	Blockstore() blockstore.Blockstore
}

// Options configure a Swarm. Identity, Listen and Store are required.
type Options struct {
	Identity crypto.PrivKey
	Listen   []ma.Multiaddr
	// Announce replaces the listening addresses as what other peers are told.
	Announce []ma.Multiaddr
	// Bootstrap are the peers to start from; SetBootstrap changes them.
	Bootstrap []peer.AddrInfo
	// Remembered loads and saves peers to start from when no bootstrap peer answers. Both or neither.
	LoadPeers func(context.Context) []peer.AddrInfo
	SavePeers func(context.Context, []peer.AddrInfo)
	// Zone of this node; peers tell theirs.
	Zone string
	// ProtocolPrefix separates swarms; default DefaultProtocolPrefix.
	ProtocolPrefix string
	// Open admits every peer. Otherwise SetAdmitted says who is.
	Open     bool
	Admitted []peer.ID
	// LowConnections and HighConnections bound the connections that are kept open without need; default
	// DefaultLowConnections and DefaultHighConnections.
	LowConnections, HighConnections int
	// CongestionControl names TCP's congestion controls for the connections to other agents, the first that the kernel
	// allows. None: the node's own. It means nothing but on Linux.
	CongestionControl []string
	// Slack is how many times as long as in an agent the words of peers are waited for; default 1. For tests, whose
	// machine may be too slow for an agent's times.
	Slack int
	// JoinTimeout bounds the search for a blob's coordinator, and half of it one candidate's answer, twice of it that
	// of one with whom this node exchanges much meanwhile; after it a node goes on alone for a while. Default 3 s.
	JoinTimeout time.Duration
	// DiscoveryGrace is how long a coordinator looks for holders before it sends anyone upstream; default 250 ms. Where
	// no peer has answered by then, or one says that it is a holder, it looks for a second more.
	DiscoveryGrace time.Duration
	// Schedule bounds the coordinator's decisions.
	Schedule schedule.Config
	// LeavesOnly: the node knows no pieces, as releases before this one. For tests of swarms that are being updated.
	LeavesOnly bool
	Store      Store
	// Tracer makes spans of what is coordinated for others. Optional.
	Tracer     *trace.Tracer
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// slack is for how long this node waits where an agent waits for d.
func (o *Options) slack(d time.Duration) time.Duration { return d * time.Duration(o.Slack) }

// control is what sets the congestion control of a connection. Where it may not be set it stays the node's own.
func (o *Options) control() func(net.Conn) {
	var once sync.Once
	return func(c net.Conn) {
		if err := setCongestion(c, o.CongestionControl); err != nil && !errors.Is(err, net.ErrClosed) {
			once.Do(func() {
				o.Logger.Warn("the kernel lets the agent use none of swarm.congestionControl; connections to agents "+
					"keep the node's own", "names", o.CongestionControl, "error", err)
			})
		}
	}
}

// The defaults of Options, which are the agent's too.
const (
	DefaultProtocolPrefix  = "/shoal"
	DefaultLowConnections  = 256
	DefaultHighConnections = 512
)

// Swarm is this node's part in the swarm.
type Swarm struct {
	opts      Options
	log       *slog.Logger
	m         *metrics
	host      host.Host
	dht       *dht.IpfsDHT
	admission *admission
	guard     *guard
	bitswap   *bitswap
	provider  *provider
	twins     *twins
	traffic   *bandwidth.BandwidthCounter
	signed    *signedClaims
	asking    *semaphore.Weighted // questions to peers
	searches  *semaphore.Weighted // for holders of blobs
	maps      *semaphore.Weighted // claims that holders are sending
	newPeer   chan struct{}
	company   chan struct{} // a peer has come or gone
	started   chan struct{} // closed once the first round of bootstrapping is over

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// refreshing is held for reading while a refresh of the DHT's table begins. None may begin once the DHT ends.
	refreshing sync.RWMutex

	mu           sync.Mutex
	bootstrap    []peer.AddrInfo
	rooms        rooms
	shunnedUntil map[peer.ID]time.Time
	aloneSince   time.Time                   // when it started, or the last peer went
	orphans      map[digest.Digest]time.Time // when a blob's coordinator was lost
}

// New starts a node's part in the swarm: it listens, and looks for others in the background. Close ends it.
func New(o Options) (*Swarm, error) {
	o.ProtocolPrefix = cmp.Or(o.ProtocolPrefix, DefaultProtocolPrefix)
	o.LowConnections = cmp.Or(o.LowConnections, DefaultLowConnections)
	o.HighConnections = cmp.Or(o.HighConnections, DefaultHighConnections)
	o.Slack = max(1, o.Slack)
	o.JoinTimeout = cmp.Or(o.JoinTimeout, o.slack(defaultJoinTimeout))
	o.DiscoveryGrace = cmp.Or(o.DiscoveryGrace, o.slack(250*time.Millisecond))
	s := &Swarm{
		opts: o, log: o.Logger, admission: newAdmission(o.Open), signed: newSignedClaims(),
		bootstrap: o.Bootstrap, traffic: bandwidth.NewBandwidthCounter(),
		asking:   semaphore.NewWeighted(questionsAtOnce),
		searches: semaphore.NewWeighted(searchesAtOnce), maps: semaphore.NewWeighted(claimsAtOnce),
		newPeer: make(chan struct{}, 1), company: make(chan struct{}, 1), aloneSince: time.Now(),
		started: make(chan struct{}),
		rooms:   rooms{}, shunnedUntil: map[peer.ID]time.Time{},
		orphans: map[digest.Digest]time.Time{},
	}
	s.admission.admit(o.Admitted)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.start(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Swarm) start() error {
	var err error
	if s.host, err = newHost(s.opts, s.admission, s.traffic); err != nil {
		return fmt.Errorf("swarm: %w", err)
	}
	s.m = newMetrics(s.opts.Registerer, s)
	s.guard = newGuard(s.host.ID(), s.log, s.m, s.banFor)
	s.dht, err = dht.New(dhtHost{s.host, s.guard},
		dht.OnRequestHook(s.guard.question),
		dht.ProtocolPrefix(protocol.ID(s.opts.ProtocolPrefix)),
		dht.Mode(dht.ModeServer),
		dht.DisableValues(),
		dht.ProviderManagerOpts(records.ProvideValidity(provideValidity)),
		dht.BootstrapPeersFunc(s.bootstrapPeers),
	)
	if err != nil {
		return fmt.Errorf("swarm: DHT: %w", err)
	}
	s.provider = newProvider(s)
	s.twins = newTwins(s)
	if err := s.watchPeers(); err != nil {
		return fmt.Errorf("swarm: %w", err)
	}
	s.bitswap = newBitswap(s.ctx, bitswapnet.New(s.host, s.guard), s.opts.Store.Blockstore(), s.guard, s.m, s.log)
	// Pieces first: who is told meanwhile what this node speaks must not take it for one that knows no pieces.
	for _, g := range []content.Grain{content.Pieces, content.Leaves} {
		if g == content.Pieces && s.opts.LeavesOnly {
			continue
		}
		s.host.SetStreamHandler(s.planProtocol("coordinate", g), s.handleCoordinate(g))
		s.host.SetStreamHandler(s.planProtocol("map", g), s.handleMap(g))
	}
	s.wg.Go(func() { s.provider.run(s.ctx) })
	s.wg.Go(func() { s.twins.run(s.ctx) })
	s.wg.Go(func() { s.findPeers(s.ctx) })
	return nil
}

func newHost(o Options, gater *admission, traffic bandwidth.Reporter) (host.Host, error) {
	// libp2p bounds connections by address, too: 8 for an IPv4 address, and 8 for a /56 of IPv6, within which a whole
	// cluster may lie. Here it is the gater that keeps strangers out, so an address says nothing.
	resources, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(resourceLimits()), rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet([]rcmgr.ConnLimitPerSubnet{},
			[]rcmgr.ConnLimitPerSubnet{}), rcmgr.WithConnRateLimiters(&connrate.Limiter{}))
	if err != nil {
		return nil, err
	}
	conns, err := connmgr.NewConnManager(o.LowConnections, o.HighConnections)
	if err != nil {
		return nil, err
	}
	opts := []libp2p.Option{
		libp2p.Identity(o.Identity), libp2p.ListenAddrs(o.Listen...),
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(libp2ptls.ID, newTLS(o.control())),
		libp2p.ConnectionGater(gater), libp2p.ResourceManager(resources), libp2p.ConnectionManager(conns),
		libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.BandwidthReporter(traffic), libp2p.UserAgent("shoal"),
	}
	if len(o.Announce) > 0 {
		opts = append(opts, libp2p.AddrsFactory(func([]ma.Multiaddr) []ma.Multiaddr { return o.Announce }))
	}
	return libp2p.New(opts...)
}

// Close leaves the swarm and ends all that was started.
func (s *Swarm) Close() error {
	s.refreshing.Lock()
	s.cancel()
	s.refreshing.Unlock()
	var errs []error
	if s.bitswap != nil {
		s.bitswap.close()
	}
	if s.dht != nil {
		errs = append(errs, s.dht.Close())
	}
	if s.host != nil {
		errs = append(errs, s.host.Close())
	}
	s.wg.Wait()
	return errors.Join(errs...)
}

// wireVersion is that of all protocols. A new field needs no new version, see wire.go; agents of different versions
// plan apart, and give each other what they hold all the same.
const wireVersion = "2.0.0"

func (s *Swarm) protocol(name string) protocol.ID {
	return protocol.ID(s.opts.ProtocolPrefix + "/" + name + "/" + wireVersion)
}

// planProtocol is a protocol whose indexes are those of a grain.
func (s *Swarm) planProtocol(name string, g content.Grain) protocol.ID {
	return s.protocol(inGrain(name, g))
}

// inGrain names such a protocol. Releases that know no pieces have that of leaves alone.
func inGrain(name string, g content.Grain) string {
	if g == content.Pieces {
		return name + "-pieces"
	}
	return name
}

// Grain is how finely this node cuts the blobs that it plans with others from now on: into leaves while it is connected
// to an agent that is known to speak of nothing else. So while agents are updated they have one plan of a blob, all of
// them, and the last one to be updated ends that.
func (s *Swarm) Grain() content.Grain {
	leaves := s.planProtocol("coordinate", content.Leaves)
	if s.opts.LeavesOnly {
		return content.Leaves
	}
	for _, p := range s.host.Network().Peers() {
		spoken, err := s.host.Peerstore().GetProtocols(p)
		if err == nil && slices.Contains(spoken, leaves) &&
			!slices.Contains(spoken, s.planProtocol("coordinate", content.Pieces)) {
			return content.Leaves
		}
	}
	return content.Pieces
}

// mayPlan reports whether a peer takes part in plans of a grain. One that has not said yet what it speaks counts as an
// agent, or nodes that start together would plan apart.
func (s *Swarm) mayPlan(p peer.ID, g content.Grain) bool {
	spoken, err := s.host.Peerstore().GetProtocols(p)
	return err == nil && (len(spoken) == 0 || slices.Contains(spoken, s.planProtocol("coordinate", g)))
}

// ID is this node's peer ID.
func (s *Swarm) ID() peer.ID { return s.host.ID() }

// Addrs are the addresses at which others reach this node.
func (s *Swarm) Addrs() []ma.Multiaddr { return s.host.Addrs() }

// Peer is a connected peer.
type Peer struct {
	ID    peer.ID
	Addrs []string
	// RoundTrip is the smoothed time of a ping, 0 where none was measured.
	RoundTrip time.Duration
}

// Peers lists the connected peers.
func (s *Swarm) Peers() []Peer {
	var out []Peer
	for _, p := range s.host.Network().Peers() {
		info := Peer{ID: p, RoundTrip: s.host.Peerstore().LatencyEWMA(p)}
		for _, c := range s.host.Network().ConnsToPeer(p) {
			info.Addrs = append(info.Addrs, c.RemoteMultiaddr().String())
		}
		out = append(out, info)
	}
	return out
}

// Started is closed once the node has looked for others: it has met one, or has tried for a while. A node alone is
// started too.
func (s *Swarm) Started() <-chan struct{} { return s.started }

// SetAdmitted replaces the set of peers that may join. Connections to others are closed.
func (s *Swarm) SetAdmitted(ids []peer.ID) {
	s.admission.admit(ids)
	for _, p := range s.host.Network().Peers() {
		if !s.admission.admits(p) {
			s.log.Info("peer is not admitted", "peer", p)
			_ = s.host.Network().ClosePeer(p)
		}
	}
	s.connectSoon()
}

// SetBootstrap replaces the peers to start from.
func (s *Swarm) SetBootstrap(peers []peer.AddrInfo) {
	s.mu.Lock()
	s.bootstrap = peers
	s.mu.Unlock()
	s.connectSoon()
}

// SetBandwidth limits the bytes per second of blocks to and from peers; 0 means no limit.
func (s *Swarm) SetBandwidth(up, down int64) { s.bitswap.setBandwidth(up, down) }

// Ban refuses a peer for an hour. The reason labels a metric.
func (s *Swarm) Ban(p peer.ID, reason string) { s.banFor(p, reason, time.Hour) }

func (s *Swarm) banFor(p peer.ID, reason string, d time.Duration) {
	if p == s.host.ID() || !s.admission.ban(p, time.Now().Add(d)) {
		return
	}
	s.m.bans.WithLabelValues(reason).Inc()
	s.log.Error("peer banned", "peer", p, "reason", reason, "for", d)
	s.wg.Go(func() { _ = s.host.Network().ClosePeer(p) }) // which waits for what its streams do
}

// Claim signs this node's word that a chunk has a sum.
func (s *Swarm) Claim(p Plan, index int, sum schedule.Sum) (schedule.Claim, error) {
	return signClaim(s.opts.Identity, s.host.ID(), p, index, sum)
}

// Sign signs a statement in this node's name. It must begin with a label of its kind, so that it is none of another.
func (s *Swarm) Sign(statement []byte) (by, signature []byte, err error) {
	if signature, err = s.opts.Identity.Sign(statement); err != nil {
		return nil, nil, fmt.Errorf("sign a statement: %w", err)
	}
	return []byte(s.host.ID()), signature, nil
}

// Signed reports whether this node, or one that is admitted now, has signed a statement.
func (s *Swarm) Signed(by, statement, signature []byte) bool {
	p, err := peerID(by)
	if err != nil || p != s.host.ID() && !s.admission.admits(p) || len(signature) > maxSignature {
		return false
	}
	key, err := p.ExtractPublicKey()
	if err != nil {
		return false
	}
	ok, err := key.Verify(statement, signature)
	return ok && err == nil
}

// Want asks p for block c, of size bytes, on behalf of sink. Higher priorities are answered first. A peer that is
// thought to hold the block already is asked to say so if it does not; that it is Lost then.
func (s *Swarm) Want(p peer.ID, c cid.Cid, size int64, priority int32, held bool, sink Sink) {
	s.bitswap.ask(p, c, size, priority, held, sink)
}

// Forget takes back all wants of a sink for c.
func (s *Swarm) Forget(c cid.Cid, sink Sink) { s.bitswap.forget(c, sink) }

// Have tells waiting peers that a block is in the blockstore now.
func (s *Swarm) Have(b blocks.Block) { s.bitswap.have(b) }

// Gone tells that a block is not in the blockstore any more, which it was a moment ago. A peer that asks for it now is
// told so.
func (s *Swarm) Gone(c cid.Cid) { s.bitswap.drop(c) }

// Awaits sets what reports whether a block may be about to come to this node. Who waits for one that is not, and is not
// here, is told so.
func (s *Swarm) Awaits(may func(c cid.Cid) bool) { s.bitswap.awaits.Store(&may) }

// HeardFrom is the number of bytes of any kind that have come from p, parts of blocks among them. It is up to a second
// old.
func (s *Swarm) HeardFrom(p peer.ID) int64 { return s.traffic.GetBandwidthForPeer(p).TotalIn }

// exchanged is the number of bytes that have gone to p and come from it, as late as HeardFrom.
func (s *Swarm) exchanged(p peer.ID) int64 {
	t := s.traffic.GetBandwidthForPeer(p)
	return t.TotalIn + t.TotalOut
}

// Ping asks p for a sign of life, which HeardFrom then shows. It returns at once.
func (s *Swarm) Ping(p peer.ID) {
	s.wg.Go(func() {
		ctx, cancel := context.WithTimeout(s.ctx, pingTimeout)
		defer cancel()
		<-ping.Ping(ctx, s.host, p)
	})
}

func (s *Swarm) bootstrapPeers() []peer.AddrInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bootstrap
}

// watchPeers follows which peers come and go.
func (s *Swarm) watchPeers() error {
	sub, err := s.host.EventBus().Subscribe(new(event.EvtPeerConnectednessChanged))
	if err != nil {
		return err
	}
	s.wg.Go(func() {
		defer func() { _ = sub.Close() }()
		for {
			select {
			case e := <-sub.Out():
				change, ok := e.(event.EvtPeerConnectednessChanged)
				if !ok {
					return
				}
				s.changed(change)
			case <-s.ctx.Done():
				return
			}
		}
	})
	return nil
}

func (s *Swarm) changed(e event.EvtPeerConnectednessChanged) {
	select {
	case s.company <- struct{}{}:
	default:
	}
	if e.Connectedness == network.Connected {
		if !s.admission.admits(e.Peer) { // its admission was withdrawn while the connection was being made
			_ = s.host.Network().ClosePeer(e.Peer)
			return
		}
		s.mu.Lock()
		delete(s.shunnedUntil, e.Peer)
		s.mu.Unlock()
		select {
		case s.newPeer <- struct{}{}:
		default:
		}
		return
	}
	s.mu.Lock()
	if len(s.host.Network().Peers()) == 0 {
		s.aloneSince = time.Now()
	}
	rooms := make([]*room, 0, len(s.rooms))
	for _, r := range s.rooms {
		rooms = append(rooms, r)
	}
	s.mu.Unlock()
	for _, r := range rooms {
		r.gone(e.Peer)
	}
}

const (
	// firstRound bounds the time in which a node that starts looks for others before it counts as started.
	firstRound  = 5 * time.Second
	pingTimeout = 5 * time.Second
	dialTimeout = 3 * time.Second
)

// findPeers meets the first peers soon after the start, and leaves the rest to boxo's bootstrap service and the DHT.
func (s *Swarm) findPeers(ctx context.Context) {
	s.firstPeers(ctx)
	close(s.started)
	if ctx.Err() != nil {
		return
	}
	s.wg.Go(func() { s.keepCompany(ctx) })
	cfg := bootstrap.DefaultBootstrapConfig
	cfg.MinPeerThreshold = 2
	cfg.Period = 10 * time.Second
	cfg.ConnectionTimeout = cfg.Period / 4
	cfg.BackupBootstrapInterval = time.Minute
	cfg.BootstrapPeers = s.bootstrapPeers
	load, save := s.opts.LoadPeers, s.opts.SavePeers
	if load == nil || save == nil { // without these two boxo's service stops after its first round, and never ends
		load = func(context.Context) []peer.AddrInfo { return nil }
		save = func(context.Context, []peer.AddrInfo) {}
	}
	cfg.SetBackupPeers(load, save)
	service, err := bootstrap.Bootstrap(s.host.ID(), s.host, s.dht, cfg)
	if err != nil {
		s.log.Error("bootstrap service not started", "error", err)
		return
	}
	defer func() { _ = service.Close() }()
	// Nodes that start together learn of each other only by asking again: soon at first, then ever less often.
	for wait := time.Second; content.Sleep(ctx, wait); wait = min(2*wait, 5*time.Minute) {
		s.refresh(ctx)
	}
}

// firstPeers tries the bootstrap and remembered peers until one answers, for a few seconds.
func (s *Swarm) firstPeers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, firstRound)
	defer cancel()
	for {
		peers := s.bootstrapPeers()
		if s.opts.LoadPeers != nil {
			peers = append(append([]peer.AddrInfo(nil), peers...), s.opts.LoadPeers(ctx)...)
		}
		if len(peers) == 0 {
			return
		}
		if s.connect(ctx, peers) > 0 {
			s.refresh(ctx)
			return
		}
		if !content.Sleep(ctx, 300*time.Millisecond) {
			return
		}
	}
}

// connect dials peers at the same time, and returns how many of them are connected.
func (s *Swarm) connect(ctx context.Context, peers []peer.AddrInfo) int {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	n := 0
	for _, p := range peers {
		if p.ID == s.host.ID() || !s.admission.admits(p.ID) {
			continue
		}
		if n, ok := s.host.Network().(*libp2pswarm.Swarm); ok {
			n.Backoff().Clear(p.ID) // it may just have been starting when it was dialled last
		}
		wg.Go(func() {
			if err := s.host.Connect(ctx, p); err != nil {
				s.log.Debug("bootstrap peer not reached", "peer", p.ID, "error", err)
				return
			}
			mu.Lock()
			n++
			mu.Unlock()
		})
	}
	wg.Wait()
	return n
}

// connectSoon meets bootstrap peers in the background after a change of who they are.
func (s *Swarm) connectSoon() {
	s.wg.Go(func() {
		if s.connect(s.ctx, s.bootstrapPeers()) > 0 {
			s.refresh(s.ctx)
		}
	})
}

// refresh looks for the peers around this node's own place in the DHT.
func (s *Swarm) refresh(ctx context.Context) {
	s.refreshing.RLock()
	if ctx.Err() != nil {
		s.refreshing.RUnlock()
		return
	}
	done := s.dht.RefreshRoutingTable()
	s.refreshing.RUnlock()
	select {
	case err := <-done:
		if err != nil {
			s.log.Debug("routing table not refreshed", "error", err)
		}
	case <-time.After(firstRound):
	case <-ctx.Done():
	}
}
