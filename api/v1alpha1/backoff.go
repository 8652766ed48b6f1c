package v1alpha1

import (
	"cmp"
	"math/rand/v2"
	"time"
)

// The pauses of a Backoff that names none, which are the defaults of its definition too.
const (
	backoffInitial = 10 * time.Second
	backoffMax     = 10 * time.Minute
)

// Pause is the pause after so many failures in a row, less up to a tenth, so that what failed together is not tried
// again together. The number of failures stands in an object's status and outlives the process, so a library's
// back-off, which counts by itself, does not serve.
func (b Backoff) Pause(failures int32) time.Duration {
	pause, longest := cmp.Or(b.Initial.Duration, backoffInitial), cmp.Or(b.Max.Duration, backoffMax)
	for i := int32(1); i < failures && pause < longest; i++ {
		pause *= 2
	}
	pause = min(pause, longest)
	return pause - rand.N(pause/10+1)
}
