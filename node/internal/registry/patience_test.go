package registry

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The limit may run out while the first byte comes. The answer that has begun then is not cut off.
func TestALimitThatRunsOutTooLateCutsNothingOff(t *testing.T) {
	t.Parallel()
	ctx, p := newPatience(t.Context(), time.Hour)
	defer p.end()
	p.stop()
	p.expire()
	require.NoError(t, ctx.Err())
}
