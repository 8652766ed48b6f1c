package store

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// PieceMap returns the map of a committed blob's pieces, as ChunkMap that of its leaves. Of a blob that a release
// committed which knew no pieces it is made from the bytes at the first call, and kept. Callers wait for it together,
// and it is given up once the ctx of the last has ended.
func (s *Store) PieceMap(ctx context.Context, d digest.Digest) (*content.ChunkMap, error) {
	m, err := s.ChunkMap(d)
	if err != nil {
		return nil, err
	}
	if m.Pieces() != nil {
		return m.Pieces(), nil
	}
	m, err = s.cutting.wait(ctx, d, func() (*cut, error) { return s.startCut(d) })
	if err != nil {
		return nil, fmt.Errorf("map of the pieces of %s: %w", d, err)
	}
	return m.Pieces(), nil
}

// cutting is whose pieces are being summed.
type cutting struct {
	mu      sync.Mutex
	running map[digest.Digest]*cut
}

// cut is the summing of one blob's pieces.
type cut struct {
	waiting int // callers
	cancel  context.CancelFunc
	done    chan struct{}
	made    *content.ChunkMap
	err     error
}

// wait returns what comes of a cut of d: of the one that runs, else of one that is started.
func (c *cutting) wait(ctx context.Context, d digest.Digest, start func() (*cut, error)) (*content.ChunkMap, error) {
	c.mu.Lock()
	r := c.running[d]
	if r == nil {
		var err error
		if r, err = start(); err != nil {
			c.mu.Unlock()
			return nil, err
		}
		if c.running == nil {
			c.running = map[digest.Digest]*cut{}
		}
		c.running[d] = r
	}
	r.waiting++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if r.waiting--; r.waiting > 0 {
			return
		}
		r.cancel()
		delete(c.running, d) // who comes now starts anew
	}()
	select {
	case <-r.done:
		return r.made, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// startCut sums the pieces of d until it is cancelled or the store is closed.
func (s *Store) startCut(d digest.Digest) (*cut, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, content.ErrClosed
	}
	ctx, cancel := context.WithCancel(s.stopping)
	r := &cut{cancel: cancel, done: make(chan struct{})}
	s.workers.Go(func() {
		defer close(r.done)
		r.made, r.err = s.sumPieces(ctx, d)
	})
	return r, nil
}

// sumPieces makes the map of a blob again, with that of its pieces.
func (s *Store) sumPieces(ctx context.Context, d digest.Digest) (*content.ChunkMap, error) {
	e, err := s.entry(d)
	switch {
	case err != nil:
		return nil, err
	case e == nil || e.runtime:
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
		if _, err := s.PieceMap(ctx, e.digest); err != nil {
			s.log.Debug("the pieces of a blob are not known", "digest", e.digest, "error", err)
		}
	}
}
