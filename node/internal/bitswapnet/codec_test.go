package bitswapnet

import (
	"bytes"
	"slices"
	"testing"

	"github.com/ipfs/boxo/bitswap/message"
	pb "github.com/ipfs/boxo/bitswap/message/pb"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-msgio"
	"github.com/multiformats/go-multihash"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func block(t require.TestingT, data []byte, codec uint64) blocks.Block {
	c, err := cid.V1Builder{Codec: codec, MhType: multihash.SHA2_256}.Sum(data)
	require.NoError(t, err)
	b, err := blocks.NewBlockWithCid(data, c)
	require.NoError(t, err)
	return b
}

// drawMessage makes a message with a little of everything.
func drawMessage(t *rapid.T) message.BitSwapMessage {
	m := message.New(rapid.Bool().Draw(t, "full"))
	draw := func(name string) cid.Cid {
		return block(t, rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, name), cid.Raw).Cid()
	}
	for range rapid.IntRange(0, 4).Draw(t, "wants") {
		m.AddEntry(draw("want"), rapid.Int32().Draw(t, "priority"),
			pb.Message_Wantlist_WantType(rapid.IntRange(0, 1).Draw(t, "type")), rapid.Bool().Draw(t, "tell"))
	}
	for range rapid.IntRange(0, 2).Draw(t, "cancels") {
		m.Cancel(draw("cancel"))
	}
	for range rapid.IntRange(0, 2).Draw(t, "presences") {
		m.AddBlockPresence(draw("presence"), pb.Message_BlockPresenceType(rapid.IntRange(0, 1).Draw(t, "kind")))
	}
	for range rapid.IntRange(0, 3).Draw(t, "blocks") {
		codec := rapid.SampledFrom([]uint64{cid.Raw, cid.DagProtobuf}).Draw(t, "codec")
		m.AddBlock(block(t, rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "data"), codec))
	}
	m.SetPendingBytes(rapid.Int32().Draw(t, "pending"))
	return m
}

func requireSame(t require.TestingT, want, got message.BitSwapMessage) {
	byCID := func(a, b message.Entry) int { return bytes.Compare(a.Cid.Bytes(), b.Cid.Bytes()) }
	sorted := func(m message.BitSwapMessage) []message.Entry {
		return slices.SortedFunc(slices.Values(m.Wantlist()), byCID)
	}
	data := func(m message.BitSwapMessage) map[cid.Cid]string {
		out := map[cid.Cid]string{}
		for _, b := range m.Blocks() {
			out[b.Cid()] = string(b.RawData())
		}
		return out
	}
	require.Equal(t, want.Full(), got.Full())
	require.Equal(t, sorted(want), sorted(got))
	require.ElementsMatch(t, want.BlockPresences(), got.BlockPresences())
	require.Equal(t, data(want), data(got))
	require.Equal(t, want.PendingBytes(), got.PendingBytes())
}

func TestBoxoReadsWhatIsWritten(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := drawMessage(t)
		var wire bytes.Buffer
		require.NoError(t, encode(&wire, m))
		got, _, err := message.FromNet(&wire)
		require.NoError(t, err)
		requireSame(t, m, got)
		require.Zero(t, wire.Len(), "the frame's length is right")
	})
}

func TestWhatBoxoWritesIsRead(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := drawMessage(t)
		var wire bytes.Buffer
		require.NoError(t, m.ToNetV1(&wire))
		frame, err := msgio.NewVarintReader(&wire).ReadMsg()
		require.NoError(t, err)
		got, err := decode(frame)
		require.NoError(t, err)
		requireSame(t, m, got)
	})
}

func TestABlockIsReadInPlace(t *testing.T) {
	t.Parallel()
	m := message.New(false)
	m.AddBlock(block(t, bytes.Repeat([]byte("shoal"), 1000), cid.Raw))
	var wire bytes.Buffer
	require.NoError(t, encode(&wire, m))
	frame, err := msgio.NewVarintReader(&wire).ReadMsg()
	require.NoError(t, err)
	got, err := decode(frame)
	require.NoError(t, err)
	read := got.Blocks()[0].RawData()
	at := bytes.Index(frame, []byte("shoal"))
	require.Same(t, &frame[at], &read[0])
}

// FuzzDecode: what boxo refuses is refused, and what it takes is taken for the same.
func FuzzDecode(f *testing.F) {
	m := message.New(true)
	b := block(f, []byte("a block"), cid.Raw)
	m.AddEntry(b.Cid(), 1, pb.Message_Wantlist_Block, true)
	m.AddBlock(b)
	m.AddHave(block(f, []byte("another"), cid.Raw).Cid())
	var wire bytes.Buffer
	require.NoError(f, encode(&wire, m))
	frame := wire.Bytes()[1:]
	f.Add(frame)
	f.Add(frame[:len(frame)-3])
	f.Add([]byte{0x1a, 0x00})                         // a block without prefix
	f.Add([]byte{0x1a, 0x04, 0x0a, 0x00, 0x12, 0x00}) // an empty prefix
	f.Add([]byte{0x1b, 0x1c})                         // the field as a group
	f.Add([]byte{0x18, 0x01})                         // the field as a number
	f.Add([]byte{0x1a, 0x02, 0x0a, 0x05})             // a prefix that ends too late
	f.Fuzz(func(t *testing.T, frame []byte) {
		want, _, wantErr := message.FromMsgReader(&single{msg: frame})
		got, err := decode(frame)
		if wantErr != nil {
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		requireSame(t, want, got)
	})
}
