package content

import (
	"context"
	"sync"
	"time"
)

// Waiting is how long a question has waited for its source, and for nothing else: not for this node's memory, for other
// nodes, or for what the policy's limit allows. Such a time is no silence of the source.
type Waiting struct {
	mu     sync.Mutex
	apart  int           // how many things besides are waited for
	since  time.Time     // when the source was begun to be waited for, while nothing else is
	before time.Duration // of waiting before that
}

type waitingKey struct{}

// ForSource is ctx for a question to a source, which is waited for from now on.
func ForSource(ctx context.Context) (context.Context, *Waiting) {
	w := &Waiting{since: time.Now()}
	return context.WithValue(ctx, waitingKey{}, w), w
}

// WaitingOf is the waiting of the question that goes on with ctx, nil where that is none.
func WaitingOf(ctx context.Context) *Waiting {
	w, _ := ctx.Value(waitingKey{}).(*Waiting)
	return w
}

// Apart notes that what goes on with ctx waits for something else than its source, until resume is called.
func Apart(ctx context.Context) (resume func()) {
	w := WaitingOf(ctx)
	if w == nil {
		return func() {}
	}
	w.add(1)
	return func() { w.add(-1) }
}

func (w *Waiting) add(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if w.apart == 0 {
		w.before += now.Sub(w.since)
	}
	w.apart += n
	w.since = now
}

// SoFar is how long it has been.
func (w *Waiting) SoFar() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.apart > 0 {
		return w.before
	}
	return w.before + time.Since(w.since)
}

// Sleep reports whether d has passed before ctx ended.
func Sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
