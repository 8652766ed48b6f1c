package schedule

// claim records that m knows a chunk's hash: from upstream itself, or (when it joins) as another claimed it.
func (t *Table) claim(m *member, c Claim) {
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
	if ch.lessee == m {
		ch.lessee = nil
		t.progress(m, c.Index)
	}
	if c.By == m.id {
		t.have(m, c.Index)
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
	if by := t.members[ch.claim.By]; by != nil && by.complete {
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

// have records that m has chunk i; where its group has no home for it, m becomes that.
func (t *Table) have(m *member, i int) {
	if m.have.has(i) {
		return
	}
	m.have.add(i)
	t.moved(m)
	t.unserve(m, i)
	delete(m.tried, i)
	g := m.group
	if g == nil {
		return
	}
	m.bringing.remove(i)
	m.direct.remove(i)
	if g.ready.has(i) {
		t.setHome(g, i, m)
		t.spread(g, i)
	}
	if len(m.supplier) < t.told(m) {
		t.refill(m)
	}
}

// gone records that m has let go of chunk i. Who was told to ask m for it is told of another.
func (t *Table) gone(m *member, i int) {
	if !m.have.has(i) || m.complete {
		return
	}
	m.have.remove(i)
	m.need.remove(i)
	m.told.remove(i)
	var waiting []*member
	for _, q := range t.active {
		if q.supplier[i] == m {
			waiting = append(waiting, q)
			q.told.remove(i)
			q.direct.remove(i)
			t.unserve(q, i)
		}
	}
	if g := m.group; g != nil && g.homes[i] == m && t.lessee(i) != m {
		t.vacate(g, i)
	}
	for _, q := range waiting {
		t.refill(q)
	}
}

func (t *Table) setHome(g *group, i int, m *member) {
	g.ready.remove(i)
	g.homes[i] = m
	if t.known.has(i) {
		g.homed.add(i)
	}
	zone := t.zones[g.zone]
	if z := zone[i]; z == nil || t.members[z.id] != z || z.sidelined.After(t.now) {
		zone[i] = m
	}
}

// vacate takes the home of chunk i in g away, and gives the chunk to a member that has it, if one does.
func (t *Table) vacate(g *group, i int) {
	old := g.homes[i]
	if old == nil {
		return
	}
	t.unseat(g, i)
	for _, q := range g.members {
		if !q.have.has(i) {
			q.told.remove(i)
			q.direct.remove(i)
			t.unserve(q, i)
		}
	}
	if !t.known.has(i) {
		return
	}
	for _, q := range g.members {
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
