package store

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestScrub_IsDueOnceInEachIntervalAcrossRestarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := Options{Path: t.TempDir(), ScrubInterval: 2 * time.Hour}
		s := openTest(t, o)
		b := newSample(1, chunkSize+5)
		put(t, s, b)
		flipByte(t, s.blobPath(b.digest), 5)
		here := func() bool {
			synctest.Wait()
			_, err := s.Stat(b.digest)
			return err == nil
		}
		time.Sleep(90 * time.Minute)
		require.True(t, here())
		require.NoError(t, s.Close())
		s = openTest(t, o)
		time.Sleep(29 * time.Minute)
		require.True(t, here(), "a restart does not bring it forward")
		time.Sleep(2 * time.Minute)
		require.False(t, here(), "nor does it put it off")
		require.NoError(t, s.Close())
	})
}
