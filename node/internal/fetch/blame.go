package fetch

import (
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/swarm"
)

// suspect is another peer's claim in a blob that did not match its digest, and the coordinator that passed it on.
type suspect struct {
	claim       schedule.Claim
	coordinator peer.ID
}

// mismatch ends a fetch whose bytes are not the blob's.
func (f *fetch) mismatch(err error) {
	f.mu.Lock()
	f.part.Hearsay(func(c schedule.Claim, coordinator peer.ID) {
		f.suspects = append(f.suspects, suspect{claim: c, coordinator: coordinator})
	})
	told, all := len(f.suspects), f.part.Len()
	asked := slices.Clone(f.askers.callers)
	f.mu.Unlock()
	for _, a := range asked {
		f.fr.opts.Upstream.Distrust(content.Request{Repository: a.repo, File: a.file, Digest: f.digest})
	}
	f.fr.sizes.Remove(f.digest)
	f.fail(fmt.Errorf("%w (%d of %d chunks by peers' word)", err, told, all))
}

// again drops what does not match and starts to read the blob from upstream alone, so that the next caller gets the
// right bytes and those who misled this node can be told from those who were misled. nil: upstream cannot be asked, or
// all was its own word already.
func (f *fetch) again() *fetch {
	f.mu.Lock()
	ing := f.ing
	f.ing = nil // readers see it gone
	misled := f.sizeTold || f.sizeWrong || len(f.suspects) > 0
	askers := f.askers.anew() // its own: runs of f may still end
	upstream := f.askers.next() != nil
	f.mu.Unlock()
	if ing != nil {
		if err := ing.Discard(); err != nil {
			f.fr.log.Warn("ingest not discarded", "digest", f.digest, "error", err)
			return nil
		}
	}
	if f.alone || !misled || !upstream || f.fr.ctx.Err() != nil {
		return nil
	}
	req := f.req
	req.Size = 0 // it may have been the size that was wrong
	return startFetch(f.fr, req, f.source, func(g *fetch) {
		g.alone, g.suspects, g.readers, g.askers = true, f.suspects, 0, askers
	})
}

// settleBlame bans those whose claims differ from what upstream sent. A claim that its author did not sign was forged
// by the coordinator, which passes on none that it has not checked.
func (f *fetch) settleBlame() {
	for _, s := range f.suspects {
		i := s.claim.Index
		if i < 0 || i >= f.ing.Len() || sumOf(f.ing.CID(i)) == s.claim.Sum {
			continue
		}
		if err := swarm.VerifyClaim(f.room, s.claim); err != nil {
			f.fr.log.Error("coordinator forged a claim", "digest", f.digest, "peer", s.coordinator, "error", err)
			f.fr.opts.Swarm.Ban(s.coordinator, "forged-claim")
			continue
		}
		f.fr.log.Error("peer claimed a wrong chunk", "digest", f.digest, "peer", s.claim.By, "chunk", i)
		f.fr.opts.Swarm.Ban(s.claim.By, "wrong-claim")
	}
}

var _ swarm.Sink = (*fetch)(nil)

var _ content.Reader = (*reader)(nil)
