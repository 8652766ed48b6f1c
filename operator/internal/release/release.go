// Package release lets go of what only a running operator lets go of: the finalizers of pins that are to be purged, and the
// agents' rights to pull secrets in users' namespaces. It is for when the last operator has gone, as after an uninstallation:
// without it such pins, their namespaces and the resource definition could not be deleted, and the rights would stay for a service
// account that anyone may make again. The copies that were to be purged stay on the nodes.
package release

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	rbacv1 "k8s.io/api/rbac/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/retry"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/access"
)

// ErrOperatorRuns is wrapped when the lease was not to be had, for an operator holds it.
var ErrOperatorRuns = errors.New("an operator still runs, and would set the finalizers again")

// page is the number of pins that are listed at one time.
const page = 500

// Released counts what was let go of.
type Released struct {
	// Pins that had the finalizer, Rights that were taken from the agents: Roles and RoleBindings.
	Pins, Rights int
}

// Run takes Shoal's finalizer off every pin, other people's finalizers stay, and deletes the rights to pull secrets. It does so as
// the leader of the operators, whose lease is namespace/name, so that none of them undoes it, and waits for the lease until ctx
// ends. Where the cluster does not know the kind there are no pins.
func Run(ctx context.Context, config *rest.Config, namespace, name string, log *slog.Logger) (released Released, err error) {
	scheme := runtime.NewScheme() // reads metadata only, which needs no types, but for the Status that answers a deletion
	metav1.AddToGroupVersion(scheme, metav1.Unversioned)
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return released, fmt.Errorf("client: %w", err)
	}
	done := make(chan error, 1)
	elector, err := newElector(config, namespace, name, func(ctx context.Context) {
		var stripped, revoked error
		released.Pins, stripped = strip(ctx, c, log)
		released.Rights, revoked = revoke(ctx, c, log)
		done <- errors.Join(stripped, revoked)
	})
	if err != nil {
		return released, fmt.Errorf("lease %s/%s: %w", namespace, name, err)
	}
	leading, cancel := context.WithCancel(klog.NewContext(ctx, logr.FromSlogHandler(log.Handler())))
	ended := make(chan struct{})
	go func() { elector.Run(leading); close(ended) }()
	defer func() { cancel(); <-ended }()
	select {
	case err := <-done:
		return released, err
	case <-ended:
		return Released{}, fmt.Errorf("lease %s/%s is held by %q: %w: %w", namespace, name, elector.GetLeader(), ErrOperatorRuns, context.Cause(ctx))
	}
}

// newElector makes one that works when it is the leader of the operators. Its times are controller-runtime's.
func newElector(config *rest.Config, namespace, name string, work func(context.Context)) (*leaderelection.LeaderElector, error) {
	leases, err := coordinationv1.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: name, ReleaseOnCancel: true,
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Client: leases,
			LockConfig: resourcelock.ResourceLockConfig{Identity: "release-" + rand.Text()},
		},
		LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: work, OnStoppedLeading: func() {}},
	})
}

// strip takes the finalizer off every pin.
func strip(ctx context.Context, c client.Client, log *slog.Logger) (released int, err error) {
	pins := &metav1.PartialObjectMetadataList{}
	pins.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("ArtifactPinList"))
	for {
		err := c.List(ctx, pins, client.Limit(page), client.Continue(pins.Continue))
		if apimeta.IsNoMatchError(err) {
			return released, nil
		}
		if err != nil {
			return released, fmt.Errorf("list pins: %w", err)
		}
		for i := range pins.Items {
			p := &pins.Items[i]
			if !controllerutil.ContainsFinalizer(p, v1alpha1.PurgeFinalizer) {
				continue
			}
			if err := stripOne(ctx, c, p); err != nil {
				return released, fmt.Errorf("finalizer of pin %s: %w", client.ObjectKeyFromObject(p), err)
			}
			released++
			log.Info("Pin released", "pin", client.ObjectKeyFromObject(p), "deleted", !p.DeletionTimestamp.IsZero())
		}
		if pins.Continue == "" {
			return released, nil
		}
	}
}

// stripOne writes what it has read only, for finalizers are one list and others write it too. That the pin is gone is no error.
func stripOne(ctx context.Context, c client.Client, p *metav1.PartialObjectMetadata) error {
	p.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("ArtifactPin"))
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		if err := c.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return err
		}
		patch := client.MergeFromWithOptions(p.DeepCopy(), client.MergeFromWithOptimisticLock{})
		if !controllerutil.RemoveFinalizer(p, v1alpha1.PurgeFinalizer) {
			return nil
		}
		return c.Patch(ctx, p, patch)
	})
	return client.IgnoreNotFound(err)
}

// revoke deletes the agents' rights to pull secrets. It asks for them by name, as its own rights are for no other.
func revoke(ctx context.Context, c client.Client, log *slog.Logger) (revoked int, err error) {
	for _, kind := range []string{"RoleBinding", "Role"} {
		all := &metav1.PartialObjectMetadataList{}
		all.SetGroupVersionKind(rbacv1.SchemeGroupVersion.WithKind(kind + "List"))
		err := c.List(ctx, all, client.MatchingFields{"metadata.name": access.Name}, client.MatchingLabels{v1alpha1.ManagedByLabel: v1alpha1.ManagedByOperator})
		if err != nil {
			return revoked, fmt.Errorf("list %ss: %w", kind, err)
		}
		for i := range all.Items {
			o := &all.Items[i]
			o.SetGroupVersionKind(rbacv1.SchemeGroupVersion.WithKind(kind))
			if err := c.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
				return revoked, fmt.Errorf("delete %s %s: %w", kind, client.ObjectKeyFromObject(o), err)
			}
			revoked++
			log.Info("Right to pull secrets revoked", "kind", kind, "namespace", o.Namespace)
		}
	}
	return revoked, nil
}
