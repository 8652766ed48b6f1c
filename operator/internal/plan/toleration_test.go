package plan

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

func TestTolerates_AsKubernetesDoes(t *testing.T) {
	t.Parallel()
	taint := func(value string) corev1.Taint {
		return corev1.Taint{Key: "disk", Value: value, Effect: corev1.TaintEffectNoSchedule}
	}
	for name, c := range map[string]struct {
		toleration corev1.Toleration
		taint      corev1.Taint
		want       bool
	}{
		"the same value": {corev1.Toleration{Key: "disk", Value: "slow"}, taint("slow"), true},
		"another value":  {corev1.Toleration{Key: "disk", Value: "fast"}, taint("slow"), false},
		"another key":    {corev1.Toleration{Key: "cpu", Value: "slow"}, taint("slow"), false},
		"another effect": {corev1.Toleration{Key: "disk", Value: "slow",
			Effect: corev1.TaintEffectNoExecute}, taint("slow"), false},
		"any value": {corev1.Toleration{Key: "disk", Operator: corev1.TolerationOpExists},
			taint("slow"), true},
		"any taint": {corev1.Toleration{Operator: corev1.TolerationOpExists}, taint("slow"),
			true},
		"nothing said, and a taint without": {corev1.Toleration{}, taint(""), false},
		"a number above the value": {corev1.Toleration{Key: "disk", Operator: corev1.TolerationOpLt,
			Value: "5"}, taint("3"), true},
		"a number below the value": {corev1.Toleration{Key: "disk", Operator: corev1.TolerationOpLt,
			Value: "2"}, taint("3"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, tolerates(c.toleration, &c.taint))
		})
	}
}
