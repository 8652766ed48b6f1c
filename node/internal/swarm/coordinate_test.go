package swarm

import (
	"bytes"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
)

// newMesh starts nodes that all know each other, and returns them by their distance to d, the nearest first.
func newMesh(t *testing.T, d digest.Digest, n int, set ...func(*Options)) []*testSwarm {
	t.Helper()
	var nodes []*testSwarm
	for range n {
		nodes = append(nodes, newTestSwarm(t, append(set, startingFrom(nodes...))...))
	}
	for _, s := range nodes {
		eventually(t, "a full mesh", func() bool { return len(s.Peers()) == n-1 && s.dht.RoutingTable().Size() == n-1 })
	}
	key, err := content.DigestCID(d)
	require.NoError(t, err)
	slices.SortFunc(nodes, func(a, b *testSwarm) int {
		if kb.Closer(a.ID(), b.ID(), string(key.Hash())) {
			return -1
		}
		return 1
	})
	return nodes
}

// hangingFor has who hangs be waited for only so long, and what others do take as much again.
func hangingFor(d time.Duration) func(*Options) { return func(o *Options) { o.JoinTimeout = 2 * d } }

// requireCoordinator lets nodes join the fetch of d, all at once.
func requireCoordinator(t *testing.T, want peer.ID, nodes []*testSwarm, d digest.Digest) {
	t.Helper()
	sessions := make([]Session, len(nodes))
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, s := range nodes {
		wg.Go(func() {
			sessions[i], errs[i] = s.Join(t.Context(), d,
				schedule.Join{Upstream: true, Whole: true, Report: schedule.Report{Size: 5 << 20}})
		})
	}
	wg.Wait()
	for i, session := range sessions {
		require.NoError(t, errs[i])
		t.Cleanup(session.Close)
		require.Equal(t, want.String(), session.Coordinator().String(), "alone: %v", session.Alone())
		require.False(t, session.Alone())
	}
}

// The next nearest does not fetch the blob itself, and so has not noticed that the nearest hangs.
func TestTheNextNearestTakesOverFromACoordinatorThatHangs(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	nodes := newMesh(t, d, 5, hangingFor(10*time.Second))
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	nodes[0].host.SetStreamHandler(nodes[0].protocol("coordinate"), func(s network.Stream) { <-end; _ = s.Reset() })
	requireCoordinator(t, nodes[1].ID(), nodes[2:], d)
}

// bulk has one node send another much, a block every so often.
func bulk(t *testing.T, from, to *testSwarm, every time.Duration) {
	t.Helper()
	from.host.SetStreamHandler("/bulk", func(s network.Stream) {
		for block := make([]byte, 1<<16); ; {
			if _, err := s.Write(block); err != nil {
				return
			}
			<-time.After(every)
		}
	})
	s, err := to.host.NewStream(t.Context(), from.ID(), "/bulk")
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Reset() })
	_, err = s.Write([]byte{0})
	require.NoError(t, err)
	go func() { _, _ = io.Copy(io.Discard, s) }()
}

// The answer of a coordinator waits its turn among the blocks that it sends, which takes long on a slow link.
func TestACoordinatorIsWaitedForWhileMuchComesFromIt(t *testing.T) {
	t.Parallel()
	const patience = 8 * time.Second // with a candidate that is not busy
	d := digest.FromString("x")
	for name, c := range map[string]struct {
		busy bool
		who  int
	}{"busy": {true, 0}, "silent": {false, 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := newMesh(t, d, 3, hangingFor(patience))
			slow, asking := nodes[0], nodes[2]
			end := make(chan struct{})
			t.Cleanup(func() { close(end) })
			slow.host.SetStreamHandler(slow.protocol("coordinate"), func(s network.Stream) {
				var answer <-chan time.Time // never
				if c.busy {
					answer = time.After(patience + patience/2)
				}
				select {
				case <-answer:
					slow.handleCoordinate(content.Leaves)(s)
				case <-end:
					_ = s.Reset()
				}
			})
			if c.busy {
				bulk(t, slow, asking, patience/100)
			}
			requireCoordinator(t, nodes[c.who].ID(), []*testSwarm{asking}, d)
		})
	}
}

// The routing table remembers for long who is gone: as many as are tried would be.
func TestPeersThatAreGoneAreNoCandidates(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	nodes := newMesh(t, d, 3+candidates)
	gone, left := nodes[:candidates], nodes[candidates:]
	for _, s := range gone {
		require.NoError(t, s.Close())
	}
	for _, s := range left {
		eventually(t, "gone", func() bool { return len(s.Peers()) == len(left)-1 })
	}
	requireCoordinator(t, left[0].ID(), left, d)
}

// Only those who come from a coordinator that was lost are followed by others, for whom it is worth to wait.
func TestANodeThatResumesFromItsDiskIsSentUpstreamAtOnce(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	s := newTestSwarm(t)
	<-s.Started()
	session, err := s.Join(t.Context(), d, schedule.Join{Upstream: true, Whole: true,
		Report: schedule.Report{Size: 5 << 20, Have: []int{0}}})
	require.NoError(t, err)
	defer session.Close()
	r, err := s.room(leaves(d), s.ID())
	require.NoError(t, err)
	r.mu.Lock()
	require.Zero(t, r.openAt, "it waits for no one")
	r.mu.Unlock()
	for leased := false; !leased; {
		o, err := session.Next(t.Context())
		require.NoError(t, err)
		leased = len(o.Leases) > 0
	}
}

// A map that keeps coming is waited for, but not beyond the time for the whole search.
func TestTheSearchForHoldersEndsThoughAPeersMapDoesNot(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t, func(o *Options) { o.Slack = 4 })
	b := newTestSwarm(t, startingFrom(a))
	eventually(t, "connected", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
	b.host.SetStreamHandler(b.protocol("map"), func(s network.Stream) {
		_ = writeFrame(s, mapHead{Found: true, Size: 1 << 40})
		for writeFrame(s, mapPart{Sums: make([]byte, 32), Signatures: [][]byte{{1}}}) == nil {
			<-time.After(mapTimeout / 4)
		}
	})
	d := digest.FromString("x")
	r := newRoom(a.Swarm, leaves(d))
	a.discover(t.Context(), leaves(d), r)
	require.True(t, r.awaited, "it has said that it holds the blob")
}

func TestRoom_WhoSaysToHoldTheBlobIsWaitedForBeyondTheGrace(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		upstream, searching, answered, promised, held bool
		longer, longerStill                           bool
	}{
		"not where nobody says so":            {upstream: true, searching: true, answered: true},
		"once, where nobody has answered yet": {upstream: true, searching: true, longer: true},
		"once, as it may not keep its word":   {upstream: true, searching: true, promised: true, longer: true},
		"not once the search is over":         {upstream: true, promised: true, held: true},
		"to the end of the search where a participant has heard of one": {upstream: true, searching: true, answered: true,
			held: true, longer: true, longerStill: true},
		"for ever where there is no other source": {searching: true, longer: true, longerStill: true},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			r := newRoom(&Swarm{}, leaves(digest.FromString("x")))
			r.held = tc.held
			j := schedule.Join{Upstream: tc.upstream, Whole: true, Report: schedule.Report{Size: 100}}
			require.NoError(t, r.table.Join(time.Now(), "someone", j))
			if tc.answered {
				r.answered()
			}
			if tc.promised {
				r.promised()
			}
			longer, _ := r.afterGrace(tc.searching)
			require.Equal(t, tc.longer, longer)
			longer, _ = r.afterGrace(tc.searching)
			require.Equal(t, tc.longerStill, longer)
		})
	}
}

func TestOrders_ThoseThatLeadNowhereUseUpTheBudgetOfTheirCoordinator(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		orders          schedule.Orders
		atLeast, atMost int // in a second, for as long as it goes on
	}{
		"nothing at all":        {schedule.Orders{}, 1, 200},
		"a size, over and over": {schedule.Orders{Size: 1}, 1, 200},
		"a lease":               {schedule.Orders{Leases: []schedule.Run{{First: 0, Count: 1}}}, 10_000, 20_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			perSecond := workRate / costOf(test.orders)
			require.LessOrEqual(t, perSecond, test.atMost)
			require.GreaterOrEqual(t, perSecond, test.atLeast)
		})
	}
}

// A claim that takes the place of another is passed on, and so it has to be signed by whom it names.
func TestVouch_AHolderReplacesNoClaimButBySigningItsOwn(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	known, right := schedule.Sum{1}, schedule.Sum{2}
	for name, tc := range map[string]struct {
		change func(c *schedule.Claim, reader schedule.Claim)
		fails  bool
		want   schedule.Sum
	}{
		"signed":                {change: func(*schedule.Claim, schedule.Claim) {}, want: right},
		"not signed":            {change: func(c *schedule.Claim, _ schedule.Claim) { c.Signature = nil }, fails: true, want: known},
		"in another's name":     {change: func(c *schedule.Claim, r schedule.Claim) { c.By = r.By }, want: known},
		"another's word, again": {change: func(c *schedule.Claim, r schedule.Claim) { *c = r }, want: known},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTestSwarm(t)
			r, err := s.room(leaves(d), s.ID())
			require.NoError(t, err)
			claim := func(sum schedule.Sum) schedule.Claim {
				key := newKey(t)
				by, err := peer.IDFromPrivateKey(key)
				require.NoError(t, err)
				c, err := signClaim(key, by, leaves(d), 0, sum)
				require.NoError(t, err)
				return c
			}
			size := int64(content.ChunkSize)
			read, held := claim(known), claim(right)
			holder := held.By
			tc.change(&held, read)
			join := func(p peer.ID, c schedule.Claim, complete bool) error {
				return r.join(t.Context(), newParticipant(p), schedule.Join{Upstream: true, Whole: true, Report: schedule.Report{
					Size: size, Claims: []schedule.Claim{c}, Complete: complete}})
			}
			require.NoError(t, join(read.By, read, false))
			err = join(holder, held, true)
			require.Equal(t, tc.fails, err != nil, err)
			r.mu.Lock()
			defer r.mu.Unlock()
			want := schedule.Claim{Index: 0, Sum: tc.want}
			require.True(t, r.table.Known(holder, size, want))
		})
	}
}

// lateKey is an identity that signs nothing more once it is to wait, until it may.
type lateKey struct {
	crypto.PrivKey
	wait atomic.Bool
	may  chan struct{}
}

func (k *lateKey) Sign(b []byte) ([]byte, error) {
	if k.wait.Load() {
		<-k.may
	}
	return k.PrivKey.Sign(b)
}

// Where all who hold a blob sign on few processors, the coordinator sends someone upstream before any of them is done.
func TestDiscover_AHolderSaysSoBeforeItSigns(t *testing.T) {
	t.Parallel()
	a := newTestSwarm(t)
	key := &lateKey{PrivKey: newKey(t), may: make(chan struct{})}
	b := newTestSwarm(t, startingFrom(a), func(o *Options) { o.Identity = key })
	eventually(t, "connected", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
	data := bytes.Repeat([]byte("x"), content.ChunkSize+1)
	d := digest.FromBytes(data)
	require.NoError(t, b.store.Put(t.Context(), d, bytes.NewReader(data), int64(len(data))))
	key.wait.Store(true)
	sign := sync.OnceFunc(func() { close(key.may) })
	defer sign()
	size, _, claims, err := a.askMap(t.Context(), b.ID(), leaves(d), func(mapHead) { sign() })
	require.NoError(t, err, "it has said so, and signs then")
	require.EqualValues(t, len(data), size)
	require.Len(t, claims, 2)
	require.NoError(t, VerifyClaim(leaves(d), claims[1]))
}

// Of a chunk for which a claim is forged nothing is passed on, whatever else the same report says of it: who passes a
// forged claim on is banned for it.
func TestVouch_ASecondClaimOfAChunkHidesNoForgedOne(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	s := newTestSwarm(t)
	r, err := s.room(leaves(d), s.ID())
	require.NoError(t, err)
	key := newKey(t)
	by, err := peer.IDFromPrivateKey(key)
	require.NoError(t, err)
	signed, err := signClaim(key, by, leaves(d), 0, schedule.Sum{1})
	require.NoError(t, err)
	forged := schedule.Claim{Index: 0, Sum: schedule.Sum{2}, By: s.ID()}
	for _, claims := range [][]schedule.Claim{{forged, signed}, {signed, forged}} {
		got, err := r.vouch(t.Context(), by, content.ChunkSize, claims)
		require.NoError(t, err)
		require.Empty(t, got)
	}
}
