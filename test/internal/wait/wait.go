// Package wait waits in tests for what other processes bring about.
package wait

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Until tries, with the given time between two tries, until there is no error, and fails the test with the last one
// when the time is over.
func Until(t *testing.T, within, between time.Duration, try func() error) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	again := time.NewTicker(between)
	defer again.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-deadline.C:
			require.NoError(t, err, "after %s", within)
		case <-t.Context().Done():
			require.NoError(t, err, "the test was ended")
		}
	}
}
