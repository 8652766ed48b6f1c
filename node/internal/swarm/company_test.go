package swarm

import (
	"context"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

// peerMemory is what a node remembers across restarts.
type peerMemory struct {
	mu    sync.Mutex
	peers []peer.AddrInfo
}

func (m *peerMemory) use(o *Options) {
	o.LoadPeers = func(context.Context) []peer.AddrInfo {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.peers
	}
	o.SavePeers = func(_ context.Context, peers []peer.AddrInfo) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.peers = peers
	}
}

func (m *peerMemory) known() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.peers)
}

// The first machine has no one to start from. The others have one another, so that nothing but its absence makes them
// look for it.
func TestFirstMachine_ThatReturnsWithoutMemoryIsMetByThoseThatNameIt(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	as := func(listen []ma.Multiaddr) func(*Options) {
		return func(o *Options) { o.Identity, o.Listen = key, listen }
	}
	first := newTestSwarm(t, as([]ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}))
	others := make([]*testSwarm, 4)
	for i := range others {
		others[i] = newTestSwarm(t, startingFrom(first))
	}
	for _, s := range others {
		eventually(t, "a full mesh", func() bool { return len(s.Peers()) == len(others) })
	}
	listen := first.Addrs()
	require.NoError(t, first.Close())
	for _, s := range others {
		eventually(t, "gone", func() bool { return len(s.Peers()) == len(others)-1 })
	}
	again := newTestSwarm(t, as(listen))
	eventually(t, "met again", func() bool { return len(again.Peers()) == len(others) })
}

func TestMemory_APeerIsRememberedSoonAfterItHasCome(t *testing.T) {
	t.Parallel()
	var memory peerMemory
	first := newTestSwarm(t, memory.use)
	other := newTestSwarm(t, startingFrom(first))
	eventually(t, "remembered", func() bool { return memory.known() == 1 })
	memory.mu.Lock()
	defer memory.mu.Unlock()
	require.Equal(t, other.ID(), memory.peers[0].ID)
	require.Equal(t, other.Addrs(), memory.peers[0].Addrs, "where it listens, and not where it came from")
}

func TestLonely_IsANodeThatKnowsOfOthersAndMeetsNone(t *testing.T) {
	t.Parallel()
	gone := peer.AddrInfo{ID: somePeer(t), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1")}}
	memory := peerMemory{peers: []peer.AddrInfo{gone}}
	require.False(t, newTestSwarm(t).Lonely(), "it knows of nobody")
	require.True(t, newTestSwarm(t, memory.use).Lonely())
	a := newTestSwarm(t)
	b := newTestSwarm(t, startingFrom(a))
	eventually(t, "connected", func() bool { return len(b.Peers()) == 1 })
	require.False(t, b.Lonely())
	require.NoError(t, a.Close())
	eventually(t, "alone again", b.Lonely)
	b.mu.Lock()
	b.aloneSince = b.aloneSince.Add(-lonelyFor)
	b.mu.Unlock()
	require.False(t, b.Lonely(), "the others may be gone for good")
}
