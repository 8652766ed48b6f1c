package content

// Cut is how a blob is cut into chunks. All that goes from the index of a chunk to bytes, or back, goes through it.
type Cut struct {
	size  int64 // of the blob
	chunk int64 // of each chunk but the last, which may be shorter
}

// CutLeaves cuts a blob of size bytes into the leaves of its UnixFS file.
func CutLeaves(size int64) Cut { return Cut{size, ChunkSize} }

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
