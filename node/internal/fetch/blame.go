package fetch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/swarm"
)

// try is how a fetch comes by a blob.
type try uint8

const (
	// firstTry: all who fetch it read a part of it from the registry, and have the rest from each other.
	firstTry try = iota
	// electedTry: what was gathered so did not match the digest. In a room of their own those who were misled elect one
	// who reads all of it for them, so that one more copy leaves the registry, and not one for each. What the others
	// gathered they take from their own disk, chunk by chunk, where the one who reads claims the same.
	electedTry
	// reelectedTry: that did not match either, as where the registry misleads the one who was elected. Another is, who
	// comes without the first: that one knows that what it read itself is wrong.
	reelectedTry
	// loneTry: that did not match either. Peers are not asked.
	loneTry
)

// elects reports whether one reads for all.
func (t try) elects() bool { return t == electedTry || t == reelectedTry }

// suspect is a claim in a blob that did not match its digest, what it was signed for, and the coordinator that passed
// it on.
type suspect struct {
	claim       schedule.Claim
	plan        swarm.Plan
	coordinator peer.ID
}

// charge is that a blob did not match its digest: by whose claims, and when. Who was wrong shows once the whole is
// known.
type charge struct {
	digest    digest.Digest
	grain     content.Grain
	begun, at time.Time // when the fetch of it began, and when it did not match
	suspects  []suspect
}

// open reports whether it is to be found out who was wrong.
func (c *charge) open() bool { return c != nil && len(c.suspects) > 0 }

// mismatch ends a fetch whose bytes are not the blob's.
func (f *fetch) mismatch(err error) {
	now, self := time.Now(), f.fr.opts.Swarm.ID()
	f.mu.Lock()
	told, all := 0, f.part.Len()
	first := f.err == nil && !f.verified // of several who read through one window
	if first && f.charge == nil {
		f.charge = &charge{digest: f.digest, grain: f.grain, begun: f.start, at: now}
	}
	f.part.Claims(func(c schedule.Claim, coordinator peer.ID) {
		if c.By != self {
			told++
		}
		if first {
			f.charge.suspects = append(f.charge.suspects, suspect{c, f.plan(), coordinator})
		}
	})
	f.misled = told > 0 || f.sizeTold || f.sizeWrong
	misled, own := f.misled, !f.misled && f.tally.kept == 0
	asked, registry := slices.Clone(f.askers.callers), f.req.Repository.Registry
	f.mu.Unlock()
	for _, a := range asked {
		f.fr.opts.Upstream.Distrust(content.Request{Repository: a.repo, File: a.file, Digest: f.digest})
	}
	if own && f.ended() == nil {
		f.fr.doubts.misled(now, registry)
	}
	f.fr.sizes.Remove(f.digest)
	err = fmt.Errorf("%w (%d of %d chunks by peers' word)", err, told, all)
	if misled {
		err = fmt.Errorf("%w: %w", err, content.ErrMisled)
	}
	f.fail(err)
}

// wrongSize does what mismatch does where it is the size that is wrong.
func (f *fetch) wrongSize(err error) {
	f.mu.Lock()
	f.sizeWrong = true
	f.mu.Unlock()
	f.mismatch(err)
}

// again drops what does not match and begins the next try, so that the next caller gets the right bytes and those who
// misled this node can be told from those who were misled. nil: upstream cannot be asked, or all was its own word
// already.
func (f *fetch) again() *fetch {
	f.mu.Lock()
	ing, misled := f.ing, f.misled
	// Whoever names a size for which there is no room makes it a window, and would be asked again and again.
	window := f.window != nil && !f.sizeWrong
	next := f.try + 1
	if f.sizeWrong { // which one word is enough for, and upstream alone knows
		next = loneTry
	}
	f.ing = nil // readers see it gone
	upstream := f.askers.next() != nil
	askers := f.askers.anew(next == loneTry) // its own: runs of f may still end
	f.mu.Unlock()
	last := f.try == loneTry || window || !misled || !upstream || f.fr.ctx.Err() != nil
	if ing != nil {
		end := ing.Discard
		if !last && next.elects() {
			end = ing.Doubt
		}
		if err := end(); err != nil {
			f.fr.log.Warn("ingest not discarded", "digest", f.digest, "error", err)
			return nil
		}
	}
	if last {
		return nil
	}
	req := f.req
	req.Size = 0 // it may have been the size that was wrong
	return startFetch(f.ctx, f.fr, req, f.source, true, func(g *fetch) {
		g.try, g.charge, g.readers, g.askers = next, f.charge, 0, askers
		g.grain = f.grain // or what was claimed could not be compared
		if next.elects() {
			g.keptOf = f.keptOf // where the chunks are that may be right
		}
		g.room = digest.SHA256.FromString("again\x00" + f.room.String())
	})
}

// recall takes chunk i from what the try before has left, in place of asking a peer for it. It reports whether the
// chunk is there with the hash that is claimed now.
func (f *fetch) recall(i int, c cid.Cid) bool {
	f.mu.Lock()
	ing := f.ing
	f.mu.Unlock()
	if !f.try.elects() || ing == nil {
		return false
	}
	buf, done := f.buffer()
	defer done()
	_, n := f.cut.Range(i)
	if !ing.Recall(i, c, buf[:n]) {
		return false
	}
	f.arrived(f.fr.opts.Swarm.ID(), c, buf[:n], fromHere) // no peer has sent it
	f.fr.opts.Swarm.Forget(c, f)                          // one may have been asked when the disk did not give it
	return true
}

// settle finds out whose claims differ from what is right. A claim that its author did not sign was forged by the
// coordinator, which passes on none that it has not checked.
//
// Where this node was wrong and another was not, the registry misleads this node, unless it has given this node all of
// the blob since: own. Where all were wrong it has misled everyone, and who of them reads for the others makes no
// difference.
func (fr *Fetcher) settle(c *charge, registry string, own bool, chunks int, right func(i int) schedule.Sum) {
	self := fr.opts.Swarm.ID()
	truthful := map[peer.ID]bool{}
	wrong := map[peer.ID]schedule.Claim{}                        // as it should have been
	forgers, forged := map[peer.ID]bool{}, map[[2]peer.ID]bool{} // by coordinator, and by whom it names as well
	var who []peer.ID
	for _, s := range c.suspects {
		i, by := s.claim.Index, s.claim.By
		if i < 0 || i >= chunks {
			continue
		}
		if right(i) == s.claim.Sum {
			truthful[by] = true
			continue
		}
		pair := [2]peer.ID{s.coordinator, by}
		if _, known := wrong[by]; known || forged[pair] { // one signature of each is enough
			continue
		}
		if err := swarm.VerifyClaim(s.plan, s.claim); err != nil {
			if forged[pair] = true; !forgers[s.coordinator] {
				forgers[s.coordinator] = true
				fr.log.Error("coordinator forged a claim", "digest", c.digest, "peer", s.coordinator, "error", err)
				fr.opts.Swarm.Ban(s.coordinator, "forged-claim")
			}
			continue
		}
		wrong[by] = schedule.Claim{Index: i, Sum: right(i), By: by}
		who = append(who, by)
	}
	if len(who) == 0 {
		return
	}
	maps.DeleteFunc(truthful, func(by peer.ID, _ bool) bool { return slices.Contains(who, by) })
	if slices.Contains(who, self) && len(truthful) > 0 && !own {
		fr.doubts.misled(time.Now(), registry)
	}
	fr.wg.Go(func() { fr.blame(c, registry, who, wrong) })
}

// blame bans who says to hold the whole of a blob, and so to have checked its digest, and has a wrong chunk of it.
// Whoever else claimed one may have been misled by the registry as well as lie: that is a doubt, see doubts. It is none
// where the registry has misled this node too.
func (fr *Fetcher) blame(c *charge, registry string, who []peer.ID, wrong map[peer.ID]schedule.Claim) {
	var doubted []peer.ID
	for _, p := range who {
		switch {
		case p == fr.opts.Swarm.ID():
		case fr.insists(c, p, wrong[p]):
			fr.log.Error("peer holds a blob with a wrong chunk", "digest", c.digest, "peer", p, "chunk", wrong[p].Index)
			fr.m.wrong.WithLabelValues("held").Inc()
			fr.opts.Swarm.Ban(p, "wrong-claim")
		default:
			fr.log.Warn("peer claimed a wrong chunk: it was misled by the registry, or lies", "digest", c.digest,
				"peer", p, "registry", registry, "chunk", wrong[p].Index)
			fr.m.wrong.WithLabelValues("read").Inc()
			doubted = append(doubted, p)
		}
	}
	if _, misled := wrong[fr.opts.Swarm.ID()]; misled {
		return
	}
	for _, p := range fr.doubts.wrong(time.Now(), c.begun, registry, doubted) {
		fr.log.Error("peer claims wrong chunks again and again, and nobody else does", "peer", p, "registry", registry)
		fr.opts.Swarm.Ban(p, "wrong-claim")
	}
}

// insists reports whether a peer says that it holds the whole blob, with another chunk than is right.
func (fr *Fetcher) insists(c *charge, p peer.ID, right schedule.Claim) bool {
	for range 3 {
		claims, err := fr.opts.Swarm.HeldBy(fr.ctx, p, swarm.Plan{Digest: c.digest, Grain: c.grain})
		switch {
		case err == nil:
			return right.Index >= len(claims) || claims[right.Index].Sum != right.Sum
		case errors.Is(err, content.ErrNotFound) || errors.Is(err, context.Canceled):
			return false
		}
	}
	return false // one that does not answer is not believed anyway
}

// mayShare reports whether upstream may be asked for others too.
func (k *askers) mayShare() bool {
	k.withheld = false
	k.withheld = k.wary()
	return k.next() != nil && !k.withheld
}

// wary reports whether the registry is one to read from only what nobody else has, and for nobody else. The participant
// may have been told so before the registry was found to be right again, and goes on without it.
func (k *askers) wary() bool {
	a := k.next()
	return a != nil && !k.seceded && (k.withheld || k.doubts.wary(time.Now(), a.repo.Registry))
}

// secede has a wary fetch go on by itself, for the others do not have what it needs. It reports whether it does now.
func (k *askers) secede() (now bool) {
	now = k.wary()
	k.seceded = k.seceded || now
	return now
}

var _ swarm.Sink = (*fetch)(nil)

var _ content.Reader = (*reader)(nil)
