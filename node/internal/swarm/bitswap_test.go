package swarm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/boxo/bitswap/message"
	pb "github.com/ipfs/boxo/bitswap/message/pb"
	"github.com/ipfs/boxo/bitswap/server"
	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/bitswapnet"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// damaged has every block, but with other bytes, or with none that it can read.
type damaged struct {
	blockstore.Blockstore
	unreadable bool
}

func (d damaged) Has(context.Context, cid.Cid) (bool, error)    { return true, nil }
func (d damaged) GetSize(context.Context, cid.Cid) (int, error) { return 1000, nil }
func (d damaged) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	if d.unreadable {
		return nil, errors.New("input/output error")
	}
	return blocks.NewBlockWithCid(make([]byte, 1000), c)
}

type sink struct {
	came chan cid.Cid
	lost chan peer.ID
}

func (s sink) Block(_ peer.ID, c cid.Cid, _ []byte) { s.came <- c }
func (s sink) Lost(p peer.ID, _ cid.Cid)            { s.lost <- p }

// Nothing here waits for a time to be over: a holder that only did not answer would be given up after half a minute.
func TestHolder_ThatAnswersWithOtherBytesOrCannotReadIsGivenUpAtOnce(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]damaged{"other bytes": {}, "unreadable": {unreadable: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, h := newTestSwarm(t), newStranger(t)
			s.bitswap.mu.Lock()
			s.bitswap.started = s.bitswap.started.Add(-2 * strayFor) // an earlier process has asked for nothing
			s.bitswap.mu.Unlock()
			net := bitswapnet.New(h, nil)
			srv := server.New(t.Context(), net, store)
			net.Start(srv)
			t.Cleanup(func() { net.Stop(); srv.Close() })
			require.NoError(t, h.Connect(t.Context(), s.info()))
			eventually(t, "connected", func() bool { return len(s.Peers()) == 1 })
			c := content.SumCID(sha256.Sum256([]byte("what was asked for")))
			w := sink{came: make(chan cid.Cid, 1), lost: make(chan peer.ID, 1)}
			s.Want(h.ID(), c, 1, 1, true, w)
			select {
			case p := <-w.lost:
				require.Equal(t, h.ID(), p)
			case <-w.came:
				require.Fail(t, "other bytes were taken for those that were asked for")
			case <-t.Context().Done():
			}
			require.True(t, s.admission.admits(h.ID()), "it may be its disk: once is no reason to ban it")
		})
	}
}

// An answer that comes after another's is late, and no lie.
func TestHolder_ThatAnswersLateBreaksNoRule(t *testing.T) {
	t.Parallel()
	s, other := newTestSwarm(t), somePeer(t)
	c := content.SumCID(sha256.Sum256([]byte("x")))
	w := sink{came: make(chan cid.Cid, 1), lost: make(chan peer.ID, 9)}
	s.Want(other, c, 1, 1, true, w)
	s.Forget(c, w)
	s.bitswap.unwanted(other, c, 1)
	require.Empty(t, w.lost)
	require.EqualValues(t, breachBurst, s.guard.standing(other).breaches.Tokens())
}

// After a hard reset of this node peers go on with what its earlier process has asked for.
func TestHolder_ThatAnswersAnEarlierProcessBreaksNoRule(t *testing.T) {
	t.Parallel()
	const wants = 32 << 20 // bytes that a node asks for at one time, of one peer if only that has them
	for name, c := range map[string]struct {
		block, bytes       int // of each, and of all
		started, greetedAt time.Duration
		breaks             bool
	}{
		"all that was under way, in leaves":        {1 << 20, wants, 0, 0, false},
		"in pieces":                                {256 << 10, wants, 0, 0, false},
		"in pieces, when it has just been greeted": {256 << 10, wants, time.Second, time.Second, false},
		"more than a node ever asks for":           {256 << 10, 3 * wants, 0, 0, true},
		"as many blocks, however small":            {1, 3 * wants / (256 << 10), 0, 0, true},
		"one that was taken back long ago":         {1 << 20, 1 << 20, time.Minute, 2 * underWay, true},
		"one so long after the start":              {1 << 20, 1 << 20, 2 * strayFor, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, other := newTestSwarm(t), somePeer(t)
			asked := sink{came: make(chan cid.Cid, 1), lost: make(chan peer.ID, 1)}
			s.bitswap.mu.Lock()
			s.bitswap.wants[content.SumCID(sha256.Sum256([]byte("by this process")))] = &want{
				sinks: []Sink{asked}, asked: []peer.ID{other}}
			s.bitswap.started = s.bitswap.started.Add(-c.started)
			s.bitswap.mu.Unlock()
			if c.greetedAt > 0 {
				s.bitswap.greeted.Add(other, time.Now().Add(-c.greetedAt))
			}
			for i := range c.bytes / c.block {
				sum := sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(i)))
				s.bitswap.unwanted(other, content.SumCID(sum), c.block)
			}
			require.Equal(t, c.breaks, s.guard.standing(other).breaches.Tokens() < breachBurst)
			require.Equal(t, c.breaks, len(asked.lost) > 0, "what this process has asked for is taken back")
		})
	}
}

// What an earlier process of a node has asked for is not sent to the one that runs now, which has not.
func TestWant_OfAnEarlierProcessIsTakenBackByTheFirstWordOfTheNext(t *testing.T) {
	t.Parallel()
	asker, asked := newTestSwarm(t), newTestSwarm(t)
	require.NoError(t, asker.host.Connect(t.Context(), asked.host.Peerstore().PeerInfo(asked.ID())))
	eventually(t, "connected", func() bool { return len(asked.Peers()) == 1 && len(asker.Peers()) == 1 })
	asked.Awaits(func(cid.Cid) bool { return true })
	early, own := []byte("for the earlier process"), []byte("for this one")
	wanted := func(data []byte) func() bool {
		return func() bool {
			return slices.Contains(asked.bitswap.server.WantlistForPeer(asker.ID()), content.ChunkCID(data))
		}
	}
	m := message.New(false)
	m.AddEntry(content.ChunkCID(early), 1, pb.Message_Wantlist_Block, false)
	require.NoError(t, asker.bitswap.net.SendMessage(t.Context(), asked.ID(), m))
	eventually(t, "the earlier process wants a block", wanted(early))

	w := sink{came: make(chan cid.Cid, 1), lost: make(chan peer.ID, 1)}
	asker.Want(asked.ID(), content.ChunkCID(own), int64(len(own)), 1, false, w)
	eventually(t, "this process wants another", wanted(own))
	for _, data := range [][]byte{early, own} { // they come to the peer in that order
		require.NoError(t, asked.store.Put(t.Context(), digest.FromBytes(data), bytes.NewReader(data), int64(len(data))))
		block, err := blocks.NewBlockWithCid(data, content.ChunkCID(data))
		require.NoError(t, err)
		asked.Have(block)
	}
	require.Equal(t, content.ChunkCID(own), <-w.came)
	require.Empty(t, w.lost)
	require.False(t, asker.bitswap.strays.Contains(asked.ID()))
}

// A peer that may be about to get a block itself is waited for, as a relay is. One that is not says so.
func TestWant_WhoWillNotGetABlockSaysSoAndWhoMayIsWaitedFor(t *testing.T) {
	t.Parallel()
	asker, asked := newTestSwarm(t), newTestSwarm(t)
	require.NoError(t, asker.host.Connect(t.Context(), asked.host.Peerstore().PeerInfo(asked.ID())))
	eventually(t, "connected", func() bool { return len(asked.Peers()) == 1 && len(asker.Peers()) == 1 })
	coming := content.SumCID(sha256.Sum256([]byte("coming")))
	var comes atomic.Bool
	comes.Store(true)
	asked.Awaits(func(c cid.Cid) bool { return c == coming && comes.Load() })
	awaited := sink{came: make(chan cid.Cid, 1), lost: make(chan peer.ID, 1)}
	asker.Want(asked.ID(), coming, 1, 1, false, awaited)
	for i := range 2 { // two rounds of looking at what is waited for
		w := sink{came: make(chan cid.Cid, 1), lost: make(chan peer.ID, 1)}
		asker.Want(asked.ID(), content.SumCID(sha256.Sum256([]byte{byte(i)})), 1, 1, false, w)
		require.Equal(t, asked.ID(), <-w.lost)
	}
	require.Empty(t, awaited.lost)
	comes.Store(false)
	require.Equal(t, asked.ID(), <-awaited.lost)
	eventually(t, "nothing is owed any more", func() bool { return asked.bitswap.owed.in(1) == 0 })
}

// What piles up while a link is full goes out as one message, in which the newest word on a block counts.
func TestWant_AfterItWasTakenBackInTheSameMessageIsAWant(t *testing.T) {
	t.Parallel()
	c := content.SumCID(sha256.Sum256([]byte("a block")))
	want := change{cid: c, size: 7, priority: 3}
	urgent, holder, cancel := want, want, change{cid: c, cancel: true}
	urgent.priority, holder.held = 9, true
	for name, x := range map[string]struct {
		changes              []change
		priority             int32
		sendDontHave, cancel bool
	}{
		"a want":                                       {[]change{want}, 3, false, false},
		"wanted again, more urgently":                  {[]change{want, urgent}, 9, false, false},
		"wanted of one that is found to have it":       {[]change{want, holder}, 3, true, false},
		"taken back":                                   {[]change{want, cancel}, 3, false, true},
		"taken back, and wanted again":                 {[]change{cancel, urgent}, 9, false, false},
		"wanted, taken back, and wanted of the holder": {[]change{want, cancel, holder}, 3, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, _ := wantlist(false, x.changes)
			require.Len(t, m.Wantlist(), 1)
			e := m.Wantlist()[0]
			require.Equal(t, x.cancel, e.Cancel)
			require.Equal(t, x.sendDontHave, e.SendDontHave)
			if !x.cancel {
				require.Equal(t, x.priority, e.Priority)
			}
		})
	}
}
