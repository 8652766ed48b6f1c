package policy

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
)

// Live holds the policy in force and tells subscribers of a new one. It is safe for concurrent use.
type Live struct {
	current atomic.Pointer[Policy]

	mu          sync.Mutex // serialises changes, so that subscribers see policies in order
	subscribers []*subscriber
}

type subscriber struct{ changed func(*Policy) }

// NewLive returns a Live that holds p, or Default() where p is nil.
func NewLive(p *Policy) *Live {
	p = cmp.Or(p, Default())
	l := new(Live)
	l.current.Store(p)
	return l
}

// Load is the policy in force; never nil. Neither the caller nor anybody else changes it.
func (l *Live) Load() *Policy { return l.current.Load() }

// Store puts p in force and returns when every subscriber has been told. p must be valid, and is not changed after.
func (l *Live) Store(p *Policy) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current.Store(p)
	for _, s := range l.subscribers {
		s.changed(p)
	}
}

// Subscribe calls changed with the policy in force before it returns, and from then on with each new one, in order and
// one at a time, until the returned function is called. changed must not block, and must not call Store, Subscribe or
// the returned function.
func (l *Live) Subscribe(changed func(*Policy)) (unsubscribe func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &subscriber{changed}
	l.subscribers = append(l.subscribers, s)
	changed(l.Load())
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.subscribers = slices.DeleteFunc(l.subscribers, func(other *subscriber) bool { return other == s })
	}
}
