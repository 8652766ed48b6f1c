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

// Pause is the pause after so many failures in a row, with Jitter. The number of failures stands in an object's status
// and outlives the process, so a library's back-off, which counts by itself, does not serve.
func (b Backoff) Pause(failures int32) time.Duration {
	pause, longest := cmp.Or(b.Initial.Duration, backoffInitial), cmp.Or(b.Max.Duration, backoffMax)
	for i := int32(1); i < failures && pause < longest; i++ {
		pause *= 2
	}
	return Jitter(min(pause, longest))
}

// Jitter takes up to a tenth off a pause, so that the agents of a cluster do not act in step.
func Jitter(pause time.Duration) time.Duration { return pause - rand.N(pause/10+1) }
