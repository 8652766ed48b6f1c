package fetch

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/store"
)

// losePower makes a partial ingest one of an earlier boot, in which some chunks did not reach the disk.
func losePower(t *testing.T, o store.Options, d digest.Digest, lost ...int64) {
	t.Helper()
	path := filepath.Join(o.Path, "ingest", "sha256", d.Encoded())
	journal, err := os.OpenFile(path+".chunks", os.O_RDWR, 0)
	require.NoError(t, err)
	head := make([]byte, 64)
	_, err = journal.ReadAt(head, 0)
	require.NoError(t, err)
	copy(head[16:52], "an earlier boot of the machine......")
	binary.BigEndian.PutUint32(head[52:], crc32.Checksum(head[:52], crc32.MakeTable(crc32.Castagnoli)))
	_, err = journal.WriteAt(head, 0)
	require.NoError(t, err)
	require.NoError(t, journal.Close())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	for _, i := range lost {
		_, err = f.WriteAt(make([]byte, chunk1), i*chunk1)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
}

func TestOpen_AResumeAfterALossOfPowerReadsOnlyWhatWasLost(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		had  int
		lost []int64
	}{
		"nothing":                          {5, nil},
		"the beginning":                    {5, []int64{0}},
		"all of it":                        {5, []int64{0, 1, 2, 3, 4}},
		"the last of what was there":       {5, []int64{4}},
		"a chunk of a blob that was whole": {8, []int64{3}},
		"the end of a blob that was whole": {8, []int64{7}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t)
			d := o.add(t, 8*chunk1)
			disk := leavePartial(t, o, d, c.had)
			losePower(t, disk, d, c.lost...)
			n := newNodeOn(t, o, "n", nil, disk)
			n.pull(t.Context(), o.request(d)).requireRight(t, d)
			require.Equal(t, int64(8-c.had+len(c.lost))*chunk1, o.Bytes.Load())
			require.NoError(t, n.Ensure(t.Context(), o.request(d)))
		})
	}
}
