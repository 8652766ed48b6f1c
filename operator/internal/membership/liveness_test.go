package membership_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/membership"
)

// agent is one node's agent, whose clock may be off, watched by one operator after the other.
type agent struct {
	now      time.Time // by the operator's clock
	off      time.Duration
	node     corev1.Node
	peer     *v1alpha1.Peer
	cache    *v1alpha1.NodeCache
	liveness membership.Liveness
}

func newAgent(off time.Duration) *agent {
	a := &agent{
		now: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC), off: off,
		node:  corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}},
		peer:  &v1alpha1.Peer{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "1"}},
		cache: &v1alpha1.NodeCache{ObjectMeta: metav1.ObjectMeta{Name: "n"}},
	}
	a.ready(corev1.ConditionTrue)
	return a
}

func (a *agent) ready(status corev1.ConditionStatus) {
	a.node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status,
		LastTransitionTime: metav1.NewTime(a.now.Add(a.off))}}
}

func (a *agent) report() { a.cache.Status.ReportedAt = &metav1.Time{Time: a.now.Add(a.off)} }

func (a *agent) look() membership.Life {
	return a.liveness.Look([]corev1.Node{a.node}, map[string]*v1alpha1.Peer{"n": a.peer},
		map[string]*v1alpha1.NodeCache{"n": a.cache}, a.now)["n"]
}

// pass lets time pass, with a look each minute and, if the agent reports, a report at most of them.
func (a *agent) pass(d time.Duration, reports bool) membership.Life {
	for i := range int(d / time.Minute) {
		a.now = a.now.Add(time.Minute)
		if reports && i%5 == 0 {
			a.report()
		}
		a.look()
	}
	return a.look()
}

func (a *agent) newOperator() { a.liveness = membership.Liveness{} }

func TestSilenceIsMeasuredByTheOperatorsClock(t *testing.T) {
	t.Parallel()
	for clock, off := range map[string]time.Duration{
		"a right clock": 0, "a clock an hour behind": -time.Hour, "a clock an hour ahead": time.Hour,
		"a clock that is 1970's": -56 * 365 * 24 * time.Hour,
	} {
		t.Run(clock, func(t *testing.T) {
			t.Parallel()
			a := newAgent(off)
			require.Zero(t, a.look().DownSince, "that has just registered has time for its first report")
			a.report()
			a.look()
			require.Zero(t, a.pass(time.Hour, true), "is up as long as it reports")

			last := a.now
			a.report()
			a.look()
			require.Zero(t, a.pass(v1alpha1.StaleAfter, false), "may be silent so long")
			require.Equal(t, last.Add(v1alpha1.StaleAfter), a.pass(time.Minute, false).DownSince,
				"and is down when it is for longer")

			a.peer.UID = types.UID("2")
			require.Zero(t, a.look().DownSince, "is up again once it has registered anew")
			require.NotZero(t, a.pass(v1alpha1.StaleAfter+time.Minute, false).DownSince)
			a.report()
			require.Zero(t, a.look(), "is up again with its next report")
		})
	}
}

func TestANewOperatorBeginsToListen(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		off     time.Duration
		silent  time.Duration
		unheard bool
	}{
		"to one that has just reported":                           {},
		"to one that reported before the API server went away":    {silent: time.Hour, unheard: true},
		"to one whose clock is behind, so that it looks silent":   {off: -time.Hour, unheard: true},
		"to one whose clock is ahead, so that it can't be judged": {off: time.Hour, unheard: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAgent(tc.off)
			a.report()
			a.pass(tc.silent, false)

			a.newOperator()
			began := a.now
			require.Equal(t, membership.Life{Unheard: tc.unheard}, a.look(), "takes nobody for silent at once")
			require.Equal(t, membership.Life{Unheard: tc.unheard}, a.pass(v1alpha1.StaleAfter, false))
			require.Equal(t, began.Add(v1alpha1.StaleAfter), a.pass(time.Minute, false).DownSince,
				"nor for up for ever")
			a.now = a.now.Add(time.Second)
			a.report()
			require.Zero(t, a.look(), "and relies on those that it hears")
		})
	}
}

func TestWhenANodeIsNotReady(t *testing.T) {
	t.Parallel()
	for clock, off := range map[string]time.Duration{"a right clock": 0, "a clock an hour behind": -time.Hour,
		"a clock an hour ahead": time.Hour} {
		t.Run(clock, func(t *testing.T) {
			t.Parallel()
			a := newAgent(off)
			a.report()
			a.look()
			a.ready(corev1.ConditionFalse)
			since := a.now
			require.Equal(t, since, a.look().DownSince,
				"it is down since that was seen, whatever its kubelet's clock said")
			a.now = a.now.Add(time.Minute)
			a.ready(corev1.ConditionUnknown)
			require.Equal(t, since, a.look().DownSince)
			a.ready(corev1.ConditionTrue)
			require.Zero(t, a.look().DownSince)
		})
	}
	t.Run("for an hour, a new operator does not begin its repair anew", func(t *testing.T) {
		t.Parallel()
		a := newAgent(0)
		a.ready(corev1.ConditionUnknown)
		since := a.now
		a.pass(time.Hour, false)
		a.newOperator()
		require.Equal(t, since, a.look().DownSince.UTC())
	})
	t.Run("since a time to come, as it says, a new operator takes it to be down since now", func(t *testing.T) {
		t.Parallel()
		a := newAgent(time.Hour)
		a.ready(corev1.ConditionFalse)
		require.Equal(t, a.now, a.look().DownSince)
	})
}

func TestANodeThatIsGoneIsForgotten(t *testing.T) {
	t.Parallel()
	a := newAgent(0)
	a.look()
	a.now = a.now.Add(time.Hour)
	require.Empty(t, a.liveness.Look(nil, nil, nil, a.now))
	require.Zero(t, a.look().DownSince, "what comes in its place has time to report")
}
