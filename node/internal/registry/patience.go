package registry

import (
	"context"
	"sync"
	"time"
)

const (
	// headerBy is when, at the latest, a header goes out or a refusal: containerd from 2.3 on goes to the next host
	// when it has waited 30 s for one. Before, a refusal is the better answer, since the runtime asks the next host at
	// once; when an answer that has begun is cut off, it asks this one again first.
	headerBy = 25 * time.Second
	// hardEnd bounds the wait for a blob of which nothing comes, though much else of the same pull does. It is well
	// below containerd's own limit of 5 min without a byte, after which it asks no other host.
	hardEnd = 60 * time.Second
	// looks is how often progress is looked at within the limit.
	looks = 10
)

// patience ends a context with errSlow when an answer does not come. What decides is progress: while bytes of the pull
// arrive at this node the caller waits, and where nothing moves at all it is sent on when the limit is over.
type patience struct {
	cancel context.CancelCauseFunc
	limit  time.Duration
	pull   func() int64  // bytes of the pull that have arrived
	header chan struct{} // closed when the header must not wait any more

	mu        sync.Mutex
	timer     *time.Timer
	start     time.Time
	seen      int64
	moved     time.Time    // when bytes of the pull were last seen to arrive
	own       func() int64 // bytes of the blob itself; nil while nobody knows its size
	ownSeen   int64
	ownMoved  time.Time
	overdue   bool // header is closed
	stopped   bool
	mayHeader bool
}

// newPatience bounds what is done with the returned context until stop is called. The context itself lasts until end.
func newPatience(ctx context.Context, limit time.Duration, pull func() int64) (context.Context, *patience) {
	ctx, cancel := context.WithCancelCause(ctx)
	now := time.Now()
	p := &patience{
		cancel: cancel, limit: limit, pull: pull, header: make(chan struct{}), start: now, moved: now, ownMoved: now,
		seen: pull(),
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(limit/looks, p.look)
	return ctx, p
}

// watch takes in how many bytes of the blob itself have arrived. Its size is known from now on; header reports whether
// that is enough for the answer's header.
func (p *patience) watch(own func() int64, header bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.own, p.ownSeen, p.mayHeader = own, own(), header
}

// follow counts the bytes of the pull by the given function from now on.
func (p *patience) follow(pull func() int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pull, p.seen = pull, pull()
}

func (p *patience) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	now := time.Now()
	if n := p.pull(); n != p.seen {
		p.seen, p.moved = n, now
	}
	if p.own != nil {
		if n := p.own(); n != p.ownSeen {
			p.ownSeen, p.ownMoved, p.moved = n, now, now
		}
	}
	late := now.Sub(p.start) >= max(headerBy, p.limit)
	switch {
	case now.Sub(p.moved) >= p.limit, now.Sub(p.ownMoved) >= max(hardEnd, p.limit), late && !p.mayHeader:
		p.cancel(errSlow)
		return
	case late && !p.overdue:
		p.overdue = true
		close(p.header)
	}
	p.timer.Reset(p.limit / looks)
}

// stop ends the limit: unless the context has ended before, it will not for want of time.
func (p *patience) stop() {
	p.timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
}

func (p *patience) end() {
	p.stop()
	p.cancel(nil)
}
