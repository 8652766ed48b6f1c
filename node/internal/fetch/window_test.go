package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/schedule"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
)

// noRoom leaves room for a window, and for nothing else.
var noRoom = store.Limits{Capacity: 2 * slots * content.ChunkSize}

const slots = 32 // chunks of a window in half of that

// tight leaves room for the smallest, and least for nothing beside it.
var (
	tight = store.Limits{Capacity: slots * content.ChunkSize}
	least = store.Limits{Capacity: slots * content.ChunkSize / 2}
)

func limit(t *testing.T, nodes []*testNode, l store.Limits) {
	t.Helper()
	for _, n := range nodes {
		require.NoError(t, n.store.SetLimits(l))
	}
}

// watch looks how much the nodes hold until the returned function is called, which tells the most.
func watch(nodes []*testNode) (most func() int64) {
	var peak int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, n := range nodes {
				u := n.store.Usage()
				peak = max(peak, u.Bytes+u.IngestBytes)
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return func() int64 {
		close(stop)
		<-done
		return peak
	}
}

func TestWindow_NodesWithoutRoomShareOneCopy(t *testing.T) {
	const size = 96 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	nodes := newSwarm(t, o, 4)
	limit(t, nodes, noRoom)
	most := watch(nodes)
	pullAll(t, nodes, o.request(d), 0)
	require.LessOrEqual(t, most(), int64(slots*chunk1), "no node holds more than its window")
	require.LessOrEqual(t, o.Bytes.Load(), int64(size)*13/10, "the registry sends about one copy")
	for _, n := range nodes {
		require.EqualValues(t, 1, n.metric(t, "shoal_fetch_windows_total"))
	}
}

func TestWindow_WhatOneNodeHoldsOthersReadThroughTheirs(t *testing.T) {
	const size = 40 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	nodes := newSwarm(t, o, 4)
	limit(t, nodes[1:], tight)
	pullAll(t, nodes, o.request(d), 0)
	eventually(t, "the one with room keeps it", func() bool {
		_, err := nodes[0].store.Stat(d)
		return err == nil
	})
	sent := o.Bytes.Load()
	pullAll(t, nodes[1:], o.request(d), 0)
	require.LessOrEqual(t, o.Bytes.Load(), sent+size/10, "the registry gives next to nothing more")
}

func TestWindow_ReadersAtDifferentPlacesAreAllServed(t *testing.T) {
	const size = 40 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	n := newSwarm(t, o, 1)
	limit(t, n, tight)
	pullAll(t, []*testNode{n[0], n[0], n[0]}, o.request(d), 30*time.Millisecond)
	require.LessOrEqual(t, n[0].store.Usage().IngestBytes, int64(slots*chunk1/2))
}

func TestWindow_OneReaderThatStandsStillHoldsUpNobody(t *testing.T) {
	const size = 40 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	nodes := newSwarm(t, o, 2)
	limit(t, nodes, tight)
	req := o.request(d)
	stuck, err := nodes[0].Open(t.Context(), req)
	require.NoError(t, err)
	body, err := stuck.Range(t.Context(), 0, size)
	require.NoError(t, err)
	_, err = io.CopyN(io.Discard, body, 3*chunk1)
	require.NoError(t, err)

	pullAll(t, []*testNode{nodes[0], nodes[1]}, req, 0)

	sum := sha256.New()
	rest, err := io.Copy(sum, body)
	require.NoError(t, err, "and it goes on where it was")
	require.EqualValues(t, size-3*chunk1, rest)
	require.NoError(t, body.Close())
	require.NoError(t, stuck.Close())
}

// fileOf asks for a blob as for a file of a hub, whose clients check nothing.
func fileOf(o *origin, d digest.Digest) content.Request {
	req := o.request(d)
	req.File = "/v2/a/b/blobs/" + d.String()
	return req
}

// part opens a part of a blob, which is closed with the test.
func part(t *testing.T, n *testNode, req content.Request, off, size int64) io.Reader {
	t.Helper()
	r, err := n.Open(t.Context(), req)
	require.NoError(t, err)
	body, err := r.Range(t.Context(), off, size)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = body.Close()
		_ = r.Close()
	})
	return body
}

// Parallel downloads read parts of a file side by side. Each reader takes its chunk in each round, so that no node is
// ahead of another, whatever the machine does.
func TestWindow_PartsSideBySideCostOneCopy(t *testing.T) {
	const (
		parts  = 3
		rounds = 8
		size   = parts*rounds*chunk1 + 1 // the end, which waits for the digest, is in none of the parts
	)
	o := newOrigin(t)
	d := o.add(t, size)
	nodes := newSwarm(t, o, 4)
	limit(t, nodes, least)
	most := watch(nodes)
	var readers []io.Reader
	var at []int64
	for _, n := range nodes {
		for i := range int64(parts) {
			readers = append(readers, part(t, n, fileOf(o, d), i*rounds*chunk1, rounds*chunk1))
			at = append(at, i*rounds*chunk1)
		}
	}
	data := o.Blob(d)
	for range rounds {
		var group errgroup.Group
		for i, r := range readers {
			group.Go(func() error {
				got := make([]byte, chunk1)
				if _, err := io.ReadFull(r, got); err != nil {
					return err
				}
				if !bytes.Equal(got, data[at[i]:at[i]+chunk1]) {
					return fmt.Errorf("wrong bytes at %d", at[i])
				}
				at[i] += chunk1
				return nil
			})
		}
		require.NoError(t, group.Wait())
	}
	require.LessOrEqual(t, most(), int64(slots*chunk1/2), "no node holds more than its window")
	t.Logf("%.2f copies", float64(o.Bytes.Load())/size)
	require.LessOrEqual(t, o.Bytes.Load(), int64(size)*13/10, "the hub sends about one copy")
}

// What a parallel download was given is read once more, in order, before its last part ends.
func TestWindow_TheLastOfPartsSideBySideEndsWhenTheDigestMatches(t *testing.T) {
	const size = 21 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	nodes := newSwarm(t, o, 3)
	limit(t, nodes, least)
	data := o.Blob(d)
	var group errgroup.Group
	for _, n := range nodes {
		for i := range int64(3) {
			off, r := i*size/3, part(t, n, fileOf(o, d), i*size/3, size/3)
			group.Go(func() error {
				got, err := io.ReadAll(r)
				if err == nil && !bytes.Equal(got, data[off:off+size/3]) {
					err = fmt.Errorf("wrong bytes from %d on", off)
				}
				return err
			})
		}
	}
	require.NoError(t, group.Wait())
	t.Logf("%.2f copies", float64(o.Bytes.Load())/size)
	for _, n := range nodes {
		require.EqualValues(t, 1, n.metric(t, "shoal_fetch_windows_total"))
	}
}

func TestWindow_AWrongByteInOneOfPartsSideBySideEndsNoDownload(t *testing.T) {
	const size = 24 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	o.Spoil(func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		wrong := bytes.Clone(data)
		wrong[5*chunk1+3]++
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wrong))
		return true
	})
	n := newSwarm(t, o, 1)[0]
	limit(t, []*testNode{n}, least)
	first := part(t, n, fileOf(o, d), 0, size/2)
	last := part(t, n, fileOf(o, d), size/2, size/2)
	_, err := io.Copy(io.Discard, first)
	require.NoError(t, err, "nothing but the whole can be checked")
	given, err := io.Copy(io.Discard, last)
	require.ErrorIs(t, err, content.ErrDigestMismatch)
	require.Less(t, given, int64(size/2))
}

func TestWindow_APartAloneNeedsNothingElse(t *testing.T) {
	const size = 24 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	n := newSwarm(t, o, 1)[0]
	limit(t, []*testNode{n}, least)
	got, err := io.ReadAll(part(t, n, o.request(d), 5*chunk1, 10))
	require.NoError(t, err)
	require.Equal(t, o.Blob(d)[5*chunk1:5*chunk1+10], got)
	require.LessOrEqual(t, o.Bytes.Load(), int64(4*chunk1))
}

func TestWindow_MoreReadersThanItHasRoomForAreServedPastIt(t *testing.T) {
	const size = 24 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	n := newSwarm(t, o, 1)[0]
	limit(t, []*testNode{n}, least)
	var readers []io.Reader
	for i := range int64(8) {
		readers = append(readers, part(t, n, fileOf(o, d), i*size/8, size/8))
	}
	data := o.Blob(d)
	for i, r := range readers {
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.True(t, bytes.Equal(got, data[i*size/8:(i+1)*size/8]), i)
	}
}

// Nobody else sees all of the blob, so each reader takes its sum.
func TestWindow_AWrongByteNeverEndsAnAnswer(t *testing.T) {
	const size = 40 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	var once sync.Once
	o.Spoil(func(w http.ResponseWriter, r *http.Request, data []byte) (spoilt bool) {
		if r.Method != http.MethodGet {
			return false
		}
		once.Do(func() {
			spoilt = true
			wrong := bytes.Clone(data)
			wrong[0]++
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wrong))
		})
		return spoilt
	})
	n := newSwarm(t, o, 1)[0]
	limit(t, []*testNode{n}, tight)
	got, err := n.read(t.Context(), o.request(d))
	require.ErrorIs(t, err, content.ErrDigestMismatch)
	require.Less(t, len(got), size)
	pullAll(t, []*testNode{n}, o.request(d), 0)
}

// The window itself cannot tell: it never sees the whole.
func TestWindow_WhoLiesInOneIsBannedOnceTheWholeIsRead(t *testing.T) {
	const size = 40 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	n := newSwarm(t, o, 1)[0]
	limit(t, []*testNode{n}, tight)
	wrong := bytes.Clone(o.Blob(d))
	wrong[3*chunk1] ^= 1
	liar := hostile(t, infos([]*testNode{n}), newLie(t, d, wrong))
	connected(t, []*testNode{n}, liar.ID())
	got, err := n.read(t.Context(), o.request(d))
	require.ErrorIs(t, err, content.ErrDigestMismatch)
	require.Less(t, len(got), size)
	require.EqualValues(t, 1, n.metric(t, "shoal_fetch_windows_total"), "or this test shows nothing")
	require.Zero(t, n.metric(t, "shoal_peer_bans_total"), "it is not known yet who was wrong")
	pullAll(t, []*testNode{n}, o.request(d), 0)
	eventually(t, "banned", func() bool { return n.metric(t, "shoal_peer_bans_total") == 1 })
}

// A window stays for nodes that begin later, but not where another file needs its room.
func TestWindow_OneThatNobodyReadsMakesRoomForTheNext(t *testing.T) {
	o := newOrigin(t)
	first, second := o.add(t, 40*chunk1), o.add(t, 40*chunk1)
	nodes := newSwarm(t, o, 2)
	limit(t, nodes, least)
	before := o.Bytes.Load()
	for _, d := range []digest.Digest{first, second} {
		pullAll(t, nodes, o.request(d), 0)
	}
	for _, n := range nodes {
		require.EqualValues(t, 2, n.metric(t, "shoal_fetch_windows_total"))
	}
	require.Less(t, float64(o.Bytes.Load()-before), 2*1.3*40*chunk1)
}

func TestWindow_WhatIsToBeKeptGoesThroughNone(t *testing.T) {
	o := newOrigin(t)
	d := o.add(t, 40*chunk1)
	n := newSwarm(t, o, 1)[0]
	limit(t, []*testNode{n}, tight)
	require.ErrorIs(t, n.Ensure(t.Context(), o.request(d)), content.ErrNoSpace)
	require.Zero(t, n.metric(t, "shoal_fetch_windows_total"))
}

func TestWindow_TheNodeThatReadsForAllDies(t *testing.T) {
	const size = 40 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	nodes := newSwarm(t, o, 4, func(_ int, fo *Options, so *swarm.Options) {
		fo.PeerSilence, so.Schedule = 2*time.Second, schedule.Config{LeaseTimeout: 3 * time.Second}
	})
	limit(t, nodes, tight)
	req := o.request(d)
	ctx, cancel := context.WithCancel(t.Context())
	first, err := nodes[3].Open(ctx, req)
	require.NoError(t, err)
	body, err := first.Range(ctx, 0, size)
	require.NoError(t, err)
	_, err = io.CopyN(io.Discard, body, 2*chunk1)
	require.NoError(t, err)
	died := make(chan struct{})
	go func() {
		defer close(died)
		cancel()
		_ = body.Close()
		_ = first.Close()
		nodes[3].stop(t)
	}()
	pullAll(t, nodes[:3], req, 0)
	<-died
}

// Room is made for what arrives, so two that were let in may not find room together.
func TestWindow_GoesOnWithTheSlotsThatItHasWhereWhatWasLetInBeforeTakesTheRest(t *testing.T) {
	const size = 40 * chunk1
	o := newOrigin(t)
	d := o.add(t, size)
	nodes := newSwarm(t, o, 2, func(i int, fo *Options, _ *swarm.Options) {
		fo.PeersOnly = func(content.Repository) bool { return i == 1 } // it has nobody else to go to
	})
	pullAll(t, nodes[:1], o.request(d), 0)
	n := nodes[1]
	limit(t, nodes[1:], tight)
	before, err := n.store.Ingest(digest.FromString("before"), (slots-4)*content.ChunkSize, store.Origin{})
	require.NoError(t, err)
	defer func() { require.NoError(t, before.Close()) }()
	r, err := n.Open(t.Context(), o.request(d))
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	body, err := r.Range(t.Context(), 0, size)
	require.NoError(t, err)
	defer func() { _ = body.Close() }()
	sum := sha256.New()
	_, err = io.CopyN(sum, body, chunk1/2)
	require.NoError(t, err)
	eventually(t, "some of it is here", func() bool { return n.store.Usage().IngestBytes >= 6*chunk1 })
	data := make([]byte, content.ChunkSize)
	for i := range before.Len() {
		if err = before.WriteChunk(i, content.ChunkCID(data), data); err != nil {
			break
		}
	}
	require.LessOrEqual(t, slots*chunk1-n.store.Usage().IngestBytes, int64(4*chunk1), "next to nothing is left")
	_, err = io.Copy(sum, body)
	require.NoError(t, err)
	require.Equal(t, d.Encoded(), fmt.Sprintf("%x", sum.Sum(nil)))
}
