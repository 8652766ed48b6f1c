package swarm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	dhtpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"golang.org/x/time/rate"

	"github.com/shoal-cache/shoal/node/internal/bitswapnet"
	"github.com/shoal-cache/shoal/node/internal/lru"
)

// The services by which libp2p's resource manager counts the streams that peers open, and the memory of the frames that
// are being read from them.
const (
	serviceCoordinate = "shoal.coordinate"
	serviceMap        = "shoal.map"
	serviceQuery      = "shoal.query"
	serviceErrand     = "shoal.errand"
	serviceDHT        = "shoal.dht"
)

// resourceLimits bound what one peer, and all together, may hold on to. What libp2p counts as memory of a stream is the
// 256 KiB that the other side may send before anyone reads; most of it is never taken.
//
//	what a peer holds           one peer    all
//	streams                     256 in      16,384
//	libp2p's windows            128 MiB     1 GiB (they stop growing at the half)
//	unfinished Bitswap messages  16 MiB     128 MiB
//	unfinished frames            14 MiB     144 MiB
func resourceLimits() rcmgr.ConcreteLimitConfig {
	inbound := func(streams rcmgr.LimitVal, memory rcmgr.LimitVal64) rcmgr.ResourceLimits {
		return rcmgr.ResourceLimits{StreamsInbound: streams, Memory: memory}
	}
	return rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: 8192, ConnsInbound: 8192, ConnsOutbound: 8192, FD: 8192,
			Streams: 16384, StreamsInbound: 16384, StreamsOutbound: 16384, Memory: 1 << 30,
		},
		Transient: rcmgr.ResourceLimits{
			Conns: 1024, ConnsInbound: 1024, ConnsOutbound: 1024, FD: 1024,
			Streams: 4096, StreamsInbound: 4096, StreamsOutbound: 4096, Memory: 256 << 20,
		},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: 16, ConnsInbound: 8, ConnsOutbound: 8,
			Streams: 512, StreamsInbound: 256, StreamsOutbound: 512, Memory: 128 << 20,
		},
		Service: map[string]rcmgr.ResourceLimits{
			bitswapnet.Service: inbound(4096, 128<<20), serviceCoordinate: inbound(8192, 64<<20),
			serviceMap: inbound(2048, 32<<20), serviceQuery: inbound(2048, 16<<20),
			serviceErrand: inbound(4096, 32<<20), serviceDHT: inbound(4096, 64<<20),
		},
		ServicePeer: map[string]rcmgr.ResourceLimits{
			bitswapnet.Service: inbound(48, 16<<20), serviceCoordinate: inbound(128, 8<<20),
			serviceMap: inbound(128, 1<<20), serviceQuery: inbound(64, 1<<20), serviceErrand: inbound(128, 4<<20),
			serviceDHT: inbound(16, 1<<20),
		},
	}.Build(rcmgr.InfiniteLimits)
}

const (
	// workRate is how many microseconds of work one peer may cause in a second, workBurst how many at one time: a fifth
	// of a core, and what a participant says when it joins a new coordinator.
	workRate  = 200_000
	workBurst = 2_000_000
	// workPatience is for how long a peer is kept waiting that asks for more, before that counts against it.
	workPatience = 5 * time.Second
	// readRate and readBurst bound the bytes that this node reads and hashes because one peer asks for the chunks of
	// blobs, where it does not know their sums: a good image at once.
	readRate, readBurst = 64 << 20, 1 << 30
	// recordRate and recordBurst bound the provider records that one peer leaves here: a node's blobs at its start, and
	// again every reprovideEvery.
	recordRate, recordBurst = 16, 32768
	// roomRate and roomBurst bound the blobs that one peer has this node coordinate anew.
	roomRate, roomBurst = 32, 256
	// breachRate and breachBurst are how often a peer may break a rule before it is banned, and banFor is for how long
	// then.
	breachRate, breachBurst = 2, 256
	banFor                  = 10 * time.Minute
	// maxStandings bounds the peers whose standing is remembered.
	maxStandings = 4096
	// maxNamed bounds the peers that the metrics name. In an open swarm a peer may take a new name every time.
	maxNamed = 64
)

// weights are how much it counts that a peer breaks a rule. To open a stream too many may happen to any node in a
// burst.
var weights = map[string]int{
	bitswapnet.RuleStreams: 1, bitswapnet.RuleMemory: 8, bitswapnet.RuleStalled: 16, bitswapnet.RuleMalformed: 16,
	bitswapnet.RuleWork: 64, bitswapnet.RuleWrong: 64,
}

var errTooMuch = errors.New("the peer asks for too much")

// guard keeps what one peer may cost within bounds. One that goes beyond them is made to wait or turned away, named in
// log and metric, and banned for a while if it does not stop.
type guard struct {
	own peer.ID
	log *slog.Logger
	m   *metrics
	ban func(p peer.ID, rule string, d time.Duration)

	mu        sync.Mutex
	standings *lru.Cache[peer.ID, *standing]
	named     map[peer.ID]bool
}

// standing is what a peer has left of its budgets.
type standing struct {
	work, reads, records, rooms, breaches *rate.Limiter
	logged                                rate.Sometimes
}

func newGuard(own peer.ID, log *slog.Logger, m *metrics, ban func(peer.ID, string, time.Duration)) *guard {
	return &guard{
		own: own, log: log, m: m, ban: ban, standings: lru.New[peer.ID, *standing](maxStandings),
		named: map[peer.ID]bool{},
	}
}

func (g *guard) standing(p peer.ID) *standing {
	g.mu.Lock()
	defer g.mu.Unlock()
	s, ok := g.standings.Get(p)
	if !ok {
		s = &standing{
			work: rate.NewLimiter(workRate, workBurst), reads: rate.NewLimiter(readRate, readBurst),
			records: rate.NewLimiter(recordRate, recordBurst),
			rooms:   rate.NewLimiter(roomRate, roomBurst), breaches: rate.NewLimiter(breachRate, breachBurst),
			logged: rate.Sometimes{First: 1, Interval: 10 * time.Second},
		}
		g.standings.Add(p, s)
	}
	return s
}

// Charge implements bitswapnet.Guard.
func (g *guard) Charge(ctx context.Context, p peer.ID, work int) error {
	if p == g.own {
		return nil
	}
	return g.charge(ctx, p, g.standing(p).work, work)
}

// chargeRead waits until this node may read so many bytes more for p, which is no breach: p cannot know what this node
// has to read for its answer.
func (g *guard) chargeRead(ctx context.Context, p peer.ID, bytes int64) error {
	if p == g.own || bytes == 0 {
		return nil
	}
	if err := g.standing(p).reads.WaitN(ctx, int(min(bytes, readBurst))); err != nil {
		return fmt.Errorf("read %d bytes for %s: %w", bytes, p, err)
	}
	return nil
}

// record charges p for a provider record.
func (g *guard) record(ctx context.Context, p peer.ID) error {
	return g.charge(ctx, p, g.standing(p).records, 1)
}

// mayOpenRoom reports whether p may have this node coordinate one more blob.
func (g *guard) mayOpenRoom(p peer.ID) bool { return p == g.own || g.standing(p).rooms.Allow() }

func (g *guard) charge(ctx context.Context, p peer.ID, budget *rate.Limiter, n int) error {
	patient, cancel := context.WithTimeout(ctx, workPatience)
	defer cancel()
	if err := budget.WaitN(patient, min(n, budget.Burst())); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = fmt.Errorf("%w: %w", errTooMuch, err)
		g.Blame(p, bitswapnet.RuleWork, err)
		return err
	}
	return nil
}

// Blame implements bitswapnet.Guard.
func (g *guard) Blame(p peer.ID, rule string, err error) {
	if p == g.own {
		return
	}
	s := g.standing(p)
	g.m.breaches.WithLabelValues(rule, g.name(p)).Inc()
	s.logged.Do(func() { g.log.Warn("peer breaks a rule", "peer", p, "rule", rule, "error", err) })
	if !s.breaches.AllowN(time.Now(), weights[rule]) {
		g.ban(p, rule, banFor)
	}
}

// name is p as a metric names it.
func (g *guard) name(p peer.ID) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.named[p] {
		if len(g.named) >= maxNamed {
			return "other"
		}
		g.named[p] = true
	}
	return p.String()
}

// admit counts a stream that a peer has opened with a service. It turns away what is too much.
func (g *guard) admit(stream network.Stream, service string) bool {
	if err := stream.Scope().SetService(service); err != nil {
		_ = stream.Reset()
		g.Blame(stream.Conn().RemotePeer(), bitswapnet.RuleStreams, err)
		return false
	}
	return true
}

// breach blames the peer of a stream that ended with err, if it broke a rule.
func (g *guard) breach(p peer.ID, err error) {
	switch {
	case errors.Is(err, errFrame):
		g.Blame(p, bitswapnet.RuleMalformed, err)
	case errors.Is(err, errStalled):
		g.Blame(p, bitswapnet.RuleStalled, err)
	case errors.Is(err, network.ErrResourceLimitExceeded):
		g.Blame(p, bitswapnet.RuleMemory, err)
	}
}

// answered blames the peer that has answered on a stream of this node's, if it broke a rule. That this node has no room
// for an answer is no fault of the peer, and a long one waits its turn among what else the peer sends.
func (g *guard) answered(in *inbound, err error) {
	if errors.Is(err, network.ErrResourceLimitExceeded) || errors.Is(err, errStalled) && in.length > maxShort {
		return
	}
	g.breach(in.stream.Conn().RemotePeer(), err)
}

// dhtHost is the host as the DHT sees it: what peers open for the DHT is counted, and a message of theirs that says to
// be longer than a question can be is not waited for. The DHT takes memory for a message's whole length before it
// comes.
type dhtHost struct {
	host.Host
	guard *guard
}

func (h dhtHost) SetStreamHandler(p protocol.ID, handle network.StreamHandler) {
	h.Host.SetStreamHandler(p, func(stream network.Stream) {
		if h.guard.admit(stream, serviceDHT) {
			handle(&questions{Stream: stream, guard: h.guard})
		}
	})
}

// maxQuestion is more bytes than a message to the DHT has: a key, and the addresses of one peer.
const maxQuestion = 64 << 10

// questions is a stream of messages, each after its length as a uvarint, of which none may be longer than maxQuestion.
type questions struct {
	network.Stream
	guard  *guard
	length uint64 // of the next message, as far as it has come
	shift  uint
	left   uint64 // bytes of the message that have not come
}

func (q *questions) Read(p []byte) (int, error) {
	n, err := q.Stream.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if q.left > 0 {
			part := min(q.left, uint64(len(rest)))
			q.left -= part
			rest = rest[part:]
			continue
		}
		q.length |= uint64(rest[0]&0x7f) << q.shift
		q.shift += 7
		if q.length > maxQuestion || q.shift > 63 {
			err := fmt.Errorf("%w: a question to the DHT of more than %d bytes", errFrame, maxQuestion)
			q.guard.breach(q.Conn().RemotePeer(), err)
			return 0, err
		}
		if rest[0] < 0x80 {
			q.left, q.length, q.shift = q.length, 0, 0
		}
		rest = rest[1:]
	}
	return n, err
}

// dhtWork is what a question to the DHT costs, in microseconds.
const dhtWork = 100

// question charges a peer for what it asks of the DHT, and for a record that it leaves.
func (g *guard) question(ctx context.Context, stream network.Stream, q *dhtpb.Message) {
	p := stream.Conn().RemotePeer()
	err := g.Charge(ctx, p, dhtWork)
	if err == nil && q.GetType() == dhtpb.Message_ADD_PROVIDER {
		err = g.record(ctx, p)
	}
	if err != nil {
		_ = stream.Reset()
	}
}
