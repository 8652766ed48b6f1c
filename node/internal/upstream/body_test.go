package upstream

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"
)

// readFunc is a body.
type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func TestABodyGoesOnWhenAPolicyMakesItsBurstSmaller(t *testing.T) {
	t.Parallel()
	limiter := rate.NewLimiter(1e9, 1000)
	s := &stream{
		body: io.NopCloser(readFunc(func(p []byte) (int, error) {
			limiter.SetBurst(10) // while the read is under way
			return len(p), nil
		})),
		ctx: t.Context(), limit: limiter, due: -1, stall: time.Hour, patience: time.Hour,
		count: func(int) {}, timer: time.NewTimer(time.Hour),
	}
	n, err := s.Read(make([]byte, 1000))
	require.NoError(t, err)
	require.Equal(t, 1000, n)
}

// Thousands of answers for tags are remembered with the type that a registry told.
func TestManifestType_IsNoLongerThanATypeMayBe(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]bool{100: true, 60 << 10: false} {
		require.Equal(t, want, isManifestType("application/vnd."+strings.Repeat("x", n)+"+json"), n)
	}
}
