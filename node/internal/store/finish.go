package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// A process may be killed between the last chunk of a blob and its commit. The next one commits such blobs by itself:
// it needs nobody's word for that.

// SizeOf is the size of a blob of which something is here: a partial ingest of a source, one that the store is about to
// commit, or the blob itself. It is 0 where there is nothing. Of a partial ingest it is what whoever began it was told;
// the digest has not proved it.
func (s *Store) SizeOf(d digest.Digest, source Source) int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if p, ok := s.partials[partialID{d, source}]; ok && p.doubtful == nil {
		return p.size
	}
	if g := s.ingests[d]; g != nil && g.proved != nil {
		return g.size
	}
	if e := s.blobs[d]; e != nil && !e.runtime {
		return e.size
	}
	return 0
}

// finishAll commits the ingests that the last process left complete.
func (s *Store) finishAll(ctx context.Context) {
	defer close(s.finished)
	for _, id := range s.arrived {
		if ctx.Err() != nil {
			return
		}
		if err := s.finish(ctx, id); err != nil && ctx.Err() == nil {
			s.log.Warn("a complete ingest is not committed", "digest", id.digest, "error", err)
		}
	}
}

// finish hashes a complete partial ingest and commits it. It gives way to a caller of Ingest, who hashes it by himself
// while he reads what is there.
func (s *Store) finish(ctx context.Context, id partialID) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	p, ok := s.partials[id]
	if !ok { // somebody has it open, or it was evicted
		s.mu.Unlock()
		return nil
	}
	p.finish = cancel
	s.partials[id] = p
	s.mu.Unlock()

	chunks, err := s.hashPartial(ctx, id, p.cut)
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, content.ErrDigestMismatch):
		return errors.Join(err, s.dropPartial(id))
	case err != nil:
		return err
	}
	origin := Origin{Source: id.source, Pool: p.pool}
	if p.cut != content.CutLeaves(p.size) {
		origin.Grain = content.Pieces
	}
	ing, err := s.ingest(id.digest, p.size, origin, chunks)
	switch {
	case errors.Is(err, ErrBusy), errors.Is(err, ErrExists):
		return nil
	case err != nil:
		return err
	}
	err = ing.Commit(ctx, "")
	if err == nil {
		s.log.Info("committed a blob that had arrived before the restart", "digest", id.digest, "bytes", p.size)
	}
	return errors.Join(err, ing.Close())
}

// hashPartial checks a complete partial ingest, and makes its map. It fails with errLostChunk where a chunk is not what
// its journal says, which costs only that chunk, and with content.ErrDigestMismatch where all are and the whole is not
// the blob.
func (s *Store) hashPartial(ctx context.Context, id partialID, cut content.Cut) (*content.ChunkMap, error) {
	path := id.path(s.ingestDir)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open partial ingest: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	journal, err := os.ReadFile(path + journalSuffix)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	slots := journal[min(journalHeader, len(journal)):]
	chunks, mismatch := s.sumFile(ctx, f, cut.Size(), id.digest)
	if chunks == nil {
		return nil, mismatch
	}
	own := chunks
	if cut != chunks.Cut() {
		own = chunks.Pieces()
	}
	for i := range own.Len() {
		if len(slots) < (i+1)*journalSlot || !bytes.Equal(cidSum(own.CID(i)), slots[i*journalSlot:][:sumSize]) {
			return nil, fmt.Errorf("chunk %d: %w", i, errLostChunk)
		}
	}
	return chunks, mismatch
}
