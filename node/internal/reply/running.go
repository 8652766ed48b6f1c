package reply

import (
	"context"
	"fmt"
	"sync"
)

// Running counts requests, so that a shutdown can wait for them.
type Running struct {
	mu       sync.Mutex
	n        int
	draining bool
	idle     chan struct{} // closed when draining and n is 0
}

// Enter counts a request. It returns false where there is to be none any more; otherwise Leave ends it.
func (r *Running) Enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return false
	}
	r.n++
	return true
}

// Leave ends a request.
func (r *Running) Leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n--
	if r.draining && r.n == 0 {
		close(r.idle)
	}
}

// Drain lets no request begin and returns when those that run have ended, or with ctx's error before.
func (r *Running) Drain(ctx context.Context) error {
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
		return fmt.Errorf("%d requests still run: %w", r.n, context.Cause(ctx))
	}
}
