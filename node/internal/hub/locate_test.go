package hub

import (
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Where the clock here is ahead each range of a file would else be a question to the hub.
func TestExpiry_APlaceThatWasJustGivenIsUsedForAWhile(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	for sentence, tc := range map[string]struct{ holds, used time.Duration }{
		"one for an hour is used up to its last minute":    {time.Hour, 59 * time.Minute},
		"one for a minute is used for half of that":        {time.Minute, 30 * time.Second},
		"one that is over, by the clock here, for a while": {-time.Hour, locatedFor},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			end := now.Add(tc.holds)
			for _, query := range []url.Values{
				{"Expires": {strconv.FormatInt(end.Unix(), 10)}},
				{"X-Amz-Date": {end.Add(-time.Hour).UTC().Format("20060102T150405Z")}, "X-Amz-Expires": {"3600"}},
			} {
				require.Equal(t, tc.used, expiry(&url.URL{RawQuery: query.Encode()}, now).Sub(now), query)
			}
		})
	}
	require.Equal(t, locatedFor, expiry(&url.URL{}, now).Sub(now), "one that does not say")
}
