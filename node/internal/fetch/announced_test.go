package fetch

import (
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/semaphore"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/room/roomtest"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// boaster gives each of some blobs as one of the largest that there may be, of which a byte comes and then no more.
type boaster struct {
	Upstream
	of map[digest.Digest]bool

	mu    sync.Mutex
	asked int
}

func (b *boaster) Open(ctx context.Context, req content.Request, off, n int64) (*upstream.Body, error) {
	if !b.of[req.Digest] {
		return b.Upstream.Open(ctx, req, off, n)
	}
	b.mu.Lock()
	b.asked++
	b.mu.Unlock()
	never := func() (int, error) { <-ctx.Done(); return 0, context.Cause(ctx) }
	return &upstream.Body{ReadCloser: io.NopCloser(io.MultiReader(iotest.OneByteReader(io.LimitReader(zeros{}, 1)),
		readFunc(never))), Offset: off, Size: content.MaxSize}, nil
}

func (b *boaster) Stat(ctx context.Context, req content.Request) (int64, string, error) {
	if b.of[req.Digest] {
		return content.MaxSize, "", nil
	}
	return b.Upstream.Stat(ctx, req)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type readFunc func() (int, error)

func (f readFunc) Read([]byte) (int, error) { return f() }

func TestMemory_SizesThatAreOnlyAnnouncedTakeABoundedRoomTogether(t *testing.T) {
	const many = 12
	o := newOrigin(t)
	honest := o.add(t, 3*chunk1)
	b := &boaster{of: map[digest.Digest]bool{}}
	for i := range many {
		b.of[digest.FromString(fmt.Sprint(i))] = true
	}
	n := newNodeOn(t, o, "n", nil, store.Options{Path: t.TempDir(), FreeSpace: func(string) (int64, error) {
		return 2 * many * content.MaxSize, nil
	}}, func(fo *Options, _ *swarm.Options) { b.Upstream, fo.Upstream = fo.Upstream, b })
	n.chunks = room.New(room.Share(3))
	pullAll(t, []*testNode{n}, o.request(o.add(t, chunk1)), 0)
	before := roomtest.Live()
	var all sync.WaitGroup
	for d := range b.of {
		all.Go(func() {
			r, err := n.Open(t.Context(), o.request(d))
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = r.Close() })
			body, err := r.Range(t.Context(), 0, r.Size())
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = body.Close() })
			_, _ = io.ReadFull(body, make([]byte, 1))
		})
	}
	eventually(t, "all are asked for", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.asked >= many
	})
	held := roomtest.Live() - before
	t.Logf("%d blobs that are announced to be of a TiB take %d MiB", many, held>>20)
	require.Less(t, held, int64(300<<20))
	pullAll(t, []*testNode{n}, o.request(honest), 0)
	eventually(t, "what others pull is kept meanwhile", func() bool {
		_, err := n.store.Stat(honest)
		return err == nil
	})
}

func TestMemory_IsThereForOrdinaryLayersWhateverElseIsAnnounced(t *testing.T) {
	t.Parallel()
	fr := &Fetcher{chunks: room.New(0)}
	for _, size := range []int64{10 << 30, content.MaxSize} { // these take all there is
		_, ok := fr.memoryFor(content.Leaves.Cut(size))
		for ok {
			_, ok = fr.memoryFor(content.Leaves.Cut(size))
		}
	}
	for ok, n := true, int64(2<<30); ok; { // and these what is left beside the largest
		_, ok = fr.memoryFor(content.Leaves.Cut(n))
	}
	for _, g := range []content.Grain{content.Leaves, content.Pieces} {
		for _, mib := range []int64{1, 100, 157, 158, 255, 256, 257, 600, 1024} {
			_, ok := fr.memoryFor(g.Cut(mib << 20))
			require.True(t, ok, "%d MiB in %s", mib, g)
		}
		_, ok := fr.memoryFor(g.Cut(2 << 30))
		require.False(t, ok, "what is not free in %s", g)
	}
}

func TestMemory_NoBlobHasMoreThanThereIsForWhatPeersAloneName(t *testing.T) {
	t.Parallel()
	gib := func(n int64) content.Cut { return content.Leaves.Cut(n << 30) }
	fr := &Fetcher{rumoured: semaphore.NewWeighted(200 << 10 * chunkCost)} // of 200 GiB
	_, ok := fr.rumouredMemory(gib(1024))
	require.False(t, ok, "what is larger than all that may be believed")
	leave, ok := fr.rumouredMemory(gib(150))
	require.True(t, ok)
	_, ok = fr.rumouredMemory(gib(100))
	require.False(t, ok, "what is too much beside another")
	_, ok = fr.rumouredMemory(gib(1))
	require.True(t, ok, "an ordinary layer always has its place")
	leave()
	_, ok = fr.rumouredMemory(gib(100))
	require.True(t, ok, "after the other")
}
