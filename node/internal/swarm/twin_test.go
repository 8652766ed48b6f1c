package swarm

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content/contenttest"
)

// under gives nodes one identity.
func under(s *testSwarm) func(*Options) { return func(o *Options) { o.Identity = s.opts.Identity } }

// startedAt has a process be as old as a test needs it.
func (s *testSwarm) startedAt(at time.Time) {
	s.twins.mu.Lock()
	defer s.twins.mu.Unlock()
	s.twins.started = at
}

// looks has a node look for a twin at a peer that it knows.
func (s *testSwarm) looks(t *testing.T, at *testSwarm) {
	t.Helper()
	eventually(t, "the other has heard of it", func() bool {
		s.twins.look(t.Context())
		lives, _ := at.twins.seen.Peek(s.ID())
		return slices.ContainsFunc(lives, func(l life) bool { return slices.Equal(l.Process, s.twins.process) })
	})
}

func TestTwin_TwoProcessesWithOneIdentityHearOfEachOther(t *testing.T) {
	t.Parallel()
	third := newTestSwarm(t)
	one := newTestSwarm(t, startingFrom(third))
	two := newTestSwarm(t, startingFrom(third), under(one))
	one.startedAt(time.Now().Add(-time.Minute)) // seconds are all that is told
	two.startedAt(time.Now().Add(-time.Minute))
	require.Equal(t, one.ID(), two.ID())
	one.looks(t, third)
	require.False(t, one.twins.there(), "it has heard of itself alone")
	two.looks(t, third)
	require.False(t, two.twins.there(), "one sign may be of the process before it")
	eventually(t, "both hear that the other goes on", func() bool {
		one.twins.look(t.Context())
		two.twins.look(t.Context())
		return one.twins.there() && two.twins.there()
	})
	require.False(t, third.twins.there())
}

func TestTwin_AProcessIsNoneOfTheOneThatItFollows(t *testing.T) {
	t.Parallel()
	third := newTestSwarm(t)
	before := newTestSwarm(t, startingFrom(third))
	before.looks(t, third)
	after := newTestSwarm(t, startingFrom(third), under(before))
	after.startedAt(time.Now().Add(time.Hour)) // later than what the one before has said last
	after.looks(t, third)
	require.False(t, after.twins.there())
}

// sign is a sign of life of another process with an identity.
func sign(t *testing.T, s *testSwarm, at time.Time) life {
	t.Helper()
	l := life{Process: make([]byte, processSize), At: at.Unix()}
	var err error
	l.Signature, err = s.opts.Identity.Sign(l.bytes())
	require.NoError(t, err)
	return l
}

// An agent often begins before its machine has learned the time.
func TestTwin_IsSeenBesideAProcessWhoseClockWasAheadWhenItBegan(t *testing.T) {
	t.Parallel()
	node := newTestSwarm(t)
	node.startedAt(contenttest.ClockSet(time.Now().Add(-time.Minute), time.Hour))
	for _, at := range []time.Duration{-time.Second, 0} {
		require.False(t, node.twins.there())
		node.twins.take(sign(t, node, time.Now().Add(at)))
	}
	require.True(t, node.twins.there())
}

func TestTwin_NobodyElseMakesOneUp(t *testing.T) {
	t.Parallel()
	node, liar := newTestSwarm(t), newTestSwarm(t)
	start := time.Now().Add(-time.Minute)
	node.startedAt(start)
	sign := func(s *testSwarm, at time.Time) life { return sign(t, s, at) }
	for what, l := range map[string]life{
		"nothing":                     {},
		"another node's signature":    sign(liar, time.Now()),
		"a sign of long ago":          sign(node, time.Now().Add(-time.Hour)),
		"a sign of a time to come":    sign(node, time.Now().Add(time.Hour)),
		"a sign of before it started": sign(node, start.Add(-time.Second)),
		"another time than was signed": {Process: make([]byte, processSize), At: time.Now().Unix(),
			Signature: sign(node, time.Now().Add(-time.Hour)).Signature},
	} {
		node.twins.take(l)
		require.False(t, node.twins.there(), what)
	}
	node.twins.take(sign(node, time.Now().Add(-time.Second)))
	require.False(t, node.twins.there(), "one sign alone")
	node.twins.take(sign(node, time.Now()))
	require.True(t, node.twins.there())
}
