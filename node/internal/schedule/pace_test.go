package schedule

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const paced = 100 // chunks of the blob

// windowed is a table of participants that hold few chunks at a time, all at its beginning.
func windowed(t *testing.T, slots int, ids ...peer.ID) (*Table, time.Time) {
	t.Helper()
	now := time.Unix(0, 0)
	table := New(Config{})
	table.Open(now)
	for _, id := range ids {
		require.NoError(t, table.Join(now, id, Join{Upstream: true, Report: Report{
			Size: paced * content.ChunkSize, Slots: slots, Need: []Run{{First: 0, Count: slots / 2}},
		}}))
	}
	return table, now
}

// read has id read all that it is leased, and let go of what has no slot, until it is leased no more. It returns the
// end of what it has read.
func read(t *testing.T, table *Table, now time.Time, id peer.ID, slots int) (end int) {
	t.Helper()
	for {
		var leases []Run
		table.Take(func(to peer.ID, o Orders) {
			if to == id {
				leases = append(leases, o.Leases...)
			}
		})
		if len(leases) == 0 {
			return end
		}
		for _, r := range leases {
			for i := r.First; i < r.End(); i++ {
				end = max(end, i+1)
				report := Report{Claims: []Claim{{Index: i, Sum: Sum{byte(i)}, By: id}},
					Need: []Run{{First: i + 1, Count: slots / 2}}}
				if i >= slots {
					report.Gone = []int{i - slots}
				}
				require.NoError(t, table.Report(now, id, report))
			}
		}
	}
}

func TestPace_WhoHoldsFewChunksWaitsForThoseWhoFollow(t *testing.T) {
	t.Parallel()
	table, now := windowed(t, 16, "fast")
	require.Equal(t, paced, read(t, table, now, "fast", 16), "alone it reads all")

	table, now = windowed(t, 16, "fast", "slow")
	end := read(t, table, now, "fast", 16)
	require.LessOrEqual(t, end, 16, "what the other still has to take stays")

	for i := range 8 {
		require.NoError(t, table.Report(now, "slow", Report{Have: []int{i}, Need: []Run{{First: i + 1, Count: 8}}}))
	}
	further := read(t, table, now, "fast", 16)
	require.Greater(t, further, end, "and it goes on as the other does")
	require.LessOrEqual(t, further, end+8)
}

func TestPace_WhoReadsAtSeveralPlacesHasNoFrontToWaitAt(t *testing.T) {
	t.Parallel()
	for first, tc := range map[peer.ID]struct {
		second peer.ID
		why    string
	}{
		"apart": {"other", "it reads where the other is not"}, "other": {"apart", "and the other does not wait for it"},
	} {
		table, now := windowed(t, 16, first, tc.second) // who joins first is leased something at once
		require.NoError(t, table.Report(now, "apart", Report{Need: []Run{{First: 50, Count: 2}}}))
		require.Greater(t, read(t, table, now, first, 16), 52, tc.why)
	}
}

func TestPace_OneThatGetsNothingIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	table, now := windowed(t, 16, "fast", "dead")
	read(t, table, now, "fast", 16)
	now = now.Add(paceFor + time.Second)
	table.Tick(now)
	require.Equal(t, paced, read(t, table, now, "fast", 16))
}

func TestPace_ASlowOneMakesOthersNoMoreThanHalfAsSlow(t *testing.T) {
	t.Parallel()
	table, now := windowed(t, 16, "fast", "slow")
	start := now
	for i := 0; ; i++ { // a chunk each second, for which the other waits
		if read(t, table, now, "fast", 16) == paced {
			break
		}
		require.Less(t, i, paced, "the slow one is at its end before the fast one")
		now = now.Add(time.Second)
		table.Tick(now)
		require.NoError(t, table.Report(now, "slow", Report{Have: []int{i}, Need: []Run{{First: i + 1, Count: 8}}}))
	}
	require.Less(t, now.Sub(start), paced*time.Second/2)
}

func TestTable_WhatOneHasLetGoOfIsHadFromAnother(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	table := New(Config{})
	table.Open(now)
	join := func(id peer.ID, upstream bool, need int) {
		require.NoError(t, table.Join(now, id, Join{Upstream: upstream, Report: Report{
			Size: 4 * content.ChunkSize, Need: []Run{{First: 0, Count: need}},
		}}))
	}
	join("a", true, 1)
	claim := Claim{Index: 0, Sum: Sum{1}, By: "a"}
	require.NoError(t, table.Report(now, "a", Report{Claims: []Claim{claim}}))
	join("b", false, 1)
	orders := func() map[peer.ID]Orders {
		all := map[peer.ID]Orders{}
		table.Take(func(to peer.ID, o Orders) { all[to] = o })
		return all
	}
	require.Equal(t, peer.ID("a"), orders()["b"].Chunks[0].From)
	require.NoError(t, table.Report(now, "b", Report{Have: []int{0}}))
	require.NoError(t, table.Report(now, "a", Report{Gone: []int{0}}))
	join("c", false, 1)
	require.Equal(t, peer.ID("b"), orders()["c"].Chunks[0].From, "who has let go of it is not asked")

	require.NoError(t, table.Report(now, "b", Report{Gone: []int{0}}))
	require.NoError(t, table.Report(now, "a", Report{Need: []Run{{First: 0, Count: 1}}}))
	told := orders()
	require.Equal(t, []Run{{First: 0, Count: 1}}, told["a"].Leases, "where nobody has it any more it is read once more")
	require.Equal(t, peer.ID("a"), told["c"].Chunks[0].From, "for those who still wait, too")
}

func TestTable_WhatCameAndWentBeforeThatWasToldIsToldAgainWhenItIsNeeded(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	need := []Run{{First: 0, Count: 1}}
	again := Report{Gone: []int{0}, Need: need} // in one message
	arrange := func(t *testing.T, upstream bool, needs []Run) (*Table, func(id peer.ID) Orders) {
		t.Helper()
		table := New(Config{})
		table.Open(now)
		require.NoError(t, table.Join(now, "p", Join{Upstream: upstream, Report: Report{Size: 4 * content.ChunkSize, Need: needs}}))
		return table, func(id peer.ID) (o Orders) {
			table.Take(func(to peer.ID, its Orders) {
				if to == id {
					o = its
				}
			})
			return o
		}
	}
	t.Run("from a holder", func(t *testing.T) {
		t.Parallel()
		table, orders := arrange(t, false, need)
		claims := []Claim{{Index: 0, Sum: Sum{1}, By: "h"}}
		require.NoError(t, addHolder(table, now, "h", "", 4*content.ChunkSize, claims))
		require.Len(t, orders("p").Chunks, 1)
		require.NoError(t, table.Report(now, "p", again))
		require.Len(t, orders("p").Chunks, 1)
	})
	t.Run("from upstream", func(t *testing.T) {
		t.Parallel()
		table, orders := arrange(t, true, need)
		require.Len(t, orders("p").Leases, 1)
		again := again
		again.Claims = []Claim{{Index: 0, Sum: Sum{1}, By: "p"}}
		require.NoError(t, table.Report(now, "p", again))
		require.Len(t, orders("p").Leases, 1)
	})
}
