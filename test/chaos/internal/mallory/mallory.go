// Package mallory is an admitted peer of the swarm that breaks every rule: it announces what it does not send, claims
// sizes and holdings that are not, coordinates by giving nothing to do, and answers wants with other bytes. What it
// sends is bounded; what that costs the agents is what a run watches. As a liar it keeps to the rules, so that nobody
// shuts it out, and whatever it is asked it answers with a lie.
//
// It speaks what the agents speak, by their own word, and ends with an error where they do not speak what it is here to
// attack: or it would do nothing, and nobody would notice.
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
func Run(ctx context.Context, listen string, peers []peer.AddrInfo, digests []digest.Digest, liar bool) error {
	h, err := libp2p.New(libp2p.ListenAddrStrings(listen), libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New), libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		return fmt.Errorf("hostile peer: %w", err)
	}
	defer h.Close()
	m := &mallory{host: h, digests: digests, liar: liar}
	if liar {
		return m.lies(ctx, peers)
	}
	router, err := dht.New(h, dht.ProtocolPrefix(prefix), dht.Mode(dht.ModeServer), dht.DisableValues())
	if err != nil {
		return fmt.Errorf("hostile peer: %w", err)
	}
	defer router.Close()
	var group sync.WaitGroup
	for _, p := range peers {
		if !m.meet(ctx, p) {
			continue
		}
		if err := m.lie(p.ID); err != nil {
			return err
		}
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

// meet reports whether a peer is there, and has said what it speaks. It may be down, or have banned us already.
func (m *mallory) meet(ctx context.Context, p peer.AddrInfo) bool {
	if m.host.Connect(ctx, p) != nil {
		return false
	}
	spoken, err := m.host.Peerstore().GetProtocols(p.ID)
	return err == nil && len(spoken) > 0
}

// lies answers until ctx ends, and comes again to those that were away.
func (m *mallory) lies(ctx context.Context, peers []peer.AddrInfo) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, p := range peers {
			if m.host.Network().Connectedness(p.ID) == network.Connected {
				continue
			}
			if bounded, cancel := context.WithTimeout(ctx, time.Second); m.meet(bounded, p) {
				cancel()
				if err := m.lie(p.ID); err != nil {
					return err
				}
			} else {
				cancel()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
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
	liar    bool

	lied bool
}

// protocolOf is the newest form of one of the swarm's protocols that a peer speaks; empty where it speaks none.
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

// shoal are all protocols of the swarm's own that a peer speaks.
func (m *mallory) shoal(p peer.ID) []protocol.ID {
	spoken, err := m.host.Peerstore().GetProtocols(p)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(spoken, func(id protocol.ID) bool { return !strings.HasPrefix(string(id), prefix+"/") })
}

// attack opens streams of every kind and leaves them open.
func (m *mallory) attack(ctx context.Context, p peer.ID) {
	plans := []protocol.ID{m.protocolOf(p, "coordinate"), m.protocolOf(p, "coordinate-pieces")}
	some := func() digest.Digest {
		if len(m.digests) > 0 && rand.IntN(2) == 0 {
			return m.digests[rand.IntN(len(m.digests))]
		}
		return digest.FromString(fmt.Sprint(rand.Uint64()))
	}
	many := make([]digest.Digest, 100)
	for range bombs {
		hello := frame(map[int]any{1: some(), 2: tib, 6: true})
		for _, id := range plans {
			m.open(ctx, p, id, hello, frame(map[int]any{1: tib, 6: []any{map[int]any{1: 0, 2: 1 << 20}}, 10: true}))
			m.open(ctx, p, id, hello, frame(map[int]any{5: needs()}), frame(map[int]any{5: needs()}))
			m.open(ctx, p, id, binary.AppendUvarint(nil, 1<<20))
		}
		m.open(ctx, p, bitswap, binary.AppendUvarint(nil, 4<<20), make([]byte, 256<<10))
		for i := range many {
			many[i] = some()
		}
		m.open(ctx, p, m.protocolOf(p, "witness"), frame(map[int]any{1: "oci images.test/team/app", 2: many}))
		for _, name := range []string{"errand", "remember"} { // and never says what it has found out
			m.open(ctx, p, m.protocolOf(p, name), frame(map[int]any{1: some().String(), 3: true}))
		}
		for _, id := range m.shoal(p) {
			m.open(ctx, p, id, []byte("\x05\xff\xff\xff\xff\xff"))
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

// words are the protocols of questions, with a lie for each.
func (m *mallory) words() map[string]func(question map[int]any) map[int]any {
	yes := func(map[int]any) map[int]any { return map[int]any{1: 1, 2: []byte(`{"yes":true}`), 3: 0} }
	return map[string]func(map[int]any) map[int]any{
		// A tag names what nobody has, since just now.
		"tag": func(map[int]any) map[int]any {
			return map[int]any{1: true, 2: digest.FromString("other"), 3: 1234,
				4: "application/vnd.oci.image.manifest.v1+json", 5: time.Now().Unix() + 1e6}
		},
		// Everyone may read, and everything is held. What a repository has proved to have goes by the word of one,
		// which node/SECURITY.md says under "What is not defended", so that is no lie here.
		"witness": func(q map[int]any) map[int]any {
			asked, _ := q[2].([]any)
			all := make([]int, len(asked))
			for i := range all {
				all[i] = i
			}
			return map[int]any{1: true, 3: all, 5: 1}
		},
		"errand": yes, "remember": yes,
		"file": func(map[int]any) map[int]any {
			return map[int]any{1: true, 2: digest.FromString("other"), 3: tib}
		},
	}
}

// lie answers in the swarm's protocols, as a peer speaks them.
func (m *mallory) lie(p peer.ID) error {
	if m.lied {
		return nil
	}
	m.lied = true
	handlers := map[string]network.StreamHandler{}
	for name, word := range m.words() {
		handlers[name] = func(s network.Stream) { reply(s, word) }
	}
	if !m.liar {
		holds := func(s network.Stream) {
			defer s.Close()
			_, _ = s.Write(frame(map[int]any{1: true, 2: tib}))
			_, _ = s.Write(frame(map[int]any{1: make([]byte, 32<<10)}))
		}
		handlers["coordinate"], handlers["coordinate-pieces"] = coordinate, coordinate
		handlers["map"], handlers["map-pieces"] = holds, holds
		m.host.SetStreamHandler(bitswap, m.exchange)
	}
	for name, handle := range handlers {
		id := m.protocolOf(p, name)
		if id == "" {
			return fmt.Errorf("hostile peer: %s does not speak %s any more", p, name)
		}
		m.host.SetStreamHandler(id, handle)
	}
	return nil
}

// reply reads a question and answers it.
func reply(s network.Stream, word func(map[int]any) map[int]any) {
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(2 * time.Second))
	r := bufio.NewReader(s)
	n, err := binary.ReadUvarint(r)
	if err != nil || n > 64<<10 {
		return
	}
	body := make([]byte, n)
	var question map[int]any
	if _, err := io.ReadFull(r, body); err != nil || cbor.Unmarshal(body, &question) != nil {
		return
	}
	_, _ = s.Write(frame(word(question))) // who asked may have gone
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
