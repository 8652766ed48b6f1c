package store

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// Whatever file operation of an ingest or commit meets a full disk, it is content.ErrNoSpace, other blobs stay, and
// once there is space the blob can be had after all.
func TestAFullDiskAtAnyOperation(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	var countdown atomic.Int64
	s := openFaulty(t, Options{Path: path}, func(op, _ string) error {
		if strings.HasPrefix(op, "remove") {
			return nil // takes no space
		}
		if countdown.Add(-1) == 0 {
			return syscall.ENOSPC
		}
		return nil
	})
	other := newSample(1, chunkSize+1)
	put(t, s, other)
	failed := 0
	for n := int64(1); ; n++ {
		b := newSample(uint64(100+n), 2*chunkSize+3)
		countdown.Store(n)
		err := s.Put(t.Context(), b.digest, bytes.NewReader(b.data), b.size())
		if countdown.Swap(0) > 0 {
			require.NoError(t, err)
			break // the ingest took fewer operations
		}
		failed++
		require.ErrorIs(t, err, content.ErrNoSpace, "operation %d", n)
		requireHas(t, s, other)
		put(t, s, b)
		requireHas(t, s, b)
		requireBlocks(t, s, b)
		require.NoError(t, s.Delete(b.digest))
	}
	require.Greater(t, failed, 8, "open, write, commit have more operations than that")
	require.Len(t, openFiles(t, path), 3, "lock, index and state; no failure has left a file open")
	require.NoError(t, s.Close())
	require.Empty(t, openFiles(t, path))
	s = openTest(t, Options{Path: path})
	requireHas(t, s, other)
	require.Zero(t, s.Usage().IngestBytes)
}

// openFiles lists the files below path that this process has open.
func openFiles(t *testing.T, path string) []string {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	var files []string
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); err == nil &&
			strings.HasPrefix(to, path+"/") {
			files = append(files, to)
		}
	}
	return files
}

// What a loss of power may leave is decided by the order of these: the bytes are safe before the blob has its name, and
// nobody hears of it before the name is safe too.
func TestACommitIsMadeDurableInOrder(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	var mu sync.Mutex
	var ops []string
	note := func(op string) {
		mu.Lock()
		defer mu.Unlock()
		ops = append(ops, op)
	}
	s := openFaulty(t, Options{Path: path, OnEvent: func(ev Event) {
		note(ev.Type.String())
	}}, func(op, file string) error {
		if op == "rename" || strings.HasPrefix(op, "fsync") {
			name, err := filepath.Rel(path, file)
			require.NoError(t, err)
			note(op + " " + name)
		}
		return nil
	})
	b := newSample(1, chunkSize+5)
	blob, err := filepath.Rel(path, s.blobPath(b.digest))
	require.NoError(t, err)
	require.NoError(t, s.disk.mkdirAll(filepath.Dir(s.blobPath(b.digest))))
	g := ingest(t, s, b)
	write(t, g, b, 0, 1)
	ops = nil
	require.NoError(t, g.Commit(t.Context(), ""))
	require.Equal(t, []string{
		"fsync " + filepath.Join("ingest/sha256", b.digest.Encoded()),
		"fsync " + blob + ".map.tmp", "rename " + blob + ".map", "rename " + blob,
		"fsync directory " + filepath.Dir(blob),
		"committed",
	}, ops)
}

func TestAReadOnlyDiskIsNotedOnceAndStillRead(t *testing.T) {
	t.Parallel()
	var readOnly atomic.Bool
	var failures atomic.Int64
	path := t.TempDir()
	s := openFaulty(t, Options{Path: path, Logger: slog.New(logged{text: "eviction failed", count: &failures})},
		func(string, string) error {
			if readOnly.Load() {
				return syscall.EROFS
			}
			return nil
		})
	var list []sample
	for i := range uint64(8) {
		list = append(list, newSample(i, chunkSize))
		put(t, s, list[i])
	}
	left := newSample(18, 2*chunkSize)
	g := ingest(t, s, left)
	write(t, g, left, 0)
	require.NoError(t, g.Close())
	readOnly.Store(true)
	require.ErrorIs(t, s.Delete(left.digest), syscall.EROFS)
	require.Equal(t, int64(chunkSize), s.Usage().IngestBytes, "what could not be removed still counts")
	require.NoError(t, s.SetLimits(Limits{Capacity: 2 * chunkSize}))
	// The maintainer may try as well, and a blob is gone while it is tried.
	s.trimming.Lock()
	defer s.trimming.Unlock()
	require.Positive(t, failures.Load())
	require.Less(t, failures.Load(), int64(len(list)), "once for each try, and not for each blob")
	require.Error(t, s.Put(t.Context(), newSample(19, 5).digest, bytes.NewReader(nil), 5))
	for _, b := range list {
		requireHas(t, s, b)
		requireBlocks(t, s, b)
	}
	require.Equal(t, int64(8*chunkSize), s.Usage().Bytes)
}

func TestAFullDiskKeepsTheChunksThatWereThere(t *testing.T) {
	t.Parallel()
	var full atomic.Bool
	s := openFaulty(t, Options{}, func(op, _ string) error {
		if full.Load() && op == "write" {
			return fmt.Errorf("disk quota: %w", syscall.EDQUOT)
		}
		return nil
	})
	b := newSample(1, 3*chunkSize)
	g := ingest(t, s, b)
	write(t, g, b, 0, 1)
	full.Store(true)
	require.ErrorIs(t, g.WriteChunk(2, content.ChunkCID(b.chunk(2)), b.chunk(2)), content.ErrNoSpace)
	require.Equal(t, bits(0, 1), presentIn(g))
	full.Store(false)
	write(t, g, b, 2)
	require.NoError(t, g.Commit(t.Context(), ""))
	requireHas(t, s, b)
}

func TestAFailedCommitCanBeRepeated(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"mkdir", "create", "truncate", "rename", "fsync directory"} {
		t.Run("after "+op, func(t *testing.T) {
			t.Parallel()
			var fail atomic.Bool
			s := openFaulty(t, Options{}, func(o, _ string) error {
				if o == op && fail.Load() {
					return syscall.EIO
				}
				return nil
			})
			b := newSample(1, 2*chunkSize)
			g := ingest(t, s, b)
			write(t, g, b, 0, 1)
			fail.Store(true)
			require.ErrorIs(t, g.Commit(t.Context(), ""), syscall.EIO)
			requireGone(t, s, b)
			fail.Store(false)
			require.NoError(t, g.Commit(t.Context(), ""))
			requireHas(t, s, b)
			requireBlocks(t, s, b)
		})
	}
}

// After a failed fsync the kernel forgets which pages it lost, so a second one that succeeds proves nothing.
func TestAFailedFsyncIsNeverFollowedByACommit(t *testing.T) {
	t.Parallel()
	var fail atomic.Bool
	s := openFaulty(t, Options{}, func(op, _ string) error {
		if op == "fsync" && fail.Swap(false) {
			return syscall.EIO
		}
		return nil
	})
	b := newSample(1, 2*chunkSize)
	g := ingest(t, s, b)
	write(t, g, b, 0, 1)
	fail.Store(true)
	require.ErrorIs(t, g.Commit(t.Context(), ""), syscall.EIO)
	require.ErrorIs(t, g.Commit(t.Context(), ""), syscall.EIO)
	require.NoError(t, g.Close())
	requireGone(t, s, b)
	require.Equal(t, bits(), presentIn(ingest(t, s, b)))
}

// mountSmall mounts a file system of the given size, where that is allowed.
func mountSmall(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("cannot mount a tmpfs here: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, 0)) })
	return filepath.Join(dir, "store")
}

func TestARealFullDisk(t *testing.T) {
	t.Parallel()
	path := mountSmall(t, 16*chunkSize)
	// The store is told that there is plenty of room, as when another process fills the disk meanwhile.
	plenty := func(string) (int64, error) { return 1 << 40, nil }
	s := openTest(t, Options{Path: path, FreeSpace: plenty})
	kept := newSample(1, 4*chunkSize)
	put(t, s, kept)
	big := newSample(2, 20*chunkSize)
	g := ingest(t, s, big)
	var err error
	written := 0
	for ; err == nil && written < big.chunks(); written++ {
		err = g.WriteChunk(written, content.ChunkCID(big.chunk(written)), big.chunk(written))
	}
	require.ErrorIs(t, err, content.ErrNoSpace)
	requireHas(t, s, kept)
	requireBlocks(t, s, kept)
	small := newSample(3, 2*chunkSize)
	require.ErrorIs(t, s.Put(t.Context(), small.digest, bytes.NewReader(small.data), small.size()),
		content.ErrNoSpace)
	require.NoError(t, g.Discard())
	put(t, s, small)
	requireHas(t, s, small)
	require.NoError(t, s.Close())

	s = openTest(t, Options{Path: path})
	requireHas(t, s, kept)
	_, err = s.Ingest(big.digest, big.size(), Origin{})
	require.ErrorIs(t, err, content.ErrNoSpace, "the free space is looked at first")
	requireHas(t, s, kept)
	requireHas(t, s, small)
}

// After a loss of power the index is made anew. Where a full disk has no room for it, the cache yields, or it would
// hold on to the disk for ever.
func TestAStoreOpensOnADiskThatIsFull(t *testing.T) {
	t.Parallel()
	path := mountSmall(t, 48*chunkSize)
	s := openTest(t, Options{Path: path})
	pinned, old, young, partial := newSample(1, 2*chunkSize), newSample(2, 20*chunkSize), newSample(3,
		2*chunkSize), newSample(4, 2*chunkSize)
	put(t, s, pinned)
	put(t, s, old)
	put(t, s, young)
	require.NoError(t, s.Pin("me", []digest.Digest{pinned.digest}))
	g := ingest(t, s, partial)
	write(t, g, partial, 0)
	require.NoError(t, g.Close())
	require.NoError(t, s.Close())
	require.NoError(t, os.Remove(s.dir("index.db")))
	fill, err := os.Create(filepath.Join(filepath.Dir(path), "others"))
	require.NoError(t, err)
	defer func() { require.NoError(t, fill.Close()) }()
	for n := chunkSize; n > 0; n /= 2 {
		for err = nil; err == nil; {
			_, err = fill.Write(make([]byte, n))
		}
	}
	require.ErrorIs(t, err, syscall.ENOSPC)

	s = openTest(t, Options{Path: path})
	requireHas(t, s, pinned)
	requireHas(t, s, young)
	requireGone(t, s, old)
	require.Zero(t, s.Usage().IngestBytes)
	require.Equal(t, map[string][]digest.Digest{"me": {pinned.digest}}, s.Pins())
	put(t, s, partial)
	requireBlocks(t, s, partial)
}

func TestUnreadableDirectoryIsAnErrorThatNamesIt(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(path, "blobs"), nil, 0o600))
	_, err := Open(t.Context(), quiet(Options{Path: path}))
	require.ErrorContains(t, err, filepath.Join(path, "blobs"))
}
