package content

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRetryAfterIsSecondsOrADate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // time stands still
		for name, c := range map[string]struct {
			header string
			want   time.Duration
		}{
			"nothing":             {"", 0},
			"seconds":             {"120", 2 * time.Minute},
			"seconds in the past": {"-1", 0},
			"more than a day":     {"100000000", 24 * time.Hour},
			"a date":              {time.Now().Add(90 * time.Second).UTC().Format(http.TimeFormat), 90 * time.Second},
			"a date in the past":  {time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), 0},
			"a date far away":     {time.Now().Add(1000 * time.Hour).UTC().Format(http.TimeFormat), 24 * time.Hour},
			"rubbish":             {"soon", 0},
		} {
			after, _ := RetryAfter(c.header)
			require.Equal(t, c.want, after, name)
		}
	})
}
