package swarm

import (
	"context"
	"sync"
)

// mailbox holds what was put in, merged, until it is taken. Putting never blocks; whatever piles up while the taker is
// busy reaches it as one.
type mailbox[T any] struct {
	merge func(have *T, later T)

	mu    sync.Mutex
	full  bool
	value T
	err   error
	ready chan struct{}
	taken chan struct{}
}

func newMailbox[T any](merge func(have *T, later T)) *mailbox[T] {
	return &mailbox[T]{merge: merge, ready: make(chan struct{}, 1), taken: make(chan struct{}, 1)}
}

func (m *mailbox[T]) put(v T) {
	m.mu.Lock()
	switch {
	case m.err != nil: // nobody takes it any more
	case m.full:
		m.merge(&m.value, v)
	default:
		m.value, m.full = v, true
	}
	m.mu.Unlock()
	m.wake()
}

// space waits until what is in the box is not too much.
func (m *mailbox[T]) space(ctx context.Context, tooMuch func(T) bool) error {
	for {
		m.mu.Lock()
		full := m.full && m.err == nil && tooMuch(m.value)
		m.mu.Unlock()
		if !full {
			return nil
		}
		select {
		case <-m.taken:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// close makes take fail with err once what is in the box has been taken. The first error stands.
func (m *mailbox[T]) close(err error) {
	m.mu.Lock()
	if m.err == nil {
		m.err = err
	}
	m.mu.Unlock()
	m.wake()
	m.emptied()
}

func (m *mailbox[T]) wake() {
	select {
	case m.ready <- struct{}{}:
	default:
	}
}

func (m *mailbox[T]) emptied() {
	select {
	case m.taken <- struct{}{}:
	default:
	}
}

func (m *mailbox[T]) take(ctx context.Context) (T, error) {
	for {
		m.mu.Lock()
		var zero T
		v, full, err := m.value, m.full, m.err
		m.value, m.full = zero, false
		m.mu.Unlock()
		switch {
		case full:
			m.emptied()
			return v, nil
		case err != nil:
			m.wake() // for the next one who takes
			return zero, err
		}
		select {
		case <-m.ready:
		case <-ctx.Done():
			return zero, ctx.Err()
		}
	}
}
