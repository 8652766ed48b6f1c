// Package lru makes caches of the entries that were used last. Their sizes are constants of the program, so that making
// one cannot fail.
package lru

import lru "github.com/hashicorp/golang-lru/v2"

// Cache is a map of bounded size. It is safe for concurrent use.
type Cache[K comparable, V any] = lru.Cache[K, V]

// New returns a cache of the size entries that were used last. The size must be positive.
func New[K comparable, V any](size int) *Cache[K, V] { return NewWithEvict[K, V](size, nil) }

// GetOrAdd returns what the cache has for a key, as used now. Where it has nothing it adds fresh.
func GetOrAdd[K comparable, V any](c *Cache[K, V], key K, fresh V) V {
	if known, ok := c.Get(key); ok {
		return known
	}
	if known, ok, _ := c.PeekOrAdd(key, fresh); ok {
		return known
	}
	return fresh
}

// NewWithEvict is New with a function that is called for each entry that leaves the cache.
func NewWithEvict[K comparable, V any](size int, left func(K, V)) *Cache[K, V] {
	cache, err := lru.NewWithEvict(size, left)
	if err != nil {
		panic(err) // of a size that is not positive
	}
	return cache
}
