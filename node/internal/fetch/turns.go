package fetch

import (
	"golang.org/x/sync/semaphore"

	"github.com/shoal-cache/shoal/node/internal/lru"
)

// turns bounds how many runs are read from one registry at one time. Each registry has turns of its own, so that one
// that hangs or drips keeps nobody from what the others have.
type turns struct {
	most int64
	of   *lru.Cache[string, *semaphore.Weighted]
}

func newTurns(most int64) turns {
	return turns{most, lru.New[string, *semaphore.Weighted](knownRegistries)}
}

func (t turns) at(registry string) *semaphore.Weighted {
	return lru.GetOrAdd(t.of, registry, semaphore.NewWeighted(t.most))
}
