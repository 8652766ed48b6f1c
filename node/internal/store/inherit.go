package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// What an earlier ingest has left of a blob counts as present at once: to hash all of a large one first would keep its
// callers waiting for minutes. Instead each chunk is hashed before any of it goes out, by who comes for it, or else by
// a goroutine that goes through all of them. A loss of power may have taken chunks whose marks were written, and a disk
// may have changed others since. Those are absent from when that shows.

// inherited are the chunks that an earlier ingest has left and that nobody has hashed since.
type inherited struct {
	hashing [4]sync.Mutex // by chunk, so that of many readers of a chunk one hashes it

	// Guarded by the ingest's mu.
	chunks []byte        // as Ingest.present; nil where there are none
	lost   int           // how many were found to be lost
	news   chan struct{} // closed, and made anew, when one was
}

func (h *inherited) has(i int) bool { return h.chunks != nil && h.chunks[i/8]&(1<<(i%8)) != 0 }

// inherit notes that the present chunk i is to be hashed yet.
func (g *Ingest) inherit(i int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inherited.chunks == nil {
		g.inherited.chunks = make([]byte, len(g.present))
	}
	g.inherited.chunks[i/8] |= 1 << (i % 8)
}

// inherits reports whether chunk i is to be hashed yet.
func (g *Ingest) inherits(i int) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.inherited.has(i)
}

// Lost is how many chunks were present at first, and then found to have been lost since they were written.
func (g *Ingest) Lost() int {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.inherited.lost
}

// ready is check for a reader.
func (g *Ingest) ready(i int, file *os.File) error {
	if !g.inherits(i) {
		return g.check(i)
	}
	return g.store.within(file.Name(), func() error { return g.check(i) })
}

// errLostChunk: a chunk whose mark was written is not there, or is another by now.
var errLostChunk = fmt.Errorf("it is not what the journal says: %w", content.ErrNotFound)

// check hashes chunk i, if it is inherited. It fails with errLostChunk where the chunk is not what its mark says; then
// it is absent from now on. It may have been found so since the caller saw it present.
func (g *Ingest) check(i int) error {
	if done, err := g.checked(i); done {
		return err
	}
	hashing := &g.inherited.hashing[i%len(g.inherited.hashing)]
	hashing.Lock()
	defer hashing.Unlock()
	if done, err := g.checked(i); done { // another was faster
		return err
	}
	off, n := g.cut.Range(i)
	sum := digest.SHA256.Hash()
	err := hashRange(sum, g.file, off, n)
	switch {
	case errors.Is(err, os.ErrClosed):
		return content.ErrClosed
	case err != nil && exhausted(err):
		return fmt.Errorf("chunk %d: %w", i, diskError(err))
	case err == nil && bytes.Equal(sum.Sum(nil), cidSum(g.CID(i))):
		g.mu.Lock()
		defer g.mu.Unlock()
		g.inherited.chunks[i/8] &^= 1 << (i % 8)
		return nil
	}
	if err := g.journal.clear(i); err != nil {
		return err
	}
	g.lose(i)
	return fmt.Errorf("chunk %d: %w", i, errLostChunk)
}

// checked is what check would return, if that is known.
func (g *Ingest) checked(i int) (done bool, err error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	switch {
	case g.inherited.has(i):
		return false, nil
	case !g.has(i):
		return true, fmt.Errorf("chunk %d: %w", i, errLostChunk)
	}
	return true, nil
}

// lose makes an inherited chunk an absent one.
func (g *Ingest) lose(i int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, n := g.cut.Range(i)
	g.inherited.chunks[i/8] &^= 1 << (i % 8)
	g.present[i/8] &^= 1 << (i % 8)
	g.missing++
	g.bytes -= n
	if sum := [sumSize]byte(cidSum(g.chunks.CID(i))); g.bySum[sum] == int32(i) {
		delete(g.bySum, sum)
	}
	g.inherited.lost++
	close(g.inherited.news)
	g.inherited.news = make(chan struct{})
}

// checkAll hashes what is inherited. It gives up where the disk fails, which whoever needs a chunk is told by himself.
func (g *Ingest) checkAll() {
	for i := range g.Len() {
		select {
		case <-g.follow.stop:
			return
		default:
		}
		if !g.inherits(i) {
			continue
		}
		err := g.store.watched("hash", g.file.Name(), false, func() error { return g.check(i) })
		if err != nil && !errors.Is(err, errLostChunk) {
			return
		}
	}
	if lost := g.Lost(); lost > 0 {
		g.store.log.Warn("chunks of a partial ingest were lost", "digest", g.digest, "chunks", lost)
	}
}
