package schedule

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// swarm is a model of participants that do what they are told: one step at a time, in any order.
type swarm struct {
	t       require.TestingT
	table   *Table
	now     time.Time
	chunks  int
	nodes   map[peer.ID]*node
	fetched []int // how often each chunk was read from upstream
	sent    map[peer.ID]int
	crossed map[string]int // "zone/chunk" -> how often it came from another zone
}

type node struct {
	id       peer.ID
	zone     string
	have     map[int]bool
	from     map[int]peer.ID
	leases   []int
	hopeless bool
	holder   bool
	stalled  bool // it takes orders and does nothing
}

func newSwarm(t require.TestingT, cfg Config, chunks int) *swarm {
	s := &swarm{
		t: t, table: New(cfg), now: time.Unix(1e9, 0), chunks: chunks, nodes: map[peer.ID]*node{},
		fetched: make([]int, chunks), sent: map[peer.ID]int{}, crossed: map[string]int{},
	}
	s.table.Open(s.now)
	return s
}

func (s *swarm) size() int64 { return int64(s.chunks) * content.ChunkSize }

func sum(i int) Sum { return sha256.Sum256(fmt.Appendf(nil, "chunk %d", i)) }

func (s *swarm) claims(by peer.ID) []Claim {
	var cs []Claim
	for i := range s.chunks {
		cs = append(cs, Claim{Index: i, Sum: sum(i), By: by})
	}
	return cs
}

func (s *swarm) join(id peer.ID, zone string, upstream bool) *node {
	n := &node{id: id, zone: zone, have: map[int]bool{}, from: map[int]peer.ID{}}
	s.nodes[id] = n
	require.NoError(s.t, s.table.Join(s.now, id,
		Join{Zone: zone, Upstream: upstream, Whole: true, Report: Report{Size: s.size()}}))
	s.deliver()
	return n
}

// addHolder makes known to a table a peer that has the whole blob.
func addHolder(t *Table, now time.Time, id peer.ID, zone string, size int64, claims []Claim) error {
	if t.participates(id) {
		return nil // it knows best
	}
	return t.Join(now, id, Join{Zone: zone, Report: Report{Size: size, Claims: claims, Complete: true}})
}

func (s *swarm) hold(id peer.ID, zone string) {
	n := &node{id: id, zone: zone, have: map[int]bool{}, holder: true}
	for i := range s.chunks {
		n.have[i] = true
	}
	s.nodes[id] = n
	require.NoError(s.t, addHolder(s.table, s.now, id, zone, s.size(), s.claims(id)))
	s.deliver()
}

// slowStart lets the time pass for which one reads alone.
func (s *swarm) slowStart() {
	s.now = s.now.Add(slowStart)
	s.table.Tick(s.now)
	s.deliver()
}

func (s *swarm) leave(id peer.ID) {
	delete(s.nodes, id)
	s.table.Leave(s.now, id)
	s.deliver()
}

func (s *swarm) deliver() {
	s.table.Take(func(to peer.ID, o Orders) {
		n := s.nodes[to]
		if n == nil {
			return
		}
		for _, r := range o.Leases {
			for i := r.First; i < r.End(); i++ {
				if !n.have[i] {
					n.leases = append(n.leases, i)
				}
			}
		}
		for _, a := range o.Chunks {
			require.Equal(s.t, sum(a.Index), a.Sum)
			require.NotEqual(s.t, to, a.From, "no one is told to ask itself")
			if !n.have[a.Index] {
				n.from[a.Index] = a.From
			}
		}
		n.hopeless = n.hopeless || o.Hopeless
	})
}

func (s *swarm) report(n *node, r Report) {
	if len(n.have) == s.chunks && !n.holder {
		n.holder = true
		r.Complete = true
	}
	require.NoError(s.t, s.table.Report(s.now, n.id, r))
	s.deliver()
}

// step lets one node do one thing; pick chooses among n possibilities. It reports whether anything could be done.
func (s *swarm) step(pick func(n int) int) bool {
	var acts, stalls []func()
	ids := make([]peer.ID, 0, len(s.nodes))
	for id := range s.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		n := s.nodes[id]
		if n.stalled {
			continue
		}
		if len(n.leases) > 0 {
			acts = append(acts, func() {
				i := n.leases[0]
				n.leases = n.leases[1:]
				s.fetched[i]++
				n.have[i] = true
				s.report(n, Report{Claims: []Claim{{Index: i, Sum: sum(i), By: n.id}}})
			})
		}
		for i := range s.chunks {
			from, ok := n.from[i]
			if !ok || n.have[i] {
				continue
			}
			src := s.nodes[from]
			suspect := func() {
				delete(n.from, i)
				s.report(n, Report{Suspects: []Suspicion{{Index: i, From: from}}})
			}
			if src == nil {
				acts = append(acts, suspect)
			} else if !src.have[i] || src.stalled {
				stalls = append(stalls, suspect)
			} else {
				acts = append(acts, func() {
					n.have[i] = true
					s.sent[from]++
					if src.zone != n.zone {
						s.crossed[fmt.Sprintf("%s/%d", n.zone, i)]++
					}
					s.report(n, Report{Have: []int{i}})
				})
			}
		}
	}
	if len(acts) == 0 && len(stalls) > 0 {
		s.now = s.now.Add(5 * time.Second) // the patience that a node has with a peer
		s.table.Tick(s.now)
		s.deliver()
		acts = stalls
	}
	if len(acts) == 0 {
		return false
	}
	acts[pick(len(acts))]()
	return true
}

// run lets the nodes work until all have everything.
func (s *swarm) run(pick func(n int) int) {
	for range 20_000 {
		if s.step(pick) {
			continue
		}
		if s.done() {
			return
		}
		s.now = s.now.Add(5 * time.Second) // only a lease that ran out, or a penalty that ends, can help now
		s.table.Tick(s.now)
		s.deliver()
	}
	require.FailNow(s.t, "the swarm does not finish", s.lacking())
}

// lacking tells what a node that did not finish waits for.
func (s *swarm) lacking() string {
	for _, n := range s.nodes {
		for i := range s.chunks {
			if n.have[i] || n.stalled {
				continue
			}
			m, c := s.table.parties[n.id], s.table.chunk(i)
			name := func(m *party) string {
				if m == nil {
					return "no one"
				}
				return string(m.id)
			}
			return fmt.Sprintf("%s lacks chunk %d: asks %q, told %v, home %s, hash known %v, read by %s, tried %d peers",
				string(n.id), i, string(n.from[i]), m.told.has(i), name(m.group.homes[i]), c.known, name(c.lessee), len(m.tried[i]))
		}
	}
	return ""
}

func (s *swarm) done() bool {
	for _, n := range s.nodes {
		if len(n.have) < s.chunks && !n.stalled {
			return false
		}
	}
	return true
}

func (s *swarm) upstreamCopies() float64 {
	sum := 0
	for _, f := range s.fetched {
		sum += f
	}
	return float64(sum) / float64(s.chunks)
}

func (s *swarm) busiest() float64 {
	most := 0
	for _, n := range s.sent {
		most = max(most, n)
	}
	return float64(most) / float64(s.chunks)
}

func id(i int) peer.ID { return peer.ID(fmt.Sprintf("peer-%04d", i)) }

func TestEveryChunkLeavesTheRegistryOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		nodes := rapid.IntRange(1, 20).Draw(rt, "nodes")
		chunks := rapid.IntRange(1, 60).Draw(rt, "chunks")
		s := newSwarm(rt, Config{}, chunks)
		pick := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "act") }
		for i := range nodes {
			s.join(id(i), "", true)
			for range rapid.IntRange(0, 5).Draw(rt, "head start") {
				s.step(pick)
			}
		}
		s.run(pick)
		for i, f := range s.fetched {
			require.Equal(rt, 1, f, "chunk %d", i)
		}
	})
}

func TestChunksFromHoldersLeaveUpstreamAlone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ holders, nodes int }{
		"one holder and many in need": {1, 8}, "as many holders as nodes in need": {4, 4}, "one and one": {1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSwarm(t, Config{}, 200)
			for i := range c.holders {
				s.hold(id(100+i), "")
			}
			for i := range c.nodes {
				s.join(id(i), "", true)
			}
			turn := 0
			s.run(func(n int) int { turn++; return (turn * 7919) % n })
			require.Zero(t, s.upstreamCopies())
			require.LessOrEqual(t, s.busiest(), 1.6)
		})
	}
}

func TestSendingIsSpreadEvenly(t *testing.T) {
	t.Parallel()
	s := newSwarm(t, Config{}, 400)
	for i := range 16 {
		s.join(id(i), "", true)
	}
	turn := 0
	s.run(func(n int) int { turn++; return (turn * 7919) % n })
	require.InDelta(t, 1.0, s.upstreamCopies(), 0)
	require.LessOrEqual(t, s.busiest(), 1.6)
}

func TestSendingIsSpreadEvenlyOverThoseWhoComeLate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ holders, steps int }{
		"cold, a little apart": {0, 20}, "cold, far apart": {0, 200}, "one holder, a little apart": {1, 20},
		"one holder, all at once": {1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSwarm(t, Config{}, 72)
			turn := 0
			pick := func(n int) int { turn++; return (turn * 7919) % n }
			for i := range c.holders {
				s.hold(id(100+i), "")
			}
			for i := range 8 {
				s.join(id(i), "", true)
				for range c.steps {
					s.step(pick)
				}
			}
			s.run(pick)
			require.LessOrEqual(t, s.upstreamCopies(), 1.0)
			require.LessOrEqual(t, s.busiest(), 1.6)
		})
	}
}

func TestSlowStart_OneReadsUntilTheFirstChunkHasCome(t *testing.T) {
	t.Parallel()
	for name, then := range map[string]func(s *swarm){
		"its first chunk comes": func(s *swarm) { s.step(func(int) int { return 0 }) },
		"it is slow, or dead":   (*swarm).slowStart,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSwarm(t, Config{}, 2)
			first, second := s.join(id(0), "", true), s.join(id(1), "", true)
			require.Equal(t, []int{0}, first.leases)
			require.Empty(t, second.leases)
			then(s)
			require.Equal(t, []int{1}, second.leases, "who comes a moment later has something to read too")
		})
	}
}

func TestBeginners_AreOthersForEachBlob(t *testing.T) {
	t.Parallel()
	begins := map[peer.ID]bool{}
	for blob := range 20 {
		table := New(Config{Blob: fmt.Sprint(blob)})
		for i := range 8 {
			require.NoError(t, table.Join(time.Unix(1e9, 0), id(i),
				Join{Upstream: true, Whole: true, Report: Report{Size: content.ChunkSize}}))
		}
		table.Open(time.Unix(1e9, 0))
		table.Take(func(to peer.ID, o Orders) {
			if len(o.Leases) > 0 {
				begins[to] = true
			}
		})
	}
	require.Greater(t, len(begins), 4)
}

func TestLoad_WhoHasOtherBlobsToSendIsSpared(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	for loaded := range 2 {
		table := New(Config{})
		size := int64(8 * content.ChunkSize)
		table.Open(now)
		var claims []Claim
		for i := range 8 {
			claims = append(claims, Claim{Index: i, Sum: sum(i), By: id(9)})
		}
		upTo8 := []int{0, 1, 2, 3, 4, 5, 6, 7}
		for i := range 2 {
			report := Report{Size: size, Claims: claims, Have: upTo8}
			if i == loaded {
				report.Load = 100
			}
			require.NoError(t, table.Join(now, id(i), Join{Upstream: true, Whole: true, Report: report}))
		}
		require.NoError(t, table.Join(now, id(2), Join{Whole: true, Report: Report{Size: size}}))
		asked := map[peer.ID]int{}
		table.Take(func(to peer.ID, o Orders) {
			for _, a := range o.Chunks {
				if to == id(2) {
					asked[a.From]++
				}
			}
		})
		require.Equal(t, map[peer.ID]int{id(1 - loaded): 8}, asked)
	}
}

func TestChains_NobodyWaitsForOneWhoWaitsForOneWhoWaits(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		s := newSwarm(rt, Config{}, rapid.IntRange(1, 12).Draw(rt, "chunks"))
		pick := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "act") }
		nodes := rapid.IntRange(2, 20).Draw(rt, "nodes")
		for i := range nodes {
			s.join(id(i), "", true)
		}
		for s.step(pick) {
			for _, m := range s.table.active {
				for i, from := range m.supplier {
					links := 1
					for ; !from.have.has(i) && from.supplier[i] != nil; from = from.supplier[i] {
						links++
					}
					require.LessOrEqual(rt, links, 2, "chunk %d of %s", i, m.id)
				}
			}
		}
	})
}

// The same node may be the first at many small blobs, so that it must not send each of them to everyone.
func TestThoseWhoGetOneOfFewChunksPassItOn(t *testing.T) {
	t.Parallel()
	s := newSwarm(t, Config{}, 2)
	for i := range 8 {
		s.join(id(i), "", i == 0)
	}
	s.run(func(int) int { return 0 })
	require.True(t, s.done())
	for i := range 8 {
		require.LessOrEqual(t, s.sent[id(i)], 5, "%s sends little more than a third of the 14 chunks that are sent",
			id(i))
	}
}

func TestEveryChunkEntersAZoneOnce(t *testing.T) {
	t.Parallel()
	s := newSwarm(t, Config{GroupSize: 4}, 120)
	for i := range 24 {
		s.join(id(i), fmt.Sprintf("zone-%d", i%3), true)
	}
	turn := 0
	s.run(func(n int) int { turn++; return (turn * 7919) % n })
	require.InDelta(t, 1.0, s.upstreamCopies(), 0)
	for at, times := range s.crossed {
		require.Equal(t, 1, times, at)
	}
}

func TestLeases_WhoWaitsForAnotherZoneReadsOnMeanwhile(t *testing.T) {
	t.Parallel()
	s := newSwarm(t, Config{}, 400)
	for i := range 4 {
		s.join(id(i), fmt.Sprintf("zone-%d", i%2), true)
	}
	reads := func(n *node) bool { return len(n.leases) > 0 }
	for slices.ContainsFunc(slices.Collect(maps.Values(s.nodes)), reads) {
		for _, n := range s.nodes { // nothing comes over the link between the zones
			maps.DeleteFunc(n.from, func(_ int, from peer.ID) bool { return s.nodes[from].zone != n.zone })
		}
		s.step(func(int) int { return 0 })
	}
	require.Equal(t, 1.0, s.upstreamCopies(), "all is read from the registry, and once")
	read := map[string]map[int]bool{"zone-0": {}, "zone-1": {}}
	for _, n := range s.nodes {
		maps.Copy(read[n.zone], n.have)
	}
	for zone, chunks := range read {
		require.Greater(t, len(chunks), 100, "%s reads its share", zone)
	}
}

func TestTheOthersFinishWhenParticipantsDie(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		nodes := rapid.IntRange(2, 10).Draw(rt, "nodes")
		chunks := rapid.IntRange(1, 40).Draw(rt, "chunks")
		zones := rapid.IntRange(1, 2).Draw(rt, "zones")
		s := newSwarm(rt, Config{GroupSize: 4, Window: 4}, chunks)
		pick := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "act") }
		for i := range nodes {
			s.join(id(i), fmt.Sprint(i%zones), true)
		}
		deaths := 0
		for i := range rapid.IntRange(0, nodes-1).Draw(rt, "deaths") {
			for range rapid.IntRange(0, 60).Draw(rt, "steps") {
				s.step(pick)
			}
			s.leave(id(i))
			deaths++
		}
		s.run(pick)
		for i, f := range s.fetched {
			require.LessOrEqual(rt, f, 1+deaths, "chunk %d is read again only for those who died with it", i)
		}
	})
}

func TestTheOthersFinishWhenParticipantsStall(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		nodes := rapid.IntRange(2, 8).Draw(rt, "nodes")
		s := newSwarm(rt, Config{GroupSize: 4, Window: 4}, rapid.IntRange(1, 30).Draw(rt, "chunks"))
		pick := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "act") }
		for i := range nodes {
			s.join(id(i), "", true)
		}
		for i := range rapid.IntRange(1, nodes-1).Draw(rt, "stalls") {
			for range rapid.IntRange(0, 40).Draw(rt, "steps") {
				s.step(pick)
			}
			s.nodes[id(i)].stalled = true
		}
		s.run(pick)
	})
}

func TestLeasesOfOneThatStallsGoToAnother(t *testing.T) {
	t.Parallel()
	s := newSwarm(t, Config{}, 8)
	stalled := s.join(id(0), "", true)
	require.NotEmpty(t, stalled.leases)
	s.join(id(1), "", true)
	stalled.leases = nil // it does nothing
	n1 := s.nodes[id(1)]
	for range 100 {
		for len(n1.have) < 8 && s.step(func(n int) int { return 0 }) {
		}
		s.now = s.now.Add(5 * time.Second)
		s.table.Tick(s.now)
		s.deliver()
		stalled.leases = nil
	}
	require.Len(t, n1.have, 8)
}

// One that says that bytes come keeps its lease, but not without ever claiming a chunk of it.
func TestLease_OfWhatAParticipantSaysToHaveAndDoesNotClaimGoesToAnother(t *testing.T) {
	t.Parallel()
	table := New(Config{})
	table.Open(epoch)
	join := Join{Upstream: true, Whole: true, Report: Report{Size: content.ChunkSize}}
	require.NoError(t, table.Join(epoch, "liar", join))
	require.NoError(t, table.Join(epoch, "honest", join))
	require.NoError(t, table.Report(epoch, "liar", Report{Have: []int{0}}))
	table.Take(func(to peer.ID, o Orders) { require.Equal(t, to == "liar", len(o.Leases) > 0) })
	table.Tick(epoch.Add(table.cfg.LeaseTimeout + time.Second))
	var leased []Run
	table.Take(func(to peer.ID, o Orders) {
		require.Equal(t, peer.ID("honest"), to)
		leased = append(leased, o.Leases...)
	})
	require.Equal(t, []Run{{First: 0, Count: 1}}, leased)
}

func TestALeaseOfOneThatOnlySaysThatItReadsGoesToAnother(t *testing.T) {
	t.Parallel()
	s := newSwarm(t, Config{}, 8)
	slow := s.join(id(0), "", true)
	require.NotEmpty(t, slow.leases)
	slow.leases = nil
	other := s.join(id(1), "", true)
	for range 600 { // ten minutes
		for len(other.have) < 8 && s.step(func(int) int { return 0 }) {
			slow.leases = nil
		}
		s.now = s.now.Add(time.Second)
		s.report(slow, Report{Reading: true})
		s.table.Tick(s.now)
		s.deliver()
		slow.leases = nil
	}
	require.Len(t, other.have, 8)
}

// A coordinator is lost while a reads the blob from upstream, and b, who has what a has claimed so far, comes to the
// next coordinator before a does.
func TestLease_IsNotReadAnewWhereTheRegistryIsSlowForAll(t *testing.T) {
	t.Parallel()
	table, now := New(Config{}), time.Unix(1e9, 0)
	table.Open(now)
	for i := range 2 {
		require.NoError(t, table.Join(now, id(i),
			Join{Upstream: true, Whole: true, Report: Report{Size: 64 * content.ChunkSize}}))
	}
	reads := map[int]int{} // how often each chunk was leased
	leases := map[peer.ID][]Run{}
	take := func() {
		table.Take(func(to peer.ID, o Orders) {
			for _, r := range o.Leases {
				for i := r.First; i < r.End(); i++ {
					reads[i]++
				}
			}
			leases[to] = append(leases[to], o.Leases...)
		})
	}
	take()
	for second := range 600 { // each run brings a chunk every 40 s, which is longer than ChunkTimeout
		now = now.Add(time.Second)
		table.Tick(now)
		take()
		for i := range 2 {
			r := Report{Reading: true}
			for k := range leases[id(i)] {
				if run := &leases[id(i)][k]; second%40 == 39 && run.Count > 0 {
					r.Claims = append(r.Claims, Claim{Index: run.First, Sum: sum(run.First), By: id(i)})
					run.First, run.Count = run.First+1, run.Count-1
				}
			}
			require.NoError(t, table.Report(now, id(i), r))
			take()
		}
	}
	twice := 0
	for _, n := range reads {
		twice += n - 1
	}
	require.Greater(t, len(reads), 16)
	require.LessOrEqual(t, twice, 1, "but for the first: till then nobody knows how slow the registry is")
}

func TestALeaseThatIsHalfReadGoesOnAtANewCoordinator(t *testing.T) {
	t.Parallel()
	s := newSwarm(t, Config{}, 16)
	a, b := id(0), id(1)
	known := Report{Size: s.size(), Claims: s.claims(a)[:3], Have: []int{0, 1, 2}}
	table := New(Config{}) // not open yet: it waits for those who come from the coordinator that is lost
	require.NoError(t, table.Join(s.now, b, Join{Upstream: true, Whole: true, Report: known}))
	require.NoError(t, table.Join(s.now, a, Join{Upstream: true, Whole: true, Leased: []Run{{0, 16}}, Report: known}))
	table.Open(s.now)
	table.Take(func(to peer.ID, o Orders) {
		require.Empty(t, o.Leases, "a reads all that is missing already; %s", string(to))
	})
}

func TestAHolderThatHasNothingIsPassedOver(t *testing.T) {
	t.Parallel()
	for name, oneByOne := range map[string]bool{"suspected of all chunks at once": false,
		"suspected of one after another": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSwarm(t, Config{}, 17)
			h, m := id(100), id(0)
			require.NoError(t, addHolder(s.table, s.now, h, "", s.size(), s.claims(h)))
			require.NoError(t, s.table.Join(s.now, m,
				Join{Upstream: true, Whole: true, Report: Report{Size: s.size()}}))
			have := map[int]bool{}
			var o Orders
			take := func() {
				o = Orders{}
				s.table.Take(func(to peer.ID, x Orders) {
					if to == m {
						o.Merge(x)
					}
				})
			}
			take()
			require.Len(t, o.Chunks, 16, "of 17 one comes from upstream, or is told later")
			s.now = s.now.Add(8 * time.Second)
			var all Report
			for _, a := range o.Chunks {
				r := Report{Suspects: []Suspicion{{Index: a.Index, From: a.From}}}
				if oneByOne {
					require.NoError(t, s.table.Report(s.now, m, r))
				}
				all.Merge(r)
			}
			if !oneByOne {
				require.NoError(t, s.table.Report(s.now, m, all))
			}
			// Within a minute upstream gives what the holder did not.
			for range 60 {
				take()
				for len(o.Leases) > 0 {
					for _, l := range o.Leases {
						for i := l.First; i < l.End(); i++ {
							have[i] = true
							require.NoError(t, s.table.Report(s.now, m,
								Report{Claims: []Claim{{Index: i, Sum: sum(i), By: m}}}))
						}
					}
					take()
				}
				s.now = s.now.Add(time.Second)
				s.table.Tick(s.now)
			}
			require.GreaterOrEqual(t, len(have), 16)
		})
	}
}

func TestAllFinishWhenHoldersDieOrStall(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		chunks := rapid.IntRange(1, 60).Draw(rt, "chunks")
		holders := rapid.IntRange(1, 4).Draw(rt, "holders")
		nodes := rapid.IntRange(1, 4).Draw(rt, "nodes")
		bad := rapid.IntRange(1, holders).Draw(rt, "bad")
		stall := rapid.Bool().Draw(rt, "they stall, and do not die")
		upstream := bad == holders || rapid.Bool().Draw(rt, "upstream")
		s := newSwarm(rt, Config{GroupSize: 4, Window: 4}, chunks)
		pick := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "act") }
		for i := range holders {
			s.hold(id(100+i), "")
		}
		for i := range nodes {
			s.join(id(i), "", upstream)
		}
		for i := range bad {
			for range rapid.IntRange(0, 60).Draw(rt, "steps") {
				s.step(pick)
			}
			if stall {
				s.nodes[id(100+i)].stalled = true
			} else {
				s.leave(id(100 + i))
			}
		}
		s.run(pick)
	})
}

func TestHopelessIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	s := newSwarm(t, Config{}, 3)
	n := s.join(id(0), "", false)
	require.True(t, n.hopeless, "no upstream and no holder")

	s = newSwarm(t, Config{}, 3)
	n = s.join(id(0), "", true)
	require.False(t, n.hopeless)
	n.leases = nil
	s.report(n, Report{Failed: []Failure{{Run: Run{0, 1}, Trouble: Refused}, {Run: Run{1, 1}, Trouble: Refused}}})
	require.True(t, n.hopeless, "its only upstream refuses")
}

// What upstream refuses one it may give to a caller who has come to another, of whom that one has yet to tell.
func TestDespair_NotOfOneThatIsAloneAndSlow(t *testing.T) {
	t.Parallel()
	table := New(Config{})
	table.Open(epoch)
	size := Report{Size: 8 * content.ChunkSize}
	require.NoError(t, table.Join(epoch, "alone", Join{Upstream: true, Whole: true, Report: size}))
	now := epoch
	leases := 0
	take := func() {
		table.Take(func(_ peer.ID, o Orders) {
			require.False(t, o.Hopeless)
			leases += len(o.Leases)
		})
	}
	for range 60 {
		now = now.Add(time.Second)
		table.Tick(now)
		take()
	}
	leases = 0
	require.NoError(t, table.Report(now, "alone", Report{Claims: []Claim{{Sum: sum(0), By: "alone"}}}))
	take()
	require.Positive(t, leases, "it reads on")
}

// stalled has two that read, of which nothing has been heard for longer than a lease lasts.
func stalled(t *testing.T, cfg Config) (s *swarm, a, b *node) {
	t.Helper()
	s = newSwarm(t, cfg, 32)
	a, b = s.join(id(0), "", true), s.join(id(1), "", true)
	s.slowStart()
	require.NotEmpty(t, a.leases)
	require.NotEmpty(t, b.leases)
	return s, a, b
}

func TestDespair_NotWhereTheRegistryStandsStillForAll(t *testing.T) {
	t.Parallel()
	for name, early := range map[string]time.Duration{
		"at the same moment":              0,
		"for one of them a moment before": 1500 * time.Millisecond,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, a, b := stalled(t, Config{})
			s.report(a, Report{Reading: true})
			s.now = s.now.Add(early)
			s.report(b, Report{Reading: true})
			for range 60 {
				s.now = s.now.Add(time.Second)
				s.table.Tick(s.now)
				s.deliver()
			}
			for _, n := range []*node{a, b} {
				require.False(t, n.hopeless, "a moment's patience, and it goes on")
			}
			for _, n := range []*node{a, b} { // bytes come, and the chunk that they are of is not whole yet
				s.report(n, Report{Reading: true})
			}
			s.now = s.now.Add(time.Second)
			s.table.Tick(s.now)
			s.deliver()
			for len(a.have) < 16 {
				require.NotEmpty(t, a.leases, "it is leased more as soon as it is given something")
				i := a.leases[0]
				a.leases, a.have[i] = a.leases[1:], true
				require.NotContains(t, append(b.leases, a.leases...), i, "it is read once")
				s.report(a, Report{Claims: []Claim{{Index: i, Sum: sum(i), By: a.id}}})
				require.False(t, a.hopeless || b.hopeless)
			}
		})
	}
}

// What is claimed is signed, and not proved. The other reads meanwhile, and goes on.
func TestRevive_WhoLostALeaseIsGivenMoreBeforeLongOnlyForAChunkOfThatLease(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		other, by    int // the node after whose first lease the chunk is chosen, and who claims it
		beside       int
		before, more bool // it was claimed before as well; the node may be given more
	}{
		"a chunk of it":                     {more: true},
		"a chunk of it that had come":       {before: true},
		"a chunk of another's":              {other: 1},
		"a chunk of nobody's":               {beside: 20},
		"another's word on a chunk of it":   {by: 1},
		"another's word on another's chunk": {by: 1, other: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, silent, other := stalled(t, Config{})
			i := silent.leases[0] // the first lease is of one chunk, the next of two
			s.report(silent, Report{Claims: []Claim{{Index: i, Sum: sum(i), By: silent.id}}})
			i = []*node{silent, other}[tc.other].leases[1-tc.other] + tc.beside
			if tc.before {
				s.report(silent, Report{Claims: []Claim{{Index: i, Sum: sum(i), By: silent.id}}})
			}
			for range int(s.table.cfg.LeaseTimeout/time.Second) + 1 {
				s.now = s.now.Add(time.Second)
				s.report(other, Report{Reading: true})
				s.table.Tick(s.now)
				s.deliver()
			}
			claim := Claim{Index: i, Sum: sum(i), By: id(tc.by)}
			for range 2 {
				s.report(silent, Report{Claims: []Claim{claim}})
			}
			require.Equal(t, tc.more, !s.table.parties[silent.id].barred.After(s.now))
			require.False(t, silent.hopeless || other.hopeless)
		})
	}
}

func TestRegain_WhoSaysThatItReadsIsGivenBackNothingThatItGaveUpOrWasTooSlowWith(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		says Report
		then time.Duration // it says that it reads, and nothing comes
		back bool
	}{
		"it reads on":          {back: true},
		"the registry failed":  {says: Report{Failed: []Failure{{Run: Run{Count: 1}, Trouble: Transient}}}},
		"it read no more":      {says: Report{Failed: []Failure{{Run: Run{Count: 1}, Trouble: Returned}}}},
		"it says so for long":  {then: time.Minute},
		"and it had just come": {says: Report{Claims: []Claim{{Sum: sum(0), By: id(0)}}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, silent, other := stalled(t, Config{})
			pass := func(second int, says Report) {
				s.now = s.now.Add(time.Second)
				r := Report{Reading: true}
				if second%20 == 19 { // the other is not fast either
					i := other.leases[0]
					other.leases = other.leases[1:]
					r.Claims = []Claim{{Index: i, Sum: sum(i), By: other.id}}
				}
				s.report(other, r)
				if !says.Empty() {
					s.report(silent, says)
				}
				s.table.Tick(s.now)
				s.deliver()
			}
			for second := range int(s.table.cfg.LeaseTimeout/time.Second) + 1 {
				pass(second, Report{})
			}
			require.Nil(t, s.table.lessee(0))
			s.report(silent, tc.says)
			for second := range int(tc.then / time.Second) {
				pass(second, Report{Reading: true})
			}
			s.report(silent, Report{Reading: true})
			require.Equal(t, tc.back, s.table.lessee(0) == s.table.parties[silent.id])
		})
	}
}

func TestDespair_WhoCannotReadDoesNotWaitForEverForOneWhoSaysNothing(t *testing.T) {
	t.Parallel()
	s := newSwarm(t, Config{}, 4)
	silent, waits := s.join(id(0), "", true), s.join(id(1), "", false)
	after := 0
	for ; !waits.hopeless && after < 60; after++ {
		s.now = s.now.Add(time.Second)
		s.table.Tick(s.now)
		s.deliver()
	}
	require.True(t, waits.hopeless)
	require.Greater(t, after, 10, "the registry may stand still for a moment")
	require.False(t, silent.hopeless, "it reads, for all that is known")
}

// A registry that gives few answers at one time refuses who reads one another.
func TestDespair_NotWhileOneReads(t *testing.T) {
	t.Parallel()
	table := New(Config{})
	table.Open(epoch)
	leased, hopeless := map[peer.ID][]Run{}, false
	take := func(err error) {
		require.NoError(t, err)
		table.Take(func(to peer.ID, o Orders) {
			leased[to] = append(leased[to], o.Leases...)
			hopeless = hopeless || o.Hopeless
		})
	}
	join := func(id peer.ID) {
		take(table.Join(epoch, id, Join{Upstream: true, Whole: true, Report: Report{Size: 8 * content.ChunkSize}}))
	}
	read := func(id peer.ID) {
		i := leased[id][0].First
		leased[id] = leased[id][1:]
		take(table.Report(epoch, id, Report{Claims: []Claim{{Index: i, Sum: sum(i), By: id}}}))
	}
	fail := func(id peer.ID) {
		last := len(leased[id]) - 1
		r := leased[id][last]
		leased[id] = leased[id][:last]
		take(table.Report(epoch, id, Report{Failed: []Failure{{Run: r, Trouble: Transient}}}))
	}
	join("one")
	read("one")
	require.Len(t, leased["one"], 2)
	join("two")
	fail("one")
	require.Len(t, leased["two"], 1)
	fail("two")
	require.False(t, hopeless, "the other run of the first may be read")
	read("one")
	require.False(t, hopeless)
	require.NotEmpty(t, leased["one"], "it is, so the registry gives it something")
	for len(leased["one"]) > 0 {
		fail("one")
	}
	require.True(t, hopeless)
}

func TestDespair_WhereUpstreamRefusesSeveralAnotherCallerIsAwaitedForAMoment(t *testing.T) {
	t.Parallel()
	refusal := Report{Failed: []Failure{{Run: Run{Count: 1}, Trouble: Refused}}}
	for name, comes := range map[string]bool{"one comes": true, "none does": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSwarm(t, Config{}, 3)
			first, n := s.join(id(0), "", true), s.join(id(1), "", true)
			s.report(first, refusal)
			s.report(n, refusal)
			require.False(t, n.hopeless, "at once")
			first.leases = nil
			if comes {
				s.report(first, Report{MayRead: true})
			}
			s.now = s.now.Add(secondThoughts)
			s.table.Tick(s.now)
			s.deliver()
			require.Equal(t, !comes, n.hopeless, "after a second")
			require.Equal(t, comes, len(first.leases) > 0, "who may read is sent upstream")
		})
	}
}

func TestAHoldersWordOnAChunkGoesBeforeAReaders(t *testing.T) {
	t.Parallel()
	const reader, early, second, late = 0, 1, 2, 3
	says := func(second Sum) func(by peer.ID) []Claim {
		return func(by peer.ID) []Claim {
			return []Claim{{Index: 0, Sum: sum(0), By: by}, {Index: 1, Sum: second, By: by}}
		}
	}
	right, wrong := says(sum(1)), says(Sum{1})
	for name, tc := range map[string]struct {
		first, then func(by peer.ID) []Claim
		holders     [2]bool // whether they hold the whole blob
		want        Sum
	}{
		"a reader was misled":                 {first: wrong, then: right, holders: [2]bool{false, true}, want: sum(1)},
		"a holder lies to one that is right":  {first: right, then: wrong, holders: [2]bool{true, true}, want: sum(1)},
		"a reader says something else":        {first: wrong, then: right, want: Sum{1}},
		"a reader says other than the holder": {first: right, then: wrong, holders: [2]bool{true, false}, want: sum(1)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			now := time.Unix(1e9, 0)
			table := New(Config{})
			table.Open(now)
			told := map[peer.ID]Assignment{}
			join := func(i int, claims func(peer.ID) []Claim, holds bool) {
				r := Report{Size: 2 * content.ChunkSize, Complete: holds}
				if claims != nil {
					r.Claims = claims(id(i))
				}
				require.NoError(t, table.Join(now, id(i), Join{Whole: true, Report: r}))
				table.Take(func(to peer.ID, o Orders) {
					for _, a := range o.Chunks {
						if a.Index == 1 {
							told[to] = a
						}
					}
				})
			}
			join(reader, tc.first, tc.holders[0])
			join(early, nil, false)
			require.NotEmpty(t, told[id(early)])
			join(second, tc.then, tc.holders[1])
			join(late, nil, false)
			for _, i := range []int{early, late} {
				require.Equal(t, tc.want, told[id(i)].Sum)
				if tc.first(id(reader))[1].Sum != tc.want {
					require.NotEqual(t, id(reader), told[id(i)].From, "it has another chunk")
				}
			}
		})
	}
}

func TestOnlyOneReadsTheWholeStreamOfARegistryWithoutRange(t *testing.T) {
	t.Parallel()
	s := newSwarm(t, Config{}, 30)
	a, b := s.join(id(0), "", true), s.join(id(1), "", true)
	s.slowStart()
	run := func(n *node) Run { return Run{First: n.leases[0], Count: 1} }
	ra, rb := run(a), run(b)
	a.leases, b.leases = nil, nil
	s.report(a, Report{Failed: []Failure{{Run: ra, Trouble: NoRange}}})
	require.NotEmpty(t, a.leases)
	s.report(b, Report{Failed: []Failure{{Run: rb, Trouble: NoRange}}})
	require.Empty(t, b.leases)
	s.run(func(int) int { return 0 })
	require.InDelta(t, 1.0, s.upstreamCopies(), 0)
}

// What was gathered of a blob before did not match, so those who join have it read by one of them.
func TestAgain_OneOfThemReads(t *testing.T) {
	t.Parallel()
	const size = 40 * content.ChunkSize
	start := time.Unix(1e9, 0)
	type comer struct {
		id    peer.ID
		again bool
	}
	for sentence, tc := range map[string]struct {
		comers []comer
		lost   bool // the first who reads is heard no more
		slow   bool // and reads next to nothing
		want   int  // who read, of those who came
	}{
		"all say so":                        {[]comer{{"a", true}, {"b", true}, {"c", true}}, false, false, 1},
		"the one who reads is lost":         {[]comer{{"a", true}, {"b", true}, {"c", true}}, true, false, 2},
		"the one who reads is slow":         {[]comer{{"a", true}, {"b", true}, {"c", true}}, false, true, 3},
		"nobody says so":                    {[]comer{{"a", false}, {"b", false}, {"c", false}}, false, false, 3},
		"the others do not say so":          {[]comer{{"a", true}, {"b", false}, {"c", false}}, false, false, 3},
		"one says so who comes later":       {[]comer{{"a", false}, {"b", true}, {"c", false}}, false, false, 3},
		"one comes who knows nothing of it": {[]comer{{"a", true}, {"b", true}, {"c", false}}, false, false, 1},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			table, now, read := New(Config{}), start, map[peer.ID]bool{}
			table.Open(now)
			for _, c := range tc.comers { // of whom nobody knows the size yet, nor so what he needs
				require.NoError(t, table.Join(now, c.id, Join{Upstream: true, Whole: true, Again: c.again}))
			}
			claimed, gone := 0, peer.ID("")
			for second := range 16 {
				runs := map[peer.ID][]Run{}
				table.Take(func(to peer.ID, o Orders) { runs[to] = o.Leases })
				for _, c := range tc.comers {
					read[c.id] = read[c.id] || len(runs[c.id]) > 0
					if tc.lost && read[c.id] && gone == "" {
						gone = c.id
					}
					if gone == c.id {
						continue
					}
					r := Report{Reading: true, Size: size}
					for _, run := range runs[c.id] {
						for i := run.First; i < run.End() && (!tc.slow || claimed == 0); i++ {
							r.Claims, claimed = append(r.Claims, Claim{Index: i, Sum: sum(i), By: c.id}), claimed+1
						}
					}
					require.NoError(t, table.Report(now, c.id, r))
				}
				now = start.Add(time.Duration(second+1) * time.Second)
				table.Tick(now)
			}
			readers := 0
			for _, did := range read {
				if did {
					readers++
				}
			}
			require.Equal(t, tc.want, readers)
		})
	}
}

func TestSizeThatDiffersIsRefused(t *testing.T) {
	t.Parallel()
	s := newSwarm(t, Config{}, 3)
	s.join(id(0), "", true)
	err := s.table.Join(s.now, id(1), Join{Upstream: true, Whole: true, Report: Report{Size: s.size() + 1}})
	require.ErrorIs(t, err, ErrSize)
}

func TestUnknownSizeIsAskedOnce(t *testing.T) {
	t.Parallel()
	table := New(Config{})
	now := time.Unix(1e9, 0)
	table.Open(now)
	leases := map[peer.ID]int{}
	for i := range 4 {
		require.NoError(t, table.Join(now, id(i), Join{Upstream: true, Whole: true}))
	}
	table.Take(func(to peer.ID, o Orders) { leases[to] += len(o.Leases) })
	require.Equal(t, map[peer.ID]int{id(0): 1}, leases)
	require.NoError(t, table.Report(now, id(0), Report{Size: 5 * content.ChunkSize}))
	sizes := 0
	table.Take(func(to peer.ID, o Orders) {
		if o.Size == 5*content.ChunkSize {
			sizes++
		}
	})
	require.Equal(t, 4, sizes, "everyone is told the size")
}

func TestUnknownSize_ALeaseThatComesOnceTheSizeIsKnownHoldsUpNoPiece(t *testing.T) {
	t.Parallel()
	const size = 2 * content.ChunkSize
	for sentence, late := range map[string]bool{
		"the lease comes before the size is known": false, "the lease comes after": true,
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			table := New(Config{Grain: content.Pieces})
			table.Open(epoch)
			p := NewParticipant(ParticipantConfig{Grain: content.Pieces}, "reader")
			p.SetUpstream(true)
			require.NoError(t, table.Join(epoch, "reader", p.Join()))
			p.Joined(epoch, "coordinator")
			var mailbox Orders
			take := func() {
				table.Take(func(to peer.ID, o Orders) {
					if to == "reader" {
						mailbox.Merge(o)
					}
				})
			}
			deliver := func() { take(); p.Orders(epoch, mailbox); mailbox = Orders{} }
			if take(); !late {
				deliver()
			}
			require.NoError(t, table.Join(epoch, "other", Join{Whole: true, Report: Report{Size: size}}))
			p.SetSize(size, func(int) bool { return false })
			p.Demand(epoch, Run{Count: 8})
			deliver()
			for a := p.Take(); !a.Empty(); a = p.Take() {
				for _, r := range a.Leases {
					rest := p.Rest(r)
					for i := rest.First; i < rest.End(); i++ {
						p.Claimed(epoch, Claim{Index: i, Sum: sum(i), By: "reader"})
					}
					p.LeaseEnded(epoch, r, 0)
				}
				require.NoError(t, table.Report(epoch, "reader", a.Report))
				deliver()
			}
			require.Zero(t, p.Absent(), "it was leased all of the blob, and no time went by")
		})
	}
}

func TestARangeBringsOnlyTheChunksItNeeds(t *testing.T) {
	t.Parallel()
	s := newSwarm(t, Config{}, 50)
	n := &node{id: id(0), have: map[int]bool{}, from: map[int]peer.ID{}}
	s.nodes[n.id] = n
	require.NoError(t, s.table.Join(s.now, n.id,
		Join{Upstream: true, Report: Report{Size: s.size(), Need: []Run{{First: 10, Count: 3}}}}))
	s.deliver()
	for s.step(func(int) int { return 0 }) {
	}
	require.Equal(t, map[int]bool{10: true, 11: true, 12: true}, n.have)
}

// One that was misled may have claimed the same chunk first.
func TestComplete_WhatTheNodeHasReadItselfIsClaimedByAHolder(t *testing.T) {
	t.Parallel()
	const size = 2 * content.ChunkSize
	now := time.Unix(1e9, 0)
	p := NewParticipant(ParticipantConfig{}, "self")
	p.SetSize(size, func(int) bool { return false })
	p.Joined(now, "coordinator")
	own := Claim{Index: 1, Sum: sum(1), By: "self"}
	p.Claimed(now, own)
	p.Claimed(now, Claim{Index: 0, Sum: sum(0), By: "another"})
	p.Take()
	p.Complete()
	r := p.Take().Report
	require.True(t, r.Complete)
	require.Equal(t, []Claim{own}, r.Claims)

	table := New(Config{})
	table.Open(now)
	join := func(who peer.ID, claims ...Claim) {
		require.NoError(t, table.Join(now, who, Join{Whole: true, Report: Report{Size: size, Claims: claims}}))
	}
	join("misled", Claim{Index: 0, Sum: sum(0), By: "misled"}, Claim{Index: 1, Sum: Sum{1}, By: "misled"})
	join("self")
	require.NoError(t, table.Report(now, "self", r))
	join("late")
	told := map[int]Sum{}
	table.Take(func(to peer.ID, o Orders) {
		for _, a := range o.Chunks {
			if to == "late" {
				told[a.Index] = a.Sum
			}
		}
	})
	require.Equal(t, sum(1), told[1])
}

// What keeps a node busy until the next orders come is bytes, however they are cut.
func TestRefill_OfASmallBlobAsManyBytesAreToldInPiecesAsInChunks(t *testing.T) {
	t.Parallel()
	const size = 40 * content.ChunkSize
	for name, grain := range map[string]content.Grain{"in chunks": content.Leaves, "in pieces": content.Pieces} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table, cut := New(Config{Grain: grain}), grain.Cut(size)
			table.Open(epoch)
			have := Report{Size: size}
			for i := range cut.Len() - 1 { // not all, or it holds the whole blob
				have.Claims = append(have.Claims, Claim{Index: i, Sum: sum(i), By: "has"})
			}
			require.NoError(t, table.Join(epoch, "has", Join{Whole: true, Report: have}))
			require.NoError(t, table.Join(epoch, "needs", Join{Whole: true, Report: Report{Size: size}}))
			var told int64
			table.Take(func(to peer.ID, o Orders) {
				if to == "needs" {
					told += int64(len(o.Chunks)) * cut.Chunk()
				}
			})
			require.EqualValues(t, fewTold*content.ChunkSize, told)
		})
	}
}
