package survey

import (
	"net/http"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"
)

// ServerClock tells the time as the API server's answers do, by which ages of what it holds are right: the clock of the
// machine here may be off. Until an answer has come it is that of the machine.
type ServerClock struct {
	Machine clock.PassiveClock // nil: the real one

	ahead atomic.Int64 // of the machine's
}

// Now is the API server's time.
func (c *ServerClock) Now() time.Time { return c.machine().Add(time.Duration(c.ahead.Load())) }

func (c *ServerClock) machine() time.Time {
	if c.Machine == nil {
		return time.Now()
	}
	return c.Machine.Now()
}

// Wrap has the clock learn from what goes through a transport.
func (c *ServerClock) Wrap(next http.RoundTripper) http.RoundTripper { return &listening{next, c} }

type listening struct {
	next  http.RoundTripper
	clock *ServerClock
}

func (l *listening) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := l.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if at, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		l.clock.ahead.Store(int64(at.Sub(l.clock.machine())))
	}
	return answer, nil
}

// WrappedRoundTripper lets client-go find the transport.
func (l *listening) WrappedRoundTripper() http.RoundTripper { return l.next }
