// Package release lets go of what only a running operator lets go of: the finalizers of pins that are to be purged. It is for
// when the last operator has gone, as after an uninstallation: without it such pins, their namespaces and the resource
// definition could not be deleted. The copies that were to be purged stay on the nodes.
package release

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
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
)

// ErrOperatorRuns is wrapped when the lease was not to be had, for an operator holds it.
var ErrOperatorRuns = errors.New("an operator still runs, and would set the finalizers again")

// page is the number of pins that are listed at one time.
const page = 500

// Pins takes Shoal's finalizer off every pin, and returns how many had it; other people's finalizers stay. It does so as the
// leader of the operators, whose lease is namespace/name, so that none of them sets the finalizer again, and waits for the
// lease until ctx ends. Where the cluster does not know the kind there is nothing to do.
func Pins(ctx context.Context, config *rest.Config, namespace, name string, log *slog.Logger) (released int, err error) {
	c, err := client.New(config, client.Options{Scheme: runtime.NewScheme()}) // reads metadata only, which needs no types
	if err != nil {
		return 0, fmt.Errorf("client: %w", err)
	}
	stripped := make(chan error, 1)
	elector, err := newElector(config, namespace, name, func(ctx context.Context) {
		var err error
		released, err = strip(ctx, c, log)
		stripped <- err
	})
	if err != nil {
		return 0, fmt.Errorf("lease %s/%s: %w", namespace, name, err)
	}
	leading, cancel := context.WithCancel(klog.NewContext(ctx, logr.FromSlogHandler(log.Handler())))
	ended := make(chan struct{})
	go func() { elector.Run(leading); close(ended) }()
	defer func() { cancel(); <-ended }()
	select {
	case err := <-stripped:
		return released, err
	case <-ended:
		return 0, fmt.Errorf("lease %s/%s is held by %q: %w: %w", namespace, name, elector.GetLeader(), ErrOperatorRuns, context.Cause(ctx))
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
