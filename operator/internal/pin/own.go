package pin

import (
	"context"
	"fmt"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/apply"
)

// +kubebuilder:rbac:groups=shoal.dev,resources=artifactpins,verbs=create;patch

// OwnReconciler keeps the pin of Shoal's own images. The operator makes it, and not the chart, because an installation
// must not wait for it: nodes may pull these images with credentials that pins do not have.
type OwnReconciler struct {
	Client client.Client
	// Pin is what to keep, owners included.
	Pin *v1alpha1.ArtifactPin
}

// SetupWithManager wires the reconciler to its pin. One event at the start makes the pin where it is missing.
func (r *OwnReconciler) SetupWithManager(mgr ctrl.Manager) error {
	own := predicate.NewPredicateFuncs(func(o client.Object) bool {
		return client.ObjectKeyFromObject(o) == client.ObjectKeyFromObject(r.Pin)
	})
	begin := make(chan event.GenericEvent, 1)
	begin <- event.GenericEvent{Object: r.Pin}
	return ctrl.NewControllerManagedBy(mgr).Named("ownpin").
		For(&v1alpha1.ArtifactPin{}, builder.WithPredicates(own, predicate.GenerationChangedPredicate{})).
		WatchesRawSource(source.Channel(begin, &handler.EnqueueRequestForObject{})).
		Complete(r)
}

// Reconcile makes the pin, or brings it back to what it should be. Only the API server knows whether a field is there
// that was once applied and is no more, so it is asked each time; where nothing differs it writes nothing.
func (r *OwnReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	var have v1alpha1.ArtifactPin
	err := r.Client.Get(ctx, client.ObjectKeyFromObject(r.Pin), &have)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("own pin: %w", err)
	}
	if err == nil && !have.DeletionTimestamp.IsZero() {
		return reconcile.Result{}, nil
	}
	return reconcile.Result{}, apply.Object(ctx, r.Client, r.Pin)
}
