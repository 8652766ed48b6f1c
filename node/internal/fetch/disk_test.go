package fetch

import (
	"os"
	"path/filepath"
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
	data := o.blobs[d]
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
	o.down.Store(true)
	newNodeOn(t, o, "n", nil, disk).pull(t.Context(), o.request(d)).requireRight(t, d)
}

func TestOpen_AResumeReadsNoChunkAgain(t *testing.T) {
	t.Parallel()
	o := newOrigin(t)
	d := o.add(t, 8*chunk1)
	disk := leavePartial(t, o, d, 5)
	newNodeOn(t, o, "n", nil, disk).pull(t.Context(), o.request(d)).requireRight(t, d)
	require.Equal(t, int64(3*chunk1), o.bytes.Load())
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
