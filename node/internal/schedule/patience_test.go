package schedule

import (
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestPatience_WithAPeerGoesByTheBytesThatComeFromIt(t *testing.T) {
	t.Parallel()
	const patience = 30 * time.Second
	for name, c := range map[string]struct {
		perSecond int64 // bytes of any kind
		held      bool
		atLeast   time.Duration // the chunk is waited for
		atMost    time.Duration
	}{
		"signs of life only":                          {64, false, patience, patience + time.Second},
		"signs of life only, though it has the chunk": {64, true, patience / 3, patience/3 + time.Second},
		"bytes of other chunks": {1 << 20, false, 3 * patience,
			longPatience*patience + time.Second},
		"bytes of other chunks, and it has the chunk": {1 << 20, true, 3 * patience,
			longPatience*patience + time.Second},
		"nothing": {0, false, 5 * time.Second, 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Unix(1e9, 0)
			p := NewParticipant(ParticipantConfig{PeerPatience: patience}, "self")
			p.SetUpstream(true)
			p.SetSize(2*content.ChunkSize, func(int) bool { return false })
			p.Demand(begin, Run{Count: 2})
			p.Join()
			p.Joined(begin, "self")
			p.Orders(begin, Orders{Chunks: []Assignment{{Claim: Claim{Index: 0, Sum: sum(0)}, From: "peer",
				Held: c.held}}})
			require.Equal(t, peer.ID("peer"), p.AskedOf(0))
			now := begin
			for p.AskedOf(0) != "" {
				now = now.Add(TickEvery)
				require.LessOrEqual(t, now.Sub(begin), c.atMost)
				p.Tick(now, func(peer.ID) int64 { return c.perSecond * int64(now.Sub(begin)/time.Second) })
			}
			require.GreaterOrEqual(t, now.Sub(begin), c.atLeast)
		})
	}
}

func TestPatience_WithARegistryThatThinksGoesByWhoAsksIt(t *testing.T) {
	t.Parallel()
	const limit = 10 * time.Second
	for name, c := range map[string]struct {
		says            bool // the reader says that it reads
		mute            bool // and the coordinator nothing of it
		atLeast, atMost time.Duration
	}{
		"a reader that lives":                         {true, false, longPatience * limit, (longPatience + 2) * limit},
		"a reader that lives, of which nobody speaks": {true, true, limit, limit + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Unix(1e9, 0)
			table := New(Config{ChunkTimeout: time.Hour, UpstreamRuns: 1})
			table.Open(begin)
			const size = 4 * content.ChunkSize
			require.NoError(t, table.Join(begin, "reader", Join{Upstream: true, Whole: true,
				Report: Report{Size: size}}))
			p := NewParticipant(ParticipantConfig{CoordinatorPatience: limit}, "waits")
			p.SetUpstream(true)
			p.SetSize(size, func(int) bool { return false })
			p.Demand(begin, Run{Count: 4})
			require.NoError(t, table.Join(begin, "waits", p.Join()))
			p.Joined(begin, "coordinator")
			now, read := begin, false
			for !read {
				now = now.Add(TickEvery)
				require.LessOrEqual(t, now.Sub(begin), c.atMost)
				require.NoError(t, table.Report(now, "reader", Report{Reading: c.says}))
				if now.UnixMilli()%1000 == 0 {
					table.Tick(now)
				}
				table.Take(func(to peer.ID, o Orders) {
					if to == "waits" && !c.mute {
						require.Empty(t, o.Leases)
						p.Orders(now, o)
					}
				})
				p.Tick(now, func(peer.ID) int64 { return now.Unix() })
				read = len(p.Take().Leases) > 0
			}
			require.GreaterOrEqual(t, now.Sub(begin), c.atLeast)
		})
	}
}

func TestReassure_OnlyThoseAreToldWhoNeedWhatIsRead(t *testing.T) {
	t.Parallel()
	table := New(Config{UpstreamRuns: 1})
	table.Open(epoch)
	for _, id := range []peer.ID{"reader", "waits", "wants another"} {
		require.NoError(t, table.Join(epoch, id, Join{Upstream: true, Whole: id != "wants another",
			Report: Report{Size: 4 * content.ChunkSize}}))
	}
	require.NoError(t, table.Report(epoch, "wants another", Report{Need: []Run{{First: 3, Count: 1}}}))
	table.Take(func(peer.ID, Orders) {})
	told := func(after time.Duration) (all []peer.ID) {
		require.NoError(t, table.Report(epoch.Add(after), "reader", Report{Reading: true}))
		table.Tick(epoch.Add(after))
		table.Take(func(to peer.ID, o Orders) {
			if o.Awaited {
				all = append(all, to)
			}
		})
		return all
	}
	require.Empty(t, told(time.Second), "not before it takes long")
	require.ElementsMatch(t, []peer.ID{"reader", "waits"}, told(4*time.Second))
	require.NoError(t, table.Report(epoch.Add(5*time.Second), "reader", Report{Claims: []Claim{{Sum: sum(0),
		By: "reader"}}}))
	require.Empty(t, told(6*time.Second), "it comes")
}

func TestReassure_NotOfAReaderThatSaysNothing(t *testing.T) {
	t.Parallel()
	table := accusedTable(t)
	for after := range 12 {
		now := epoch.Add(time.Duration(after) * time.Second)
		table.Tick(now)
		awaited := false
		table.Take(func(_ peer.ID, o Orders) { awaited = awaited || o.Awaited })
		require.Equal(t, now.Sub(epoch) >= quiet && now.Sub(epoch) <= table.cfg.LeaseTimeout, awaited, "%d s", after)
	}
}

// How long a peer may be silent is what it and others took to answer before, and not a clock: on slow machines answers
// are slow.
func TestPatience_WithAPeerThatIsSilentGoesByHowFastAnswersWere(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		silence, lag    time.Duration // ParticipantConfig.PeerSilence, and that of the peers that live
		atLeast, atMost time.Duration // until the dead one is passed over
	}{
		"answers at once":           {0, 0, 3 * time.Second, 4500 * time.Millisecond},
		"answers after a while":     {0, 700 * time.Millisecond, 3 * time.Second, 5 * time.Second},
		"answers that took forever": {0, 3 * time.Second, 5 * time.Second, 6 * time.Second},
		"on a node that waits long": {20 * time.Second, 0, 12 * time.Second, 14 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Unix(1e9, 0)
			p := NewParticipant(ParticipantConfig{PeerSilence: c.silence}, "self")
			p.SetUpstream(true)
			p.SetSize(3*content.ChunkSize, func(int) bool { return false })
			p.Demand(begin, Run{Count: 3})
			p.Join()
			p.Joined(begin, "self")
			p.Orders(begin, Orders{Chunks: []Assignment{{Claim: Claim{Index: 0, Sum: sum(0)}, From: "live"}}})
			now, pinged := begin, time.Time{}
			bytes := map[peer.ID]int64{}
			tick := func() {
				now = now.Add(TickEvery)
				if !pinged.IsZero() && now.Sub(pinged) > c.lag {
					bytes["live"]++
					pinged = time.Time{}
				}
				p.Tick(now, func(id peer.ID) int64 { return bytes[id] })
				for _, id := range p.Take().Pings {
					if id == "live" && pinged.IsZero() {
						pinged = now
					}
				}
			}
			for now.Sub(begin) < 10*time.Second {
				tick()
			}
			require.Equal(t, peer.ID("live"), p.AskedOf(0), "it lives, and says so")
			p.Orders(now, Orders{Chunks: []Assignment{{Claim: Claim{Index: 1, Sum: sum(1)}, From: "dead"}}})
			asked := now
			for p.AskedOf(1) != "" {
				tick()
				require.LessOrEqual(t, now.Sub(asked), c.atMost)
			}
			require.GreaterOrEqual(t, now.Sub(asked), c.atLeast)
			require.Equal(t, peer.ID("live"), p.AskedOf(0))
		})
	}
}

func TestAccuse_OfOneThatSaysNothingItselfTwoAreEnough(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		speaks    bool // it reports, whatever others say of it
		stands    bool // the coordinator itself stands still meanwhile
		accused   int
		sidelined bool
	}{
		"two got nothing from it, and it says nothing":       {accused: 2, sidelined: true},
		"two got nothing from it, and nobody could be heard": {stands: true, accused: 2},
		"two got nothing from it, and it reads":              {speaks: true, accused: 2},
		"one got nothing from it":                            {accused: 1},
		"a quarter of all got nothing from it, and it reads": {speaks: true, accused: 3, sidelined: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := accusedTable(t)
			now := epoch.Add(muteAfter + time.Second)
			table.Tick(epoch)
			for at := epoch.Add(tickEvery); at.Before(now) && !c.stands; at = at.Add(tickEvery) {
				table.Tick(at)
			}
			if c.speaks {
				require.NoError(t, table.Report(now.Add(-time.Second), "suspect", Report{Reading: true}))
			}
			for k := range c.accused {
				require.NoError(t, table.Report(now, id(k), Report{Suspects: []Suspicion{{Index: 0,
					From: "suspect"}}}))
			}
			require.Equal(t, c.sidelined, table.parties["suspect"].sidelined.After(now))
		})
	}
}

// accusedTable has a participant that reads from upstream, and eleven who cannot and need what it reads.
func accusedTable(t *testing.T) *Table {
	t.Helper()
	table := New(Config{UpstreamRuns: 1})
	table.Open(epoch)
	ids := []peer.ID{"suspect"}
	for k := range 11 {
		ids = append(ids, id(k))
	}
	for _, id := range ids {
		require.NoError(t, table.Join(epoch, id, Join{Upstream: id == "suspect", Whole: true,
			Report: Report{Size: 4 * content.ChunkSize}}))
	}
	require.NoError(t, table.Report(epoch, "suspect", Report{Claims: []Claim{{Sum: sum(0), By: "suspect"}}}))
	require.Positive(t, table.leased, "it reads on")
	return table
}

func TestTick_WhoSaysNothingOfALeaseIsGivenNoneUntilItReports(t *testing.T) {
	t.Parallel()
	s, silent, other := stalled(t, Config{})
	silent.leases = nil
	for range int((penalty + 2*s.table.cfg.LeaseTimeout) / time.Second) {
		s.now = s.now.Add(time.Second)
		s.report(other, Report{Reading: true})
		s.table.Tick(s.now)
		s.deliver()
	}
	require.Empty(t, silent.leases, "it may be dead")
	s.report(silent, Report{Load: 1})
	require.NotEmpty(t, silent.leases)
	require.Empty(t, s.table.parties[silent.id].taken, "what it had before it is not remembered without end")
}

func TestTick_ASlowOneReadsOnBesideOneThatSaysNothing(t *testing.T) {
	t.Parallel()
	s, _, slow := stalled(t, Config{})
	for range int(4 * s.table.cfg.ChunkTimeout / time.Second) {
		s.now = s.now.Add(time.Second)
		s.report(slow, Report{Reading: true})
		s.table.Tick(s.now)
		s.deliver()
	}
	had, i := len(slow.leases), slow.leases[0]
	s.report(slow, Report{Claims: []Claim{{Index: i, Sum: sum(i), By: slow.id}}})
	require.Greater(t, len(slow.leases), had)
}

func TestPatience_TheTimeForWhichANodeItselfSleptIsNobodysSilence(t *testing.T) {
	t.Parallel()
	p := NewParticipant(ParticipantConfig{}, "self")
	now := epoch
	p.SetUpstream(true)
	p.SetSize(2*content.ChunkSize, func(int) bool { return false })
	p.Demand(now, Run{Count: 2})
	p.Join()
	p.Joined(now, "self")
	p.Orders(now, Orders{Chunks: []Assignment{{Claim: Claim{Index: 0, Sum: sum(0)}, From: "peer"}}})
	bytes := int64(0)
	tick := func(after time.Duration) bool { // reports whether the peer is pinged
		now = now.Add(after)
		p.Tick(now, func(peer.ID) int64 { return bytes })
		return len(p.Take().Pings) > 0
	}
	for pings := 0; pings < 3; {
		if tick(TickEvery) {
			bytes++
			pings++
		}
	}
	for !tick(TickEvery) {
	}
	tick(3 * time.Second)
	require.Equal(t, peer.ID("peer"), p.AskedOf(0))
	for range int(p.cfg.shortSilence()/TickEvery) + 1 {
		tick(TickEvery)
	}
	require.Empty(t, p.AskedOf(0), "it has had the time by now")
}

func TestOwnChoice_OfABlobInPiecesIsTheRestOfALeaf(t *testing.T) {
	t.Parallel()
	for sentence, c := range map[string]struct {
		here, needed []int
		want         Run
	}{
		"all of the leaf is missing":            {needed: []int{4, 5, 6, 7, 8}, want: Run{First: 4, Count: 4}},
		"up to what is here":                    {here: []int{6}, needed: []int{4, 5, 6, 7, 8}, want: Run{First: 4, Count: 2}},
		"no more than is needed":                {needed: []int{4, 5, 6}, want: Run{First: 4, Count: 3}},
		"it begins in the middle and ends last": {needed: []int{9}, want: Run{First: 9, Count: 1}},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			now := epoch
			p := NewParticipant(ParticipantConfig{Grain: content.Pieces}, "\x00\x00\x00\x00") // it takes the first
			p.SetUpstream(true)
			p.SetSize(2*content.ChunkSize+2<<18, func(i int) bool { return slices.Contains(c.here, i) })
			for _, i := range c.needed {
				p.Demand(now, Run{First: i, Count: 1})
			}
			p.Join()
			p.Joined(now, "coordinator")
			p.Take()
			for range int(15 * time.Second / TickEvery) {
				now = now.Add(TickEvery)
				p.Tick(now, func(peer.ID) int64 { return now.Unix() })
				if a := p.Take(); len(a.Leases) > 0 {
					require.Equal(t, []Run{c.want}, a.Leases)
					return
				}
			}
			require.Fail(t, "it helps itself")
		})
	}
}

// What it reads from then on others need not read. A coordinator that says so without end is not asked again.
func TestHopeless_WhoReadsWellByItselfComesBackOnce(t *testing.T) {
	t.Parallel()
	p := NewParticipant(ParticipantConfig{}, "self")
	p.SetUpstream(true)
	p.SetSize(8*content.ChunkSize, func(int) bool { return false })
	p.Demand(epoch, Run{Count: 8})
	next := 0
	for k, comesBack := range []bool{true, false} {
		p.Join()
		p.Joined(epoch, "coordinator")
		p.Orders(epoch, Orders{Hopeless: true})
		require.True(t, p.Take().Leave && p.Apart())
		p.Left()
		for i, trouble := range []Trouble{Transient, 0, 0} { // one that fails is no reason
			if p.Coordinator() == "" {
				p.Join()
				p.Joined(epoch, "self")
			}
			r := Run{First: next, Count: 1}
			next++
			p.Orders(epoch, Orders{Leases: []Run{r}})
			p.Claimed(epoch, Claim{Index: r.First, Sum: sum(r.First), By: "self"})
			p.LeaseEnded(epoch, r, trouble)
			back := p.Take().Leave
			require.Equal(t, comesBack && i == 1, back, "time %d, lease %d", k, i)
			if back {
				require.False(t, p.Apart())
				p.Left()
				break
			}
		}
	}
	require.True(t, p.Apart())
}

// A coordinator may say so of a node that is only slow, or because it has not heard of it for long.
func TestHopeless_WhoMayStillReadUpstreamGoesOnByItself(t *testing.T) {
	t.Parallel()
	const read, fails, returns = Trouble(0), Transient, Returned
	for name, tc := range map[string]struct {
		before []Trouble // how its leases ended
		goesOn bool
	}{
		"who was not sent there":                      {nil, true},
		"who has read from it":                        {[]Trouble{read}, true},
		"not whom it failed":                          {[]Trouble{fails}, false},
		"nor whom it failed after it had given some":  {[]Trouble{read, fails}, false},
		"nor who has been told to read nothing since": {[]Trouble{fails, returns}, false},
		"but who was given something since":           {[]Trouble{fails, read}, true},
		"and who has had nothing to read since then":  {[]Trouble{fails, read, returns}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := NewParticipant(ParticipantConfig{}, "self")
			p.SetUpstream(true)
			p.SetSize(8*content.ChunkSize, func(int) bool { return false })
			p.Demand(epoch, Run{Count: 8})
			p.Join()
			p.Joined(epoch, "coordinator")
			for i, trouble := range tc.before {
				r := Run{First: i, Count: 1}
				p.Orders(epoch, Orders{Leases: []Run{r}})
				if trouble == read {
					p.Claimed(epoch, Claim{Index: i, Sum: sum(i), By: "self"})
				}
				p.LeaseEnded(epoch, r, trouble)
			}
			p.Take()
			p.Orders(epoch, Orders{Hopeless: true})
			acts := p.Take()
			require.Equal(t, tc.goesOn, acts.Leave && p.Apart())
			require.Equal(t, !tc.goesOn, acts.Hopeless != nil)
		})
	}
}
