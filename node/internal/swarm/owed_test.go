package swarm

import (
	"testing"

	"github.com/ipfs/boxo/bitswap/message"
	pb "github.com/ipfs/boxo/bitswap/message/pb"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

func TestOwed_CountsWhatPeersWaitForAndHaveNotGot(t *testing.T) {
	t.Parallel()
	block := func(text string) *blocks.BasicBlock { return blocks.NewBlock([]byte(text)) }
	want := func(text string, kind pb.Message_Wantlist_WantType) message.BitSwapMessage {
		m := message.New(false)
		m.AddEntry(block(text).Cid(), 1, kind, true)
		return m
	}
	wants := func(text string) message.BitSwapMessage { return want(text, pb.Message_Wantlist_Block) }
	answer := func(text string) message.BitSwapMessage {
		m := message.New(false)
		m.AddBlock(block(text))
		return m
	}
	lacks := func(text string) message.BitSwapMessage {
		m := message.New(false)
		m.AddDontHave(block(text).Cid())
		return m
	}
	cancel := func(text string) message.BitSwapMessage {
		m := message.New(false)
		m.Cancel(block(text).Cid())
		return m
	}
	const a, b = peer.ID("a"), peer.ID("b")
	for name, c := range map[string]struct {
		do   func(tr tracer)
		left int
	}{
		"two peers that want the same are two": {func(tr tracer) {
			tr.MessageReceived(a, wants("x"))
			tr.MessageReceived(b, wants("x"))
		}, 2},
		"a want that is repeated counts once": {func(tr tracer) {
			tr.MessageReceived(a, wants("x"))
			tr.MessageReceived(a, wants("x"))
		}, 1},
		"what is sent is not owed": {func(tr tracer) {
			tr.MessageReceived(a, wants("x"))
			tr.MessageReceived(b, wants("x"))
			tr.MessageSent(a, answer("x"))
		}, 1},
		"what was not asked for leaves the count alone": {func(tr tracer) {
			tr.MessageReceived(a, wants("x"))
			tr.MessageSent(a, answer("y"))
			tr.MessageReceived(b, cancel("x"))
		}, 1},
		"a want that is taken back is not owed": {func(tr tracer) {
			tr.MessageReceived(a, wants("x"))
			tr.MessageReceived(a, cancel("x"))
		}, 0},
		"what this node says it lacks is not owed": {func(tr tracer) {
			tr.MessageReceived(a, wants("x"))
			tr.MessageSent(a, lacks("x"))
		}, 0},
		"a question whether it is here owes no block": {func(tr tracer) {
			tr.MessageReceived(a, want("x", pb.Message_Wantlist_Have))
		}, 0},
		"a peer that is gone waits for nothing": {func(tr tracer) {
			tr.MessageReceived(a, wants("x"))
			tr.owed.forget(a)
		}, 0},
		"a peer that is gone leaves those of others be": {func(tr tracer) {
			tr.MessageReceived(a, wants("x"))
			tr.owed.forget(b)
		}, 1},
		"all that a peer wants of 32 layers in pieces at one time": {func(tr tracer) {
			for i := range 32 * 32 {
				tr.MessageReceived(a, wants(string(rune(i))))
			}
		}, 32 * 32},
		"a peer that wants very much counts up to a bound": {func(tr tracer) {
			for i := range 2 * maxOwed {
				tr.MessageReceived(a, wants(string(rune(i))))
			}
		}, maxOwed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const size = 256 << 10
			tr := tracer{&metrics{}, newOwed(), func(cid.Cid) int64 { return size }}
			c.do(tr)
			require.Equal(t, c.left, tr.owed.in(size))
			require.Equal(t, (c.left+3)/4, tr.owed.in(4*size), "in leaves")
		})
	}
}

// Else who passes on pieces would look four times as busy as who passes on leaves.
func TestOwed_IsToldInChunksOfTheBlobThatIsCoordinated(t *testing.T) {
	t.Parallel()
	s := newTestSwarm(t)
	for _, text := range []string{"1", "2", "3", "4", "5", "6", "7", "8"} {
		s.bitswap.owed.add("a", blocks.NewBlock([]byte(text)).Cid(), 256<<10)
	}
	for _, c := range []struct {
		grain content.Grain
		size  int64
		load  int
	}{{content.Leaves, 4 << 20, 2}, {content.Pieces, 4 << 20, 8}, {content.Pieces, 4 << 30, 2}} {
		load := s.loadOf(schedule.Join{Grain: c.grain})
		require.Equal(t, c.load, load(c.size), c)
		require.Equal(t, c.load, load(0), "as with the size that was told before")
	}
}
