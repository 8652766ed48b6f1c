package schedule

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// faults are what happens to messages and nodes.
type faults struct {
	lostOrders, lostReports, lostWants, lostBlocks float64
	doubled                                        float64       // of wants and blocks
	denied                                         float64       // of wants: who is asked says that it lacks the chunk
	deaths, changes                                int           // of nodes, and of the coordinator
	silent                                         bool          // deaths are noticed late
	still                                          time.Duration // for how long the registry gives nobody anything
	reordered                                      bool          // orders and reports, too, overtake each other
}

// group of participants and their coordinator, all real, in virtual time: messages take as long as the dice say.
type ensemble struct {
	t      require.TestingT
	dice   *rand.Rand
	faults faults
	chunks int
	now    time.Time
	queue  timeline
	seq    int

	nodes []*actor
	lead  int               // who coordinates
	table *Table            // the coordinator's
	epoch int               // of the coordinator
	reads []int             // how often each chunk was read from upstream
	lost  int               // messages to and from the coordinator
	apart int               // nodes that went on by themselves
	rings map[int]time.Time // chunks for which nodes wait for each other, since when
	still time.Time         // since when the registry stands still, if it does
}

// actor is a node: its participant, and what an agent does for it.
type actor struct {
	e        *ensemble
	id       peer.ID
	p        *Participant
	dead     bool
	upstream bool
	reader   bool
	have     map[int]bool
	waiting  map[int][]*actor
	asked    map[int]*actor
	table    *Table // its own, or the coordinator's
	epoch    int    // of its session
	sessions int
	sent     time.Time // when its last report arrives, and the last orders for it
	ordered  time.Time
	reading  int
	gaveUp   error
}

type happening struct {
	at  time.Time
	seq int
	do  func()
}

type timeline []happening

func (q timeline) Len() int { return len(q) }
func (q timeline) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].seq < q[j].seq
}
func (q timeline) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *timeline) Push(x any)   { *q = append(*q, x.(happening)) }
func (q *timeline) Pop() any {
	last := len(*q) - 1
	x := (*q)[last]
	*q = (*q)[:last]
	return x
}

func newEnsemble(t require.TestingT, seed uint64, nodes, chunks int, f faults) *ensemble {
	e := &ensemble{
		t: t, dice: rand.New(rand.NewPCG(seed, 1)), faults: f, chunks: chunks, now: time.Unix(1e9, 0),
		reads: make([]int, chunks), rings: map[int]time.Time{},
	}
	e.table = New(Config{GroupSize: 6})
	e.table.Open(e.now)
	for i := range nodes {
		a := &actor{
			e: e, id: id(i), upstream: true, reader: i%3 != 2, have: map[int]bool{}, waiting: map[int][]*actor{},
			asked: map[int]*actor{},
		}
		a.p = NewParticipant(ParticipantConfig{}, a.id)
		e.nodes = append(e.nodes, a)
		e.after(e.upTo(2*time.Second), a.start)
	}
	e.after(time.Second, e.tickTable)
	if f.still > 0 {
		e.still = e.now.Add(e.upTo(4 * time.Second))
	}
	for range f.deaths {
		e.after(e.upTo(6*time.Second), e.kill)
	}
	for range f.changes {
		e.after(e.upTo(6*time.Second), e.change)
	}
	return e
}

func (e *ensemble) after(d time.Duration, do func()) { e.at(e.now.Add(d), do) }

func (e *ensemble) at(t time.Time, do func()) {
	e.seq++
	heap.Push(&e.queue, happening{at: t, seq: e.seq, do: do})
}

func (e *ensemble) upTo(d time.Duration) time.Duration { return time.Duration(e.dice.Int64N(int64(d))) }

// latency is mostly short, and sometimes long.
func (e *ensemble) latency() time.Duration {
	if e.dice.IntN(10) == 0 {
		return e.upTo(2 * time.Second)
	}
	return e.upTo(20 * time.Millisecond)
}

// flows is when the registry gives something that it would give now.
func (e *ensemble) flows() time.Time {
	if end := e.still.Add(e.faults.still); !e.now.Before(e.still) && e.now.Before(end) {
		return end
	}
	return e.now
}

func (e *ensemble) happens(share float64) bool { return share > 0 && e.dice.Float64() < share }

func (a *actor) start() {
	size := int64(a.e.chunks) * content.ChunkSize
	a.p.SetUpstream(a.upstream)
	a.p.SetSize(size, func(int) bool { return false })
	a.p.Demand(a.e.now, Run{Count: a.e.chunks})
	a.move()
	a.join()
	a.tick()
}

// move has the reader wait for the first chunk that is not here.
func (a *actor) move() {
	if !a.reader {
		return
	}
	i := 0
	for i < a.e.chunks && a.have[i] {
		i++
	}
	a.p.SetPosition(a.e.now, 1, i)
}

func (a *actor) tick() {
	if a.dead || a.finished() {
		return
	}
	if a.reading > 0 && a.e.flows().Equal(a.e.now) {
		a.p.Reading()
	}
	a.p.Tick(a.e.now, func(p peer.ID) int64 { // a live peer answers pings
		for _, x := range a.e.nodes {
			if x.id == p && !x.dead {
				return a.e.now.Unix()
			}
		}
		return 0
	})
	a.act()
	a.e.after(250*time.Millisecond, a.tick)
}

func (a *actor) finished() bool { return len(a.have) == a.e.chunks || a.gaveUp != nil }

// join enters the table of the coordinator, or one of its own.
func (a *actor) join() {
	a.sessions++
	session, epoch := a.sessions, a.e.epoch
	a.table, a.epoch = a.e.table, epoch
	coordinator := a.e.nodes[a.e.lead].id
	if a.p.Apart() {
		a.e.apart++
		a.table, a.epoch, coordinator = New(Config{}), -a.sessions, a.id
		a.table.Open(a.e.now)
	}
	j := a.p.Join()
	table := a.table
	a.e.after(a.e.latency(), func() { // the coordinator lets it in
		if a.dead || a.sessions != session {
			return
		}
		if table == a.table && epoch != a.e.epoch && !a.p.Apart() { // it is gone meanwhile
			a.p.Left()
			a.join()
			return
		}
		require.NoError(a.e.t, table.Join(a.e.now, a.id, j))
		a.p.Joined(a.e.now, coordinator)
		a.sent, a.ordered = a.e.now, a.e.now
		a.e.deliver(table)
		a.act()
	})
}

// deliver sends a table's orders.
func (e *ensemble) deliver(table *Table) {
	table.Take(func(to peer.ID, o Orders) {
		for _, a := range e.nodes {
			if a.id == to && a.table == table {
				a.order(o)
			}
		}
	})
}

// arrival is when a message between a and its coordinator arrives; not ok: never. What a node says to itself arrives.
func (a *actor) arrival(after *time.Time, lost float64) (at time.Time, ok bool) {
	e := a.e
	if a.p.Coordinator() == a.id {
		return e.now, true
	}
	if e.happens(lost) {
		e.lost++
		return e.now, false
	}
	at = e.now.Add(e.latency())
	if !e.faults.reordered && at.Before(*after) {
		at = *after
	}
	*after = at
	return at, true
}

func (a *actor) order(o Orders) {
	e, session := a.e, a.sessions
	at, ok := a.arrival(&a.ordered, e.faults.lostOrders)
	if !ok {
		return
	}
	e.at(at, func() {
		if a.dead || a.sessions != session {
			return
		}
		a.p.Orders(e.now, o)
		a.act()
	})
}

func (a *actor) report(r Report) {
	e, table, session := a.e, a.table, a.sessions
	at, ok := a.arrival(&a.sent, e.faults.lostReports)
	if !ok {
		return
	}
	e.at(at, func() {
		if a.dead && e.faults.silent || a.sessions != session || table != a.table {
			return
		}
		_ = table.Report(e.now, a.id, r) // it fails for one that has left
		e.deliver(table)
	})
}

func (a *actor) act() {
	acts := a.p.Take()
	for _, w := range acts.Wants {
		a.want(w)
	}
	for _, r := range acts.Leases {
		a.reading++
		a.read(r, r.First)
	}
	if !acts.Report.Empty() {
		a.report(acts.Report)
	}
	if acts.Hopeless != nil {
		a.gaveUp = acts.Hopeless
	}
	if acts.Leave {
		table := a.table
		a.e.after(a.e.latency(), func() {
			if a.table != table {
				table.Leave(a.e.now, a.id)
				a.e.deliver(table)
			}
		})
		a.join()
	}
}

// read reads a run from upstream, chunk by chunk.
func (a *actor) read(r Run, i int) {
	if i == r.End() {
		a.reading--
		a.p.LeaseEnded(a.e.now, r, 0)
		a.act()
		return
	}
	a.e.after(10*time.Millisecond+a.e.latency(), func() {
		if a.dead {
			return
		}
		if at := a.e.flows(); at.After(a.e.now) {
			a.e.at(at, func() { a.read(r, i) })
			return
		}
		a.e.reads[i]++
		a.land(i)
		a.p.Claimed(a.e.now, Claim{Index: i, Sum: sum(i), By: a.id})
		a.move()
		a.act()
		a.read(r, i+1)
	})
}

func (a *actor) want(w Want) {
	e := a.e
	for _, from := range e.nodes {
		if from.id != w.From {
			continue
		}
		a.asked[w.Index] = from
		ask := func() {
			if from.dead {
				if !e.faults.silent {
					e.after(e.latency(), func() { a.lose(from, w.Index) })
				}
				return
			}
			if e.happens(e.faults.denied) {
				e.after(e.latency(), func() { a.lose(from, w.Index) })
			} else if from.have[w.Index] {
				from.send(a, w.Index)
			} else {
				from.waiting[w.Index] = append(from.waiting[w.Index], a)
			}
		}
		if !e.happens(e.faults.lostWants) {
			e.after(e.latency(), ask)
		}
		if e.happens(e.faults.doubled) {
			e.after(e.latency(), ask)
		}
	}
}

func (a *actor) send(to *actor, i int) {
	arrive := func() {
		if to.dead {
			return
		}
		for _, k := range to.p.Arrived(to.e.now, a.id, sum(i)) {
			to.e.after(to.e.upTo(5*time.Millisecond), func() { // it is written to disk
				if to.dead {
					return
				}
				to.land(k)
				to.p.Landed(to.e.now, k)
				to.move()
				to.act()
			})
		}
		to.act()
	}
	if !a.e.happens(a.e.faults.lostBlocks) {
		a.e.after(a.e.latency(), arrive)
	}
	if a.e.happens(a.e.faults.doubled) {
		a.e.after(a.e.latency(), arrive)
	}
}

func (a *actor) land(i int) {
	if a.have[i] {
		return
	}
	a.have[i] = true
	for _, x := range a.waiting[i] {
		a.send(x, i)
	}
	delete(a.waiting, i)
	if len(a.have) == a.e.chunks {
		a.e.after(0, func() {
			a.p.Complete()
			a.act()
		})
	}
}

func (a *actor) lose(from *actor, i int) {
	if !a.dead && a.asked[i] == from {
		delete(a.asked, i)
		a.p.Lost(a.e.now, from.id, sum(i))
		a.act()
	}
}

// ringFor is how long nodes may wait for each other: as long as orders take that tell them of others.
const ringFor = 6 * time.Second

// requireNoRing fails where nodes have waited for each other for a while: none of them will ever get the chunk.
func (e *ensemble) requireNoRing() {
	for i := range e.chunks {
		ring := e.ring(i)
		if ring == nil {
			delete(e.rings, i)
			continue
		}
		if _, seen := e.rings[i]; !seen {
			e.rings[i] = e.now
		}
		require.Less(e.t, e.now.Sub(e.rings[i]), ringFor, "of chunk %d nodes wait for each other: %v", i, ring)
	}
}

// ring lists nodes of which each waits for the next for chunk i, and the last for one of them.
func (e *ensemble) ring(i int) []peer.ID {
	live := map[peer.ID]*actor{}
	for _, a := range e.nodes {
		if !a.dead && a.sessions > 0 && !a.have[i] {
			live[a.id] = a
		}
	}
	for _, a := range e.nodes {
		var chain []peer.ID
		for x := live[a.id]; x != nil && !x.p.Reads(i); x = live[x.p.AskedOf(i)] {
			if slices.Contains(chain, x.id) {
				return chain
			}
			chain = append(chain, x.id)
		}
	}
	return nil
}

func (e *ensemble) tickTable() {
	if e.faults.denied > 0 {
		e.requireNoRing()
	}
	e.table.Tick(e.now)
	e.deliver(e.table)
	for _, a := range e.nodes {
		if a.table != nil && a.table != e.table {
			a.table.Tick(e.now)
			e.deliver(a.table)
		}
	}
	e.after(time.Second, e.tickTable)
}

// kill ends a node. Where that is the coordinator, another is.
func (e *ensemble) kill() {
	k := e.dice.IntN(len(e.nodes))
	a := e.nodes[k]
	live := 0
	for _, x := range e.nodes {
		if !x.dead {
			live++
		}
	}
	if a.dead || live < 2 {
		return
	}
	a.dead = true
	notice := time.Duration(0)
	if e.faults.silent {
		notice = 30 * time.Second
	}
	for _, x := range e.nodes {
		e.after(notice+e.latency(), func() {
			for i := range e.chunks {
				if x.asked[i] == a {
					x.lose(a, i)
				}
			}
		})
	}
	e.after(notice+e.latency(), func() {
		e.table.Leave(e.now, a.id)
		e.deliver(e.table)
	})
	if k == e.lead {
		e.change()
	}
}

// change makes another node the coordinator; the plan of the one before is lost.
func (e *ensemble) change() {
	for e.lead = e.dice.IntN(len(e.nodes)); e.nodes[e.lead].dead; {
		e.lead = (e.lead + 1) % len(e.nodes)
	}
	e.epoch++
	e.table = New(Config{GroupSize: 6})
	table := e.table
	e.after(2*time.Second, func() { // those from the coordinator before come first
		table.Open(e.now)
		e.deliver(table)
	})
	for _, a := range e.nodes {
		if a.table == nil || a.p.Apart() {
			continue
		}
		e.after(e.upTo(time.Second), func() {
			if !a.dead && !a.finished() && a.epoch != e.epoch {
				a.p.Left()
				a.join()
			}
		})
	}
}

// run lets time pass until all that live have everything.
func (e *ensemble) run() {
	end := e.now.Add(30 * time.Minute)
	for e.now.Before(end) {
		h := heap.Pop(&e.queue).(happening)
		e.now = h.at
		h.do()
		done := true
		for _, a := range e.nodes {
			done = done && (a.dead || a.finished())
		}
		if done {
			return
		}
	}
	for _, a := range e.nodes {
		if !a.dead && !a.finished() {
			require.FailNow(e.t, "a node waits for ever", a.lacking())
		}
	}
}

func (a *actor) lacking() string {
	for i := range a.e.chunks {
		if c := &a.p.pieces[i]; !a.have[i] {
			return fmt.Sprintf("%s lacks chunk %d: from %q, asked %q, duty %v, arriving %v, in flight %d, leased %v, coordinator %q, apart %v",
				string(a.id), i, string(c.from), string(c.asked), c.duty, c.arriving, a.p.inFlight, a.p.leased, string(a.p.coordinator), a.p.apart)
		}
	}
	return ""
}

func (e *ensemble) requireReads(most int) {
	for i, n := range e.reads {
		require.GreaterOrEqual(e.t, n, 1, "chunk %d", i)
		require.LessOrEqual(e.t, n, most, "chunk %d was read from upstream too often; %d went apart", i, e.apart)
	}
}

func together(t *testing.T, draw func(*rapid.T) faults, check func(*rapid.T, *ensemble)) {
	t.Helper()
	rapid.Check(t, func(rt *rapid.T) {
		e := newEnsemble(rt, rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(1, 14).Draw(rt, "nodes"),
			rapid.IntRange(1, 60).Draw(rt, "chunks"), draw(rt))
		e.run()
		check(rt, e)
	})
}

func TestTogether_WithoutFaultsEachChunkIsReadOnce(t *testing.T) {
	t.Parallel()
	together(t, func(*rapid.T) faults { return faults{} }, func(_ *rapid.T, e *ensemble) { e.requireReads(1) })
}

func TestTogether_WantsAndBlocksThatAreLostOrDoubledCostNoSecondCopy(t *testing.T) {
	t.Parallel()
	together(t, func(rt *rapid.T) faults {
		return faults{
			lostWants:  rapid.SampledFrom([]float64{0, 0.02}).Draw(rt, "lost wants"),
			lostBlocks: rapid.SampledFrom([]float64{0, 0.02}).Draw(rt, "lost blocks"),
			doubled:    rapid.SampledFrom([]float64{0, 0.3}).Draw(rt, "doubled"),
		}
	}, func(_ *rapid.T, e *ensemble) {
		// One that does not get what it asked for may read it itself, in the end: each chunk that was lost explains
		// one more.
		most := 1
		if e.faults.lostWants+e.faults.lostBlocks > 0 {
			most = 1 + len(e.nodes)
		}
		e.requireReads(most)
	})
}

func TestTogether_DeathsAndChangesOfCoordinatorExplainEachSecondRead(t *testing.T) {
	t.Parallel()
	together(t, func(rt *rapid.T) faults {
		return faults{
			deaths: rapid.IntRange(0, 3).Draw(rt, "deaths"), changes: rapid.IntRange(0, 2).Draw(rt, "changes"),
			silent: rapid.Bool().Draw(rt, "silent"),
		}
	}, func(_ *rapid.T, e *ensemble) {
		require.Zero(e.t, e.apart, "no one leaves a coordinator that does its work")
		e.requireReads(1 + e.faults.deaths + e.faults.changes)
	})
}

func TestTogether_WhereTheRegistryStandsStillForAllNobodyGoesOnByItself(t *testing.T) {
	t.Parallel()
	together(t, func(rt *rapid.T) faults {
		return faults{still: time.Duration(rapid.IntRange(1, 18).Draw(rt, "still")) * time.Second}
	}, func(_ *rapid.T, e *ensemble) {
		require.Zero(e.t, e.apart)
		// One that lives may be given what another does not get; orders and reports take up to two seconds each.
		e.requireReads(1 + int((e.faults.still+4*time.Second)/e.table.cfg.LeaseTimeout))
	})
}

// Whoever is denied a chunk is told of another, who may be about to get it from the one that was denied it.
func TestTogether_NobodyWaitsForOneWhoWaitsForIt(t *testing.T) {
	t.Parallel()
	together(t, func(rt *rapid.T) faults {
		return faults{
			denied: rapid.SampledFrom([]float64{0.02, 0.2}).Draw(rt, "denied"),
			deaths: rapid.IntRange(0, 2).Draw(rt, "deaths"), changes: rapid.IntRange(0, 1).Draw(rt, "changes"),
		}
	}, func(*rapid.T, *ensemble) {})
}

func TestTogether_NothingWaitsForEver(t *testing.T) {
	t.Parallel()
	together(t, func(rt *rapid.T) faults {
		share := func(what string) float64 { return rapid.SampledFrom([]float64{0, 0.05, 0.2}).Draw(rt, what) }
		return faults{
			lostOrders: share("lost orders"), lostReports: share("lost reports"), lostWants: share("lost wants"),
			lostBlocks: share("lost blocks"),
			doubled:    share("doubled"), deaths: rapid.IntRange(0, 3).Draw(rt, "deaths"),
			changes: rapid.IntRange(0, 2).Draw(rt, "changes"),
			silent:  rapid.Bool().Draw(rt, "silent"), reordered: rapid.Bool().Draw(rt, "reordered"),
		}
	}, func(_ *rapid.T, e *ensemble) {
		for _, a := range e.nodes {
			require.NoError(e.t, a.gaveUp)
		}
	})
}
