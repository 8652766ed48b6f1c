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
	size int64

	mu      sync.Mutex
	used    int64
	holds   map[string]int64 // bytes, by the name of the caller
	waiting []*wish
}

// wish is a place that is wanted.
type wish struct {
	caller string
	n, own int64 // own is what the same lease holds already
	given  chan struct{}
}

func newPart(size int64) *part { return &part{size: size, holds: map[string]int64{}} }

// acquire waits for a place until ctx ends.
func (p *part) acquire(ctx context.Context, caller string, n, own int64) error {
	w := &wish{caller, n, own, make(chan struct{})}
	p.mu.Lock()
	p.waiting = append(p.waiting, w)
	p.serve()
	p.mu.Unlock()
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
func (p *part) try(n int64) bool {
	w := &wish{n: n, given: make(chan struct{})}
	p.mu.Lock()
	p.waiting = append(p.waiting, w)
	p.serve()
	p.mu.Unlock()
	return !p.drop(w)
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

func (p *part) release(caller string, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used -= n
	if p.holds[caller] -= n; p.holds[caller] == 0 {
		delete(p.holds, caller)
	}
	p.serve()
}

// serve gives places to those that wait. The caller holds p.mu.
func (p *part) serve() {
	for i := 0; i < len(p.waiting); {
		w := p.waiting[i]
		if !p.shares(w) {
			i++
			continue
		}
		if p.used+w.n > p.size {
			return
		}
		p.used += w.n
		p.holds[w.caller] += w.n
		close(w.given)
		p.waiting = slices.Delete(p.waiting, i, i+1)
	}
}

// allows reports whether a caller who wants n more bytes leaves enough to others now.
func (p *part) allows(caller string, n, own int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shares(&wish{caller: caller, n: n, own: own})
}

// shares reports whether a wish leaves enough to others. The caller holds p.mu.
func (p *part) shares(w *wish) bool {
	held := p.holds[w.caller]
	return w.caller == "" || held == w.own || held+w.n <= p.size-p.size/4
}
