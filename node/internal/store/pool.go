package store

import "github.com/shoal-cache/shoal/node/internal/content"

// Pool is a part of the store with a capacity of its own: what comes into one evicts nothing of another. A blob belongs
// to the pool into which it was first put. Where models have no capacity of their own all is one pool.
type Pool uint8

const (
	// Images is all that is in no other pool.
	Images Pool = iota
	// Models are the files of model hubs, and those that are fetched by their URL.
	Models

	poolCount
)

func (p Pool) String() string { return [poolCount]string{"images", "models"}[p] }

// known is p, or Images where p is of a release that has more pools.
func (p Pool) known() Pool {
	if p >= poolCount {
		return Images
	}
	return p
}

// PoolOf is the pool of what a request is for.
func PoolOf(req content.Request) Pool {
	if req.File != "" {
		return Models
	}
	return Images
}

// Origin tells for whom an ingest is, and how finely what is written is cut. Both sums are kept of a blob in the end.
type Origin struct {
	Source Source
	Pool   Pool
	Grain  content.Grain
}

// capacity bounds what a pool holds, with what shares it. 0: only the disk does.
func (l Limits) capacity(p Pool) int64 {
	if p == Models && l.ModelCapacity > 0 {
		return l.ModelCapacity
	}
	return l.Capacity
}

// share reports whether two pools are one.
func (l Limits) share(a, b Pool) bool { return a == b || l.ModelCapacity == 0 }

// holding is what a pool has of the store's own committed blobs.
type holding struct {
	bytes int64
	count int
}

// PoolUsage is what a pool takes and may take, in bytes, as Usage has it.
type PoolUsage struct {
	Bytes       int64
	PinnedBytes int64
	IngestBytes int64
	// Capacity is the pool's own, 0 where it has none.
	Capacity int64
}

// Room is how many bytes fit into a pool at the most, if all goes that is not pinned. bounded is false where only the
// disk says how many.
func (u Usage) Room(p Pool) (bytes, capacity int64, bounded bool) {
	own, pinned := u.Capacity-u.Models.Capacity, u.PinnedBytes
	switch {
	case u.Models.Capacity == 0:
	case p == Models:
		own, pinned = u.Models.Capacity, u.Models.PinnedBytes
	default:
		pinned -= u.Models.PinnedBytes
	}
	return max(0, own-pinned), own, own > 0
}
