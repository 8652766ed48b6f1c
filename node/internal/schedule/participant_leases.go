package schedule

import (
	"encoding/binary"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxLeased is how many leases a participant has at most, for each chunk of a leaf. What a coordinator gives beyond
// that goes back.
const maxLeased = 64

func (p *Participant) lease(r Run, ordered bool) {
	if _, reads := p.leased[r]; reads {
		return
	}
	if len(p.leased) >= maxLeased*max(p.per, 1) {
		p.report(Report{Failed: []Failure{{Run: r, Trouble: Returned}}})
		return
	}
	p.leased[r] = ordered
	p.out.Leases = append(p.out.Leases, r)
}

// ownChoice is what to read though no one said so: chunks that the coordinator has named no one for, and others for
// each participant.
func (p *Participant) ownChoice() Run {
	if p.size < 0 {
		return unsized
	}
	isOpen := func(i int) bool {
		c := &p.pieces[i]
		return !c.present && !c.arriving && c.from == "" && p.need.Test(uint(i))
	}
	var open []int
	for i := range p.pieces {
		if isOpen(i) {
			open = append(open, i)
		}
	}
	if len(open) == 0 {
		return p.Lacks(p.FirstAbsent())
	}
	return p.withinLeaf(open[spread(p.self)%uint32(len(open))], isOpen)
}

// Lacks is chunk i and those after it in its leaf that are needed and not here, up to the first that is. A request for
// a leaf costs a registry no more than one for a piece.
func (p *Participant) Lacks(i int) Run {
	return p.withinLeaf(i, func(k int) bool { return !p.pieces[k].present && p.need.Test(uint(k)) })
}

// withinLeaf is chunk i, and those after it in its leaf up to the first that is not wanted.
func (p *Participant) withinLeaf(i int, wanted func(int) bool) Run {
	r := Run{First: i, Count: 1}
	for k := r.End(); k < len(p.pieces) && k%p.per != 0 && wanted(k); k++ {
		r.Count++
	}
	return r
}

// spread is a number that differs from peer to peer.
func spread(id peer.ID) uint32 {
	if len(id) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32([]byte(id[len(id)-4:]))
}

// meant is the run that is read where r was leased.
func (p *Participant) meant(r Run) Run {
	if _, reads := p.leased[p.early]; reads && r == unsized {
		return p.early
	}
	return r
}

// Rest is what of a run that is to be read now has not come from elsewhere meanwhile. The coordinator is told again
// who read what has, so that it does not wait for it.
func (p *Participant) Rest(r Run) Run {
	r = p.meant(r)
	for r.Count > 0 && r.First < len(p.pieces) && p.pieces[r.First].present && p.pieces[r.First].claimed {
		p.report(Report{Claims: []Claim{p.pieces[r.First].claim}})
		r = Run{First: r.First + 1, Count: r.Count - 1}
	}
	return r
}

// Reading tells that bytes of leases come, or that the answer to one is awaited.
func (p *Participant) Reading() { p.report(Report{Reading: true}) }

// LeaseEnded tells that a run has been read, or with trouble that not all of it could be.
func (p *Participant) LeaseEnded(now time.Time, r Run, trouble Trouble) {
	r = p.meant(r)
	if _, reads := p.leased[r]; !reads {
		return
	}
	delete(p.leased, r)
	p.idle = now
	if trouble == 0 && (r == unsized && p.per > 1 || p.lacks(r)) {
		// It may have been given before the size was known, and come after, or have been read so. Then the coordinator
		// takes it for a leaf, and waits for the rest, which others can read at once.
		trouble = Returned
	}
	if trouble != Returned {
		p.failed = trouble != 0
	}
	if trouble != 0 {
		p.report(Report{Failed: []Failure{{Run: r, Trouble: trouble}}})
		return
	}
	p.comeBack(now)
}

// lacks reports whether a chunk of r is needed and not here.
func (p *Participant) lacks(r Run) bool {
	for i := r.First; i < min(r.End(), len(p.pieces)); i++ {
		if !p.pieces[i].present && p.need.Test(uint(i)) {
			return true
		}
	}
	return false
}

// Reads reports whether chunk i is in a run that is being read from upstream.
func (p *Participant) Reads(i int) bool {
	for r := range p.leased {
		if r.First <= i && i < r.End() {
			return true
		}
	}
	return false
}
