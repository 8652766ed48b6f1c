package schedule

import (
	"cmp"
	"slices"
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
		for ; m.direct.size < min(directWindow, t.told(m)) && misses < directWindow; i++ {
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
			t.setHome(g, i, q)
			q.bring()
			t.spread(g, i)
			continue
		}
		src, wait := t.supplier(g, m, i)
		switch {
		case wait:
			continue
		case src != nil:
			// As with runs from upstream: an equal share of a quarter of what is left.
			if m.bringing.size >= max(min(g.ready.size/(4*len(g.members)), t.cfg.Window), fewBrought) {
				return false
			}
			t.setHome(g, i, m)
			m.direct.remove(i)
			m.bringing.add(i)
			m.bring()
			t.assign(m, i, src, true)
			t.spread(g, i)
			return true
		case may:
			end := t.paceOf(m)
			if i >= end {
				return false
			}
			run := t.run(g, m, i)
			run.Count = min(run.Count, end-i)
			t.lease(m, run)
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
		case t.lessee(unknown) == nil && g.homes[unknown] == nil:
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

// betterHome reports whether m is sidelined and another, who is not, needs chunk i too.
func (t *Table) betterHome(g *group, m *member, i int) bool {
	return m.sidelined.After(t.now) && slices.ContainsFunc(g.members, func(x *member) bool {
		return !x.sidelined.After(t.now) && x.need.has(i) && !x.have.has(i)
	})
}

// fewBrought keeps a member that brings chunks from peers busy while it waits for orders.
const fewBrought = 2

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
