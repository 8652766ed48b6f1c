package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bits-and-blooms/bitset"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
)

// tickEvery is how often a fetch looks for peers that stall, and at the latest reports what it has.
const tickEvery = 250 * time.Millisecond

// aloneFor is for how long a node that could not reach the coordinator goes on alone before it tries again.
const aloneFor = 3 * time.Second

// fetch is the getting of one blob. Its goroutines are run (the coordinator's orders, time), one for each leased run,
// and those of the exchange that bring blocks.
type fetch struct {
	fr     *Fetcher
	digest digest.Digest
	// alone: peers are not asked, for what they claimed was wrong. suspects is what they claimed.
	alone    bool
	suspects []suspect
	start    time.Time
	ctx      context.Context
	cancel   context.CancelFunc

	mu      sync.Mutex
	changed chan struct{}   // closed, and made anew, whenever what a reader may wait for has changed
	req     content.Request // of the newest caller
	askers  []*asker        // callers, the newest last
	nobody  *asker          // goes before them, once there was reason to try
	offered bool            // the coordinator was told, when this node joined, that it can ask upstream
	readers int
	idle    time.Time // since when there is no reader
	session *swarm.Session
	drop    context.CancelFunc // leaves the session
	boss    source             // the coordinator: moved is when it last gave orders, or this node had something to do
	apart   bool               // this node coordinates for itself alone, for the coordinator was of no use
	err     error              // why the fetch ended
	upErr   error              // the last word of upstream
	refusal error              // its last refusal of a caller's credentials

	size      int64 // bytes; -1 while not known
	sizing    bool  // room is being made for the blob
	sizeTold  bool  // size is another peer's word
	mediaType string
	ing       *store.Ingest
	chunks    []chunk
	missing   int // of the chunks needed
	absent    int // of all chunks
	need      *bitset.BitSet
	roots     *bitset.BitSet // assigned, to be asked for first: others wait for them
	todo      *bitset.BitSet // assigned, to be asked for
	position  uint           // the chunk that a reader wants next
	byCID     map[cid.Cid][]int
	peers     map[peer.ID]*source
	inFlight  int
	leased    map[schedule.Run]bool
	awaited   atomic.Int32  // leased runs that wait for their turn on this node, or for the registry's answer
	moved     atomic.Bool   // bytes have come from upstream since the last tick
	unsaid    []int         // chunks that arrived, not reported yet
	verified  bool          // the digest is known to match
	finishing bool          // the digest is being checked
	committed bool          // the store has the blob
	closing   bool          // no reader may be added
	released  chan struct{} // closed once the fetch holds nothing of the store any more

	arrived, fromPeers, fromUpstream int64
	kept                             int64 // bytes, of an earlier try
	relieving                        bool  // see relief.go
	relieved, noRelief               time.Time
	othersThen                       int64        // byOthers when the last relief began
	came                             atomic.Int64 // bytes, parts of chunks among them
	pull                             *bytesOf     // the same of all that comes from this repository
	ears                             map[peer.ID]ear
}

// chunk is what the fetch knows of one chunk.
type chunk struct {
	present bool
	source  content.Source
	claim   schedule.Claim
	claimed bool
	from    peer.ID // whom to ask
	root    bool
	held    bool    // from has it already
	via     peer.ID // the coordinator that passed the claim on
	asked   peer.ID // who was asked, "" where no one
}

// startFetch starts a fetch, with one reader attached unless set says otherwise.
func startFetch(fr *Fetcher, req content.Request, set func(*fetch)) *fetch {
	f := &fetch{
		fr: fr, digest: req.Digest, start: time.Now(), changed: make(chan struct{}), req: req, readers: 1,
		size: -1, peers: map[peer.ID]*source{}, byCID: map[cid.Cid][]int{}, leased: map[schedule.Run]bool{},
		released: make(chan struct{}), pull: fr.pulls.of(req.Repository), ears: map[peer.ID]ear{},
	}
	f.admitAsker(req)
	if set != nil {
		set(f)
	}
	f.idle = f.start
	f.ctx, f.cancel = context.WithCancel(fr.ctx)
	fr.wg.Go(f.run)
	return f
}

// attach adds a reader. It fails for a fetch that has ended.
func (f *fetch) attach(req content.Request) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil || f.closing {
		return false
	}
	f.readers++
	if req.Repository != (content.Repository{}) {
		f.req.Repository, f.req.Authorization, f.req.Kind = req.Repository, req.Authorization, req.Kind
	}
	before := f.upstreamAllowed()
	f.admitAsker(req)
	if !before && f.upstreamAllowed() && f.drop != nil {
		f.upErr = nil // which was said to others
		f.drop()      // the coordinator sends this node upstream no more, unless it comes anew
	}
	return true
}

func (f *fetch) detach() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers--
	f.idle = time.Now()
	f.broadcast()
}

func (f *fetch) knownSize() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}

// broadcast wakes all that wait. The caller holds f.mu.
func (f *fetch) broadcast() {
	close(f.changed)
	f.changed = make(chan struct{})
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

func (f *fetch) awaitSize(ctx context.Context) error {
	defer f.hungry(func() int { // the answer to any chunk tells it
		if f.size >= 0 {
			return -1
		}
		return 0
	})()
	return f.await(ctx, func() bool { return f.size >= 0 && (f.err == nil || f.verified) })
}

// fail ends the fetch with err, once. The caller holds f.mu.
func (f *fetch) fail(err error) {
	if f.err != nil || f.verified {
		return
	}
	f.err = fmt.Errorf("fetch %s: %w", f.digest, err)
	f.cancel()
	f.broadcast()
}

// run ties the fetch to its coordinator until it ends.
func (f *fetch) run() {
	defer f.end()
	f.fr.asking.Add(1)
	defer f.fr.asking.Add(-1)
	// That no bytes are to come the digest tells, and nobody else: a size of 0 is none in what peers say.
	if size := f.req.Size; size > 0 || f.digest == f.digest.Algorithm().FromBytes(nil) {
		f.mu.Lock()
		f.setSize(size)
		f.mu.Unlock()
	}
	for attempt := 0; f.ctx.Err() == nil; attempt++ {
		session, err := f.join()
		if err != nil {
			f.mu.Lock()
			f.fail(err)
			f.mu.Unlock()
			return
		}
		f.follow(session)
		if f.complete() {
			return
		}
		select { // the coordinator is lost: the next one, but not in a tight loop
		case <-time.After(time.Duration(min(attempt, 10)) * 100 * time.Millisecond):
		case <-f.ctx.Done():
		}
	}
}

func (f *fetch) complete() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.verified
}

// join enters the coordinator's table with all that this node has and does.
func (f *fetch) join() (*swarm.Session, error) {
	f.mu.Lock()
	j := schedule.Join{Zone: f.fr.opts.Zone, Upstream: f.upstreamAllowed()}
	f.offered = j.Upstream
	if j.Upstream && f.fr.ignoresRange(f.asker().repo.Registry) {
		j.Failed = []schedule.Failure{{Run: schedule.Run{First: -1}, Trouble: schedule.NoRange}}
	}
	if f.size >= 0 {
		j.Size = f.size
		j.Whole = f.need.All()
		if !j.Whole {
			j.Need = runsOf(f.need)
		}
		for i := range f.chunks {
			if f.chunks[i].present {
				j.Have = append(j.Have, i)
				if f.chunks[i].claimed {
					j.Claims = append(j.Claims, f.chunks[i].claim)
				}
			}
		}
		for r := range f.leased {
			j.Leased = append(j.Leased, r)
		}
	}
	f.unsaid = nil
	f.mu.Unlock()
	var session *swarm.Session
	var err error
	if f.alone || f.apart {
		session, err = f.fr.opts.Swarm.JoinAlone(f.digest, j)
	} else {
		session, err = f.fr.opts.Swarm.Join(f.ctx, f.digest, j)
		if errors.Is(err, schedule.ErrSize) { // someone told others a wrong size: let the digest decide
			session, err = f.fr.opts.Swarm.JoinAlone(f.digest, j)
		}
	}
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.session = session
	if f.size >= 0 && !j.Whole { // readers may have come meanwhile
		f.tell(schedule.Report{Size: f.size, Need: runsOf(f.need)})
	}
	return session, nil
}

// upstreamAllowed tells whether there is anyone in whose name upstream may be asked. The caller holds f.mu.
func (f *fetch) upstreamAllowed() bool { return f.asker() != nil }

// follow carries out a coordinator's orders until it is lost or the fetch ends.
func (f *fetch) follow(session *swarm.Session) {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	if session.Alone {
		var end context.CancelFunc
		ctx, end = context.WithTimeout(ctx, aloneFor)
		defer end()
	}
	defer session.Close()
	f.mu.Lock()
	f.drop, f.boss = cancel, source{moved: time.Now(), heard: time.Now()}
	if !f.offered && f.upstreamAllowed() { // someone has come meanwhile
		cancel()
	}
	f.mu.Unlock()
	f.fr.wg.Go(func() { f.tick(ctx) })
	for {
		o, err := session.Next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				f.fr.log.Debug("coordinator lost", "digest", f.digest, "coordinator", session.Coordinator, "error", err)
			}
			f.mu.Lock()
			f.session = nil
			f.mu.Unlock()
			return
		}
		f.mu.Lock()
		if ctx.Err() == nil { // what a coordinator says that was left just now is out of date
			f.obey(o)
		}
		f.mu.Unlock()
	}
}

// obey takes in orders. The caller holds f.mu.
func (f *fetch) obey(o schedule.Orders) {
	f.boss.moved = time.Now()
	if o.Size > 0 && f.size < 0 {
		f.sizeTold = !f.sizing // else upstream has told it
		f.setSize(o.Size)
	}
	for _, a := range o.Chunks {
		f.assign(a)
	}
	for _, r := range o.Leases {
		f.lease(r)
	}
	switch {
	case !o.Hopeless || f.inFlight > 0 || len(f.leased) > 0:
	case f.upErr == nil && f.upstreamAllowed() && !f.apart:
		// No one else can have it, they say; but this node has not asked upstream itself.
		f.apart = true
		f.drop()
	default:
		f.fail(f.hopeless())
	}
	f.pump()
}

// forsake leaves a coordinator that is dead, for the next one. One that is alive and has left this node with nothing to do
// for long is of no use, dead or lying: the node goes on by itself. The caller holds f.mu.
func (f *fetch) forsake(now time.Time) {
	c := f.coordinator()
	if c == "" || c == f.fr.opts.Swarm.ID() {
		return
	}
	if f.inFlight > 0 || len(f.leased) > 0 || f.sizing || f.size >= 0 && f.missing == 0 {
		f.boss.moved = now
	}
	if !f.stalls(c, &f.boss, now) {
		return
	}
	useless := now.Sub(f.boss.moved) > f.fr.opts.PeerPatience
	if useless && !f.upstreamAllowed() {
		f.fail(cmp.Or(f.upErr, content.ErrUnavailable))
		return
	}
	f.apart = useless
	f.fr.log.Info("coordinator stalls", "digest", f.digest, "peer", c, "silent", now.Sub(f.boss.heard), "noOrders", now.Sub(f.boss.moved))
	f.drop()
}

// coordinator is whom the fetch reports to now, "" where to no one. The caller holds f.mu.
func (f *fetch) coordinator() peer.ID {
	if f.session == nil {
		return ""
	}
	return f.session.Coordinator
}

func (f *fetch) hopeless() error {
	if f.upErr != nil {
		return f.upErr
	}
	return content.ErrNotFound
}

// setSize makes room for the blob, once. The caller holds f.mu; it is released meanwhile, for what an earlier boot has left
// is read and hashed first, and no caller is to wait for that longer than he wants.
func (f *fetch) setSize(size int64) {
	f.awaitSizing()
	if f.size >= 0 || f.err != nil {
		return
	}
	f.sizing = true
	f.mu.Unlock()
	ing, err := f.fr.ingest(f.digest, size)
	f.mu.Lock()
	f.sizing = false
	defer f.broadcast()
	if err != nil {
		f.fail(err)
		return
	}
	f.ing = ing
	if f.err != nil { // end gives it back
		return
	}
	n := uint(ing.Len())
	f.size, f.chunks = size, make([]chunk, n)
	f.need, f.roots, f.todo = bitset.New(n), bitset.New(n), bitset.New(n)
	f.absent = int(n)
	for i := range f.chunks {
		if ing.Has(i) { // of an earlier try
			f.chunks[i].present, f.chunks[i].source = true, content.FromLocal
			f.absent--
			_, n := content.ChunkRange(size, i)
			f.kept += n
		}
	}
	if size == 0 {
		f.land(0, content.ChunkCID(nil), nil, content.FromLocal)
	}
	f.broadcast()
	f.tell(schedule.Report{Size: size}) // before any need, which means nothing to a coordinator that knows no size
	if f.alone {
		f.demand(0, len(f.chunks)-1)
	}
	f.finishIfComplete()
}

// awaitSizing waits while another goroutine makes room. The caller holds f.mu.
func (f *fetch) awaitSizing() {
	for f.sizing {
		changed := f.changed
		f.mu.Unlock()
		<-changed
		f.mu.Lock()
	}
}

// demand adds chunks first to last to what is needed. The caller holds f.mu.
func (f *fetch) demand(first, last int) {
	var added []schedule.Run
	for i := first; i <= last; i++ {
		if f.need.Test(uint(i)) {
			continue
		}
		f.need.Set(uint(i))
		if !f.chunks[i].present {
			f.missing++
			if k := len(added) - 1; k >= 0 && added[k].End() == i {
				added[k].Count++
			} else {
				added = append(added, schedule.Run{First: i, Count: 1})
			}
		}
	}
	f.position = uint(first)
	if len(added) > 0 {
		f.tell(schedule.Report{Need: added})
		f.pump()
	}
}

// land stores a chunk whose bytes were checked against c. The caller holds f.mu; it is released for the writing.
func (f *fetch) land(i int, c cid.Cid, data []byte, from content.Source) {
	if f.chunks[i].present || f.ing == nil {
		return
	}
	if _, n := content.ChunkRange(f.size, i); int64(len(data)) != n {
		f.mismatch(fmt.Errorf("chunk %d is of %d bytes, want %d: %w", i, len(data), n, content.ErrDigestMismatch))
		return
	}
	ing := f.ing
	f.mu.Unlock()
	err := ing.WriteChunk(i, c, data)
	if err == nil {
		if b, e := blocks.NewBlockWithCid(data, c); e == nil {
			f.fr.opts.Swarm.Have(b)
		}
	}
	f.mu.Lock()
	switch {
	case errors.Is(err, content.ErrClosed):
		return
	case errors.Is(err, content.ErrDigestMismatch):
		f.mismatch(err)
		return
	case err != nil:
		f.fail(err)
		return
	case f.chunks[i].present:
		return
	}
	ch := &f.chunks[i]
	ch.present, ch.source, ch.asked = true, from, ""
	f.absent--
	if f.need.Test(uint(i)) {
		f.missing--
	}
	f.roots.Clear(uint(i))
	f.todo.Clear(uint(i))
	n := int64(len(data))
	f.arrived += n
	switch from {
	case content.FromPeer:
		f.countBytes(n)
		f.fromPeers += n
	case content.FromUpstream:
		f.fromUpstream += n
	}
	f.broadcast()
	f.finishIfComplete()
}

// tell reports to the coordinator, if there is one just now; joining anew tells everything. The caller holds f.mu.
func (f *fetch) tell(r schedule.Report) {
	if f.session != nil && !r.Empty() {
		f.session.Send(r)
	}
}

// said reports the chunks that arrived. The caller holds f.mu.
func (f *fetch) said() {
	if len(f.unsaid) > 0 {
		have := f.unsaid
		f.unsaid = nil
		f.tell(schedule.Report{Have: have})
	}
}

// finishIfComplete starts the checking of the digest once every chunk is here. The caller holds f.mu.
func (f *fetch) finishIfComplete() {
	if f.absent == 0 && !f.finishing && f.err == nil {
		f.finishing = true
		f.fr.wg.Go(f.finish)
	}
}

// finish checks the digest, lets the last chunk go, and makes the blob a committed one.
func (f *fetch) finish() {
	err := f.ing.Verify(f.ctx)
	f.mu.Lock()
	switch {
	case errors.Is(err, content.ErrDigestMismatch):
		f.mismatch(err)
		f.mu.Unlock()
		return
	case err != nil:
		f.fail(err)
		f.mu.Unlock()
		return
	}
	f.verified = true
	f.fr.sizes.Add(f.digest, f.size)
	f.fr.m.duration.Observe(time.Since(f.start).Seconds())
	f.said()
	f.tell(schedule.Report{Complete: true})
	f.broadcast()
	mediaType := f.mediaType
	manifest := f.req.Kind == content.Manifest
	f.mu.Unlock()

	if manifest {
		mediaType = f.fr.learnFrom(f.ing, mediaType)
	}
	// Callers are served already: commit even when the last of them has gone, unless the node stops.
	err = f.ing.Commit(f.fr.ctx, mediaType)
	if err != nil {
		f.fr.log.Warn("blob not kept", "digest", f.digest, "error", err)
	}
	f.settleBlame()
	f.mu.Lock()
	f.committed = err == nil
	if err != nil {
		f.err = fmt.Errorf("fetch %s: %w", f.digest, err) // for who waits for the commit; readers go by verified
	}
	f.broadcast()
	f.mu.Unlock()
	f.cancel()
}

// end releases what the fetch holds. It runs when no orders are followed any more.
func (f *fetch) end() {
	f.mu.Lock()
	f.fail(context.Cause(f.ctx)) // does nothing to one that has ended already
	f.closing = true
	f.awaitSizing()
	outcome := "complete"
	switch {
	case f.verified:
	case errors.Is(f.err, context.Canceled):
		outcome = "abandoned"
	default:
		outcome = "failed"
		f.fr.log.Warn("fetch failed", "digest", f.digest, "error", f.err)
	}
	f.fr.m.fetches.WithLabelValues(outcome).Inc()
	for c := range f.byCID {
		f.fr.opts.Swarm.Forget(c, f)
	}
	err, committed, ing := f.err, f.committed, f.ing
	f.mu.Unlock()

	defer close(f.released)
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

// tick looks after time: peers that stall, reports that wait, and a fetch that no one wants any more.
func (f *fetch) tick(ctx context.Context) {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			f.mu.Lock()
			f.passOver(now)
			f.hear(now)
			f.said()
			if f.moved.Swap(false) || f.awaited.Load() > 0 || f.sizing {
				f.tell(schedule.Report{Reading: true})
			}
			f.forsake(now)
			// One that is to tell liars from those misled goes on, whoever waits.
			if f.readers == 0 && !f.finishing && len(f.suspects) == 0 && now.Sub(f.idle) > f.fr.opts.Linger {
				f.fail(context.Canceled)
			}
			f.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

func (f *fetch) status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Status{
		Digest: f.digest, Repository: f.req.Repository, Size: f.size, Arrived: f.arrived, FromPeers: f.fromPeers,
		FromUpstream: f.fromUpstream, Readers: f.readers, Started: f.start,
	}
	if f.session != nil {
		s.Coordinator = f.session.Coordinator
	}
	return s
}

// runsOf lists the runs of set bits.
func runsOf(b *bitset.BitSet) []schedule.Run {
	var out []schedule.Run
	for i, ok := b.NextSet(0); ok; {
		end, more := b.NextClear(i)
		if !more {
			end = b.Len()
		}
		out = append(out, schedule.Run{First: int(i), Count: int(end - i)})
		i, ok = b.NextSet(end)
	}
	return out
}
