package gate_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

// node is a gate that hears other nodes' gates, and those that say what they like.
type node struct {
	*gate.Gate
	others []*node
	liars  []gate.Testimony
	saved  memory
}

func (n *node) Hear(_ context.Context, source gate.Source, contents []digest.Digest) gate.Testimony {
	said := n.liars
	for _, other := range n.others {
		said = append(said, other.Testify(source, contents))
	}
	all := gate.Testimony{Everyone: true}
	for _, s := range said {
		all.Public, all.Refused = append(all.Public, s.Public...), append(all.Refused, s.Refused...)
		all.Proven, all.Held = append(all.Proven, s.Proven...), append(all.Held, s.Held...)
	}
	return all
}

// start starts the node, or starts it anew.
func (n *node) start(t *testing.T) {
	t.Helper()
	if n.Gate != nil {
		require.NoError(t, n.Close())
	}
	if n.saved == nil {
		n.saved = memory{}
	}
	var err error
	n.Gate, err = gate.New(gate.Options{Cache: nothing{}, Timeout: time.Second, Memory: n.saved, Witness: n})
	require.NoError(t, err)
}

// nodes starts some that hear each other.
func nodes(t *testing.T, count int) []*node {
	t.Helper()
	all := make([]*node, count)
	for i := range all {
		all[i] = new(node)
		all[i].start(t)
	}
	for _, n := range all {
		for _, other := range all {
			if other != n {
				n.others = append(n.others, other)
			}
		}
	}
	return all
}

func end(t *testing.T, all []*node) {
	t.Helper()
	for _, n := range all {
		require.NoError(t, n.Close())
	}
}

// gone is a registry that does not answer, or throttles.
type gone struct {
	honest
	err error
}

func (g gone) Ask(context.Context) (int64, error)          { return 0, g.err }
func (g gone) AskForAnyone(context.Context) (int64, error) { return 0, g.err }
func (g gone) Sample(context.Context, int64, int64) ([]byte, int64, error) {
	return nil, 0, g.err
}

var (
	team    = content.Repository{Registry: "r.test", Name: "team/app"}
	app     = gate.Repository(team)
	pushed  = digest.FromString("pushed since")
	refusal = &content.UpstreamError{Status: http.StatusUnauthorized, Challenge: []string{`Basic realm="r"`}}
)

// reads reports whether a node gives a caller without credentials what was pushed of late.
func (n *node) reads(t *testing.T, err error) bool {
	t.Helper()
	return n.Admit(t.Context(), policy.DefaultRule(), gate.Request{
		Source: app, Digest: pushed, Upstream: gone{err: err},
	}) == nil
}

// A node that has not asked for long knows nothing of what its registry has said meanwhile.
func TestGate_WhatHasBecomePrivateIsShutInAnOutageOnNodesThatHaveNotAskedSince(t *testing.T) {
	t.Parallel()
	const month = 30 * 24 * time.Hour
	open := func(n *node) { n.Confirm(t.Context(), policy.DefaultRule(), gate.Request{Source: app}) }
	shut := func(n *node) { n.Refused(app, "", refusal) }
	for name, test := range map[string]struct {
		said []func(all []*node) // one a month
		want [3]bool             // of three nodes
	}{
		"what is public is open to all": {[]func([]*node){
			func(all []*node) { open(all[0]) },
		}, [3]bool{true, true, true}},
		"what has become private is shut": {[]func([]*node){
			func(all []*node) { open(all[0]) },
			func(all []*node) { shut(all[1]) },
		}, [3]bool{}},
		"also where those who pull show credentials": {[]func([]*node){
			func(all []*node) { open(all[0]) },
			func(all []*node) {
				shut(all[1])
				all[1].Confirm(t.Context(), policy.DefaultRule(), gate.Request{Source: app, Credentials: "Basic x"})
			},
		}, [3]bool{}},
		"also where it was so twice": {[]func([]*node){
			func(all []*node) { shut(all[1]) },
			func(all []*node) { open(all[0]) },
			func(all []*node) { shut(all[1]) },
		}, [3]bool{}},
		"what is public again is open where that was seen, and else once two have seen it": {[]func([]*node){
			func(all []*node) { shut(all[1]) },
			func(all []*node) { open(all[0]) },
		}, [3]bool{true, false, false}},
		"what two have seen to be public again": {[]func([]*node){
			func(all []*node) { open(all[2]) },
			func(all []*node) { shut(all[1]) },
			func(all []*node) { open(all[0]); open(all[1]) },
		}, [3]bool{true, true, true}},
	} {
		for cause, err := range map[string]error{
			"away": content.ErrUnavailable, "throttling": &content.UpstreamError{Status: http.StatusTooManyRequests},
		} {
			t.Run(name+", the registry being "+cause, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					all := nodes(t, 3)
					defer end(t, all)
					all[1].Prove(content.Request{Repository: team, Digest: pushed})
					span := month
					if cause == "throttling" {
						span = 6 * time.Hour // what was open within a day is so then, as each node has itself seen
					}
					for _, say := range test.said {
						say(all)
						time.Sleep(span)
					}
					for range 2 {
						for i, n := range all {
							want := test.want[i] && (cause == "away" || n.Public(app))
							require.Equal(t, want, n.reads(t, err), "node %d", i)
							n.start(t) // and again after a restart
						}
					}
				})
			})
		}
	}
}

// A peer that was taken over says that anyone may read everything, and that everything is proved.
func TestGate_TheWordOfOneNodeOpensNothingThatAnotherKnowsToBeShutAndIsNotKept(t *testing.T) {
	t.Parallel()
	lie := gate.Testimony{Public: []time.Duration{0}, Proven: []digest.Digest{pushed}, Held: []digest.Digest{pushed}}
	for name, test := range map[string]struct {
		refused int // which node has been refused
		open    bool
	}{
		"where this node knows better":    {refused: 0},
		"where another does":              {refused: 1},
		"but what nobody knows better of": {refused: -1, open: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				all := nodes(t, 2)
				defer end(t, all)
				if test.refused >= 0 {
					all[test.refused].Refused(app, "", refusal)
				}
				time.Sleep(time.Hour)
				all[0].liars = []gate.Testimony{lie}
				require.Equal(t, test.open, all[0].reads(t, content.ErrUnavailable))
				require.Empty(t, all[0].Testify(app, []digest.Digest{pushed}).Public, "it is not passed on")
				require.Empty(t, all[0].Testify(app, []digest.Digest{pushed}).Proven)
				require.False(t, all[1].reads(t, content.ErrUnavailable))

				all[0].liars = nil // it is banned
				time.Sleep(5 * time.Minute)
				require.False(t, all[0].reads(t, content.ErrUnavailable), "what it has opened is shut")
				time.Sleep(time.Hour)
				require.False(t, all[0].Proved(content.Request{Repository: team, Digest: pushed}))
				all[0].liars = []gate.Testimony{lie}
				_ = all[0].reads(t, content.ErrUnavailable)
				all[0].liars = nil
				all[0].start(t)
				require.False(t, all[0].reads(t, content.ErrUnavailable), "nothing of it is on the disk")
				require.False(t, all[0].Proved(content.Request{Repository: team, Digest: pushed}))
			})
		})
	}
}
