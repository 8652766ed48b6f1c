package contenttest

import (
	"time"
	"unsafe"
)

// ClockSet is t, which time.Now gave, as it would have given it by a clock that is ahead of that one by some seconds,
// or behind where there are fewer than none. How long ago it was by the monotonic clock stays as it is. No clock of a
// test can be set.
func ClockSet(t time.Time, ahead time.Duration) time.Time {
	set := t
	wall := (*uint64)(unsafe.Pointer(&set)) //nolint:gosec // the first field, whose bits from 30 on are seconds
	*wall += uint64(ahead/time.Second) << 30
	if set.Sub(t) != 0 || set.Round(0).Sub(t.Round(0)) != ahead {
		panic("time.Time is made otherwise than this function knows, or came from a bubble of synctest")
	}
	return set
}
