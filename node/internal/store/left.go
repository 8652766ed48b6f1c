package store

import (
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// Left is what a partial ingest has of a blob, for who only looks at it. It claims nothing, and changes neither what is
// there nor for whom it is. Somebody may open the ingest meanwhile, or it may be evicted.
type Left struct {
	store *Store
	path  string
	cut   content.Cut
	marks journal // no file
}

// Left looks at the partial ingest that a source has left of d. It fails with content.ErrNotFound where there is none.
func (s *Store) Left(d digest.Digest, source Source) (*Left, error) {
	id := partialID{d, source}
	s.mu.RLock()
	p, ok := s.partials[id]
	s.mu.RUnlock()
	if !ok || p.doubtful != nil {
		return nil, fmt.Errorf("what is left of %s: %w", d, content.ErrNotFound)
	}
	l := &Left{store: s, path: id.path(s.ingestDir)}
	var from Origin
	b, err := ask(s, l.path, func() ([]byte, error) { return os.ReadFile(l.path + journalSuffix) })
	if err == nil {
		l.cut, from, err = decodeJournalHeader(b)
	}
	if err == nil && from.Source != source {
		err = content.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("what is left of %s: %w", d, err)
	}
	l.marks.slots = b[journalHeader:]
	return l, nil
}

// Cut is how the blob is cut. Its size is what whoever began the ingest was told.
func (l *Left) Cut() content.Cut { return l.cut }

// Chunks are those that are marked as present.
func (l *Left) Chunks() (present []int) {
	for i := range l.cut.Len() {
		if _, ok := l.marks.chunk(i); ok {
			present = append(present, i)
		}
	}
	return present
}

// Read reads a chunk of Chunks. It fails where that is not what its mark says.
func (l *Left) Read(i int) ([]byte, error) {
	data, err := ask(l.store, l.path, func() ([]byte, error) {
		f, err := os.Open(l.path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // read only
		off, n := l.cut.Range(i)
		data := make([]byte, n)
		_, err = f.ReadAt(data, off)
		return data, err
	})
	if c, ok := l.marks.chunk(i); err == nil && (!ok || c != content.ChunkCID(data)) {
		err = errLostChunk
	}
	if err != nil {
		return nil, fmt.Errorf("chunk %d of what is left in %s: %w", i, l.path, err)
	}
	return data, nil
}
