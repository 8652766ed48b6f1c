// Package mallory is an admitted peer of the swarm that breaks every rule: it announces what it does not send, claims
// sizes and holdings that are not, coordinates by giving nothing to do, and answers wants with other bytes. What it
// sends is bounded; what that costs the agents is what a run watches.
package mallory

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/ipfs/boxo/bitswap/message"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multihash"
	"github.com/opencontainers/go-digest"
)

const (
	bitswap = protocol.ID("/ipfs/bitswap/1.2.0")
	prefix  = "/shoal"
	// bombs is how many streams of each kind are left open.
	bombs = 40
	// tib is a size that nobody has.
	tib = int64(1) << 40
)

// Run attacks until ctx ends. Digests are blobs that it claims to have.
func Run(ctx context.Context, listen string, peers []peer.AddrInfo, digests []digest.Digest) error {
	h, err := libp2p.New(libp2p.ListenAddrStrings(listen), libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New), libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		return fmt.Errorf("hostile peer: %w", err)
	}
	defer h.Close()
	router, err := dht.New(h, dht.ProtocolPrefix(prefix), dht.Mode(dht.ModeServer), dht.DisableValues())
	if err != nil {
		return fmt.Errorf("hostile peer: %w", err)
	}
	defer router.Close()
	m := &mallory{host: h, digests: digests}
	var group sync.WaitGroup
	for _, p := range peers {
		if err := h.Connect(ctx, p); err != nil {
			continue // it may be down, or have banned us already
		}
		m.lie(p.ID)
		group.Go(func() { m.attack(ctx, p.ID) })
	}
	_ = router.Bootstrap(ctx) // whoever is not found attacks those it knows
	group.Go(func() {
		for _, d := range digests {
			if c, err := keyOf(d); err == nil {
				_ = router.Provide(ctx, c, true)
			}
		}
	})
	group.Wait()
	<-ctx.Done()
	return nil
}

// keyOf is the digest as a CID, under which a blob's holders are found.
func keyOf(d digest.Digest) (cid.Cid, error) {
	sum, err := multihash.FromHexString("1220" + d.Encoded())
	if err != nil {
		return cid.Undef, fmt.Errorf("key of %s: %w", d, err)
	}
	return cid.NewCidV1(cid.Raw, sum), nil
}

type mallory struct {
	host    host.Host
	digests []digest.Digest

	once sync.Once
}

// protocolOf is the newest form of one of the swarm's protocols that a peer speaks.
func (m *mallory) protocolOf(p peer.ID, name string) protocol.ID {
	spoken, err := m.host.Peerstore().GetProtocols(p)
	if err != nil {
		return ""
	}
	slices.Sort(spoken)
	for _, id := range slices.Backward(spoken) {
		if strings.HasPrefix(string(id), prefix+"/"+name+"/") {
			return id
		}
	}
	return ""
}

// attack opens streams of every kind and leaves them open.
func (m *mallory) attack(ctx context.Context, p peer.ID) {
	coordinate := m.protocolOf(p, "coordinate")
	some := func() digest.Digest {
		if len(m.digests) > 0 && rand.IntN(2) == 0 {
			return m.digests[rand.IntN(len(m.digests))]
		}
		return digest.FromString(fmt.Sprint(rand.Uint64()))
	}
	for range bombs {
		hello := frame(map[int]any{1: some(), 2: tib, 6: true})
		m.open(ctx, p, coordinate, hello, frame(map[int]any{1: tib, 6: []any{map[int]any{1: 0, 2: 1 << 20}}, 10: true}))
		m.open(ctx, p, coordinate, hello, frame(map[int]any{5: needs()}), frame(map[int]any{5: needs()}))
		m.open(ctx, p, bitswap, binary.AppendUvarint(nil, 4<<20), make([]byte, 256<<10))
		m.open(ctx, p, coordinate, binary.AppendUvarint(nil, 1<<20))
		for _, name := range []string{"map", "tag", "public", "file"} {
			m.open(ctx, p, m.protocolOf(p, name), []byte("\x05\xff\xff\xff\xff\xff"))
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// needs are as many runs as a list may have, each as long as can be said.
func needs() (runs []any) {
	for i := range 4096 {
		runs = append(runs, map[int]any{1: i * 2, 2: 1})
	}
	return runs
}

func (m *mallory) open(ctx context.Context, p peer.ID, id protocol.ID, frames ...[]byte) {
	if id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "once thrown out, it stays out"), 2*time.Second)
	defer cancel()
	stream, err := m.host.NewStream(ctx, p, id)
	if err != nil {
		return // we are banned, or there are too many
	}
	_ = stream.SetWriteDeadline(time.Now().Add(time.Second))
	for _, f := range frames {
		if _, err := stream.Write(f); err != nil {
			return
		}
	}
}

func frame(v any) []byte {
	body, err := cbor.Marshal(v)
	if err != nil {
		panic(err) // the frames are all of this file
	}
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...)
}

// lie answers in the swarm's protocols, as a peer speaks them.
func (m *mallory) lie(p peer.ID) {
	m.once.Do(func() {
		m.host.SetStreamHandler(m.protocolOf(p, "coordinate"), coordinate)
		m.host.SetStreamHandler(m.protocolOf(p, "map"), func(s network.Stream) {
			defer s.Close()
			_, _ = s.Write(frame(map[int]any{1: true, 2: tib}))
			_, _ = s.Write(frame(map[int]any{1: make([]byte, 32<<10)}))
		})
		m.host.SetStreamHandler(m.protocolOf(p, "tag"), func(s network.Stream) {
			defer s.Close()
			_, _ = s.Write(frame(map[int]any{1: true, 2: digest.FromString("other"), 3: tib,
				5: time.Now().Unix() + 1e6}))
		})
		m.host.SetStreamHandler(m.protocolOf(p, "public"), func(s network.Stream) {
			defer s.Close()
			_, _ = s.Write(frame(map[int]any{1: true}))
		})
		m.host.SetStreamHandler(bitswap, m.exchange)
	})
}

// coordinate takes everybody in and gives one lease, and then nothing for as long as they stay.
func coordinate(s network.Stream) {
	defer s.Close()
	_, _ = s.Write(frame(map[int]any{}))
	_, err := s.Write(frame(map[int]any{1: tib, 2: []any{map[int]any{2: 1}}}))
	for err == nil {
		time.Sleep(2 * time.Second)
		_, err = s.Write(frame(map[int]any{}))
	}
}

// exchange says of every want that it has it, and sends other bytes, or nothing.
func (m *mallory) exchange(s network.Stream) {
	defer s.Close()
	r := bufio.NewReader(s)
	for {
		n, err := binary.ReadUvarint(r)
		if err != nil || n > 4<<20 {
			return
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		got, _, err := message.FromNet(bytes.NewReader(append(binary.AppendUvarint(nil, n), body...)))
		if err != nil {
			return
		}
		if err := m.answer(s.Conn().RemotePeer(), got); err != nil {
			return
		}
	}
}

func (m *mallory) answer(p peer.ID, got message.BitSwapMessage) error {
	reply := message.New(false)
	for _, want := range got.Wantlist() {
		reply.AddHave(want.Cid)
		if rand.IntN(2) == 0 {
			if b, err := blocks.NewBlockWithCid([]byte("other bytes"), want.Cid); err == nil {
				reply.AddBlock(b)
			}
		}
	}
	ctx, cancel := context.WithTimeout(network.WithNoDial(context.Background(), "it asked"), 2*time.Second)
	defer cancel()
	stream, err := m.host.NewStream(ctx, p, bitswap)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return errors.Join(reply.ToNetV1(stream), stream.Close())
}
