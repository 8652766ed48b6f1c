package schedule

import (
	"maps"
	"slices"
	"time"
)

const (
	// maxPositions bounds how many different positions of readers count.
	maxPositions = 16
	// fewBefore is how many chunks a peer sends before another, if that is to be raised.
	fewBefore = 2
)

// Demand adds chunks to what is needed.
func (p *Participant) Demand(now time.Time, r Run) {
	var added []Run
	for i := max(r.First, 0); i < min(r.End(), len(p.pieces)); i++ {
		if p.need.Test(uint(i)) {
			continue
		}
		p.need.Set(uint(i))
		if p.pieces[i].present {
			continue
		}
		p.missing++
		if k := len(added) - 1; k >= 0 && added[k].End() == i {
			added[k].Count++
		} else {
			added = append(added, Run{First: i, Count: 1})
		}
	}
	if len(added) > 0 {
		p.idle = now
		p.report(Report{Need: added})
		p.pump(now)
	}
}

// SetPosition tells where a reader is: it waits for that chunk, or will read it next. Each reader has a number of its
// own.
func (p *Participant) SetPosition(now time.Time, reader, chunk int) {
	if at, ok := p.readers[reader]; ok && at == chunk || chunk < 0 || chunk >= len(p.pieces) {
		return
	}
	p.readers[reader] = chunk
	p.sortPositions()
	if p.overtaken(chunk) {
		p.want(chunk)
	}
	p.pump(now)
}

// overtaken reports whether the peer that was asked for chunk i was asked for several others before, and sends those
// first. To raise the want of a chunk that is next in any case would gain nothing, and might meet the chunk on its
// way, and have it sent twice.
func (p *Participant) overtaken(i int) bool {
	c := &p.pieces[i]
	if c.asked == "" || c.arriving || c.rank >= urgentRank || p.peers[c.asked].held < fewBefore {
		return false
	}
	before := 0
	for k := range p.pieces {
		if o := &p.pieces[k]; o.asked == c.asked && o.has && o.turn < c.turn && o.rank > c.rank && !o.arriving {
			before++
		}
	}
	return before >= fewBefore
}

// RemoveReader forgets a reader that has gone.
func (p *Participant) RemoveReader(reader int) {
	delete(p.readers, reader)
	p.sortPositions()
}

func (p *Participant) sortPositions() {
	p.positions = slices.AppendSeq(p.positions[:0], maps.Values(p.readers))
	slices.Sort(p.positions)
	p.positions = slices.Compact(p.positions)
	p.positions = p.positions[:min(len(p.positions), maxPositions)]
}
