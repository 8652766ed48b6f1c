package registry

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The limit may run out while the first byte comes. The answer that has begun then is not cut off.
func TestALimitThatRunsOutTooLateCutsNothingOff(t *testing.T) {
	t.Parallel()
	ctx, p := newPatience(t.Context(), time.Hour, func() int64 { return 0 })
	defer p.end()
	p.stop()
	p.moved = p.moved.Add(-time.Hour)
	p.look()
	require.NoError(t, ctx.Err())
}
