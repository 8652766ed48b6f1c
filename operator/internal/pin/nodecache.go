package pin

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/apply"
)

// +kubebuilder:rbac:groups=shoal.dev,resources=nodecaches,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=shoal.dev,resources=peers,verbs=get;list;watch
// +kubebuilder:rbac:groups=shoal.dev,resources=peers/finalizers,verbs=update

// NodeCacheReconciler tells nodes what the plan has for them.
type NodeCacheReconciler struct {
	Client client.Client
	Board  *Board
}

// SetupWithManager wires the reconciler to the plan, to Peers that go, and to NodeCaches that someone else changes.
func (r *NodeCacheReconciler) SetupWithManager(mgr ctrl.Manager) error {
	gone := predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return false },
		UpdateFunc: func(event.UpdateEvent) bool { return false },
	}
	return ctrl.NewControllerManagedBy(mgr).Named("nodecache").
		For(&v1alpha1.NodeCache{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.Peer{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(gone)).
		WatchesRawSource(r.Board.nodes.source()).
		WithOptions(controller.Options{MaxConcurrentReconciles: 8}).
		Complete(r)
}

// Reconcile applies the NodeCache of one node. Without Peer there is none.
func (r *NodeCacheReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	made := r.Board.Plan()
	if made == nil {
		return ctrl.Result{}, nil // the plan, once made, tells every node that differs from it
	}
	var have v1alpha1.NodeCache
	err := r.Client.Get(ctx, req.NamespacedName, &have)
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("get NodeCache: %w", err)
	}
	exists := err == nil

	var peer v1alpha1.Peer
	if err := r.Client.Get(ctx, req.NamespacedName, &peer); apierrors.IsNotFound(err) {
		if exists {
			err := r.Client.Delete(ctx, &have, client.Preconditions{UID: &have.UID})
			return ctrl.Result{}, client.IgnoreNotFound(err)
		}
		return ctrl.Result{}, nil
	} else if err != nil {
		return ctrl.Result{}, fmt.Errorf("get Peer: %w", err)
	}

	want, planned := made.Assignments[req.Name]
	if !planned || exists && slices.EqualFunc(have.Spec.Pins, want, sameAssignment) &&
		metav1.IsControlledBy(&have, &peer) {
		return ctrl.Result{}, nil
	}
	return ctrl.Result{}, apply.Object(ctx, r.Client, &v1alpha1.NodeCache{
		ObjectMeta: metav1.ObjectMeta{
			Name: req.Name,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(&peer,
				v1alpha1.GroupVersion.WithKind("Peer"))},
		},
		Spec: v1alpha1.NodeCacheSpec{Pins: want},
	})
}
