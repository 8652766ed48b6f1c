package hostile

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/ipfs/boxo/bitswap/message"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// Holding is how a peer holds what it is asked for, though it has nothing.
type Holding struct {
	// Size is that of everything, in bytes.
	Size int64
	// Answers is how long it thinks before each answer, and Sends before each block of other bytes. A negative time:
	// nothing comes.
	Answers, Sends time.Duration
}

// Holdings are ways to hold badly, by name. All say to hold whatever there is, and sign for other bytes.
var Holdings = map[string]Holding{
	"holds-other-bytes":      {Size: 4321},
	"holds-other-bytes-late": {Size: 4321, Answers: 900 * time.Millisecond, Sends: 2900 * time.Millisecond},
	"holds-nothing":          {Size: 2 << 20, Sends: -1},
	"holds-nothing-late":     {Size: 4321, Answers: 900 * time.Millisecond, Sends: -1},
	"holds-more-than-is":     {Size: 64 << 20, Sends: 100 * time.Millisecond},
}

// Hold has the peer hold what it is asked for.
func (p *Peer) Hold(ctx context.Context, h Holding) {
	l := &holder{Peer: p, Holding: h, blocks: map[cid.Cid][]byte{}}
	p.SetStreamHandler(p.protocol("map"), l.answer(ctx, l.list(content.Leaves)))
	p.SetStreamHandler(p.protocol("map-pieces"), l.answer(ctx, l.list(content.Pieces)))
	p.SetStreamHandler(p.protocol("witness"), l.answer(ctx, l.witness))
	for name, word := range Lies {
		p.SetStreamHandler(p.protocol(name), l.answer(ctx, func(q map[int]any) []map[int]any {
			return []map[int]any{word(q)}
		}))
	}
	p.SetStreamHandler("/ipfs/bitswap/1.2.0", func(s network.Stream) { l.serve(ctx, s) })
}

// Lies are what a peer answers that knows nothing and is believed where one peer's word is enough.
var Lies = map[string]func(question map[int]any) map[int]any{
	"tag": func(map[int]any) map[int]any {
		return map[int]any{1: true, 2: string(some(0)), 3: 1234,
			4: "application/vnd.oci.image.manifest.v1+json", 5: time.Now().Unix()}
	},
	"file":     func(map[int]any) map[int]any { return map[int]any{1: true, 2: string(some(0)), 3: 1234} },
	"errand":   yes,
	"remember": yes,
}

func yes(map[int]any) map[int]any { return map[int]any{1: 1, 2: []byte(`{"yes":true}`)} }

type holder struct {
	*Peer
	Holding

	mu     sync.Mutex
	blocks map[cid.Cid][]byte
}

// answer reads a question, thinks, and writes the frames of the answer.
func (h *holder) answer(ctx context.Context, frames func(question map[int]any) []map[int]any) network.StreamHandler {
	return func(s network.Stream) {
		defer func() { _ = s.Close() }()
		in := bufio.NewReader(s)
		n, err := binary.ReadUvarint(in)
		if err != nil || n > 64<<10 {
			return
		}
		var question map[int]any
		body := make([]byte, n)
		if _, err := io.ReadFull(in, body); err != nil || cbor.Unmarshal(body, &question) != nil ||
			!pause(ctx, h.Answers) {
			return
		}
		for _, f := range frames(question) {
			if _, err := s.Write(Frame(f)); err != nil {
				return
			}
		}
	}
}

// list claims chunks of other bytes, with signatures that hold.
func (h *holder) list(g content.Grain) func(question map[int]any) []map[int]any {
	label := map[content.Grain]string{
		content.Leaves: "shoal chunk claim 1\x00", content.Pieces: "shoal piece claim 1\x00",
	}
	return func(question map[int]any) []map[int]any {
		d, _ := question[1].(string)
		answer := []map[int]any{{1: true, 2: h.Size}}
		cut := g.Cut(h.Size)
		for i := range cut.Len() {
			sum := h.chunk(d, cut, i)
			claim := append([]byte(label[g]), d...)
			claim = binary.BigEndian.AppendUint64(append(claim, 0), uint64(i)) //nolint:gosec // not negative
			signature, err := h.key().Sign(append(claim, sum[:]...))
			if err != nil {
				return nil
			}
			answer = append(answer, map[int]any{1: sum[:], 2: [][]byte{signature}})
		}
		return answer
	}
}

// chunk makes chunk i of what is no blob.
func (h *holder) chunk(d string, cut content.Cut, i int) [sha256.Size]byte {
	_, n := cut.Range(i)
	data := bytes.Repeat(append([]byte(d), byte(i)), int(n)/len(d)+1)[:n]
	h.mu.Lock()
	defer h.mu.Unlock()
	h.blocks[content.ChunkCID(data)] = data
	return sha256.Sum256(data)
}

// witness holds all that is asked about, which everyone may read.
func (h *holder) witness(question map[int]any) []map[int]any {
	asked, _ := question[2].([]any)
	held := make([]int, len(asked))
	for i := range held {
		held[i] = i
	}
	return []map[int]any{{1: true, 3: held, 4: held, 5: 1}}
}

func (h *holder) key() crypto.PrivKey { return h.Peerstore().PrivKey(h.ID()) }

// serve sends the blocks that are wanted of it.
func (h *holder) serve(ctx context.Context, s network.Stream) {
	defer func() { _ = s.Close() }()
	for in := bufio.NewReader(s); ; {
		n, err := binary.ReadUvarint(in)
		if err != nil || n > 4<<20 {
			return
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		got, _, err := message.FromNet(bytes.NewReader(append(binary.AppendUvarint(nil, n), body...)))
		if err != nil {
			return
		}
		for _, want := range got.Wantlist() {
			h.mu.Lock()
			data, ok := h.blocks[want.Cid]
			h.mu.Unlock()
			if ok && !want.Cancel {
				go h.send(ctx, s.Conn().RemotePeer(), want.Cid, data)
			}
		}
	}
}

func (h *holder) send(ctx context.Context, to peer.ID, c cid.Cid, data []byte) {
	if !pause(ctx, h.Sends) {
		return
	}
	reply := message.New(false)
	b, err := blocks.NewBlockWithCid(data, c)
	if err != nil {
		return
	}
	reply.AddBlock(b)
	s, err := h.NewStream(network.WithNoDial(ctx, "it asked"), to, "/ipfs/bitswap/1.2.0")
	if err != nil {
		return
	}
	_ = reply.ToNetV1(s) // whoever does not want it any more has gone
	_ = s.Close()
}

// pause reports whether d has gone by.
func pause(ctx context.Context, d time.Duration) bool {
	if d < 0 {
		<-ctx.Done()
		return false
	}
	return content.Sleep(ctx, d)
}
