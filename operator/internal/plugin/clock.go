package plugin

import (
	"net/http"
	"sync/atomic"
	"time"
)

// serverClock tells the time as the API server's answers do: the clock of its user's machine may be off.
type serverClock struct{ ahead atomic.Int64 } // of this machine's clock

func (c *serverClock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// wrap has the clock learn from what goes through a transport.
func (c *serverClock) wrap(next http.RoundTripper) http.RoundTripper { return &listening{next, c} }

type listening struct {
	next  http.RoundTripper
	clock *serverClock
}

func (l *listening) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := l.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if at, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		l.clock.ahead.Store(int64(time.Until(at)))
	}
	return answer, nil
}

// WrappedRoundTripper lets client-go find the transport.
func (l *listening) WrappedRoundTripper() http.RoundTripper { return l.next }
