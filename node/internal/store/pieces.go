package store

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// PieceMap returns the map of a committed blob's pieces, as ChunkMap that of its leaves. Of a blob that a release
// committed which knew no pieces it is made from the bytes at the first call, and kept. Callers wait for it together.
// The one with whom it begins pays for the bytes that are read. What was paid for is made to the end, whoever waits:
// else the next would have the same read again.
func (s *Store) PieceMap(ctx context.Context, d digest.Digest,
	pay func(ctx context.Context, bytes int64) error) (*content.ChunkMap, error) {
	m, err := s.ChunkMap(d)
	if err != nil {
		return nil, err
	}
	if m.Pieces() != nil {
		return m.Pieces(), nil
	}
	m, err = s.summed(ctx, d, func() error { return pay(ctx, m.Size()) })
	if err != nil {
		return nil, fmt.Errorf("map of the pieces of %s: %w", d, err)
	}
	return m.Pieces(), nil
}

// summing is whose chunks are being summed.
type summing struct {
	mu      sync.Mutex
	running map[digest.Digest]*sums
	turns   *semaphore.Weighted // of those that somebody pays for
}

// summedAtOnce is of how many blobs the chunks are summed at one time because peers want that. A release that knew no
// pieces left many.
const summedAtOnce = 2

// sums are those of one blob's chunks.
type sums struct {
	done chan struct{}
	made *content.ChunkMap
	err  error
}

// summed makes the map of a blob again, with that of its pieces, once for all who wait for it. nil: nobody pays.
func (s *Store) summed(ctx context.Context, d digest.Digest, pay func() error) (*content.ChunkMap, error) {
	r := s.summing.of(d)
	if r == nil {
		if pay != nil {
			if err := pay(); err != nil {
				return nil, err
			}
		}
		var err error
		if r, err = s.sum(d, pay != nil); err != nil {
			return nil, err
		}
	}
	select {
	case <-r.done:
		return r.made, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// of is what is being made of d, nil for nothing.
func (w *summing) of(d digest.Digest) *sums {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[d]
}

// sum sums the chunks of d until the store is closed, unless that goes on already. inTurn: others may be first.
func (s *Store) sum(d digest.Digest, inTurn bool) (*sums, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, content.ErrClosed
	}
	w := &s.summing
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.running[d]; r != nil {
		return r, nil
	}
	r := &sums{done: make(chan struct{})}
	w.running[d] = r
	s.workers.Go(func() {
		defer close(r.done)
		defer func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.running, d)
		}()
		if inTurn {
			if r.err = w.turns.Acquire(s.stopping, 1); r.err != nil {
				return
			}
			defer w.turns.Release(1)
		}
		r.made, r.err = s.sumPieces(s.stopping, d)
	})
	return r, nil
}

// sumPieces makes the map of a blob again, with that of its pieces, unless others did so since it was found to be due.
func (s *Store) sumPieces(ctx context.Context, d digest.Digest) (*content.ChunkMap, error) {
	e, err := s.entry(d)
	if err != nil {
		return nil, err
	}
	if e != nil {
		if m, err := readMeta(s.mapPath(e), d); err == nil && m.chunks.Pieces() != nil {
			return m.chunks, nil
		}
	}
	if e == nil || e.runtime {
		return s.computeRuntimeMap(ctx, d)
	}
	m, err := s.repairMap(ctx, e)
	if m != nil { // though it may not have been written
		return m, nil
	}
	return nil, err
}

// cutPause is after how long blobs of a release that knew no pieces are read for them. Until then a node that has just
// started has pulls to serve, and reads only what peers ask for.
const cutPause = time.Minute

func (s *Store) cutLater(ctx context.Context) {
	if content.Sleep(ctx, cutPause) {
		s.cutAll(ctx)
	}
}

// cutAll sums the pieces of blobs that lack those, those that were used last first, at the pace of a scrub. Peers that
// ask for them need not wait then, and this node need not read for who asks.
func (s *Store) cutAll(ctx context.Context) {
	s.mu.RLock()
	var list []*entry
	for _, e := range s.blobs {
		if content.Pieces.Cut(e.size) != content.CutLeaves(e.size) {
			list = append(list, e)
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(list, func(a, b *entry) int { return int(min(max(b.lastUsed.Load()-a.lastUsed.Load(), -1), 1)) })
	for _, e := range list {
		if m, err := readMeta(s.mapPath(e), e.digest); err != nil || m.chunks.Pieces() != nil {
			continue // a map that is damaged or gone is the scrub's affair
		}
		for left := e.size; left > 0; left -= content.ChunkSize {
			if s.scrubbing.WaitN(ctx, int(min(left, content.ChunkSize))) != nil {
				return
			}
		}
		if _, err := s.summed(ctx, e.digest, nil); err != nil {
			s.log.Debug("the pieces of a blob are not known", "digest", e.digest, "error", err)
		}
	}
}
