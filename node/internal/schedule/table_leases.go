package schedule

import (
	"slices"
	"time"
)

// lease is a run that is read from upstream. It is booked a little at a time: what one stream reads may be the whole
// blob.
type lease struct {
	run     Run
	next    int // the chunks before it are booked
	left    int // how many of those are still to be claimed
	expires time.Time
	claimed time.Time // when a chunk of it was last claimed, or it was given
}

// bookAhead is how many chunks of a lease are booked at one time, as many as a run has that is not a whole stream.
const bookAhead = 64

func (t *Table) mayLease(p *party) bool {
	// Before it has read anything it gets one run: who comes a moment later is to have something to read as well.
	if !t.open || !p.upstream || p.lost || len(p.runs) >= min(t.peerRuns(), 1+p.read) || p.barred.After(t.now) {
		return false
	}
	if t.streamer != p && t.reserved() {
		return false
	}
	if t.noRange {
		return len(p.runs) == 0
	}
	return t.runsLeft()
}

// reserved reports whether upstream is for the streamer alone. One that reads for all, see Join.Again, is not waited
// for where it is slow: the others read beside it then.
func (t *Table) reserved() bool {
	const fair, least = 10 * time.Second, time.Second // it has had its chance, and this long for each leaf
	if !t.streams() {
		return false
	}
	since := t.now.Sub(t.elected)
	return t.noRange || t.again && (since < fair || time.Duration(t.streamer.read/t.per)*least > since)
}

// streams reports whether there is a streamer who can read from upstream.
func (t *Table) streams() bool {
	return t.streamer != nil && t.streamer.upstream && !t.streamer.complete
}

// peerRuns is how many runs one participant may read at one time. While there are few, each may read more: a registry
// may give each request a small part of the link, as object stores do.
func (t *Table) peerRuns() int {
	readers := len(t.active)
	if t.again {
		readers = 1
	}
	return max(peerRuns, t.cfg.UpstreamRuns/max(readers, 1))
}

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

// run is how much p is leased from chunk i on: an equal share of a quarter of what is left, so that runs shrink towards
// the end (guided self-scheduling, Polychronopoulos and Kuck 1987). The first are short, for whoever comes first is
// alone only for a moment, and what it was leased then the others would wait for. A request is for a leaf at the least,
// for pieces are there to be passed on, and each request costs a registry as much as the one before.
func (t *Table) run(g *group, p *party, i int) Run {
	if t.noRange {
		return Run{First: i, Count: t.n - i}
	}
	able := 0
	for _, x := range t.active {
		if x.upstream {
			able++
		}
	}
	most := min(max(t.fresh/(4*max(able, 1)), t.per), t.per+p.read/t.per*t.per, t.per*maxRun)
	r := Run{First: i, Count: 1}
	for r.Count < most && r.End() < t.n {
		k := r.End()
		if g.homes[k] != nil || t.known.has(k) || t.lessee(k) != nil || !p.need.has(k) || p.have.has(k) {
			break
		}
		r.Count++
	}
	return r
}

// lease sends p upstream for a run.
func (t *Table) lease(p *party, r Run) {
	if (t.noRange || t.again) && !t.streams() {
		t.streamer, t.elected = p, t.now
	}
	p.taken = nil
	t.book(p, r)
	t.firstGroup = slices.Index(t.groups, p.group) + 1 // the next of upstream's few leases is another group's to choose
	o := t.tell(p)
	o.Leases = append(o.Leases, r)
}

// book records that p reads a run from upstream, and so is the home of its chunks. Of a whole stream those chunks do
// not count that others have brought already. While the blob's size is not known there are no chunks to be home of.
func (t *Table) book(p *party, r Run) {
	if t.leased == 0 {
		t.began = t.now
	}
	p.runs = append(p.runs, lease{run: r, next: r.First, expires: t.now.Add(t.cfg.LeaseTimeout), claimed: t.now})
	t.leased++
	t.extend(p, &p.runs[len(p.runs)-1])
}

// extend books the next chunks of a lease.
func (t *Table) extend(p *party, l *lease) {
	for ; l.left < bookAhead && l.next < min(l.run.End(), t.n); l.next++ {
		i := l.next
		if !t.bookable(p, i) {
			continue
		}
		t.chunk(i).lessee = p
		if !t.known.has(i) {
			t.fresh--
		}
		l.left++
		if p.group.homes[i] == nil {
			t.setHome(p.group, i, p)
			if t.known.has(i) { // by one who is gone: the others may ask for it at once
				t.spread(p.group, i)
			}
		}
		p.told.add(i)
		p.bring()
	}
}

// bookable: no one reads chunk i from upstream, and in p's group no one has it.
func (t *Table) bookable(p *party, i int) bool {
	return t.lessee(i) == nil && (!t.known.has(i) || p.group.homes[i] == nil)
}

// resume takes in a run that p reads from upstream already, or what is left of it. What it says counts as far as the
// table would have leased it, or one who says that it reads everything would keep all others from upstream.
func (t *Table) resume(p *party, r Run, stream bool) {
	if p.group == nil || r.First < 0 || r.Count <= 0 || r.First > t.n-r.Count || len(p.runs) >= t.peerRuns() {
		return
	}
	if !stream {
		r.Count = min(r.Count, t.per*maxRun)
	}
	for i := r.First; i < r.End(); i++ {
		if t.bookable(p, i) {
			t.book(p, r)
			return
		}
	}
	// Someone else has all of it by now: p's own reading does no harm, but no one waits for it.
}

// regain gives p back what was taken from it for its silence, and is free still, where it reads on. Else it would be
// told to read by another request what it reads already.
func (t *Table) regain(p *party) {
	for _, r := range p.taken {
		t.resume(p, r, true)
	}
}

// revive notes that chunk i has come to p, who may have read it on a lease that was taken.
func (t *Table) revive(p *party, i int) {
	if slices.ContainsFunc(p.taken, func(r Run) bool { return r.First <= i && i < r.End() }) {
		t.given(p)
		t.regain(p)
	}
}

// given notes that upstream gives p something. What failed beside it says little; one that is slow stays barred.
func (t *Table) given(p *party) {
	if p.barred.Sub(t.now) <= penalty {
		p.barred = time.Time{}
	}
}

// progress notes that a chunk of one of p's leases is done.
func (t *Table) progress(p *party, i int) {
	for k := range p.runs {
		l := &p.runs[k]
		if i < l.run.First || i >= l.run.End() {
			continue
		}
		l.left--
		p.read++
		t.given(p)
		t.pace = (3*t.pace + t.now.Sub(l.claimed)) / 4
		l.expires, l.claimed, t.claimed = t.now.Add(t.cfg.LeaseTimeout), t.now, t.now
		t.extend(p, l)
		if l.left <= 0 {
			p.runs = slices.Delete(p.runs, k, k+1)
			t.leased--
		}
		return
	}
}

func (t *Table) fail(p *party, f Failure) {
	p.taken = slices.DeleteFunc(p.taken, func(r Run) bool { return r.First == f.Run.First })
	k := slices.IndexFunc(p.runs, func(l lease) bool { return l.run.First == f.Run.First })
	if k >= 0 {
		l := p.runs[k]
		p.runs = slices.Delete(p.runs, k, k+1)
		t.leased--
		for i := l.run.First; i < l.next; i++ {
			t.release(p, i)
		}
	}
	switch f.Trouble {
	case Returned:
	case Refused:
		p.upstream, t.refused = false, t.now
	case NoRange:
		t.noRange = true
		t.releaseLeases(p)
		// Who has just seen it has the answer in hand, and reads on.
		if !t.streams() || k >= 0 && len(t.streamer.runs) == 0 {
			t.streamer = p
		}
	default:
		p.barred = t.now.Add(penalty)
		if t.streamer == p {
			t.streamer = nil
		}
	}
}

// releaseLeases takes p's leases back; others may be given them.
func (t *Table) releaseLeases(p *party) {
	for _, l := range p.runs {
		t.leased--
		for i := l.run.First; i < l.next; i++ {
			t.release(p, i)
		}
	}
	p.runs = nil
}

// release takes the lease of chunk i from p, if it has it.
func (t *Table) release(p *party, i int) {
	if t.lessee(i) != p {
		return
	}
	ch := t.chunks[i]
	if ch.lessee = nil; !ch.known {
		delete(t.chunks, i)
		t.fresh++
	}
	if !ch.known || !p.have.has(i) { // what it says to have and has not claimed nobody can ask for
		t.vacate(p.group, i)
	}
}

// unlease takes chunk i, whose hash is known, out of the lease of a party that others got nothing from. Else whoever
// were to read it next would not be its home, and it would be leased to everyone.
func (t *Table) unlease(p *party, i int) {
	ch := t.chunks[i]
	if ch == nil || ch.lessee != p || !ch.known {
		return
	}
	ch.lessee = nil
	for k := range p.runs {
		l := &p.runs[k]
		if i < l.run.First || i >= l.run.End() {
			continue
		}
		l.left--
		if t.extend(p, l); l.left <= 0 {
			p.runs = slices.Delete(p.runs, k, k+1)
			t.leased--
		}
		return
	}
}

// lessee is who reads chunk i from upstream now, nil where no one does.
func (t *Table) lessee(i int) *party {
	if ch := t.chunks[i]; ch != nil {
		return ch.lessee
	}
	return nil
}

// drips reports whether p is too slow with a lease that another could read. Of a registry without Range the other would
// have to begin at the start, so there it keeps the lease. Where the others are as slow it is the registry or its link,
// and to read anew what is half read would make it slower.
func (t *Table) drips(p *party, l lease) bool {
	// not longer: the slow one sets the pace too
	patience := min(max(t.cfg.ChunkTimeout, slower*t.pace), slower*t.cfg.ChunkTimeout)
	return !t.noRange && t.now.Sub(l.claimed) > patience && t.another(p)
}

// another reports whether one that lives may go upstream beside p.
func (t *Table) another(p *party) bool {
	return slices.ContainsFunc(t.active, func(x *party) bool {
		return x != p && x.upstream && !x.lost && !x.barred.After(t.now)
	})
}

// slower is how many times as long as of late, and as Config.ChunkTimeout, a chunk from upstream may take.
const slower = 4

// slowPenalties is for how many times penalty one that is slow with upstream is not sent there again.
const slowPenalties = 10

// reassure tells participants that what they need is being read, where that takes long. Else each of them would have to
// take a registry that thinks, or a reader whose machine is slow, for a coordinator that is of no use, and read itself
// what another reads.
func (t *Table) reassure() {
	reads := func(p *party) bool { return p != nil && len(p.runs) > 0 && !p.lost }
	if !slices.ContainsFunc(t.active, reads) || t.now.Sub(t.began) < quiet || t.now.Sub(t.claimed) < quiet {
		return
	}
	var reading set
	for i, ch := range t.chunks {
		if reads(ch.lessee) && !ch.known {
			reading.add(i)
		}
	}
	for _, p := range t.active {
		_, waits := p.need.first(0, []*set{&reading}, []*set{&p.have})
		if waits || t.size < 0 {
			t.tell(p).Awaited = true
		}
	}
}

// quiet is for how long nothing has come from upstream when those who wait for it are told that it is awaited.
const quiet = 2 * time.Second
