package swarm

import (
	"context"
	"sync/atomic"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/shoal-cache/shoal/node/internal/bitswapnet"
	"github.com/shoal-cache/shoal/node/internal/lru"
)

// servedBlocks are the blocks as the server reads them: paced by the upload limit, and each read once where several
// peers want it at the same time, as they do of a chunk's home.
type servedBlocks struct {
	blockstore.Blockstore
	limit   *rate.Limiter
	recent  *lru.Cache[cid.Cid, *sharedBlock]
	sizes   *lru.Cache[cid.Cid, int] // bytes of blocks that the server was asked for last
	reading singleflight.Group
}

// keptBlocks bounds the memory for blocks that were just read: 16 MiB.
const keptBlocks = 16

func newServedBlocks(bs blockstore.Blockstore, limit *rate.Limiter) *servedBlocks {
	release := func(_ cid.Cid, b *sharedBlock) { b.Release() }
	return &servedBlocks{Blockstore: bs, limit: limit, recent: lru.NewWithEvict(keptBlocks, release),
		sizes: lru.New[cid.Cid, int](maxRecent)}
}

// GetSize is what the server asks when a peer wants a block.
func (s *servedBlocks) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	n, err := s.Blockstore.GetSize(ctx, c)
	if err == nil {
		s.sizes.Add(c, n)
	}
	return n, err
}

// sizeOf is how long a block is that a peer has just wanted, 0 where it is not here.
func (s *servedBlocks) sizeOf(c cid.Cid) int64 {
	n, _ := s.sizes.Get(c)
	return int64(n)
}

// Get reads a block. A block that was just read is not read again, though its blob may be gone: it is the block all the
// same. The block is a bitswapnet.Lent.
func (s *servedBlocks) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	b, err := s.get(ctx, c)
	if err != nil {
		return nil, err
	}
	if s.limit.Limit() != rate.Inf {
		if err := s.limit.WaitN(ctx, min(len(b.RawData()), s.limit.Burst())); err != nil {
			b.Release()
			return nil, err
		}
	}
	return b, nil
}

func (s *servedBlocks) get(ctx context.Context, c cid.Cid) (*sharedBlock, error) {
	if b, ok := s.recent.Get(c); ok && b.acquire() {
		return b, nil
	}
	v, err, _ := s.reading.Do(c.KeyString(), func() (any, error) {
		b, err := s.read(context.WithoutCancel(ctx), c) // for all who want it
		if err == nil {
			s.recent.Add(c, b)
		}
		return b, err
	})
	if err != nil {
		return nil, err
	}
	if b := v.(*sharedBlock); b.acquire() {
		return b, nil
	}
	return s.read(ctx, c) // it was given up between its reading and now
}

// read reads a block for one holder.
func (s *servedBlocks) read(ctx context.Context, c cid.Cid) (*sharedBlock, error) {
	b, err := s.Blockstore.Get(ctx, c)
	if err != nil {
		return nil, err
	}
	shared := &sharedBlock{Block: b}
	shared.holders.Store(1)
	return shared, nil
}

// sharedBlock is a block with several holders, the last of whom gives its buffer back. A holder that forgets to release
// it costs no more than that buffer's next use.
type sharedBlock struct {
	blocks.Block
	holders atomic.Int32
}

var _ bitswapnet.Lent = (*sharedBlock)(nil)

// acquire adds a holder, unless the last one has gone.
func (b *sharedBlock) acquire() bool {
	for {
		n := b.holders.Load()
		if n == 0 {
			return false
		}
		if b.holders.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release ends a holder's use of the bytes.
func (b *sharedBlock) Release() {
	if b.holders.Add(-1) > 0 {
		return
	}
	if l, ok := b.Block.(bitswapnet.Lent); ok {
		l.Release()
	}
}
