package bitswapnet

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/boxo/bitswap/message"
	"github.com/ipfs/boxo/bitswap/network"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	p2p "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// receiver copies what it is handed.
type receiver struct {
	blocks chan []byte
	errors chan error
}

func newReceiver() receiver { return receiver{make(chan []byte, 16), make(chan error, 16)} }

func (r receiver) ReceiveMessage(_ context.Context, _ peer.ID, m message.BitSwapMessage) {
	for _, b := range m.Blocks() {
		r.blocks <- bytes.Clone(b.RawData())
	}
}
func (r receiver) ReceiveError(err error) { r.errors <- err }
func (receiver) PeerConnected(peer.ID)    {}
func (receiver) PeerDisconnected(peer.ID) {}

type lent struct {
	blocks.Block
	released chan struct{}
}

func (l lent) Release() { close(l.released) }

func newHost(t *testing.T) host.Host {
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(),
		libp2p.DisableMetrics())
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// connected are two hosts, the network of the first, and what receives from it on the second.
func connected(t *testing.T) (a, b host.Host, from *Network, r receiver) {
	a, b = newHost(t), newHost(t)
	from = New(a, nil)
	return a, b, from, start(t, from, New(b, nil))
}

// start starts both sides, connects the first to the other, and returns the other's receiver.
func start(t *testing.T, from, to network.BitSwapNetwork) receiver {
	r, h := newReceiver(), to.Host()
	from.Start(newReceiver())
	t.Cleanup(from.Stop)
	to.Start(r)
	t.Cleanup(to.Stop)
	require.NoError(t, from.Connect(t.Context(), peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}))
	return r
}

func take[T any](t *testing.T, c <-chan T) T {
	select {
	case v := <-c:
		return v
	case <-time.After(time.Minute):
		require.FailNow(t, "nothing came within a minute")
		panic("unreachable")
	}
}

func TestBlocksReachTheOtherSideWhoeverWroteIt(t *testing.T) {
	t.Parallel()
	own := func(h host.Host) network.BitSwapNetwork { return New(h, nil) }
	boxo := func(h host.Host) network.BitSwapNetwork { return bsnet.NewFromIpfsHost(h) }
	for name, sides := range map[string][2]func(host.Host) network.BitSwapNetwork{
		"own to own":  {own, own},
		"own to boxo": {own, boxo},
		"boxo to own": {boxo, own},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := newHost(t), newHost(t)
			from, to := sides[0](a), sides[1](b)
			r := start(t, from, to)
			for range 3 { // so that buffers are used again
				data := make([]byte, 1<<20)
				_, _ = rand.Read(data)
				m := message.New(false)
				m.AddBlock(block(t, data, cid.Raw))
				require.NoError(t, from.SendMessage(t.Context(), b.ID(), m))
				require.True(t, bytes.Equal(data, take(t, r.blocks)))
			}
			require.EqualValues(t, 3, from.Stats().MessagesSent)
			require.EqualValues(t, 3, to.Stats().MessagesRecvd)
		})
	}
}

func TestLentBlocksAreReleasedWhetherTheyWereSentOrNot(t *testing.T) {
	t.Parallel()
	a, b, from, _ := connected(t)
	send := func(data string) (lent, error) {
		l := lent{block(t, []byte(data), cid.Raw), make(chan struct{})}
		m := message.New(false)
		m.AddBlock(l)
		return l, from.SendMessage(t.Context(), b.ID(), m)
	}
	l, err := send("sent")
	require.NoError(t, err)
	take(t, l.released)
	require.NoError(t, b.Close())
	require.NoError(t, a.Network().ClosePeer(b.ID()))
	l, err = send("not sent")
	require.Error(t, err)
	take(t, l.released)
}

func TestWhatIsNoMessageEndsItsStreamOnly(t *testing.T) {
	t.Parallel()
	a, b, from, r := connected(t)
	s, err := a.NewStream(t.Context(), b.ID(), protocols...)
	require.NoError(t, err)
	_, err = s.Write([]byte{3, 0x1a, 0x05, 0x00})
	require.NoError(t, err)
	require.ErrorContains(t, take(t, r.errors), "Bitswap message")
	m := message.New(false)
	m.AddBlock(block(t, []byte("still here"), cid.Raw))
	require.NoError(t, from.SendMessage(t.Context(), b.ID(), m))
	require.Equal(t, "still here", string(take(t, r.blocks)))
}

func TestAStreamThatTheOtherSideHasEndedIsReplaced(t *testing.T) {
	t.Parallel()
	a, b, from, r := connected(t)
	send := func(data string) {
		m := message.New(false)
		m.AddBlock(block(t, []byte(data), cid.Raw))
		require.NoError(t, from.SendMessage(t.Context(), b.ID(), m))
		require.Equal(t, data, string(take(t, r.blocks)))
	}
	bitswap := func(h host.Host) (out []p2p.Stream) {
		for _, c := range h.Network().Conns() {
			for _, s := range c.GetStreams() {
				if slices.Contains(protocols, s.Protocol()) {
					out = append(out, s)
				}
			}
		}
		return out
	}
	for i := range 10 {
		send(fmt.Sprint("one after another ", i))
	}
	open := bitswap(a)
	require.Len(t, open, 1, "messages that follow one another share a stream")
	require.NoError(t, open[0].Reset()) // as if the word of the other side's reset had come
	require.Error(t, take(t, r.errors))
	send("after a reset")
	require.NoError(t, a.Network().ClosePeer(b.ID()))
	require.NoError(t, from.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}))
	send("on a new connection")
	from.Stop()
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Empty(c, bitswap(b)) }, time.Minute, time.Millisecond)
}

// A block that is being sent, and the worker that sends it, must not be kept as long by one that takes nothing as by
// one that is slow, who for this block has a minute and a half.
func TestAPeerThatTakesNothingIsGivenUp(t *testing.T) {
	t.Parallel()
	a, b := newHost(t), newHost(t)
	b.SetStreamHandler(protocols[0], func(p2p.Stream) {})
	require.NoError(t, a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}))
	m := message.New(true)
	m.AddBlock(block(t, make([]byte, 1<<20), cid.Raw))
	ctx, cancel := context.WithCancel(t.Context())
	defer time.AfterFunc(time.Minute, cancel).Stop()
	require.Error(t, New(a, nil).SendMessage(ctx, b.ID(), m))
	require.NoError(t, ctx.Err(), "it took more than a minute")
}

func TestAPeerThatTakesNothingIsNotTriedTwice(t *testing.T) {
	t.Parallel()
	a, b := newHost(t), newHost(t)
	var opened atomic.Int32
	b.SetStreamHandler(protocols[0], func(p2p.Stream) { opened.Add(1) })
	require.NoError(t, a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}))
	n := New(a, nil)
	send := func(size int) error {
		m := message.New(false)
		m.AddBlock(block(t, make([]byte, size), cid.Raw))
		return n.SendMessage(t.Context(), b.ID(), m)
	}
	require.NoError(t, send(1), "the stream has room for little")
	require.Error(t, send(1<<20))
	require.EqualValues(t, 1, opened.Load(), "another stream would take as long again")
}
