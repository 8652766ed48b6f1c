package schedule

import (
	"cmp"
	"slices"
	"time"
)

// plan hands out what can be handed out now.
func (t *Table) plan() {
	if t.size < 0 {
		t.askSize()
		return
	}
	first := t.firstGroup
	for k := range t.groups {
		g := t.groups[(first+k)%len(t.groups)]
		if len(g.members) == 0 {
			continue
		}
		if !t.takesDirect(g) || !t.planDirect(g) {
			t.planHomes(g)
		}
	}
	t.despair()
}

// askSize sends one participant upstream for the first chunk, whose answer tells the size.
func (t *Table) askSize() {
	if t.open && t.leased == 0 {
		for _, m := range t.active {
			if m.upstream && !m.barred.After(t.now) {
				t.lease(m, Run{First: 0, Count: 1})
				return
			}
		}
	}
	t.despair()
}

// takesDirect: there are holders enough in g's zone for everyone in need there to take chunks from them.
func (t *Table) takesDirect(g *group) bool {
	holders := t.zoneHolders[g.zone]
	return holders > 0 && holders >= t.zoneActive[g.zone]
}

// planDirect has the members of g take chunks from holders. It reports whether holders can serve all that is needed.
func (t *Table) planDirect(g *group) bool {
	served := true
	for _, m := range g.members {
		unknown, some := m.need.nextWithout(0, &m.have, &m.told, &t.known)
		misses := 0
		i, ok := 0, true
		for ; m.direct.size < min(t.cfg.DirectWindow, t.told(m)) && misses < t.cfg.DirectWindow; i++ {
			if i, ok = t.known.nextIn(i, &m.need, &m.have, &m.told); !ok {
				break
			}
			h := t.holder(m, i, true)
			if h == nil {
				served = false
				misses++
				continue
			}
			t.assign(m, i, h, false)
			m.direct.add(i)
		}
		if some && (!ok || unknown < i) {
			served = false
		}
	}
	return served
}

// planHomes gives every chunk of g that has none a home, as long as members have room.
func (t *Table) planHomes(g *group) {
	for t.mayGive(g) {
		gave := false
		for _, m := range t.turns(g) {
			// A fast node may bring more than a slow one, but what it brings it also sends to all others: while anyone
			// else has room, no node brings much more than its share.
			if gave && t.overShare(g, m) {
				break
			}
			gave = t.give(g, m) || gave
		}
		if !gave {
			return
		}
	}
}

// mayGive reports whether g has chunks that could be given a home: it is asked at every report, and mostly says no. A
// chunk without a home is known, or read by someone, whom g waits for, or it is fresh.
func (t *Table) mayGive(g *group) bool {
	return g.ready.size > 0 || t.fresh > 0 && t.runsLeft()
}

// turns orders the members of g by who is to bring the next chunk: those within their share first, then those with the
// least on their hands.
func (t *Table) turns(g *group) []*member {
	turn := slices.Clone(g.members)
	slices.SortStableFunc(turn, func(a, b *member) int {
		if over := t.overShare(g, a); over != t.overShare(g, b) {
			return map[bool]int{true: 1, false: -1}[over]
		}
		if d := len(a.runs) - len(b.runs); d != 0 {
			return d
		}
		return cmp.Or(a.brought-b.brought, cmp.Compare(a.rank, b.rank))
	})
	return turn
}

// overShare reports whether m has brought more than half as much again as its share of g's chunks so far.
func (t *Table) overShare(g *group, m *member) bool {
	return m.brought*len(g.members)*2 > 3*g.brought+6*len(g.members)
}

// give makes m the home of the next chunks of g that it can bring, and reports whether there were any.
func (t *Table) give(g *group, m *member) bool {
	may := t.mayLease(m)
	fresh := may && t.fresh > 0
	for i, ok := t.nextHomeless(g, m, 0, fresh); ok; i, ok = t.nextHomeless(g, m, i+1, fresh) {
		if t.betterHome(g, m, i) {
			continue
		}
		if q := t.takesAlready(g, m, i); q != nil && q != m {
			t.setRoot(g, i, q)
			q.bring()
			t.spread(g, i)
			continue
		}
		src, wait := t.source(g, m, i)
		switch {
		case wait:
			continue
		case src != nil:
			// As with runs from upstream: an equal share of a quarter of what is left.
			if m.bringing.size >= max(min(g.ready.size/(4*len(g.members)), t.cfg.Window), fewBrought) {
				return false
			}
			t.setRoot(g, i, m)
			m.direct.remove(i)
			m.bringing.add(i)
			m.bring()
			t.assign(m, i, src, true)
			t.spread(g, i)
			return true
		case may:
			t.lease(m, t.run(g, m, i))
			return true
		}
	}
	return false
}

// nextHomeless is the first chunk from i on that m needs and that has no home in g, of those whose hash is known, or
// (fresh) that no one reads. The hash of one that someone reads will be known soon.
func (t *Table) nextHomeless(g *group, m *member, i int, fresh bool) (int, bool) {
	for {
		ready, ok := g.ready.nextIn(i, &m.need, &m.have)
		if !fresh {
			return ready, ok
		}
		unknown, some := m.need.nextWithout(i, &m.have, &t.known)
		switch {
		case !some || ok && ready < unknown:
			return ready, ok
		case t.lessee(unknown) == nil && g.roots[unknown] == nil:
			return unknown, true
		}
		i = unknown + 1
	}
}

// takesAlready finds a member that was told to take chunk i from a holder when there were holders enough: it will do as
// the home of the chunk for those who have come since, unless m knows better.
func (t *Table) takesAlready(g *group, m *member, i int) *member {
	for _, q := range g.members {
		if q.direct.has(i) && q.told.has(i) && !q.sidelined.After(t.now) && !slices.Contains(m.tried[i], q.id) {
			return q
		}
	}
	return nil
}

// fewBrought keeps a member that brings chunks from peers busy while it waits for orders.
const fewBrought = 2

// betterHome reports whether m is sidelined and another, who is not, needs chunk i too.
func (t *Table) betterHome(g *group, m *member, i int) bool {
	return m.sidelined.After(t.now) && slices.ContainsFunc(g.members, func(x *member) bool {
		return !x.sidelined.After(t.now) && x.need.has(i) && !x.have.has(i)
	})
}

// source finds the peer from which m can bring chunk i into g. wait: someone is bringing the chunk from upstream, so
// its hash will be known soon. Neither: only upstream can have it.
func (t *Table) source(g *group, m *member, i int) (src *member, wait bool) {
	if !t.known.has(i) {
		return nil, t.lessee(i) != nil
	}
	c := t.chunks[i]
	usable := func(x *member) bool {
		return x != nil && x != m && t.members[x.id] == x && !slices.Contains(m.tried[i], x.id) &&
			!x.sidelined.After(t.now)
	}
	if h := t.holder(m, i, true); h != nil {
		return h, false
	}
	if z := t.zones[g.zone][i]; usable(z) && z.group != g {
		return z, false
	}
	if h := t.holder(m, i, false); h != nil {
		return h, false
	}
	if by := t.members[c.claim.By]; usable(by) && by.have.has(i) {
		return by, false
	}
	if usable(c.lessee) {
		return c.lessee, false // it reads the chunk anew: ask it, it answers when it has it
	}
	var last *member
	for _, x := range t.members { // the usual sources are gone: anyone who has it
		if x == m || !x.have.has(i) || slices.Contains(m.tried[i], x.id) {
			continue
		}
		if last == nil || last.sidelined.After(x.sidelined) || last.sidelined.Equal(x.sidelined) && x.id < last.id {
			last = x
		}
	}
	if last != nil && (!last.sidelined.After(t.now) || !m.upstream || m.barred.After(t.now)) {
		return last, false
	}
	return nil, false
}

// holder picks a complete holder, each in its turn, the less busy of the next two; in m's zone only, or anywhere.
func (t *Table) holder(m *member, i int, sameZone bool) (best *member) {
	found := 0
	for range t.holders {
		t.turn++
		h := t.holders[t.turn%len(t.holders)]
		if h == m || sameZone && h.zone != m.zone || h.sidelined.After(t.now) || slices.Contains(m.tried[i], h.id) {
			continue
		}
		if best == nil || h.busy() < best.busy() {
			best = h
		}
		if found++; found == 2 {
			break
		}
	}
	return best
}

func (t *Table) mayLease(m *member) bool {
	// Before it has read anything it gets one run: who comes a moment later is to have something to read as well.
	if !t.open || !m.upstream || m.lost || len(m.runs) >= min(t.peerRuns(), 1+m.read) || m.barred.After(t.now) {
		return false
	}
	if t.noRange {
		if t.streamer == nil || !t.streamer.upstream {
			t.streamer = m
		}
		return t.streamer == m && len(m.runs) == 0
	}
	return t.runsLeft()
}

// peerRuns is how many runs one participant may read at one time. While there are few, each may read more: a registry
// may give each request a small part of the link, as object stores do.
func (t *Table) peerRuns() int { return max(t.cfg.PeerRuns, t.cfg.UpstreamRuns/max(len(t.active), 1)) }

// runsLeft reports whether upstream may be read by one more participant: by Config.UpstreamRuns, and one more with
// every fewChunks that have come, up to a run for each participant, or manyRuns, or one for every sixteenth. Few
// requests at once finish early one by one, and what is finished can be shared, which matters most while there is
// nothing else to share. But from one lease to the next a registry has nothing to send, and where links are full the
// way of reports and orders takes as long as several chunks. At first one run is read, then as many as chunks have
// come: the first bytes of a layer are what readers wait for, and of all that is read at the same time each comes late.
func (t *Table) runsLeft() bool {
	n := len(t.active)
	if !t.noRange && t.leased > t.known.size && t.now.Sub(t.began) < slowStart {
		return false
	}
	return t.noRange || t.leased < max(n/16, min(t.cfg.UpstreamRuns+t.known.size/fewChunks,
		max(t.cfg.UpstreamRuns, min(n, manyRuns))))
}

// Found with node/internal/simulate, on links of 0.1 to 10 Gbit/s. manyRuns are enough to hide the time between leases
// on the fastest.
const (
	fewChunks = 4
	manyRuns  = 16
)

// slowStart is for how long others wait for the first one who reads: he may be slow, or dead.
const slowStart = 2 * time.Second

// run is how much m is leased from chunk i on: an equal share of a quarter of what is left, so that runs shrink towards
// the end (guided self-scheduling, Polychronopoulos and Kuck 1987). The first are short, for whoever comes first is
// alone only for a moment, and what it was leased then the others would wait for.
func (t *Table) run(g *group, m *member, i int) Run {
	if t.noRange {
		return Run{First: i, Count: t.n - i}
	}
	able := 0
	for _, x := range t.active {
		if x.upstream {
			able++
		}
	}
	most := min(max(t.fresh/(4*max(able, 1)), 1), 1+m.read, t.cfg.MaxRun)
	r := Run{First: i, Count: 1}
	for r.Count < most && r.End() < t.n {
		k := r.End()
		if g.roots[k] != nil || t.known.has(k) || t.lessee(k) != nil || !m.need.has(k) || m.have.has(k) {
			break
		}
		r.Count++
	}
	return r
}

// lease sends m upstream for a run.
func (t *Table) lease(m *member, r Run) {
	t.book(m, r)
	t.firstGroup = slices.Index(t.groups, m.group) + 1 // the next of upstream's few leases is another group's to choose
	o := t.tell(m)
	o.Leases = append(o.Leases, r)
}

// book records that m reads a run from upstream, and so is the home of its chunks. Of a whole stream those chunks do
// not count that others have brought already. While the blob's size is not known there are no chunks to be home of.
func (t *Table) book(m *member, r Run) {
	if t.leased == 0 {
		t.began = t.now
	}
	m.runs = append(m.runs, lease{run: r, next: r.First, expires: t.now.Add(t.cfg.LeaseTimeout), claimed: t.now})
	t.leased++
	t.extend(m, &m.runs[len(m.runs)-1])
}

// extend books the next chunks of a lease.
func (t *Table) extend(m *member, l *lease) {
	for ; l.left < bookAhead && l.next < min(l.run.End(), t.n); l.next++ {
		i := l.next
		if !t.bookable(m, i) {
			continue
		}
		t.chunk(i).lessee = m
		if !t.known.has(i) {
			t.fresh--
		}
		l.left++
		if m.group.roots[i] == nil {
			t.setRoot(m.group, i, m)
			if t.known.has(i) { // by one who is gone: the others may ask for it at once
				t.spread(m.group, i)
			}
		}
		m.told.add(i)
		m.bring()
	}
}

// bookable: no one reads chunk i from upstream, and in m's group no one has it.
func (t *Table) bookable(m *member, i int) bool {
	return t.lessee(i) == nil && (!t.known.has(i) || m.group.roots[i] == nil)
}

// despair tells participants for which nothing can be done: no one can go upstream (now: a runtime had better ask the
// registry itself than wait), and a chunk is with no one.
func (t *Table) despair() {
	if !t.open || slices.ContainsFunc(t.active, func(m *member) bool { return m.upstream && !m.barred.After(t.now) }) {
		return
	}
	if t.size >= 0 && len(t.holders) > 0 {
		return
	}
	var all set
	for _, m := range t.members {
		all.addAll(&m.have)
	}
	for _, m := range t.active {
		if _, lost := m.need.nextWithout(0, &m.have, &m.told, &all); lost || t.size < 0 {
			t.tell(m).Hopeless = true
		}
	}
}
