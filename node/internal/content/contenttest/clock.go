package contenttest

import (
	"time"
	"unsafe"
)

// ClockSet returns the time t, which time.Now gave, as a clock would have given it that is so many seconds ahead, or
// behind where the number is negative. The monotonic reading stays the same. Tests need it since they cannot set the
// machine's clock.
func ClockSet(t time.Time, ahead time.Duration) time.Time {
	set := t
	wall := (*uint64)(unsafe.Pointer(&set)) //nolint:gosec // the first field, whose bits from 30 on are seconds
	*wall += uint64(ahead/time.Second) << 30
	if set.Sub(t) != 0 || set.Round(0).Sub(t.Round(0)) != ahead {
		panic("time.Time is made otherwise than this function knows, or came from a bubble of synctest")
	}
	return set
}
