package store

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// logged counts messages that contain a text.
type logged struct {
	slog.Handler
	text  string
	count *atomic.Int64
}

func (l logged) Enabled(context.Context, slog.Level) bool { return true }

func (l logged) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, l.text) {
		l.count.Add(1)
	}
	return nil
}

// Whatever happens to the index, the blobs are as before, without a byte of them being read.
func TestTheIndexIsMadeAgainFromTheFiles(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		damage func(t *testing.T, path string)
		clean  bool // the process before had closed the store
		remade bool
	}{
		"a clean close keeps it": {damage: func(*testing.T, string) {}, clean: true},
		"a kill keeps it":        {damage: func(*testing.T, string) {}},
		"lost": {damage: func(t *testing.T, path string) {
			require.NoError(t, os.Remove(path))
		}, clean: true},
		"empty": {damage: func(t *testing.T, path string) {
			require.NoError(t, os.Truncate(path, 0))
		}, clean: true},
		"not a database at all": {damage: func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("garbage "), 4096), 0o600))
		}, clean: true, remade: true},
		"with zeroed pages after a kill": {damage: func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteAt(make([]byte, 60<<10), 8<<10)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}, remade: true},
		"cut short after a kill": {damage: func(t *testing.T, path string) {
			require.NoError(t, os.Truncate(path, 12<<10))
		}, remade: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := t.TempDir()
			s, err := Open(t.Context(), quiet(Options{Path: path}))
			require.NoError(t, err)
			a, b := newSample(1, 3*chunkSize+7), newSample(2, 50)
			for _, x := range []sample{a, b} {
				putAs(t, s, x, "media/type")
			}
			if tt.clean {
				require.NoError(t, s.Close())
			} else {
				kill(s)
			}
			tt.damage(t, filepath.Join(path, "index.db"))

			var remade atomic.Int64
			s = openTest(t, Options{Path: path, Logger: slog.New(logged{text: "made again", count: &remade})})
			require.Equal(t, tt.remade, remade.Load() == 1)
			require.Equal(t, 2, s.Usage().Blobs)
			for _, x := range []sample{a, b} {
				requireHas(t, s, x)
				requireBlocks(t, s, x)
				info, err := s.Stat(x.digest)
				require.NoError(t, err)
				require.Equal(t, "media/type", info.MediaType)
				require.True(t, info.Root.Defined())
			}
		})
	}
}

func TestAnIndexOfAnEarlierBootIsNotTrusted(t *testing.T) {
	t.Parallel()
	for name, session := range map[string]string{
		"the machine went down under it": "f81d4fae-7dec-11d0-a765-00a0c91e6bf6\n",
		"it ended the last process":      sessionOpening + "\n",
		"the session file is damaged":    "\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := t.TempDir()
			s, err := Open(t.Context(), quiet(Options{Path: path}))
			require.NoError(t, err)
			b := newSample(1, chunkSize+7)
			put(t, s, b)
			planted := []byte("planted")
			require.NoError(t, s.index.update(func(tx *bolt.Tx) error {
				_, err := tx.CreateBucket(planted)
				return err
			}))
			require.NoError(t, s.Close())
			require.NoError(t, os.WriteFile(filepath.Join(path, lockName), []byte(session), 0o600))
			s = openTest(t, Options{Path: path})
			require.NoError(t, s.index.view(func(tx *bolt.Tx) error {
				require.Nil(t, tx.Bucket(planted))
				return nil
			}))
			requireHas(t, s, b)
			requireBlocks(t, s, b)
		})
	}
}

func TestABlobWhoseMapIsLostIsReadAndKept(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, path string){
		"removed":  func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) },
		"emptied":  func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 0)) },
		"one flip": func(t *testing.T, path string) { flipByte(t, path, 40) },
	} {
		for _, index := range []string{"kept", "lost"} {
			t.Run(name+", index "+index, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					path := t.TempDir()
					s, err := Open(t.Context(), quiet(Options{Path: path}))
					require.NoError(t, err)
					good, bad := newSample(1, 2*chunkSize), newSample(2, 2*chunkSize)
					put(t, s, good)
					put(t, s, bad)
					require.NoError(t, s.Close())
					for _, b := range []sample{good, bad} {
						damage(t, s.blobPath(b.digest)+mapSuffix)
					}
					flipByte(t, s.blobPath(bad.digest), 5)
					if index == "lost" {
						require.NoError(t, os.Remove(filepath.Join(path, "index.db")))
					}
					s, err = Open(t.Context(), quiet(Options{Path: path}))
					require.NoError(t, err)
					synctest.Wait() // for the reading in the background
					requireHas(t, s, good)
					requireBlocks(t, s, good)
					_, err = s.ChunkMap(bad.digest)
					require.Error(t, err)
					requireGone(t, s, bad)
					require.NoFileExists(t, s.blobPath(bad.digest))
					require.NoError(t, s.Close())
				})
			})
		}
	}
}

func TestLeftoversAreSweptAndForeignFilesLeftAlone(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	s, err := Open(t.Context(), quiet(Options{Path: path}))
	require.NoError(t, err)
	b, lost := newSample(1, chunkSize+1), newSample(2, 10)
	put(t, s, b)
	put(t, s, lost)
	require.NoError(t, s.Close())
	require.NoError(t, os.Remove(s.blobPath(lost.digest)))
	dir := filepath.Dir(s.blobPath(b.digest))
	other := digest.FromString("other").Encoded()
	swept := []string{
		filepath.Join(dir, "x.tmp"), s.blobPath(lost.digest) + mapSuffix,
		filepath.Join(path, "ingest", "sha256", other), filepath.Join(path, "ingest", "sha256", "strange"),
		filepath.Join(path, "runtime", "sha256", "ab", other+mapSuffix),
	}
	kept := filepath.Join(dir, "README")
	for _, p := range append(swept, kept) {
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o700))
		require.NoError(t, os.WriteFile(p, []byte("x"), 0o600))
	}
	s = openTest(t, Options{Path: path})
	for _, p := range swept {
		require.NoFileExists(t, p)
	}
	require.FileExists(t, kept)
	requireHas(t, s, b)
	requireGone(t, s, lost)
	require.Equal(t, 1, s.Usage().Blobs)
}

func TestABlobDamagedUnderARunningStoreIsDropped(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, path string){
		"removed": func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) },
		"shorter": func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, chunkSize)) },
		"longer":  func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 3*chunkSize)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTest(t, Options{})
			b := newSample(1, 2*chunkSize)
			put(t, s, b)
			require.NoError(t, s.Pin("me", []digest.Digest{b.digest}), "pinned or not")
			damage(t, s.blobPath(b.digest))
			_, err := s.Get(b.digest)
			require.ErrorIs(t, err, content.ErrNotFound)
			requireGone(t, s, b)
			put(t, s, b)
			requireHas(t, s, b)
		})
	}
}

func TestALostMapIsMadeAgainWhenItIsAskedFor(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 2*chunkSize)
	putAs(t, s, b, "media/type")
	before, err := s.ChunkMap(b.digest)
	require.NoError(t, err)
	path := s.blobPath(b.digest) + mapSuffix
	require.NoError(t, os.Remove(path))
	after, err := s.ChunkMap(b.digest)
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.FileExists(t, path)
	flipByte(t, path, 30)
	flipByte(t, s.blobPath(b.digest), 30)
	_, err = s.ChunkMap(b.digest)
	require.ErrorIs(t, err, content.ErrDigestMismatch)
	requireGone(t, s, b)
}

func TestOpeningReadsNoBlob(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	s, err := Open(t.Context(), quiet(Options{Path: path}))
	require.NoError(t, err)
	b := newSample(1, 2*chunkSize)
	put(t, s, b)
	require.NoError(t, s.Close())
	require.NoError(t, os.Remove(filepath.Join(path, "index.db")))
	// Opening cannot have read a blob whose bytes were wrong and is listed all the same.
	flipByte(t, s.blobPath(b.digest), 7)
	s = openTest(t, Options{Path: path})
	_, err = s.Stat(b.digest)
	require.NoError(t, err)
}

func TestDamagedStateCostsPinsAndNotTheStore(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func([]byte){
		"all of it": func(b []byte) { copy(b, bytes.Repeat([]byte("garbage "), len(b)/8)) },
		"a page of what other packages remember": func(b []byte) {
			for page := range slices.Chunk(b, os.Getpagesize()) {
				if bytes.Contains(page, []byte("value of 25")) {
					clear(page)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := t.TempDir()
			s, err := Open(t.Context(), quiet(Options{Path: path}))
			require.NoError(t, err)
			b := newSample(1, 10)
			put(t, s, b)
			require.NoError(t, s.Pin("me", []digest.Digest{b.digest}))
			for i := range 40 {
				require.NoError(t, s.KV("tags").Put(strconv.Itoa(i),
					bytes.Repeat(fmt.Appendf(nil, "value of %d", i), 100)))
			}
			require.NoError(t, s.Close())
			state := filepath.Join(path, "state.db")
			raw, err := os.ReadFile(state)
			require.NoError(t, err)
			damage(raw)
			require.NoError(t, os.WriteFile(state, raw, 0o600))
			s = openTest(t, Options{Path: path})
			requireHas(t, s, b)
			require.Empty(t, s.Pins())
			_, ok := s.KV("tags").Get("25")
			require.False(t, ok)
			require.FileExists(t, state+".damaged")
			require.NoError(t, s.Pin("me", []digest.Digest{b.digest}))
		})
	}
}

// Somebody who looks into the file while the agent starts must not cost it its memory.
func TestStateThatAnotherProcessHasOpenIsNotDamaged(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	s := openTest(t, Options{Path: path})
	b := newSample(1, 10)
	require.NoError(t, s.Pin("me", []digest.Digest{b.digest}))
	require.NoError(t, s.Close())
	db, err := bolt.Open(filepath.Join(path, "state.db"), 0o600, &bolt.Options{ReadOnly: true})
	require.NoError(t, err)
	_, err = Open(t.Context(), quiet(Options{Path: path}))
	require.ErrorContains(t, err, "another process")
	require.NoError(t, db.Close())
	s = openTest(t, Options{Path: path})
	require.Equal(t, map[string][]digest.Digest{"me": {b.digest}}, s.Pins())
}

func TestOpeningEndsWithItsContext(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Open(ctx, quiet(Options{Path: path}))
	require.ErrorIs(t, err, context.Canceled)
	openTest(t, Options{Path: path}) // and lets go of the directory
}

func FuzzDecodeMap(f *testing.F) {
	m, _ := content.NewChunkMap(content.CutLeaves(1))
	_ = m.Set(0, content.ChunkCID([]byte("x")))
	path := filepath.Join(f.TempDir(), "map")
	require.NoError(f, (&meta{Digest: digest.FromString("x"), MediaType: "a/b", chunks: m}).write(disk{}, path))
	good, err := os.ReadFile(path)
	require.NoError(f, err)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeMeta(b); err == nil {
			require.True(t, m.chunks.Complete())
		}
	})
}

func FuzzOpenJournal(f *testing.F) {
	f.Add([]byte(journalMagic))
	f.Add(make([]byte, 200))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "journal")
		require.NoError(t, os.WriteFile(path, b, 0o600))
		j, err := openJournal(disk{}, path, content.CutLeaves(3*chunkSize), Origin{})
		require.NoError(t, err)
		defer func() { require.NoError(t, j.close()) }()
		for i := range 3 {
			if c, ok := j.chunk(i); ok {
				require.True(t, isChunkCID(c))
			}
		}
		require.NoError(t, j.sign())
	})
}
