package content_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/content/contenttest"
)

func TestKeptTime_IsNeverYoungerThanItIs(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for sentence, tc := range map[string]struct {
		noted time.Time
		age   time.Duration // a minute later
		about time.Duration
	}{
		"what was noted an hour ago is as old": {now.Add(-time.Hour), time.Hour + time.Minute, time.Second},
		"what was noted just now is new":       {now, time.Minute, time.Second},
		"what was noted while the clock was ahead may be of any age": {
			now.Add(time.Hour), now.Sub(time.Unix(0, 0)) + time.Minute, 2 * time.Second},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			at := content.KeptTime(tc.noted.Unix(), now)
			for _, ahead := range []time.Duration{0, -24 * time.Hour, 24 * time.Hour} {
				later := contenttest.ClockSet(now.Add(time.Minute), ahead)
				require.InDelta(t, tc.age, later.Sub(at), float64(tc.about), "the clock was set by %s", ahead)
			}
		})
	}
}
