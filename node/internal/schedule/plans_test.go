package schedule

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const fiveChunks = 5 * content.ChunkSize

// ordersOf collects what participants are told.
func ordersOf(p *Plans) map[peer.ID]Orders {
	out := map[peer.ID]Orders{}
	p.Take(func(to peer.ID, o Orders) {
		have := out[to]
		have.Merge(o)
		out[to] = have
	})
	return out
}

func wants(size int64) Join { return Join{Upstream: true, Whole: true, Report: Report{Size: size}} }

func TestPlans_AWrongSizeHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	for name, liar := range map[string]Join{
		"that is huge":  wants(content.MaxSize),
		"that is small": wants(1),
		"of one that reads all": {Upstream: true, Whole: true, Leased: []Run{{First: 0, Count: 1 << 20}},
			Report: Report{Size: content.MaxSize}},
		"of a holder": {Report: Report{Size: content.MaxSize, Complete: true,
			Claims: []Claim{{Index: 0, By: "liar"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := NewPlans(Config{})
			p.Open(epoch)
			require.NoError(t, p.Join(epoch, "liar", liar))
			require.NoError(t, p.Join(epoch, "a", wants(fiveChunks)))
			require.NoError(t, p.Join(epoch, "b", wants(fiveChunks)))
			read := map[int]int{}
			for range 20 {
				for id, o := range ordersOf(p) {
					require.True(t, id == "liar" || o.Size == 0 || o.Size == fiveChunks, "%s is told of %d bytes", id,
						o.Size)
					require.True(t, id == "liar" || !o.Hopeless)
					for _, r := range o.Leases {
						for i := r.First; i < r.End() && id != "liar"; i++ {
							read[i]++
							require.NoError(t, p.Report(epoch, id,
								Report{Claims: []Claim{{Index: i, Sum: sum(i), By: id}}}))
						}
					}
					for _, a := range o.Chunks {
						require.NotEqual(t, peer.ID("liar"), a.From)
						require.NoError(t, p.Report(epoch, id, Report{Have: []int{a.Index}}))
					}
				}
			}
			require.Len(t, read, 5)
			for i, n := range read {
				require.Equal(t, 1, n, "chunk %d is read once", i)
			}
		})
	}
}

func TestPlans_OneThatKnowsNoSizeBelieves(t *testing.T) {
	t.Parallel()
	claims := []Claim{{Index: 0, Sum: sum(0), By: "x"}}
	for name, c := range map[string]struct {
		there  map[peer.ID]Join
		joins  Join
		size   int64
		leased bool // it is to ask the registry itself, at once
	}{
		"nobody's mere word while it can ask the registry, which it does in a while": {map[peer.ID]Join{
			"x": wants(fiveChunks)}, Join{Upstream: true, Whole: true}, 0, false},
		"anyone's word where it cannot": {map[peer.ID]Join{"x": wants(fiveChunks)},
			Join{Whole: true}, fiveChunks, false},
		"two that say the same": {map[peer.ID]Join{"x": wants(fiveChunks),
			"y": wants(fiveChunks)}, Join{Upstream: true, Whole: true}, fiveChunks, false},
		"a holder": {
			map[peer.ID]Join{"x": {Report: Report{Size: fiveChunks, Complete: true}}}, Join{Upstream: true,
				Whole: true}, fiveChunks, true,
		},
		"one that signed for a chunk": {
			map[peer.ID]Join{"x": {Whole: true, Report: Report{Size: fiveChunks, Claims: claims}}}, Join{Upstream: true,
				Whole: true},
			fiveChunks, true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := NewPlans(Config{})
			p.Open(epoch)
			for id, j := range c.there {
				require.NoError(t, p.Join(epoch, id, j))
			}
			require.NoError(t, p.Join(epoch, "new", c.joins))
			o := ordersOf(p)["new"]
			require.Equal(t, c.size, o.Size)
			require.Equal(t, c.leased, len(o.Leases) > 0)
		})
	}
}

func TestPlans_WhoDoesNotKnowTheSizeWaitsOnceForOneWhoSaysItToShowAChunk(t *testing.T) {
	t.Parallel()
	p := NewPlans(Config{})
	p.Open(epoch)
	require.NoError(t, p.Join(epoch, "x", wants(fiveChunks)))
	require.NoError(t, p.Join(epoch, "new", Join{Upstream: true, Whole: true}))
	p.Tick(epoch.Add(wordPatience - 1))
	require.Empty(t, ordersOf(p)["new"].Leases)
	p.Tick(epoch.Add(wordPatience))
	require.NotEmpty(t, ordersOf(p)["new"].Leases, "the word may be a lie")

	// Others who say other sizes hold up nobody any more.
	require.NoError(t, p.Join(epoch.Add(time.Minute), "y", wants(fiveChunks+1)))
	p.Leave(epoch.Add(time.Minute), "new")
	require.NoError(t, p.Join(epoch.Add(time.Minute), "late", Join{Upstream: true, Whole: true}))
	require.NotEmpty(t, ordersOf(p)["late"].Leases)
}

func TestPlans_OneThatLearnsTheSizeJoinsThoseThatKnowIt(t *testing.T) {
	t.Parallel()
	p := NewPlans(Config{})
	p.Open(epoch)
	require.NoError(t, p.Join(epoch, "new", Join{Upstream: true, Whole: true}))
	require.NoError(t, p.Join(epoch, "x", wants(fiveChunks)))
	require.ErrorIs(t, p.Report(epoch, "new", Report{Size: fiveChunks}), ErrMoved)
	require.NoError(t, p.Join(epoch, "new", wants(fiveChunks)))
	require.Len(t, p.tables, 2)
	require.Empty(t, p.tables[0].parties, "it is in one plan only")
	require.Len(t, p.tables[1].active, 2)
}

func TestPlans_ThoseThatWaitForTheSizeAreCalledOnceAHolderIsKnown(t *testing.T) {
	t.Parallel()
	p := NewPlans(Config{})
	require.NoError(t, p.Join(epoch, "waits", Join{Upstream: true, Whole: true}))
	require.NoError(t, p.Join(epoch, "knows", wants(fiveChunks)))
	require.Empty(t, p.Strays())
	require.NoError(t, p.AddHolder(epoch, "holder", "", fiveChunks, []Claim{{Index: 0, Sum: sum(0), By: "holder"}}))
	require.Equal(t, []peer.ID{"waits"}, p.Strays())
}

func TestPlans_SizesWithoutEndKeepNobodyOut(t *testing.T) {
	t.Parallel()
	p := NewPlans(Config{})
	for i := range maxPlans {
		require.NoError(t, p.Join(epoch, peer.ID(rune('a'+i)), wants(int64(i+1))))
	}
	require.NoError(t, p.Join(epoch, "honest", wants(fiveChunks)),
		"a size that one peer names, and nobody bears out, gives way")
	require.Error(t, p.Report(epoch, "a", Report{Need: []Run{{Count: 1}}}), "whose size it was joins anew")
	require.NoError(t, p.Join(epoch, "another", wants(fiveChunks)))
	for i := range 3 * maxPlans {
		require.NoError(t, p.Join(epoch, peer.ID(rune('A'+i)), wants(int64(i+100))))
	}
	require.Len(t, p.tables, maxPlans)
	require.NoError(t, p.Report(epoch, "honest", Report{Need: []Run{{Count: 1}}}), "that two name does not")
}

func TestPlans_SizesThatSeveralStandByAreBounded(t *testing.T) {
	t.Parallel()
	p := NewPlans(Config{})
	for i := range 2 * maxPlans {
		require.NoError(t, p.Join(epoch, peer.ID(rune('a'+i)), wants(int64(i/2+1))))
	}
	require.ErrorIs(t, p.Join(epoch, "honest", wants(fiveChunks)), ErrSize)
	p.Leave(epoch, "a")
	p.Leave(epoch, "b")
	require.NoError(t, p.Join(epoch, "honest", wants(fiveChunks)))
}

func TestHold_GivesNoLeaseBeforeTheWayIsOpened(t *testing.T) {
	t.Parallel()
	p := NewPlans(Config{})
	p.Open(epoch)
	p.Hold()
	require.NoError(t, p.Join(epoch, "a", wants(fiveChunks)))
	p.Tick(epoch.Add(time.Second))
	require.Empty(t, ordersOf(p)["a"].Leases)
	p.Open(epoch)
	require.NotEmpty(t, ordersOf(p)["a"].Leases)
}

func TestOrders_ACoordinatorOpensNoMoreLeasesThanItMayGive(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		grain content.Grain
		most  int
	}{
		"of a blob in chunks": {content.Leaves, maxLeased},
		"of a blob in pieces": {content.Pieces, 4 * maxLeased},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := NewParticipant(ParticipantConfig{Grain: tc.grain}, "self")
			p.SetUpstream(true)
			p.SetSize(200*content.ChunkSize, func(int) bool { return false })
			p.Join()
			p.Joined(epoch, "coordinator")
			p.Take()
			given := min(2*tc.most, tc.grain.Cut(200*content.ChunkSize).Len())
			for i := range given {
				p.Orders(epoch, Orders{Leases: []Run{{First: i, Count: 1}}})
			}
			got := p.Take()
			require.Len(t, got.Leases, tc.most)
			require.Len(t, got.Report.Failed, given-tc.most, "the rest goes back")
		})
	}
}

// An index says where in a blob a chunk is only once the size is known. Bytes that are claimed as another chunk than
// they are would have others doubt this node.
func TestOrders_BeforeTheSizeIsKnownOnlyTheStartIsLeased(t *testing.T) {
	t.Parallel()
	p := NewParticipant(ParticipantConfig{Grain: content.Pieces}, "self")
	p.SetUpstream(true)
	p.Join()
	p.Joined(epoch, "coordinator")
	p.Orders(epoch, Orders{Leases: []Run{{First: 1, Count: 1}, {First: 0, Count: 4}, {First: -1, Count: 1}}})
	require.Empty(t, p.Take().Leases)
	p.Orders(epoch, Orders{Leases: []Run{{First: 0, Count: 1}}})
	require.Len(t, p.Take().Leases, 1)
}

func TestLeaseEnded_WhatOfALeaseWasNotReadGoesBack(t *testing.T) {
	t.Parallel()
	for name, read := range map[string]int{"a piece of its leaf": 1, "all of it": 4} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := NewParticipant(ParticipantConfig{Grain: content.Pieces}, "self")
			p.SetUpstream(true)
			p.Join()
			p.Joined(epoch, "coordinator")
			p.Orders(epoch, Orders{Leases: []Run{unsized}})
			p.SetSize(8*content.ChunkSize, func(int) bool { return false })
			p.Demand(epoch, Run{Count: 32})
			p.Take()
			for i := range read {
				p.Claimed(epoch, Claim{Index: i, Sum: sum(i), By: "self"})
			}
			p.LeaseEnded(epoch, unsized, 0)
			var back []Failure
			if read < 4 {
				back = []Failure{{Run: Run{First: 0, Count: 4}, Trouble: Returned}}
			}
			require.Equal(t, back, p.Take().Report.Failed)
		})
	}
}

func TestSetUpstream_TheCoordinatorIsToldOfACallerWhoHasCome(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		joins func(p *Participant) // what happens from before it joins to after
		told  bool
	}{
		"before it joined": {func(p *Participant) { p.SetUpstream(true); tieTo(p) }, false}, // which Join tells
		"while it joined":  {func(p *Participant) { p.Join(); p.SetUpstream(true); p.Joined(epoch, "c") }, true},
		"since":            {func(p *Participant) { tieTo(p); p.SetUpstream(true) }, true},
		"since, and another, whom upstream does not refuse either": {func(p *Participant) {
			p.SetUpstream(true)
			tieTo(p)
			p.SetUpstream(true)
		}, false},
		"since all others were refused": {func(p *Participant) {
			p.SetUpstream(true)
			tieTo(p)
			p.SetUpstream(false)
			p.SetUpstream(true)
		}, true},
		"and was refused": {func(p *Participant) { tieTo(p); p.SetUpstream(true); p.SetUpstream(false) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := NewParticipant(ParticipantConfig{}, "self")
			tc.joins(p)
			a := p.Take()
			require.Equal(t, tc.told, a.Report.MayRead)
			require.False(t, a.Leave, "the plan knows what the node has and does")
		})
	}
}

func tieTo(p *Participant) {
	p.Join()
	p.Joined(epoch, "c")
}
