package content

import (
	"crypto/sha256"
	"hash"
)

const (
	// pieceSize is the size in bytes of every piece of a blob but the last: what nodes read, want and send where all
	// of them can. A blob of no more than a leaf is one chunk all the same.
	pieceSize = 256 << 10
	// mostInPieces is the size in bytes of the largest blob that is cut into pieces, 1,024 of them. A larger one is cut
	// into its leaves, which bounds what a plan of it costs.
	mostInPieces = 1024 * pieceSize
)

// Grain is how finely blobs are cut. The zero value is what every release speaks.
type Grain uint8

const (
	// Leaves are those of a blob's UnixFS file, of ChunkSize: what CIDs of files are made of.
	Leaves Grain = iota
	// Pieces are quarters of leaves, unless the blob is large.
	Pieces
)

func (g Grain) String() string {
	if g == Pieces {
		return "pieces"
	}
	return "leaves"
}

// Cut cuts a blob of size bytes.
func (g Grain) Cut(size int64) Cut {
	if g == Pieces && size > ChunkSize && size <= mostInPieces {
		return Cut{size, pieceSize}
	}
	return Cut{size, ChunkSize}
}

// Cut is how a blob is cut into chunks. All that goes from the index of a chunk to bytes, or back, goes through it.
type Cut struct {
	size  int64 // of the blob
	chunk int64 // of each chunk but the last, which may be shorter
}

// CutLeaves cuts a blob of size bytes into the leaves of its UnixFS file.
func CutLeaves(size int64) Cut { return Leaves.Cut(size) }

// Size is the blob's size in bytes.
func (c Cut) Size() int64 { return c.size }

// Len is the number of chunks. An empty blob has one chunk, of no bytes.
func (c Cut) Len() int {
	if c.size <= 0 {
		return 1
	}
	return c.At(c.size-1) + 1
}

// At is the chunk in which the byte at an offset lies.
func (c Cut) At(off int64) int { return int(off / c.chunk) }

// Start is the offset at which chunk i begins.
func (c Cut) Start(i int) int64 { return int64(i) * c.chunk }

// Range is the offset and length in bytes of chunk i.
func (c Cut) Range(i int) (off, n int64) {
	off = c.Start(i)
	return off, min(c.chunk, c.size-off)
}

// Chunk is the length in bytes of every chunk but the last.
func (c Cut) Chunk() int64 { return c.chunk }

// PerLeaf is how many chunks lie in a leaf.
func (c Cut) PerLeaf() int { return int(ChunkSize / c.chunk) }

// Summer makes the chunk map of what is written to it: a blob's bytes, in order and no more than there are.
type Summer struct {
	m    *ChunkMap
	sum  hash.Hash // of the chunk at which it is
	i    int       // that chunk
	left int64     // of its bytes
}

// NewSummer makes the Summer of a blob that is cut so. It fails for a size that no blob has.
func NewSummer(cut Cut) (*Summer, error) {
	m, err := NewChunkMap(cut)
	if err != nil {
		return nil, err
	}
	s := &Summer{m: m, sum: sha256.New()}
	if _, s.left = cut.Range(0); s.left == 0 {
		s.end()
	}
	return s, nil
}

// Write never fails, and passes over what is beyond the blob's end.
func (s *Summer) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0 && s.i < s.m.Len(); {
		part := rest[:min(int64(len(rest)), s.left)]
		_, _ = s.sum.Write(part) // a hash never fails
		rest = rest[len(part):]
		if s.left -= int64(len(part)); s.left == 0 {
			s.end()
		}
	}
	return len(b), nil
}

func (s *Summer) end() {
	s.sum.Sum(s.m.sums[:s.i*hashSize])
	s.sum.Reset()
	if s.i++; s.i < s.m.Len() {
		_, s.left = s.m.cut.Range(s.i)
	}
}

// Map is the map, complete once all of the blob has been written.
func (s *Summer) Map() *ChunkMap { return s.m }
