package registry

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// The limit may run out while the first byte comes. The answer that has begun then is not cut off.
func TestALimitThatRunsOutTooLateCutsNothingOff(t *testing.T) {
	t.Parallel()
	ctx, p := newPatience(t.Context(), time.Hour, func() (int64, int64) { return 0, 0 })
	defer p.end()
	p.stop()
	p.moved = p.moved.Add(-time.Hour)
	p.look()
	require.NoError(t, ctx.Err())
}

func TestTheErrorOfABlobThatComesTooSlowlyTellsWhatCame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		crawls := func() (int64, int64) {
			n := time.Since(start).Milliseconds() * 4096 / 1000
			return n, n
		}
		ctx, p := newPatience(t.Context(), content.DefaultFirstByte, crawls)
		defer p.end()
		p.watch(func() int64 { return 0 }, true)
		<-ctx.Done()
		require.ErrorIs(t, context.Cause(ctx), content.ErrUnavailable)
		require.ErrorContains(t, context.Cause(ctx), "no whole chunk came within 4m0s, though 983040 bytes did")
	})
}
