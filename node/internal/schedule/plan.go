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
		if len(g.parties) == 0 {
			continue
		}
		if !t.takesDirect(g) || !t.planDirect(g) {
			t.planHomes(g)
		}
	}
	t.despair()
}

// askSize sends one participant upstream for the first leaf, whose answer tells the size.
func (t *Table) askSize() {
	if t.open && t.leased == 0 {
		for _, p := range t.active {
			if p.upstream && !p.barred.After(t.now) {
				t.lease(p, unsized)
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

// planDirect has the parties of g take chunks from holders. It reports whether holders can serve all that is needed.
func (t *Table) planDirect(g *group) bool {
	served := true
	for _, p := range g.parties {
		unknown, some := p.need.nextWithout(0, &p.have, &p.told, &t.known)
		misses := 0
		i, ok := 0, true
		for ; p.direct.size < min(t.per*directWindow, t.told(p)) && misses < directWindow; i++ {
			if i, ok = t.known.nextIn(i, &p.need, &p.have, &p.told); !ok {
				break
			}
			h := t.holder(p, i, true)
			if h == nil {
				served = false
				misses++
				continue
			}
			t.assign(p, i, h, false)
			p.direct.add(i)
		}
		if some && (!ok || unknown < i) {
			served = false
		}
	}
	return served
}

// planHomes gives every chunk of g that has none a home, as long as parties have room.
func (t *Table) planHomes(g *group) {
	for t.mayGive(g) {
		gave := false
		for _, p := range t.turns(g) {
			// A fast node may bring more than a slow one, but what it brings it also sends to all others: while anyone
			// else has room, no node brings much more than its share.
			if gave && t.overShare(g, p) {
				break
			}
			gave = t.give(g, p) || gave
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

// turns orders the parties of g by who is to bring the next chunk: those within their share first, then those with the
// least on their hands.
func (t *Table) turns(g *group) []*party {
	turn := slices.Clone(g.parties)
	slices.SortStableFunc(turn, func(a, b *party) int {
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

// overShare reports whether p has brought more than half as much again as its share of g's chunks so far.
func (t *Table) overShare(g *group, p *party) bool {
	return p.brought*len(g.parties)*2 > 3*g.brought+6*len(g.parties)
}

// give makes p the home of the next chunks of g that it can bring, and reports whether there were any.
func (t *Table) give(g *group, p *party) bool {
	may := t.mayLease(p)
	fresh := may && t.fresh > 0
	for i, ok := t.nextHomeless(g, p, 0, fresh); ok; i, ok = t.nextHomeless(g, p, i+1, fresh) {
		if t.betterHome(g, p, i) {
			continue
		}
		if q := t.takesAlready(g, p, i); q != nil && q != p {
			t.setHome(g, i, q)
			q.bring()
			t.spread(g, i)
			continue
		}
		src, wait := t.supplier(g, p, i)
		switch {
		case wait:
			continue
		case src != nil:
			// As with runs from upstream: an equal share of a quarter of what is left.
			if p.bringing.size >= t.per*max(min(g.ready.size/(4*t.per*len(g.parties)), t.cfg.Window), fewBrought) {
				if src.zone == p.zone || !fresh {
					return false
				}
				// The way to another zone may be slow, and upstream's is free.
				i, ok = t.nextFresh(p, i+1)
				return ok && !t.betterHome(g, p, i) && t.leaseFrom(g, p, i)
			}
			t.setHome(g, i, p)
			p.direct.remove(i)
			p.bringing.add(i)
			p.bring()
			t.assign(p, i, src, true)
			t.spread(g, i)
			return true
		case may:
			return t.leaseFrom(g, p, i)
		}
	}
	return false
}

// leaseFrom leases p the next chunks of g from i on, and reports whether p may read them yet.
func (t *Table) leaseFrom(g *group, p *party, i int) bool {
	end := t.paceOf(p)
	if i >= end {
		return false
	}
	run := t.run(g, p, i)
	run.Count = min(run.Count, end-i)
	t.lease(p, run)
	return true
}

// nextHomeless is the first chunk from i on that p needs and that has no home in g, of those whose hash is known, or
// (fresh) that no one reads. The hash of one that someone reads will be known soon.
func (t *Table) nextHomeless(g *group, p *party, i int, fresh bool) (int, bool) {
	ready, ok := g.ready.nextIn(i, &p.need, &p.have)
	if fresh {
		if unknown, some := t.nextFresh(p, i); some && (!ok || unknown < ready) {
			return unknown, true
		}
	}
	return ready, ok
}

// nextFresh is the first chunk from i on that p needs, whose hash is not known and that no one reads.
func (t *Table) nextFresh(p *party, i int) (int, bool) {
	for {
		unknown, some := p.need.nextWithout(i, &p.have, &t.known)
		if !some || t.lessee(unknown) == nil && p.group.homes[unknown] == nil {
			return unknown, some
		}
		i = unknown + 1
	}
}

// takesAlready finds a party that was told to take chunk i from a holder when there were holders enough: it will do as
// the home of the chunk for those who have come since, unless p knows better.
func (t *Table) takesAlready(g *group, p *party, i int) *party {
	for _, q := range g.parties {
		if q.direct.has(i) && q.told.has(i) && !q.sidelined.After(t.now) && !slices.Contains(p.tried[i], q.id) {
			return q
		}
	}
	return nil
}

// betterHome reports whether p is sidelined and another, who is not, needs chunk i too.
func (t *Table) betterHome(g *group, p *party, i int) bool {
	return p.sidelined.After(t.now) && slices.ContainsFunc(g.parties, func(x *party) bool {
		return !x.sidelined.After(t.now) && x.need.has(i) && !x.have.has(i)
	})
}

// fewBrought is how many leaves keep a party that brings them from peers busy while it waits for orders.
const fewBrought = 2

// secondThoughts is how long the others are waited for after upstream has refused one participant. One of them may be
// about to tell that a caller has come whom upstream may accept.
const secondThoughts = time.Second

// despair tells participants for which nothing can be done: no one can go upstream (now: a runtime had better ask the
// registry itself than wait), or reads there, and a chunk is with no one. Who reads and says nothing for long is not
// waited for, but knows best what it reads.
func (t *Table) despair() {
	if len(t.active) > 1 && t.now.Sub(t.refused) < secondThoughts {
		return
	}
	may := func(p *party) bool {
		silent := p.lost && t.now.Sub(p.heard) > t.cfg.LeaseTimeout+penalty
		return !silent && (len(p.runs) > 0 || p.upstream && !p.barred.After(t.now))
	}
	if !t.open || slices.ContainsFunc(t.active, may) {
		return
	}
	if t.size >= 0 && len(t.holders) > 0 {
		return
	}
	var all set
	for _, p := range t.parties {
		all.addAll(&p.have)
	}
	for _, p := range t.active {
		if p.lost {
			continue
		}
		if _, lost := p.need.nextWithout(0, &p.have, &p.told, &all); lost || t.size < 0 {
			t.tell(p).Hopeless = true
		}
	}
}
