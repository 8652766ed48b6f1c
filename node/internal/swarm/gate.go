package swarm

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// gate is the libp2p connection gater. A peer's ID is proven by the TLS handshake, so a connection is refused right
// after it, before any stream can open.
type gate struct {
	mu       sync.RWMutex
	open     bool
	admitted map[peer.ID]struct{}
	banned   map[peer.ID]time.Time
}

func newGate(open bool) *gate {
	return &gate{open: open, admitted: map[peer.ID]struct{}{}, banned: map[peer.ID]time.Time{}}
}

func (g *gate) admits(p peer.ID) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if until, ok := g.banned[p]; ok && time.Now().Before(until) {
		return false
	}
	_, ok := g.admitted[p]
	return ok || g.open
}

func (g *gate) admit(peers []peer.ID) {
	set := make(map[peer.ID]struct{}, len(peers))
	for _, p := range peers {
		set[p] = struct{}{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.admitted = set
}

// ban refuses p until then. It reports whether that is new: one that is banned for as long already is not banned anew.
func (g *gate) ban(p peer.ID, until time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for q, t := range g.banned {
		if now.After(t) {
			delete(g.banned, q)
		}
	}
	before, banned := g.banned[p]
	if banned && until.After(now) && until.Sub(before) < time.Minute {
		return false
	}
	g.banned[p] = until
	return true
}

// InterceptPeerDial refuses to dial a peer that is not admitted.
func (g *gate) InterceptPeerDial(p peer.ID) bool { return g.admits(p) }

// InterceptAddrDial has nothing to add to InterceptPeerDial.
func (g *gate) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }

// InterceptAccept lets a connection come as far as the handshake that proves its peer ID.
func (g *gate) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured refuses a connection whose proven peer ID is not admitted.
func (g *gate) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return g.admits(p)
}

// InterceptUpgraded asks again, for admission may have been withdrawn during the handshake.
func (g *gate) InterceptUpgraded(c network.Conn) (bool, control.DisconnectReason) {
	return g.admits(c.RemotePeer()), 0
}
