package fetch

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"time"

	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// longHunger is how long a caller waits at one place, while much else of its pull comes, until this node reads what it
// waits for itself: half of what the front allows for it at the most.
const longHunger = 30 * time.Second

const (
	// reliefSteps is how often, in Options.Patience, it is looked at how a caller who waits fares.
	reliefSteps = 20
	// mostPatience is the part of Options.Patience that a caller waits at the least while another node is known to wait
	// for the registry. A registry that is asked by one more answers no sooner. But the other may be cut off from it,
	// and what is left is for asking it.
	mostPatience = 0.75
	// reliefPause is for how long a vain relief is not repeated, and how soon after one that helped the next may
	// follow.
	reliefPause = 2 * time.Second
)

// hunger is a caller's waiting for a chunk, or for the blob's size. Before the caller is sent away this node reads what
// he waits for from upstream: whoever was to bring it may be alive and silent, be asked too much, or not tell the
// truth. A piece is read twice then, in place of a whole layer by the caller.
type hunger struct {
	f     *fetch
	want  func() int // the chunk; the caller of it holds f.mu
	timer *time.Timer

	// Guarded by f.mu.
	since    time.Time
	seen     int64
	moved    time.Time // when bytes of the pull were last seen to come
	accused  bool      // the peer that was asked has been passed over
	stopped  bool
	patience time.Duration // with nothing moving
	most     time.Duration // the same, while the coordinator says that another node reads from upstream
	long     time.Duration // with something moving
}

// hungry watches over a caller's waiting until the returned function is called.
func (f *fetch) hungry(want func() int) (sated func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	// Nodes wait for the same together. The first to lose patience is who the others have the piece from.
	spread := 1 + f.eagerness()/2
	h := &hunger{
		f: f, want: want, since: now, seen: f.byOthers(), moved: now,
		patience: time.Duration(spread * float64(f.fr.opts.Patience/2)),
		most:     time.Duration((mostPatience + spread/reliefSteps) * float64(f.fr.opts.Patience)),
		long:     time.Duration(spread * float64(longHunger)),
	}
	if now.Sub(f.relieved) < longHunger {
		h.long = h.patience // it has waited for long already, at another place
	}
	h.timer = time.AfterFunc(h.step(now), h.look)
	return func() {
		h.timer.Stop()
		f.mu.Lock()
		defer f.mu.Unlock()
		h.stopped = true
	}
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

// starves reports whether the caller lives on reliefs: nothing else has come since the last. The caller holds f.mu.
func (f *fetch) starves(now time.Time) bool {
	return now.Sub(f.relieved) < reliefPause && f.byOthers() == f.othersThen
}

// step is when to look next: soon, where the caller starves.
func (h *hunger) step(now time.Time) time.Duration {
	step := h.f.fr.opts.Patience / reliefSteps
	if h.f.starves(now) {
		return step / 4
	}
	return step
}

func (h *hunger) look() {
	f := h.f
	f.update(func(now time.Time) {
		if h.stopped || f.err != nil || f.verified {
			return
		}
		if n := f.byOthers(); n != h.seen {
			h.seen, h.moved = n, now
		}
		patience := h.patience
		if f.part.Awaited(now) {
			patience = max(patience, h.most)
		}
		still := now.Sub(h.moved) >= patience
		if still || now.Sub(h.since) >= h.long || f.starves(now) {
			h.relieve(now, still)
		}
		h.timer.Reset(h.step(now))
	})
}

// relieve has what the caller waits for read from upstream, or first asked of another peer. The caller holds f.mu.
func (h *hunger) relieve(now time.Time, still bool) {
	f, i := h.f, h.want()
	if f.relieving || f.rooming.Load() > 0 || now.Before(f.noRelief) || f.askers.next() == nil || i < 0 {
		return
	}
	if f.unanswered.Load() > 0 && (i >= f.part.Len() || f.part.Reads(i)) {
		return // upstream is asked already, and thinks
	}
	if i < f.part.Len() {
		asked := f.part.AskedOf(i)
		switch {
		case f.part.Has(i):
			return
		case still && asked != "" && !h.accused: // another may have read it meanwhile
			h.accused = true
			f.fr.log.Warn("peer does not send what a caller waits for", "digest", f.digest, "chunk", i, "peer", asked,
				"coordinator", f.part.Coordinator(), "waited", now.Sub(h.since))
			f.part.PassOver(now, i)
			return
		case !still && f.part.Reads(i):
			return
		}
	}
	f.fr.log.Warn("caller waits for what nobody brings: it is read from upstream", "digest", f.digest, "chunk", i,
		"coordinator", f.part.Coordinator(), "waited", now.Sub(h.since))
	f.fr.m.reliefs.Inc()
	f.relieving, f.othersThen = true, f.byOthers()
	f.fr.wg.Go(func() { f.relief(schedule.Run{First: i, Count: 1}) })
}

// relief reads a run that was not leased. It takes no turn among the leased ones, which may be what stands still.
func (f *fetch) relief(r schedule.Run) {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	here := func() bool { return r.First < f.part.Len() && f.part.Has(r.First) }
	f.fr.wg.Go(func() { // what comes from elsewhere meanwhile is not sent twice
		if f.await(ctx, here) == nil {
			cancel()
		}
	})
	err := f.read(ctx, r, true)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.relieving = false
	switch {
	case err == nil:
		f.relieved = time.Now()
	case here():
	case f.ctx.Err() == nil:
		f.noRelief = time.Now().Add(reliefPause)
		f.upErr = err
		f.fr.log.Warn("upstream did not help", "digest", f.digest, "first", r.First, "error", err)
	}
}
