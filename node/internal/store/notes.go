package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// maxNotes bounds the notes of one map on disk. Above it the older half goes.
	maxNotes = 128 << 10
	// maxUnwritten bounds those that wait for the disk.
	maxUnwritten = 16 << 10
	// notesAgain is how long after a failure they are written again.
	notesAgain = 10 * time.Second
)

// Notes is a persistent map of what another package would like to find again after a restart. Nobody waits for the
// disk, which may hang: what was put is there at once, and one goroutine writes all that came meanwhile together. A
// killed process loses what it has not written. The newest notes are kept; how old one is it says itself, as JSON with
// its Unix time as unix.
type Notes struct {
	kv   KV
	most int
	wake chan struct{} // to the writer; holds one signal

	mu        sync.Mutex
	closed    bool
	unwritten map[string][]byte // nil: to be deleted
	writing   map[string][]byte

	count int // on disk; -1: not known. The writer's alone
}

// Notes returns the map of the given name, in place of KV. It is to be called once for each name.
func (s *Store) Notes(bucket string) *Notes {
	n := &Notes{
		kv: s.KV(bucket), most: maxNotes, count: -1, wake: make(chan struct{}, 1), unwritten: map[string][]byte{},
	}
	s.workers.Go(func() { n.write(s.stopping, s) })
	return n
}

// Get returns the value of key. It tells false where there is none.
func (n *Notes) Get(key string) (value []byte, ok bool) {
	n.mu.Lock()
	value, ok = n.unwritten[key]
	if !ok {
		value, ok = n.writing[key]
	}
	n.mu.Unlock()
	if ok {
		return value, value != nil
	}
	return n.kv.Get(key)
}

// Put sets the value of key, which the caller leaves alone from then on.
func (n *Notes) Put(key string, value []byte) error {
	if key == "" || len(key) > bolt.MaxKeySize { // it would fail all that is written with it
		return fmt.Errorf("put in %s: a key of %d bytes", n.kv.bucket, len(key))
	}
	if value == nil {
		value = []byte{}
	}
	return n.note(key, value)
}

// Delete removes key. It is no error if it is not there.
func (n *Notes) Delete(key string) error { return n.note(key, nil) }

func (n *Notes) note(key string, value []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, waits := n.unwritten[key]
	switch {
	case n.closed:
		return fmt.Errorf("note in %s: %w", n.kv.bucket, content.ErrClosed)
	case !waits && len(n.unwritten) >= maxUnwritten:
		return fmt.Errorf("note in %s: %d others wait for the disk: %w", n.kv.bucket, maxUnwritten, content.ErrStorage)
	}
	n.unwritten[key] = value
	select {
	case n.wake <- struct{}{}:
	default:
	}
	return nil
}

// write writes what is noted, until ctx ends.
func (n *Notes) write(ctx context.Context, s *Store) {
	var again <-chan time.Time
	told := false
	for ended := false; !ended; {
		select {
		case <-n.wake:
		case <-again:
		case <-ctx.Done():
			n.mu.Lock()
			n.closed, ended = true, true
			n.mu.Unlock()
		}
		again = nil
		err := n.flush()
		if err != nil {
			again = time.After(notesAgain)
		}
		if err != nil && !told {
			s.log.Warn("notes are not on disk; a restart would forget them", "part", string(n.kv.bucket),
				"error", err)
		}
		told = err != nil
	}
}

func (n *Notes) flush() error {
	n.mu.Lock()
	n.writing, n.unwritten = n.unwritten, map[string][]byte{}
	n.mu.Unlock()
	var err error
	if len(n.writing) > 0 {
		count := n.count
		err = n.kv.update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(n.kv.bucket)
			if err != nil {
				return err
			}
			count, err = n.change(b)
			return err
		})
		if err == nil {
			n.count = count
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil { // they go with the next try, but for what is newer by now
		maps.Copy(n.writing, n.unwritten)
		n.unwritten = n.writing
	}
	n.writing = nil
	return err
}

// change writes what is to be written, and returns how many notes there are then.
func (n *Notes) change(b *bolt.Bucket) (count int, err error) {
	if count = n.count; count < 0 {
		count = b.Stats().KeyN
	}
	for key, value := range n.writing {
		if b.Get([]byte(key)) != nil {
			count--
		}
		if value == nil {
			err = errors.Join(err, b.Delete([]byte(key)))
			continue
		}
		count++
		err = errors.Join(err, b.Put([]byte(key), value))
	}
	if err != nil || count <= n.most {
		return count, err
	}
	return n.prune(b)
}

// prune leaves the newest half of what there may be.
func (n *Notes) prune(b *bolt.Bucket) (count int, err error) {
	type note struct {
		key  string
		Unix int64 `json:"unix"`
	}
	var all []note
	err = b.ForEach(func(k, v []byte) error {
		one := note{key: string(k)}
		_ = json.Unmarshal(v, &one) // what cannot be read is the oldest
		all = append(all, one)
		return nil
	})
	slices.SortFunc(all, func(a, b note) int {
		if a.Unix != b.Unix {
			return int(max(min(b.Unix-a.Unix, 1), -1))
		}
		return strings.Compare(a.key, b.key)
	})
	for _, one := range all[min(n.most/2, len(all)):] {
		err = errors.Join(err, b.Delete([]byte(one.key)))
	}
	return min(n.most/2, len(all)), err
}
