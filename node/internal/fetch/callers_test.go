package fetch

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// chunk1 is the size of one chunk.
const chunk1 = content.ChunkSize

func TestManyCallersShareOneFetch(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 12*chunk1+5)
	v := newValve(t, o, 4)
	n := newNode(t, o, "n", nil, patient(t, o))
	var pulls []*pull
	for range 8 {
		pulls = append(pulls, n.pull(t.Context(), o.request(d)))
	}
	eventually(t, "all callers wait", func() bool {
		s, _ := n.running(d)
		return s.Readers == len(pulls)
	})
	v.open()
	for _, p := range pulls {
		p.requireRight(t, d)
	}
	require.Equal(t, int64(12*chunk1+5), o.Bytes.Load(), "the registry sent each byte once")
	require.InDelta(t, 8*(12*chunk1+5), n.metric(t, "shoal_served_bytes_total"), 0)
}

func TestOpen_TellsWhatWasHeldBefore(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	n := newNode(t, o, "n", nil, patient(t, o))
	held := func(d digest.Digest) bool {
		r, err := n.Open(t.Context(), o.request(d))
		require.NoError(t, err)
		require.NoError(t, r.Close())
		return content.Held(r)
	}
	cold, pinned := o.add(t, 5), o.add(t, 6)
	require.False(t, held(cold), "however soon it has come")
	require.NoError(t, n.Ensure(t.Context(), o.request(pinned)))
	require.True(t, held(pinned))
	require.NoError(t, n.Ensure(t.Context(), o.request(cold)))
	require.True(t, held(cold))
}

func TestACallerThatGoesAwayDoesNotEndAnothersFetch(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 12*chunk1)
	v := newValve(t, o, 4)
	n := newNode(t, o, "n", nil, patient(t, o))
	ctx, cancel := context.WithCancel(t.Context())
	goes, stays := n.pull(ctx, o.request(d)), n.pull(t.Context(), o.request(d))
	eventually(t, "both are served", func() bool {
		s, _ := n.running(d)
		return s.Readers == 2 && s.Arrived > 0
	})
	cancel()
	<-goes.done
	require.ErrorIs(t, goes.err, context.Canceled)
	eventually(t, "it is gone", func() bool { s, _ := n.running(d); return s.Readers == 1 })
	v.open()
	stays.requireRight(t, d)
	require.Equal(t, int64(12*chunk1), o.Bytes.Load())
}

// To resume what is left may take long, where it is cut otherwise.
func TestACallerMayLeaveWhileAnIngestIsResumed(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int64{"of a size that the caller knows": 3 * chunk1,
		"of one that upstream tells": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, 3*chunk1)
			n := newNode(t, o, "n", nil)
			resuming, goOn := make(chan struct{}), make(chan struct{})
			n.ingest = func(d digest.Digest, size int64, from store.Origin) (*store.Ingest, error) {
				close(resuming)
				<-goOn
				return n.store.Ingest(d, size, from)
			}
			req := o.request(d)
			req.Size = size
			stays := n.pull(t.Context(), req)
			<-resuming
			ctx, cancel := context.WithCancel(t.Context())
			goes := make(chan error, 1)
			go func() {
				_, err := n.Open(ctx, req)
				goes <- err
			}()
			cancel()
			select {
			case err := <-goes:
				require.ErrorIs(t, err, context.Canceled)
			case <-time.After(patience):
				t.Error("the caller is held up")
			}
			close(goOn)
			stays.requireRight(t, d)
		})
	}
}

// The first of all callers brought the request; the fetch must go on for those who came after.
func TestAFetchThatNoOneWaitsForEndsAfterAWhile(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 12*chunk1)
	newValve(t, o, 4)
	n := newNode(t, o, "n", nil, patient(t, o), lingering(1))
	ctx, cancel := context.WithCancel(t.Context())
	p := n.pull(ctx, o.request(d))
	eventually(t, "it runs", func() bool { s, _ := n.running(d); return s.Arrived > 0 })
	cancel()
	<-p.done
	eventually(t, "it has ended", func() bool { _, runs := n.running(d); return !runs })
}

func TestTheFirstByteComesLongBeforeTheLast(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 12*chunk1)
	v := newValve(t, o, 2)
	n := newNode(t, o, "n", nil, patient(t, o))
	r, err := n.Open(t.Context(), o.request(d))
	require.NoError(t, err)
	defer func() { _ = r.Close() }()
	body, err := r.Range(t.Context(), 0, r.Size())
	require.NoError(t, err)
	defer func() { _ = body.Close() }()
	start := make([]byte, 2*chunk1)
	_, err = io.ReadFull(body, start)
	require.NoError(t, err, "while the registry holds the rest back")
	v.open()
	rest, err := io.ReadAll(body)
	require.NoError(t, err)
	require.Equal(t, d, digest.FromBytes(append(start, rest...)))
}

func TestARangeOfAnAbsentBlobReadsOnlyTheChunksItNeeds(t *testing.T) {
	t.Parallel()
	const size = 24*chunk1 + 9
	for name, c := range map[string]struct {
		nodes      int
		known      int64 // the size that the caller knows
		off, n     int64
		mostChunks int64
	}{
		"in the middle":                        {1, size, 5*chunk1 + 10, 2 * chunk1, 3},
		"of a blob of unknown size":            {1, 0, 5*chunk1 + 10, 2 * chunk1, 4},
		"of one byte":                          {1, size, 7 * chunk1, 1, 1},
		"up to the end":                        {1, size, 22 * chunk1, 2*chunk1 + 9, 3},
		"of the same place, on several nodes":  {3, size, 5*chunk1 + 10, 2 * chunk1, 3},
		"of unknown size, on several nodes":    {3, 0, 5*chunk1 + 10, 2 * chunk1, 4},
		"of nothing, for which none is needed": {1, size, 5, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, size)
			want := o.Blob(d)[c.off : c.off+c.n]
			req := o.request(d)
			req.Size, req.Part = c.known, true
			for _, n := range newSwarm(t, o, c.nodes, allPatient(t, o)) {
				r, err := n.Open(t.Context(), req)
				require.NoError(t, err)
				defer func() { _ = r.Close() }()
				body, err := r.Range(t.Context(), c.off, c.n)
				require.NoError(t, err)
				got, err := io.ReadAll(body)
				require.NoError(t, err)
				require.Equal(t, digest.FromBytes(want), digest.FromBytes(got))
				require.NoError(t, body.Close())
			}
			require.LessOrEqual(t, o.Bytes.Load(), c.mostChunks*chunk1+1, "and the byte whose answer tells the size")
		})
	}
}

func TestAVerifiedRangeIsGivenOnceTheWholeBlobIsHere(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 9*chunk1+4)
	v := newValve(t, o, 6)
	n := newNode(t, o, "n", nil, patient(t, o), verifiedRanges)
	r, err := n.Open(t.Context(), o.request(d))
	require.NoError(t, err)
	defer func() { _ = r.Close() }()
	body, err := r.Range(t.Context(), 2*chunk1-5, 10)
	require.NoError(t, err)
	defer func() { _ = body.Close() }()
	got := make(chan []byte, 1)
	go func() {
		data, _ := io.ReadAll(body)
		got <- data
	}()
	eventually(t, "what the range needs is here, and more", func() bool {
		s, _ := n.running(d)
		return s.Arrived >= 4*chunk1
	})
	require.Empty(t, got, "given before the digest of the whole was known")
	v.open()
	require.Equal(t, o.Blob(d)[2*chunk1-5:2*chunk1+5], <-got)
}

func verifiedRanges(fo *Options, _ *swarm.Options) { fo.VerifiedRanges = true }

func TestARangeOutsideTheBlobIsAnError(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 10)
	n := newNode(t, o, "n", nil)
	for _, whole := range []bool{false, true} { // arriving, and held
		if whole {
			require.NoError(t, n.Ensure(t.Context(), o.request(d)))
		}
		r, err := n.Open(t.Context(), o.request(d))
		require.NoError(t, err)
		for _, c := range [][2]int64{{-1, 1}, {0, 11}, {11, 0}, {5, -1}, {1 << 62, 1 << 62}} {
			_, err = r.Range(t.Context(), c[0], c[1])
			require.Error(t, err, "%v", c)
		}
		require.NoError(t, r.Close())
	}
}

func TestEnsureBringsABlobIntoTheStoreOnce(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 3*chunk1+1)
	n := newNode(t, o, "n", nil)
	for range 2 {
		require.NoError(t, n.Ensure(t.Context(), o.request(d)))
	}
	info, err := n.store.Stat(d)
	require.NoError(t, err)
	require.Equal(t, int64(3*chunk1+1), info.Size)
	require.Equal(t, int64(3*chunk1+1), o.Bytes.Load())
	require.ErrorIs(t, n.Ensure(t.Context(), o.request(digest.FromString("none"))), content.ErrNotFound)
}

func TestAnEmptyBlobIsServed(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 0)
	pullAll(t, newSwarm(t, o, 2), o.request(d), 0)
}

func TestARestartGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 16*chunk1)
	v := newValve(t, o, 8)
	disk := store.Options{Path: t.TempDir()}
	n := newNodeOn(t, o, "n", nil, disk, patient(t, o))
	p := n.pull(t.Context(), o.request(d))
	eventually(t, "half is here", func() bool { s, _ := n.running(d); return s.Arrived == 8*chunk1 })
	n.stop(t)
	<-p.done
	require.Error(t, p.err, "half a blob does not end as a whole one")
	v.open()

	var asked atomic.Int64
	o.Spoil(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		var first, last int64
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
			first, last = 0, 1<<40 // all of it
		}
		asked.Add(last - first + 1)
		return false
	})
	n = newNodeOn(t, o, "n", nil, disk)
	n.pull(t.Context(), o.request(d)).requireRight(t, d)
	require.EqualValues(t, 8*chunk1, asked.Load(), "nothing that was kept is read again")
}

func TestAStoreWithoutRoomReadsStraightFromUpstream(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 6*chunk1+7)
	n := newNodeOn(t, o, "n", nil, store.Options{Path: t.TempDir(), Limits: store.Limits{Capacity: 2 * chunk1}})
	for range 2 {
		n.pull(t.Context(), o.request(d)).requireRight(t, d)
	}
	_, err := n.store.Stat(d)
	require.ErrorIs(t, err, content.ErrNotFound)
	require.ErrorIs(t, n.Ensure(t.Context(), o.request(d)), content.ErrNoSpace)

	r, err := n.Open(t.Context(), o.request(d))
	require.NoError(t, err)
	body, err := r.Range(t.Context(), chunk1-3, 10)
	require.NoError(t, err)
	got, err := io.ReadAll(body)
	require.NoError(t, err)
	require.Equal(t, o.Blob(d)[chunk1-3:chunk1+7], got)
	require.NoError(t, body.Close())
	n.opts.VerifiedRanges = true
	_, err = r.Range(t.Context(), chunk1-3, 10)
	require.ErrorIs(t, err, content.ErrUnavailable, "what cannot be kept cannot be verified in parts")
	require.NoError(t, r.Close())
}

// named tells in whose name upstream is asked for documents.
type named struct {
	Upstream
	callers chan string
}

func (n named) Open(ctx context.Context, req content.Request, off, size int64) (*upstream.Body, error) {
	n.callers <- room.Caller(ctx)
	return n.Upstream.Open(ctx, req, off, size)
}

// Nobody fills the room for documents in another's name.
func TestOpen_AManifestTakesRoomInTheNameOfItsCaller(t *testing.T) {
	t.Parallel()
	callers := make(chan string, 16)
	fr, s, req, data := scripted(t, 1, func(o *Options) { o.Upstream = named{o.Upstream, callers} })
	req.Kind = content.Manifest
	go func() { _, _ = fr.Open(room.For(t.Context(), "10.1.2.3"), req) }()
	session := s.next(t)
	session.orders <- schedule.Orders{Size: int64(len(data)), Leases: []schedule.Run{{First: 0, Count: 1}}}
	require.Equal(t, "10.1.2.3", <-callers)
}

func TestOpen_AManifestThatSeveralWaitForTakesRoomInNobodysName(t *testing.T) {
	t.Parallel()
	callers := make(chan string, 16)
	fr, s, req, data := scripted(t, 1, func(o *Options) { o.Upstream = named{o.Upstream, callers} })
	req.Kind = content.Manifest
	for _, caller := range []string{"10.1.2.3", "10.1.2.4"} {
		go func() { _, _ = fr.Open(room.For(t.Context(), caller), req) }()
	}
	session := s.next(t)
	eventually(t, "both wait", func() bool {
		running := fr.Running()
		return len(running) == 1 && running[0].Readers == 2
	})
	fr.mu.Lock()
	ctx := fr.fetches[req.Digest].ctx
	fr.mu.Unlock()
	eventually(t, "it is for both", func() bool { return room.Caller(ctx) == "" })
	session.orders <- schedule.Orders{Size: int64(len(data)), Leases: []schedule.Run{{First: 0, Count: 1}}}
	require.Empty(t, <-callers)
}
