package agent

import (
	"context"
	"reflect"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/agent/pin"
)

// listing is which NodeCache lists what the node keeps, and what of it that one has never listed: an earlier one did.
// The operator made the present one without knowing of it, so its silence releases nothing.
type listing struct {
	Cache    types.UID `json:"cache"`
	Unlisted []string  `json:"unlisted,omitempty"` // UIDs of pins
}

// follow is what the node is to keep by a NodeCache, where it has kept known. Without a UID in l, known was listed by
// that NodeCache: an agent of an earlier version remembered it.
func (l listing) follow(c *v1alpha1.NodeCache, known []v1alpha1.PinAssignment) (listing, []v1alpha1.PinAssignment) {
	next, keep := listing{Cache: c.UID}, slices.Clone(c.Spec.Pins)
	for _, k := range known {
		anew := l.Cache != "" && l.Cache != c.UID || slices.Contains(l.Unlisted, k.UID)
		listed := slices.ContainsFunc(c.Spec.Pins, func(a v1alpha1.PinAssignment) bool { return a.UID == k.UID })
		if k.LetsGo() {
			continue // it has said to keep nothing, and reported anew that would look like a copy
		}
		if anew && !listed && len(keep) < v1alpha1.MaxPinsPerNode { // the report holds no more
			next.Unlisted, keep = append(next.Unlisted, k.UID), append(keep, k)
		}
	}
	return next, keep
}

// followPins hands the node's assignments to the keeper. Those that were last seen stand while the API server is away,
// and while there is no NodeCache: only an entry that has left a NodeCache is released.
func (a *Agent) followPins(ctx context.Context) {
	known, ok := recall[[]v1alpha1.PinAssignment](a.opts.Memory, a.log, keyPins)
	by, _ := recall[listing](a.opts.Memory, a.log, keyListed)
	if ok {
		a.unlisted.Store(new(slices.Clone(by.Unlisted))) // by changes
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
		if !exists || c.DeletionTimestamp != nil {
			return
		}
		next, keep := by.follow(c, known)
		if ok && reflect.DeepEqual(by, next) && reflect.DeepEqual(known, keep) {
			return
		}
		by, known, ok = next, keep, true
		remember(a.opts.Memory, a.log, keyPins, known)
		remember(a.opts.Memory, a.log, keyListed, by)
		a.unlisted.Store(new(slices.Clone(by.Unlisted))) // by changes
		a.keeper.Set(known)
	})
}

// isUnlisted reports whether the node keeps a pin that its NodeCache has never listed.
func (a *Agent) isUnlisted(uid string) bool {
	all := a.unlisted.Load()
	return all != nil && slices.Contains(*all, uid)
}

// progress is how far the node is with what it keeps.
func (a *Agent) progress() []v1alpha1.PinProgress {
	all := a.keeper.Progress()
	for i := range all {
		if p := &all[i]; a.isUnlisted(p.UID) {
			if p.Reason != "" { // why it fails is for a person; the operator goes by Unlisted
				p.Message = pin.Shorten(p.Reason+": "+p.Message, pin.MaxMessage)
			}
			p.Reason = v1alpha1.ReasonUnlisted
		}
	}
	return all
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
