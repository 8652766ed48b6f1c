package fetch

import (
	"net/http"
	"os"
	"path/filepath"
	"strconv"
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
	g, err := s.Ingest(d, int64(len(data)))
	require.NoError(t, err)
	for i := range chunks {
		off, n := content.ChunkRange(int64(len(data)), i)
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

func TestOpen_AStoreThatCannotBeWrittenToPassesThrough(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 3*chunk1+7)
	disk := store.Options{Path: t.TempDir()}
	n := newNodeOn(t, o, "n", nil, disk)
	// Not even root may make a file below a file.
	require.NoError(t, os.RemoveAll(filepath.Join(disk.Path, "ingest")))
	require.NoError(t, os.WriteFile(filepath.Join(disk.Path, "ingest"), nil, 0o600))
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
