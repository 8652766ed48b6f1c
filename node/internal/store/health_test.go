package store

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestHealth_ADiskThatRefusesIsToldUntilItWorksAgain(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		op   string
		with error
		want error
	}{
		"a folder that may not be written to":  {"create", syscall.EACCES, content.ErrStorage},
		"a read-only file system":              {"truncate", syscall.EROFS, content.ErrStorage},
		"an unreadable sector":                 {"write", syscall.EIO, content.ErrStorage},
		"a full disk":                          {"write", syscall.ENOSPC, content.ErrNoSpace},
		"no inode left":                        {"create", syscall.ENOSPC, content.ErrNoSpace},
		"a full disk that shows when it syncs": {"fsync", syscall.ENOSPC, content.ErrNoSpace},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var failing atomic.Bool
			s := openFaulty(t, Options{}, func(op, _ string) error {
				if failing.Load() && op == tt.op {
					return tt.with
				}
				return nil
			})
			held, b := newSample(1, chunkSize), newSample(2, chunkSize)
			put(t, s, held)
			require.NoError(t, s.Health())
			failing.Store(true)
			err := s.Put(t.Context(), b.digest, bytes.NewReader(b.data), b.size())
			require.ErrorIs(t, err, tt.want)
			require.ErrorIs(t, s.Health(), tt.want)
			requireHas(t, s, held)
			s.examine()
			require.ErrorIs(t, s.Health(), tt.want, "it was tried again")
			failing.Store(false)
			s.examine()
			require.NoError(t, s.Health())
			put(t, s, b)
			requireHas(t, s, b)
		})
	}
}

func TestHealth_AHangingDiskKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var hanging atomic.Bool
		s := openFaulty(t, Options{}, func(op, _ string) error {
			if hanging.Load() && op == "write" {
				<-release
			}
			return nil
		})
		held, b := newSample(1, chunkSize), newSample(2, 2*chunkSize)
		put(t, s, held)
		g := ingest(t, s, b)
		hanging.Store(true)
		wrote := make(chan error, 1)
		go func() { wrote <- g.WriteChunk(0, content.ChunkCID(b.chunk(0)), b.chunk(0)) }()
		time.Sleep(hangsAfter + time.Second)
		require.ErrorContains(t, s.Health(), "the disk hangs: write ")
		_, err := s.Ingest(newSample(3, 5).digest, 5, Origin{})
		require.ErrorIs(t, err, content.ErrStorage)
		requireHas(t, s, held)
		hanging.Store(false)
		close(release)
		require.NoError(t, <-wrote)
		require.NoError(t, s.Health())
		require.NoError(t, g.Close())
		require.NoError(t, s.Close())
	})
}

func TestHealth_AReadThatHangsKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var hanging atomic.Bool
		s, err := openWith(t.Context(), quiet(Options{Path: t.TempDir()}), disk{beforeRead: func(string) {
			if hanging.Load() {
				<-release
			}
		}})
		require.NoError(t, err)
		held := newSample(1, 2*chunkSize)
		put(t, s, held)
		b, err := s.Get(held.digest)
		require.NoError(t, err)
		body, err := b.Range(t.Context(), 0, held.size())
		require.NoError(t, err)

		hanging.Store(true)
		start := time.Now()
		_, err = io.ReadAll(body)
		require.ErrorIs(t, err, content.ErrStorage, "in the middle of an answer")
		require.NoError(t, s.Hangs(), "it may only be slow")
		_, err = b.Range(t.Context(), 0, held.size())
		require.ErrorIs(t, err, content.ErrStorage, "of a blob that was opened before")
		_, err = s.Get(held.digest)
		require.ErrorIs(t, err, content.ErrStorage)
		require.Equal(t, 2*readPatience, time.Since(start))
		require.ErrorContains(t, s.Hangs(), "the disk hangs: read ")
		require.ErrorContains(t, s.Health(), "the disk hangs: read ")
		start = time.Now()
		_, err = s.Get(held.digest)
		require.ErrorIs(t, err, content.ErrStorage)
		require.Zero(t, time.Since(start), "nobody waits for a disk that is known to hang")

		hanging.Store(false)
		close(release)
		synctest.Wait()
		require.NoError(t, s.Health())
		require.NoError(t, body.Close())
		require.NoError(t, b.Close())
		requireHas(t, s, held)
		require.NoError(t, s.Close())
	})
}

func TestHealth_ADiskThatHangsKeepsNobodyWaitingWhoAsksForFigures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var hanging atomic.Bool
		s := openFaulty(t, Options{FreeSpace: func(string) (int64, error) {
			if hanging.Load() {
				<-release
			}
			return 1 << 40, nil
		}}, func(string, string) error { return nil })
		require.EqualValues(t, 1<<40, s.Usage().FreeDisk)
		hanging.Store(true)
		start := time.Now()
		require.EqualValues(t, -1, s.Usage().FreeDisk, "it is not known")
		require.Equal(t, readPatience, time.Since(start))
		time.Sleep(hangsAfter)
		require.ErrorContains(t, s.Hangs(), "the disk hangs: ", "though nobody asked for content")
		start = time.Now()
		require.EqualValues(t, -1, s.Usage().FreeDisk)
		require.Zero(t, time.Since(start))
		hanging.Store(false)
		close(release)
		synctest.Wait()
		require.EqualValues(t, 1<<40, s.Usage().FreeDisk)
		require.NoError(t, s.Close())
	})
}

func TestHealth_FoldersThatAreRemovedAreMadeAgain(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	require.NoError(t, os.RemoveAll(s.ingestDir))
	require.NoError(t, os.RemoveAll(s.blobsDir))
	b := newSample(1, chunkSize+1)
	put(t, s, b)
	requireHas(t, s, b)
	require.NoError(t, os.RemoveAll(s.ingestDir))
	s.examine()
	require.NoError(t, s.Health())
	require.DirExists(t, s.ingestDir)
}

func TestHealth_ADirectoryThatWasReplacedIsNamed(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	path := s.opts.Path
	require.NoError(t, os.Rename(path, path+".away"))
	s.examine()
	require.ErrorContains(t, s.Health(), path+" was removed or replaced since the start; restart the agent")
	require.NoError(t, os.Mkdir(path, 0o700))
	s.examine()
	require.ErrorContains(t, s.Health(), "was removed or replaced")
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Rename(path+".away", path))
	s.examine()
	require.NoError(t, s.Health())
}

func TestHealth_AnIndexThatIsDamagedUnderARunningStoreIsMadeAgain(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b, later := newSample(1, 2*chunkSize), newSample(2, chunkSize+1)
	put(t, s, b)
	overwrite(t, s.dir("index.db"))
	requireHas(t, s, b)
	m, err := s.ChunkMap(b.digest)
	require.NoError(t, err)
	_, err = s.Blockstore().Has(t.Context(), m.CID(0))
	require.ErrorIs(t, err, errDatabaseDamaged)
	s.examine()
	requireBlocks(t, s, b)
	put(t, s, later)
	requireBlocks(t, s, later)
	require.NoError(t, s.Health())
}

func TestHealth_DamagedPinsAreToldAndEndNothing(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	kv := s.KV("x")
	require.NoError(t, kv.Put("a", []byte("b")))
	overwrite(t, s.dir("state.db"))
	_, ok := kv.Get("a")
	require.False(t, ok)
	b := newSample(1, chunkSize)
	put(t, s, b)
	requireHas(t, s, b)
	s.examine()
	require.ErrorContains(t, s.Health(), "state.db: database is damaged; restart the agent")
	require.Error(t, s.Close())
}

// The kernel faults at what is past the end of the file, in whatever goroutine reads it.
func TestHealth_ARememberedValueThatCannotBeWrittenEndsNothing(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	kv := s.KV("x")
	require.NoError(t, kv.Put("a", []byte("b")))
	require.NoError(t, os.Truncate(s.dir("state.db"), 0))
	require.ErrorIs(t, kv.Put("a", []byte("c")), errDatabaseDamaged)
	require.NoError(t, s.Notes("y").Put("a", nil), "which nobody waits for")
	require.Error(t, s.Close())
}

// overwrite fills all of a file with what makes no sense, as a tool does that writes to the wrong place.
func overwrite(t *testing.T, path string) {
	t.Helper()
	fi, err := os.Stat(path)
	require.NoError(t, err)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte(strings.Repeat("\xa5", int(fi.Size()))), 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func TestHealth_AHashThatHangsIsKnown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		b := newSample(1, chunkSize)
		s, err := openWith(t.Context(), quiet(Options{Path: t.TempDir()}), disk{beforeRead: func(path string) {
			if strings.Contains(path, b.digest.Encoded()) {
				<-release
			}
		}})
		require.NoError(t, err)
		g := ingest(t, s, b)
		write(t, g, b, 0)
		time.Sleep(hangsAfter - time.Second)
		require.NoError(t, s.Hangs(), "no caller waits for it")
		time.Sleep(2 * time.Second)
		require.ErrorContains(t, s.Health(), "the disk hangs: hash ")
		close(release)
		require.NoError(t, g.Commit(t.Context(), ""))
		require.NoError(t, s.Health())
		require.NoError(t, g.Close())
		require.NoError(t, s.Close())
	})
}

func TestHealth_ARuntimesDiskThatHangsKeepsNobodyWaitingForASize(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		theirs := t.TempDir()
		s, err := openWith(t.Context(), quiet(Options{Path: t.TempDir(), RuntimePath: theirs}),
			disk{beforeRead: func(path string) {
				if strings.HasPrefix(path, theirs) {
					<-release
				}
			}})
		require.NoError(t, err)
		start := time.Now()
		_, err = s.Stat(newSample(1, 1).digest)
		require.ErrorIs(t, err, content.ErrStorage)
		require.Equal(t, readPatience, time.Since(start))
		close(release)
		synctest.Wait()
		_, err = s.Stat(newSample(1, 1).digest)
		require.ErrorIs(t, err, content.ErrNotFound)
		require.NoError(t, s.Close())
	})
}
