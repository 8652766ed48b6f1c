package reply_test

import (
	"math"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/reply"
)

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=-5", "bytes=1-2", "bytes=9-1", "bytes=0-1,3-4", "bytes=-",
		"bytes=- 1", "lines=1-2", "bytes=99999999999999999999-"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 || size > math.MaxInt64/2 {
			t.Skip("no content has this size")
		}
		s, ok, err := reply.ParseRange(header, size)
		switch {
		case err != nil:
			require.ErrorIs(t, err, reply.ErrUnsatisfiable)
			require.False(t, ok)
		case ok:
			require.True(t, s.Off >= 0 && s.N > 0 && s.Off+s.N <= size, "%q of %d: %+v", header, size, s)
		default:
			require.Equal(t, reply.Span{Off: 0, N: size}, s)
		}
	})
}

func TestReplaced_IfMatchNamesNoneOfTheContent(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]bool{
		"": false, `"a"`: false, `"b", "a"`: false, "*": false, `"b"`: true, `W/"a"`: true, "a": true,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if header != "" {
			r.Header.Set("If-Match", header)
		}
		require.Equal(t, want, reply.Replaced(r, `"a"`), header)
	}
}

func TestWantsPart_SaysWhoseEndMayComeBeforeTheDigestMatches(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		method, header     string
		checked, unchecked bool
	}{
		"the whole":                        {http.MethodGet, "", false, false},
		"a header alone":                   {http.MethodHead, "", true, true},
		"all by Range":                     {http.MethodGet, "bytes=0-", false, false},
		"a download that goes on":          {http.MethodGet, "bytes=1048576-", false, false},
		"a range with a space at its end":  {http.MethodGet, "bytes=5- ", false, false},
		"the first byte":                   {http.MethodGet, "bytes=0-0", true, false},
		"one of many ranges":               {http.MethodGet, "bytes=5-9", true, false},
		"the end, as of a file's footer":   {http.MethodGet, "bytes=-47", true, true},
		"several ranges, which are no one": {http.MethodGet, "bytes=-47,0-", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest(test.method, "/", http.NoBody)
			if test.header != "" {
				r.Header.Set("Range", test.header)
			}
			require.Equal(t, test.checked, reply.WantsPart(r, reply.CallerChecks))
			require.Equal(t, test.unchecked, reply.WantsPart(r, reply.NobodyChecks))
		})
	}
}
