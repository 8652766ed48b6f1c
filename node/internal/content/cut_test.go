package content

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCut_CoversEachByteOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		grain Grain
		size  int64
		len   int
		chunk int64
	}{
		"nothing":                        {Pieces, 0, 1, ChunkSize},
		"a leaf is a piece":              {Pieces, ChunkSize, 1, ChunkSize},
		"a leaf and a byte":              {Pieces, ChunkSize + 1, 5, pieceSize},
		"the same in leaves":             {Leaves, ChunkSize + 1, 2, ChunkSize},
		"the largest blob in pieces":     {Pieces, mostInPieces, 1024, pieceSize},
		"a larger one comes in leaves":   {Pieces, mostInPieces + 1, 257, ChunkSize},
		"the largest blob that there is": {Pieces, MaxSize, 1 << 20, ChunkSize},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cut := c.grain.Cut(c.size)
			require.Equal(t, c.len, cut.Len())
			require.Equal(t, c.chunk, cut.Chunk())
			end := int64(0)
			for i := range cut.Len() {
				off, n := cut.Range(i)
				require.Equal(t, end, off)
				if end += n; n > 0 {
					require.Equal(t, i, cut.At(off))
					require.Equal(t, i, cut.At(end-1))
				}
			}
			require.Equal(t, c.size, end)
			require.EqualValues(t, ChunkSize, cut.Start(cut.PerLeaf()))
		})
	}
}

func TestSummer_GivesTheMapHoweverTheBytesCome(t *testing.T) {
	t.Parallel()
	data := make([]byte, 2*ChunkSize+pieceSize+5)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	for _, size := range []int{0, 1, pieceSize, ChunkSize, ChunkSize + 1, len(data)} {
		for _, g := range []Grain{Leaves, Pieces} {
			want, err := NewChunkMap(g.Cut(int64(size)))
			require.NoError(t, err)
			for i := range want.Len() {
				off, n := want.Cut().Range(i)
				require.NoError(t, want.Set(i, ChunkCID(data[off:off+n])))
			}
			for _, step := range []int{1000, pieceSize, 3 * ChunkSize} {
				s, err := NewSummer(g.Cut(int64(size)))
				require.NoError(t, err)
				for off := 0; off < size; off += step {
					n, err := s.Write(data[off:min(off+step, size)])
					require.NoError(t, err)
					require.Equal(t, min(step, size-off), n)
				}
				require.Equal(t, want, s.Map(), "%d bytes in %s", size, g)
			}
		}
	}
}

func TestChunkMap_OfPiecesSurvivesEncoding(t *testing.T) {
	t.Parallel()
	s, err := NewSummer(Pieces.Cut(ChunkSize + 9))
	require.NoError(t, err)
	_, _ = s.Write(make([]byte, ChunkSize+9))
	b, err := s.Map().MarshalBinary()
	require.NoError(t, err)
	got := new(ChunkMap)
	require.NoError(t, got.UnmarshalBinary(b))
	require.Equal(t, s.Map(), got)
}
