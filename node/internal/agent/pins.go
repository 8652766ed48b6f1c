package agent

import (
	"context"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/agent/pin"
)

// followPins hands the node's assignments to the keeper. Those that were last seen stand while the API server is away,
// and while there is no NodeCache: only an entry that has left a NodeCache is released.
func (a *Agent) followPins(ctx context.Context) {
	known, ok := recall[[]v1alpha1.PinAssignment](a.opts.Memory, a.log, keyPins)
	if ok {
		a.keeper.Set(known)
	}
	if !a.api.caches.synced(ctx) {
		return
	}
	reported := false
	follow(ctx, a.pinsChanged, func() {
		c, exists := a.api.caches.get(a.opts.NodeName)
		if exists && !reported {
			a.report.changed.raise() // now there is something to report to
		}
		reported = exists
		if !exists || c.DeletionTimestamp != nil || ok && reflect.DeepEqual(known, c.Spec.Pins) {
			return
		}
		known, ok = c.Spec.Pins, true
		remember(a.opts.Memory, a.log, keyPins, known)
		a.keeper.Set(known)
	})
}

// secrets reads pull secrets from the API server, and keeps none.
type secrets struct{ api *api }

// PullSecret reads one secret. It fails with pin.ErrSecretNotFound and pullsecret.ErrInvalid.
func (s secrets) PullSecret(ctx context.Context, namespace, name string) (pullsecret.Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	secret, err := s.api.core.Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, pin.ErrSecretNotFound
	case err != nil:
		return nil, err
	}
	return pullsecret.Parse(secret)
}
