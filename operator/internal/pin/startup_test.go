package pin

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/plan"
)

// oneNode holds one node, and takes whatever it is patched to.
type oneNode struct {
	client.Client
	node *corev1.Node
}

func (o oneNode) Get(_ context.Context, _ client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	o.node.DeepCopyInto(object.(*corev1.Node))
	return nil
}

func (o oneNode) Patch(_ context.Context, object client.Object, _ client.Patch, _ ...client.PatchOption) error {
	object.(*corev1.Node).DeepCopyInto(o.node)
	return nil
}

// A broken agent, or a selector that leaves the node out, must not keep all pods from it for ever.
func TestStartup_ANodeWhoseAgentIsNeverAdmittedTakesPodsAfterAWhile(t *testing.T) {
	t.Parallel()
	for name, age := range map[string]time.Duration{"a node that joins": 0, "one older than Shoal": time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			now := clocktesting.NewFakeClock(time.Unix(1e9, 0))
			node := &corev1.Node{
				ObjectMeta: metav1.ObjectMeta{Name: "new", CreationTimestamp: metav1.NewTime(now.Now().Add(-age))},
				Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: v1alpha1.StartupTaint}}},
			}
			told := events.NewFakeRecorder(1)
			r := &StartupReconciler{Client: oneNode{node: node}, Recorder: told, Clock: now, Board: &Board{}}
			r.Board.current.Store(&plan.Plan{})
			look := func() {
				_, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Name: "new"}})
				require.NoError(t, err)
			}
			look()
			now.Step(v1alpha1.StartupPatience - time.Second)
			look()
			require.NotEmpty(t, node.Spec.Taints)
			now.Step(time.Second)
			look()
			require.Empty(t, node.Spec.Taints)
			require.Contains(t, <-told.Events, "Warning AgentNotAdmitted lifted taint shoal.dev/starting")
		})
	}
}

// The alert for copies that are missing is not for what somebody asked for.
func TestCopies_OfPinsThatAreSuspendedOrWaitForTheirScheduleAreNotMissed(t *testing.T) {
	t.Parallel()
	require.Equal(t, map[string]int32{"desired": 3, "ready": 2, "pending": 1, "failed": 0}, copies(&plan.Plan{
		Pins: map[types.UID]*plan.Summary{
			"at work":   {Desired: 3, Ready: 2, Pending: 1},
			"suspended": {Desired: 5, Suspended: true},
			"waits":     {Desired: 7, Pending: 7, WindowShut: true},
		}}))
}
