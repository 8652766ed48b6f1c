package schedule

// claim records that p knows a chunk's hash: from upstream itself, or (when it joins) as another claimed it.
func (t *Table) claim(p *party, c Claim) {
	ch := t.chunk(c.Index)
	if !ch.known {
		ch.claim, ch.known = c, true
		t.known.add(c.Index)
		if ch.lessee == nil {
			t.fresh--
		}
		for _, g := range t.groups {
			if home := g.homes[c.Index]; home != nil {
				g.homed.add(c.Index)
				t.spread(g, c.Index)
			} else {
				g.ready.add(c.Index)
			}
		}
	}
	if ch.lessee == p {
		ch.lessee = nil
		t.progress(p, c.Index)
	}
	if c.By == p.id && !p.have.has(c.Index) {
		t.have(p, c.Index)
		t.revive(p, c.Index)
	}
}

// chunk is the entry of chunk i, which is made where there is none.
func (t *Table) chunk(i int) *chunk {
	ch := t.chunks[i]
	if ch == nil {
		ch = &chunk{}
		t.chunks[i] = ch
	}
	return ch
}

// overrule has the word of one that holds the whole blob take the place of a reader's word on a chunk. The holder has
// checked the digest; the reader may have been misled by the registry. Those who have the reader's chunk find that out
// by themselves; nobody is sent to them for it.
func (t *Table) overrule(c Claim) {
	i := c.Index
	ch := t.chunk(i)
	if !ch.known || ch.claim.Sum == c.Sum {
		return
	}
	if by := t.parties[ch.claim.By]; by != nil && by.complete {
		return
	}
	ch.claim = c
	for _, q := range t.active {
		if q.have.has(i) {
			q.have.remove(i)
			q.need.remove(i)
		}
		q.told.remove(i)
		q.direct.remove(i)
		delete(q.tried, i)
		t.unserve(q, i)
	}
	for _, g := range t.groups {
		t.unseat(g, i)
	}
	for _, q := range t.active {
		t.refill(q)
	}
}

// have records that p has chunk i; where its group has no home for it, p becomes that.
func (t *Table) have(p *party, i int) {
	if p.have.has(i) {
		return
	}
	p.have.add(i)
	t.moved(p)
	t.unserve(p, i)
	delete(p.tried, i)
	g := p.group
	if g == nil {
		return
	}
	p.bringing.remove(i)
	p.direct.remove(i)
	if g.ready.has(i) {
		t.setHome(g, i, p)
		t.spread(g, i)
	}
	if len(p.supplier) < t.told(p) {
		t.refill(p)
	}
}

// gone records that p has let go of chunk i. Who was told to ask p for it is told of another. Of a chunk that came and
// went soon it may never have been told that it came.
func (t *Table) gone(p *party, i int) {
	if p.complete || !p.have.has(i) && !p.told.has(i) {
		return
	}
	p.have.remove(i)
	p.need.remove(i)
	p.told.remove(i)
	p.direct.remove(i)
	t.unserve(p, i)
	var waiting []*party
	for _, q := range t.active {
		if q.supplier[i] == p {
			waiting = append(waiting, q)
			q.told.remove(i)
			q.direct.remove(i)
			t.unserve(q, i)
		}
	}
	if g := p.group; g != nil && g.homes[i] == p && t.lessee(i) != p {
		t.vacate(g, i)
	}
	for _, q := range waiting {
		t.refill(q)
	}
}

func (t *Table) setHome(g *group, i int, p *party) {
	g.ready.remove(i)
	g.homes[i] = p
	if t.known.has(i) {
		g.homed.add(i)
	}
	zone := t.zones[g.zone]
	if z := zone[i]; z == nil || t.parties[z.id] != z || z.sidelined.After(t.now) {
		zone[i] = p
	}
}

// vacate takes the home of chunk i in g away, and gives the chunk to a party that has it, if one does.
func (t *Table) vacate(g *group, i int) {
	old := g.homes[i]
	if old == nil {
		return
	}
	t.unseat(g, i)
	for _, q := range g.parties {
		if !q.have.has(i) {
			q.told.remove(i)
			q.direct.remove(i)
			t.unserve(q, i)
		}
	}
	if !t.known.has(i) {
		return
	}
	for _, q := range g.parties {
		if q != old && q.have.has(i) && !q.sidelined.After(t.now) {
			t.setHome(g, i, q)
			t.spread(g, i)
			return
		}
	}
}

// unseat takes the home of chunk i in g away.
func (t *Table) unseat(g *group, i int) {
	old := g.homes[i]
	if old == nil {
		return
	}
	old.bringing.remove(i)
	delete(g.homes, i)
	g.homed.remove(i)
	if t.known.has(i) {
		g.ready.add(i)
	}
	if zone := t.zones[g.zone]; zone[i] == old {
		delete(zone, i)
	}
}
