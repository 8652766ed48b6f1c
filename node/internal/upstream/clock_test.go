package upstream

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content/contenttest"
)

// All that cannot be reached is refused at once for as long as it is held to be down.
func TestEndpoint_IsDownForAsLongWhateverTheClockIsSetTo(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for sentence, ahead := range map[string]time.Duration{
		"a clock that goes":            0,
		"a clock that is set back":     -24 * time.Hour,
		"a clock that is set to later": 24 * time.Hour,
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			then := func(d time.Duration) time.Time { return contenttest.ClockSet(now.Add(d), ahead) }
			e := &endpoint{}
			require.False(t, e.down(then(0)) || e.drips(then(0)) || e.suspect(then(0), time.Minute), "it was never tried")
			e.mark(false, now, time.Minute)
			e.dripsUntil.set(now.Add(time.Minute))
			require.True(t, e.down(then(59*time.Second)) && e.drips(then(59*time.Second)))
			require.True(t, e.suspect(then(59*time.Second), time.Minute))
			after := then(61 * time.Second)
			require.False(t, e.down(after) || e.drips(after))
			require.False(t, e.suspect(after, time.Minute), "the first to come finds out for all")
			require.True(t, e.suspect(after, time.Minute), "and the others wait for that")
			e.mark(true, after, 0)
			require.False(t, e.suspect(after, time.Minute))
		})
	}
}
