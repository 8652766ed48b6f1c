package condition_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-cache/shoal/operator/internal/condition"
)

// TestAMessageComesBackAsItWasWritten guards reconciliations that end when what is there is what is wanted: a message
// that the API server changes on the way would have them write for ever.
func TestAMessageComesBackAsItWasWritten(t *testing.T) {
	t.Parallel()
	for name, message := range map[string]string{
		"short":                                  "all 3 copies are whole",
		"too long":                               strings.Repeat("m", 5000),
		"too long, of characters of 4 bytes":     strings.Repeat("🐟", 1000),
		"too long, of characters of 4 and 1":     "m" + strings.Repeat("🐟", 1000),
		"no UTF-8, as a registry may answer":     "answered \xff\xfe",
		"no UTF-8, and too long in what is sent": strings.Repeat("\xff", 1024),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var conditions []metav1.Condition
			require.True(t, condition.Set(&conditions,
				metav1.Condition{Type: "Ready", Status: metav1.ConditionFalse, Reason: "R", Message: message},
				time.Now()))
			require.LessOrEqual(t, len(conditions[0].Message), 1024, "the API takes no longer note in an event")
			sent, err := json.Marshal(conditions[0].Message)
			require.NoError(t, err)
			var stored string
			require.NoError(t, json.Unmarshal(sent, &stored))
			require.Equal(t, stored, conditions[0].Message)
		})
	}
}
