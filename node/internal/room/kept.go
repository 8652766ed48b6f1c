package room

import (
	"sync"

	"github.com/shoal-cache/shoal/node/internal/lru"
)

const (
	// maxKept bounds the number of what a room keeps.
	maxKept = 64 << 10
	// perKept is about how many bytes the keeping of something takes, beside the thing and its name.
	perKept = 256
)

// kept is what a room keeps between requests, so that it need not be asked for again. All of it has one bound in bytes,
// beyond which goes what was used last the longest ago.
type kept struct {
	most int64

	mu   sync.Mutex
	size int64
	all  *lru.Cache[place, weighed]
}

// place is where something is kept: its shelf, and its name there.
type place struct{ shelf, key string }

type weighed struct {
	value any
	size  int64
}

func newKept(most int64) *kept {
	k := &kept{most: most}
	k.all = lru.NewWithEvict(maxKept, func(_ place, w weighed) { k.size -= w.size }) // with k.mu held
	return k
}

// Shelf is the part of what a room keeps that is of one kind. It is safe for concurrent use.
type Shelf[V any] struct {
	kept *kept
	name string
}

// Keep is a room's shelf of that name. All that use the name must mean the same V.
func Keep[V any](r *Room, name string) Shelf[V] { return Shelf[V]{r.kept, name} }

// Get returns what is kept under a key, as used now.
func (s Shelf[V]) Get(key string) (value V, ok bool) {
	s.kept.mu.Lock()
	defer s.kept.mu.Unlock()
	w, ok := s.kept.all.Get(place{s.name, key})
	if ok {
		value = w.value.(V)
	}
	return value, ok
}

// Add keeps a value of about so many bytes under a key, in the place of what was there. What takes more than all
// there is is not kept. A long listing is worth all: each question about one of its files would have it read anew.
func (s Shelf[V]) Add(key string, value V, size int64) {
	k, at := s.kept, place{s.name, key}
	size += int64(len(key)) + perKept
	k.mu.Lock()
	defer k.mu.Unlock()
	k.all.Remove(at)
	if size > k.most {
		return
	}
	k.all.Add(at, weighed{value, size})
	for k.size += size; k.size > k.most; {
		k.all.RemoveOldest()
	}
}

// Remove takes away what is kept under a key.
func (s Shelf[V]) Remove(key string) {
	s.kept.mu.Lock()
	defer s.kept.mu.Unlock()
	s.kept.all.Remove(place{s.name, key})
}
