package gate

import (
	"context"
	"sync"
	"time"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/room"
)

// hedgeLook is the least time between two looks at how long a source has been waited for.
const hedgeLook = Hedge / 20

// Questions are questions to sources, each put once for all who ask the same at that time.
type Questions struct {
	flights room.Flights
	waits   sync.Map // by key, the *content.Waiting of those that run
}

// Put runs ask for whoever puts the question of key at the same time. It goes on when a caller leaves.
func (q *Questions) Put(ctx context.Context, key string,
	ask func(context.Context) (any, error)) <-chan room.Answer {
	return q.flights.Do(ctx, key, func(ctx context.Context) (any, error) {
		ctx, w := content.ForSource(ctx)
		q.waits.Store(key, w)
		defer q.waits.Delete(key)
		return ask(ctx)
	})
}

// Lasts waits until the question of key has waited for its source for Hedge. It returns false where ctx ends before.
func (q *Questions) Lasts(ctx context.Context, key string) bool {
	for left := Hedge; left > 0; {
		if !content.Sleep(ctx, left) {
			return false
		}
		var waited time.Duration
		if w, ok := q.waits.Load(key); ok {
			waited = w.(*content.Waiting).SoFar()
		}
		if left = Hedge - waited; left > 0 {
			left = max(left, hedgeLook)
		}
	}
	return true
}

// Unheard notes that a question with ctx ended without an answer. A source that was hardly waited for, because this
// node took the time for something else, has not been silent.
func (g *Gate) Unheard(ctx context.Context, source Source, credentials string) {
	if w := content.WaitingOf(ctx); ctx.Err() != nil && w != nil && w.SoFar() < Hedge {
		return
	}
	g.Silence(source, credentials)
}
