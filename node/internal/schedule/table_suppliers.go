package schedule

import (
	"cmp"
	"slices"
)

// refill tells p whom to ask for chunks that have a home in its group, up to mostTold at one time. The rest is told
// as it reports what came: by then others have those chunks too, and their homes are not asked by everyone.
func (t *Table) refill(p *party) {
	g := p.group
	for i := 0; len(p.supplier) < t.told(p); i++ {
		var ok bool
		if i, ok = g.homed.nextIn(i, &p.need, &p.have, &p.told); !ok {
			return
		}
		if g.homes[i] != p {
			t.assign(p, i, t.leastBusy(p, i, g.homes[i]), false)
		}
	}
}

// told is how many chunks p is told to ask for at one time: of few that are left, few, so that what is left can be
// spread over those who get it meanwhile.
func (t *Table) told(p *party) int {
	return max(min((t.n-p.have.size)/4, t.per*mostTold), t.per*fewTold)
}

// fewTold is how many leaves keep a participant busy while it waits for orders.
const fewTold = 16

// spread tells those in g who need chunk i, and have room to be told, whom to ask for it: it has a home now.
func (t *Table) spread(g *group, i int) {
	lack := t.lack[:0]
	for _, q := range g.parties {
		if q != g.homes[i] && len(q.supplier) < t.told(q) && !q.told.has(i) && q.need.has(i) && !q.have.has(i) {
			lack = append(lack, q)
		}
	}
	// Who is told of a chunk first may be the one who passes it on: who has the least to send.
	slices.SortStableFunc(lack, func(a, b *party) int {
		return cmp.Or(cmp.Compare(a.busy(), b.busy()), cmp.Compare(a.rank, b.rank))
	})
	for _, q := range lack {
		t.assign(q, i, t.leastBusy(q, i, g.homes[i]), false)
	}
	t.lack = lack
}

// leastBusy picks from whom p takes chunk i, which has a home in p's group. One that joins late finds that others have
// the chunk too, or will, and the home would be asked for too much.
func (t *Table) leastBusy(p *party, i int, home *party) *party {
	best, least := home, home.busy()
	worth := detour * min(len(p.group.parties), max(t.n/2, 1))
	if i == 0 { // all readers wait for it: it goes down a tree
		worth = detour
	}
	tried := p.tried[i]
	for _, x := range p.group.parties {
		cost := x.busy()
		if x == p || x == home || cost > least {
			continue
		}
		has := x.have.has(i)
		if !has {
			cost += worth
		}
		if cost > least || cost == least && (best == home || best.rank < x.rank) || !has && !t.relays(x, i) ||
			x.sidelined.After(t.now) || slices.Contains(tried, x.id) {
			continue
		}
		best, least = x, cost
	}
	for range min(len(t.holders), 4) {
		if h := t.holder(p, i, true); h != nil && h.busy() < least {
			best, least = h, h.busy()
		}
	}
	return best
}

// detour is by how much less busy than the home, for each party of their group, one must be who has yet to get a chunk
// itself, to be asked for it. A home sends to all of its group, so that in a large one a small difference says nothing,
// and detours only make chains on which the last ones wait. But where chunks are few so are homes, and the others have
// nothing to send: there a small difference is worth a detour, and all the more where the same home has brought many
// small blobs. Without, the node that is first at one layer of an image is first at the next too, reads all of them,
// and everyone waits for its link.
const detour = 3

// relays reports whether x, who has yet to get chunk i, may be asked for it: it gets the chunk from one who has it or
// brings it. Longer chains make those at their end wait for as many links as they have parts, each of them filled with
// other blobs.
func (t *Table) relays(x *party, i int) bool {
	if !x.told.has(i) {
		return false
	}
	from := x.supplier[i]
	return from == nil || from.have.has(i) || t.lessee(i) == from || from.bringing.has(i)
}

func (t *Table) assign(p *party, i int, from *party, home bool) {
	if from == p || !p.need.has(i) || p.have.has(i) {
		return
	}
	p.told.add(i)
	t.unserve(p, i)
	p.supplier[i] = from
	from.serving++
	from.served++
	o := t.tell(p)
	o.Chunks = append(o.Chunks, Assignment{
		Claim: t.chunks[i].claim, From: from.id, Home: home, Held: from.have.has(i),
	})
}

// unserve: p does not wait for chunk i of anyone any more.
func (t *Table) unserve(p *party, i int) {
	if s := p.supplier[i]; s != nil {
		s.serving--
		delete(p.supplier, i)
	}
}

// suspect answers a participant whose supplier of a chunk did not deliver.
func (t *Table) suspect(p *party, s Suspicion) {
	if p.group == nil || p.have.has(s.Index) || t.lessee(s.Index) == p {
		return
	}
	from := t.parties[s.From]
	if from != nil && !slices.Contains(p.tried[s.Index], s.From) { // who is no participant is not asked anyway
		p.tried[s.Index] = append(p.tried[s.Index], s.From)
	}
	p.told.remove(s.Index)
	p.direct.remove(s.Index) // or what never comes would fill its window for good
	t.unserve(p, s.Index)
	g := p.group
	if from != nil && from != p {
		t.accuse(from, p.id)
		t.unlease(from, s.Index)
	}
	home := g.homes[s.Index]
	if home == p && t.known.has(s.Index) {
		// The others have asked p and wait for it. Would another become the home, it and p might wait for each other.
		if src, _ := t.supplier(g, p, s.Index); src != nil {
			t.assign(p, s.Index, src, true)
			return
		}
	}
	if home != nil && (home == p || home == from || t.parties[home.id] != home) {
		t.vacate(g, s.Index) // p brings it itself from elsewhere, or another home is found
		home = g.homes[s.Index]
	}
	if home == nil || !t.known.has(s.Index) {
		return // plan finds a home
	}
	if !slices.Contains(p.tried[s.Index], home.id) {
		t.assign(p, s.Index, home, false)
		return
	}
	// It has tried the home too: whoever else has the chunk, or upstream, or all over again.
	src, _ := t.supplier(g, p, s.Index)
	switch {
	case src != nil:
		t.assign(p, s.Index, src, false)
	case t.mayLease(p):
		if l := t.lessee(s.Index); l != nil {
			t.unlease(l, s.Index)
		}
		t.unseat(g, s.Index) // for p
		t.lease(p, Run{First: s.Index, Count: 1})
	default:
		delete(p.tried, s.Index)
		t.assign(p, s.Index, home, false)
	}
}

// supplier finds the peer from which p can bring chunk i into g. wait: someone is bringing the chunk from upstream, so
// its hash will be known soon. Neither: only upstream can have it.
func (t *Table) supplier(g *group, p *party, i int) (src *party, wait bool) {
	if !t.known.has(i) {
		return nil, t.lessee(i) != nil
	}
	c := t.chunks[i]
	usable := func(x *party) bool {
		return x != nil && x != p && t.parties[x.id] == x && !slices.Contains(p.tried[i], x.id) &&
			!x.sidelined.After(t.now)
	}
	if h := t.holder(p, i, true); h != nil {
		return h, false
	}
	if z := t.zones[g.zone][i]; usable(z) && z.group != g {
		return z, false
	}
	if h := t.holder(p, i, false); h != nil {
		return h, false
	}
	if by := t.parties[c.claim.By]; usable(by) && by.have.has(i) {
		return by, false
	}
	if usable(c.lessee) {
		return c.lessee, false // it reads the chunk anew: ask it, it answers when it has it
	}
	var last *party
	for _, x := range t.parties { // the usual suppliers are gone: anyone who has it
		if x == p || !x.have.has(i) || slices.Contains(p.tried[i], x.id) {
			continue
		}
		if last == nil || last.sidelined.After(x.sidelined) || last.sidelined.Equal(x.sidelined) && x.id < last.id {
			last = x
		}
	}
	if last != nil && (!last.sidelined.After(t.now) || !p.upstream || p.barred.After(t.now)) {
		return last, false
	}
	return nil, false
}

// holder picks a complete holder, each in its turn, the less busy of the next two; in p's zone only, or anywhere.
func (t *Table) holder(p *party, i int, sameZone bool) (best *party) {
	found := 0
	for range t.holders {
		t.turn++
		h := t.holders[t.turn%len(t.holders)]
		if h == p || sameZone && h.zone != p.zone || h.sidelined.After(t.now) || slices.Contains(p.tried[i], h.id) {
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
