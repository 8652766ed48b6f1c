package fetch

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// leavePartial makes a store in which the first chunks of a blob have arrived, and nothing was committed.
func leavePartial(t *testing.T, o *origin, d digest.Digest, chunks int) store.Options {
	t.Helper()
	disk := store.Options{Path: t.TempDir(), Logger: testLogger("disk")}
	s, err := store.Open(t.Context(), disk)
	require.NoError(t, err)
	data := o.Blob(d)
	g, err := s.Ingest(d, int64(len(data)), store.Origin{})
	require.NoError(t, err)
	for i := range chunks {
		off, n := content.CutLeaves(int64(len(data))).Range(i)
		require.NoError(t, g.WriteChunk(i, content.ChunkCID(data[off:off+n]), data[off:off+n]))
	}
	require.NoError(t, g.Close())
	require.NoError(t, s.Close())
	return disk
}

func TestOpen_ABlobThatHadArrivedBeforeAKillNeedsNoRegistry(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 5*chunk1+3)
	disk := leavePartial(t, o, d, 6)
	o.SetDown(true)
	newNodeOn(t, o, "n", nil, disk).pull(t.Context(), o.request(d)).requireRight(t, d)
}

func TestOpen_AResumeReadsNoChunkAgain(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 8*chunk1)
	disk := leavePartial(t, o, d, 5)
	newNodeOn(t, o, "n", nil, disk).pull(t.Context(), o.request(d)).requireRight(t, d)
	require.Equal(t, int64(3*chunk1), o.Bytes.Load())
}

// refuse has nothing be written to a directory: not even root may make a file below a file.
func refuse(t *testing.T, directory string) {
	t.Helper()
	require.NoError(t, os.RemoveAll(directory))
	require.NoError(t, os.WriteFile(directory, nil, 0o600))
}

func TestOpen_AStoreThatCannotBeWrittenToPassesThrough(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 3*chunk1+7)
	disk := store.Options{Path: t.TempDir()}
	n := newNodeOn(t, o, "n", nil, disk)
	refuse(t, filepath.Join(disk.Path, "ingest"))
	for range 2 {
		n.pull(t.Context(), o.request(d)).requireRight(t, d)
	}
	require.ErrorIs(t, n.store.Health(), content.ErrStorage)
}

func TestOpen_ADiskThatFillsInTheMiddleEndsNoAnswer(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 6*chunk1+7)
	var full atomic.Bool
	n := newNodeOn(t, o, "n", nil, store.Options{Path: t.TempDir(), FreeSpace: func(string) (int64, error) {
		if full.Load() {
			return 0, nil
		}
		return 1 << 40, nil
	}})
	o.Spoil(func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if full.Load() {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data[:3*chunk1])
		_ = http.NewResponseController(w).Flush()
		// A second request may still wait here when the first has filled the disk and the fetch is over.
		eventually(t, "the first half is here", func() bool {
			s, _ := n.running(d)
			return full.Load() || s.Arrived >= 2*chunk1
		})
		full.Store(true)
		_, _ = w.Write(data[3*chunk1:])
		return true
	})
	n.pull(t.Context(), o.request(d)).requireRight(t, d)
	require.True(t, full.Load())
	_, err := n.store.Stat(d)
	require.ErrorIs(t, err, content.ErrNotFound)
}

func TestOpen_AChunkThatRottedIsGivenFromElsewhere(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 3*chunk1+7)
	disk := store.Options{Path: t.TempDir()}
	n := newNodeOn(t, o, "n", nil, disk)
	n.pull(t.Context(), o.request(d)).requireRight(t, d)
	require.NoError(t, n.Ensure(t.Context(), o.request(d)))
	path := filepath.Join(disk.Path, "blobs", "sha256", d.Encoded()[:2], d.Encoded())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{o.Blob(d)[2*chunk1] ^ 1}, 2*chunk1)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	n.pull(t.Context(), o.request(d)).requireRight(t, d)
	require.NoError(t, n.Ensure(t.Context(), o.request(d)))
	require.LessOrEqual(t, o.Bytes.Load(), int64(2*(3*chunk1+7)))
	o.SetDown(true)
	n.pull(t.Context(), o.request(d)).requireRight(t, d)
}

// What peers gave before is their word, and what follows it comes from the registry.
func TestOpen_AnAnswerWhoseRestComesFromElsewhereEndsOnlyWhereItsBeginningIsRight(t *testing.T) {
	t.Parallel()
	const chunks = 20
	for name, c := range map[string]struct {
		off, n, given int64
		wrong, window bool
	}{
		"all, after a right chunk":                    {0, chunks * chunk1, chunk1, false, false},
		"all, in the middle of a right chunk":         {0, chunks * chunk1, 5, false, false},
		"all, before any byte":                        {0, chunks * chunk1, 0, true, false},
		"all, after a wrong chunk":                    {0, chunks * chunk1, chunk1, true, false},
		"all, in the middle of a wrong chunk":         {0, chunks * chunk1, 5, true, false},
		"all, after a right chunk of a window":        {0, chunks * chunk1, chunk1, false, true},
		"all, after a wrong chunk of a window":        {0, chunks * chunk1, chunk1, true, true},
		"the rest of a download, after a right chunk": {7, chunks*chunk1 - 7, chunk1 - 7, false, false},
		"the rest of a download, after a wrong chunk": {7, chunks*chunk1 - 7, chunk1 - 7, true, false},
		"a range, in the middle of a right chunk":     {7, 100, 50, false, false},
		"a range, in the middle of a wrong chunk":     {7, 100, 50, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fr, s, req, data := scripted(t, chunks, nil)
			if c.window {
				fr.ingest = func(digest.Digest, int64, store.Origin) (*store.Ingest, error) {
					return nil, content.ErrNoSpace
				}
			}
			theirs := bytes.Clone(data)
			if c.wrong {
				theirs[6] ^= 1 // which no caller need have been given
			}
			var r content.Reader
			var err error
			var opening sync.WaitGroup
			opening.Go(func() { r, err = fr.Open(t.Context(), req) })
			session := s.next(t)
			session.orders <- assigned(theirs, "home", 0)
			opening.Wait()
			require.NoError(t, err)
			defer func() { _ = r.Close() }()
			body, err := r.Range(t.Context(), c.off, c.n)
			require.NoError(t, err)
			defer func() { _ = body.Close() }()
			if c.given > 0 {
				go func() {
					w := <-s.wants
					w.sink.Block("home", w.cid, chunkOf(theirs, 0))
				}()
			}
			first := make([]byte, c.given)
			_, err = io.ReadFull(body, first)
			require.NoError(t, err)

			err = body.(*lastingRange).replace(content.ErrStorage)
			if c.wrong && c.given > 0 {
				require.ErrorIs(t, err, content.ErrDigestMismatch)
				return
			}
			require.NoError(t, err)
			rest, err := io.ReadAll(body)
			require.NoError(t, err)
			require.True(t, bytes.Equal(data[c.off:c.off+c.n], append(first, rest...)))
		})
	}
}

func TestOpen_ABlobThatCannotBeCommittedIsGivenToOthersWhileOneReadsItSlowly(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 3*chunk1+7)
	disk := store.Options{Path: t.TempDir()}
	n := newNodeOn(t, o, "n", nil, disk)
	refuse(t, filepath.Join(disk.Path, "blobs"))
	slow, err := n.Open(t.Context(), o.request(d))
	require.NoError(t, err)
	body, err := slow.Range(t.Context(), 0, slow.Size())
	require.NoError(t, err)
	require.ErrorIs(t, n.Ensure(t.Context(), o.request(d)), content.ErrStorage)

	n.pull(t.Context(), o.request(d)).requireRight(t, d)
	got, err := io.ReadAll(body)
	require.NoError(t, err)
	require.Equal(t, o.Blob(d), got)
	require.NoError(t, errors.Join(body.Close(), slow.Close()))
}
