package registry

import (
	"context"
	"sync"
	"time"
)

// patience ends a context with errSlow when no byte of an answer comes in time.
type patience struct {
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration

	mu      sync.Mutex
	arrived func() int64 // nil where progress cannot be seen
	seen    int64
	stopped bool
}

// newPatience bounds what is done with the returned context until stop is called. The context itself lasts until end.
func newPatience(ctx context.Context, limit time.Duration) (context.Context, *patience) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &patience{cancel: cancel, limit: limit}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(limit, p.expire)
	return ctx, p
}

// watch gives more time for as long as r tells that its bytes arrive: such as to a caller of the end of a large blob,
// which is held back until the whole has come.
func (p *patience) watch(r any) {
	if a, ok := r.(interface{ Arrived() int64 }); ok {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.arrived, p.seen = a.Arrived, a.Arrived()
	}
}

func (p *patience) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	if p.arrived != nil {
		if now := p.arrived(); now > p.seen {
			p.seen = now
			p.timer.Reset(p.limit)
			return
		}
	}
	p.cancel(errSlow)
}

// stop ends the limit: unless the context has ended before, it will not for want of time.
func (p *patience) stop() {
	p.timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
}

func (p *patience) end() {
	p.timer.Stop()
	p.cancel(nil)
}
