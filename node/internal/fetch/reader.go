package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// local reads a blob that the store has, and counts what is read.
type local struct {
	blob *store.Blob
	m    *metrics
}

func (l *local) Size() int64    { return l.blob.Size() }
func (l *local) Arrived() int64 { return l.blob.Size() }
func (l *local) Held() bool     { return true }
func (l *local) Close() error   { return l.blob.Close() }

func (l *local) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := l.blob.Range(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return &counted{ReadCloser: r, m: l.m, from: fromHere}, nil
}

// provenance is where this node had bytes from when it was asked for them. The values label the metric
// shoal_served_bytes_total.
type provenance string

const (
	fromHere     provenance = "local"
	fromPeer     provenance = "peer"
	fromUpstream provenance = "upstream"
)

// counted counts the bytes that a caller is given.
type counted struct {
	io.ReadCloser
	m    *metrics
	from provenance
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.m.served.WithLabelValues(string(c.from)).Add(float64(n))
	return n, err
}

// WriteTo keeps the way to sendfile open.
func (c *counted) WriteTo(w io.Writer) (int64, error) {
	n, err := io.Copy(w, c.ReadCloser)
	c.m.served.WithLabelValues(string(c.from)).Add(float64(n))
	return n, err
}

// reader follows a blob that is arriving.
type reader struct {
	f         *fetch
	part      bool // the caller asked for a part only, wherever it lies
	unchecked bool // it checks no digest, as clients of model hubs
	keep      bool // it has no use for a blob that passes by
	came      time.Time
	once      sync.Once
}

func (r *reader) Size() int64 { return r.f.knownSize() }

// Arrived is the bytes of the chunks that are here, those of an earlier try among them.
func (r *reader) Arrived() int64 {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	return r.f.tally.here()
}

func (r *reader) Close() error {
	r.once.Do(r.f.detach)
	return nil
}

func (r *reader) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	size := r.Size()
	if off < 0 || n < 0 || off > size-n {
		return nil, fmt.Errorf("%s: range of %d bytes at %d is outside its %d bytes", r.f.digest, n, off, size)
	}
	if r.f.passes() {
		return r.passThrough(ctx, off, n)
	}
	// Who asked for a part may not have known that it is all there is.
	part := r.part && n < size
	held := r.f.fr.opts.VerifiedRanges && n < size
	if n > 0 || size == 0 {
		cut := r.f.cut
		first, last := cut.At(off), cut.At(off+max(n, 1)-1)
		// Who reads up to the end, and not a part only, has the bytes before it from an earlier answer. The end is
		// given when the digest of the whole is known to match.
		if toEnd := off+n == size && !part; held || toEnd {
			first, last = 0, cut.Len()-1
		}
		r.f.demand(first, last)
	}
	ctx, cancel := context.WithCancel(ctx)
	return &stream{f: r.f, number: r.f.number(), came: r.came, ctx: ctx, cancel: cancel, pos: off, left: n, held: held,
		early: part}, nil
}

// ensure waits until the whole blob is committed.
func (r *reader) ensure(ctx context.Context) error {
	f := r.f
	if f.passes() {
		return fmt.Errorf("ensure %s: %w", f.digest, content.ErrNoSpace)
	}
	f.demand(0, f.cut.Len()-1)
	defer f.hungry(time.Time{}, nil, f.part.FirstAbsent)()
	if err := f.await(ctx, func() bool { return f.committed }); err != nil {
		return fmt.Errorf("ensure %s: %w", f.digest, err)
	}
	return nil
}

// stream is one range of a blob that is arriving. It goes from chunk to chunk as they come.
type stream struct {
	f      *fetch
	number int       // among the fetch's readers
	came   time.Time // when the caller did, which has been given nothing yet; else zero
	ctx    context.Context
	cancel context.CancelFunc
	pos    int64
	left   int64
	held   bool          // until the digest of the whole is known to match
	early  bool          // wants a part alone, whatever others want of the blob
	end    bool          // the last chunk alone is held so, of a blob that passes by
	part   io.ReadCloser // the rest of the current chunk
	from   provenance
}

// next opens the chunk at the stream's position, once it is there. io.EOF: the range is at its end.
func (s *stream) next() error {
	if s.part != nil {
		return nil
	}
	if s.left == 0 {
		return io.EOF
	}
	i := s.f.cut.At(s.pos)
	for {
		if err := s.await(i); err != nil {
			return err
		}
		start, size := s.f.cut.Range(i)
		n := min(s.left, start+size-s.pos)
		part, from, err := s.f.section(s.ctx, i, s.pos-start, n)
		if err == nil {
			s.part, s.from = part, from
			return nil
		}
		if !errors.Is(err, content.ErrNotFound) || !s.f.misses(i) {
			return err
		}
	}
}

// advance notes that n bytes were given to the caller; err is how that ended.
func (s *stream) advance(n int64, err error) error {
	s.pos += n
	s.left -= n
	s.came = time.Time{}
	s.f.fr.m.served.WithLabelValues(string(s.from)).Add(float64(n))
	if s.left > 0 && s.f.cut.At(s.pos) == s.f.cut.At(s.pos-1) && err == nil {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = s.part.Close()
		s.part = nil
	}
	if ended := s.f.ended(); err != nil && ended != nil {
		return fmt.Errorf("%w: %w", ended, err) // what was read is closed when the fetch ends, which says less
	}
	return err
}

func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.next(); err != nil {
		return 0, err
	}
	n, err := s.part.Read(p)
	return n, s.advance(int64(n), err)
}

// WriteTo sends chunk after chunk, each by sendfile where w can.
func (s *stream) WriteTo(w io.Writer) (total int64, err error) {
	for {
		if err := s.next(); err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, err
		}
		n, err := io.Copy(w, s.part)
		total += n
		if err := s.advance(n, err); err != nil {
			return total, err
		}
	}
}

func (s *stream) Close() error {
	s.cancel()
	s.f.update(func(time.Time) {
		s.f.part.RemoveReader(s.number)
		if s.f.window != nil {
			s.f.window.leave(s.number)
		}
	})
	if s.part == nil {
		return nil
	}
	part := s.part
	s.part = nil
	return part.Close()
}

// await waits until chunk i may be given to the caller. The last chunk of a blob that is fetched whole waits for the
// digest of the whole, so that no answer with a wrong byte in it ends as if it were right; so does each where held. Who
// wants a part alone need not know the whole.
func (s *stream) await(i int) error {
	f, held := s.f, s.held || s.end && i == s.f.part.Len()-1
	there := func() bool {
		if f.verified {
			return true
		}
		if w := f.window; w != nil {
			return f.err == nil && f.part.Has(i) && (!held || w.proved)
		}
		if f.err != nil || held {
			return false
		}
		return f.part.Has(i) && (i < f.part.Len()-1 || s.early || !f.part.NeedsAll())
	}
	now := false
	f.update(func(at time.Time) {
		f.part.Demand(at, f.window.advance(s.number, i))
		if now = there(); !now {
			f.part.SetPosition(at, s.number, i)
		}
	})
	if now {
		return nil
	}
	ctx, giveUp := context.WithCancelCause(s.ctx)
	defer giveUp(nil)
	defer f.hungry(s.came, giveUp, func() int {
		if held || f.part.Has(i) {
			return f.part.FirstAbsent()
		}
		return i
	})()
	return f.await(ctx, there)
}

// number gives a reader its number.
func (f *fetch) number() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams++
	return f.streams
}

// misses reports whether chunk i, which was here, has been found to be lost, and has it fetched then.
func (f *fetch) misses(i int) (lost bool) {
	f.update(func(now time.Time) {
		f.tally.missLost(now, f.part, f.ing)
		lost = f.window == nil && f.err == nil && !f.part.Has(i)
	})
	return lost
}

// section opens n bytes from offset off of the present chunk i.
func (f *fetch) section(ctx context.Context, i int, off, n int64) (io.ReadCloser, provenance, error) {
	f.mu.Lock()
	from, ing, err := f.tally.cameFrom[i], f.ing, f.err
	f.mu.Unlock()
	if ing == nil { // it did not match, and was dropped since
		return nil, from, err
	}
	part, err := ing.SectionWriterTo(ctx, i, off, n)
	if errors.Is(err, content.ErrNotFound) && ing.Slots() > 0 { // it was let go of in this moment
		err = fmt.Errorf("%w: %w", content.ErrNoSpace, err)
	}
	if errors.Is(err, content.ErrClosed) { // why it ended says more
		err = cmp.Or(f.ended(), err)
	}
	return part, from, err
}
