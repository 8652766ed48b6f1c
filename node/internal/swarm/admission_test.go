package swarm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// newStranger is a libp2p host that follows rules of its own, as an attacker's would.
func newStranger(t *testing.T) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.Identity(newKey(t)), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(libp2ptls.ID, libp2ptls.New), libp2p.DisableRelay(),
		libp2p.DisableMetrics())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

// What agents say to each other is read and changed by nobody on the way.
func TestTransport_NothingButTLSIsSpokenAndThatWithNobodyElse(t *testing.T) {
	t.Parallel()
	s := newTestSwarm(t)
	for name, security := range map[string]libp2p.Option{
		"plain text": libp2p.NoSecurity,
		"Noise":      libp2p.Security(noise.ID, noise.New),
	} {
		h, err := libp2p.New(libp2p.Identity(newKey(t)), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
			libp2p.Transport(tcp.NewTCPTransport), security, libp2p.DisableRelay(), libp2p.DisableMetrics())
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, h.Close()) })
		require.Error(t, h.Connect(t.Context(), s.info()), "who speaks %s is not heard", name)
		require.Error(t, s.host.Connect(t.Context(), peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}), "nor told, in %s", name)
	}
	friend, between := newStranger(t), newStranger(t)
	require.Error(t, s.host.Connect(t.Context(), peer.AddrInfo{ID: friend.ID(), Addrs: between.Addrs()}),
		"who answers in the place of another")
	require.Error(t, between.Connect(t.Context(), peer.AddrInfo{ID: friend.ID(), Addrs: s.Addrs()}),
		"an agent in the place of another")
	require.NoError(t, s.host.Connect(t.Context(), peer.AddrInfo{ID: friend.ID(), Addrs: friend.Addrs()}))
	for _, c := range s.host.Network().ConnsToPeer(friend.ID()) {
		require.Equal(t, libp2ptls.ID, string(c.ConnState().Security))
	}
}

func admitting(ids ...peer.ID) func(*Options) {
	return func(o *Options) { o.Open, o.Admitted = false, ids }
}

// allProtocols are those that a node speaks.
var allProtocols = []protocol.ID{
	"/shoal/coordinate/2.0.0", "/shoal/map/2.0.0", "/shoal/tag/2.0.0", "/shoal/kad/1.0.0", "/ipfs/bitswap/1.2.0",
	"/ipfs/id/1.0.0", "/ipfs/ping/1.0.0",
}

// speak opens a stream of a protocol to s, sends something, and waits for s to take the stream up and end it.
func speak(ctx context.Context, h host.Host, s *testSwarm, p protocol.ID) error {
	if err := h.Connect(ctx, s.info()); err != nil {
		return err
	}
	stream, err := h.NewStream(ctx, s.ID(), p)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Reset() }()
	_ = stream.SetDeadline(time.Now().Add(time.Minute))
	return stream.CloseWrite()
}

func TestAPeerThatIsNotAdmittedGetsNoStream(t *testing.T) {
	t.Parallel()
	stranger, friend := newStranger(t), newStranger(t)
	s := newTestSwarm(t, admitting(friend.ID()))
	NewTags(s.Swarm, s.store.KV("tags"))
	for _, p := range allProtocols {
		t.Run(string(p), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			require.NoError(t, speak(ctx, friend, s, p), "the test itself must be able to get through")
			require.Error(t, speak(ctx, stranger, s, p))
			require.Empty(t, s.host.Network().ConnsToPeer(stranger.ID()))
		})
	}
}

func TestANodeDoesNotDialWhoIsNotAdmitted(t *testing.T) {
	t.Parallel()
	stranger := newStranger(t)
	s := newTestSwarm(t, admitting(), func(o *Options) {
		o.Bootstrap = []peer.AddrInfo{{ID: stranger.ID(), Addrs: stranger.Addrs()}}
	})
	<-s.Started()
	require.Empty(t, stranger.Network().Peers())
	require.Error(t, s.host.Connect(t.Context(), peer.AddrInfo{ID: stranger.ID(), Addrs: stranger.Addrs()}))
}

func TestAdmissionThatIsWithdrawnEndsTheConnection(t *testing.T) {
	t.Parallel()
	friend := newStranger(t)
	s := newTestSwarm(t, admitting(friend.ID()))
	require.NoError(t, speak(t.Context(), friend, s, "/shoal/map/2.0.0"))
	s.SetAdmitted(nil)
	eventually(t, "closed", func() bool { return friend.Network().Connectedness(s.ID()) != network.Connected })
	require.Error(t, speak(t.Context(), friend, s, "/shoal/map/2.0.0"))

	s.SetAdmitted([]peer.ID{friend.ID()})
	eventually(t, "admitted again", func() bool { return speak(t.Context(), friend, s, "/shoal/map/2.0.0") == nil })
}

func TestABannedPeerIsShutOutEvenOfAnOpenSwarm(t *testing.T) {
	t.Parallel()
	liar := newStranger(t)
	s := newTestSwarm(t)
	require.NoError(t, speak(t.Context(), liar, s, "/shoal/map/2.0.0"))
	s.Ban(liar.ID(), "wrong-claim")
	eventually(t, "closed", func() bool { return liar.Network().Connectedness(s.ID()) != network.Connected })
	require.Error(t, speak(t.Context(), liar, s, "/shoal/map/2.0.0"))
	require.Empty(t, s.host.Network().ConnsToPeer(liar.ID()))
}

func TestABanEndsWithItsTime(t *testing.T) {
	t.Parallel()
	a := newAdmission(true)
	p, other := somePeer(t), somePeer(t)
	a.ban(p, time.Now().Add(time.Hour))
	require.False(t, a.admits(p))
	require.True(t, a.admits(other))
	a.ban(p, time.Now().Add(-time.Second))
	require.True(t, a.admits(p))
}

// libp2p's own limits by subnet are for the public Internet; a cluster's nodes may well share one.
func TestEveryNodeOfASubnetMayConnect(t *testing.T) {
	t.Parallel()
	rm := newTestSwarm(t).host.Network().ResourceManager()
	for name, addr := range map[string]string{
		"IPv6 nodes of one /64":          "/ip6/fd00::%x/tcp/5052",
		"agents behind one IPv4 address": "/ip4/10.0.0.1/tcp/%d",
	} {
		for i := 1; i <= 20; i++ {
			c, err := rm.OpenConnection(network.DirInbound, true, ma.StringCast(fmt.Sprintf(addr, i)))
			require.NoError(t, err, "%s: connection %d", name, i)
			defer c.Done()
		}
	}
}

func TestNoOneBansItself(t *testing.T) {
	t.Parallel()
	s := newTestSwarm(t)
	s.Ban(s.ID(), "wrong-claim")
	require.True(t, s.admission.admits(s.ID()))
}

// What an admitted but broken peer sends ends its stream, and nothing else.
func TestGarbageOnAStreamEndsTheStream(t *testing.T) {
	t.Parallel()
	s := newTestSwarm(t, soon) // half a greeting is waited for
	NewTags(s.Swarm, s.store.KV("tags"))
	broken := newStranger(t)
	require.NoError(t, broken.Connect(t.Context(), s.info()))
	for _, p := range []protocol.ID{"/shoal/coordinate/2.0.0", "/shoal/map/2.0.0", "/shoal/tag/2.0.0"} {
		for name, raw := range map[string][]byte{
			"noise":                   {5, 0xff, 0xff, 0xff, 0xff, 0xff},
			"a frame too long":        {0xff, 0xff, 0xff, 0x7f},
			"a digest that is none":   {5, 0xa1, 0x01, 0x62, 'x', 'y'},
			"a field of a wrong type": {3, 0xa1, 0x01, 0xf5},
		} {
			if p == "/shoal/tag/2.0.0" && name == "a digest that is none" {
				continue // it is a registry's name there
			}
			stream, err := broken.NewStream(t.Context(), s.ID(), p)
			require.NoError(t, err)
			_ = stream.SetDeadline(time.Now().Add(time.Minute))
			_, err = stream.Write(raw)
			require.NoError(t, err)
			_, err = io.ReadAll(stream)
			require.Error(t, err, "%s: %s", p, name)
			require.NotErrorIs(t, err, context.DeadlineExceeded)
		}
	}
	stream, err := broken.NewStream(t.Context(), s.ID(), "/shoal/map/2.0.0")
	require.NoError(t, err)
	require.NoError(t, writeFrame(stream, mapQuery{Digest: string(digest.FromString("unknown"))}))
	var head mapHead
	require.NoError(t, readFrame(bufio.NewReader(stream), &head), "the next question is answered")
	require.False(t, head.Found)
}
