package store

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestBlobsOfTheRuntimeAreServedFromThere(t *testing.T) {
	t.Parallel()
	path, rt := t.TempDir(), t.TempDir()
	b := newSample(1, 3*chunkSize+5)
	runtimeHolds(t, rt, b)
	o := Options{Path: path, RuntimePath: rt}
	s := openTest(t, o)
	requireHas(t, s, b)
	info, err := s.Stat(b.digest)
	require.NoError(t, err)
	require.True(t, info.FromRuntime)
	require.False(t, info.Root.Defined(), "not read yet")
	c := content.ChunkCID(b.chunk(1))
	has, err := s.Blockstore().Has(t.Context(), c)
	require.NoError(t, err)
	require.False(t, has, "its chunks are not known yet")
	require.Equal(t, b.size(), s.Unmapped(b.digest))

	requireBlocks(t, s, b) // asks for the chunk map
	require.Zero(t, s.Unmapped(b.digest), "it is read once")
	info, err = s.Stat(b.digest)
	require.NoError(t, err)
	require.True(t, info.Root.Defined())
	list, err := s.List(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, info.Root, list[0].Root)
	found, err := s.ByRoot(info.Root)
	require.NoError(t, err)
	require.Equal(t, info, found)
	_, err = s.ByRoot(c)
	require.ErrorIs(t, err, content.ErrNotFound)
	require.Zero(t, s.Usage().Bytes, "nothing was copied")
	require.NoError(t, s.Close())

	// The map is kept: its blocks are found by another process without any call of ChunkMap, with and without the
	// index.
	for range 2 {
		s = openTest(t, o)
		has, err = s.Blockstore().Has(t.Context(), c)
		require.NoError(t, err)
		require.True(t, has)
		requireBlocks(t, s, b)
		require.NoError(t, s.Close())
		require.NoError(t, os.Remove(filepath.Join(path, "index.db")))
	}
}

func TestABlobOfTheRuntimeThatIsBeingReadIsReadForAll(t *testing.T) {
	t.Parallel()
	path, rt, b := t.TempDir(), t.TempDir(), newSample(1, 2*chunkSize+5)
	runtimeHolds(t, rt, b)
	begun, goOn := make(chan struct{}), make(chan struct{})
	var looks atomic.Int32
	k := disk{beforeRead: func(path string) {
		if strings.Contains(path, b.digest.Encoded()) && looks.Add(1) == 2 { // the first looks whether it is there
			close(begun)
			<-goOn
		}
	}}
	s, err := openWith(t.Context(), quiet(Options{Path: path, RuntimePath: rt}), k)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	done := make(chan error)
	go func() { _, err := s.ChunkMap(b.digest); done <- err }()
	<-begun
	require.Zero(t, s.Unmapped(b.digest), "who comes now has nothing read")
	close(goOn)
	require.NoError(t, <-done)
	require.Zero(t, s.Unmapped(b.digest))
}

func TestABlobThatTheRuntimeDropsIsGone(t *testing.T) {
	t.Parallel()
	path, rt := t.TempDir(), t.TempDir()
	o := Options{Path: path, RuntimePath: rt}
	b, c := newSample(1, chunkSize+5), newSample(2, chunkSize+5)
	runtimeHolds(t, rt, b, c)
	s := openTest(t, o)
	requireBlocks(t, s, b)
	requireBlocks(t, s, c)
	file := func(b sample) string { return flat(filepath.Join(rt, "blobs"), b.digest) }
	require.NoError(t, os.Remove(file(b)))
	requireGone(t, s, b)
	has, err := s.Blockstore().Has(t.Context(), content.ChunkCID(b.chunk(0)))
	require.NoError(t, err)
	require.False(t, has)
	require.NoError(t, s.Close())

	require.NoError(t, os.Remove(file(c)))
	s = openTest(t, o)
	requireGone(t, s, c)
	require.NoFileExists(t, fanned(s.runtimeMaps, c.digest)+mapSuffix)
}

func TestADamagedFileOfTheRuntimeIsNotUsed(t *testing.T) {
	t.Parallel()
	rt := t.TempDir()
	b := newSample(1, 2*chunkSize)
	runtimeHolds(t, rt, b)
	path := flat(filepath.Join(rt, "blobs"), b.digest)
	flipByte(t, path, chunkSize+1)
	s := openTest(t, Options{RuntimePath: rt})
	_, err := s.ChunkMap(b.digest)
	require.ErrorIs(t, err, content.ErrDigestMismatch)
	requireGone(t, s, b)
	require.FileExists(t, path, "its repair is the runtime's affair")
	list, err := s.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, list)

	flipByte(t, path, chunkSize+1)
	later := time.Now().Add(time.Minute)
	require.NoError(t, os.Chtimes(path, later, later))
	requireBlocks(t, s, b)
}

func TestASmallBlobOfTheRuntimeIsABlockAtOnce(t *testing.T) {
	t.Parallel()
	rt := t.TempDir()
	b := newSample(1, 700)
	runtimeHolds(t, rt, b)
	s := openTest(t, Options{RuntimePath: rt})
	block, err := s.Blockstore().Get(t.Context(), content.ChunkCID(b.data))
	require.NoError(t, err)
	require.Equal(t, b.data, block.RawData())
}

func TestTheStoreMayTakeItsOwnCopyOfARuntimeBlob(t *testing.T) {
	t.Parallel()
	rt := t.TempDir()
	b := newSample(1, 2*chunkSize)
	runtimeHolds(t, rt, b)
	s := openTest(t, Options{RuntimePath: rt})
	requireBlocks(t, s, b)
	put(t, s, b)
	info, err := s.Stat(b.digest)
	require.NoError(t, err)
	require.False(t, info.FromRuntime)
	list, err := s.List(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 1, "one blob, wherever it is")
	require.Equal(t, b.size(), s.Usage().Bytes)
	require.NoError(t, os.Remove(flat(filepath.Join(rt, "blobs"), b.digest)))
	requireHas(t, s, b)
	requireBlocks(t, s, b)
	require.NoError(t, s.Delete(b.digest))
	requireGone(t, s, b)
}

func TestConcurrentCallersComputeOneMap(t *testing.T) {
	t.Parallel()
	rt := t.TempDir()
	b := newSample(1, 4*chunkSize)
	runtimeHolds(t, rt, b)
	s := openTest(t, Options{RuntimePath: rt})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			m, err := s.ChunkMap(b.digest)
			if err != nil || m.CID(2) != content.ChunkCID(b.chunk(2)) {
				t.Errorf("chunk map: %v", err)
			}
		})
	}
	group.Wait()
	requireBlocks(t, s, b)
}

func TestNamesInTheRuntimeThatAreNoBlobsArePassedOver(t *testing.T) {
	t.Parallel()
	rt := t.TempDir()
	b := newSample(1, 10)
	runtimeHolds(t, rt, b)
	dir := filepath.Join(rt, "blobs", "sha256")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir, digest.FromString("a folder").Encoded()), 0o700))
	s := openTest(t, Options{RuntimePath: rt})
	list, err := s.List(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 1)
	_, err = s.Get(digest.FromString("a folder"))
	require.ErrorIs(t, err, content.ErrNotFound)
}

func TestARuntimeThatIsNotThereIsNoError(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{RuntimePath: filepath.Join(t.TempDir(), "missing")})
	list, err := s.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, list)
	put(t, s, newSample(1, 10))
}

func TestARuntimeThatCannotBeReadCostsOnlyItsOwnBlobs(t *testing.T) {
	t.Parallel()
	path, rt := t.TempDir(), t.TempDir()
	own, theirs := newSample(1, 2*chunkSize), newSample(2, 2*chunkSize)
	runtimeHolds(t, rt, theirs)
	o := Options{Path: path, RuntimePath: rt}
	s := openTest(t, o)
	put(t, s, own)
	requireBlocks(t, s, theirs)
	require.NoError(t, s.Close())
	require.NoError(t, os.Rename(rt, rt+".away"))
	require.NoError(t, os.WriteFile(rt, nil, 0o600)) // whatever is looked up below it fails with ENOTDIR

	s = openTest(t, o)
	list, err := s.List(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 1)
	requireHas(t, s, own)
	requireBlocks(t, s, own)
	require.NoError(t, os.Remove(rt))
	require.NoError(t, os.Rename(rt+".away", rt))
	requireBlocks(t, s, theirs)
}

func TestScrubFindsDamage(t *testing.T) {
	t.Parallel()
	rt := t.TempDir()
	var events recorder
	s := openTest(t, Options{RuntimePath: rt, ScrubRate: 1 << 40, OnEvent: events.add})
	good, bad, short, noMap := newSample(1, 2*chunkSize), newSample(2, 2*chunkSize+5), newSample(3,
		chunkSize), newSample(4, chunkSize+1)
	theirs := newSample(5, 3*chunkSize)
	for _, b := range []sample{good, bad, short, noMap} {
		put(t, s, b)
	}
	runtimeHolds(t, rt, theirs)
	requireBlocks(t, s, theirs)
	report, err := s.Scrub(t.Context())
	require.NoError(t, err)
	require.Empty(t, report.Damaged)
	require.Equal(t, 5, report.Blobs)
	require.Equal(t, good.size()+bad.size()+short.size()+noMap.size()+theirs.size(), report.Bytes)

	require.NoError(t, s.Pin("me", []digest.Digest{bad.digest}), "pinned or not")
	flipByte(t, s.blobPath(bad.digest), chunkSize+1)
	require.NoError(t, os.Truncate(s.blobPath(short.digest), 10))
	require.NoError(t, os.Remove(s.blobPath(noMap.digest)+mapSuffix))
	flipByte(t, flat(filepath.Join(rt, "blobs"), theirs.digest), 3)
	report, err = s.Scrub(t.Context())
	require.NoError(t, err)
	// The runtime's file has another modification time now, so it is a new file, to be checked when its map is asked
	// for.
	require.ElementsMatch(t, []digest.Digest{bad.digest, short.digest}, report.Damaged)
	require.Equal(t, 1, report.Repaired)
	requireGone(t, s, bad)
	requireGone(t, s, short)
	requireHas(t, s, good)
	requireBlocks(t, s, noMap)
	require.Equal(t, []EventType{Committed, Removed}, events.types(bad.digest))
	_, err = s.ChunkMap(theirs.digest)
	require.ErrorIs(t, err, content.ErrDigestMismatch)
	put(t, s, bad)
	requireHas(t, s, bad)
}

func TestScrubEndsWithItsContextAndKeepsItsFindings(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{ScrubRate: 1}) // a chunk would take days
	bad, large := newSample(1, 100), newSample(2, 2*chunkSize)
	put(t, s, bad)
	put(t, s, large)
	flipByte(t, s.blobPath(bad.digest), 7)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // which is known to be too short at once
	defer cancel()
	report, err := s.Scrub(ctx)
	require.Error(t, err)
	require.Equal(t, []digest.Digest{bad.digest}, report.Damaged)
	requireHas(t, s, large)
}

func TestKVRemembersAcrossAKill(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	s := openTest(t, Options{Path: path})
	tags, peers := s.KV("tags"), s.KV("peers")
	var group sync.WaitGroup
	for _, k := range []string{"a", "b", "c"} {
		group.Go(func() {
			if err := tags.Put(k, []byte("value of "+k)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	require.NoError(t, peers.Put("a", nil))
	require.Error(t, tags.Put("", nil))
	kill(s)

	s = openTest(t, Options{Path: path})
	for _, k := range []string{"a", "b", "c"} {
		got, ok := s.KV("tags").Get(k)
		require.True(t, ok, k)
		require.Equal(t, "value of "+k, string(got))
	}
	v, ok := s.KV("peers").Get("a")
	require.True(t, ok)
	require.True(t, bytes.Equal(nil, v))
	_, ok = s.KV("peers").Get("c")
	require.False(t, ok)
	_, ok = s.KV("empty").Get("a")
	require.False(t, ok)
}
