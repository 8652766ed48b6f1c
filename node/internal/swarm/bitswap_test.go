package swarm

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/ipfs/boxo/bitswap/server"
	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
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
			net := bitswapnet.New(h, nil)
			srv := server.New(t.Context(), net, store)
			net.Start(srv)
			t.Cleanup(func() { net.Stop(); srv.Close() })
			require.NoError(t, h.Connect(t.Context(), s.info()))
			eventually(t, "connected", func() bool { return len(s.Peers()) == 1 })
			c := content.SumCID(sha256.Sum256([]byte("what was asked for")))
			w := sink{came: make(chan cid.Cid, 1), lost: make(chan peer.ID, 1)}
			s.Want(h.ID(), c, 1, true, w)
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
	s.Want(other, c, 1, true, w)
	s.Forget(c, w)
	s.bitswap.unwanted(other, c, 1)
	require.Empty(t, w.lost)
	require.EqualValues(t, breachBurst, s.guard.standing(other).breaches.Tokens())
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
	asker.Want(asked.ID(), coming, 1, false, awaited)
	for i := range 2 { // two rounds of looking at what is waited for
		w := sink{came: make(chan cid.Cid, 1), lost: make(chan peer.ID, 1)}
		asker.Want(asked.ID(), content.SumCID(sha256.Sum256([]byte{byte(i)})), 1, false, w)
		require.Equal(t, asked.ID(), <-w.lost)
	}
	require.Empty(t, awaited.lost)
	comes.Store(false)
	require.Equal(t, asked.ID(), <-awaited.lost)
	eventually(t, "nothing is owed any more", func() bool { return asked.bitswap.owed.count() == 0 })
}
