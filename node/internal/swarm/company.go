package swarm

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// enoughPeers are those with whom a node is not at risk of being left alone: it does not look for bootstrap peers
	// that are away.
	enoughPeers = 32
	// againFirst and againAtMost bound how long it waits between two tries: a machine that was away is met within
	// seconds.
	againFirst, againAtMost = time.Second, 15 * time.Second
	// rememberAfter is how long after a peer has come those connected are remembered: by then it has said where it
	// listens.
	rememberAfter = time.Second
	// rememberEvery is how often they are remembered at most.
	rememberEvery = 10 * time.Second
	// remembered is how many.
	remembered = 20
	// lonelyFor is for how long a node that knows of others and has met none is not ready. They may be gone for good.
	lonelyFor = 2 * time.Minute
)

// keepCompany meets bootstrap peers again that were away, and remembers who is here. boxo's service does neither while
// there are others: the first machine of a swarm, which has no one to start from, would stay alone after a restart
// until the others looked for it.
func (s *Swarm) keepCompany(ctx context.Context) {
	wait := againFirst
	again := time.NewTimer(wait)
	defer again.Stop()
	var remember <-chan time.Time
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.company:
			if remember == nil {
				remember = time.After(max(rememberAfter, rememberEvery-time.Since(last)))
			}
			wait = againFirst
			again.Reset(wait)
		case <-remember:
			remember, last = nil, time.Now()
			s.remember(ctx)
		case <-again.C:
			if missing := s.missing(); len(missing) > 0 && s.connect(ctx, missing) > 0 {
				wait = againFirst
				s.refresh(ctx)
			} else {
				wait = min(2*wait, againAtMost)
			}
			again.Reset(wait)
		}
	}
}

// missing are the bootstrap peers, and those remembered where no one is here, that are not connected, if this node has
// few others.
func (s *Swarm) missing() []peer.AddrInfo {
	here := len(s.host.Network().Peers())
	if here >= enoughPeers {
		return nil
	}
	peers := slices.Clone(s.bootstrapPeers())
	if here == 0 && s.opts.LoadPeers != nil {
		peers = append(peers, s.opts.LoadPeers(s.ctx)...)
	}
	return slices.DeleteFunc(peers, func(p peer.AddrInfo) bool {
		return p.ID == s.host.ID() || s.host.Network().Connectedness(p.ID) == network.Connected
	})
}

// remember saves some of the connected peers, with the addresses at which they listen.
func (s *Swarm) remember(ctx context.Context) {
	if s.opts.SavePeers == nil {
		return
	}
	var peers []peer.AddrInfo
	for _, p := range s.host.Network().Peers() {
		if info := s.host.Peerstore().PeerInfo(p); len(info.Addrs) > 0 && s.admission.admits(p) {
			peers = append(peers, info)
		}
	}
	if len(peers) == 0 {
		return // those of before may come back
	}
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	s.opts.SavePeers(ctx, peers[:min(len(peers), remembered)])
}

// Lonely reports whether this node knows of others and is connected to none, for less than a few minutes: what it does
// then it does without them.
func (s *Swarm) Lonely() bool {
	if len(s.host.Network().Peers()) > 0 {
		return false
	}
	s.mu.Lock()
	since := s.aloneSince
	s.mu.Unlock()
	return time.Since(since) < lonelyFor && len(s.missing()) > 0
}
