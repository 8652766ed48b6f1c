package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// mostWindow and leastWindow bound how many leaves would fit into a window. The more it has, the later a node may
	// begin and still find with others what they have read.
	mostWindow  = 128
	leastWindow = 16
	// windowSuffix marks a window's file, which has no name any more once it is open.
	windowSuffix = ".window"
)

// window is the part of an ingest that is here at a time, of a blob that has no room as a whole. Its file has a slot
// for each of a few chunks, and nothing of it outlives the process.
type window struct {
	size  int         // slots
	free  []int       // slots without a chunk, those that never had one below the others
	used  int         // slots that have ever had one: the file has them
	at    map[int]use // by chunk
	fills int         // how often a slot has been filled
}

// use is one chunk's use of a slot: no other has the same fill.
type use struct{ slot, fill int }

// Window opens an ingest of a blob that does not fit: it holds a few chunks at a time, and they are given to peers like
// any others. Its writer makes room before, by Drop. It is never complete. It takes what it may hold at once from its
// pool: at most half of what other windows leave, within bounds, so that several fit. It fails as Ingest does, also
// with content.ErrNoSpace where not even a small window fits. As of an ingest, nothing has to go before a chunk comes.
func (s *Store) Window(d digest.Digest, size int64, origin Origin) (*Ingest, error) {
	g, err := s.openWindow(d, size, origin)
	if err != nil {
		return nil, fmt.Errorf("window of %s of %d bytes: %w", d, size, diskError(err))
	}
	return g, nil
}

func (s *Store) openWindow(d digest.Digest, size int64, origin Origin) (*Ingest, error) {
	g, err := s.newIngest(d, size, origin)
	if err != nil {
		return nil, err
	}
	g.window = &window{at: map[int]use{}}
	if err := s.dropPartial(g.id()); err != nil {
		return nil, err
	}
	if err := s.admitWindow(g); err != nil {
		return nil, err
	}
	if err := g.openWindow(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// admitWindow claims the digest, if room could be made for a window, for as large a one as there may be beside others.
func (s *Store) admitWindow(g *Ingest) error {
	s.room.Lock()
	defer s.room.Unlock()
	s.mu.RLock()
	err := s.claimable(g.digest)
	s.mu.RUnlock()
	if err != nil {
		return err
	}
	pool := g.origin.Pool
	left, coming, bounded := s.windowsLeft(pool)
	for n := mostWindow; n >= leastWindow; n /= 2 {
		bytes := int64(n) * content.ChunkSize
		tooMuch := bounded && bytes > max(left/2, leastWindow*content.ChunkSize)
		if bytes >= g.size || tooMuch {
			continue
		}
		if _, _, err := s.evictable(pool, coming+bytes, partialID{}); err != nil {
			continue
		}
		g.window.size = g.cut.At(bytes)
		for slot := range g.window.size {
			g.window.free = append(g.window.free, g.window.size-1-slot)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.claimable(g.digest); err != nil {
			return err
		}
		s.ingests[g.digest] = g
		return nil
	}
	s.metrics.refused(pool)
	return fmt.Errorf("not even a window fits: %w", content.ErrNoSpace)
}

// windowsLeft is what a pool may hold beside the windows that it has, and how much of these is still to come. bounded
// is false where only the disk says how much.
func (s *Store) windowsLeft(pool Pool) (left, coming int64, bounded bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	left = s.limits.capacity(pool)
	bounded = left > 0
	for _, g := range s.ingests {
		if g.window != nil && s.limits.share(pool, g.origin.Pool) {
			all := g.cut.Start(g.window.size)
			left -= all
			coming += all - g.taken()
		}
	}
	return left, coming, bounded
}

// openWindow makes the file.
func (g *Ingest) openWindow() error {
	g.commits.Lock() // so that the store may be closed before or after, but not meanwhile
	defer g.commits.Unlock()
	path := flat(g.store.ingestDir, g.digest) + windowSuffix
	if _, err := g.create(path); err != nil {
		return err
	}
	if err := g.store.disk.remove(path); err != nil {
		return err
	}
	g.setPhase(phaseOpen)
	return nil
}

// Slots is how many chunks the ingest may hold at a time, 0 where that is all of them.
func (g *Ingest) Slots() int {
	if g.window == nil {
		return 0
	}
	return g.window.size
}

// Drop lets go of chunk i of a window. It reports whether no other chunk of the window has the same bytes, as far as is
// known.
func (g *Ingest) Drop(i int) (gone bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.window == nil || !g.has(i) {
		return false
	}
	_, n := g.cut.Range(i)
	g.present[i/8] &^= 1 << (i % 8)
	g.missing++
	g.bytes -= n
	if sum := [sumSize]byte(cidSum(g.chunks.CID(i))); g.bySum[sum] == int32(i) {
		delete(g.bySum, sum)
		gone = true
	}
	g.window.free = append(g.window.free, g.window.at[i].slot)
	delete(g.window.at, i)
	return gone
}

// writeSlot stores chunk i in a free slot. A chunk that was here before must be the same again: so whoever has read all
// of the window, in order and once, knows about all that was ever given of it. A slot has room made at its first use.
func (g *Ingest) writeSlot(i int, c cid.Cid, data []byte) error {
	g.mu.Lock()
	if had := g.chunks.CID(i); had.Defined() && had != c {
		g.mu.Unlock()
		return fmt.Errorf("it was here as %s, not %s: %w", had, c, content.ErrDigestMismatch)
	}
	last := len(g.window.free) - 1
	if last < 0 {
		g.mu.Unlock()
		return fmt.Errorf("the window holds its %d chunks: %w", g.window.size, content.ErrNoSpace)
	}
	slot := g.window.free[last]
	g.window.free = g.window.free[:last]
	file, fresh := g.file, slot >= g.window.used
	g.mu.Unlock()

	release, err := func() {}, error(nil)
	if fresh {
		release, err = g.store.reserve(g.origin.Pool, g.cut.Chunk())
	}
	if err == nil {
		defer release()
		err = g.store.disk.writeAt(file, data, g.cut.Start(slot))
	}
	g.mu.Lock()
	if err != nil {
		g.window.free = append(g.window.free, slot)
	} else {
		g.window.fills++
		g.window.used = max(g.window.used, slot+1)
		g.window.at[i] = use{slot, g.window.fills}
	}
	g.mu.Unlock()
	if err != nil {
		return g.failedWrite(err)
	}
	if err := g.note(i, c); err != nil {
		return err
	}
	g.mu.Lock()
	g.bySum[[sumSize]byte(cidSum(c))] = int32(i) // the newest of chunks that are alike stays longest
	g.mu.Unlock()
	g.store.metrics.ingested.Add(float64(len(data)))
	return nil
}

// readSlot reads from chunk i of a window. It holds no lock while the disk takes its time, and fails with
// content.ErrNotFound where the chunk was let go of meanwhile: its slot may have been another's by then.
func (g *Ingest) readSlot(i int, p []byte, off int64) (int, error) {
	at, file, err := g.slot(i)
	if err != nil {
		return 0, err
	}
	var n int
	_, size := g.cut.Range(i)
	err = g.store.watched("read", file.Name(), true, func() (err error) {
		n, err = io.NewSectionReader(file, g.cut.Start(at.slot), size).ReadAt(p, off)
		return err
	})
	switch now, _, gone := g.slot(i); {
	case gone != nil:
		return 0, gone
	case now != at:
		return 0, content.ErrNotFound
	}
	return n, err
}

// slot is where chunk i of a window is now.
func (g *Ingest) slot(i int) (use, *os.File, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	switch {
	case g.phase == phaseOpening || g.phase == phaseClosed:
		return use{}, nil, content.ErrClosed
	case !g.has(i):
		return use{}, nil, content.ErrNotFound
	}
	return g.window.at[i], g.file, nil
}

// lentSection is a part of a chunk of a window, in a buffer that is another's once it is closed.
type lentSection struct {
	*bytes.Reader
	buffer *[content.ChunkSize]byte
}

// Close gives the buffer back.
func (s *lentSection) Close() error {
	if s.buffer != nil {
		s.Reset(nil)
		chunkBuffers.Put(s.buffer)
		s.buffer = nil
	}
	return nil
}

// slotSection is SectionWriterTo for a window.
func (g *Ingest) slotSection(i int, off, n int64) (io.ReadCloser, error) {
	_, size := g.cut.Range(i)
	if off < 0 || n < 0 || off > size-n {
		return nil, fmt.Errorf("range of %d bytes at %d is outside its %d bytes", n, off, size)
	}
	buffer := chunkBuffers.Get().(*[content.ChunkSize]byte)
	if _, err := g.readSlot(i, buffer[:n], off); err != nil && !errors.Is(err, io.EOF) {
		chunkBuffers.Put(buffer)
		return nil, err
	}
	return &lentSection{Reader: bytes.NewReader(buffer[:n]), buffer: buffer}, nil
}
