package policy_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/policy"
)

func TestPolicy_AStatusThatIsNotTakenKeepsNoOtherFromBeingWritten(t *testing.T) {
	t.Parallel()
	scheme := runtime.NewScheme()
	require.NoError(t, errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)))
	var written []string
	c := fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
		SubResourceApply: func(_ context.Context, _ client.Client, _ string, o runtime.ApplyConfiguration,
			_ ...client.SubResourceApplyOption) error {
			named := o.(interface{ GetName() string })
			written = append(written, named.GetName())
			if named.GetName() == "b" {
				return errors.New("invalid, by a rule that is newer than it")
			}
			return nil
		}})
	for _, name := range []string{"a", "b", "c"} {
		c = c.WithObjects(&v1alpha1.CachePolicy{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	_, err := (&policy.Reconciler{Client: c.Build(), Recorder: events.NewFakeRecorder(9), Clock: clock.RealClock{}}).Reconcile(
		t.Context(), ctrl.Request{})
	require.ErrorContains(t, err, "apply status of CachePolicy /b")
	require.Equal(t, []string{"a", "b", "c"}, written)
}

// TestWhatBecomesOfAPolicy has two nodes with agents, a and b, and one without.
func TestWhatBecomesOfAPolicy(t *testing.T) {
	t.Parallel()
	var nodes []corev1.Node
	for _, name := range []string{"a", "b", "bare"} {
		nodes = append(nodes, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name,
			Labels: map[string]string{"node": name}}})
	}
	selects := func(node string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"node": node}}
	}
	inForce, _ := v1alpha1.Effective([]v1alpha1.CachePolicy{{}}, nil)
	runs := func(node string) v1alpha1.NodeCache {
		return v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: node},
			Status: v1alpha1.NodeCacheStatus{PolicyRevision: inForce.Revision}}
	}
	silent := v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: "b"}}
	rejects := *silent.DeepCopy()
	rejects.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionPolicyApplied,
		Status: metav1.ConditionFalse,
		Reason: v1alpha1.ReasonPolicyRejected, Message: "capacity is below one chunk"}}

	for name, tc := range map[string]struct {
		selector         *metav1.LabelSelector
		caches           []v1alpha1.NodeCache
		matched, applied int32
		ready            bool
		reason, message  string
	}{
		"all agents run with it": {nil, []v1alpha1.NodeCache{runs("a"), runs("b")}, 2, 2, true,
			v1alpha1.ReasonApplied, "in force on 2 nodes"},
		"one does not yet": {nil, []v1alpha1.NodeCache{runs("a"), silent}, 2, 1, false,
			v1alpha1.ReasonApplying, "1 of 2 nodes"},
		"one rejects it": {nil, []v1alpha1.NodeCache{runs("a"), rejects}, 2, 1, false,
			v1alpha1.ReasonPolicyRejected, "b: capacity is below one chunk"},
		"what one node rejects troubles no other": {selects("a"), []v1alpha1.NodeCache{runs("a"), rejects}, 1, 1, true,
			v1alpha1.ReasonApplied, "in force on 1 node"},
		"a node without agent does not count": {selects("bare"), []v1alpha1.NodeCache{runs("a")}, 0, 0, true,
			v1alpha1.ReasonNoNodeMatches, "runs an agent"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := v1alpha1.CachePolicy{ObjectMeta: metav1.ObjectMeta{Name: "p", Generation: 3},
				Spec: v1alpha1.CachePolicySpec{NodeSelector: tc.selector}}
			s := policy.Describe([]v1alpha1.CachePolicy{p}, nodes, tc.caches, time.Now())[0]
			require.Equal(t, []int32{tc.matched, tc.applied}, []int32{s.MatchedNodes, s.AppliedNodes})
			c := apimeta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady)
			require.Equal(t, tc.ready, c.Status == metav1.ConditionTrue)
			require.Equal(t, tc.reason, c.Reason)
			require.Contains(t, c.Message, tc.message)
			require.Equal(t, int64(3), c.ObservedGeneration)
		})
	}
}
