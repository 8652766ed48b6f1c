// Package debounce turns many events into one reconciliation a while later: for controllers that look at everything at
// once.
package debounce

import (
	"context"
	"time"

	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// To enqueues one request, delay after the first event that calls for it.
func To(request reconcile.Request, delay time.Duration) handler.EventHandler {
	return Each(func(client.Object) []reconcile.Request { return []reconcile.Request{request} }, delay)
}

// Each enqueues the requests that an object calls for, delay after the first event.
func Each(requests func(client.Object) []reconcile.Request, delay time.Duration) handler.EventHandler {
	enqueue := func(object client.Object, q queue) {
		for _, r := range requests(object) {
			q.AddAfter(r, delay)
		}
	}
	return handler.Funcs{
		CreateFunc:  func(_ context.Context, e event.CreateEvent, q queue) { enqueue(e.Object, q) },
		UpdateFunc:  func(_ context.Context, e event.UpdateEvent, q queue) { enqueue(e.ObjectNew, q) },
		DeleteFunc:  func(_ context.Context, e event.DeleteEvent, q queue) { enqueue(e.Object, q) },
		GenericFunc: func(_ context.Context, e event.GenericEvent, q queue) { enqueue(e.Object, q) },
	}
}
