package fetch

import (
	"slices"
	"time"

	"github.com/bits-and-blooms/bitset"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// source is a peer that chunks are asked of.
type source struct {
	asked  int       // chunks
	moved  time.Time // when it last sent one, or was first asked
	bytes  int64     // of any kind, heard from it
	heard  time.Time // when they last grew
	pinged time.Time
	again  time.Time // when its wants were sent once more
}

// lookAhead bounds how far the choice of the next want looks past chunks whose peer has enough to do.
const lookAhead = 512

// minWindow is how many chunks a fetch may ask for however many others run: the end of a large layer must not stop the
// config that comes with it.
const minWindow = 4

// assign takes in whom to ask for a chunk. The caller holds f.mu.
func (f *fetch) assign(a schedule.Assignment) {
	if a.Index < 0 || a.Index >= len(f.chunks) || a.From == f.fr.opts.Swarm.ID() || f.alone {
		return
	}
	ch := &f.chunks[a.Index]
	if ch.present {
		f.unsaid = append(f.unsaid, a.Index) // of an earlier try: the coordinator does not know yet
		return
	}
	ch.from, ch.root, ch.held, ch.via = a.From, a.Root, a.Held, f.coordinator()
	ch.claim, ch.claimed = a.Claim, true
	switch {
	case ch.asked == "":
	case a.Root && ch.asked != a.From:
		f.unask(a.Index) // others wait for this node now, and it may be one of them that it asked
	default:
		return // its answer is on the way; should it not come, the peer is passed over
	}
	if a.Root {
		f.roots.Set(uint(a.Index))
	} else {
		f.todo.Set(uint(a.Index))
	}
}

// pump asks for chunks as long as the windows allow: those that others wait for first, then those that readers are
// nearest to. The caller holds f.mu.
func (f *fetch) pump() {
	if f.err != nil || f.chunks == nil {
		return
	}
	f.pumpFrom(f.roots, 0)
	f.pumpFrom(f.todo, f.position)
	f.pumpFrom(f.todo, 0)
}

func (f *fetch) pumpFrom(set *bitset.BitSet, from uint) {
	window := max(minWindow, f.fr.opts.Window/max(1, int(f.fr.asking.Load())))
	looked := 0
	for u, ok := set.NextSet(from); ok && f.inFlight < window && looked < lookAhead; u, ok = set.NextSet(u + 1) {
		looked++
		ch := &f.chunks[u]
		if ch.present || ch.asked != "" {
			set.Clear(u)
			continue
		}
		s := f.peers[ch.from]
		if s == nil {
			s = &source{}
			f.peers[ch.from] = s
		}
		if s.asked >= f.fr.opts.PeerWindow {
			continue
		}
		if s.asked == 0 {
			now := time.Now()
			s.moved, s.heard = now, now
		}
		s.asked++
		f.inFlight++
		ch.asked = ch.from
		set.Clear(u)
		c := content.SumCID(ch.claim.Sum)
		if !slices.Contains(f.byCID[c], int(u)) {
			f.byCID[c] = append(f.byCID[c], int(u))
		}
		// Bitswap answers higher priorities first: what others wait for, then the order of the blob.
		priority := int32(len(f.chunks) - int(u))
		if ch.root {
			priority += int32(len(f.chunks))
		}
		f.fr.opts.Swarm.Want(ch.from, c, priority, ch.held, f)
	}
}

// Block takes a block that was asked for.
func (f *fetch) Block(from peer.ID, c cid.Cid, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	indexes := f.byCID[c]
	delete(f.byCID, c)
	for _, i := range indexes {
		f.unask(i)
		f.land(i, c, data, content.FromPeer)
		f.unsaid = append(f.unsaid, i)
		// Others wait for a root; and the coordinator for room to give orders, half of which is used up.
		if f.chunks[i].root || len(f.unsaid) >= 8 || len(f.unsaid) >= f.inFlight {
			f.said()
		}
	}
	if s := f.peers[from]; s != nil {
		s.moved = time.Now()
	}
	f.pump()
}

// Lost is told that a peer will not answer.
func (f *fetch) Lost(from peer.ID, c cid.Cid) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lost []int
	for _, i := range f.byCID[c] {
		if f.chunks[i].asked == from {
			lost = append(lost, i)
		}
	}
	f.giveUp(from, lost)
	f.pump()
}

// unask notes that chunk i is not asked of anyone any more. The caller holds f.mu.
func (f *fetch) unask(i int) {
	ch := &f.chunks[i]
	if ch.asked == "" {
		return
	}
	if s := f.peers[ch.asked]; s != nil {
		s.asked--
	}
	f.inFlight--
	ch.asked = ""
}

// giveUp reports a peer that did not send chunks. The caller holds f.mu.
func (f *fetch) giveUp(p peer.ID, indexes []int) {
	var r schedule.Report
	for _, i := range indexes {
		f.unask(i) // byCID stays: should the block come late after all, it is welcome
		f.fr.m.stalls.Inc()
		r.Suspects = append(r.Suspects, schedule.Suspicion{Index: i, From: p})
		if f.chunks[i].from != p { // the coordinator has named another meanwhile
			f.todo.Set(uint(i))
		}
	}
	f.tell(r)
}

// passOver gives up on peers that are dead or have sent no chunk for too long. The caller holds f.mu.
func (f *fetch) passOver(now time.Time) {
	for p, s := range f.peers {
		if s.asked == 0 || !f.stalls(p, s, now) {
			f.askAgain(p, s, now)
			continue
		}
		var stalled []int
		for i := range f.chunks {
			if f.chunks[i].asked == p {
				stalled = append(stalled, i)
			}
		}
		f.fr.log.Info("peer stalls", "digest", f.digest, "peer", p, "chunks", len(stalled),
			"silent", now.Sub(s.heard), "noChunk", now.Sub(s.moved))
		f.giveUp(p, stalled)
	}
	f.pump()
}

// askAgain repeats the wants of a peer that is alive and has sent no chunk for a while, in case one was lost on the way.
func (f *fetch) askAgain(p peer.ID, s *source, now time.Time) {
	every := f.fr.opts.PeerPatience / 6
	if s.asked == 0 || now.Sub(s.moved) < every || now.Sub(s.again) < every {
		return
	}
	s.again = now
	for i := range f.chunks {
		if f.chunks[i].asked == p {
			f.fr.opts.Swarm.Want(p, content.SumCID(f.chunks[i].claim.Sum), 1, f.chunks[i].held, f)
		}
	}
}

// stalls tells a peer that is dead from one that is slow. One that is silent is asked for a sign of life first.
func (f *fetch) stalls(p peer.ID, s *source, now time.Time) bool {
	if bytes := f.fr.opts.Swarm.HeardFrom(p); bytes != s.bytes {
		s.bytes, s.heard = bytes, now
	}
	silent, limit := now.Sub(s.heard), f.fr.opts.PeerSilence
	if silent > limit/4 && now.Sub(s.pinged) > limit/4 {
		s.pinged = now
		f.fr.opts.Swarm.Ping(p)
	}
	return silent > limit || now.Sub(s.moved) > f.fr.opts.PeerPatience
}
