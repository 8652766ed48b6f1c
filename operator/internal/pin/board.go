// Package pin carries pins out. Four controllers share the work, each with one question:
//
//	resolver   what does the pin name?          registries → ArtifactPin.status.artifacts
//	planner    who is to keep what?             everything → a plan, in memory (package plan)
//	nodecache  does each node know?             plan → NodeCache.spec
//	status     how does each pin fare?          plan → ArtifactPin.status
//	startup    may a starting node take pods?   plan → Node.spec.taints
//
// The plan is computed anew from the API server's objects whenever one of them changes, so nothing is lost with the
// process.
package pin

import (
	"context"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/shoal-cache/shoal/operator/internal/plan"
)

// Board is where the planner leaves its plan for the others, and tells them that it changed.
type Board struct {
	current atomic.Pointer[plan.Plan]
	// nodes, pins and starting are told of what the plan says otherwise than the API server does.
	nodes, pins, starting inbox
}

// Plan is the latest plan, nil before the first.
func (b *Board) Plan() *plan.Plan { return b.current.Load() }

// inbox is the queue of a controller. Before that has started, what is sent is dropped: it then looks at every object
// anyway.
type inbox struct {
	queue atomic.Pointer[workqueue.TypedRateLimitingInterface[reconcile.Request]]
}

func (i *inbox) source() source.Source {
	return source.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		i.queue.Store(&q)
		return nil
	})
}

func (i *inbox) send(name types.NamespacedName, delay time.Duration) {
	if q := i.queue.Load(); q != nil {
		(*q).AddAfter(reconcile.Request{NamespacedName: name}, delay)
	}
}
