package manager

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/access"
)

// The status page, which reads this cache, tells a node whose clock is off by when the API server took its report down.
func TestCache_ANodesReportIsKeptWithTheTimeWhenItCame(t *testing.T) {
	t.Parallel()
	came := metav1.NewTime(time.Unix(1e9, 0))
	report := &v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{{
		Manager: v1alpha1.AgentFieldManager, Subresource: "status", Time: &came,
		FieldsV1: metav1.NewFieldsV1(`{"f:status":{}}`),
	}}}}
	for object, of := range cacheOptions(access.Scope{}).ByObject {
		if _, ok := object.(*v1alpha1.NodeCache); ok {
			_, err := of.Transform(report)
			require.NoError(t, err)
			require.Equal(t, []metav1.ManagedFieldsEntry{{Manager: v1alpha1.AgentFieldManager, Subresource: "status",
				Time: &came}}, report.ManagedFields)
			return
		}
	}
	require.Fail(t, "a NodeCache is kept as everything else is: without the time")
}

func TestCache_WhyANodeIsNotReadyIsKept(t *testing.T) {
	t.Parallel()
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Message: "no network plugin"}
	kept, err := stripNode(&corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{ready}}})
	require.NoError(t, err)
	require.Equal(t, []corev1.NodeCondition{ready}, kept.(*corev1.Node).Status.Conditions)
}
