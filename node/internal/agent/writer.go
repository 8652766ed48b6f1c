package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// writer writes one object to the API server when it should differ, once in an interval in the mean, and looks whether
// it should at least once in a heartbeat. Changes that come faster are written together. A second change after a quiet
// time is written soon, so that who waits for a pin that is begun learns that it is there. What merely moves, such as a
// counter, is written where nothing else was for an interval, and takes no room from changes. What somebody may wait
// for, such as the end of a pin, has turns of its own: as many in the mean, and maxEnds after a quiet time.
type writer struct {
	kind     string
	interval time.Duration
	burst    int // the writes that a quiet time leaves room for
	changed  signal
	moved    signal
	ended    signal // raised with changed, see end
	// write brings the object up to date. It reports whether it asked the API server to write anything.
	write   func(ctx context.Context) (wrote bool, err error)
	metrics *metrics
	log     *slog.Logger
}

const (
	// firstRetry is the pause after a first failure to reach the API server.
	firstRetry = time.Second
	// gather is the part of the interval that is between two writes of a burst.
	gather = 6
	// maxEnds are the ends of pins, in a row, that are written a gathering time apart though the turns of changes are
	// used up.
	maxEnds = 4
)

func newWriter(kind string, interval time.Duration, burst int,
	write func(context.Context) (bool, error), m *metrics, log *slog.Logger) *writer {
	return &writer{kind: kind, interval: interval, burst: burst, changed: newSignal(), moved: newSignal(),
		ended: newSignal(), write: write, metrics: m, log: log}
}

// end tells of a change that somebody may wait for.
func (w *writer) end() {
	w.changed.raise()
	w.ended.raise()
}

// run writes until ctx ends.
func (w *writer) run(ctx context.Context) {
	w.changed.raise()
	heartbeat := time.NewTimer(0)
	defer heartbeat.Stop()
	retry := firstRetry
	limit, ends := rate.NewLimiter(rate.Every(w.interval), w.burst), rate.NewLimiter(rate.Every(w.interval), maxEnds)
	own := false       // the turn is that of an end
	var last time.Time // when something was written
	later := time.NewTimer(w.interval)
	later.Stop() // until something moves
	defer later.Stop()
	for {
		beat, idle := false, false
		select {
		case <-ctx.Done():
			return
		case <-w.changed:
		case <-w.moved:
			later.Reset(w.interval - time.Since(last))
			continue
		case <-later.C:
			select {
			case <-w.changed:
			default:
				idle = true
			}
		case <-heartbeat.C:
			beat = true
		}
		w.ended.take() // it is about to be written
		wrote, err := w.write(ctx)
		if ctx.Err() != nil {
			return
		}
		least, pause := time.Duration(0), time.Duration(0) // before the turn of an end, and that of any change
		switch {
		case err != nil:
			least, retry = w.failed(err, retry)
		case wrote:
			w.metrics.writes.WithLabelValues(w.kind, "written").Inc()
			later.Stop() // what has moved was taken along
			if last = time.Now(); !idle && !own {
				_ = limit.Reserve() // what is written counts, though the turn may come by a rounding error later
			}
			least, retry = w.interval/gather, firstRetry
			pause = time.Duration((1 - limit.Tokens()) * float64(w.interval))
		}
		if wrote || beat {
			heartbeat.Reset(v1alpha1.Jitter(v1alpha1.HeartbeatInterval))
		}
		if !content.Sleep(ctx, least) {
			return
		}
		if own = w.awaitTurn(ctx, pause-least, ends); ctx.Err() != nil {
			return
		}
	}
}

// failed has what was not written written again, after a pause. retry is the pause where the API server is not reached,
// and next that of another time.
func (w *writer) failed(err error, retry time.Duration) (pause, next time.Duration) {
	defer w.changed.raise()
	if unreached(err) {
		w.metrics.writes.WithLabelValues(w.kind, "unreachable").Inc()
		w.log.Warn("API server not reached", "kind", w.kind, "again", retry, "error", err)
		return v1alpha1.Jitter(retry), min(2*retry, w.interval)
	}
	w.metrics.writes.WithLabelValues(w.kind, "refused").Inc()
	w.log.Warn("API server refuses", "kind", w.kind, "again", w.interval, "error", err)
	return w.interval, retry
}

// awaitTurn waits for the turn of changes, which comes after a pause, or for that of an end. It reports whether it is
// that of an end.
func (w *writer) awaitTurn(ctx context.Context, pause time.Duration, ends *rate.Limiter) bool {
	turn := time.Now().Add(pause)
	ctx, cancel := context.WithDeadline(ctx, turn)
	defer cancel()
	select {
	case <-ctx.Done():
		return false
	case <-w.ended:
	}
	own := ends.Reserve()
	if wait := own.Delay(); wait < time.Until(turn) {
		return content.Sleep(ctx, wait)
	}
	own.Cancel() // the other comes first
	<-ctx.Done()
	return false
}

// unreached reports whether the API server did not get as far as an answer of its own.
func unreached(err error) bool {
	var status apierrors.APIStatus
	return !errors.As(err, &status)
}
