package store

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// BenchmarkReadBlock is what the Bitswap server asks of the store for each chunk that it sends.
func BenchmarkReadBlock(b *testing.B) {
	s := openTest(b, Options{})
	x := newSample(1, 64*chunkSize)
	put(b, s, x)
	m, err := s.ChunkMap(x.digest)
	require.NoError(b, err)
	bs := s.Blockstore()
	b.SetBytes(chunkSize)
	b.ReportAllocs()
	for i := 0; b.Loop(); i = (i + 1) % m.Len() {
		if _, err := bs.GetSize(b.Context(), m.CID(i)); err != nil {
			b.Fatal(err)
		}
		block, err := bs.Get(b.Context(), m.CID(i))
		if err != nil {
			b.Fatal(err)
		}
		block.(*lentBlock).Release()
	}
}

// BenchmarkIngest is what a fetch asks of the store for each blob, but for the hashing of the chunks.
func BenchmarkIngest(b *testing.B) {
	s := openTest(b, Options{})
	x := newSample(1, 64*chunkSize)
	m, err := content.NewChunkMap(x.size())
	require.NoError(b, err)
	for i := range x.chunks() {
		require.NoError(b, m.Set(i, content.ChunkCID(x.chunk(i))))
	}
	b.SetBytes(x.size())
	b.ReportAllocs()
	for b.Loop() {
		g, err := s.Ingest(x.digest, x.size())
		if err != nil {
			b.Fatal(err)
		}
		for i := range g.Len() {
			if err := g.WriteChunk(i, m.CID(i), x.chunk(i)); err != nil {
				b.Fatal(err)
			}
		}
		if err := g.Verify(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := g.Discard(); err != nil {
			b.Fatal(err)
		}
	}
}
