package pin

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
