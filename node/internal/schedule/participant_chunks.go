package schedule

import (
	"slices"
	"time"

	"github.com/bits-and-blooms/bitset"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Limit tells how many chunks may be here at a time, 0 for all. It is called before SetSize.
func (p *Participant) Limit(slots int) { p.slots = slots }

// SetSize makes the blob's size known, once; present tells which chunks an earlier try has left.
func (p *Participant) SetSize(size int64, present func(i int) bool) {
	cut := p.cfg.Grain.Cut(size)
	n := uint(cut.Len())
	p.per = cut.PerLeaf()
	p.size, p.pieces, p.absent = size, make([]piece, n), int(n)
	p.need, p.duties, p.todo = bitset.New(n), bitset.New(n), bitset.New(n)
	for i := range p.pieces {
		if present(i) {
			p.pieces[i].present = true
			p.absent--
		}
	}
	if ordered, reads := p.leased[unsized]; reads {
		p.early = firstLeaf(cut)
		delete(p.leased, unsized)
		p.leased[p.early] = ordered
	}
	p.report(Report{Size: size, Slots: p.slots})
}

// MayGet reports whether a block may be about to come: it is a chunk that is asked for, or that is needed and may be
// that.
func (p *Participant) MayGet(sum Sum) bool {
	if p.closed || p.size < 0 {
		return !p.closed
	}
	for i := range p.pieces {
		c := &p.pieces[i]
		if !c.present && (c.asked != "" || p.need.Test(uint(i))) && (!c.claimed || c.claim.Sum == sum) {
			return true
		}
	}
	return false
}

// Arrived tells that a peer has sent a block, and returns which chunks it is. Landed is to follow for each.
func (p *Participant) Arrived(now time.Time, from peer.ID, sum Sum) []int {
	if s := p.peers[from]; s != nil {
		s.moved = now
	}
	indexes := p.bySum[sum]
	delete(p.bySum, sum)
	return slices.DeleteFunc(indexes, func(i int) bool {
		c := &p.pieces[i]
		if c.present || c.arriving || c.claim.Sum != sum {
			return true
		}
		c.arriving = true
		return false
	})
}

// Landed tells that a chunk which has arrived from a peer is on disk now.
func (p *Participant) Landed(now time.Time, i int) {
	if !p.land(i) {
		return
	}
	p.progress, p.idle, p.helped = now, now, false
	p.unsaid = append(p.unsaid, i)
	// Others wait for a duty; and the coordinator for room to give orders, half of which is used up. Of a blob in
	// leaves it is told when all is used up: one that is late would be told of each chunk by itself, and be later
	// still. A blob in pieces is over before that matters, and its last round trips are a good part of it.
	roomAgain := len(p.unsaid) >= p.inFlight
	if p.per == 1 {
		roomAgain = p.inFlight == 0
	}
	if p.pieces[i].duty || len(p.unsaid) >= batch || roomAgain {
		p.say()
	}
	p.pump(now)
}

// Claimed tells that a chunk from upstream is on disk. The claim is this node's; it ends the coordinator's waiting for
// the chunk even where that has come from a peer meanwhile.
func (p *Participant) Claimed(now time.Time, c Claim) {
	if c.Index < 0 || c.Index >= len(p.pieces) {
		return
	}
	p.land(c.Index)
	for r, ordered := range p.leased { // what the node has read without a lease is not the coordinator's merit
		if ordered && r.First <= c.Index && c.Index < r.End() {
			p.progress, p.idle, p.helped = now, now, false
		}
	}
	p.pieces[c.Index].claim, p.pieces[c.Index].claimed = c, true
	p.report(Report{Claims: []Claim{c}})
	p.pump(now)
}

// land notes that chunk i is here. It reports whether that is new.
func (p *Participant) land(i int) bool {
	if i < 0 || i >= len(p.pieces) || p.pieces[i].present {
		return false
	}
	p.unask(i)
	p.pieces[i].present, p.pieces[i].arriving = true, false
	p.absent--
	if p.need.Test(uint(i)) {
		p.missing--
	}
	p.duties.Clear(uint(i))
	p.todo.Clear(uint(i))
	return true
}

// Drop tells that chunk i, which was here, is not any more, for want of room. Nobody needs it here until it is demanded
// again.
func (p *Participant) Drop(i int) {
	if i < 0 || i >= len(p.pieces) || !p.pieces[i].present {
		return
	}
	c := &p.pieces[i]
	c.present, c.from, c.duty, c.held = false, "", false, false
	p.absent++
	p.need.Clear(uint(i))
	is := func(k int) bool { return k == i }
	p.unsaid = slices.DeleteFunc(p.unsaid, is)
	p.out.Report.Have = slices.DeleteFunc(p.out.Report.Have, is)
	p.report(Report{Gone: []int{i}})
}

// Lose tells that chunk i, which was taken to be here, is not. It is needed as before.
func (p *Participant) Lose(now time.Time, i int) {
	needed := p.need.Test(uint(i))
	p.Drop(i)
	if needed {
		p.Demand(now, Run{First: i, Count: 1})
	}
}

// Complete tells that the blob is here and matches its digest. What this node has read itself it claims once more: as a
// holder's word that goes before what a reader said who was misled.
func (p *Participant) Complete() {
	p.say()
	var own []Claim
	for i := range p.pieces {
		if c := &p.pieces[i]; c.claimed && c.claim.By == p.self {
			own = append(own, c.claim)
		}
	}
	p.report(Report{Complete: true, Claims: own})
}

// batch is how many chunks come before they are reported, unless the coordinator is waited for or waits sooner.
const batch = 8

// say reports the chunks that arrived.
func (p *Participant) say() {
	if len(p.unsaid) > 0 {
		p.report(Report{Have: p.unsaid})
		p.unsaid = nil
	}
}

// Claims lists the claims by which chunks were taken, this node's own among them, each with the coordinator that passed
// it on.
func (p *Participant) Claims(tell func(c Claim, coordinator peer.ID)) {
	for i := range p.pieces {
		if c := &p.pieces[i]; c.claimed {
			tell(c.claim, c.via)
		}
	}
}

// runsOf lists the runs of set bits.
func runsOf(b *bitset.BitSet) []Run {
	var out []Run
	for i, ok := b.NextSet(0); ok; {
		end, more := b.NextClear(i)
		if !more {
			end = b.Len()
		}
		out = append(out, Run{First: int(i), Count: int(end - i)})
		i, ok = b.NextSet(end)
	}
	return out
}
