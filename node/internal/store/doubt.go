package store

import (
	"bytes"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// Of a blob that does not match its digest few chunks are wrong as a rule, and which of them shows only once somebody
// names the right sums. Until then all are doubtful. They stay where they are, in the file of the next ingest, and so
// take no room twice. There they count as absent, nobody is given them, and each goes when a chunk is written in its
// place. The journal has no header while there are any, so that no later process resumes such an ingest; nor is it kept
// when it is closed.

// doubtful are the chunks of an ingest that did not match its digest.
type doubtful struct {
	chunks  *content.ChunkMap
	present []byte // as Ingest.present
	bytes   int64
}

func (d *doubtful) has(i int) bool { return d != nil && d.present[i/8]&(1<<(i%8)) != 0 }

// size is how many bytes they take on disk.
func (d *doubtful) size() int64 {
	if d == nil {
		return 0
	}
	return d.bytes
}

// drop forgets chunk i, of n bytes.
func (d *doubtful) drop(i int, n int64) {
	if d.has(i) {
		d.present[i/8] &^= 1 << (i % 8)
		d.bytes -= n
	}
}

// Doubt ends an ingest whose bytes are not the blob's, as Discard does. But the next one of the same blob, size and
// origin may Recall its chunks. Where there is to be none, DropDoubtful drops them.
func (g *Ingest) Doubt() error { return g.end(fateDoubt) }

// allDoubtful are all chunks of an ingest that has ended.
func (g *Ingest) allDoubtful() *doubtful {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return &doubtful{chunks: g.chunks, present: bytes.Clone(g.present), bytes: g.bytes}
}

// takeDoubtful takes over what the ingest before has left in the file, if that was cut alike.
func (g *Ingest) takeDoubtful() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if d := g.earlier.doubtful; d != nil && d.chunks.Cut() == g.cut {
		g.doubtful = d
	}
}

// Recall reads into p chunk i as an ingest had it that ended with Doubt. It reports whether those bytes hash to c now:
// then WriteChunk may be given them.
func (g *Ingest) Recall(i int, c cid.Cid, p []byte) bool {
	g.mu.RLock()
	file, same := g.file, g.phase == phaseOpen && g.doubtful.has(i) && g.doubtful.chunks.CID(i) == c
	g.mu.RUnlock()
	if !same {
		return false
	}
	err := g.store.watched("read", file.Name(), false, func() error {
		_, err := file.ReadAt(p, g.cut.Start(i))
		return err
	})
	return err == nil && content.ChunkCID(p) == c
}

// DropDoubtful drops what Doubt has left of d, unless an ingest has taken it over.
func (s *Store) DropDoubtful(d digest.Digest, source Source) error {
	id := partialID{d, source}
	s.mu.RLock()
	left := s.partials[id].doubtful != nil
	s.mu.RUnlock()
	if !left {
		return nil
	}
	if err := s.dropPartial(id); err != nil {
		return fmt.Errorf("drop what is doubtful of %s: %w", d, err)
	}
	return nil
}
