package swarm

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// admission is the libp2p connection gater. A peer's ID is proven by the TLS handshake, so a connection is refused
// right after it, before any stream can open.
type admission struct {
	mu       sync.RWMutex
	open     bool
	admitted map[peer.ID]struct{}
	banned   map[peer.ID]time.Time
}

func newAdmission(open bool) *admission {
	return &admission{open: open, admitted: map[peer.ID]struct{}{}, banned: map[peer.ID]time.Time{}}
}

func (a *admission) admits(p peer.ID) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if until, ok := a.banned[p]; ok && time.Now().Before(until) {
		return false
	}
	_, ok := a.admitted[p]
	return ok || a.open
}

func (a *admission) admit(peers []peer.ID) {
	set := make(map[peer.ID]struct{}, len(peers))
	for _, p := range peers {
		set[p] = struct{}{}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.admitted = set
}

// ban refuses p until then. It reports whether that is new: one that is banned for as long already is not banned anew.
func (a *admission) ban(p peer.ID, until time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	for q, t := range a.banned {
		if now.After(t) {
			delete(a.banned, q)
		}
	}
	before, banned := a.banned[p]
	if banned && until.After(now) && until.Sub(before) < time.Minute {
		return false
	}
	a.banned[p] = until
	return true
}

// InterceptPeerDial refuses to dial a peer that is not admitted.
func (a *admission) InterceptPeerDial(p peer.ID) bool { return a.admits(p) }

// InterceptAddrDial has nothing to add to InterceptPeerDial.
func (a *admission) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }

// InterceptAccept lets a connection come as far as the handshake that proves its peer ID.
func (a *admission) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured refuses a connection whose proven peer ID is not admitted.
func (a *admission) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return a.admits(p)
}

// InterceptUpgraded asks again: admission may have been withdrawn during the handshake.
func (a *admission) InterceptUpgraded(c network.Conn) (bool, control.DisconnectReason) {
	return a.admits(c.RemotePeer()), 0
}
