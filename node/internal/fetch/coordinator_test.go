package fetch

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/ipfs/boxo/bitswap/server"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/bitswapnet"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/swarm"
)

// frame is a message of the swarm's protocols as it goes over the wire: its fields are numbered from 1 on.
func frame(t testing.TB, fields ...any) []byte {
	numbered := map[int]any{}
	for i, v := range fields {
		numbered[i+1] = v
	}
	body, err := cbor.Marshal(numbered)
	require.NoError(t, err)
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...)
}

// newStranger is a libp2p host that speaks the swarm's protocols by rules of its own.
func newStranger(t *testing.T) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New), libp2p.DisableRelay(), libp2p.DisableMetrics())
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// enter connects a stranger to nodes once it has its handlers.
func enter(t *testing.T, h host.Host, nodes []*testNode) {
	t.Helper()
	for _, n := range nodes {
		require.NoError(t, h.Connect(t.Context(), n.info()))
	}
	connected(t, nodes, h.ID())
}

// A coordinator that passes on what a holder has not signed would have to answer for it.
func TestAHolderThatDoesNotSignItsClaimsHarmsNoOneElse(t *testing.T) {
	t.Parallel()
	const size = 8*chunk1 + 5
	o := newOrigin(t)
	d := o.add(t, size)
	nodes := newSwarm(t, o, 3)
	wrong := append([]byte(nil), o.Blob(d)...)
	wrong[3*chunk1] ^= 1
	l := newLie(t, d, wrong)
	h := newStranger(t)
	exchange := bitswapnet.New(h, nil)
	srv := server.New(t.Context(), exchange, l.blocks)
	exchange.Start(srv)
	t.Cleanup(func() { exchange.Stop(); srv.Close() })
	var sums []byte
	var signatures [][]byte
	for i := range l.maps[content.Pieces].Len() {
		hash := l.maps[content.Pieces].CID(i).Hash()
		sums = append(sums, hash[len(hash)-32:]...)
		signatures = append(signatures, make([]byte, 64))
	}
	found, none, part := frame(t, true, size, ""), frame(t, false, 0, ""), frame(t, sums, signatures)
	h.SetStreamHandler("/shoal/map-pieces/2.0.0", func(s network.Stream) {
		defer func() { _ = s.Close() }()
		in := bufio.NewReader(s)
		n, _ := binary.ReadUvarint(in)
		var query map[int]string
		if cbor.NewDecoder(io.LimitReader(in, int64(n))).Decode(&query) != nil || query[1] != string(d) {
			_, _ = s.Write(none)
			return
		}
		_, _ = s.Write(append(found, part...))
	})
	enter(t, h, nodes)
	pullAll(t, nodes, o.request(d), 0)
	bans := func() (sum float64) {
		for _, n := range nodes {
			sum += n.metric(t, "shoal_peer_bans_total")
		}
		return sum
	}
	eventually(t, "banned", func() bool { return bans() > 0 })
	for i, n := range nodes {
		for j, m := range nodes {
			require.True(t, i == j || n.knows(m.swarm.ID()), "node %d banned honest node %d", i, j)
		}
	}
}

// It welcomes the node, and then says nothing more.
func TestACoordinatorThatFallsSilentIsLeft(t *testing.T) {
	t.Parallel()
	const size = 4*chunk1 + 5
	o := newOrigin(t)
	n := newSwarm(t, o, 1, func(_ int, fo *Options, _ *swarm.Options) {
		fo.PeerSilence, fo.PeerPatience, fo.CoordinatorPatience = 2*time.Second, 3*time.Second, 3*time.Second
	})[0]
	h := newStranger(t)
	var asked atomic.Bool
	welcome := frame(t, []byte{}, [][]byte{}, "")
	h.SetStreamHandler("/shoal/coordinate-pieces/2.0.0", func(s network.Stream) {
		asked.Store(true)
		_, _ = s.Write(welcome)
		_, _ = io.Copy(io.Discard, s)
	})
	enter(t, h, []*testNode{n})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for !asked.Load() { // until a blob is one for it to coordinate
		d := o.add(t, size)
		data, err := n.read(ctx, o.request(d))
		require.NoError(t, err)
		require.Equal(t, d, digest.FromBytes(data))
	}
}

func TestFetch_ItsCoordinatorHearsThatAPeerHoldsTheBlob(t *testing.T) {
	t.Parallel()
	for _, held := range []bool{true, false} {
		fr, s, req, data := scripted(t, 2, nil)
		req.Held = held
		got := readAll(t, fr, req)
		session := s.next(t)
		require.Equal(t, held, session.joined.Held)
		session.orders <- schedule.Orders{Size: int64(len(data)), Leases: []schedule.Run{{First: 0, Count: 2}}}
		require.Equal(t, data, got())
	}
}
