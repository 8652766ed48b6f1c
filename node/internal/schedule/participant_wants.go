package schedule

import (
	"maps"
	"slices"
	"time"

	"github.com/bits-and-blooms/bitset"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Want asks a peer for a chunk. One that is sent again with a higher rank replaces the earlier.
type Want struct {
	From     peer.ID
	Index    int
	Sum      Sum
	Priority int32
	// Held: From is thought to have the chunk already, and is to say so if it does not.
	Held bool
}

const (
	// lookAhead bounds how far the choice of the next want looks past chunks whose peer has enough to do.
	lookAhead = 512
	// minWindow is how many leaves a blob may ask for however many others the node fetches: the end of a large layer
	// must not stop the config that comes with it.
	minWindow = 4
	// nodeWindow is how many leaves the node asks of peers at one time, for all its blobs together.
	nodeWindow = 32
	// peerWindow is the most leaves asked of one peer at one time for one blob.
	peerWindow = 8
)

// Ranks of wants, on one scale for all blobs of a node: Bitswap answers the higher ones first. A reader waits for an
// urgent chunk now. Others wait for a duty: the participant is its home. The rest is in the order in which readers
// come to it, and what no reader comes to goes last.
const (
	urgentRank int32 = 3 << 24
	dutyRank   int32 = 2 << 24
	aheadRank  int32 = 1 << 24
	unreadBy         = 1 << 22
)

// pump asks for chunks as long as the windows allow: those that readers wait for in any case, then those that others
// wait for, then those that readers are nearest to.
func (p *Participant) pump(now time.Time) {
	if p.closed || p.pieces == nil {
		return
	}
	for _, i := range p.positions {
		if u := uint(i); p.todo.Test(u) || p.duties.Test(u) {
			p.ask(now, i, true)
		}
	}
	window := p.per * max(minWindow, nodeWindow/max(1, p.cfg.Running()))
	for at, ok := 0, true; ok && p.inFlight < window; {
		at, ok = p.askNext(now, p.duties, at)
	}
	ahead := slices.Clone(p.positions)
	for len(ahead) > 0 && p.inFlight < window {
		next := ahead[:0]
		for _, at := range ahead {
			if at, ok := p.askNext(now, p.todo, at); ok && p.inFlight < window {
				next = append(next, at)
			}
		}
		ahead = next
	}
	for at, ok := 0, true; ok && p.inFlight < window; {
		at, ok = p.askNext(now, p.todo, at)
	}
}

// askNext asks for the first chunk of set from chunk at on whose peer has room, and returns the chunk after it.
func (p *Participant) askNext(now time.Time, set *bitset.BitSet, at int) (next int, ok bool) {
	looked := 0
	for u, ok := set.NextSet(uint(at)); ok && looked < lookAhead; u, ok = set.NextSet(u + 1) {
		looked++
		if p.ask(now, int(u), false) {
			return int(u) + 1, true
		}
	}
	return 0, false
}

// ask asks for chunk i, unless there is no need to, or its peer has enough to do. It reports whether it did.
func (p *Participant) ask(now time.Time, i int, urgent bool) bool {
	u, c := uint(i), &p.pieces[i]
	if c.present || c.arriving || c.asked != "" {
		p.duties.Clear(u)
		p.todo.Clear(u)
		return false
	}
	s := p.peers[c.from]
	if s == nil {
		s = &contact{}
		p.peers[c.from] = s
	}
	if s.asked >= p.per*peerWindow && !urgent {
		return false
	}
	if s.asked == 0 {
		s.moved, s.heard, s.flowed, s.unanswered = now, now, now, time.Time{}
	}
	s.asked++
	if c.held {
		s.held++
	}
	p.inFlight++
	p.turns++
	c.asked, c.has, c.rank, c.turn = c.from, c.held, 0, p.turns
	p.duties.Clear(u)
	p.todo.Clear(u)
	if !slices.Contains(p.bySum[c.claim.Sum], i) {
		p.bySum[c.claim.Sum] = append(p.bySum[c.claim.Sum], i)
	}
	p.want(i)
	return true
}

// want sends the want for chunk i, with its rank or the one that it had if that was higher.
func (p *Participant) want(i int) {
	c := &p.pieces[i]
	c.rank = max(c.rank, p.rank(i))
	p.out.Wants = append(p.out.Wants, Want{From: c.asked, Index: i, Sum: c.claim.Sum, Priority: c.rank, Held: c.has})
}

// rank is how urgent chunk i is.
func (p *Participant) rank(i int) int32 {
	k, waits := slices.BinarySearch(p.positions, i)
	switch {
	case waits:
		return urgentRank
	case p.pieces[i].duty:
		return dutyRank - int32(min(i, unreadBy))
	case k > 0:
		return aheadRank - int32(min(i-p.positions[k-1], unreadBy))
	}
	return aheadRank - unreadBy - int32(min(i, unreadBy))
}

// unask notes that chunk i is not asked of anyone any more.
func (p *Participant) unask(i int) {
	c := &p.pieces[i]
	if c.asked == "" {
		return
	}
	s := p.peers[c.asked]
	s.asked--
	if c.has {
		s.held--
	}
	p.inFlight--
	c.asked = ""
}

// Asked lists the blocks that peers were asked for and have not sent.
func (p *Participant) Asked() []Sum { return slices.Collect(maps.Keys(p.bySum)) }

// AskedOf is whom chunk i is asked of, "" where of no one.
func (p *Participant) AskedOf(i int) peer.ID { return p.pieces[i].asked }
