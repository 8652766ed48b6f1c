package store

import (
	"bytes"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func putInto(t testing.TB, s *Store, pool Pool, b sample) {
	t.Helper()
	require.NoError(t, s.PutInto(t.Context(), pool, b.digest, bytes.NewReader(b.data), b.size()))
}

func TestPool_ABurstIntoOneEvictsNothingOfAnother(t *testing.T) {
	t.Parallel()
	limits := Limits{Capacity: 4 * chunkSize, ModelCapacity: 4 * chunkSize}
	for name, pools := range map[string]struct{ burst, stays Pool }{
		"images beside models": {Images, Models},
		"models beside images": {Models, Images},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openTest(t, Options{Path: dir, Limits: limits})
			var kept []sample
			for i := range uint64(3) {
				kept = append(kept, newSample(i, chunkSize))
				putInto(t, s, pools.stays, kept[i])
			}
			for i := range uint64(20) {
				putInto(t, s, pools.burst, newSample(100+i, chunkSize))
			}
			for _, b := range kept {
				requireHas(t, s, b)
			}
			u := s.Usage()
			require.LessOrEqual(t, u.Bytes-u.Models.Bytes, int64(4*chunkSize))
			require.LessOrEqual(t, u.Models.Bytes, int64(4*chunkSize))
			require.NoError(t, s.Close())

			again := openTest(t, Options{Path: dir, Limits: limits})
			stayed := again.Usage().Models.Bytes
			if pools.stays == Images {
				stayed = again.Usage().Bytes - stayed
			}
			require.EqualValues(t, 3*chunkSize, stayed, "what is whose outlives a restart")
		})
	}
}

// Both share the disk: what fills it has to make its own room.
func TestPool_AFullDiskCostsWhoFillsIt(t *testing.T) {
	t.Parallel()
	var own atomic.Int64
	s := openTest(t, Options{
		Limits:    Limits{ModelCapacity: 100 * chunkSize, MinFree: chunkSize},
		FreeSpace: func(string) (int64, error) { return 8*chunkSize - own.Load(), nil },
		OnEvent: func(ev Event) {
			if ev.Type == Committed {
				own.Add(ev.Info.Size)
			} else {
				own.Add(-ev.Info.Size)
			}
		},
	})
	model := newSample(1, 3*chunkSize)
	putInto(t, s, Models, model)
	for i := range uint64(10) {
		putInto(t, s, Images, newSample(10+i, chunkSize))
	}
	requireHas(t, s, model)
}

func TestPool_APartialIngestKeepsItsOwn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Path: dir})
	b := newSample(1, 3*chunkSize)
	g, err := s.Ingest(b.digest, b.size(), Origin{Pool: Models})
	require.NoError(t, err)
	write(t, g, b, 0, 2)
	require.NoError(t, g.Close())
	require.EqualValues(t, 2*chunkSize, s.Usage().Models.IngestBytes)
	require.NoError(t, s.Close())

	s = openTest(t, Options{Path: dir})
	require.Positive(t, s.Usage().Models.IngestBytes)
	g, err = s.Ingest(b.digest, b.size(), Origin{Pool: Models})
	require.NoError(t, err)
	require.True(t, g.Has(0) && g.Has(2), "it is resumed")
	require.NoError(t, g.Close())
}

func TestWindow_HoldsNoMoreThanItsSlots(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Limits: Limits{ModelCapacity: leastWindow * chunkSize}})
	b := newSample(1, 40*chunkSize)
	_, err := s.Ingest(b.digest, b.size(), Origin{Pool: Models})
	require.ErrorIs(t, err, content.ErrNoSpace)
	g, err := s.Window(b.digest, b.size(), Origin{Pool: Models})
	require.NoError(t, err)
	require.Equal(t, leastWindow, g.Slots())
	_, err = s.Ingest(b.digest, b.size(), Origin{})
	require.ErrorIs(t, err, ErrBusy)

	buf := make([]byte, chunkSize)
	view := s.Blockstore()
	for i := range b.chunks() {
		if i >= leastWindow {
			require.ErrorIs(t, g.WriteChunk(i, content.ChunkCID(b.chunk(i)), b.chunk(i)), content.ErrNoSpace)
			old := i - leastWindow
			require.True(t, g.Drop(old))
			require.False(t, g.Has(old))
			_, err := g.ReadChunk(old, buf, 0)
			require.ErrorIs(t, err, content.ErrNotFound)
			has, err := view.Has(t.Context(), content.ChunkCID(b.chunk(old)))
			require.NoError(t, err)
			require.False(t, has, "peers are not given it")
		}
		write(t, g, b, i)
		n, err := g.ReadChunk(i, buf, 0)
		require.NoError(t, err)
		require.Equal(t, b.chunk(i), buf[:n])
		block, err := view.Get(t.Context(), content.ChunkCID(b.chunk(i)))
		require.NoError(t, err)
		require.Equal(t, b.chunk(i), block.RawData())
		section, err := g.SectionWriterTo(t.Context(), i, 5, 7)
		require.NoError(t, err)
		got := new(bytes.Buffer)
		_, err = got.ReadFrom(section)
		require.NoError(t, err)
		require.NoError(t, section.Close())
		require.Equal(t, b.chunk(i)[5:12], got.Bytes())
		require.LessOrEqual(t, s.Usage().Models.IngestBytes, int64(leastWindow*chunkSize))
	}
	require.True(t, g.Drop(b.chunks()-1))
	other := newSample(2, chunkSize)
	require.ErrorIs(t, g.WriteChunk(0, content.ChunkCID(other.data), other.data), content.ErrDigestMismatch,
		"what was here before comes again as it was")
	write(t, g, b, 0)
	require.ErrorIs(t, g.Commit(t.Context(), ""), ErrIncomplete)
	require.NoError(t, g.Close())
	require.Zero(t, s.Usage().IngestBytes, "nothing of it stays")
	require.Zero(t, s.SizeOf(b.digest, Source{}))
}

func TestWindow_TakesItsRoomFromItsPoolAlone(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Limits: Limits{Capacity: 4 * chunkSize, ModelCapacity: 2 * leastWindow * chunkSize}})
	image, model := newSample(1, 3*chunkSize), newSample(2, 20*chunkSize)
	putInto(t, s, Images, image)
	putInto(t, s, Models, model)
	b := newSample(3, 40*chunkSize)
	g, err := s.Window(b.digest, b.size(), Origin{Pool: Models})
	require.NoError(t, err)
	requireHas(t, s, model)
	for i := range g.Slots() {
		write(t, g, b, i)
	}
	requireHas(t, s, image)
	requireGone(t, s, model)
	require.NoError(t, g.Close())

	_, err = s.Window(b.digest, b.size(), Origin{Pool: Images})
	require.ErrorIs(t, err, content.ErrNoSpace, "a pool of four chunks has no room for a window")
}

// The files of a model come all at once: would the first two take all there is, the others would go without.
func TestWindow_SeveralFindRoomInOnePool(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Limits: Limits{Capacity: chunkSize, ModelCapacity: 8 * leastWindow * chunkSize}})
	for _, name := range []string{"a", "b", "c", "d"} {
		g, err := s.Window(digest.FromString(name), 32*leastWindow*chunkSize, Origin{Pool: Models})
		require.NoError(t, err, name)
		require.GreaterOrEqual(t, g.Slots(), leastWindow)
		t.Cleanup(func() { require.NoError(t, g.Close()) })
	}
}

func TestWindow_AReadThatTheDiskHoldsUpHoldsUpNobodyAndIsNotAnotherChunks(t *testing.T) {
	t.Parallel()
	for name, back := range map[string]bool{"gone since": false, "gone and back since": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reading, goOn := make(chan struct{}), make(chan struct{})
			slow := disk{beforeRead: func(path string) {
				if strings.HasSuffix(path, windowSuffix) {
					close(reading)
					<-goOn
				}
			}}
			limits := Limits{ModelCapacity: leastWindow * chunkSize}
			s, err := openWith(t.Context(), quiet(Options{Path: t.TempDir(), Limits: limits}), slow)
			require.NoError(t, err)
			b := newSample(1, 40*chunkSize)
			g, err := s.Window(b.digest, b.size(), Origin{Pool: Models})
			require.NoError(t, err)
			write(t, g, b, 0)
			ended := make(chan error, 1)
			go func() {
				_, err := g.ReadChunk(0, make([]byte, chunkSize), 0)
				ended <- err
			}()
			<-reading
			require.True(t, g.Drop(0))
			write(t, g, b, 1)
			if back {
				g.Drop(1)
				write(t, g, b, 0)
			}
			require.NoError(t, s.Health())
			close(goOn)
			require.ErrorIs(t, <-ended, content.ErrNotFound)
			require.NoError(t, g.Close())
			require.NoError(t, s.Close())
		})
	}
}
