package fetch

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// A caller may wait at one place while much else of its pull comes, because all of that shares one link. What decides
// is how much comes. On a slow link each has to wait for longer. To read for a caller what others are about to bring
// would only cost that link and the registry more. Time alone decides where an end is near.
const (
	// longHunger is how long such a caller waits at the least, and fairShare how many bytes come before him.
	longHunger = 30 * time.Second
	fairShare  = 48 * content.ChunkSize
	// againShare is the same after a relief: a caller that has waited for so long does not wait as long at each place.
	// So what is read in vain at the most is a small part of what comes.
	againShare = 16 * content.ChunkSize
	// The front gives a blob up of which nothing came for 60 s, and one whose size is not known after 25 s. Reading a
	// chunk takes a while, too.
	blobStandsStill, sizeStaysAway = 40 * time.Second, 15 * time.Second
	// longestHunger is how long anybody waits at one place. An answer that has begun is kept alive for two minutes.
	longestHunger = 100 * time.Second
	// longestInVain is how long, whatever else comes of the pull, while no chunk of the blob does. containerd gives an
	// image up after 5 minutes without a byte.
	longestInVain = 4 * time.Minute
)

const (
	// reliefSteps is how often, in Options.Patience, it is looked at how a caller who waits fares.
	reliefSteps = 20
	// mostPatience is the part of Options.Patience that a caller waits at the least while another node is known to wait
	// for the registry. A registry that is asked by one more answers no sooner. But the other may be cut off from it,
	// and what is left is for asking it.
	mostPatience = 0.75
	// lastCall is the part of Options.Patience after which nobody is waited for any more: the caller's front is about
	// to send it away.
	lastCall = 0.8
	// leastWait is the part that others have in any case to bring what is wanted, half of it or all by eagerness.
	leastWait = 0.15
	// beforehand is the part of a caller's patience that it may have used up before it came here. The rest is for
	// others to bring what it waits for.
	beforehand = 0.75
	// reliefPause is for how long a vain relief is not repeated, and how soon after one that helped the next may
	// follow.
	reliefPause = 2 * time.Second
)

// hunger is a caller's waiting for a chunk, or for the blob's size. Before the caller is sent away this node reads what
// he waits for from upstream: whoever was to bring it may be alive and silent, be asked too much, or not tell the
// truth. A piece is read twice then, in place of a whole layer by the caller.
type hunger struct {
	f      *fetch
	want   func() int              // the chunk; the caller of it holds f.mu
	giveUp context.CancelCauseFunc // sends the caller away; nil: his waiting has another bound
	timer  *time.Timer

	// Guarded by f.mu.
	pull, blob lull
	since      time.Time
	seen       int64
	moved      time.Time // when bytes of the pull were last seen to come; where that was before it began, a while later
	quiet      time.Time // the same with nothing added
	accused    bool      // the peer that was asked has been passed over
	stopped    bool
	patience   time.Duration // with nothing moving
	most       time.Duration // the same, while the coordinator says that another node reads from upstream
	wait       wait          // with something moving
}

// wait is how long a caller waits at one place while bytes of its pull come.
type wait struct {
	since  time.Time // when it began
	own    lull      // of chunks of the blob
	others int64     // bytes by others of the pull when it began
	share  int64     // how many bytes of the pull come before it
	least  time.Duration
	still  time.Duration // in which no chunk of the blob comes
}

// long reports whether it has lasted for long enough.
func (w *wait) long(now time.Time, others, own int64) bool {
	still, waited := w.own.lasts(now, own, false), now.Sub(w.since)
	return waited >= w.least && others-w.others >= w.share || still >= w.still || waited >= longestHunger
}

// hungry watches over a caller's waiting until the returned function is called. The front counts from when the caller
// came, zero where that does not matter any more. Before it came here it may have waited to be let in, and for what
// other nodes said to have and did not bring.
func (f *fetch) hungry(came time.Time, giveUp context.CancelCauseFunc, want func() int) (sated func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	h := f.hunger(now, came)
	h.want, h.giveUp = want, giveUp
	h.timer = time.AfterFunc(h.step(now), h.look)
	return func() {
		h.timer.Stop()
		f.mu.Lock()
		defer f.mu.Unlock()
		h.stopped = true
	}
}

// hunger begins now, of a caller that came at a time. The caller of it holds f.mu.
func (f *fetch) hunger(now, came time.Time) *hunger {
	// Nodes wait for the same together. The first to lose patience is who the others have the piece from.
	spread := 1 + f.eagerness()/2
	h := &hunger{
		f: f, since: now, seen: f.byOthers(), moved: now,
		patience: time.Duration(spread * float64(f.fr.opts.Patience/2)),
		most:     time.Duration((mostPatience + spread/reliefSteps) * float64(f.fr.opts.Patience)),
	}
	h.quiet = now
	if !came.IsZero() {
		still := f.pull.still(now, came)
		h.quiet = now.Add(-still)
		h.moved = now.Add(-min(still, time.Duration(beforehand*float64(h.patience))))
	}
	h.wait = newWait(now, spread, h.patience, f.cut.Size() >= 0, now.Sub(f.reliefs.relieved) < longHunger)
	h.wait.others, h.wait.own.bytes = h.seen, f.tally.here()
	return h
}

// newWait is how a caller's waiting begins, for a chunk or the size; again: it has waited for long already, at another
// place.
func newWait(now time.Time, spread float64, patience time.Duration, sized, again bool) wait {
	w := wait{
		since: now, own: lull{since: now}, share: fairShare,
		least: time.Duration(spread * float64(longHunger)),
		still: time.Duration((1 + spread) / 2 * float64(blobStandsStill)),
	}
	if !sized {
		w.still = time.Duration(spread * float64(sizeStaysAway))
	}
	if again {
		w.share, w.least = againShare, patience
	}
	return w
}

// eagerness is a number from 0 to 1 of this node's and the blob's own.
func (f *fetch) eagerness() float64 {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(f.fr.opts.Swarm.ID()))
	_, _ = sum.Write([]byte(f.digest)) // a hash never fails
	return float64(binary.BigEndian.Uint16(sum.Sum(nil)[6:])) / (1 << 16)
}

// byOthers is how many bytes of the pull have come but for those of reliefs.
func (f *fetch) byOthers() int64 { return f.pull.all.Load() - f.pull.own.Load() }

// reliefs is what is known of those of one fetch. The fetch's lock guards it.
type reliefs struct {
	relieving          bool
	relieved, noRelief time.Time // when the last helped, and before when none is tried
	othersThen         int64     // byOthers when the last began
}

// feed reports whether callers live on them: nothing else has come since the last.
func (r *reliefs) feed(now time.Time, others int64) bool {
	return now.Sub(r.relieved) < reliefPause && others == r.othersThen
}

// untilLastCall is for how much longer others may be waited for at the most.
func (h *hunger) untilLastCall(now time.Time) time.Duration {
	patience := float64(h.f.fr.opts.Patience)
	here := time.Duration((1+h.f.eagerness())/2*leastWait*patience) - now.Sub(h.since)
	return max(here, time.Duration(lastCall*patience)-now.Sub(h.quiet))
}

// step is when to look next: soon, where the caller starves or has no time any more.
func (h *hunger) step(now time.Time) time.Duration {
	step, left := h.f.fr.opts.Patience/reliefSteps, h.untilLastCall(now)
	if h.f.reliefs.feed(now, h.f.byOthers()) || left <= 0 {
		return step / 4
	}
	return min(step, left)
}

func (h *hunger) look() {
	f := h.f
	f.update(func(now time.Time) {
		if h.stopped || f.err != nil || f.verified {
			return
		}
		if h.giveUp != nil && h.inVain(now) {
			h.giveUp(fmt.Errorf("%s: nothing has come of it for long: %w", f.digest, content.ErrUnavailable))
			return
		}
		if n := f.byOthers(); n != h.seen {
			h.seen, h.moved, h.quiet = n, now, now
		}
		patience := h.patience
		if f.part.Awaited(now) {
			patience = max(patience, h.most)
		}
		still := now.Sub(h.moved) >= patience || h.untilLastCall(now) <= 0
		if long := h.wait.long(now, h.seen, f.tally.here()); still || long || f.reliefs.feed(now, h.seen) {
			h.relieve(now, still)
		}
		h.timer.Reset(h.step(now))
	})
}

// inVain reports whether the caller has waited for long enough, however often what he waits for is asked for anew. Each
// node that is leased it may wait for its own answer, one after the other. The caller of it holds f.mu.
func (h *hunger) inVain(now time.Time) bool {
	f := h.f
	busy := h.want() < 0 || f.rooming.Load() > 0 // all is here and is checked, or the disk takes its time
	most := max(longestHunger, f.fr.opts.Patience)
	pull, blob := h.pull.lasts(now, f.pull.all.Load(), busy), h.blob.lasts(now, f.tally.here(), busy)
	return pull >= most || blob >= max(longestInVain, most)
}

// lull is since when no more bytes have come than these.
type lull struct {
	bytes int64
	since time.Time
}

// lasts is for how long it has lasted. One of the zero value begins now, and so does one while the node is busy.
func (l *lull) lasts(now time.Time, bytes int64, busy bool) time.Duration {
	if busy || bytes != l.bytes || l.since.IsZero() {
		l.bytes, l.since = bytes, now
	}
	return now.Sub(l.since)
}

// relieve has what the caller waits for read from upstream, or first asked of another peer. The caller holds f.mu.
func (h *hunger) relieve(now time.Time, still bool) {
	f, i := h.f, h.want()
	if f.reliefs.relieving || f.rooming.Load() > 0 || now.Before(f.reliefs.noRelief) || f.askers.next() == nil ||
		i < 0 {
		return
	}
	if f.askers.secede() {
		f.part.Secede(now)
		return // which begins with what is missing first
	}
	// Clients of a model hub give up after 10 s without a byte, and it is a machine of many that does not answer.
	hangs := f.req.File != "" && now.Sub(h.since) >= h.most
	if f.unanswered.Load() > 0 && (i >= f.part.Len() || f.part.Reads(i)) && !hangs {
		return // upstream is asked already, and thinks
	}
	if i < f.part.Len() {
		asked := f.part.AskedOf(i)
		switch {
		case f.part.Has(i):
			return
		case still && asked != "" && !h.accused: // another may have read it meanwhile
			h.accused = true
			f.fr.log.Warn("peer does not send a chunk that a caller waits for", "digest", f.digest, "chunk", i,
				"peer", asked, "coordinator", f.part.Coordinator(), "waited", now.Sub(h.since))
			f.part.PassOver(now, i)
			if h.untilLastCall(now) > 0 {
				return
			}
		case !still && f.part.Reads(i):
			return
		}
	}
	f.fr.log.Warn("caller waits for a chunk that nobody brings: it is read from upstream", "digest", f.digest,
		"chunk", i, "coordinator", f.part.Coordinator(), "waited", now.Sub(h.since))
	f.fr.m.reliefs.Inc()
	f.reliefs.relieving, f.reliefs.othersThen = true, f.byOthers()
	r := f.part.Lacks(i)
	f.fr.wg.Go(func() { f.relief(r) })
}

// relief reads a run that was not leased. It takes no turn among the leased ones, which may be what stands still.
func (f *fetch) relief(r schedule.Run) {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	f.mu.Lock()
	end := f.cut.Start(r.End()) // in bytes, for while the size is not known neither is how the blob is cut
	f.mu.Unlock()
	here := func() bool {
		i := r.First
		for i < f.part.Len() && f.cut.Start(i) < end && f.part.Has(i) {
			i++
		}
		return i > r.First && (i == f.part.Len() || f.cut.Start(i) >= end)
	}
	f.fr.wg.Go(func() { // what comes from elsewhere meanwhile is not sent twice
		if f.await(ctx, here) == nil {
			cancel()
		}
	})
	err := f.read(ctx, r, true)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reliefs.relieving = false
	switch {
	case err == nil:
		f.reliefs.relieved = time.Now()
	case here():
	case f.ctx.Err() == nil:
		f.reliefs.noRelief = time.Now().Add(reliefPause)
		if !f.askers.outdated(err) {
			f.upErr = err
		}
		f.fr.log.Warn("upstream did not help", "digest", f.digest, "first", r.First, "error", err)
	}
}
