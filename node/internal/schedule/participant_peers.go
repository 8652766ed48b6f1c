package schedule

import (
	"maps"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// contact is a peer that chunks are asked of, or the coordinator.
type contact struct {
	asked, held int       // chunks; those of them that it has already
	moved       time.Time // when it last sent one, or was first asked
	bytes       int64     // of any kind, heard from it
	heard       time.Time // when they last grew
	flowed      time.Time // when they last grew by much
	mark        int64     // how many there were then
	pinged      time.Time
	unanswered  time.Time     // when it was pinged first of the times that it has not answered; zero: it has
	lag         time.Duration // how long it took to answer, of late
	again       time.Time     // when its wants were sent once more
}

// PassedOver is a peer that did not send chunks in time, or the coordinator that was left.
type PassedOver struct {
	Peer            peer.ID
	Chunks          int
	Silent, NoChunk time.Duration
}

const (
	// longPatience is for how many times ParticipantConfig.PeerPatience a peer may send bytes, and no chunk. A
	// coordinator may say for as many times CoordinatorPatience that another reads.
	longPatience = 4
	// pingAfter is after how long a peer that is asked and not heard of is pinged. One that then keeps silent for
	// farLonger times as long as the slowest answer so far, and shortSilence at the least, is dead.
	pingAfter = 500 * time.Millisecond
	farLonger = 4
	// flow is how many bytes show that a peer sends more than signs of life.
	flow = 64 << 10
)

// Watched lists the peers that are waited for, and the coordinator.
func (p *Participant) Watched() []peer.ID {
	var out []peer.ID
	for id, s := range p.peers {
		if s.asked > 0 {
			out = append(out, id)
		}
	}
	if p.coordinator != "" && p.coordinator != p.self {
		out = append(out, p.coordinator)
	}
	return out
}

// Asks reports whether chunks are asked of a peer.
func (p *Participant) Asks(id peer.ID) bool {
	s := p.peers[id]
	return s != nil && s.asked > 0
}

// excuse gives peers the time for which this node itself was held up: their answers wait to be taken in.
func (p *Participant) excuse(now time.Time) {
	late := now.Sub(p.ticked) - TickEvery
	if !p.ticked.IsZero() && late > 0 {
		for _, s := range p.peers {
			if !s.unanswered.IsZero() {
				s.unanswered = s.unanswered.Add(late)
			}
		}
	}
	p.ticked = now
}

// passOver gives up on peers that are dead or have sent no chunk for too long.
func (p *Participant) passOver(now time.Time, heard func(peer.ID) int64) {
	for _, id := range slices.Sorted(maps.Keys(p.peers)) {
		s := p.peers[id]
		if s.asked == 0 {
			continue
		}
		p.listen(id, s, pingAfter, now, heard)
		silent, noChunk := now.Sub(s.heard), now.Sub(s.moved)
		// While bytes of any kind flow from it, chunks take long because links are slow. Not for ever: it might send
		// anything.
		idle := max(min(noChunk, now.Sub(s.flowed)), noChunk/longPatience)
		dead := silent > p.cfg.PeerSilence || p.ignoresPings(s, now) || idle > p.cfg.PeerPatience
		// It has the chunks, and there is no sign that others keep it from sending them.
		mute := s.held > 0 && min(noChunk, now.Sub(s.flowed)) > p.cfg.PeerPatience/3
		if !dead && !mute {
			p.askAgain(id, s, now)
			continue
		}
		stalled := p.askedOf(id, func(c *piece) bool { return dead || c.has })
		p.out.PassedOver = append(p.out.PassedOver,
			PassedOver{Peer: id, Chunks: len(stalled), Silent: silent, NoChunk: noChunk})
		p.giveUp(id, stalled)
	}
	p.pump(now)
}

// listen notes what was heard of a peer, and wants a sign of life of one that is silent for so long.
func (p *Participant) listen(
	id peer.ID, s *contact, every time.Duration, now time.Time, heard func(peer.ID) int64,
) {
	bytes := heard(id)
	if bytes != s.bytes {
		if !s.unanswered.IsZero() {
			lag := now.Sub(s.unanswered)
			s.lag, p.lag, s.unanswered = max(lag, s.lag-s.lag/8), max(lag, p.lag-p.lag/32), time.Time{}
		}
		s.bytes, s.heard = bytes, now
	}
	if bytes-s.mark >= flow {
		s.mark, s.flowed = bytes, now
	}
	if every = min(every, p.cfg.PeerSilence/4); now.Sub(s.heard) > every && now.Sub(s.pinged) > every {
		s.pinged = now
		if s.unanswered.IsZero() {
			s.unanswered = now
		}
		p.out.Pings = append(p.out.Pings, id)
	}
}

// ignoresPings reports whether a peer has not answered for much longer than it and others took so far. Where machines
// are slow, answers are, and so is this.
func (p *Participant) ignoresPings(s *contact, now time.Time) bool {
	slowest := max(s.lag, p.lag)
	return slowest > 0 && !s.unanswered.IsZero() && now.Sub(s.unanswered) > max(farLonger*slowest, p.cfg.shortSilence())
}

// askAgain repeats the wants of a peer that is alive and has sent next to nothing for a while, in case one was lost on
// the way. While bytes flow it would only have sent twice what is under way.
func (p *Participant) askAgain(id peer.ID, s *contact, now time.Time) {
	every := p.cfg.PeerPatience / 6
	if min(now.Sub(s.moved), now.Sub(s.flowed), now.Sub(s.again)) < every {
		return
	}
	s.again = now
	for _, i := range p.askedOf(id, func(*piece) bool { return true }) {
		p.want(i)
	}
}

// askedOf lists the chunks that are asked of a peer.
func (p *Participant) askedOf(id peer.ID, which func(*piece) bool) (out []int) {
	for i := range p.pieces {
		if c := &p.pieces[i]; c.asked == id && which(c) {
			out = append(out, i)
		}
	}
	return out
}

// Lost tells that a peer will not send a block: it cannot be asked, or does not have it.
func (p *Participant) Lost(now time.Time, from peer.ID, sum Sum) {
	var lost []int
	for _, i := range p.bySum[sum] {
		if p.pieces[i].asked == from {
			lost = append(lost, i)
		}
	}
	p.giveUp(from, lost)
	p.pump(now)
}

// PassOver gives up on whom chunk i is asked of.
func (p *Participant) PassOver(now time.Time, i int) {
	p.giveUp(p.pieces[i].asked, []int{i})
	p.pump(now)
}

// giveUp reports a peer that did not send chunks.
func (p *Participant) giveUp(from peer.ID, indexes []int) {
	var r Report
	for _, i := range indexes {
		c := &p.pieces[i]
		if c.arriving {
			continue
		}
		p.unask(i) // bySum stays: should the block come late after all, it is welcome
		p.out.Stalled++
		r.Suspects = append(r.Suspects, Suspicion{Index: i, From: from})
		if c.from != from { // the coordinator has named another meanwhile
			p.todo.Set(uint(i))
		}
	}
	p.report(r)
}
