package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

// followPolicy keeps the effective policy of the node in force. Until the API server has answered, what is remembered
// holds.
func (a *Agent) followPolicy(ctx context.Context) {
	if known, ok := recall[v1alpha1.EffectivePolicy](a.opts.Memory, a.log, keyPolicy); ok {
		a.enforce(known)
	}
	if !a.api.policies.synced(ctx) || !a.api.node.synced(ctx) {
		return
	}
	follow(ctx, a.policyChanged, func() {
		now, in := a.seenPolicy(), a.inForce.Load()
		if now == nil {
			return
		}
		stands := in != nil && in.Revision == now.Revision && slices.Equal(in.Policies, now.Policies) &&
			a.rejected.Load() == nil
		if !stands && a.enforce(*now) {
			remember(a.opts.Memory, a.log, keyPolicy, *now)
		}
	})
}

// RememberedPolicy is the policy that an agent of this node put in force last, for who must know it before one runs: a
// cache that starts under the limits of its configuration alone would evict what the cluster's policy lets it keep. It
// tells false where there is none, or it makes no sense any more.
func RememberedPolicy(memory content.Memory, base *policy.Policy, log *slog.Logger) (*policy.Policy, bool) {
	known, ok := recall[v1alpha1.EffectivePolicy](memory, log, keyPolicy)
	if !ok {
		return nil, false
	}
	p := compile(known, base)
	if err := p.Validate(); err != nil {
		log.Warn("remembered policy not put in force", "policies", known.Policies, "revision", known.Revision, "error",
			err)
		return nil, false
	}
	return p, true
}

// seenPolicy is the policy by the informers, nil where the one in force is to stand: while there is no Node nobody
// knows which policies match, and a cache that is made smaller for as long as a Node is made anew has lost what it
// held.
func (a *Agent) seenPolicy() *v1alpha1.EffectivePolicy {
	var labels map[string]string
	if node, ok := a.api.node.get(a.opts.NodeName); ok {
		labels = node.Labels
	} else if a.inForce.Load() != nil {
		return nil
	}
	var all []v1alpha1.CachePolicy
	for _, p := range a.api.policies.list() {
		all = append(all, *p)
	}
	effective, _ := v1alpha1.Effective(all, labels) // the operator shows the conflicts
	return &effective
}

// enforce puts a policy in force. It tells false where it makes no sense to this agent, which then keeps the last.
func (a *Agent) enforce(e v1alpha1.EffectivePolicy) bool {
	p := compile(e, a.opts.BasePolicy)
	if err := p.Validate(); err != nil {
		a.log.Error("policy not put in force", "policies", e.Policies, "revision", e.Revision, "error", err)
		a.rejected.Store(new(fmt.Sprintf("revision %s of %s: %v", e.Revision, strings.Join(e.Policies, ", "), err)))
		a.report.changed.raise()
		return false
	}
	a.opts.Policy.Store(p)
	a.inForce.Store(&e)
	a.metrics.policy.Reset()
	a.metrics.policy.WithLabelValues(e.Revision).Set(1)
	a.rejected.Store(nil)
	a.log.Info("policy in force", "policies", e.Policies, "revision", e.Revision)
	a.keeper.Retry() // pins that failed for want of room may have it now
	a.report.changed.raise()
	return true
}

// compile makes the node's policy of the cluster's. What no CachePolicy sets is as base has it, and base's rules come
// last.
func compile(e v1alpha1.EffectivePolicy, base *policy.Policy) *policy.Policy {
	p := &policy.Policy{Default: base.Default, Bandwidth: base.Bandwidth, Store: compileStore(e.Storage, base.Store)}
	p.Bandwidth.Upload = size(e.Bandwidth.Upload, nil, base.Bandwidth.Upload)
	p.Bandwidth.Download = size(e.Bandwidth.Download, nil, base.Bandwidth.Download)
	for _, r := range e.Rules {
		p.Rules = append(p.Rules, compileRule(r, base.Default))
	}
	p.Rules = append(p.Rules, base.Rules...)
	return p
}

func compileStore(s v1alpha1.StoragePolicy, base policy.Store) policy.Store {
	compiled := base
	compiled.Capacity = size(s.Capacity, s.CapacityPercent, base.Capacity)
	compiled.ModelCapacity = size(s.ModelCapacity, s.ModelCapacityPercent, base.ModelCapacity)
	compiled.MinFree = size(s.MinFree, s.MinFreePercent, base.MinFree)
	if s.HighWatermarkPercent != nil && s.LowWatermarkPercent != nil {
		compiled.HighWatermarkPercent = policy.Percent(*s.HighWatermarkPercent)
		// A store evicts down to something; 0 is how the policy package writes "not set".
		compiled.LowWatermarkPercent = policy.Percent(max(*s.LowWatermarkPercent, 1))
		if compiled.LowWatermarkPercent >= compiled.HighWatermarkPercent {
			compiled.LowWatermarkPercent = compiled.HighWatermarkPercent / 2
		}
	}
	set(&compiled.Eviction, s.Eviction)
	return compiled
}

// size is a quantity or a share of the disk, base where neither is set.
func size(bytes *resource.Quantity, percent *int32, base policy.Size) policy.Size {
	switch {
	case bytes != nil:
		return policy.Size{Bytes: bytes.Value()}
	case percent != nil:
		return policy.Size{Share: float64(*percent) / 100}
	}
	return base
}

func compileRule(r v1alpha1.RepositoryRule, base policy.Rule) policy.Rule {
	compiled := base
	compiled.Match = r.Match
	set(&compiled.Mode, r.Mode)
	setTime(&compiled.TagTTL, r.TagTTL)
	if auth := r.Authorization; auth != nil {
		set(&compiled.Authorization.Mode, auth.Mode)
		setTime(&compiled.Authorization.TTL, auth.TTL)
		set(&compiled.Authorization.OnUnreachable, auth.OnUnreachable)
	}
	if limit := r.RateLimit; limit != nil {
		if limit.RequestsPerSecond != nil {
			compiled.RateLimit.RequestsPerSecond = float64(*limit.RequestsPerSecond)
		}
		compiled.RateLimit.BytesPerSecond = size(limit.BytesPerSecond, nil, base.RateLimit.BytesPerSecond)
		if limit.Connections != nil {
			compiled.RateLimit.Connections = int(*limit.Connections)
		}
	}
	return compiled
}

// set gives field the value that a policy sets, if it does.
func set[T any](field, value *T) {
	if value != nil {
		*field = *value
	}
}

func setTime(field *time.Duration, value *metav1.Duration) {
	if value != nil {
		*field = value.Duration
	}
}
