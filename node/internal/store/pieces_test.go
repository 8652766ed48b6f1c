package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// mapsOf are the maps of a sample's leaves and pieces, made by hand.
func mapsOf(t *testing.T, b sample) map[content.Grain]*content.ChunkMap {
	t.Helper()
	maps := map[content.Grain]*content.ChunkMap{}
	for _, g := range []content.Grain{content.Leaves, content.Pieces} {
		m, err := content.NewChunkMap(g.Cut(b.size()))
		require.NoError(t, err)
		for i := range m.Len() {
			off, n := m.Cut().Range(i)
			require.NoError(t, m.Set(i, content.ChunkCID(b.data[off:off+n])))
		}
		maps[g] = m
	}
	return maps
}

func requireServes(t *testing.T, s *Store, b sample) {
	t.Helper()
	for g, want := range mapsOf(t, b) {
		got, err := s.ChunkMap(b.digest)
		if g == content.Pieces {
			got, err = s.PieceMap(t.Context(), b.digest, free)
		}
		require.NoError(t, err)
		require.Equal(t, want.Cut(), got.Cut(), g)
		for i := range want.Len() {
			require.Equal(t, want.CID(i), got.CID(i), g)
			off, n := want.Cut().Range(i)
			block, err := s.Blockstore().Get(t.Context(), want.CID(i))
			require.NoError(t, err, "%s %d", g, i)
			require.Equal(t, b.data[off:off+n], block.RawData())
		}
	}
}

func TestPieces_ABlobIsHeldInLeavesAndPiecesHoweverItCame(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{
		"no more than a leaf": chunkSize, "a leaf and a byte": chunkSize + 1, "some pieces": 2*chunkSize + 300_000,
	} {
		for _, g := range []content.Grain{content.Leaves, content.Pieces} {
			t.Run(name+" in "+g.String(), func(t *testing.T) {
				t.Parallel()
				path, b := t.TempDir(), newSample(1, size)
				s := openTest(t, Options{Path: path})
				ing, err := s.Ingest(b.digest, b.size(), Origin{Grain: g})
				require.NoError(t, err)
				cut := g.Cut(b.size())
				require.Equal(t, cut, ing.Cut())
				for i := range cut.Len() {
					off, n := cut.Range(i)
					require.NoError(t, ing.WriteChunk(i, content.ChunkCID(b.data[off:off+n]), b.data[off:off+n]))
				}
				require.NoError(t, ing.Commit(t.Context(), ""))
				require.NoError(t, ing.Close())
				requireServes(t, s, b)
				require.NoError(t, s.Close())
				s = openTest(t, Options{Path: path})
				requireServes(t, s, b)
				require.NoError(t, s.Delete(b.digest))
				for _, m := range mapsOf(t, b) {
					has, err := s.Blockstore().Has(t.Context(), m.CID(0))
					require.NoError(t, err)
					require.False(t, has, "nothing of it is left in the index")
				}
			})
		}
	}
}

// leftWithoutPieces makes a store as a release left it that knew no pieces, and returns the file of b's map.
func leftWithoutPieces(t *testing.T, path string, b sample) string {
	t.Helper()
	s := openTest(t, Options{Path: path})
	put(t, s, b)
	require.NoError(t, s.Close())
	file := fanned(filepath.Join(path, "blobs"), b.digest) + mapSuffix
	m, err := readMeta(file, b.digest)
	require.NoError(t, err)
	m.chunks.SetPieces(nil)
	require.NoError(t, m.write(disk{}, file))
	require.NoError(t, os.Remove(filepath.Join(path, "index.db")))
	return file
}

// Of a full disk the blobs are still served, and a blob is not read again for every question.
func TestPieces_AMapThatCannotBeWrittenIsServedFromMemory(t *testing.T) {
	t.Parallel()
	path, b := t.TempDir(), newSample(1, 2*chunkSize+5)
	file := leftWithoutPieces(t, path, b)
	var full atomic.Bool
	s := openFaulty(t, Options{Path: path}, func(op, at string) error {
		if full.Load() && strings.Contains(at, mapSuffix) {
			return syscall.ENOSPC
		}
		return nil
	})
	full.Store(true)
	requireServes(t, s, b)
	blob := strings.TrimSuffix(file, mapSuffix)
	require.NoError(t, os.Rename(blob, blob+".away"))
	got, err := s.PieceMap(t.Context(), b.digest, free)
	require.NoError(t, err, "it needs no byte of the blob")
	require.Equal(t, mapsOf(t, b)[content.Pieces].CID(0), got.CID(0))
	require.NoError(t, os.Rename(blob+".away", blob))
	full.Store(false)
	requireServes(t, s, b)
	m, err := readMeta(file, b.digest)
	require.NoError(t, err)
	require.NotNil(t, m.chunks.Pieces(), "they are written once there is space")
	e, err := s.entry(b.digest)
	require.NoError(t, err)
	require.Nil(t, e.unsaved.Load())
}

func TestPieces_ABlobOfAReleaseThatKnewNoneIsReadOnceForThem(t *testing.T) {
	t.Parallel()
	path, b := t.TempDir(), newSample(1, 2*chunkSize+5)
	file := leftWithoutPieces(t, path, b)
	s := openTest(t, Options{Path: path})
	leaves, err := s.ChunkMap(b.digest)
	require.NoError(t, err)
	require.Nil(t, leaves.Pieces())
	requireServes(t, s, b)
	m, err := readMeta(file, b.digest)
	require.NoError(t, err)
	require.NotNil(t, m.chunks.Pieces(), "they are kept")
}

func TestPieces_APartialIngestIsResumedHoweverItWasCut(t *testing.T) {
	t.Parallel()
	b := newSample(1, 2*chunkSize+9)
	fill := func(t *testing.T, ing *Ingest, from, end int64) {
		for i := ing.Cut().At(from); i <= ing.Cut().At(end-1); i++ {
			off, n := ing.Cut().Range(i)
			require.NoError(t, ing.WriteChunk(i, content.ChunkCID(b.data[off:off+n]), b.data[off:off+n]))
		}
	}
	for name, c := range map[string]struct {
		first, then content.Grain
		kept, lost  int
	}{
		"pieces in pieces": {content.Pieces, content.Pieces, 3, 5},
		"leaves in pieces": {content.Leaves, content.Pieces, 3, 4},
		"pieces in leaves": {content.Pieces, content.Leaves, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTest(t, Options{})
			ing, err := s.Ingest(b.digest, b.size(), Origin{Grain: c.first})
			require.NoError(t, err)
			fill(t, ing, 0, chunkSize)
			if c.first == content.Pieces {
				fill(t, ing, chunkSize, chunkSize+1) // a part of the next leaf
			}
			require.NoError(t, ing.Close())
			ing, err = s.Ingest(b.digest, b.size(), Origin{Grain: c.then})
			require.NoError(t, err)
			require.True(t, ing.Has(c.kept))
			require.False(t, ing.Has(c.lost))
			fill(t, ing, 0, b.size())
			require.NoError(t, ing.Commit(t.Context(), ""))
			require.NoError(t, ing.Close())
			requireServes(t, s, b)
		})
	}
}

// A caller waits for it.
func TestPieces_APartialIngestIsNotCutAnewOnADiskThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var hangs atomic.Bool
		release := make(chan struct{})
		k := disk{beforeRead: func(path string) {
			if hangs.Load() && strings.Contains(path, "ingest") {
				<-release
			}
		}}
		s, err := openWith(t.Context(), quiet(Options{Path: t.TempDir()}), k)
		require.NoError(t, err)
		b := newSample(1, 3*chunkSize)
		g := ingest(t, s, b)
		write(t, g, b, 0)
		require.NoError(t, g.Close())
		hangs.Store(true)
		start := time.Now()
		_, err = s.Ingest(b.digest, b.size(), Origin{Grain: content.Pieces})
		require.ErrorIs(t, err, content.ErrStorage)
		require.Equal(t, readPatience, time.Since(start)) // of the bubble's clock
		hangs.Store(false)
		close(release)
		synctest.Wait()
		g, err = s.Ingest(b.digest, b.size(), Origin{Grain: content.Pieces})
		require.NoError(t, err)
		require.True(t, g.Has(3), "nothing was lost by that")
		require.NoError(t, g.Close())
		require.NoError(t, s.Close())
	})
}

func TestPieces_ACompletePartialIngestInThemIsCommittedAtTheStart(t *testing.T) {
	t.Parallel()
	path, b := t.TempDir(), newSample(1, 2*chunkSize+9)
	s := openTest(t, Options{Path: path})
	ing, err := s.Ingest(b.digest, b.size(), Origin{Grain: content.Pieces})
	require.NoError(t, err)
	for i := range ing.Len() {
		off, n := ing.Cut().Range(i)
		require.NoError(t, ing.WriteChunk(i, content.ChunkCID(b.data[off:off+n]), b.data[off:off+n]))
	}
	require.NoError(t, ing.Close())
	require.NoError(t, s.Close())
	s = openTest(t, Options{Path: path})
	<-s.finished
	requireServes(t, s, b)
}

func TestPieces_AWindowTakesAsManyBytesInThemAsInLeaves(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Limits: Limits{Capacity: leastWindow * chunkSize}})
	ing, err := s.Window(digest.FromString("large"), 64*leastWindow/8*chunkSize, Origin{Grain: content.Pieces})
	require.NoError(t, err)
	defer func() { require.NoError(t, ing.Close()) }()
	require.Equal(t, 4*leastWindow, ing.Slots())
}

// reads is a disk each read of which says that it has begun, and goes on when it is told to.
func reads(of string) (k disk, begun <-chan struct{}, goOn chan<- struct{}) {
	b, g := make(chan struct{}, 99), make(chan struct{}, 99)
	return disk{beforeRead: func(path string) {
		if strings.Contains(path, of) {
			b <- struct{}{}
			<-g
		}
	}}, b, g
}

// openWithoutPieces opens a store that holds a blob whose map knows no pieces, on such a disk.
func openWithoutPieces(t *testing.T) (s *Store, b sample, file string, begun <-chan struct{}, goOn chan<- struct{}) {
	t.Helper()
	path, b := t.TempDir(), newSample(1, 2*chunkSize+5)
	file = leftWithoutPieces(t, path, b)
	k, begun, goOn := reads(b.digest.Encoded())
	s, err := openWith(t.Context(), quiet(Options{Path: path}), k)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s, b, file, begun, goOn
}

// free lets whoever asks have anything read.
func free(context.Context, int64) error { return nil }

// Whoever asks waits for a few seconds, and a blob may take longer. The next would have the same read again.
func TestPieces_ABlobIsReadForThemOnceAndPaidForByWhoCameFirst(t *testing.T) {
	t.Parallel()
	s, b, file, begun, goOn := openWithoutPieces(t)
	release := sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(release)
	var paid atomic.Int64
	ask := func(ctx context.Context) <-chan error {
		answer := make(chan error, 1)
		go func() {
			_, err := s.PieceMap(ctx, b.digest, func(_ context.Context, bytes int64) error {
				paid.Add(bytes)
				return nil
			})
			answer <- err
		}()
		return answer
	}
	ctx, leave := context.WithCancel(t.Context())
	first := ask(ctx)
	<-begun
	joined := ask(t.Context())
	leave()
	require.ErrorIs(t, <-first, context.Canceled)
	_, err := s.PieceMap(ctx, b.digest, func(context.Context, int64) error { return errors.New("he is to pay") })
	require.ErrorIs(t, err, context.Canceled, "who only joins pays nothing")
	release()
	require.NoError(t, <-joined)
	require.Equal(t, b.size(), paid.Load())
	require.Len(t, begun, 2, "each of the three leaves is read once")
	m, err := readMeta(file, b.digest)
	require.NoError(t, err)
	require.NotNil(t, m.chunks.Pieces())
}

func TestPieces_WhoMayNotHaveABlobReadKeepsNobodyElseFromIt(t *testing.T) {
	t.Parallel()
	path, b := t.TempDir(), newSample(1, 2*chunkSize+5)
	leftWithoutPieces(t, path, b)
	s := openTest(t, Options{Path: path})
	pays, errPoor := make(chan struct{}), errors.New("it has had too much read")
	poor := make(chan error, 1)
	go func() {
		_, err := s.PieceMap(t.Context(), b.digest, func(context.Context, int64) error {
			pays <- struct{}{}
			<-pays
			return errPoor
		})
		poor <- err
	}()
	<-pays
	_, err := s.PieceMap(t.Context(), b.digest, free)
	require.NoError(t, err)
	pays <- struct{}{}
	require.ErrorIs(t, <-poor, errPoor)
}

// To pay is to wait for a turn, and another who asks may have it sooner.
func TestPieces_WhoPaysWhileAnotherHasABlobReadHasItReadNoMore(t *testing.T) {
	t.Parallel()
	s, b, _, begun, goOn := openWithoutPieces(t)
	close(goOn)
	m, err := s.PieceMap(t.Context(), b.digest, func(context.Context, int64) error {
		_, err := s.PieceMap(t.Context(), b.digest, free)
		return err
	})
	require.NoError(t, err)
	require.Equal(t, mapsOf(t, b)[content.Pieces].CID(0), m.CID(0))
	require.Len(t, begun, 3, "each of the three leaves is read once")
}

// Of a map that is damaged each who asks would have the blob read at the same time.
func TestChunkMap_OfADamagedMapTheBlobIsReadOnceForAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testDamagedMap)
}

func testDamagedMap(t *testing.T) {
	s, b, file, begun, goOn := openWithoutPieces(t)
	require.NoError(t, os.WriteFile(file, []byte("damaged"), 0o600))
	const many = 4
	answers := make(chan error, many)
	for range many {
		go func() { _, err := s.ChunkMap(b.digest); answers <- err }()
	}
	synctest.Wait()
	require.Len(t, begun, 1)
	close(goOn)
	for range many {
		require.NoError(t, <-answers)
	}
}

func TestPieces_OfWhatAnEarlierReleaseLeftAreSummedBehindWhatIsAsked(t *testing.T) {
	t.Parallel()
	path, one, other := t.TempDir(), newSample(1, 2*chunkSize+5), newSample(2, chunkSize/2)
	file := leftWithoutPieces(t, path, one)
	s := openTest(t, Options{Path: path})
	put(t, s, other) // has none but its leaf
	s.cutAll(t.Context())
	m, err := readMeta(file, one.digest)
	require.NoError(t, err)
	require.NotNil(t, m.chunks.Pieces())
}
