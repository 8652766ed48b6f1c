// Package room bounds the bytes that many requests hold in memory together, and those that are kept for the next. A
// limit for each answer is none for all of them.
//
// Who holds little asks for nothing, and those who hold much leave a part of the room to those who hold some. Who is in
// stays. No caller keeps the others out, see part. Who finds no place waits a while, and is told.
package room

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// free is how many bytes nobody counts: about what a connection takes anyway.
	free = 128 << 10
	// some is the most, in bytes, that goes into the part of the room that large documents cannot fill.
	some = 2 << 20
	// turn is for how long who grows keeps others from it, unless he waits for bytes of the room himself.
	turn = time.Second / 2
	// A large document that has no end comes within grace, and a second more for each slowest bytes: it keeps others
	// out.
	grace   = 30 * time.Second
	slowest = 64 << 10
	// Patience is how long a place is waited for. Clients of a hub wait 10 s for an answer's header.
	Patience = 5 * time.Second
	// unbounded is the memory, in bytes, that is reckoned with where the process has no limit.
	unbounded = 512 << 20
)

var (
	// ErrFull is the error of who found no place in time. It says nothing of any registry, hub or content.
	ErrFull = errors.New("this node has as many documents in memory as it may at one time: ask again in a moment")
	// ErrSlow is the error of a large document that comes too slowly.
	ErrSlow = errors.New("it comes too slowly to be held in memory meanwhile")
	// ErrTooLong is the error of a document that is longer than it may be.
	ErrTooLong = errors.New("longer than it may be")
)

// Share is one of so many equal parts, in bytes, of the memory that this process may use, which is GOMEMLIMIT.
func Share(parts int64) int64 {
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		limit = unbounded
	}
	return limit / parts
}

// Room is memory for what requests hold.
type Room struct {
	small, large *part
	growing      *semaphore.Weighted // of one lease; see growth
	kept         *kept
}

// New makes a room of some bytes, a third of it for what is not large. Beside it, a fourth as much is for what is kept.
func New(size int64) *Room {
	small := max(size/3, some)
	return &Room{
		small: newPart(small), large: newPart(max(size-small, some)), growing: semaphore.NewWeighted(1),
		kept: newKept(size / 4),
	}
}

// lease is what one request, or one question on behalf of many, holds of a room.
type lease struct {
	asker *asker
	mu    sync.Mutex
	places
}

// places are what a lease holds. Its room never changes, and either part guards the owner in it.
type places struct {
	room             *Room
	inSmall, inLarge owner
	small, large     int64 // bytes of either part
	grows, ended     bool
}

type key struct{}

// Lease is ctx with a place of its own for what is held in it, until end is called. What goes on behind the request
// that began it needs another.
func (r *Room) Lease(ctx context.Context) (leased context.Context, end func()) {
	l := &lease{asker: askerOf(ctx), places: places{room: r}}
	l.asker.add(l)
	return context.WithValue(ctx, key{}, l), func() {
		l.asker.remove(l)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.keep(0, 0)
		l.ended = true
	}
}

// disown has the lease be in nobody's name from now on.
func (l *lease) disown() {
	l.room.small.disown(&l.inSmall)
	l.room.large.disown(&l.inLarge)
}

// Try takes a place for n bytes, as Hold does, until leave is called. It waits for nothing: ok is false where there is
// none.
func (r *Room) Try(n int64) (leave func(), ok bool) {
	if n <= free {
		return func() {}, true
	}
	p := r.large
	if n <= some {
		p = r.small
	}
	n = min(n, p.size)
	of := new(owner)
	return func() { p.release(of, n) }, p.try(of, n)
}

func leaseOf(ctx context.Context) *lease {
	l, _ := ctx.Value(key{}).(*lease)
	return l
}

// Hold has the lease of ctx be for n bytes at least. It waits for them a while, and fails with ErrFull then. Who wants
// more than there is has all of it to himself. What is read without a lease has no bound.
func Hold(ctx context.Context, n int64) error {
	l := leaseOf(ctx)
	switch {
	case l == nil || n <= free:
		return nil
	case n <= some:
		return l.take(ctx, l.room.small, n)
	}
	return l.take(ctx, l.room.large, n)
}

// Shrink gives back what the lease of ctx has beyond n bytes.
func Shrink(ctx context.Context, n int64) {
	if l := leaseOf(ctx); l != nil {
		l.shrink(n)
	}
}

// take has n bytes of a part, and nothing of the other. What is held already goes back first, so that no two wait for
// each other, unless the lease is one that grows.
func (l *lease) take(ctx context.Context, p *part, n int64) error {
	n = min(n, p.size)
	of, held, keep := &l.inSmall, &l.small, func() { l.keep(l.small, 0) }
	if p == l.room.large {
		of, held, keep = &l.inLarge, &l.large, func() { l.keep(0, l.large) }
	}
	l.mu.Lock()
	if l.small+l.large >= n {
		l.mu.Unlock()
		return nil
	}
	if !l.grows {
		l.keep(0, 0)
	}
	more, grows := n-*held, l.grows
	l.mu.Unlock()
	if grows && !p.allows(of, more) { // others wait for their turn to grow
		return ErrFull
	}
	err := wait(ctx, func(ctx context.Context) error { return p.acquire(ctx, of, more) })
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	*held += more
	if keep(); l.ended { // its request went meanwhile
		l.keep(0, 0)
	}
	return nil
}

// growth is the growing of a lease: it keeps what it takes of the large part while it waits for more, because what was
// read meanwhile is in memory all the time. One lease at a time waits so, so that no two wait for each other. While it
// reads, its turn goes on to the next after a moment: what it reads may come slowly.
type growth struct {
	of    *lease
	timer *time.Timer // nil: it has no turn
}

// more takes n bytes for the lease of ctx, in its turn.
func (g *growth) more(ctx context.Context, n int64) error {
	l := g.of
	if l == nil {
		return nil
	}
	l.mu.Lock()
	if !l.grows {
		l.keep(l.small, 0)
		l.grows = true
	}
	l.mu.Unlock()
	if g.timer == nil || !g.timer.Stop() {
		if err := wait(ctx, func(ctx context.Context) error { return l.room.growing.Acquire(ctx, 1) }); err != nil {
			g.timer = nil
			return err
		}
	}
	err := Hold(ctx, n)
	g.timer = time.AfterFunc(turn, func() { l.room.growing.Release(1) })
	return err
}

func (g *growth) end() {
	if g.of == nil {
		return
	}
	g.of.mu.Lock()
	g.of.grows = false
	g.of.mu.Unlock()
	if g.timer != nil && g.timer.Stop() {
		g.of.room.growing.Release(1)
	}
}

// wait waits for a place. Where the caller's own time is over first the place was lacking all the same, and whoever had
// been asked for the document is not to blame.
func wait(ctx context.Context, acquire func(context.Context) error) error {
	if ctx.Err() != nil { // it has not waited here
		return context.Cause(ctx)
	}
	defer content.Apart(ctx)()
	ctx, cancel := context.WithTimeoutCause(ctx, Patience, ErrFull)
	defer cancel()
	if acquire(ctx) == nil {
		return nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) {
		return cause
	}
	return ErrFull
}

func (l *lease) shrink(n int64) {
	if n <= free {
		n = 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	small := min(l.small, n)
	l.keep(small, min(l.large, n-small))
}

// keep gives back what is beyond so many bytes of either part.
func (p *places) keep(small, large int64) {
	p.room.small.release(&p.inSmall, p.small-small)
	p.room.large.release(&p.inLarge, p.large-large)
	p.small, p.large = small, large
}

func (l *lease) held() int64 {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.small + l.large
}

// paced fails with ErrSlow where what it reads comes too slowly, once that matters.
type paced struct {
	io.Reader
	since time.Time
	n     int64
}

func (p *paced) hurry() {
	if p.since.IsZero() {
		p.since = time.Now()
	}
}

func (p *paced) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.n += int64(n)
	if !p.since.IsZero() && err == nil && time.Since(p.since) > grace+time.Duration(p.n/slowest)*time.Second {
		err = ErrSlow
	}
	return n, err
}

// ReadAll reads a document of at most limit bytes. The lease of ctx holds it, times over for what is made of it. length
// is what was announced, below zero where nothing was. ErrTooLong comes with what was read, which the lease holds.
func ReadAll(ctx context.Context, r io.Reader, length, limit, times int64) (all []byte, err error) {
	if length > limit {
		return nil, fmt.Errorf("%w: %d bytes, and %d are the most", ErrTooLong, length, limit)
	}
	l := leaseOf(ctx)
	before, grows := l.held(), growth{of: l}
	defer grows.end()
	defer func() {
		if err != nil && !errors.Is(err, ErrTooLong) {
			all = nil
			Shrink(ctx, before)
		}
	}()
	in := &paced{Reader: r}
	step := length + 1
	if length < 0 {
		step = free / times
	}
	for ; ; step = max(2*step, some/times) { // who announces nothing, or too little, proves to be longer than each
		step = min(step, limit+1)
		hold := Hold
		if len(all) > 0 && step*times > max(some, before) {
			hold = grows.more
		}
		if err := hold(ctx, step*times); err != nil {
			return all, err
		}
		if step*times > some {
			in.hurry()
		}
		more, err := io.ReadAll(io.LimitReader(in, step-int64(len(all))))
		if all == nil {
			all = more
		} else {
			all = append(all, more...)
		}
		if err != nil {
			return all, err
		}
		if int64(len(all)) < step || step > limit {
			break
		}
	}
	if int64(len(all)) > limit {
		return all, fmt.Errorf("%w: more than %d bytes", ErrTooLong, limit)
	}
	Shrink(ctx, max(before, int64(len(all))*times))
	return all, nil
}
