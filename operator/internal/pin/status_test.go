package pin

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/plan"
)

func TestStatus_TablesShowSizesInTheUnitOfAllOthers(t *testing.T) {
	t.Parallel()
	status := describe(&v1alpha1.ArtifactPin{}, &plan.Summary{BytesHeld: 16778342, BytesWanted: 3 << 30}, time.Now())
	require.Equal(t, "0.02GiB", status.Held)
	require.Equal(t, "3.00GiB", status.Wanted)
	require.Equal(t, status, own(status), "what it writes is its own")
}

func TestStatus_WhatKeptAnEarlierSpecFromBeingResolvedIsNoWordAboutThePresentOne(t *testing.T) {
	t.Parallel()
	for generation, want := range map[int64]string{1: v1alpha1.ReasonUnauthorized, 2: v1alpha1.ReasonResolving} {
		p := &v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Generation: generation}}
		p.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionResolved, Status: metav1.ConditionFalse,
			Reason: v1alpha1.ReasonUnauthorized, ObservedGeneration: 1}}
		status := describe(p, &plan.Summary{Generation: generation}, time.Now())
		ready := apimeta.FindStatusCondition(status.Conditions, v1alpha1.ConditionReady)
		require.Equal(t, want, ready.Reason, generation)
	}
}

// seeing is a client whose pins are those of a watch that lags behind.
type seeing struct {
	client.Client
	seen *v1alpha1.ArtifactPin
}

func (s *seeing) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	s.seen.DeepCopyInto(o.(*v1alpha1.ArtifactPin))
	return nil
}

func TestStatus_AWriteThatIsSeenLateIsUndoneWhereThePlanHasGoneBackMeanwhile(t *testing.T) {
	t.Parallel()
	scheme, writes := runtime.NewScheme(), 0
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	key := types.NamespacedName{Namespace: "a", Name: "p"}
	api := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.ArtifactPin{}).
		WithObjects(&v1alpha1.ArtifactPin{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name,
			UID: "u", Generation: 1}}).
		WithInterceptorFuncs(interceptor.Funcs{SubResourceApply: func(ctx context.Context, c client.Client, sub string,
			o runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
			writes++
			return c.SubResource(sub).Apply(ctx, o, opts...)
		}}).Build()
	now := func() *v1alpha1.ArtifactPin {
		var p v1alpha1.ArtifactPin
		require.NoError(t, api.Get(t.Context(), key, &p))
		return &p
	}
	watched := &seeing{Client: api, seen: now()}
	r := &StatusReconciler{Client: watched, Recorder: events.NewFakeRecorder(99), Clock: clock.RealClock{},
		Board: &Board{}}
	reconciled := func(desired int32) {
		r.Board.current.Store(&plan.Plan{Pins: map[types.UID]*plan.Summary{"u": {Generation: 1, Desired: desired}}})
		_, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: key})
		require.NoError(t, err)
	}
	reconciled(1)
	watched.seen = now()
	reconciled(2)
	reconciled(1)
	require.EqualValues(t, 2, now().Status.Desired, "the watch has not shown what is to be undone")
	before := watched.seen
	watched.seen = now()
	require.True(t, pinStatusChanged(event.UpdateEvent{ObjectOld: before, ObjectNew: watched.seen}))
	reconciled(1)
	require.EqualValues(t, 1, now().Status.Desired)
	require.Equal(t, 3, writes)
	watched.seen = now()
	reconciled(1)
	require.Equal(t, 3, writes, "to see one's own write makes no other")
	attempted := now()
	attempted.Status.LastAttempt = &metav1.Time{Time: time.Now()}
	require.False(t, pinStatusChanged(event.UpdateEvent{ObjectOld: watched.seen, ObjectNew: attempted}),
		"what the resolver alone writes does not matter")
}
