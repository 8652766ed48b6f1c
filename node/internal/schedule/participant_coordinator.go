package schedule

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// tie is how a participant stands with a coordinator.
type tie int

const (
	untied  tie = iota // reports would reach no one, and the next Join tells everything
	joining            // what has changed since Join is reported once the coordinator has answered
	tied
)

// Join is all that a new coordinator must know. What changes after it is reported once Joined has been called.
func (p *Participant) Join() Join {
	p.tie, p.coordinator = joining, ""
	p.unsaid, p.out.Report, p.out.Leave = nil, Report{}, false
	p.offered = p.upstream
	j := Join{Zone: p.cfg.Zone, Grain: p.cfg.Grain, Upstream: p.upstream}
	if p.size < 0 {
		return j
	}
	j.Size, j.Slots = p.size, p.slots
	j.Whole = p.need.All()
	if !j.Whole {
		j.Need = runsOf(p.need)
	}
	for i := range p.pieces {
		if c := &p.pieces[i]; c.present {
			j.Have = append(j.Have, i)
			if c.claimed {
				j.Claims = append(j.Claims, c.claim)
			}
		}
	}
	j.Leased = slices.SortedFunc(maps.Keys(p.leased), func(a, b Run) int {
		return cmp.Or(a.First-b.First, a.Count-b.Count)
	})
	return j
}

// Joined tells that a coordinator has let the participant in.
func (p *Participant) Joined(now time.Time, coordinator peer.ID) {
	p.tie, p.coordinator = tied, coordinator
	p.link = contact{moved: now, heard: now, flowed: now}
	p.progress, p.idle, p.awaited, p.helped = now, now, time.Time{}, false
}

// Orders takes in what the coordinator orders. Their size is not for the participant: the caller makes room for the
// blob, and calls SetSize.
func (p *Participant) Orders(now time.Time, o Orders) {
	if p.closed || p.tie != tied { // what a coordinator says that was left just now is out of date
		return
	}
	for _, a := range o.Chunks {
		p.assign(a)
	}
	for _, r := range o.Leases {
		if p.isRun(r) {
			p.lease(r, true)
		}
	}
	if o.Awaited {
		p.awaited = now
	}
	if o.Hopeless && p.inFlight == 0 && len(p.leased) == 0 {
		p.hopeless(now)
	}
	p.pump(now)
}

// Without is o without what this node would have to take the word of a doubted peer for. It reads that itself.
func (p *Participant) Without(o Orders, doubted func(peer.ID) bool) Orders {
	var own []Run
	o.Chunks = slices.DeleteFunc(o.Chunks, func(a Assignment) bool {
		if a.Index < 0 || a.Index >= len(p.pieces) || p.Has(a.Index) || !doubted(a.By) {
			return false
		}
		if k := len(own) - 1; k >= 0 && own[k].End() == a.Index {
			own[k].Count++
		} else if !p.Reads(a.Index) {
			own = append(own, Run{First: a.Index, Count: 1})
		}
		return true
	})
	o.Leases = append(o.Leases, own...)
	return o
}

// isRun reports whether r can be read. Before the size is known an index says nothing about where in the blob a chunk
// is.
func (p *Participant) isRun(r Run) bool {
	if p.size < 0 {
		return r == unsized
	}
	return r.First >= 0 && r.Count > 0 && r.First < len(p.pieces) && r.Count <= len(p.pieces)-r.First
}

// assign takes in whom to ask for a chunk.
func (p *Participant) assign(a Assignment) {
	if a.Index < 0 || a.Index >= len(p.pieces) || a.From == p.self || a.From == "" {
		return
	}
	c := &p.pieces[a.Index]
	switch {
	case c.arriving:
		return
	case c.present:
		p.unsaid = append(p.unsaid, a.Index) // of an earlier try: the coordinator does not know yet
		return
	case c.asked != "" && c.claimed && c.claim.Sum != a.Sum:
		p.unask(a.Index) // what was asked for is another block
	case c.asked != "" && c.asked != a.From && (a.Home || !c.has):
		// Others wait for this node now, or who was asked has yet to get the chunk and has been told anew as well: by
		// now that one may be to get it from here. Should it come all the same, it is welcome.
		p.unask(a.Index)
	}
	asked := c.asked != ""
	if asked && c.asked == a.From && a.Held && !c.has {
		c.has = true
		p.peers[c.asked].held++
	}
	c.from, c.duty, c.held, c.via = a.From, a.Home, a.Held, p.coordinator
	c.claim, c.claimed = a.Claim, true
	switch {
	case asked: // who has it was asked: should the answer not come, that peer is passed over
	case a.Home:
		p.duties.Set(uint(a.Index))
	default:
		p.todo.Set(uint(a.Index))
	}
}

// hopeless: no one else can have the blob, the coordinator says. But this node may not have asked upstream itself.
func (p *Participant) hopeless(now time.Time) {
	if p.MayRead() {
		p.apart, p.returns = true, !p.returned
		p.leave(now, nil)
		return
	}
	p.out.Hopeless = content.ErrNotFound
}

// comeBack has a node that went on by itself, since nobody could read, join the others again: it can, and what it reads
// they need not. It does so once: a coordinator may say the same again and again.
func (p *Participant) comeBack(now time.Time) {
	if p.returns && p.tie == tied && p.missing > 0 {
		p.apart, p.returns, p.returned = false, false, true
		p.leave(now, nil)
	}
}

// Left tells that the coordinator is lost.
func (p *Participant) Left() {
	p.tie, p.coordinator = untied, ""
}

// MayRead reports whether this node may still read upstream all that the blob lacks. What was Hopeless before a caller
// came whom upstream may accept is so no more.
func (p *Participant) MayRead() bool { return p.upstream && !p.failed && !p.apart }

// SetUpstream tells whether upstream may be asked. The coordinator hears of it where it could not be before.
func (p *Participant) SetUpstream(may bool) {
	switch {
	case !may:
		p.offered, p.out.Report.MayRead = false, false
	case !p.upstream:
		p.failed, p.out.Hopeless = false, nil // which was upstream's answer to others
	}
	p.upstream = may
	if may && !p.offered {
		p.offered = true
		p.report(Report{MayRead: true})
	}
}

// Secede has the node go on by itself, and read from upstream all that is missing. The coordinator is left.
func (p *Participant) Secede(now time.Time) {
	p.upstream, p.failed, p.apart, p.returns, p.out.Hopeless = true, false, true, false, nil
	if p.tie == tied {
		p.leave(now, nil)
	}
}

// watchCoordinator leaves a coordinator that is dead, for the next one. Only bytes are progress: one that is alive,
// and whose orders lead to none, is of no use, whether it is dead in part or lies, and the node goes on by itself.
func (p *Participant) watchCoordinator(now time.Time, heard func(peer.ID) int64) {
	if p.tie != tied || p.coordinator == p.self {
		return
	}
	p.listen(p.coordinator, &p.link, p.cfg.PeerSilence/4, now, heard)
	last := &PassedOver{Peer: p.coordinator, Silent: now.Sub(p.link.heard), NoChunk: now.Sub(p.progress)}
	if last.Silent > p.cfg.PeerSilence {
		p.leave(now, last)
		return
	}
	switch {
	case p.size >= 0 && p.missing == 0:
		p.progress, p.idle = now, now
		return
	case p.inFlight > 0 || len(p.leased) > 0:
		p.idle = now
		if now.Sub(p.progress) <= 2*p.cfg.PeerPatience || len(p.leased) > 0 {
			return
		}
	case p.Awaited(now) && now.Sub(p.progress) <= longPatience*p.cfg.CoordinatorPatience:
		p.idle = now
		return
	case !p.upstream:
		if now.Sub(p.idle) > p.cfg.PeerPatience {
			p.out.Hopeless = content.ErrUnavailable
		}
		return
	case now.Sub(p.idle) <= p.cfg.CoordinatorPatience:
		return
	case !p.helped:
		// Where the registry is slow, an honest coordinator has nothing else to tell the others while a few read: were
		// all of them to leave, it would be slower still. A chunk that no one else reads, as a rule, harms no one.
		p.helped = true
		p.lease(p.ownChoice(), false)
		return
	}
	if !p.upstream {
		p.out.Hopeless = content.ErrUnavailable
		return
	}
	p.apart = true
	p.leave(now, last)
}

// Awaited reports whether another reads what is needed from upstream, by what the coordinator said just now.
func (p *Participant) Awaited(now time.Time) bool {
	return p.tie == tied && !p.awaited.IsZero() && now.Sub(p.awaited) <= p.cfg.PeerSilence
}

// leave leaves the coordinator.
func (p *Participant) leave(now time.Time, why *PassedOver) {
	p.tie, p.coordinator, p.idle = untied, "", now
	p.out.Leave, p.out.LeftBehind = true, why
}

// Busy tells that it is this node that has to do something first.
func (p *Participant) Busy(now time.Time) { p.idle = now }

// Apart reports whether the node has found that other coordinators are of no use.
func (p *Participant) Apart() bool { return p.apart }

// Coordinator is whom the participant reports to now, "" where to no one.
func (p *Participant) Coordinator() peer.ID { return p.coordinator }

// report tells the coordinator, if there is one just now; joining anew tells everything.
func (p *Participant) report(r Report) {
	if p.tie != untied {
		p.out.Report.Merge(r)
	}
}
