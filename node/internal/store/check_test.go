package store

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	ipld "github.com/ipfs/go-ipld-format"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// rot flips a byte of a blob's file and puts the file's modification time back, which leaves the write to be seen by
// the time of change alone.
func rot(t testing.TB, path string, off int64) {
	t.Helper()
	fi, err := os.Stat(path)
	require.NoError(t, err)
	flipByte(t, path, off)
	require.NoError(t, os.Chtimes(path, fi.ModTime(), fi.ModTime()))
}

// letSettle waits until the kernel gives a new time of change.
func letSettle(t testing.TB, path string) {
	t.Helper()
	require.Eventually(t, func() bool {
		f, err := os.Open(path)
		require.NoError(t, err)
		defer func() { require.NoError(t, f.Close()) }()
		st, err := stampOf(f)
		require.NoError(t, err)
		return st.settled(time.Now())
	}, time.Minute, settle/4)
}

// readers are the ways in which a blob's bytes leave the store for a client.
var readers = map[string]func(t *testing.T, b *Blob, off, n int64) ([]byte, error){
	"read": func(t *testing.T, b *Blob, off, n int64) ([]byte, error) {
		r, err := b.Range(t.Context(), off, n)
		require.NoError(t, err)
		defer func() { require.NoError(t, r.Close()) }()
		return io.ReadAll(r)
	},
	"sent by the kernel": func(t *testing.T, b *Blob, off, n int64) ([]byte, error) {
		failed := make(chan error, 1)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := b.Range(r.Context(), off, n)
			if err == nil {
				w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
				_, err = io.Copy(w, body)
				err = errors.Join(err, body.Close())
			}
			failed <- err
		}))
		defer server.Close()
		res, err := server.Client().Get(server.URL)
		require.NoError(t, err)
		data, err := io.ReadAll(res.Body)
		require.NoError(t, res.Body.Close())
		return data, errors.Join(err, <-failed)
	},
}

func TestCheck_AFlippedByteNeverLeavesTheStore(t *testing.T) {
	t.Parallel()
	const size = 3*chunkSize + 70<<10
	for name, at := range map[string]int64{
		"the first byte": 0, "in the middle": chunkSize + 5, "the last byte": size - 1,
		"in the last chunk": size - 60<<10,
	} {
		for how, read := range readers {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				s := openTest(t, Options{})
				b := newSample(1, size)
				put(t, s, b)
				requireHas(t, s, b)
				letSettle(t, s.blobPath(b.digest))
				rot(t, s.blobPath(b.digest), at)
				got, err := s.Get(b.digest)
				require.NoError(t, err)
				data, err := read(t, got, 0, size)
				require.ErrorIs(t, err, content.ErrNotFound)
				require.Less(t, int64(len(data)), at+1)
				require.True(t, bytes.HasPrefix(b.data, data))
				require.NoError(t, got.Close())
				requireGone(t, s, b)
				put(t, s, b)
				requireHas(t, s, b)
			})
		}
	}
}

func TestCheck_ARangeIsCheckedToo(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 3*chunkSize)
	put(t, s, b)
	rot(t, s.blobPath(b.digest), 2*chunkSize+9)
	got, err := s.Get(b.digest)
	require.NoError(t, err)
	require.True(t, bytes.Equal(b.data[5:2*chunkSize], readRange(t, got, 5, 2*chunkSize-5)), "other chunks are good")
	for how, read := range readers {
		data, err := read(t, got, 2*chunkSize+10, 100)
		require.ErrorIs(t, err, content.ErrNotFound, how)
		require.Empty(t, data)
	}
	require.NoError(t, got.Close())
	requireGone(t, s, b)
}

func TestCheck_AWriteUnderAReaderIsSeenBeforeTheEnd(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 3*chunkSize)
	put(t, s, b)
	letSettle(t, s.blobPath(b.digest))
	got, err := s.Get(b.digest)
	require.NoError(t, err)
	defer func() { require.NoError(t, got.Close()) }()
	r, err := got.Range(t.Context(), 0, b.size())
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	_, err = io.ReadFull(r, make([]byte, 3*chunkSize-10))
	require.NoError(t, err)
	rot(t, s.blobPath(b.digest), 2*chunkSize+1) // of a chunk that went out in this very answer
	_, err = io.ReadAll(r)
	require.ErrorIs(t, err, content.ErrNotFound)
	requireGone(t, s, b)
}

func TestCheck_ABlockWithAWrongByteIsNotFound(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 3*chunkSize)
	put(t, s, b)
	m, err := s.ChunkMap(b.digest)
	require.NoError(t, err)
	_, err = s.Blockstore().Get(t.Context(), m.CID(1))
	require.NoError(t, err)
	rot(t, s.blobPath(b.digest), chunkSize+1)
	_, err = s.Blockstore().Get(t.Context(), m.CID(1))
	require.True(t, ipld.IsNotFound(err), "%v", err)
	requireGone(t, s, b)
	has, err := s.Blockstore().Has(t.Context(), m.CID(0))
	require.NoError(t, err)
	require.False(t, has, "the other chunks are gone with it")
}

func TestCheck_WhatWasHashedOfLateIsNotHashedAgain(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	s := openTest(t, Options{Path: path})
	b := newSample(1, 3*chunkSize+5)
	put(t, s, b)
	checked := func() int64 { return int64(testutil.ToFloat64(s.metrics.checked)) }
	requireHas(t, s, b)
	require.Zero(t, checked(), "the digest was computed from the same pages a moment ago")
	require.NoError(t, s.Close())
	letSettle(t, filepath.Join(path, "blobs", "sha256", b.digest.Encoded()[:2], b.digest.Encoded()))

	s = openTest(t, Options{Path: path})
	requireHas(t, s, b)
	require.Equal(t, b.size(), checked(), "a new process has seen none of it")
	for range 3 {
		requireHas(t, s, b)
	}
	m, err := s.ChunkMap(b.digest)
	require.NoError(t, err)
	_, err = s.Blockstore().Get(t.Context(), m.CID(0))
	require.NoError(t, err)
	require.Equal(t, b.size(), checked())
	require.NoError(t, os.Chtimes(s.blobPath(b.digest), time.Now(), time.Now()))
	requireHas(t, s, b)
	require.Equal(t, 2*b.size(), checked(), "somebody may have written to it")
}

// A runtime that finds a layer wrong asks for it again at once.
func TestCheck_WhoAsksAgainSoonGetsWhatWasJustChecked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c checks
		c.note(stamp{}, chunkSize, 0, 0)
		require.Equal(t, checkedFor, c.patience())
		c.gaveAll()
		require.Equal(t, suspectFor, c.patience())
		time.Sleep(askedAgain + time.Second)
		require.Equal(t, checkedFor, c.patience())
		require.True(t, within(c.at[0], checkedFor))
		require.False(t, within(c.at[0], suspectFor))
	})
}

func TestCheck_WhereNobodyKnowsOfThePagesAChunkIsSoonHashedAgain(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		again bool
		after time.Duration
		good  bool
	}{
		"a moment later":            {after: 50 * time.Second, good: true},
		"a minute later":            {after: 61 * time.Second},
		"by who asks again at once": {again: true, after: time.Second, good: true},
		"by who asks again":         {again: true, after: 11 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := checks{}
				c.note(stamp{}, chunkSize, 0, 0)
				c.blind = true
				if tc.again {
					c.gaveAll()
				}
				time.Sleep(tc.after)
				require.Equal(t, tc.good, c.good(nil, stamp{}, chunkSize, 0, c.patience()))
			})
		})
	}
}

// The bytes of a disk change below the file system: no time of change tells.
func TestCheck_RotBelowTheFileSystemIsFound(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]func(t *testing.T, f *os.File, c *checks){
		"at once": func(t *testing.T, f *os.File, _ *checks) {
			if _, known := resident(f, 0, 1); !known {
				t.Skip("this kernel does not tell which pages are in memory")
			}
		},
		"a minute later, where the kernel does not tell which pages are in memory": func(_ *testing.T, _ *os.File,
			c *checks) {
			c.blind = true
			for i := range c.at {
				c.at[i] = clock() - uint32(unseenFor/time.Second)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := filepath.Join(t.TempDir(), "disk")
			if out, err := exec.Command("mkfs.ext4", "-q", image, "64M").CombinedOutput(); err != nil {
				t.Skipf("cannot make a file system here: %v: %s", err, out)
			}
			s := openTest(t, Options{Path: filepath.Join(mountImage(t, image), "store")})
			b := newSample(1, 3*chunkSize)
			put(t, s, b)
			letSettle(t, s.blobPath(b.digest))
			requireHas(t, s, b)
			corrupt(t, image, b.data[chunkSize+4096:chunkSize+8192])
			requireHas(t, s, b) // from memory
			forgetPages(t, s.blobPath(b.digest))
			e, err := s.known(b.digest)
			require.NoError(t, err)
			before(t, openFile(t, s.blobPath(b.digest)), &e.checks)
			got, err := s.Get(b.digest)
			require.NoError(t, err)
			data, err := readers["sent by the kernel"](t, got, 0, b.size())
			require.ErrorIs(t, err, content.ErrNotFound)
			require.True(t, bytes.HasPrefix(b.data, data))
			require.NoError(t, got.Close())
			requireGone(t, s, b)
			put(t, s, b)
			requireHas(t, s, b)
		})
	}
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// forgetPages drops a file's pages from memory, which must be on disk.
func forgetPages(t *testing.T, path string) {
	t.Helper()
	f := openFile(t, path)
	require.NoError(t, f.Sync())
	require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// corrupt flips the first byte of a page in an image, found by its bytes.
func corrupt(t *testing.T, image string, page []byte) {
	t.Helper()
	raw, err := os.ReadFile(image)
	require.NoError(t, err)
	at := bytes.Index(raw, page)
	require.Positive(t, at)
	flipByte(t, image, int64(at))
}

func TestCheck_AFileOfTheRuntimeIsCheckedOnItsWayOut(t *testing.T) {
	t.Parallel()
	for name, mapped := range map[string]bool{"before its chunks are known": false, "once its chunks are known": true} {
		for how, read := range readers {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				rt := t.TempDir()
				b := newSample(1, 2*chunkSize+7)
				path := flat(filepath.Join(rt, "blobs"), b.digest)
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
				require.NoError(t, os.WriteFile(path, b.data, 0o600))
				s := openTest(t, Options{RuntimePath: rt})
				if mapped {
					_, err := s.ChunkMap(b.digest)
					require.NoError(t, err)
				}
				requireHas(t, s, b)
				got, err := s.Get(b.digest)
				require.NoError(t, err)
				data, err := read(t, got, 0, b.size())
				require.NoError(t, err)
				require.True(t, bytes.Equal(b.data, data))
				require.NoError(t, got.Close())

				letSettle(t, path)
				rot(t, path, chunkSize+1)
				got, err = s.Get(b.digest)
				require.NoError(t, err)
				data, err = read(t, got, 0, b.size())
				require.ErrorIs(t, err, content.ErrNotFound)
				require.Less(t, len(data), len(b.data))
				require.NoError(t, got.Close())
				_, err = s.Get(b.digest)
				require.ErrorIs(t, err, content.ErrNotFound, "until the runtime has another file")
			})
		}
	}
}

func TestCheck_ABlobWhoseFileCannotBeOpenedIsDropped(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, chunkSize)
	put(t, s, b)
	path := s.blobPath(b.digest)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Symlink(path, path)) // ELOOP, for root too
	requireGone(t, s, b)
	put(t, s, b)
	requireHas(t, s, b)
}

// As a reader does who was kept waiting for too long by a slow disk.
func TestCheck_ABlobIsNotDamagedBecauseWhoReadItHasGoneMeanwhile(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, chunkSize)
	put(t, s, b)
	e, err := s.entry(b.digest)
	require.NoError(t, err)
	for _, err := range []error{os.ErrClosed, unix.EMFILE} {
		f, openErr := s.openOwn(e)
		require.NoError(t, openErr)
		got := s.newChecker(b.digest, b.size(), e).unreadable(f, 0, &fs.PathError{Op: "read", Path: f.Name(), Err: err})
		require.ErrorIs(t, got, err)
		require.NoError(t, f.Close())
		requireHas(t, s, b)
	}
	f, err := s.openOwn(e)
	require.NoError(t, err)
	require.Error(t, s.newChecker(b.digest, b.size(), e).unreadable(f, 0, unix.EIO))
	require.NoError(t, f.Close())
	_, err = s.Stat(b.digest)
	require.ErrorIs(t, err, content.ErrNotFound, "what the disk cannot read is damaged")
}
