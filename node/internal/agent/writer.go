package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// writer writes one object to the API server when it should differ, never twice within an interval, and looks whether
// it should at least once in a heartbeat. Changes that come faster are written together.
type writer struct {
	kind     string
	interval time.Duration
	changed  signal
	// write brings the object up to date. It reports whether it asked the API server to write anything.
	write   func(ctx context.Context) (wrote bool, err error)
	metrics *metrics
	log     *slog.Logger
}

// firstRetry is the pause after a first failure to reach the API server.
const firstRetry = time.Second

func newWriter(kind string, interval time.Duration,
	write func(context.Context) (bool, error), m *metrics, log *slog.Logger) *writer {
	return &writer{kind: kind, interval: interval, changed: newSignal(), write: write, metrics: m, log: log}
}

// run writes until ctx ends.
func (w *writer) run(ctx context.Context) {
	w.changed.raise()
	heartbeat := time.NewTimer(0)
	defer heartbeat.Stop()
	retry := firstRetry
	for {
		beat := false
		select {
		case <-ctx.Done():
			return
		case <-w.changed:
		case <-heartbeat.C:
			beat = true
		}
		wrote, err := w.write(ctx)
		if ctx.Err() != nil {
			return
		}
		pause := time.Duration(0)
		switch {
		case err != nil && unreached(err):
			w.metrics.writes.WithLabelValues(w.kind, "unreachable").Inc()
			w.log.Warn("API server not reached", "kind", w.kind, "again", retry, "error", err)
			pause, retry = jitter(retry), min(2*retry, w.interval)
			w.changed.raise()
		case err != nil:
			w.metrics.writes.WithLabelValues(w.kind, "refused").Inc()
			w.log.Warn("API server refuses", "kind", w.kind, "again", w.interval, "error", err)
			pause = w.interval
			w.changed.raise()
		case wrote:
			w.metrics.writes.WithLabelValues(w.kind, "written").Inc()
			pause, retry = w.interval, firstRetry
		}
		if wrote || beat {
			heartbeat.Reset(jitter(v1alpha1.HeartbeatInterval))
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// unreached reports whether the API server did not get as far as an answer of its own.
func unreached(err error) bool {
	var status apierrors.APIStatus
	return !errors.As(err, &status)
}

// jitter takes up to a tenth off, so that the agents of a cluster do not act in step.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/10+1))
}

// sleep tells false when ctx ended before d had passed.
func sleep(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
