package swarm

import (
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// Who finds the nearest peer too busy to answer takes the next for the coordinator, and others that come later do not.
func TestRooms_OfOneBlobUniteAtTheNearest(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	nodes := newMesh(t, d, 4)
	nearest, next, early, late := nodes[0], nodes[1], nodes[2], nodes[3]
	nearest.host.SetStreamHandler(nearest.protocol("coordinate"), func(s network.Stream) { _ = s.Reset() })
	join := func(s *testSwarm) Session {
		session, err := s.Join(t.Context(), d,
			schedule.Join{Upstream: true, Whole: true, Report: schedule.Report{Size: 5 << 20}})
		require.NoError(t, err)
		t.Cleanup(session.Close)
		return session
	}
	apart := join(early)
	require.Equal(t, next.ID(), apart.Coordinator())

	nearest.host.SetStreamHandler(nearest.protocol("coordinate"), nearest.handleCoordinate(content.Leaves))
	require.Equal(t, nearest.ID(), join(late).Coordinator())

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var sentAway error
	for sentAway == nil {
		_, sentAway = apart.Next(ctx)
	}
	require.NoError(t, ctx.Err(), "it takes part apart from the others for good")
	apart.Close()
	require.Equal(t, nearest.ID(), join(early).Coordinator(), "it goes there, although it had no answer from there before")
}

// A nearer peer that plans nothing is no reason to send those away who take part.
func TestRooms_StayWhereTheNearestPlansNothing(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	nodes := newMesh(t, d, 3)
	require.False(t, nodes[1].askPlans(t.Context(), nodes[0].ID(), leaves(d)))
	session, err := nodes[2].Join(t.Context(), d, schedule.Join{Whole: true, Report: schedule.Report{Size: 5 << 20}})
	require.NoError(t, err)
	require.True(t, nodes[1].askPlans(t.Context(), nodes[0].ID(), leaves(d)))
	session.Close()
	eventually(t, "nobody takes part", func() bool { return !nodes[1].askPlans(t.Context(), nodes[0].ID(), leaves(d)) })
}

// Who only says that it plans the blob holds nobody up for good: the nearest, which then takes nobody in, and another.
func TestRooms_OneThatOnlySaysItPlansKeepsNobodyFromReading(t *testing.T) {
	t.Parallel()
	for name, liar := range map[string]int{"the nearest": 0, "one that is farther": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := digest.FromString("x")
			nodes := newMesh(t, d, 3, func(o *Options) { o.Slack = 2 })
			says := nodes[liar]
			says.host.SetStreamHandler(says.protocol("map"), func(s network.Stream) {
				_ = writeFrame(s, mapHead{Plans: true})
				_ = s.Close()
			})
			says.host.SetStreamHandler(says.protocol("coordinate"), func(s network.Stream) { _ = s.Reset() })
			for leased := false; !leased; {
				session, err := nodes[2].Join(t.Context(), d,
					schedule.Join{Upstream: true, Whole: true, Report: schedule.Report{Size: 5 << 20}})
				require.NoError(t, err)
				for err == nil && !leased {
					var o schedule.Orders
					o, err = session.Next(t.Context())
					leased = len(o.Leases) > 0
				}
				require.NoError(t, t.Context().Err())
				session.Close()
			}
		})
	}
}
