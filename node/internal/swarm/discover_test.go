package swarm

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// withMap holds one blob more, of which only the chunk map is there.
type withMap struct {
	Store
	d digest.Digest
	m *content.ChunkMap
}

func (s withMap) ChunkMap(d digest.Digest) (*content.ChunkMap, error) {
	if d == s.d {
		return s.m, nil
	}
	return s.Store.ChunkMap(d)
}

// Of a large file the claims take long to sign. That it is here is said before.
func TestMap_OfALargeFileIsSentAsItIsSigned(t *testing.T) {
	t.Parallel()
	const chunks = 10_000
	d := digest.FromString("large")
	m, err := content.NewChunkMap(content.CutLeaves(chunks * content.ChunkSize))
	require.NoError(t, err)
	for i := range chunks {
		block := blocks.NewBlock(binary.BigEndian.AppendUint32(nil, uint32(i)))
		require.NoError(t, m.Set(i, cid.NewCidV1(cid.Raw, block.Cid().Hash())))
	}
	a := newTestSwarm(t, func(o *Options) { o.Store = withMap{o.Store, d, m} })
	b := newTestSwarm(t, startingFrom(a))
	eventually(t, "they know each other", func() bool { return len(b.Peers()) == 1 })
	left := a.guard.standing(b.ID()).work

	require.False(t, b.askPlans(t.Context(), a.ID(), leaves(d)))
	require.Greater(t, left.Tokens(), float64(workBurst-signWork*chunks/4), "who asks for the plan pays for no claims")

	claims, err := b.HeldBy(t.Context(), a.ID(), leaves(d))
	require.NoError(t, err)
	require.Len(t, claims, chunks)
	require.NoError(t, VerifyClaim(leaves(d), claims[chunks-1]))
	require.EqualValues(t, breachBurst, a.guard.standing(b.ID()).breaches.Tokens())

	before := left.Tokens()
	again, err := b.HeldBy(t.Context(), a.ID(), leaves(d))
	require.NoError(t, err)
	require.Equal(t, claims, again)
	require.Greater(t, left.Tokens(), before-2*mapWork, "what is signed once is charged once")
}

// soon has a node give up what does not come while a test waits for that.
func soon(o *Options) { o.Slack = 6 }

// slowPieces holds blobs whose pieces are not known, and makes them when it is told to.
type slowPieces struct {
	Store
	making chan<- struct{}
	told   <-chan struct{}
}

func (s slowPieces) ChunkMap(d digest.Digest) (*content.ChunkMap, error) {
	m, err := s.Store.ChunkMap(d)
	if err != nil {
		return nil, err
	}
	return m.Clone(), nil
}

func (s slowPieces) PieceMap(ctx context.Context, d digest.Digest,
	pay func(context.Context, int64) error) (*content.ChunkMap, error) {
	if err := pay(ctx, 100); err != nil {
		return nil, err
	}
	s.making <- struct{}{}
	select {
	case <-s.told:
		return s.Store.PieceMap(ctx, d, pay)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// A release that knew no pieces has left a blob, which is read whole for them. Meanwhile nobody is sent upstream for it.
func TestMap_ThatABlobIsHeldIsSaidBeforeItsPiecesAreMade(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("z"), content.ChunkSize+1)
	plan := Plan{digest.FromBytes(data), content.Pieces}
	for who, own := range map[string]bool{"of a peer": false, "of one's own": true} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			making, told := make(chan struct{}, 1), make(chan struct{})
			holder := newTestSwarm(t, soon, func(o *Options) { o.Store = slowPieces{o.Store, making, told} })
			require.NoError(t, holder.store.Put(t.Context(), plan.Digest, bytes.NewReader(data), int64(len(data))))
			asking := holder
			if !own {
				asking = newTestSwarm(t, soon, startingFrom(holder))
				eventually(t, "connected", func() bool { return len(asking.Peers()) == 1 })
			}
			r := newRoom(asking.Swarm, plan)
			done := make(chan struct{})
			go func() {
				defer close(done)
				asking.discover(t.Context(), plan, r)
			}()
			<-making
			eventually(t, "the holder has said that it holds the blob", func() bool {
				r.mu.Lock()
				defer r.mu.Unlock()
				return r.awaited && r.table.Holders() == 0
			})
			<-time.After(asking.opts.slack(mapTimeout) * 3 / 2) // longer than a claim is waited for that is only to be signed
			close(told)
			<-done
			require.Equal(t, 1, r.table.Holders())
		})
	}
}

// A late node's link is full of what it reads already, and the words of those who hold the rest stand behind that. One
// that holds nothing sends it nothing, and so answers first.
func TestDiscover_AHolderIsWaitedForWhileMuchComesFromIt(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("x"), content.ChunkSize+1)
	d := digest.FromBytes(data)
	for name, tc := range map[string]struct{ busy bool }{"busy": {true}, "silent": {false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			holder := newTestSwarm(t)
			asking := newTestSwarm(t, soon, startingFrom(holder))
			eventually(t, "connected", func() bool { return len(asking.Peers()) == 1 })
			require.NoError(t, holder.store.Put(t.Context(), d, bytes.NewReader(data), int64(len(data))))
			answered, gaveUp := make(chan struct{}), make(chan struct{})
			holder.host.SetStreamHandler(holder.protocol("map"), func(s network.Stream) {
				defer close(answered)
				if tc.busy {
					<-time.After(asking.opts.slack(mapTimeout) * 3 / 2)
				} else {
					<-gaveUp
				}
				holder.handleMap(content.Leaves)(s)
			})
			t.Cleanup(func() { close(gaveUp); <-answered })
			if tc.busy {
				bulk(t, holder, asking, mapTimeout/20)
			}
			claims, err := asking.HeldBy(t.Context(), holder.ID(), leaves(d))
			require.Equal(t, tc.busy, err == nil, err)
			require.Equal(t, tc.busy, len(claims) == 2)
		})
	}
}

// Two nodes come late, and one of them coordinates. That the other holds nothing says nothing of who does.
func TestDiscover_AHolderOfWhomAParticipantHasHeardIsWaitedFor(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("y"), content.ChunkSize+1)
	d := digest.FromBytes(data)
	nodes := newMesh(t, d, 3)
	coordinator, late, holder := nodes[0], nodes[1], nodes[2]
	require.NoError(t, holder.store.Put(t.Context(), d, bytes.NewReader(data), int64(len(data))))
	answer := make(chan struct{})
	holder.host.SetStreamHandler(holder.protocol("map"), func(s network.Stream) {
		<-answer
		holder.handleMap(content.Leaves)(s)
	})
	session, err := late.Join(t.Context(), d, schedule.Join{Upstream: true, Whole: true, Held: true})
	require.NoError(t, err)
	defer session.Close()
	require.Equal(t, coordinator.ID(), session.Coordinator())
	r, err := coordinator.room(leaves(d), late.ID())
	require.NoError(t, err)
	eventually(t, "who holds nothing has answered", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.heard
	})
	longer, _ := r.afterGrace(true)
	require.True(t, longer)
	close(answer)
	for told := false; !told; {
		o, err := session.Next(t.Context())
		require.NoError(t, err)
		require.Empty(t, o.Leases, "nobody is sent upstream for what a peer holds")
		told = len(o.Chunks) > 0
	}
}

// One cheap question may make this node read a whole blob.
func TestMap_PiecesThatAreNotKnownAreSummedForWhoWaitsAndAreChargedFor(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("w"), content.ChunkSize+1)
	plan := Plan{digest.FromBytes(data), content.Pieces}
	making, told := make(chan struct{}, 1), make(chan struct{})
	holder := newTestSwarm(t, func(o *Options) { o.Store = slowPieces{o.Store, making, told} })
	require.NoError(t, holder.store.Put(t.Context(), plan.Digest, bytes.NewReader(data), int64(len(data))))
	asking := newTestSwarm(t, startingFrom(holder))
	eventually(t, "connected", func() bool { return len(asking.Peers()) == 1 })
	dear := holder.guard.standing(asking.ID())
	dear.reads.SetLimit(0)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := asking.HeldBy(ctx, holder.ID(), plan)
		left <- err
	}()
	<-making
	cancel()
	require.Error(t, <-left)
	require.EqualValues(t, readBurst-100, dear.reads.Tokens(), "it is charged")
	dear.reads.ReserveN(time.Now(), readBurst-100)
	_, err := asking.HeldBy(t.Context(), holder.ID(), plan)
	require.Error(t, err, "it is charged")
	require.Empty(t, making, "it has had this node read too much of late")
	require.EqualValues(t, breachBurst, dear.breaches.Tokens(), "but does not know that")
}

// ofRuntime holds blobs whose maps are not known.
type ofRuntime struct {
	Store
	read chan<- struct{}
}

func (s ofRuntime) Unmapped(digest.Digest) int64 { return 100 }
func (s ofRuntime) ChunkMap(d digest.Digest) (*content.ChunkMap, error) {
	s.read <- struct{}{}
	return s.Store.ChunkMap(d)
}

func TestMap_ABlobOfTheRuntimeIsReadForWhoMayHaveItRead(t *testing.T) {
	t.Parallel()
	read := make(chan struct{}, 2)
	holder := newTestSwarm(t, func(o *Options) { o.Store = ofRuntime{o.Store, read} })
	plan := leaves(digest.FromString("of the runtime"))
	asking := newTestSwarm(t, startingFrom(holder))
	eventually(t, "connected", func() bool { return len(asking.Peers()) == 1 })
	budget := holder.guard.standing(asking.ID())
	budget.reads.SetLimit(0)
	_, err := asking.HeldBy(t.Context(), holder.ID(), plan)
	require.ErrorIs(t, err, content.ErrNotFound)
	<-read
	require.EqualValues(t, readBurst-100, budget.reads.Tokens(), "it is charged")
	budget.reads.ReserveN(time.Now(), readBurst-100)
	_, err = asking.HeldBy(t.Context(), holder.ID(), plan)
	require.Error(t, err)
	require.Empty(t, read, "it has had this node read too much of late")
}

func TestMap_WhoAsksIsWorkedForUntilItGoes(t *testing.T) {
	t.Parallel()
	holder := newTestSwarm(t)
	asking := newTestSwarm(t, startingFrom(holder))
	eventually(t, "connected", func() bool { return len(asking.Peers()) == 1 })
	asked, said := make(chan context.Context), make(chan struct{})
	holder.host.SetStreamHandler("/asked", func(stream network.Stream) {
		ctx, stop := whileAsked(t.Context(), stream)
		asked <- ctx
		<-said
		_, err := stream.Write([]byte("what it waits for"))
		asked <- ctx
		<-ctx.Done()
		stop()
		_ = stream.Close()
		assert.NoError(t, err)
		close(said)
	})
	stream, err := asking.host.NewStream(t.Context(), holder.ID(), "/asked")
	require.NoError(t, err)
	_, err = stream.Write([]byte("what it asks"))
	require.NoError(t, err)
	<-asked
	said <- struct{}{}
	_, err = io.ReadFull(stream, make([]byte, len("what it waits for")))
	require.NoError(t, err)
	require.NoError(t, (<-asked).Err())
	require.NoError(t, stream.Reset())
	<-said
}
