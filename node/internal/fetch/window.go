package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// leastAhead is how many chunks a reader of a window has before it at the least.
const leastAhead = 2

// window is the moving part of a blob for which the store has no room. A reader needs a few chunks at a time, from
// where it is. What it leaves behind stays for others as long as the slots last. Chunks that peers have too go first.
// So all nodes together still hold what was read from upstream once, for nodes that begin later. The caller of its
// methods holds the fetch's lock.
//
// Who reads all of the blob takes its sum. Nobody else sees all of it, so where the end of a part has to wait for the
// digest, the node reads the whole once itself, through the same window, beside those who read parts. The window takes
// no chunk that differs from what it held before. So what matches in the end is what was given.
type window struct {
	slots   int
	readers map[int]*span
	taken   int // slots that hold a chunk, or will in a moment
	// shared and own are the chunks that came from peers and from upstream, in the order in which they did.
	shared, own []int
	proving     bool // the node itself reads the whole, or has
	proved      bool // it has found that it matches
}

// span is what a reader is at: chunk at, of a part that began at first and ends with last.
type span struct{ first, at, last int }

// newWindow is nil for a blob that is kept whole.
func newWindow(slots int) *window {
	if slots == 0 {
		return nil
	}
	return &window{slots: slots, readers: map[int]*span{}}
}

// ahead is what a reader is to have before it. Half of the slots are for what lies behind. Who has just come begins
// with little, because others may come beside it, and leave less for each.
func (w *window) ahead(r *span) schedule.Run {
	n := max(leastAhead, w.slots/2/max(1, len(w.readers)))
	if whole := r.first == 0 && len(w.readers) == 1; !whole {
		n = min(n, leastAhead+r.at-r.first)
	}
	return schedule.Run{First: r.at, Count: min(n, r.last+1-r.at)}
}

// enter adds a reader, unless that would leave too little for each. One more place is kept for the node itself.
func (w *window) enter(number int, r *span) (ok bool) {
	if (len(w.readers)+2)*leastAhead > w.slots/2 {
		return false
	}
	w.readers[number] = r
	return true
}

// leave takes a reader away.
func (w *window) leave(number int) { delete(w.readers, number) }

// advance notes that a reader has come to chunk i. It returns what the reader is to have before it: nothing more where
// there is no window.
func (w *window) advance(reader, i int) (ahead schedule.Run) {
	if w != nil && w.readers[reader] != nil {
		w.readers[reader].at = i
		ahead = w.ahead(w.readers[reader])
	}
	return ahead
}

// wanted reports whether a reader is about to read chunk i.
func (w *window) wanted(i int) bool {
	for _, r := range w.readers {
		if run := w.ahead(r); run.First <= i && i < run.End() {
			return true
		}
	}
	return false
}

// take takes a slot for a chunk that has come, and names the chunk that has to go for it, -1 where none has. It fails
// where each is about to be read.
func (w *window) take() (victim int, err error) {
	if w.taken < w.slots {
		w.taken++
		return -1, nil
	}
	for _, came := range []*[]int{&w.shared, &w.own} {
		k := slices.IndexFunc(*came, func(i int) bool { return !w.wanted(i) })
		if k >= 0 {
			victim = (*came)[k]
			*came = slices.Delete(*came, k, k+1)
			return victim, nil
		}
	}
	return -1, fmt.Errorf("each of the %d chunks of the window is about to be read: %w", w.slots, content.ErrNoSpace)
}

// filling reports whether chunks are on their way into slots.
func (w *window) filling() bool { return w.taken > len(w.shared)+len(w.own) }

// narrow has the window do with the slots that are taken. It reports whether these are enough for its readers.
func (w *window) narrow() bool {
	if w == nil {
		return false
	}
	w.slots = min(w.slots, w.taken)
	return w.slots >= (len(w.readers)+1)*leastAhead
}

// filled notes which chunk the slot has that was taken.
func (w *window) filled(i int, from provenance) {
	if from == fromUpstream {
		w.own = append(w.own, i)
		return
	}
	w.shared = append(w.shared, i)
}

// place opens where the chunks of a blob go: all of it if the store has room, else a window if that helps who waits.
func (f *fetch) place(size int64) (*store.Ingest, error) {
	f.mu.Lock()
	origin := store.Origin{Source: f.keptOf, Pool: store.PoolOf(f.req), Grain: f.grain}
	f.mu.Unlock()
	ing, err := f.fr.ingest(f.digest, size, origin)
	if !errors.Is(err, content.ErrNoSpace) || !f.mayShare() {
		return ing, err
	}
	ing, windowErr := f.fr.opts.Store.Window(f.digest, size, origin)
	for errors.Is(windowErr, content.ErrNoSpace) && f.fr.closeIdleWindow() {
		ing, windowErr = f.fr.opts.Store.Window(f.digest, size, origin)
	}
	if windowErr != nil {
		return ing, errors.Join(err, windowErr)
	}
	f.fr.m.windows.Inc()
	f.fr.log.Warn("no room for the whole: it is shared through a window", "digest", f.digest, "size", size, "chunks",
		ing.Slots(), "error", err)
	return ing, nil
}

// closeIdleWindow ends the fetch through a window that nobody has read for the longest time. Such a window stays for
// nodes that begin later, but not where another needs its room. It reports whether there was one.
func (fr *Fetcher) closeIdleWindow() bool {
	// Nobody reads it, not even the node itself.
	idle := func(f *fetch) bool {
		w := f.window
		return w != nil && f.readers == 0 && f.err == nil && (w.proved || !w.proving)
	}
	var oldest *fetch
	var since time.Time
	for _, f := range fr.running() {
		f.mu.Lock()
		if idle(f) && (oldest == nil || f.idle.Before(since)) {
			oldest, since = f, f.idle
		}
		f.mu.Unlock()
	}
	if oldest == nil {
		return false
	}
	oldest.mu.Lock()
	still := idle(oldest)
	if still {
		oldest.failNow(context.Canceled)
	}
	oldest.mu.Unlock()
	if still {
		<-oldest.released
	}
	return true
}

// mayShare reports whether somebody waits whom a window serves: a reader of all of the blob, once.
func (f *fetch) mayShare() bool {
	wrong, _ := f.fr.doubts.passes(time.Now(), f.digest)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.passing && f.try == firstTry && f.req.Kind == content.Blob && !wrong
}

// makeWay gives a chunk that has come a slot. Where others are just being filled it waits for what comes of them. undo,
// called with f.mu held, takes that back where it is not used.
func (f *fetch) makeWay() (undo func(), err error) {
	f.mu.Lock()
	w, ing := f.window, f.ing
	f.mu.Unlock()
	if w == nil {
		return func() {}, nil
	}
	victim := -1
	ended := f.await(f.ctx, func() bool {
		if victim, err = w.take(); err != nil {
			return !w.filling()
		}
		if victim >= 0 {
			f.part.Drop(victim)
		}
		return true
	})
	if err = errors.Join(ended, err); err != nil {
		return nil, err
	}
	if victim >= 0 {
		if c := ing.CID(victim); ing.Drop(victim) {
			f.fr.opts.Swarm.Gone(c)
		}
	}
	return func() { w.taken-- }, nil
}

// passes reports whether the blob goes through a window.
func (f *fetch) passes() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.window != nil
}

// passThrough gives a part of a blob through a window, or all of it, whose end waits for the digest. Who reads all
// takes the sum itself, because nothing else sees all of the blob.
func (r *reader) passThrough(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	f := r.f
	if r.keep || n < f.cut.Size() && f.fr.opts.VerifiedRanges {
		return nil, fmt.Errorf("%s: no room for the whole: %w", f.digest, content.ErrNoSpace)
	}
	if n == 0 {
		return io.NopCloser(io.LimitReader(nil, 0)), nil
	}
	s := f.streamThrough(ctx, off, n, false)
	if s == nil {
		return nil, fmt.Errorf("%s: its window has enough readers: %w", f.digest, content.ErrNoSpace)
	}
	if n < f.cut.Size() {
		if s.end = off+n == f.cut.Size() && r.unchecked && !r.part; s.end {
			f.prove()
		}
		return s, nil
	}
	return struct {
		io.Reader
		io.Closer
	}{&judged{content.NewVerifier(s, f.digest, n), n, nil, f.passedWrong}, s}, nil
}

// streamThrough is a reader of a part of a blob that passes by. nil: there are enough. own: it is the node itself.
func (f *fetch) streamThrough(ctx context.Context, off, n int64, own bool) *stream {
	f.mu.Lock()
	defer f.mu.Unlock()
	first := f.cut.At(off)
	at := &span{first: first, at: first, last: f.cut.At(off + n - 1)}
	number := f.streams + 1
	if own {
		f.window.readers[number] = at
	} else if !f.window.enter(number, at) {
		return nil
	}
	f.streams = number
	ctx, cancel := context.WithCancel(ctx)
	return &stream{f: f, number: number, ctx: ctx, cancel: cancel, pos: off, left: n}
}

// prove has the node read the whole through its window, once, to find out whether it matches.
func (f *fetch) prove() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.window.proving || f.closing {
		return
	}
	f.window.proving = true
	f.fr.wg.Go(func() {
		err := f.readWhole()
		if errors.Is(err, content.ErrDigestMismatch) {
			f.passedWrong(err)
		} else if err != nil {
			f.fail(err)
		}
		f.update(func(time.Time) {
			f.window.proved = err == nil
			f.changed.ring()
		})
	})
}

// readWhole reads all of the blob through the window. It fails where that does not match the digest, and ends with the
// fetch.
func (f *fetch) readWhole() error {
	s := f.streamThrough(f.ctx, 0, f.cut.Size(), true)
	defer func() { _ = s.Close() }()
	sum, buf := f.digest.Verifier(), make([]byte, f.cut.Chunk())
	for {
		n, err := s.Read(buf)
		_, _ = sum.Write(buf[:n]) // a hash never fails
		switch {
		case err == io.EOF && sum.Verified():
			return nil
		case err == io.EOF:
			return fmt.Errorf("the bytes that passed by: %w", content.ErrDigestMismatch)
		case errors.Is(err, content.ErrNoSpace) && f.ended() == nil: // a chunk was let go of in this moment
		case err != nil:
			return fmt.Errorf("read the whole: %w", err)
		}
	}
}

// passedWrong notes that a reader was given wrong bytes through the window.
func (f *fetch) passedWrong(err error) {
	f.mismatch(err)
	f.mu.Lock()
	c := f.charge
	f.mu.Unlock()
	if c != nil { // else the fetch had ended already
		f.fr.doubts.passedWrong(*c)
	}
}
