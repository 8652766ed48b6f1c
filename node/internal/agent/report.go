package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// reportCache keeps the status of the node's NodeCache.
func (a *Agent) reportCache(ctx context.Context) {
	if !a.api.caches.synced(ctx) || !a.pinsLookedAt(ctx) {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() { a.watchCounters(ctx) })
	a.report.run(ctx)
}

// pinsLookedAt waits until every pin has been compared with the store, so that an agent that starts anew does not seem
// to have lost what it holds; but no longer than the time between two reports. It tells false when ctx ended before.
func (a *Agent) pinsLookedAt(ctx context.Context) bool {
	longest := time.NewTimer(v1alpha1.ReportInterval)
	defer longest.Stop()
	for !a.knowsItsPins() {
		select {
		case <-a.report.changed:
		case <-longest.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (a *Agent) knowsItsPins() bool {
	c, ok := a.api.caches.get(a.opts.NodeName)
	if !ok {
		return true
	}
	known := make(map[string]string)
	for _, p := range a.progress() {
		if p.State != v1alpha1.PinPending {
			known[p.UID] = p.Revision
		} else if p.Reason == v1alpha1.ReasonUnlisted {
			return false
		}
	}
	return !slices.ContainsFunc(c.Spec.Pins, func(p v1alpha1.PinAssignment) bool { return known[p.UID] != p.Revision })
}

// writeReport applies the status, if the operator has made the NodeCache.
func (a *Agent) writeReport(ctx context.Context) (wrote bool, err error) {
	if _, ok := a.api.caches.get(a.opts.NodeName); !ok {
		return false, nil
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": "NodeCache",
		"metadata": map[string]any{"name": a.opts.NodeName}, "status": a.status(time.Now()),
	})
	if err == nil {
		err = a.api.apply(ctx, "nodecaches", a.opts.NodeName, "status", body)
	}
	if err != nil {
		return true, fmt.Errorf("report on node %s: %w", a.opts.NodeName, err)
	}
	return true, nil
}

func (a *Agent) status(now time.Time) v1alpha1.NodeCacheStatus {
	usage, counters := a.opts.Store.Usage(), a.totals.sum(a.opts.Counters())
	s := v1alpha1.NodeCacheStatus{
		ReportedAt: &metav1.Time{Time: now},
		Version:    a.opts.Version,
		Usage: v1alpha1.CacheUsage{
			Bytes: quantity(usage.Bytes), Capacity: quantity(usage.Capacity), PinnedBytes: quantity(usage.PinnedBytes),
			Blobs: int64(usage.Blobs),
		},
		Counters: v1alpha1.CacheCounters{
			Hits: counters.Hits, Misses: counters.Misses, PeerBytes: quantity(counters.PeerBytes),
			UpstreamBytes: quantity(counters.UpstreamBytes), UploadedBytes: quantity(counters.UploadedBytes),
			SavedBytes: quantity(counters.SavedBytes),
		},
		Pins: a.progress(),
	}
	if usage.Models.Capacity > 0 {
		s.Usage.ModelCapacity = quantity(usage.Models.Capacity)
	}
	if policy := a.inForce.Load(); policy != nil {
		s.PolicyRevision = policy.Revision
	}
	for _, p := range s.Pins {
		if p.State == v1alpha1.PinReady {
			s.PinsReady++
		}
	}
	s.Summary = v1alpha1.CacheSummary{
		Pins: fmt.Sprintf("%d/%d", s.PinsReady, len(s.Pins)),
		Hits: v1alpha1.Percent(counters.Hits, counters.Hits+counters.Misses),
		Used: v1alpha1.GiB(usage.Bytes), Capacity: v1alpha1.GiB(usage.Capacity),
		Pinned:    v1alpha1.GiB(usage.PinnedBytes),
		FromPeers: v1alpha1.GiB(counters.PeerBytes), FromUpstream: v1alpha1.GiB(counters.UpstreamBytes),
		Saved: v1alpha1.GiB(counters.SavedBytes),
	}
	s.Conditions = a.conditions(s.Pins, now)
	return s
}

func quantity(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }
