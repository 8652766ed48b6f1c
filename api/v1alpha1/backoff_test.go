package v1alpha1

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestBackoff_DoublesWithEachFailureUpToItsMost(t *testing.T) {
	t.Parallel()
	own := Backoff{Initial: metav1.Duration{Duration: 3 * time.Second},
		Max: metav1.Duration{Duration: 20 * time.Second}}
	for name, c := range map[string]struct {
		backoff  Backoff
		failures int32
		want     time.Duration
	}{
		"the first failure":  {Backoff{}, 1, 10 * time.Second},
		"the second":         {Backoff{}, 2, 20 * time.Second},
		"the sixth":          {Backoff{}, 6, 320 * time.Second},
		"more than the most": {Backoff{}, 7, 10 * time.Minute},
		"so many that the pause has no more digits": {Backoff{}, 1 << 30, 10 * time.Minute},
		"pauses of its own":                         {own, 3, 12 * time.Second},
		"more than its own most":                    {own, 4, 20 * time.Second},
		"no failure":                                {own, 0, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range 100 {
				got := c.backoff.Pause(c.failures)
				require.LessOrEqual(t, got, c.want)
				require.GreaterOrEqual(t, got, c.want*9/10-1)
			}
		})
	}
}
