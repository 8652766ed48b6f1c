package pin

import (
	"context"
	"encoding/json"
	"maps"
	"testing"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
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

// oneNode holds one node as an API server does, and shows of its annotations what the operator's cache keeps.
type oneNode struct {
	client.Client
	node *corev1.Node
}

func (o oneNode) Get(_ context.Context, _ client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	shown := object.(*corev1.Node)
	o.node.DeepCopyInto(shown)
	maps.DeleteFunc(shown.Annotations, func(key, _ string) bool { return key != v1alpha1.StartingSince })
	return nil
}

func (o oneNode) Patch(_ context.Context, object client.Object, patch client.Patch, _ ...client.PatchOption) error {
	change, err := patch.Data(object)
	if err != nil {
		return err
	}
	before, err := json.Marshal(o.node)
	if err != nil {
		return err
	}
	after, err := jsonpatch.MergePatch(before, change)
	if err != nil {
		return err
	}
	*o.node = corev1.Node{}
	return json.Unmarshal(after, o.node)
}

// A broken agent, or a selector that leaves the node out, must not keep all pods from it for ever. Nor must an operator
// that is started again and again.
func TestStartup_ANodeWhoseAgentIsNeverAdmittedTakesPodsAfterAWhile(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	for name, tc := range map[string]struct {
		made   time.Time
		marked string
	}{
		"a node that joins":                          {made: now},
		"one older than Shoal":                       {made: now.Add(-time.Hour)},
		"one whose API server is ahead":              {made: now.Add(time.Hour)},
		"one that somebody marked with what is none": {made: now, marked: "yesterday"},
		"one that was marked with a time to come":    {made: now, marked: "2100-01-01T00:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := clocktesting.NewFakeClock(now)
			node := &corev1.Node{
				ObjectMeta: metav1.ObjectMeta{Name: "new", CreationTimestamp: metav1.NewTime(tc.made),
					Annotations: map[string]string{v1alpha1.StartingSince: tc.marked, "network.example/subnet": "10.1.2.0/24"}},
				Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: v1alpha1.StartupTaint}}},
			}
			told := events.NewFakeRecorder(1)
			look := func() { // each time by an operator that has begun just now
				r := &StartupReconciler{Client: oneNode{node: node}, Recorder: told, Clock: at, Board: &Board{}}
				r.Board.current.Store(&plan.Plan{})
				_, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Name: "new"}})
				require.NoError(t, err)
			}
			look()
			at.Step(v1alpha1.StartupPatience - time.Second)
			look()
			require.NotEmpty(t, node.Spec.Taints)
			at.Step(time.Second)
			look()
			require.Empty(t, node.Spec.Taints)
			require.Equal(t, map[string]string{"network.example/subnet": "10.1.2.0/24"}, node.Annotations)
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
