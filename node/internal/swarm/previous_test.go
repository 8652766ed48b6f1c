package swarm

import (
	"bufio"
	"crypto/sha256"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// The frames of the release before that have grown since, as it knows them.
type (
	previousReport struct {
		Size     int64    `cbor:"1,keyasint,omitempty"`
		Peers    [][]byte `cbor:"2,keyasint,omitempty"`
		Claims   []claim  `cbor:"3,keyasint,omitempty"`
		Have     []uint32 `cbor:"4,keyasint,omitempty"`
		Complete bool     `cbor:"10,keyasint,omitempty"`
	}
	previousOrders struct {
		Size     int64        `cbor:"1,keyasint,omitempty"`
		Leases   []run        `cbor:"2,keyasint,omitempty"`
		Peers    [][]byte     `cbor:"3,keyasint,omitempty"`
		Chunks   []assignment `cbor:"4,keyasint,omitempty"`
		Hopeless bool         `cbor:"5,keyasint,omitempty"`
	}
	previousQuery struct {
		Key    string `cbor:"1,keyasint,omitempty"`
		MaxAge int64  `cbor:"2,keyasint,omitempty"`
	}
	previousAnswer struct {
		State errandState `cbor:"1,keyasint,omitempty"`
		Value []byte      `cbor:"2,keyasint,omitempty"`
		Age   int64       `cbor:"3,keyasint,omitempty"`
	}
	previousResult struct {
		OK    bool   `cbor:"1,keyasint,omitempty"`
		Value []byte `cbor:"2,keyasint,omitempty"`
	}
)

// talk opens a stream of a protocol from one node to another, for frames that are written by hand.
func talk(t *testing.T, from, to *testSwarm, protocol string) (network.Stream, *bufio.Reader) {
	t.Helper()
	stream, err := from.host.NewStream(t.Context(), to.ID(), from.protocol(protocol))
	require.NoError(t, err)
	t.Cleanup(func() { _ = stream.Reset() })
	_ = stream.SetDeadline(time.Now().Add(time.Minute))
	return stream, bufio.NewReader(stream)
}

func TestPreviousRelease_ItsParticipantReadsAndTellsAsBefore(t *testing.T) {
	t.Parallel()
	coordinator := newTestSwarm(t)
	previous := newTestSwarm(t, startingFrom(coordinator))
	eventually(t, "they know each other", func() bool { return len(previous.Peers()) == 1 })
	d := digest.FromString("a blob of two chunks")
	stream, in := talk(t, previous, coordinator, "coordinate")
	require.NoError(t, writeFrame(stream, hello{Digest: string(d), Upstream: true, Whole: true, Forced: true}))
	require.NoError(t, writeFrame(stream, previousReport{}))
	var w welcome
	require.NoError(t, readFrame(in, &w))
	require.Empty(t, w.Error)
	read := map[uint32]bool{}
	for len(read) < 2 {
		var o previousOrders
		require.NoError(t, readFrame(in, &o))
		for _, r := range o.Leases {
			for i := r.First; i < r.First+r.Count; i++ {
				require.False(t, read[i], "chunk %d is read once", i)
				read[i] = true
				sum := sha256.Sum256([]byte{byte(i)})
				c, err := previous.Claim(leaves(d), int(i), sum)
				require.NoError(t, err)
				require.NoError(t, writeFrame(stream, previousReport{Size: 2 * content.ChunkSize,
					Peers:  [][]byte{[]byte(previous.ID())},
					Claims: []claim{{Index: i, Sum: sum[:], Signature: c.Signature}}}))
			}
		}
	}
	require.NoError(t, writeFrame(stream, previousReport{Complete: true}))
	eventually(t, "it counts as a holder", func() bool {
		r, err := coordinator.room(leaves(d), coordinator.ID())
		if err != nil {
			return false
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.table.Holders() == 1
	})
}

func TestPreviousRelease_ItsCoordinatorIsObeyed(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	nodes := newMesh(t, d, 2)
	previous, node := nodes[0], nodes[1]
	have := make(chan []uint32, 1)
	previous.host.SetStreamHandler(previous.protocol("coordinate"), func(s network.Stream) {
		defer func() { _ = s.Close() }()
		in := bufio.NewReader(s)
		var h hello
		var first, next previousReport
		if readFrame(in, &h) != nil || readFrame(in, &first) != nil || writeFrame(s, welcome{}) != nil ||
			writeFrame(s, previousOrders{Size: content.ChunkSize, Leases: []run{{Count: 1}}}) != nil {
			return
		}
		if readFrame(in, &next) == nil {
			have <- next.Have
		}
	})
	session, err := node.Join(t.Context(), d, schedule.Join{Upstream: true, Whole: true})
	require.NoError(t, err)
	defer session.Close()
	require.Equal(t, previous.ID(), session.Coordinator())
	o, err := session.Next(t.Context())
	require.NoError(t, err)
	require.Equal(t, schedule.Orders{Size: content.ChunkSize, Leases: []schedule.Run{{First: 0, Count: 1}}}, o)
	session.Send(schedule.Report{Have: []int{0}, Reading: true, Load: 7})
	require.Equal(t, []uint32{0}, <-have)
}

// An asker of the release before takes a second word for the last.
func TestPreviousRelease_WhoWaitsForAnAnswerIsToldSoOnce(t *testing.T) {
	t.Parallel()
	home := newTestSwarm(t)
	previous := newTestSwarm(t, startingFrom(home))
	var value atomic.Pointer[[]byte]
	e := newErrands(home, func(string) ([]byte, time.Duration, bool) {
		if v := value.Load(); v != nil {
			return *v, 0, true
		}
		return nil, 0, false
	}, func(_ string, v []byte, _ time.Duration) { value.Store(&v) })
	e.beat, e.second = 10*time.Millisecond, time.Hour // nobody else is to ask
	eventually(t, "they know each other", func() bool { return len(previous.Peers()) == 1 })
	query := previousQuery{Key: "question", MaxAge: time.Hour.Milliseconds()}

	asks, asksIn := talk(t, previous, home, "errand")
	require.NoError(t, writeFrame(asks, query))
	var a previousAnswer
	require.NoError(t, readFrame(asksIn, &a))
	require.Equal(t, errandAsk, a.State)

	waits, waitsIn := talk(t, previous, home, "errand")
	require.NoError(t, writeFrame(waits, query))
	require.NoError(t, readFrame(waitsIn, &a))
	require.Equal(t, errandWaiting, a.State)
	beats := time.NewTimer(20 * e.beat) // in which one of today would be told many times
	defer beats.Stop()
	<-beats.C
	require.NoError(t, writeFrame(asks, previousResult{OK: true, Value: []byte("answer")}))
	a = previousAnswer{}
	require.NoError(t, readFrame(waitsIn, &a))
	require.Equal(t, previousAnswer{State: errandKnown, Value: []byte("answer")}, a)
}

func TestPreviousRelease_AllPlanInLeavesWhileItIsConnected(t *testing.T) {
	t.Parallel()
	first := newTestSwarm(t)
	previous := newTestSwarm(t, startingFrom(first), func(o *Options) { o.LeavesOnly = true })
	second := newTestSwarm(t, startingFrom(first, previous))
	for _, s := range []*testSwarm{first, second} {
		eventually(t, "leaves", func() bool { return len(s.Peers()) == 2 && s.Grain() == content.Leaves })
	}
	require.NoError(t, previous.Close())
	for _, s := range []*testSwarm{first, second} {
		eventually(t, "pieces again", func() bool { return len(s.Peers()) == 1 && s.Grain() == content.Pieces })
	}
}

func TestPreviousRelease_WhoIsAskedForPiecesIsNotPassedOver(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	nodes := newMesh(t, d, 2) // the first is the nearest
	previous, node := nodes[0], nodes[1]
	previous.host.RemoveStreamHandler(previous.planProtocol("coordinate", content.Pieces))
	eventually(t, "it has said so", func() bool { return !node.mayPlan(previous.ID(), content.Pieces) })
	require.NoError(t, node.host.Peerstore().SetProtocols(previous.ID())) // as before it has said anything
	session, err := node.Join(t.Context(), d, schedule.Join{Upstream: true, Whole: true, Grain: content.Pieces})
	require.NoError(t, err)
	defer session.Close()
	require.Equal(t, node.ID(), session.Coordinator())
	require.False(t, node.isShunned(previous.ID()), "it answers, and coordinates leaves")
}

func TestClaims_ThatOfALeafIsNoneOfAPiece(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	by, err := peer.IDFromPrivateKey(key)
	require.NoError(t, err)
	d := digest.FromString("x")
	pieces := Plan{d, content.Pieces}
	for said, other := range map[Plan]Plan{leaves(d): pieces, pieces: leaves(d)} {
		c, err := signClaim(key, by, said, 3, schedule.Sum{1})
		require.NoError(t, err)
		require.NoError(t, VerifyClaim(said, c))
		require.Error(t, VerifyClaim(other, c))
	}
}
