package content

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCut_CoversEachByteOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		size int64
		len  int
	}{
		"nothing":                        {0, 1},
		"a byte":                         {1, 1},
		"a chunk":                        {ChunkSize, 1},
		"a chunk and a byte":             {ChunkSize + 1, 2},
		"the largest blob that there is": {MaxSize, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cut := CutLeaves(c.size)
			require.Equal(t, c.size, cut.Size())
			require.Equal(t, c.len, cut.Len())
			end := int64(0)
			for i := range cut.Len() {
				off, n := cut.Range(i)
				if off != end || n > cut.Chunk() || n > 0 && (cut.At(off) != i || cut.At(off+n-1) != i) {
					require.Fail(t, "a chunk is not where it should be", "%d: %d bytes at %d", i, n, off)
				}
				end += n
			}
			require.Equal(t, c.size, end)
		})
	}
}
