// Package bitswapnet is boxo's Bitswap network with a codec that copies no block.
//
// boxo encodes a message into one buffer and decodes it into fresh memory for every block. With blocks of 1 MiB that is
// most of what an agent spends on moving bytes: two copies, and page faults in memory that is used once. The wire
// format allows better: a block's bytes are a field of their own, so they are written from where they are, and read in
// place, in a buffer that the next message uses again. Everything else is boxo's, and so is the format (Bitswap 1.1 and
// 1.2).
package bitswapnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ipfs/boxo/bitswap/message"
	"github.com/ipfs/boxo/bitswap/network"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	blocks "github.com/ipfs/go-block-format"
	"github.com/libp2p/go-libp2p/core/host"
	libp2p "github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

const (
	// piece is how many bytes a peer must take in pieceTimeout: about 100 kbit/s.
	piece        = 128 << 10
	pieceTimeout = 10 * time.Second
	// minSendTimeout is what the end of a stream may take.
	minSendTimeout = 10 * time.Second
	// maxSendTimeout is what the largest message may take.
	maxSendTimeout = 2 * time.Minute
)

// protocols are those whose messages carry the prefixes of their blocks' CIDs, newest first.
var protocols = []protocol.ID{bsnet.ProtocolBitswap, bsnet.ProtocolBitswapOneOne}

// Lent is a block whose bytes are lent: SendMessage releases it once they are on their way. RawData keeps its length
// then, but may hold other bytes.
type Lent interface {
	blocks.Block
	Release()
}

// Network is a network.BitSwapNetwork. The messages that it hands to receivers, and the bytes of their blocks, are
// theirs until ReceiveMessage returns.
type Network struct {
	network.BitSwapNetwork
	host      host.Host
	guard     Guard
	streams   streams
	events    *network.ConnectEventManager
	receivers []network.Receiver

	sent, received atomic.Uint64
}

var _ network.BitSwapNetwork = (*Network)(nil)

// New makes a network over h. guard bounds what peers may cost; nil: nothing does but the resource manager.
func New(h host.Host, guard Guard) *Network {
	if guard == nil {
		guard = lenient{}
	}
	events := network.NewConnectEventManager()
	return &Network{
		BitSwapNetwork: bsnet.NewFromIpfsHost(h, bsnet.SupportedProtocols(slices.Clone(protocols)),
			bsnet.WithConnectEventManager(events)),
		host: h, guard: guard, events: events, streams: streams{host: h, idle: map[peer.ID][]*idleStream{}},
	}
}

// Start begins to hand messages and changes of connections to the receivers. It is called once.
func (n *Network) Start(receivers ...network.Receiver) {
	n.receivers = receivers
	n.BitSwapNetwork.Start(receivers...)
	for _, p := range protocols {
		n.host.SetStreamHandler(p, n.receive) // in place of boxo's
	}
}

// Stop ends what Start began.
func (n *Network) Stop() {
	n.BitSwapNetwork.Stop()
	n.streams.closeIdle()
}

// Stats counts messages both ways.
func (n *Network) Stats() network.Stats {
	s := n.BitSwapNetwork.Stats()
	s.MessagesSent += n.sent.Load()
	s.MessagesRecvd += n.received.Load()
	return s
}

// SendMessage sends m to p, and releases the blocks that are lent.
func (n *Network) SendMessage(ctx context.Context, p peer.ID, m message.BitSwapMessage) error {
	defer func() {
		for _, b := range m.Blocks() {
			if l, ok := b.(Lent); ok {
				l.Release()
			}
		}
	}()
	s, used, err := n.streams.take(ctx, p)
	if err == nil {
		err = send(ctx, s, m)
	}
	if err != nil && used && ctx.Err() == nil && !timedOut(err) {
		// The other side may have ended it meanwhile, which says nothing about the next.
		if s, err = n.streams.open(ctx, p); err == nil {
			err = send(ctx, s, m)
		}
	}
	if err != nil {
		return err
	}
	n.sent.Add(1)
	n.streams.put(p, s)
	return nil
}

// timedOut reports whether the other side took nothing for too long: it would take nothing of another stream either.
func timedOut(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// send writes m to a stream, and resets one that does not take it.
func send(ctx context.Context, s libp2p.Stream, m message.BitSwapMessage) error {
	out := &steady{stream: s, end: time.Now().Add(maxSendTimeout)}
	if d, ok := ctx.Deadline(); ok && d.Before(out.end) {
		out.end = d
	}
	err := encode(out, m)
	if err != nil {
		_ = s.Reset()
	}
	return err
}

// steady writes to a stream as long as the peer takes a piece in pieceTimeout, so that one that has fallen silent does
// not keep a block, and the worker that sends it, for as long as a slow one may.
type steady struct {
	stream libp2p.Stream
	end    time.Time
}

func (w *steady) Write(p []byte) (total int, err error) {
	for err == nil && len(p) > 0 {
		deadline := time.Now().Add(pieceTimeout)
		if w.end.Before(deadline) {
			deadline = w.end
		}
		_ = w.stream.SetWriteDeadline(deadline) // a stream that takes none fails at the write
		var n int
		n, err = w.stream.Write(p[:min(len(p), piece)])
		total, p = total+n, p[n:]
	}
	return total, err
}

// closeStream does not wait: to close a stream is to read the other side's agreement on the protocol, and a peer that
// has fallen silent must not hold up whoever sends to others.
func closeStream(s libp2p.Stream) {
	_ = s.SetReadDeadline(time.Now().Add(minSendTimeout))
	go func() { _ = s.Close() }()
}

// receive reads the messages of a stream that a peer has opened.
func (n *Network) receive(s libp2p.Stream) {
	defer closeStream(s)
	p := s.Conn().RemotePeer()
	if err := s.Scope().SetService(Service); err != nil {
		_ = s.Reset()
		n.guard.Blame(p, RuleStreams, err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	in := frames{stream: s}
	for {
		frame, release, err := in.next()
		if err == nil {
			err = n.deliver(ctx, p, frame)
			release()
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			_ = s.Reset()
			if rule := ruleOf(err); rule != "" {
				n.guard.Blame(p, rule, err)
			}
			for _, r := range n.receivers {
				r.ReceiveError(err)
			}
		}
		return
	}
}

// wantWork is what a want costs, in microseconds.
const wantWork = 5

func (n *Network) deliver(ctx context.Context, p peer.ID, frame []byte) error {
	m, err := decode(frame)
	if err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	if wants := len(m.Wantlist()); wants > 0 {
		if err := n.guard.Charge(ctx, p, wants*wantWork); err != nil {
			return err
		}
	}
	n.received.Add(1)
	n.events.OnMessage(p)
	for _, r := range n.receivers {
		r.ReceiveMessage(context.Background(), p, m) //nolint:contextcheck // a message outlives the read that it came from
	}
	return nil
}

type lenient struct{}

func (lenient) Charge(context.Context, peer.ID, int) error { return nil }
func (lenient) Blame(peer.ID, string, error)               {}
