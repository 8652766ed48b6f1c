package swarm

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// A manifest may list more than one question can name, and a question that is too long is held against who asks it.
func TestWitness_ManyContentsAreHeardOfAndBlamedOnNobody(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	NewWitness(a.Swarm, func(source string, contents []digest.Digest) Testimony {
		said := Testimony{Held: contents, Proven: contents[:1]}
		if source == "registry.example/a" {
			said.Public, said.Refused = []time.Duration{time.Hour}, []time.Duration{0}
		}
		return said
	})
	asking := NewWitness(b.Swarm, func(string, []digest.Digest) Testimony { return Testimony{} })
	eventually(t, "they know each other", func() bool { return len(b.Peers()) == 1 })
	all := make([]digest.Digest, 300)
	for i := range all {
		all[i] = digest.FromString(fmt.Sprint(i))
	}
	got := asking.Hear(t.Context(), "registry.example/a", all)
	require.Equal(t, []time.Duration{time.Hour}, got.Public, "one word of one node")
	require.Equal(t, []time.Duration{time.Millisecond}, got.Refused)
	require.True(t, got.Everyone)
	require.Equal(t, all, got.Held)
	require.Len(t, got.Proven, 5, "one of each question")
	require.EqualValues(t, breachBurst, a.guard.standing(b.ID()).breaches.Tokens())
}

func TestQuery_WhatNoPeerTakesIsNotAsked(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	eventually(t, "they know each other", func() bool { return len(b.Peers()) == 1 })
	answer(a.Swarm, "long", func(rememberQuery) errandAnswer { return errandAnswer{} })
	var got errandAnswer
	err := b.query(t.Context(), a.ID(), "long", rememberQuery{Key: string(make([]byte, 2*maxShort))}, maxShort, &got)
	require.ErrorContains(t, err, "8192 are allowed")
	require.EqualValues(t, breachBurst, a.guard.standing(b.ID()).breaches.Tokens())
}

// Who has heard enough does not wait for those who say nothing.
func TestQuery_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	eventually(t, "they know each other", func() bool { return len(b.Peers()) == 1 })
	asked, release := make(chan struct{}), make(chan struct{})
	answer(a.Swarm, "silent", func(rememberQuery) errandAnswer {
		close(asked)
		<-release
		return errandAnswer{}
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		var got errandAnswer
		ended <- b.query(ctx, a.ID(), "silent", rememberQuery{Key: "x"}, maxShort, &got)
	}()
	<-asked
	cancel()
	require.Error(t, <-ended)
	close(release)
}
