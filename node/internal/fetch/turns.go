package fetch

import (
	"cmp"
	"context"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/lru"
)

// turns bounds how many runs are read from one registry at one time. Each registry has turns of its own, so that one
// that hangs or drips keeps nobody from what the others have. Where the policy has other bounds for some of its
// repositories, or comes to have another, there are turns for each bound.
type turns struct {
	*lru.Cache[bound, *semaphore.Weighted]
}

type bound struct {
	registry string
	most     int64
}

func newTurns() turns { return turns{lru.New[bound, *semaphore.Weighted](knownRegistries)} }

func (t turns) at(registry string, most int64) *semaphore.Weighted {
	return lru.GetOrAdd(t.Cache, bound{registry, most}, semaphore.NewWeighted(most))
}

// turnsAt are those for runs of a repository.
func (fr *Fetcher) turnsAt(repo content.Repository) *semaphore.Weighted {
	return fr.turns.at(repo.Registry, cmp.Or(int64(fr.opts.Connections(repo)), fr.opts.UpstreamStreams))
}

type turnKey struct{}

// takeTurn waits for a turn, which what goes on with the returned context has until leave is called.
func takeTurn(ctx context.Context, turns *semaphore.Weighted) (taken context.Context, leave func(), err error) {
	if err := turns.Acquire(ctx, 1); err != nil {
		return nil, nil, err
	}
	leave = sync.OnceFunc(func() { turns.Release(1) })
	return context.WithValue(ctx, turnKey{}, leave), leave, nil
}

// leaveTurn gives back the turn of ctx, where it has one. Who is about to wait for memory of this node does so, and
// keeps nobody from the registry meanwhile. From then on it is that memory which bounds how many there are.
func leaveTurn(ctx context.Context) {
	if leave, ok := ctx.Value(turnKey{}).(func()); ok {
		leave()
	}
}
