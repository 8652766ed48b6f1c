package swarm

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/ipfs/boxo/bitswap/message"
	pb "github.com/ipfs/boxo/bitswap/message/pb"
	"github.com/ipfs/boxo/bitswap/network"
	"github.com/ipfs/boxo/bitswap/server"
	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/shoal-cache/shoal/node/internal/bitswapnet"
	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// sendTimeout bounds the sending of a wantlist; the peer counts as lost after it.
	sendTimeout = 5 * time.Second
	// senderIdle is for how long a stream for wants stays open without use.
	senderIdle = 30 * time.Second
	// outstandingPerPeer is how many bytes of blocks the server has under way to one peer at a time: one block, so that
	// what is more urgent overtakes the rest, and orders do not wait behind it.
	outstandingPerPeer = 1 << 20
	// senders is how many peers the server sends a block to at the same time. Each holds a block and its encoding, so
	// with what the network buffers this bounds the memory of sending to about 64 MiB.
	senders = 16
)

// Sink takes what comes of wants. Its methods are called on the goroutine that reads from the peer: they may write the
// block to a file, which slows the peer down as it should, but must not wait for other peers.
type Sink interface {
	// Block hands over a block whose bytes hash to c. The bytes must not be kept.
	Block(from peer.ID, c cid.Cid, data []byte)
	// Lost: the peer cannot be asked, its connection is gone, it does not hold what it was thought to, or it sends
	// other bytes.
	Lost(from peer.ID, c cid.Cid)
}

// exchange sends wants to the peers that it is told to, and answers those of others through boxo's Bitswap server. It
// takes the place of boxo's client, whose sessions ask everyone who has a block: that way one seed sends every copy.
type exchange struct {
	ctx    context.Context
	net    network.BitSwapNetwork
	server *server.Server
	log    *slog.Logger
	m      *metrics
	up     *rate.Limiter
	down   *rate.Limiter

	mu      sync.Mutex
	wants   map[cid.Cid]*want
	senders map[peer.ID]*sender
	recent  *lru.Cache[cid.Cid, arrival] // blocks that have just come; see again
	// what was asked of whom, the newest: it may come though no one waits for it any more
	past  *lru.Cache[asked, struct{}]
	owed  *owed
	guard bitswapnet.Guard
	wg    sync.WaitGroup
}

// asked is a block that a peer was asked for.
type asked struct {
	peer peer.ID
	cid  cid.Cid
}

// want is a block that sinks wait for.
type want struct {
	sinks []Sink
	asked []peer.ID
}

// sender sends wants and cancels to one peer.
type sender struct {
	box *mailbox[[]change]
}

// change is what a peer is told of the wantlist that this node has with it.
type change struct {
	cid      cid.Cid
	priority int32
	held     bool // the peer is thought to hold it, and is to say so if it does not
	cancel   bool
}

func newExchange(
	ctx context.Context, net network.BitSwapNetwork, bs blockstore.Blockstore, guard bitswapnet.Guard, m *metrics,
	log *slog.Logger,
) *exchange {
	recent, err := lru.New[cid.Cid, arrival](maxRecent)
	if err != nil {
		panic(err) // only a size that is not positive fails
	}
	past, err := lru.New[asked, struct{}](maxPast)
	if err != nil {
		panic(err) // as above
	}
	e := &exchange{
		ctx: ctx, net: net, log: log, m: m, wants: map[cid.Cid]*want{}, senders: map[peer.ID]*sender{},
		recent: recent, past: past, owed: newOwed(), guard: guard,
		up: rate.NewLimiter(rate.Inf, 4*content.ChunkSize), down: rate.NewLimiter(rate.Inf, 4*content.ChunkSize),
	}
	e.server = server.New(ctx, net, newServedBlocks(bs, e.up),
		server.MaxOutstandingBytesPerPeer(outstandingPerPeer),
		server.TaskWorkerCount(senders),
		server.WithTracer(tracer{m, e.owed}),
		// A peer asks whole blobs of us by wants, and never whether we have more than one block at a time.
		server.WithWantHaveReplaceSize(0),
	)
	net.Start(e.server, e)
	return e
}

func (e *exchange) close() {
	e.net.Stop()
	e.server.Close()
	e.wg.Wait()
}

// setBandwidth limits the bytes of blocks per second to and from peers; 0 means no limit.
func (e *exchange) setBandwidth(up, down int64) {
	for l, v := range map[*rate.Limiter]int64{e.up: up, e.down: down} {
		if v <= 0 {
			l.SetLimit(rate.Inf)
		} else {
			l.SetLimit(rate.Limit(v))
		}
	}
}

// ask wants c of peer p for s. A block that arrives from any peer goes to every sink that wants it.
func (e *exchange) ask(p peer.ID, c cid.Cid, priority int32, held bool, s Sink) {
	e.mu.Lock()
	w := e.wants[c]
	if w == nil {
		w = &want{}
		e.wants[c] = w
	}
	if !slices.Contains(w.sinks, s) {
		w.sinks = append(w.sinks, s)
	}
	if !slices.Contains(w.asked, p) {
		w.asked = append(w.asked, p)
	}
	e.past.Add(asked{p, c}, struct{}{})
	e.queue(p, change{cid: c, priority: priority, held: held})
	e.mu.Unlock()
}

// forget: s wants nothing of c any more, of anyone.
func (e *exchange) forget(c cid.Cid, s Sink) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.wants[c]
	if w == nil {
		return
	}
	w.sinks = without(w.sinks, s)
	if len(w.sinks) > 0 {
		return
	}
	delete(e.wants, c)
	for _, p := range w.asked {
		e.queue(p, change{cid: c, cancel: true})
	}
}

// have tells the peers that wait for a block that it is in the blockstore now.
func (e *exchange) have(b blocks.Block) {
	e.recent.Add(b.Cid(), arrival{size: len(b.RawData()), at: time.Now()})
	_ = e.server.NotifyNewBlocks(e.ctx, b) // it only fails to do so when the server is closed
}

// queue hands a change to p's sender. The caller holds e.mu.
func (e *exchange) queue(p peer.ID, ch change) {
	s := e.senders[p]
	if s == nil {
		s = &sender{box: newMailbox(func(have *[]change, later []change) { *have = append(*have, later...) })}
		e.senders[p] = s
		e.wg.Go(func() { e.send(p, s) })
	}
	s.box.put([]change{ch})
}

// send is the goroutine of a sender. It ends when the peer cannot be reached or nothing was sent for a while.
func (e *exchange) send(p peer.ID, s *sender) {
	var out network.MessageSender
	defer func() {
		if out != nil {
			_ = out.Reset()
		}
	}()
	for {
		idle, cancel := context.WithTimeout(e.ctx, senderIdle)
		changes, err := s.box.take(idle)
		cancel()
		if err != nil {
			if e.ctx.Err() == nil && !e.retire(p, s) {
				continue
			}
			return
		}
		m := message.New(false)
		bytes := 0
		for _, ch := range changes {
			if ch.cancel {
				m.Cancel(ch.cid)
				continue
			}
			m.AddEntry(ch.cid, ch.priority, pb.Message_Wantlist_Block, ch.held)
			bytes += content.ChunkSize
		}
		if m.Empty() {
			continue
		}
		e.pace(bytes)
		if out == nil {
			opts := &network.MessageSenderOpts{MaxRetries: 1, SendTimeout: sendTimeout,
				SendErrorBackoff: 100 * time.Millisecond}
			dial, cancel := context.WithTimeout(e.ctx, sendTimeout)
			out, err = e.net.NewMessageSender(dial, p, opts)
			cancel()
		}
		if err == nil {
			err = out.SendMsg(e.ctx, m)
		}
		if err != nil {
			e.log.Debug("wants not sent", "peer", p, "error", err)
			e.lose(p, s)
			return
		}
	}
}

func (e *exchange) pace(bytes int) {
	for e.down.Limit() != rate.Inf && bytes > 0 {
		n := min(bytes, e.down.Burst())
		if e.down.WaitN(e.ctx, n) != nil {
			return
		}
		bytes -= n
	}
}

// retire ends an idle sender, unless it was given something meanwhile.
func (e *exchange) retire(p peer.ID, s *sender) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.box.mu.Lock()
	defer s.box.mu.Unlock()
	if s.box.full {
		return false
	}
	if e.senders[p] == s {
		delete(e.senders, p)
	}
	return true
}

// loss is a block that will not come from a peer, and who waited for it.
type loss struct {
	cid   cid.Cid
	sinks []Sink
}

// lose tells the sinks that p will not answer. A nil sender means whichever there is.
func (e *exchange) lose(p peer.ID, s *sender) {
	e.mu.Lock()
	if s == nil || e.senders[p] == s {
		delete(e.senders, p)
	}
	losses := e.giveUp(p)
	e.mu.Unlock()
	tell(p, losses)
}

// giveUp takes back all that p was asked for. The caller holds e.mu.
func (e *exchange) giveUp(p peer.ID) []loss {
	var losses []loss
	for c, w := range e.wants {
		if !slices.Contains(w.asked, p) {
			continue
		}
		w.asked = without(w.asked, p)
		losses = append(losses, loss{c, append([]Sink(nil), w.sinks...)})
		if len(w.asked) == 0 {
			delete(e.wants, c)
		}
	}
	return losses
}

func tell(p peer.ID, losses []loss) {
	for _, l := range losses {
		for _, sink := range l.sinks {
			sink.Lost(p, l.cid)
		}
	}
}

// unwanted takes a block that no one waits for. One that p was asked for comes too late, as happens. Any other is p's
// answer to something else that it was asked for: what it has of that is damaged, or it lies. Which block was meant the
// answer does not say, so all that p was asked for is asked of others.
func (e *exchange) unwanted(p peer.ID, c cid.Cid, size int) {
	e.m.unwanted.Add(float64(size))
	if e.past.Contains(asked{p, c}) {
		return
	}
	e.mu.Lock()
	losses := e.giveUp(p)
	for _, l := range losses {
		e.queue(p, change{cid: l.cid, cancel: true})
	}
	e.mu.Unlock()
	e.guard.Blame(p, bitswapnet.RuleWrong, fmt.Errorf("it sent block %s of %d bytes, for which it was not asked", c,
		size))
	tell(p, losses)
}

// ReceiveMessage hands the blocks of a message to those who want them. boxo has made each block's CID from its bytes,
// so a block that was asked for by CID is what it should be.
func (e *exchange) ReceiveMessage(_ context.Context, from peer.ID, m message.BitSwapMessage) {
	e.again(m)
	for _, c := range m.DontHaves() {
		e.lacks(from, c)
	}
	for _, b := range m.Blocks() {
		c := b.Cid()
		e.m.received.Add(int64(len(b.RawData())))
		e.mu.Lock()
		w := e.wants[c]
		if w != nil {
			delete(e.wants, c)
			for _, p := range w.asked {
				if p != from {
					e.queue(p, change{cid: c, cancel: true})
				}
			}
		}
		e.mu.Unlock()
		if w == nil {
			e.unwanted(from, c, len(b.RawData()))
			continue
		}
		for _, s := range w.sinks {
			s.Block(from, c, b.RawData())
		}
	}
}

// lacks tells the sinks that a peer, which was thought to hold a block, does not.
func (e *exchange) lacks(p peer.ID, c cid.Cid) {
	e.mu.Lock()
	w := e.wants[c]
	if w == nil || !slices.Contains(w.asked, p) {
		e.mu.Unlock()
		return
	}
	w.asked = without(w.asked, p)
	if len(w.asked) == 0 {
		delete(e.wants, c)
	}
	e.queue(p, change{cid: c, cancel: true})
	e.mu.Unlock()
	for _, s := range w.sinks {
		s.Lost(p, c)
	}
}

// again tells the server once more of blocks that a message wants and that have just come. boxo's engine looks into the
// blockstore before it notes the want, so a block that comes in between is neither found nor waited for
// (decision.Engine.MessageReceived, v0.43.0). The server is a receiver before this one, so it has noted the wants by
// now.
func (e *exchange) again(m message.BitSwapMessage) {
	for _, ch := range m.Wantlist() {
		came, ok := e.recent.Get(ch.Cid)
		if !ok || ch.Cancel || time.Since(came.at) > recentFor {
			continue
		}
		// The server only takes the size from it, and reads the bytes from the blockstore.
		if b, err := blocks.NewBlockWithCid(filler[:came.size], ch.Cid); err == nil {
			_ = e.server.NotifyNewBlocks(e.ctx, b)
		}
	}
}

const (
	maxPast   = 1 << 16 // what is asked in a minute over a link of 10 Gbit/s
	maxRecent = 4096
	recentFor = 2 * time.Second
)

// arrival is the size in bytes of a block that came, and when.
type arrival struct {
	size int
	at   time.Time
}

var filler [content.ChunkSize]byte

// ReceiveError is told of streams that broke; PeerDisconnected tells what follows from that.
func (e *exchange) ReceiveError(err error) { e.log.Debug("bitswap stream", "error", err) }

// PeerConnected needs nothing done.
func (e *exchange) PeerConnected(peer.ID) {}

// PeerDisconnected gives up what the peer was asked for, and what it asked for.
func (e *exchange) PeerDisconnected(p peer.ID) {
	e.owed.forget(p)
	e.lose(p, nil)
}

// tracer is told what the server receives and sends.
type tracer struct {
	m    *metrics
	owed *owed
}

func (t tracer) MessageReceived(p peer.ID, m message.BitSwapMessage) {
	for _, ch := range m.Wantlist() {
		if ch.Cancel || ch.WantType != pb.Message_Wantlist_Block {
			t.owed.settle(p, ch.Cid)
		} else {
			t.owed.add(p, ch.Cid)
		}
	}
}

func (t tracer) MessageSent(p peer.ID, m message.BitSwapMessage) {
	for _, b := range m.Blocks() {
		t.m.sent.Add(int64(len(b.RawData())))
		t.owed.settle(p, b.Cid())
	}
	for _, c := range m.DontHaves() {
		t.owed.settle(p, c)
	}
}

func without[T comparable](list []T, v T) []T {
	out := list[:0:0]
	for _, x := range list {
		if x != v {
			out = append(out, x)
		}
	}
	return out
}
