package room

import (
	"context"
	"slices"
	"sync"
)

// part is a part of a room, in bytes. A caller that has a name and holds a place already leaves a fourth of the part to
// others. He does so however much of it is free, for who is in stays. Who waits because of that keeps nobody else
// waiting; the others come in the order in which they came.
type part struct {
	mu sync.Mutex
	queue
}

// queue is who has places of a part, and who waits for one.
type queue struct {
	size    int64 // never changes
	used    int64
	holds   map[string]int64 // bytes, by the name of the caller
	waiting []*wish
}

// owner is a lease in a part, whose mu guards it.
type owner struct {
	caller string // in whose name it is
	held   int64  // bytes
}

// wish is a place that is wanted.
type wish struct {
	of    *owner
	n     int64
	given chan struct{}
}

func newPart(size int64) *part { return &part{queue: queue{size: size, holds: map[string]int64{}}} }

// acquire waits for a place until ctx ends.
func (p *part) acquire(ctx context.Context, of *owner, n int64) error {
	w := p.ask(of, n)
	select {
	case <-w.given:
		return nil
	case <-ctx.Done():
	}
	if p.drop(w) {
		return ctx.Err()
	}
	return nil // it was given at the same time
}

// try takes a place at once, or none.
func (p *part) try(of *owner, n int64) bool { return !p.drop(p.ask(of, n)) }

// ask wants a place, which may be given at once.
func (p *part) ask(of *owner, n int64) *wish {
	w := &wish{of, n, make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = append(p.waiting, w)
	p.serve()
	return w
}

// drop takes a wish back, if nothing was given for it.
func (p *part) drop(w *wish) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.waiting, w)
	if i < 0 {
		return false
	}
	p.waiting = slices.Delete(p.waiting, i, i+1)
	p.serve()
	return true
}

func (p *part) release(of *owner, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used -= n
	p.count(of, -n)
	p.serve()
}

// disown has what an owner holds and wants be in nobody's name from now on.
func (p *part) disown(of *owner) {
	p.mu.Lock()
	defer p.mu.Unlock()
	held := of.held
	p.count(of, -held)
	of.caller = ""
	p.count(of, held)
	p.serve()
}

// allows reports whether an owner who wants n more bytes leaves enough to others now.
func (p *part) allows(of *owner, n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shares(&wish{of: of, n: n})
}

// count counts n bytes more of an owner.
func (q *queue) count(of *owner, n int64) {
	of.held += n
	if q.holds[of.caller] += n; q.holds[of.caller] == 0 {
		delete(q.holds, of.caller)
	}
}

// serve gives places to those that wait.
func (q *queue) serve() {
	for i := 0; i < len(q.waiting); {
		w := q.waiting[i]
		if !q.shares(w) {
			i++
			continue
		}
		if q.used+w.n > q.size {
			return
		}
		q.used += w.n
		q.count(w.of, w.n)
		close(w.given)
		q.waiting = slices.Delete(q.waiting, i, i+1)
	}
}

// shares reports whether a wish leaves enough to others.
func (q *queue) shares(w *wish) bool {
	held := q.holds[w.of.caller]
	return w.of.caller == "" || held == w.of.held || held+w.n <= q.size-q.size/4
}
