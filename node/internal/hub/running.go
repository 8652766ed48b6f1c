package hub

import (
	"context"
	"fmt"
	"sync"
)

// running counts requests, so that a shutdown can wait for them.
type running struct {
	mu       sync.Mutex
	n        int
	draining bool
	idle     chan struct{} // closed when draining and n is 0
}

func (r *running) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return false
	}
	r.n++
	return true
}

func (r *running) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n--
	if r.draining && r.n == 0 {
		close(r.idle)
	}
}

func (r *running) drain(ctx context.Context) error {
	r.mu.Lock()
	if !r.draining {
		r.draining, r.idle = true, make(chan struct{})
		if r.n == 0 {
			close(r.idle)
		}
	}
	idle := r.idle
	r.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		return fmt.Errorf("hub front: %d requests still run: %w", r.n, context.Cause(ctx))
	}
}
