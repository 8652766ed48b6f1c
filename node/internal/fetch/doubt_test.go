package fetch

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// anotherFace is upstream as a node sees it that a registry gives wrong bytes of the right length.
func anotherFace(t *testing.T, o *origin) Upstream {
	t.Helper()
	wrong := newOrigin(t)
	wrong.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		right := o.Blob(digest.Digest(path.Base(r.URL.Path)))
		if right == nil {
			http.NotFound(w, r)
			return
		}
		spoilt := make([]byte, len(right))
		for i, b := range right {
			spoilt[i] = b ^ 1
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(spoilt))
	}))
	up, err := upstream.New(upstream.Options{
		Upstreams: []upstream.Upstream{{Registry: "images.test", Endpoints: []string{wrong.URL}}},
		Logger:    testLogger("the other face"),
		Timeouts:  upstream.Timeouts{Retry: time.Second, Stall: 20 * time.Second},
	})
	require.NoError(t, err)
	t.Cleanup(up.Close)
	return up
}

// readUntilRight reads as a runtime does, which begins again where an answer breaks off. An answer that ends cleanly with
// wrong bytes is an error.
func (n *testNode) readUntilRight(ctx context.Context, req content.Request) (err error) {
	for range 100 {
		got := req.Digest.Algorithm().Digester()
		if err = n.readTo(ctx, got.Hash(), req); err == nil {
			if got.Digest() != req.Digest {
				err = fmt.Errorf("the bytes are those of %s", got.Digest())
			}
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

// readAllUntilRight has all nodes do so at one time.
func readAllUntilRight(t *testing.T, nodes []*testNode, req content.Request) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(nodes))
	for i, n := range nodes {
		wg.Go(func() { errs[i] = n.readUntilRight(t.Context(), req) })
	}
	wg.Wait()
	require.Equal(t, make([]error, len(nodes)), errs)
}

// The registry sends each range wrong once, so all are misled, and what they have gathered is worth nothing.
func TestElected_OneReadsAnewForAllWhatDidNotMatch(t *testing.T) {
	const size = 12*chunk1 + 5
	o := newOrigin(t)
	var mu sync.Mutex
	told := map[string]bool{}
	o.Spoil(func(w http.ResponseWriter, r *http.Request, right []byte) bool {
		var from, to int
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
			return false
		}
		given := slices.Clone(right)
		mu.Lock()
		defer mu.Unlock()
		for i := 0; i < len(given); i += chunk1 {
			if place := fmt.Sprint(r.URL.Path, i); from <= i && i <= to && !told[place] {
				told[place] = true
				given[i] ^= 1
			}
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(given))
		return true
	})
	nodes := newSwarm(t, o, 4, allPatient(t, o))
	for range 2 {
		d := o.add(t, size)
		before := o.Bytes.Load()
		readAllUntilRight(t, nodes, o.request(d))
		require.LessOrEqual(t, float64(o.Bytes.Load()-before)/size, 2.5, "copies: what was wrong, once more, and little twice")
	}
	for i, n := range nodes {
		require.Zero(t, n.metric(t, "shoal_peer_bans_total"), "node %d", i)
	}
}

// It runs alone: four nodes that wait for each other have to have the machine.
func TestTwoFaces_ARegistryThatMisleadsOneNodeSetsNodesAgainstNobody(t *testing.T) {
	const size, misled = 12*chunk1 + 5, 3
	o := newOrigin(t)
	face := anotherFace(t, o)
	nodes := newSwarm(t, o, 4, allPatient(t, o), func(i int, fo *Options, _ *swarm.Options) {
		if i == misled {
			fo.Upstream = face
		}
	})
	var copies []float64
	for range 4 {
		d := o.add(t, size)
		before := o.Bytes.Load()
		readAllUntilRight(t, nodes, o.request(d))
		copies = append(copies, float64(o.Bytes.Load()-before)/size)
		for i, n := range nodes { // who was misled is found out as the last fetch ends
			eventually(t, fmt.Sprintf("node %d is done", i), func() bool { return len(n.Running()) == 0 })
		}
	}
	t.Logf("copies: %.2f", copies)
	require.LessOrEqual(t, copies[0], 3.2,
		"what was wrong, what is read beside what one misled node reads for all, and what another then reads")
	for _, n := range copies[1:] {
		require.LessOrEqual(t, n, 1.05, "who was misled once reads nothing for others any more")
	}
	for i, n := range nodes {
		require.Zero(t, n.metric(t, "shoal_peer_bans_total"), "node %d", i)
		require.Len(t, n.swarm.Peers(), len(nodes)-1, "node %d", i)
	}
}

func TestTwoFaces_OnceTheRegistryTellsTheTruthAllIsAsBefore(t *testing.T) {
	t.Parallel()
	const size = 3*chunk1 + 5
	o := newOrigin(t)
	d := o.add(t, size)
	n := newNode(t, o, "n", nil)
	var truthful atomic.Bool
	o.Spoil(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if truthful.Load() {
			return false
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, size)))
		return true
	})
	_, err := n.read(t.Context(), o.request(d))
	require.ErrorIs(t, err, content.ErrDigestMismatch)
	require.NotErrorIs(t, err, content.ErrMisled, "nobody else said anything")
	require.True(t, n.doubts.wary(time.Now(), "images.test"))
	truthful.Store(true)
	n.pull(t.Context(), o.request(d)).requireRight(t, d)
	require.False(t, n.doubts.wary(time.Now(), "images.test"))
}

// The fetch was begun without the registry. Then that is right again, and nobody else has the blob.
func TestTwoFaces_ARegistryThatIsRightAgainIsAskedByFetchesThatRun(t *testing.T) {
	t.Parallel()
	fr, s, req, data := scripted(t, 2, nil)
	fr.doubts.misled(time.Now(), req.Repository.Registry)
	got := readAll(t, fr, req)
	session := s.next(t)
	require.False(t, session.joined.Upstream)
	fr.doubts.right(time.Now(), req.Repository.Registry)
	session.orders <- schedule.Orders{Hopeless: true}
	alone := s.next(t)
	require.Equal(t, s.ID(), alone.coordinator)
	require.True(t, alone.joined.Upstream)
	alone.orders <- schedule.Orders{Leases: []schedule.Run{{First: 0, Count: 2}}}
	require.Equal(t, data, got())
}

func TestDoubts(t *testing.T) {
	t.Parallel()
	const self, p, q = peer.ID("self"), peer.ID("p"), peer.ID("q")
	start := time.Now()
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	type event struct {
		at, begun int
		registry  string
		who       []peer.ID
	}
	for name, tc := range map[string]struct {
		events  []event
		banned  []peer.ID
		doubted bool // p, at the end, about registry a
	}{
		"a peer is doubted once it was wrong": {
			events: []event{{10, 0, "a", []peer.ID{p}}}, doubted: true,
		},
		"and about that registry alone": {
			events: []event{{10, 0, "b", []peer.ID{p}}},
		},
		"several blobs at one time count once": {
			events:  []event{{10, 0, "a", []peer.ID{p}}, {11, 0, "a", []peer.ID{p}}, {12, 9, "a", []peer.ID{p}}},
			doubted: true,
		},
		"who is wrong a third time about what was begun after is banned": {
			events: []event{{10, 0, "a", []peer.ID{p}}, {20, 15, "a", []peer.ID{p}}, {50, 40, "a", []peer.ID{p}}},
			banned: []peer.ID{p}, doubted: true,
		},
		"not where the registry misled this node too": {
			events: []event{
				{10, 0, "a", []peer.ID{p, self}}, {20, 15, "a", []peer.ID{p}}, {50, 40, "a", []peer.ID{p}},
			},
			doubted: true,
		},
		"not where it misled another too, which speaks against the registry": {
			events: []event{
				{10, 0, "a", []peer.ID{p}}, {20, 15, "a", []peer.ID{q}}, {30, 25, "a", []peer.ID{p}},
				{60, 50, "a", []peer.ID{p}},
			},
			doubted: true,
		},
		"not over different registries": {
			events: []event{{10, 0, "a", []peer.ID{p}}, {20, 15, "b", []peer.ID{p}}, {50, 40, "c", []peer.ID{p}}},
		},
		"not where it happens seldom": {
			events:  []event{{10, 0, "a", []peer.ID{p}}, {1000, 900, "a", []peer.ID{p}}, {2000, 1900, "a", []peer.ID{p}}},
			doubted: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDoubts(self)
			var banned []peer.ID
			last := 0
			for _, e := range tc.events {
				banned = append(banned, d.wrong(at(e.at), at(e.begun), e.registry, e.who)...)
				last = e.at
			}
			require.Equal(t, tc.banned, banned)
			require.Equal(t, tc.doubted, d.doubted(at(last), "a", p))
		})
	}
}

func TestDoubts_EndAndGrowWithEachTime(t *testing.T) {
	t.Parallel()
	d := newDoubts("self")
	now := time.Now()
	for _, want := range []time.Duration{firstDoubt, 2 * firstDoubt, 4 * firstDoubt} {
		d.wrong(now, now.Add(-time.Second), "a", []peer.ID{"p"})
		require.True(t, d.doubted(now.Add(want-1), "a", "p"))
		require.False(t, d.doubted(now.Add(want), "a", "p"))
		now = now.Add(2 * want)
	}
}

// Each is the other's excuse, so that neither is banned. They are believed less and less.
func TestDoubts_TwoWhoLieTogetherAreBelievedSeldom(t *testing.T) {
	t.Parallel()
	d := newDoubts("self")
	start := time.Now()
	var lies []time.Time
	for now := start; now.Before(start.Add(4 * remembered)); now = now.Add(time.Second) {
		if d.doubted(now, "a", "p") || d.doubted(now, "a", "q") {
			continue
		}
		require.Empty(t, d.wrong(now, now, "a", []peer.ID{"p", "q"}))
		lies = append(lies, now)
		day := 0
		for _, at := range lies {
			if now.Sub(at) <= remembered {
				day++
			}
		}
		require.LessOrEqual(t, day, 17)
	}
	require.LessOrEqual(t, len(lies), 4*17)
	require.False(t, d.doubted(start, "b", "p"), "and of other registries as ever")
}

// What passed wrong through windows costs little memory, however much of it there is.
func TestDoubts_OfWindowsAreBounded(t *testing.T) {
	t.Parallel()
	d := newDoubts("self")
	now := time.Now()
	of := func(i int) digest.Digest { return digest.FromString(fmt.Sprint(i)) }
	suspects := make([]suspect, maxSuspects/4)
	for i := range 2 * maxCharges {
		d.passedWrong(charge{digest: of(i), at: now, suspects: suspects})
	}
	kept := 0
	for i := range 2 * maxCharges {
		wrong, open := d.passes(now, of(i))
		require.Equal(t, i >= maxCharges, wrong, i)
		require.Equal(t, i >= 2*maxCharges-4, open, i)
		kept += len(d.take(of(i)).suspects)
	}
	require.Equal(t, maxSuspects, kept)
	last := of(2*maxCharges - 1)
	wrong, open := d.passes(now, last)
	require.True(t, wrong, "it is read through no window")
	require.False(t, open, "though it is known who was wrong")
	wrong, _ = d.passes(now.Add(misledFor), last)
	require.False(t, wrong)
}

// The doubted peer's chunks are read by the node itself, and the others' taken as ever.
func TestDoubts_ADoubtedPeersWordIsNotTaken(t *testing.T) {
	t.Parallel()
	fr, s, req, data := scripted(t, 4, nil)
	fr.doubts.wrong(time.Now(), time.Now(), req.Repository.Registry, []peer.ID{"liar"})
	got := readAll(t, fr, req)
	session := s.next(t)
	lie := assigned(data, "liar", 1, 2)
	for i := range lie.Chunks {
		lie.Chunks[i].Sum[0] ^= 1
	}
	session.orders <- lie
	session.orders <- assigned(data, "honest", 0, 3)
	for _, w := range s.want(t, 2) {
		require.Equal(t, peer.ID("honest"), w.of)
		i := 0
		if w.cid.Equals(content.ChunkCID(chunkOf(data, 3))) {
			i = 3
		}
		w.sink.Block("honest", w.cid, chunkOf(data, i))
	}
	require.Equal(t, data, got())
}

// Peers ask for what they like.
func TestMayGet_IsOfChunksThatARunningFetchNeeds(t *testing.T) {
	t.Parallel()
	fr, s, req, data := scripted(t, 3, nil)
	chunk := func(i int) cid.Cid { return content.ChunkCID(chunkOf(data, i)) }
	short, err := cid.V1Builder{Codec: cid.Raw, MhType: multihash.IDENTITY}.Sum([]byte("x"))
	require.NoError(t, err)
	require.False(t, fr.mayGet(chunk(0)), "nothing is fetched")
	got := readAll(t, fr, req)
	session := s.next(t)
	require.True(t, fr.mayGet(chunk(0)), "any chunk may be one of it")
	require.False(t, fr.mayGet(short))
	session.orders <- assigned(data, "home", 0, 1, 2)
	wants := s.want(t, 3)
	require.True(t, fr.mayGet(chunk(2)))
	require.False(t, fr.mayGet(content.ChunkCID([]byte("of another blob"))))
	for i := range 3 {
		k := slices.IndexFunc(wants, func(w asked) bool { return w.cid.Equals(chunk(i)) })
		wants[k].sink.Block("home", wants[k].cid, chunkOf(data, i))
	}
	require.Equal(t, data, got())
	eventually(t, "it has all it needs", func() bool { return !fr.mayGet(chunk(2)) })
}
