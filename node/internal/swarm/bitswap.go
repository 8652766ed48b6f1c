package swarm

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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
	"github.com/shoal-cache/shoal/node/internal/lru"
)

const (
	// sendTimeout bounds the sending of a wantlist; the peer counts as lost after it.
	sendTimeout = 5 * time.Second
	// senderIdle is for how long a stream for wants stays open without use.
	senderIdle = 30 * time.Second
	// outstandingPerPeer is how many bytes of blocks the server has under way to one peer at a time: one block, be it a
	// piece or a leaf, so that what is more urgent overtakes the rest, and orders do not wait behind it.
	outstandingPerPeer = 256 << 10
	// wantsPerPeer is how many wants of one peer the server keeps. Beyond it the server drops wants without a word, and
	// the urgent ones first. A peer has up to 32 under way of each blob that it fetches.
	wantsPerPeer = 4096
	// senders is how many peers the server sends a block to at the same time. Each holds a block and its encoding, so
	// with what the network buffers this bounds the memory of sending to about 64 MiB.
	senders = 16
	// refuseAfter is after how long a peer that waits for a block is told that it is not here, where it is not about to
	// come either, and how often that is looked at. A relay may be asked before its own orders come.
	refuseAfter = 2 * time.Second
	// lookedAtOnce bounds how many waiting peers' wants are looked at each time; the others have their turn later.
	lookedAtOnce = 4096
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

// bitswap sends wants to the peers that it is told to, and answers those of others through boxo's Bitswap server. It
// takes the place of boxo's client, whose sessions ask everyone who has a block: that way one seed sends every copy.
type bitswap struct {
	ctx    context.Context
	net    network.BitSwapNetwork
	blocks blockstore.Blockstore
	server *server.Server
	log    *slog.Logger
	m      *metrics
	up     *rate.Limiter
	down   *rate.Limiter

	mu      sync.Mutex
	wants   wants
	sending sync.Mutex                     // after mu
	senders map[peer.ID]*sender            // guarded by sending
	recent  *lru.Cache[cid.Cid, arrival]   // blocks that have just come; see again
	gone    *lru.Cache[cid.Cid, time.Time] // blocks that have just gone; see denyGone
	// what was asked of whom, the newest: it may come though no one waits for it any more
	past *lru.Cache[asked, struct{}]
	// Peers may answer what an earlier process of this node has asked them for. The first message to each takes that
	// back, and at first a few such answers are no lies.
	started time.Time
	greeted *lru.Cache[peer.ID, time.Time]     // when they were sent that
	strays  *lru.Cache[peer.ID, *atomic.Int64] // bytes of such answers
	owed    *owed
	// awaits reports whether a block may be about to come to this node. nil: that is not known.
	awaits atomic.Pointer[func(cid.Cid) bool]
	guard  bitswapnet.Guard
	wg     sync.WaitGroup
}

const (
	// strayFor is for how long after the start a peer may answer what an earlier process has asked, and underWay for
	// how long after that has been taken back: boxo's server forgets the wants, but sends what it had found already,
	// and that may take a while where it sends to many.
	strayFor = 5 * time.Minute
	underWay = 30 * time.Second
	// maxStrays is with how many bytes: what a node asks for at one time if it fetches sixteen blobs. Each block counts
	// as leastStray at least.
	maxStrays  = 64 << 20
	leastStray = 256 << 10
)

// asked is a block that a peer was asked for.
type asked struct {
	peer peer.ID
	cid  cid.Cid
}

// wants are the blocks that are waited for.
type wants map[cid.Cid]*want

// want is a block that sinks wait for.
type want struct {
	sinks []Sink
	asked []peer.ID
	size  int64 // bytes
}

// sender sends wants and cancels to one peer.
type sender struct {
	box *mailbox[[]change]
}

// change is what a peer is told of the wantlist that this node has with it.
type change struct {
	cid      cid.Cid
	size     int64 // bytes
	priority int32
	held     bool // the peer is thought to hold it, and is to say so if it does not
	cancel   bool
	lacks    bool // it is no change of this node's wants, but says that a block which the peer wants is not here
}

func newBitswap(
	ctx context.Context, net network.BitSwapNetwork, bs blockstore.Blockstore, guard bitswapnet.Guard, m *metrics,
	log *slog.Logger,
) *bitswap {
	b := &bitswap{
		ctx: ctx, net: net, blocks: bs, log: log, m: m, wants: wants{}, senders: map[peer.ID]*sender{},
		recent: lru.New[cid.Cid, arrival](maxRecent), gone: lru.New[cid.Cid, time.Time](maxRecent),
		past: lru.New[asked, struct{}](maxPast), owed: newOwed(), guard: guard, started: time.Now(),
		greeted: lru.New[peer.ID, time.Time](maxPast), strays: lru.New[peer.ID, *atomic.Int64](maxStandings),
		up: rate.NewLimiter(rate.Inf, 4*content.ChunkSize), down: rate.NewLimiter(rate.Inf, 4*content.ChunkSize),
	}
	served := newServedBlocks(bs, b.up)
	b.server = server.New(ctx, net, served,
		server.MaxOutstandingBytesPerPeer(outstandingPerPeer),
		server.TaskWorkerCount(senders),
		server.MaxQueuedWantlistEntriesPerPeer(wantsPerPeer),
		server.WithTracer(tracer{m, b.owed, func(c cid.Cid) int64 {
			if n := served.sizeOf(c); n > 0 {
				return n
			}
			return b.wantedSize(c)
		}}),
		// A peer asks whole blobs of us by wants, and never whether we have more than one block at a time.
		server.WithWantHaveReplaceSize(0),
	)
	net.Start(b.server, b)
	b.wg.Go(b.refuse)
	return b
}

func (b *bitswap) close() {
	b.net.Stop()
	b.server.Close()
	b.wg.Wait()
}

// setBandwidth limits the bytes of blocks per second to and from peers; 0 means no limit.
func (b *bitswap) setBandwidth(up, down int64) {
	for l, v := range map[*rate.Limiter]int64{b.up: up, b.down: down} {
		if v <= 0 {
			l.SetLimit(rate.Inf)
		} else {
			l.SetLimit(rate.Limit(v))
		}
	}
}

// ask wants c of peer p for s. A block that arrives from any peer goes to every sink that wants it.
func (b *bitswap) ask(p peer.ID, c cid.Cid, size int64, priority int32, held bool, s Sink) {
	b.mu.Lock()
	w := b.wants[c]
	if w == nil {
		w = &want{size: size}
		b.wants[c] = w
	}
	if !slices.Contains(w.sinks, s) {
		w.sinks = append(w.sinks, s)
	}
	if !slices.Contains(w.asked, p) {
		w.asked = append(w.asked, p)
	}
	b.past.Add(asked{p, c}, struct{}{})
	b.queue(p, change{cid: c, size: size, priority: priority, held: held})
	b.mu.Unlock()
}

// wantedSize is how long a block is that this node waits for itself. One of which nothing is known is taken for a leaf.
func (b *bitswap) wantedSize(c cid.Cid) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w := b.wants[c]; w != nil {
		return w.size
	}
	return content.ChunkSize
}

// forget: s wants nothing of c any more, of anyone.
func (b *bitswap) forget(c cid.Cid, s Sink) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.wants[c]
	if w == nil {
		return
	}
	w.sinks = without(w.sinks, s)
	if len(w.sinks) > 0 {
		return
	}
	delete(b.wants, c)
	for _, p := range w.asked {
		b.queue(p, change{cid: c, cancel: true})
	}
}

// have tells the peers that wait for a block that it is in the blockstore now.
func (b *bitswap) have(block blocks.Block) {
	b.gone.Remove(block.Cid())
	b.recent.Add(block.Cid(), arrival{size: len(block.RawData()), at: time.Now()})
	_ = b.server.NotifyNewBlocks(b.ctx, block) // it only fails to do so when the server is closed
}

// drop notes that a block has gone.
func (b *bitswap) drop(c cid.Cid) {
	b.recent.Remove(c)
	b.gone.Add(c, time.Now())
}

// queue hands a change to p's sender.
func (b *bitswap) queue(p peer.ID, ch change) {
	b.sending.Lock()
	defer b.sending.Unlock()
	s := b.senders[p]
	if s == nil {
		s = &sender{box: newMailbox(func(have *[]change, later []change) { *have = append(*have, later...) })}
		b.senders[p] = s
		b.wg.Go(func() { b.send(p, s) })
	}
	s.box.put([]change{ch})
}

// send is the goroutine of a sender. It ends when the peer cannot be reached or nothing was sent for a while.
func (b *bitswap) send(p peer.ID, s *sender) {
	var out network.MessageSender
	defer func() {
		if out != nil {
			_ = out.Reset()
		}
	}()
	for {
		idle, cancel := context.WithTimeout(b.ctx, senderIdle)
		changes, err := s.box.take(idle)
		cancel()
		if err != nil {
			if b.ctx.Err() == nil && !b.retire(p, s) {
				continue
			}
			return
		}
		m, wanted := wantlist(!b.greeted.Contains(p), changes)
		if m.Empty() {
			continue
		}
		b.pace(wanted)
		if out == nil {
			opts := &network.MessageSenderOpts{MaxRetries: 1, SendTimeout: sendTimeout,
				SendErrorBackoff: 100 * time.Millisecond}
			dial, cancel := context.WithTimeout(b.ctx, sendTimeout)
			out, err = b.net.NewMessageSender(dial, p, opts)
			cancel()
		}
		if err == nil {
			err = out.SendMsg(b.ctx, m)
		}
		if err != nil {
			b.log.Debug("wants not sent", "peer", p, "error", err)
			b.lose(p, s)
			return
		}
		if !b.greeted.Contains(p) {
			b.greeted.Add(p, time.Now())
		}
	}
}

// wantlist is the message that tells of changes, and how many bytes it wants. full: all earlier wants are taken back.
func wantlist(full bool, changes []change) (m message.BitSwapMessage, bytes int64) {
	m = message.New(full)
	for _, ch := range changes {
		switch {
		case ch.lacks:
			m.AddDontHave(ch.cid)
		case ch.cancel:
			m.Cancel(ch.cid)
		default:
			m.Remove(ch.cid) // a cancel in the same message would stand: entries are merged, whatever their order
			m.AddEntry(ch.cid, ch.priority, pb.Message_Wantlist_Block, ch.held)
			bytes += ch.size
		}
	}
	return m, bytes
}

func (b *bitswap) pace(bytes int64) {
	for b.down.Limit() != rate.Inf && bytes > 0 {
		n := min(bytes, int64(b.down.Burst()))
		if b.down.WaitN(b.ctx, int(n)) != nil {
			return
		}
		bytes -= n
	}
}

// refuse tells peers that wait for a block which is not here, and is not about to come, that it is not. boxo's server
// says so only to those that ask it to, and at once. Whoever is told to ask a relay must not ask it to, because the
// relay has yet to get the block itself. Without a word such a peer would wait until it gives this node up.
func (b *bitswap) refuse() {
	for content.Sleep(b.ctx, refuseAfter) {
		awaits := b.awaits.Load()
		if awaits == nil {
			continue
		}
		for _, w := range b.owed.before(time.Now().Add(-refuseAfter), lookedAtOnce) {
			if has, err := b.blocks.Has(b.ctx, w.cid); has || err != nil || (*awaits)(w.cid) {
				continue
			}
			b.deny(w.peer, w.cid)
		}
	}
}

// deny tells a peer that a block which it waits for is not here.
func (b *bitswap) deny(p peer.ID, c cid.Cid) {
	b.owed.settle(p, c)
	b.queue(p, change{cid: c, lacks: true})
}

// retire ends an idle sender, unless it was given something meanwhile.
func (b *bitswap) retire(p peer.ID, s *sender) bool {
	b.sending.Lock()
	defer b.sending.Unlock()
	s.box.mu.Lock()
	defer s.box.mu.Unlock()
	if s.box.full {
		return false
	}
	if b.senders[p] == s {
		delete(b.senders, p)
	}
	return true
}

// loss is a block that will not come from a peer, and who waited for it.
type loss struct {
	cid   cid.Cid
	sinks []Sink
}

// lose tells the sinks that p will not answer. A nil sender means whichever there is.
func (b *bitswap) lose(p peer.ID, s *sender) {
	b.mu.Lock()
	b.sending.Lock()
	if s == nil || b.senders[p] == s {
		delete(b.senders, p)
	}
	b.sending.Unlock()
	losses := b.wants.giveUpAll(p)
	b.mu.Unlock()
	tell(p, losses)
}

// giveUpAll takes back all that p was asked for.
func (all wants) giveUpAll(p peer.ID) (losses []loss) {
	for c := range all {
		losses = append(losses, all.giveUp(p, c)...)
	}
	return losses
}

// giveUp takes one of these back, if p was asked for it.
func (all wants) giveUp(p peer.ID, c cid.Cid) []loss {
	w := all[c]
	if w == nil || !slices.Contains(w.asked, p) {
		return nil
	}
	if w.asked = without(w.asked, p); len(w.asked) == 0 {
		delete(all, c)
	}
	return []loss{{c, slices.Clone(w.sinks)}}
}

func tell(p peer.ID, losses []loss) {
	for _, l := range losses {
		for _, sink := range l.sinks {
			sink.Lost(p, l.cid)
		}
	}
}

// unwanted takes a block that no one waits for. One that p was asked for comes too late, as happens. Any other is p's
// answer to something else that it was asked for: by an earlier process of this node, or what it has of that is
// damaged, or it lies. Which block was meant the answer does not say, so but for the first all that p was asked for is
// asked of others.
func (b *bitswap) unwanted(p peer.ID, c cid.Cid, size int) {
	b.m.unwanted.Add(float64(size))
	if b.past.Contains(asked{p, c}) || b.stray(p, size) {
		return
	}
	b.mu.Lock()
	losses := b.wants.giveUpAll(p)
	for _, l := range losses {
		b.queue(p, change{cid: l.cid, cancel: true})
	}
	b.mu.Unlock()
	b.guard.Blame(p, bitswapnet.RuleWrong, fmt.Errorf("it sent block %s of %d bytes, for which it was not asked", c,
		size))
	tell(p, losses)
}

// stray reports whether a block of size bytes that p was not asked for may be one that an earlier process of this node
// has asked for. After a hard reset p may not know for minutes that the process has ended.
func (b *bitswap) stray(p peer.ID, size int) bool {
	if at, ok := b.greeted.Get(p); time.Since(b.started) > strayFor || ok && time.Since(at) > underWay {
		return false
	}
	counted := int64(max(size, leastStray))
	return lru.GetOrAdd(b.strays, p, new(atomic.Int64)).Add(counted)-counted < maxStrays
}

// ReceiveMessage hands the blocks of a message to those who want them. boxo has made each block's CID from its bytes,
// so a block that was asked for by CID is what it should be.
func (b *bitswap) ReceiveMessage(_ context.Context, from peer.ID, m message.BitSwapMessage) {
	b.again(m)
	b.denyGone(from, m)
	for _, c := range m.DontHaves() {
		b.lacks(from, c)
	}
	for _, block := range m.Blocks() {
		c := block.Cid()
		b.m.received.Add(int64(len(block.RawData())))
		b.mu.Lock()
		w := b.wants[c]
		if w != nil {
			delete(b.wants, c)
			for _, p := range w.asked {
				if p != from {
					b.queue(p, change{cid: c, cancel: true})
				}
			}
		}
		b.mu.Unlock()
		if w == nil {
			b.unwanted(from, c, len(block.RawData()))
			continue
		}
		for _, s := range w.sinks {
			s.Block(from, c, block.RawData())
		}
	}
}

// lacks tells the sinks that a peer, which was thought to hold a block, does not.
func (b *bitswap) lacks(p peer.ID, c cid.Cid) {
	b.mu.Lock()
	losses := b.wants.giveUp(p, c)
	if len(losses) > 0 {
		b.queue(p, change{cid: c, cancel: true})
	}
	b.mu.Unlock()
	tell(p, losses)
}

// again tells the server once more of blocks that a message wants and that have just come. boxo's engine looks into the
// blockstore before it notes the want, so a block that comes in between is neither found nor waited for
// (decision.Engine.MessageReceived, v0.43.0). The server is a receiver before this one, so it has noted the wants by
// now.
func (b *bitswap) again(m message.BitSwapMessage) {
	for _, ch := range m.Wantlist() {
		came, ok := b.recent.Get(ch.Cid)
		if !ok || ch.Cancel || time.Since(came.at) > recentFor {
			continue
		}
		// The server only takes the size from it, and reads the bytes from the blockstore.
		if block, err := blocks.NewBlockWithCid(filler[:came.size], ch.Cid); err == nil {
			_ = b.server.NotifyNewBlocks(b.ctx, block)
		}
	}
}

// denyGone denies a peer at once what it wants and has just gone. A peer that thinks that this node has yet to get the
// blocks does not ask to be told, and would wait until refuse looks.
func (b *bitswap) denyGone(p peer.ID, m message.BitSwapMessage) {
	for _, ch := range m.Wantlist() {
		at, ok := b.gone.Get(ch.Cid)
		if ok && !ch.Cancel && !ch.SendDontHave && time.Since(at) < goneFor {
			b.deny(p, ch.Cid)
		}
	}
}

// goneFor is how long a peer may take, at most, from being told whom to ask for a block until it asks.
const goneFor = time.Minute

const (
	maxPast   = 1 << 17 // what is asked in half a minute over a link of 10 Gbit/s, if it is in pieces
	maxRecent = 1 << 14 // what comes in recentFor over such a link, and much more of what goes
	recentFor = 2 * time.Second
)

// arrival is the size in bytes of a block that came, and when.
type arrival struct {
	size int
	at   time.Time
}

var filler [content.ChunkSize]byte

// ReceiveError is told of streams that broke; PeerDisconnected tells what follows from that.
func (b *bitswap) ReceiveError(err error) { b.log.Debug("bitswap stream", "error", err) }

// PeerConnected needs nothing done.
func (b *bitswap) PeerConnected(peer.ID) {}

// PeerDisconnected gives up what the peer was asked for, and what it asked for.
func (b *bitswap) PeerDisconnected(p peer.ID) {
	b.owed.forget(p)
	b.lose(p, nil)
}

// tracer is told what the server receives and sends.
type tracer struct {
	m      *metrics
	owed   *owed
	sizeOf func(cid.Cid) int64 // bytes
}

func (t tracer) MessageReceived(p peer.ID, m message.BitSwapMessage) {
	for _, ch := range m.Wantlist() {
		if ch.Cancel || ch.WantType != pb.Message_Wantlist_Block {
			t.owed.settle(p, ch.Cid)
		} else {
			t.owed.add(p, ch.Cid, t.sizeOf(ch.Cid))
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
