package membership

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// DownSince is since when a node can't be counted on: since it is not Ready, or since its agent should have reported and
// did not. Zero: it is up. peer and cache may be nil; an agent that has just registered has time to make its first report.
func DownSince(node *corev1.Node, peer *v1alpha1.Peer, cache *v1alpha1.NodeCache, now time.Time) time.Time {
	if node == nil {
		return now
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return c.LastTransitionTime.Time
		}
	}
	heard := time.Time{}
	if peer != nil {
		heard = peer.CreationTimestamp.Time
	}
	if cache != nil && cache.Status.ReportedAt != nil && cache.Status.ReportedAt.After(heard) {
		heard = cache.Status.ReportedAt.Time
	}
	if silent := heard.Add(v1alpha1.StaleAfter); now.After(silent) {
		return silent
	}
	return time.Time{}
}
