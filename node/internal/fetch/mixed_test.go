package fetch

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/swarm"
)

// ofReleases starts nodes that all know each other, those marked old of a release that knew no pieces.
func ofReleases(t *testing.T, o *origin, old ...bool) []*testNode {
	t.Helper()
	nodes := newSwarm(t, o, len(old), func(i int, _ *Options, so *swarm.Options) { so.LeavesOnly = old[i] })
	grain := content.Pieces
	for _, older := range old {
		if older {
			grain = content.Leaves
		}
	}
	for _, n := range nodes {
		eventually(t, "all know what the others speak", func() bool { return n.swarm.Grain() == grain })
	}
	return nodes
}

func TestMixedReleases_NodesOfBothHaveOnePlan(t *testing.T) {
	t.Parallel()
	const size = 8*chunk1 + 300_005
	for name, old := range map[string][]bool{
		"none is old": {false, false, false}, "one is": {false, true, false}, "all but one are": {true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			nodes := ofReleases(t, o, old...)
			for range 3 { // whichever of them coordinates
				before, d := o.Bytes.Load(), o.add(t, size)
				pullAll(t, nodes, o.request(d), 0)
				require.EqualValues(t, size, o.Bytes.Load()-before, "the registry sent each byte once")
			}
		})
	}
}

func TestMixedReleases_WhatOneHoldsTheOtherReadsFromIt(t *testing.T) {
	t.Parallel()
	const size = 4*chunk1 + 300_005
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprint("the holder is old: ", old), func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			holder := ofReleases(t, o, old)[0]
			d := o.add(t, size)
			require.NoError(t, holder.Ensure(t.Context(), o.request(d)))
			other := newNode(t, o, "other", infos([]*testNode{holder}), func(_ *Options, so *swarm.Options) {
				so.LeavesOnly = !old
			})
			eventually(t, "they know what the other speaks", func() bool {
				return other.knows(holder.swarm.ID()) && other.swarm.Grain() == content.Leaves
			})
			data, err := other.read(t.Context(), o.request(d))
			require.NoError(t, err)
			require.Equal(t, d, digest.FromBytes(data))
			require.EqualValues(t, size, o.Bytes.Load(), "the registry was not asked again")
		})
	}
}

func TestPieces_APartOfALeafIsReadAndShared(t *testing.T) {
	t.Parallel()
	const size = 8*chunk1 + 5
	o := newOrigin(t)
	nodes := ofReleases(t, o, false, false)
	d := o.add(t, size)
	for _, n := range nodes {
		req := o.request(d)
		req.Size, req.Part = size, true
		r, err := n.Open(t.Context(), req)
		require.NoError(t, err)
		body, err := r.Range(t.Context(), 5*piece+7, 100)
		require.NoError(t, err)
		got := make([]byte, 100)
		_, err = body.Read(got)
		require.NoError(t, err)
		require.Equal(t, o.Blob(d)[5*piece+7:5*piece+7+len(got)], got)
		require.NoError(t, body.Close())
		defer func() { require.NoError(t, r.Close()) }()
	}
	require.LessOrEqual(t, o.Bytes.Load(), int64(piece+2), "one piece in all, and what tells the size")
}
