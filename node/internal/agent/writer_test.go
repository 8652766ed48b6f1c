package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/shoal-cache/shoal/api/v1alpha1"
)

// bursts are the writes at once of reports and of registrations.
var bursts = map[time.Duration]int{v1alpha1.ReportInterval: 2, v1alpha1.PeerInterval: 1}

// write runs a writer for a while of fake time, with a change every so often, and returns when it wrote.
func write(t *testing.T, interval, changes, length time.Duration,
	result func(n int) error) (at []time.Duration, m *metrics) {
	synctest.Test(t, func(t *testing.T) {
		m = newMetrics(nil, nil)
		start := time.Now()
		w := newWriter("NodeCache", interval, bursts[interval], func(context.Context) (bool, error) {
			at = append(at, time.Since(start))
			return true, result(len(at))
		}, m, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		go w.run(ctx)
		for time.Since(start) < length {
			time.Sleep(changes)
			w.changed.raise()
		}
		cancel()
		synctest.Wait()
	})
	return at, m
}

func TestAnAgentWritesNoMoreThanFourTimesAMinute(t *testing.T) {
	t.Parallel()
	fine := func(int) error { return nil }
	reports, m := write(t, v1alpha1.ReportInterval, 100*time.Millisecond, 10*time.Minute-time.Second, fine)
	peers, _ := write(t, v1alpha1.PeerInterval, 100*time.Millisecond, 10*time.Minute-time.Second, fine)
	for _, at := range reports {
		minute := 0
		for _, other := range append(reports, peers...) {
			if other >= at && other < at+time.Minute {
				minute++
			}
		}
		require.LessOrEqual(t, minute, 4)
	}
	require.Len(t, reports, 21, "changes that come all the time are written at the full rate")
	require.EqualValues(t, len(reports), testutil.ToFloat64(m.writes.WithLabelValues("NodeCache", "written")))
}

// noting runs a writer of NodeCaches that notes when it writes. Who looks at that waits first for all to be idle.
func noting(t *testing.T, at *[]time.Time) (w *writer, cancel func()) {
	t.Helper()
	m := newMetrics(nil, nil)
	w = newWriter("NodeCache", v1alpha1.ReportInterval, 2, func(context.Context) (bool, error) {
		*at = append(*at, time.Now())
		return true, nil
	}, m, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	go w.run(ctx)
	return w, cancel
}

func TestASecondChangeAfterAQuietTimeIsWrittenSoon(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		w, cancel := noting(t, &at)
		time.Sleep(2 * v1alpha1.ReportInterval)
		synctest.Wait()
		before := len(at)
		w.changed.raise() // a pin is begun
		synctest.Wait()
		w.changed.raise() // and is there
		time.Sleep(v1alpha1.ReportInterval / 4)
		cancel()
		synctest.Wait()
		require.Len(t, at, before+2)
		require.Equal(t, v1alpha1.ReportInterval/gather, at[before+1].Sub(at[before]))
	})
}

func TestTheEndOfAPinHasATurnOfItsOwn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		w, cancel := noting(t, &at)
		for range int(v1alpha1.ReportInterval / time.Second) { // a pin whose bytes arrive takes the turns of changes
			time.Sleep(time.Second)
			w.changed.raise()
		}
		for range maxEnds {
			w.changed.raise()
			time.Sleep(time.Second)
			w.end()
			ended := time.Now()
			time.Sleep(v1alpha1.ReportInterval / gather)
			synctest.Wait()
			require.WithinRange(t, at[len(at)-1], ended, ended.Add(v1alpha1.ReportInterval/gather))
		}
		before := len(at)
		for range 600 {
			time.Sleep(time.Second)
			w.end()
		}
		cancel()
		synctest.Wait()
		require.LessOrEqual(t, len(at)-before, 2*600/30+1, "what ends all the time is bounded")
	})
}

func TestCountersThatMoveTakeNoRoomFromChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMetrics(nil, nil)
		var mu sync.Mutex
		var written []time.Time
		w := newWriter("NodeCache", v1alpha1.ReportInterval, 2, func(context.Context) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			written = append(written, time.Now())
			return true, nil
		}, m, slog.New(slog.DiscardHandler))
		writes := func() []time.Time {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(written)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go w.run(ctx)
		for range 100 { // a long pull
			time.Sleep(v1alpha1.ReportInterval / 10)
			w.moved.raise()
		}
		at := writes()
		require.Len(t, at, 11, "counters are reported as often as ever")
		for i := 2; i < len(at); i++ { // the first two are of the start
			require.GreaterOrEqual(t, at[i].Sub(at[i-1]), v1alpha1.ReportInterval)
		}
		time.Sleep(time.Until(at[len(at)-1].Add(v1alpha1.ReportInterval + v1alpha1.ReportInterval/10)))
		w.moved.raise()
		before := len(writes()) // right after counters were written
		w.changed.raise()       // a pin is begun
		time.Sleep(v1alpha1.ReportInterval / gather)
		require.Len(t, writes(), before+1)
		w.changed.raise() // and is there
		time.Sleep(v1alpha1.ReportInterval / gather)
		cancel()
		require.Len(t, writes(), before+2)
	})
}

func TestAnIdleAgentWritesOnceInAHeartbeat(t *testing.T) {
	t.Parallel()
	at, _ := write(t, v1alpha1.ReportInterval, 100*time.Hour, time.Hour, func(int) error { return nil })
	require.Greater(t, len(at), 1000)
	for i := 2; i < len(at)-1; i++ { // but for the change at the end
		pause := at[i] - at[i-1]
		require.LessOrEqual(t, pause, v1alpha1.HeartbeatInterval)
		require.GreaterOrEqual(t, pause, v1alpha1.HeartbeatInterval*9/10)
	}
}

func TestAnAPIServerThatIsAwayIsAskedLessAndLess(t *testing.T) {
	t.Parallel()
	at, m := write(t, v1alpha1.ReportInterval, time.Second, 10*time.Minute-time.Second, func(n int) error {
		if n < 10 {
			return errors.New("connection refused")
		}
		return nil
	})
	for i := 1; i < 9; i++ {
		want := min(time.Second<<(i-1), v1alpha1.ReportInterval)
		require.LessOrEqual(t, at[i]-at[i-1], want)
		require.GreaterOrEqual(t, at[i]-at[i-1], want*9/10)
	}
	require.EqualValues(t, 9, testutil.ToFloat64(m.writes.WithLabelValues("NodeCache", "unreachable")))
}

func TestARefusalIsNotRepeatedBeforeTheInterval(t *testing.T) {
	t.Parallel()
	at, m := write(t, v1alpha1.ReportInterval, time.Second, 10*time.Minute-time.Second, func(int) error {
		return apierrors.NewForbidden(v1alpha1.GroupVersion.WithResource("nodecaches").GroupResource(), "a",
			errors.New("not yours"))
	})
	for i := 1; i < len(at); i++ {
		require.GreaterOrEqual(t, at[i]-at[i-1], v1alpha1.ReportInterval)
	}
	require.EqualValues(t, len(at), testutil.ToFloat64(m.writes.WithLabelValues("NodeCache", "refused")))
}
