package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// ErrReadOnly: blocks come and go with blobs, not one by one.
var ErrReadOnly = errors.New("blockstore is a read-only view of the blobs")

// cheapToVerify is the size in bytes up to which a block is hashed whenever it is read: manifests, configs, tails.
// Larger ones are left to the receiver, who hashes every block anyway, and to Scrub.
const cheapToVerify = 64 << 10

// blockView is the store as boxo's Blockstore. No block of it is larger than a chunk (1 MiB) or an inner UnixFS node of
// 1,024 links, so all are below Bitswap's 2 MiB.
type blockView struct{ s *Store }

var _ blockstore.Blockstore = blockView{}

// Blockstore is a read view: the leaves and pieces of committed blobs, the chunks of open ingests and of the runtime's
// blobs whose chunk map was computed, as raw blocks; and the inner nodes and roots of all but the ingests as dag-pb
// blocks. Blobs of the runtime of at most one chunk are found without that. Writing fails with ErrReadOnly.
func (s *Store) Blockstore() blockstore.Blockstore { return blockView{s} }

// place is where a block's bytes are.
type place struct {
	ing   *Ingest // for a chunk of an ingest
	blob  *entry  // else
	cut   content.Cut
	chunk int
	node  []byte // for an inner node: its bytes
}

func (p place) size() int {
	if p.node != nil {
		return len(p.node)
	}
	_, n := p.cut.Range(p.chunk)
	return int(n)
}

// find calls f with places of the block, most useful first, until f returns true.
func (v blockView) find(c cid.Cid, f func(place) bool) error {
	sum := cidSum(c)
	if sum == nil || !v.s.isOpen() {
		return nil
	}
	switch c.Type() {
	case cid.Raw:
		return v.findChunk(c, [sumSize]byte(sum), f)
	case cid.DagProtobuf:
		return v.s.index.node(sum, func(d digest.Digest, raw []byte) bool {
			e, err := v.s.known(d)
			return err == nil && e != nil && f(place{blob: e, node: bytes.Clone(raw)})
		})
	}
	return nil
}

func (v blockView) findChunk(c cid.Cid, sum [sumSize]byte, f func(place) bool) error {
	for _, ing := range v.s.openIngests() {
		if i, ok := ing.lookup(sum); ok && f(place{ing: ing, cut: ing.cut, chunk: i}) {
			return nil
		}
	}
	// Reading a place may drop its blob from the index, which must not happen within the index's own transaction.
	var places []place
	err := v.s.index.chunk(sum[:], func(d digest.Digest, g content.Grain, i int) bool {
		e, err := v.s.known(d)
		if err != nil || e == nil {
			return false
		}
		if cut := g.Cut(e.size); i < cut.Len() {
			places = append(places, place{blob: e, cut: cut, chunk: i})
		}
		return false
	})
	if err != nil {
		return err
	}
	if slices.ContainsFunc(places, f) {
		return nil
	}
	return v.findSmallRuntime(c, f)
}

// findSmallRuntime maps a blob of the runtime that is a block by itself.
func (v blockView) findSmallRuntime(c cid.Cid, f func(place) bool) error {
	d, err := content.CIDDigest(c)
	if err != nil {
		return nil // not the name of a blob
	}
	fi, err := v.s.runtimeFile(d)
	if err != nil || fi.Size() > content.ChunkSize {
		return nil
	}
	if _, err := v.s.ChunkMap(d); err != nil {
		return nil // damaged or gone, and logged
	}
	if e, err := v.s.known(d); err == nil && e != nil {
		f(place{blob: e, cut: content.CutLeaves(e.size)})
	}
	return nil
}

func (s *Store) isOpen() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return !s.closed
}

func (s *Store) openIngests() []*Ingest {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]*Ingest, 0, len(s.ingests))
	for _, g := range s.ingests {
		list = append(list, g)
	}
	return list
}

// read returns the block, or an error if this place cannot give it.
func (v blockView) read(p place, c cid.Cid) (blocks.Block, error) {
	b := &lentBlock{cid: c, data: p.node}
	if p.node == nil {
		b.take(p.size())
		if err := v.readChunk(p, cidSum(c), b.data); err != nil {
			b.Release()
			return nil, err
		}
	}
	if len(b.data) <= cheapToVerify && !bytes.Equal(cidSum(content.ChunkCID(b.data)), cidSum(c)) {
		b.Release()
		return nil, content.ErrDigestMismatch
	}
	if p.blob != nil {
		p.blob.touch(time.Now())
	}
	return b, nil
}

// lentBlock is a block in a buffer that another one gets after Release. One that is never released is garbage as any
// other.
type lentBlock struct {
	cid    cid.Cid
	data   []byte
	buffer *[content.ChunkSize]byte // nil: the data are its own
}

var chunkBuffers = sync.Pool{New: func() any { return new([content.ChunkSize]byte) }}

func (b *lentBlock) take(size int) {
	if size <= cheapToVerify {
		b.data = make([]byte, size)
		return
	}
	b.buffer = chunkBuffers.Get().(*[content.ChunkSize]byte)
	b.data = b.buffer[:size]
}

func (b *lentBlock) Cid() cid.Cid    { return b.cid }
func (b *lentBlock) RawData() []byte { return b.data }
func (b *lentBlock) String() string  { return fmt.Sprintf("[Block %s]", b.cid) }

// Loggable is what boxo logs of a block.
func (b *lentBlock) Loggable() map[string]any { return map[string]any{"block": b.cid.String()} }

// Release ends the use of the block's bytes. It is called once at most.
func (b *lentBlock) Release() {
	if b.buffer != nil {
		chunkBuffers.Put(b.buffer)
	}
}

func (v blockView) readChunk(p place, sum, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if p.ing != nil {
		_, err := p.ing.ReadChunk(p.chunk, data, 0)
		return err
	}
	f, err := v.s.openEntry(p.blob)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	check := v.s.newChecker(p.blob.digest, p.blob.size, p.blob)
	if len(data) <= cheapToVerify {
		check.age = 0
	}
	if p.cut != content.CutLeaves(p.blob.size) {
		return check.watch(f).read(data, p.cut.Start(p.chunk))
	}
	return check.read(f, p.chunk, sum, data)
}

// Get reads a block, with one pread as a rule. A block that is not here is an ipld.ErrNotFound, and so is one whose
// bytes are damaged. The block has a method Release, by which a caller who has no more use for its bytes may give back
// their buffer.
func (v blockView) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	var b blocks.Block
	var last error
	err := v.find(c, func(p place) bool {
		if last = ctx.Err(); last != nil {
			return true
		}
		b, last = v.read(p, c)
		return last == nil
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("block %s: %w", c, err)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case b == nil:
		if last != nil {
			v.s.log.Warn("block could not be read", "cid", c, "error", last)
		}
		return nil, ipld.ErrNotFound{Cid: c}
	}
	return b, nil
}

// Has reports whether the block is here.
func (v blockView) Has(_ context.Context, c cid.Cid) (bool, error) {
	found := false
	err := v.find(c, func(place) bool {
		found = true
		return true
	})
	if err != nil {
		return false, fmt.Errorf("block %s: %w", c, err)
	}
	return found, nil
}

// GetSize is the block's size in bytes.
func (v blockView) GetSize(_ context.Context, c cid.Cid) (int, error) {
	size := -1
	err := v.find(c, func(p place) bool {
		size = p.size()
		return true
	})
	if err != nil {
		return -1, fmt.Errorf("block %s: %w", c, err)
	}
	if size < 0 {
		return -1, ipld.ErrNotFound{Cid: c}
	}
	return size, nil
}

func (blockView) AllKeysChan(context.Context) (<-chan cid.Cid, error) {
	return nil, fmt.Errorf("list all blocks: %w", errors.ErrUnsupported)
}

func (blockView) Put(_ context.Context, b blocks.Block) error {
	return fmt.Errorf("put block %s: %w", b.Cid(), ErrReadOnly)
}

func (blockView) PutMany(context.Context, []blocks.Block) error {
	return fmt.Errorf("put blocks: %w", ErrReadOnly)
}

func (blockView) DeleteBlock(_ context.Context, c cid.Cid) error {
	return fmt.Errorf("delete block %s: %w", c, ErrReadOnly)
}
