package store

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// state is what cannot be made again from the blobs: pins, and what other packages remember. Every change is synced.
type state struct{ database }

var bucketPins = []byte("pins") // owner -> JSON list of digests

const kvPrefix = "kv/"

func openState(path string) (*state, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	db.AllocSize = 64 << 10
	return &state{database{db: db, broken: new(atomic.Bool)}}, nil
}

// Pin makes ds the digests that owner pins, in place of those it pinned before. A pinned blob is never evicted; it may
// be pinned before it arrives. The pins survive a restart.
func (s *Store) Pin(owner string, ds []digest.Digest) error {
	ds = slices.Compact(slices.Sorted(slices.Values(ds)))
	for _, d := range ds {
		if _, err := content.DigestCID(d); err != nil {
			return fmt.Errorf("pin for %s: %w", owner, err)
		}
	}
	v, err := json.Marshal(ds)
	if err != nil {
		return fmt.Errorf("pin for %s: %w", owner, err)
	}
	return s.changePins(owner, ds, func(b *bolt.Bucket) error { return b.Put([]byte(owner), v) })
}

// Unpin drops all of owner's pins. It is no error if there are none.
func (s *Store) Unpin(owner string) error {
	return s.changePins(owner, nil, func(b *bolt.Bucket) error { return b.Delete([]byte(owner)) })
}

func (s *Store) changePins(owner string, ds []digest.Digest, change func(*bolt.Bucket) error) error {
	s.pinning.Lock() // so that memory and disk see two changes of one owner in the same order
	defer s.pinning.Unlock()
	// New pins hold before they are written and old ones until they are, so that no eviction slips between.
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("pin for %s: %w", owner, content.ErrClosed)
	}
	s.pinned.add(ds)
	s.mu.Unlock()
	err := s.state.update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucketPins)
		if err != nil {
			return err
		}
		return change(b)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.pinned.drop(ds)
		return fmt.Errorf("pin for %s: %w", owner, err)
	}
	s.pinned.drop(s.pins[owner])
	delete(s.pins, owner)
	if len(ds) > 0 {
		s.pins[owner] = ds
	}
	s.wakeMaintainer()
	return nil
}

// pinCounts tell how many owners pin a digest.
type pinCounts map[digest.Digest]int

func (c pinCounts) add(ds []digest.Digest) {
	for _, d := range ds {
		c[d]++
	}
}

func (c pinCounts) drop(ds []digest.Digest) {
	for _, d := range ds {
		if c[d]--; c[d] <= 0 {
			delete(c, d)
		}
	}
}

// Pins returns the pinned digests of each owner.
func (s *Store) Pins() map[string][]digest.Digest {
	s.mu.RLock()
	defer s.mu.RUnlock()
	pins := maps.Clone(s.pins)
	for owner, ds := range pins {
		pins[owner] = slices.Clone(ds)
	}
	return pins
}

func (s *Store) loadPins() error {
	return s.state.view(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketPins)
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			var ds []digest.Digest
			if err := json.Unmarshal(v, &ds); err != nil {
				return fmt.Errorf("pins of %s: %w", k, err)
			}
			s.pins[string(k)] = ds
			s.pinned.add(ds)
			return nil
		})
	})
}

// KV is a small persistent map for another package's memory. Writes are synced to disk, and wait for it: what changes
// with requests goes into Notes.
type KV struct {
	database
	bucket []byte
}

// KV returns the map of the given name. Maps of different names are independent.
func (s *Store) KV(bucket string) KV {
	return KV{database: s.state.database, bucket: []byte(kvPrefix + bucket)}
}

// Get returns a copy of the value of key. It tells false where there is none, or the store is closed.
func (kv KV) Get(key string) (value []byte, ok bool) {
	err := kv.view(func(tx *bolt.Tx) error {
		if b := tx.Bucket(kv.bucket); b != nil {
			if v := b.Get([]byte(key)); v != nil {
				value, ok = append([]byte{}, v...), true
			}
		}
		return nil
	})
	return value, ok && err == nil
}

// Put sets the value of key, which must not be empty. It survives a crash once Put has returned.
func (kv KV) Put(key string, value []byte) error {
	// Not by bbolt's Batch: that commits in a goroutine of its own, where damage would end the process.
	err := kv.update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(kv.bucket)
		if err != nil {
			return err
		}
		return b.Put([]byte(key), value)
	})
	if err != nil {
		return fmt.Errorf("put %s in %s: %w", key, kv.bucket, err)
	}
	return nil
}
