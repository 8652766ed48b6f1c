package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/trace"
)

// aloneFor is for how long a node that could not reach the coordinator goes on alone before it tries again.
const aloneFor = 3 * time.Second

// A fetch downloads one blob. Its participant chooses what to ask of whom; the fetch does what comes of that, and
// keeps what a blob has besides: its file, its readers, the credentials to ask upstream with, its end. Its goroutines
// are run (the coordinator's orders), tick (time), one for each leased run, and those of Bitswap that bring
// blocks.
type fetch struct {
	fr     *Fetcher
	digest digest.Digest
	source source        // see source.go
	keptOf store.Source  // whose chunks are resumed
	room   digest.Digest // by which the swarm knows the fetch
	grain  content.Grain // of the plan, from the beginning to the end
	// try is the first, unless what was claimed in those before was wrong. charge is what was.
	try    try
	charge *charge
	start  time.Time
	ctx    context.Context
	cancel context.CancelFunc

	making sync.Mutex // held while room is made for the blob; before mu

	sizing    sync.Mutex // held while upstream is asked for the size; before mu
	sizeAsked bool       // it has been; guarded by sizing

	rooming atomic.Int32 // calls that make room on the disk, or wait for that
	awaited atomic.Int32 // what waits for its turn on this node, or for the registry's answer
	moved   atomic.Bool  // bytes have come from upstream since the last tick

	mu      sync.Mutex
	part    *schedule.Participant
	acting  bool // a goroutine carries out actions
	acted   *sync.Cond
	changed bell            // rings whenever what a reader may wait for has changed
	req     content.Request // of the newest caller
	askers  askers          // in whose name upstream is asked
	readers int
	streams int       // readers that there have been, to number them
	idle    time.Time // since when there is no reader
	session swarm.Session
	drop    context.CancelFunc // leaves the session
	err     error              // why the fetch ended
	upErr   error              // the last word of upstream

	cut       content.Cut // of the blob, whose size is -1 while it is not known
	sizeTold  bool        // size is someone's word, which upstream has not confirmed
	sizeWrong bool        // upstream tells another
	misled    bool        // what did not match was others' word, or some of it
	held      bool        // its first caller has heard of a peer that holds it
	partOnly  bool        // all callers so far want a part of it only
	passing   bool        // some caller wants all of it once, whether or not it is kept
	mediaType string
	ing       *store.Ingest
	leave     func()         // gives the memory for its chunks back
	window    *window        // nil: the whole is kept
	streaming bool           // an answer is read to the end of the blob, whatever was leased
	covered   []schedule.Run // leases that were given meanwhile
	verified  bool           // the digest is known to match
	finishing bool           // the digest is being checked
	committed bool           // the store has the blob
	closing   bool           // no reader may be added
	released  chan struct{}  // closed once the fetch holds nothing of the store any more
	after     chan struct{}  // released of the one whose place it has taken; nil: none

	tally      tally
	reliefs    reliefs
	unanswered atomic.Int32 // questions to upstream
	came       atomic.Int64 // bytes, parts of chunks among them
	cameAt     atomic.Int64 // when the last did, in nanoseconds since start
	pull       *bytesOf     // the same of all that comes from this repository
	ears       ears
	steps      steps
	span       trace.Span
}

// bell is closed, and made anew, when it rings.
type bell chan struct{}

func (b *bell) ring() {
	close(*b)
	*b = make(bell)
}

// startFetch starts a fetch of what a source gives, with one reader attached unless set says otherwise. It outlives
// ctx, and is in its trace. keep: that reader has no use for a blob that passes by.
func startFetch(ctx context.Context, fr *Fetcher, req content.Request, from source, keep bool,
	set func(*fetch)) *fetch {
	f := &fetch{
		fr: fr, digest: req.Digest, source: from, start: time.Now(), changed: make(bell), req: req, readers: 1,
		cut: content.CutLeaves(-1), askers: askers{doubts: fr.doubts}, leave: func() {},
		grain: fr.opts.Swarm.Grain(), released: make(chan struct{}), pull: fr.pulls.of(req.Repository), ears: ears{},
	}
	f.room, f.keptOf = f.source.room(f.digest), fr.keptOf(from, req)
	f.acted = sync.NewCond(&f.mu)
	f.partOnly, f.passing, f.held = req.Part, !keep && !req.Part, req.Held
	f.admit(req)
	if set != nil {
		set(f)
	}
	f.part = schedule.NewParticipant(fr.opts.participant(fr, f.grain), fr.opts.Swarm.ID())
	f.part.SetUpstream(f.askers.mayShare())
	f.idle = f.start
	f.ctx, f.cancel = context.WithCancel(room.For(trace.Carry(fr.ctx, ctx), room.Caller(ctx)))
	f.ctx, f.span = fr.opts.Tracer.Start(f.ctx, "fetch")
	fr.wg.Go(f.run)
	return f
}

// update changes what the fetch knows, under its lock, and carries out what the participant makes of it. Once every
// chunk is here the digest is checked.
func (f *fetch) update(change func(now time.Time)) {
	f.mu.Lock()
	change(time.Now())
	if f.part.Len() > 0 && f.part.Absent() == 0 && !f.finishing && f.err == nil {
		f.finishing = true
		ing := f.ing
		f.fr.wg.Go(func() { f.finish(ing) })
	}
	f.mu.Unlock()
	f.act()
}

// act carries out what the participant wants done, without the lock. One goroutine does at a time, so that what is
// said keeps its order; others leave what they have to do to that one.
func (f *fetch) act() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.acting {
		return
	}
	f.acting = true
	for a := f.part.Take(); !a.Empty(); a = f.part.Take() {
		session, drop := f.session, f.drop
		f.mu.Unlock()
		f.carryOut(a, session)
		if a.Leave {
			drop()
		}
		f.mu.Lock()
		switch {
		case a.Hopeless == nil || f.part.MayRead():
		case f.askers.secede():
			f.part.Secede(time.Now())
		default:
			f.failNow(cmp.Or(f.upErr, a.Hopeless))
		}
	}
	f.acting = false
	f.acted.Broadcast()
}

func (f *fetch) carryOut(a schedule.Actions, session swarm.Session) {
	for _, w := range a.Wants {
		_, n := f.cut.Range(w.Index)
		if c := content.SumCID(w.Sum); !f.recall(w.Index, c) {
			f.fr.opts.Swarm.Want(w.From, c, n, w.Priority, w.Held, f)
		}
	}
	for _, r := range a.Leases {
		f.fr.wg.Go(func() { f.readLease(r) })
	}
	if !a.Report.Empty() {
		session.Send(a.Report)
	}
	for _, p := range a.Pings {
		f.fr.opts.Swarm.Ping(p)
	}
	f.fr.m.stalls.Add(float64(a.Stalled))
	for _, p := range a.PassedOver {
		f.fr.log.Info("peer stalls", "digest", f.digest, "peer", p.Peer, "chunks", p.Chunks, "silent", p.Silent,
			"noChunk", p.NoChunk)
	}
	if c := a.LeftBehind; c != nil {
		f.fr.log.Info("coordinator stalls", "digest", f.digest, "peer", c.Peer, "silent", c.Silent, "noChunk",
			c.NoChunk)
	}
}

// settle returns when all that the participant wanted done so far has been begun.
func (f *fetch) settle() {
	f.act()
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.acting {
		f.acted.Wait()
	}
}

// attach adds a reader; see startFetch. It fails for a fetch that has ended.
func (f *fetch) attach(req content.Request, keep bool) (ok bool) {
	f.update(func(time.Time) {
		if ok = f.err == nil && !f.closing; !ok {
			return
		}
		f.readers++
		f.partOnly = f.partOnly && req.Part
		f.passing = f.passing || !keep && !req.Part
		if !req.NoUpstream() {
			f.req.Repository, f.req.Authorization, f.req.Kind = req.Repository, req.Authorization, req.Kind
		}
		before := f.askers.next()
		f.admit(req)
		if before == nil {
			f.upErr = nil // which was said to others
		}
		f.part.SetUpstream(f.askers.mayShare())
	})
	return ok
}

// admit takes in a caller's credentials, where policy lets upstream be asked with them.
func (f *fetch) admit(req content.Request) {
	if !req.NoUpstream() && !f.fr.opts.PeersOnly(req.Repository) {
		f.askers.admit(req)
	}
}

func (f *fetch) detach() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers--
	f.idle = time.Now()
	f.changed.ring()
}

// plan names the plan of the fetch.
func (f *fetch) plan() swarm.Plan { return swarm.Plan{Digest: f.room, Grain: f.grain} }

func (f *fetch) knownSize() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cut.Size()
}

// confirmedSize is the size that is not only someone's word; -1 while there is none.
func (f *fetch) confirmedSize() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sizeTold && !f.verified {
		return -1
	}
	return f.cut.Size()
}

// await waits until ok says yes, which is called with f.mu held. It fails when the fetch does, or ctx ends.
func (f *fetch) await(ctx context.Context, ok func() bool) error {
	f.mu.Lock()
	for {
		if ok() {
			f.mu.Unlock()
			return nil
		}
		if f.err != nil {
			f.mu.Unlock()
			return f.err
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		f.mu.Lock()
	}
}

func (f *fetch) awaitSize(ctx context.Context, came time.Time) error {
	defer f.hungry(came, nil, func() int { // the answer to any chunk tells it
		if f.cut.Size() >= 0 {
			return -1
		}
		return 0
	})()
	return f.await(ctx, func() bool { return f.cut.Size() >= 0 && (f.err == nil || f.verified) })
}

// fail ends the fetch with err, once.
func (f *fetch) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failNow(err)
}

// failNow does what fail does, and reports whether the fetch has ended by it. The caller holds f.mu.
func (f *fetch) failNow(err error) bool {
	if f.err != nil || f.verified {
		return false
	}
	f.err = fmt.Errorf("fetch %s: %w", f.digest, err)
	f.part.Close()
	f.cancel()
	f.changed.ring()
	return true
}

// run ties the fetch to its coordinator until it ends.
func (f *fetch) run() {
	defer f.end()
	if f.after != nil {
		// Also where this one has ended meanwhile: whoever takes its place waits for this one alone.
		<-f.after
		f.cameAt.Store(int64(time.Since(f.start))) // it has stood still only since
	}
	f.fr.asking.Add(1)
	defer f.fr.asking.Add(-1)
	f.inherit()
	if size, ok := f.sizeHere(); ok {
		f.makeRoom(size, ofThisNode)
	}
	for attempt := 0; f.ctx.Err() == nil; attempt++ {
		session, err := f.join()
		if err != nil {
			f.fail(err)
			return
		}
		f.follow(session)
		if f.complete() {
			return
		}
		// The coordinator is lost: the next one, but not in a tight loop.
		content.Sleep(f.ctx, time.Duration(min(attempt, 10))*100*time.Millisecond)
	}
}

// sizeHere is the blob's size where this node knows it: of a blob that it had, or of a part that it keeps of it. What
// manifests say is not among it: everyone who joins in would have to believe them.
func (f *fetch) sizeHere() (size int64, ok bool) {
	// That no bytes are to come the digest tells, and nobody else: a size of 0 is none in what peers say.
	if content.OfNothing(f.digest) {
		return 0, true
	}
	if size, ok := f.fr.sizes.Get(f.digest); ok {
		return size, true
	}
	if f.try != firstTry {
		return 0, false // what is kept may be of the wrong size
	}
	// What a killed process has left is read on without asking for its beginning again.
	size = f.fr.opts.Store.SizeOf(f.digest, f.keptOf)
	return size, size > 0
}

func (f *fetch) complete() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.verified
}

// join enters the coordinator's table with all that this node has and does.
func (f *fetch) join() (swarm.Session, error) {
	f.mu.Lock()
	j := f.part.Join()
	j.Held, j.Again = f.held, f.try.elects()
	apart := f.try == loneTry || f.part.Apart()
	if j.Upstream && f.fr.ignoresRange(f.askers.next().repo.Registry) {
		j.Failed = []schedule.Failure{{Run: schedule.Run{First: -1}, Trouble: schedule.NoRange}}
	}
	f.mu.Unlock()
	if apart {
		return f.fr.opts.Swarm.JoinAlone(f.room, j)
	}
	ctx, span := f.fr.opts.Tracer.Start(f.ctx, "join")
	session, err := f.fr.opts.Swarm.Join(ctx, f.room, j)
	if err == nil && span.On() {
		span.Text("shoal.coordinator", session.Coordinator().String())
	}
	span.End(err)
	if errors.Is(err, schedule.ErrSize) { // someone told others a wrong size: let the digest decide
		session, err = f.fr.opts.Swarm.JoinAlone(f.room, j)
	}
	return session, err
}

// follow carries out a coordinator's orders until it is lost or the fetch ends.
func (f *fetch) follow(session swarm.Session) {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	if session.Alone() {
		var end context.CancelFunc
		ctx, end = context.WithTimeout(ctx, aloneFor)
		defer end()
	}
	defer session.Close()
	f.update(func(now time.Time) {
		f.session, f.drop = session, cancel
		f.part.Joined(now, session.Coordinator())
		f.reach(&f.steps.discovery, now)
	})
	f.fr.wg.Go(func() { f.tick(ctx) })
	for {
		o, err := session.Next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				f.fr.log.Debug("coordinator lost", "digest", f.digest, "coordinator", session.Coordinator(), "error",
					err)
			}
			break
		}
		if o.Size > 0 {
			f.makeRoom(o.Size, ofPeers)
		}
		f.update(func(now time.Time) {
			// Else a doubtful word is better than none: the digest decides.
			if a := f.askers.next(); a != nil && f.try == firstTry {
				o = f.part.Without(o, func(p peer.ID) bool { return f.fr.doubts.doubted(now, a.repo.Registry, p) })
			}
			f.part.Orders(now, o)
			f.reach(&f.steps.plan, now)
		})
	}
	f.settle() // what the coordinator has yet to be told goes out before the session ends
	f.update(func(time.Time) {
		f.session = nil
		f.part.Left()
	})
}

// chunkCost is about how many bytes of memory a chunk takes of who fetches a blob, whether or not it comes.
const chunkCost = 208

// freeChunks is up to how many chunks nobody counts what a blob takes: as many as the largest has that is cut into
// pieces, so that what only announces its size keeps no ordinary layer out.
const freeChunks = 1024

// memoryFor takes the memory for what is known of a blob's chunks, until leave is called. ok is false where there is
// none.
func (fr *Fetcher) memoryFor(cut content.Cut) (leave func(), ok bool) {
	return fr.chunks.Try(costOf(cut))
}

// rumouredMemory does the same for a blob whose size only peers name. It refuses a blob that needs more than there is
// for all such blobs together.
func (fr *Fetcher) rumouredMemory(cut content.Cut) (leave func(), ok bool) {
	n := costOf(cut)
	return func() { fr.rumoured.Release(n) }, fr.rumoured.TryAcquire(n)
}

// costOf is how many bytes of memory are counted for what is known of a blob's chunks.
func costOf(cut content.Cut) int64 {
	if n := int64(cut.Len()); n > freeChunks {
		return n * chunkCost
	}
	return 0
}

// word tells whose word a size is.
type word int

const (
	ofPeers word = iota
	ofThisNode
	ofUpstream
)

// makeRoom makes room for the blob, once. The disk may take long.
func (f *fetch) makeRoom(size int64, by word) {
	f.rooming.Add(1)
	defer f.rooming.Add(-1)
	if f.after != nil { // which has the blob's place in the store
		<-f.after
	}
	f.making.Lock()
	defer f.making.Unlock()
	f.mu.Lock()
	done := f.cut.Size() >= 0 || f.err != nil
	rumour := by == ofPeers && size != f.req.Size // which the caller's manifest or hub does not name either
	f.mu.Unlock()
	if done {
		return
	}
	cut, memory := f.grain.Cut(size), f.fr.memoryFor
	if rumour {
		memory = f.fr.rumouredMemory
	}
	leave, ok := memory(cut)
	if !ok && rumour {
		f.wrongSize(fmt.Errorf("%s of %d bytes is too much to be believed of peers alone: %w", f.digest, size,
			content.ErrDigestMismatch))
		return
	}
	if !ok {
		f.fail(fmt.Errorf("%s of %d bytes, beside what else is fetched: %w", f.digest, size, content.ErrNoSpace))
		return
	}
	f.leave = leave
	ing, err := f.place(size)
	if err == nil && size == 0 {
		err = ing.WriteChunk(0, content.ChunkCID(nil), nil)
	}
	if err != nil {
		if ing != nil {
			err = errors.Join(err, ing.Close())
		}
		f.fail(err)
		return
	}
	f.update(func(now time.Time) {
		f.ing = ing
		if f.err != nil { // end gives it back
			return
		}
		f.cut, f.sizeTold, f.window = cut, by != ofUpstream, newWindow(ing.Slots())
		f.tally.cameFrom = slices.Repeat([]provenance{fromHere}, ing.Len())
		for i := range ing.Len() {
			if _, n := ing.Cut().Range(i); ing.Has(i) { // of an earlier try
				f.tally.kept += n
			}
		}
		f.part.Limit(ing.Slots())
		f.part.SetSize(size, ing.Has)
		if f.try != firstTry {
			f.part.Demand(now, schedule.Run{Count: ing.Len()})
		}
		f.changed.ring()
	})
}

// demand adds chunks first to last to what is needed.
func (f *fetch) demand(first, last int) {
	f.update(func(now time.Time) { f.part.Demand(now, schedule.Run{First: first, Count: last - first + 1}) })
}

// land stores a chunk whose bytes were checked against c, and calls landed with the lock held once it is here.
func (f *fetch) land(i int, c cid.Cid, data []byte, from provenance, landed func(now time.Time)) {
	f.mu.Lock()
	ing, present := f.ing, f.part.Has(i)
	f.mu.Unlock()
	if present {
		f.update(landed)
		return
	}
	if ing == nil {
		return
	}
	if _, n := f.cut.Range(i); int64(len(data)) != n {
		f.mismatch(fmt.Errorf("chunk %d is of %d bytes, want %d: %w", i, len(data), n, content.ErrDigestMismatch))
		return
	}
	undo, err := f.write(ing, i, c, data)
	switch {
	case errors.Is(err, content.ErrClosed):
		return
	case errors.Is(err, content.ErrDigestMismatch):
		f.mismatch(err)
		return
	case err != nil:
		f.fail(err)
		return
	}
	if b, err := blocks.NewBlockWithCid(data, c); err == nil {
		f.fr.opts.Swarm.Have(b)
	}
	f.update(func(now time.Time) {
		if f.part.Has(i) { // from elsewhere, meanwhile
			undo()
			f.changed.ring() // another chunk may wait for its slot
			landed(now)
			return
		}
		if f.window != nil {
			f.window.filled(i, from)
		}
		f.tally.credit(i, from, int64(len(data)))
		if from != fromUpstream { // which is counted as it is read
			f.countBytes(int64(len(data)))
		}
		f.reach(&f.steps.first, now)
		landed(now)
		f.changed.ring()
	})
}

// write writes a chunk. A window that finds no more room goes on with the slots that it has: what was let in before it
// may have taken the room since. undo, called with f.mu held, takes the slot back where it is not used.
func (f *fetch) write(ing *store.Ingest, i int, c cid.Cid, data []byte) (undo func(), err error) {
	for {
		if undo, err = f.makeWay(); err != nil {
			return nil, err
		}
		if err = ing.WriteChunk(i, c, data); err == nil {
			return undo, nil
		}
		narrower := false
		f.update(func(time.Time) {
			undo()
			narrower = errors.Is(err, content.ErrNoSpace) && f.window.narrow()
			f.changed.ring()
		})
		if !narrower {
			return nil, err
		}
	}
}

// Block takes a block that was asked for.
func (f *fetch) Block(from peer.ID, c cid.Cid, data []byte) {
	f.arrived(from, c, data, fromPeer)
}

func (f *fetch) arrived(by peer.ID, c cid.Cid, data []byte, from provenance) {
	var indexes []int
	f.update(func(now time.Time) { indexes = f.part.Arrived(now, by, sumOf(c)) })
	for _, i := range indexes {
		f.land(i, c, data, from, func(now time.Time) {
			f.part.Landed(now, i)
			if from != fromPeer {
				return
			}
			if f.steps.byPeer == nil {
				f.steps.byPeer = map[peer.ID]int64{}
			}
			f.steps.byPeer[by] += int64(len(data))
		})
	}
}

// Lost is told that a peer will not answer.
func (f *fetch) Lost(from peer.ID, c cid.Cid) {
	f.update(func(now time.Time) { f.part.Lost(now, from, sumOf(c)) })
}

// finish checks the digest, lets the last chunk go, and makes the blob a committed one.
func (f *fetch) finish(ing *store.Ingest) {
	err := ing.Verify(f.ctx)
	switch {
	case errors.Is(err, store.ErrIncomplete): // a chunk that was left was lost
		f.update(func(now time.Time) {
			f.finishing = false
			f.tally.missLost(now, f.part, f.ing)
		})
		return
	case errors.Is(err, content.ErrDigestMismatch):
		f.mismatch(err)
		return
	case err != nil:
		f.fail(err)
		return
	}
	var mediaType string
	var req content.Request
	var c *charge
	own := false // all of it was read by this node
	f.update(func(now time.Time) {
		if f.err != nil { // another chunk did not match meanwhile, and all was dropped
			return
		}
		f.fr.sizes.Add(f.digest, f.cut.Size())
		f.fr.m.duration.Observe(now.Sub(f.start).Seconds())
		f.verified = true
		f.part.Complete()
		f.changed.ring()
		mediaType, req, c = f.mediaType, f.req, f.charge
		if own = f.tally.fromUpstream == f.cut.Size(); own {
			f.fr.doubts.right(now, req.Repository.Registry)
		}
	})
	if !f.complete() {
		return
	}
	if req.Kind == content.Manifest {
		mediaType = f.fr.learnFrom(req.Repository, ing, mediaType)
	}
	// Callers are served already: commit even when the last of them has gone, unless the node stops.
	err = ing.Commit(f.fr.ctx, mediaType)
	if err != nil {
		f.fr.log.Warn("blob not kept", "digest", f.digest, "error", err)
	}
	// Not before the commit: whoever hears of the proof looks for the blob among those that hold it, and no longer in
	// the room of its source, where this node is known to have it meanwhile.
	if f.source != "" {
		f.proved(req)
	}
	if c.open() {
		f.fr.settle(c, req.Repository.Registry, own, ing.Len(), func(i int) schedule.Sum { return sumOf(ing.CID(i)) })
	}
	f.mu.Lock()
	f.committed = err == nil
	if err != nil {
		f.err = fmt.Errorf("fetch %s: %w", f.digest, err) // for who waits for the commit; readers go by verified
	}
	f.changed.ring()
	f.mu.Unlock()
	f.cancel()
}

// end releases what the fetch holds. It runs when no orders are followed any more.
func (f *fetch) end() {
	f.fail(context.Cause(f.ctx)) // does nothing to one that has ended already
	f.making.Lock()              // which ends what is being made; nothing is from now on
	f.mu.Lock()
	f.closing = true
	f.part.Close()
	f.mu.Unlock()
	f.making.Unlock()
	f.settle()
	if err := f.fr.opts.Store.DropDoubtful(f.digest, f.keptOf); err != nil { // it has opened no ingest
		f.fr.log.Warn("what did not match stays until the next start", "digest", f.digest, "error", err)
	}
	f.mu.Lock()
	err, verified, committed, ing := f.err, f.verified, f.committed, f.ing
	asked := f.part.Asked()
	f.mu.Unlock()
	for _, sum := range asked {
		f.fr.opts.Swarm.Forget(content.SumCID(sum), f)
	}
	outcome := outcomeComplete
	switch {
	case verified:
	case errors.Is(err, context.Canceled):
		outcome = outcomeAbandoned
	default:
		outcome = outcomeFailed
		f.fr.log.Warn("fetch failed", "digest", f.digest, "error", err)
	}
	f.fr.m.fetches.WithLabelValues(outcome).Inc()
	f.tell(outcome, err)
	f.trace(outcome, err)

	defer close(f.released)
	defer f.leave()
	if errors.Is(err, content.ErrDigestMismatch) {
		f.fr.replace(f, f.again())
		return
	}
	if committed {
		f.fr.replace(f, nil) // who comes from now on is served by the store
	}
	if ing != nil {
		f.awaitReaders()
		if err := ing.Close(); err != nil {
			f.fr.log.Warn("ingest not closed", "digest", f.digest, "error", err)
		}
	}
	f.fr.replace(f, nil)
}

// arrivedAs is what has become of a blob that has come and matches its digest, for who comes from then on and must not
// wait for the readers: store.ErrExists of one that was committed, content.ErrStorage of one that could not be. It is
// nil before.
func (f *fetch) arrivedAs() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.committed:
		return store.ErrExists
	case f.verified && f.err != nil:
		return fmt.Errorf("%w: %w", content.ErrStorage, f.err)
	}
	return nil
}

// awaitReaders waits until those who read the verified blob have gone, or the node stops.
func (f *fetch) awaitReaders() {
	for {
		f.mu.Lock()
		n, changed := f.readers, f.changed
		if !f.verified {
			n = 0
		}
		f.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-changed:
		case <-f.fr.ctx.Done():
			return
		}
	}
}

// tick looks after time, and ends a fetch that no one wants any more.
func (f *fetch) tick(ctx context.Context) {
	t := time.NewTicker(schedule.TickEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			f.mu.Lock()
			watched := f.part.Watched()
			// One that is to tell liars from those misled goes on, whoever waits.
			if f.readers == 0 && !f.finishing && !f.charge.open() && time.Since(f.idle) > f.fr.opts.Linger {
				f.failNow(context.Canceled) // before the lock is let go, and a reader joins
			}
			f.mu.Unlock()
			if ctx.Err() != nil {
				return
			}
			heard := map[peer.ID]int64{}
			for _, p := range watched {
				heard[p] = f.fr.opts.Swarm.HeardFrom(p)
			}
			making := f.rooming.Load() > 0
			reading := f.moved.Swap(false) || f.awaited.Load() > 0 || making
			f.update(func(now time.Time) {
				if begun := f.ears.hear(now, f.part.Asks, heard); begun > 0 {
					f.countBytes(begun)
				}
				f.tally.missLost(now, f.part, f.ing)
				if making {
					f.part.Busy(now)
				}
				if reading {
					f.part.Reading()
				}
				f.part.Tick(now, func(p peer.ID) int64 { return heard[p] })
			})
		case <-ctx.Done():
			return
		}
	}
}

func (f *fetch) status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Status{
		Digest: f.digest, Repository: f.req.Repository, Size: f.cut.Size(), Arrived: f.tally.arrived,
		FromPeers: f.tally.fromPeers, FromUpstream: f.tally.fromUpstream, Readers: f.readers, Started: f.start,
		ByPeer: maps.Clone(f.steps.byPeer), Filled: filled(f.part),
	}
}

// filled tells of each part of the blob how many tenths of it are here; nil while the size is not known.
func filled(part *schedule.Participant) []byte {
	n := part.Len()
	if n == 0 {
		return nil
	}
	parts := min(n, filledParts)
	of, here := make([]int, parts), make([]int, parts)
	for i := range n {
		at := i * parts / n
		of[at]++
		if part.Has(i) {
			here[at]++
		}
	}
	tenths := make([]byte, parts)
	for i := range tenths {
		tenths[i] = byte(10 * here[i] / of[i])
	}
	return tenths
}

func sumOf(c cid.Cid) schedule.Sum {
	h := c.Hash()
	return schedule.Sum(h[len(h)-len(schedule.Sum{}):])
}
