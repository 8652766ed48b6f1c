package schedule

import (
	"cmp"
	"slices"
)

// refill tells m whom to ask for chunks that have a home in its group, up to mostTold at one time. The rest is told
// as it reports what came: by then others have those chunks too, and their homes are not asked by everyone.
func (t *Table) refill(m *member) {
	g := m.group
	for i := 0; len(m.supplier) < t.told(m); i++ {
		var ok bool
		if i, ok = g.homed.nextIn(i, &m.need, &m.have, &m.told); !ok {
			return
		}
		if g.homes[i] != m {
			t.assign(m, i, t.leastBusy(m, i, g.homes[i]), false)
		}
	}
}

// told is how many chunks m is told to ask for at one time: of few that are left, few, so that what is left can be
// spread over those who get it meanwhile.
func (t *Table) told(m *member) int {
	return max(min((t.n-m.have.size)/4, mostTold), fewTold)
}

// fewTold keeps a participant busy while it waits for orders.
const fewTold = 16

// spread tells those in g who need chunk i, and have room to be told, whom to ask for it: it has a home now.
func (t *Table) spread(g *group, i int) {
	lack := t.lack[:0]
	for _, q := range g.members {
		if q != g.homes[i] && len(q.supplier) < t.told(q) && !q.told.has(i) && q.need.has(i) && !q.have.has(i) {
			lack = append(lack, q)
		}
	}
	// Who is told of a chunk first may be the one who passes it on: who has the least to send.
	slices.SortStableFunc(lack, func(a, b *member) int {
		return cmp.Or(cmp.Compare(a.busy(), b.busy()), cmp.Compare(a.rank, b.rank))
	})
	for _, q := range lack {
		t.assign(q, i, t.leastBusy(q, i, g.homes[i]), false)
	}
	t.lack = lack
}

// leastBusy picks from whom m takes chunk i, which has a home in m's group. One that joins late finds that others have
// the chunk too, or will, and the home would be asked for too much.
func (t *Table) leastBusy(m *member, i int, home *member) *member {
	best, least := home, home.busy()
	worth := detour * min(len(m.group.members), max(t.n/2, 1))
	if i == 0 { // all readers wait for it: it goes down a tree
		worth = detour
	}
	tried := m.tried[i]
	for _, x := range m.group.members {
		cost := x.busy()
		if x == m || x == home || cost > least {
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
		if h := t.holder(m, i, true); h != nil && h.busy() < least {
			best, least = h, h.busy()
		}
	}
	return best
}

// detour is by how much less busy than the home, for each member of their group, one must be who has yet to get a chunk
// itself, to be asked for it. A home sends to all of its group, so that in a large one a small difference says nothing,
// and detours only make chains on which the last ones wait. But where chunks are few so are homes, and the others have
// nothing to send: there a small difference is worth a detour, and all the more where the same home has brought many
// small blobs. Without, the node that is first at one layer of an image is first at the next too, reads all of them,
// and everyone waits for its link.
const detour = 3

// relays reports whether x, who has yet to get chunk i, may be asked for it: it gets the chunk from one who has it or
// brings it. Longer chains make those at their end wait for as many links as they have parts, each of them filled with
// other blobs.
func (t *Table) relays(x *member, i int) bool {
	if !x.told.has(i) {
		return false
	}
	from := x.supplier[i]
	return from == nil || from.have.has(i) || t.lessee(i) == from || from.bringing.has(i)
}

func (t *Table) assign(m *member, i int, from *member, home bool) {
	if from == m || !m.need.has(i) || m.have.has(i) {
		return
	}
	m.told.add(i)
	t.unserve(m, i)
	m.supplier[i] = from
	from.serving++
	from.served++
	o := t.tell(m)
	o.Chunks = append(o.Chunks, Assignment{
		Claim: t.chunks[i].claim, From: from.id, Home: home, Held: from.have.has(i),
	})
}

// unserve: m does not wait for chunk i of anyone any more.
func (t *Table) unserve(m *member, i int) {
	if s := m.supplier[i]; s != nil {
		s.serving--
		delete(m.supplier, i)
	}
}

// suspect answers a participant whose supplier of a chunk did not deliver.
func (t *Table) suspect(m *member, s Suspicion) {
	if m.group == nil || m.have.has(s.Index) || t.lessee(s.Index) == m {
		return
	}
	from := t.members[s.From]
	if from != nil && !slices.Contains(m.tried[s.Index], s.From) { // who is no participant is not asked anyway
		m.tried[s.Index] = append(m.tried[s.Index], s.From)
	}
	m.told.remove(s.Index)
	m.direct.remove(s.Index) // or what never comes would fill its window for good
	t.unserve(m, s.Index)
	g := m.group
	if from != nil && from != m {
		t.accuse(from, m.id)
		t.unlease(from, s.Index)
	}
	home := g.homes[s.Index]
	if home == m && t.known.has(s.Index) {
		// The others have asked m and wait for it. Would another become the home, it and m might wait for each other.
		if src, _ := t.supplier(g, m, s.Index); src != nil {
			t.assign(m, s.Index, src, true)
			return
		}
	}
	if home != nil && (home == m || home == from || t.members[home.id] != home) {
		t.vacate(g, s.Index) // m brings it itself from elsewhere, or another home is found
		home = g.homes[s.Index]
	}
	if home == nil || !t.known.has(s.Index) {
		return // plan finds a home
	}
	if !slices.Contains(m.tried[s.Index], home.id) {
		t.assign(m, s.Index, home, false)
		return
	}
	// It has tried the home too: whoever else has the chunk, or upstream, or all over again.
	src, _ := t.supplier(g, m, s.Index)
	switch {
	case src != nil:
		t.assign(m, s.Index, src, false)
	case t.mayLease(m):
		if l := t.lessee(s.Index); l != nil {
			t.unlease(l, s.Index)
		}
		t.unseat(g, s.Index) // for m
		t.lease(m, Run{First: s.Index, Count: 1})
	default:
		delete(m.tried, s.Index)
		t.assign(m, s.Index, home, false)
	}
}

// supplier finds the peer from which m can bring chunk i into g. wait: someone is bringing the chunk from upstream, so
// its hash will be known soon. Neither: only upstream can have it.
func (t *Table) supplier(g *group, m *member, i int) (src *member, wait bool) {
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
	for _, x := range t.members { // the usual suppliers are gone: anyone who has it
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
