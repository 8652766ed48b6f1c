package store

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// doubting opens the ingest of a blob once more, of which all came before, and chunk 1 wrong.
func doubting(t *testing.T, s *Store, b sample) *Ingest {
	t.Helper()
	g := ingest(t, s, b)
	write(t, g, b, upTo(b.chunks())[2:]...)
	write(t, g, b, 0)
	wrong := bytes.Repeat([]byte("wrong"), len(b.chunk(1))/5+1)[:len(b.chunk(1))]
	require.NoError(t, g.WriteChunk(1, content.ChunkCID(wrong), wrong))
	require.ErrorIs(t, g.Verify(t.Context()), content.ErrDigestMismatch)
	require.NoError(t, g.Doubt())
	require.Equal(t, b.size(), s.Usage().IngestBytes)
	return ingest(t, s, b)
}

// recalls reports whether a chunk as it is right is still there.
func recalls(t *testing.T, g *Ingest, b sample, i int) bool {
	t.Helper()
	p := make([]byte, len(b.chunk(i)))
	if !g.Recall(i, content.ChunkCID(b.chunk(i)), p) {
		return false
	}
	require.True(t, bytes.Equal(b.chunk(i), p))
	return true
}

func requireNoIngests(t *testing.T, s *Store) {
	t.Helper()
	require.Zero(t, s.Usage().IngestBytes)
	require.NoError(t, eachFile(t.Context(), s.ingestDir, func(path string, _ os.FileInfo) error {
		require.Fail(t, "it is left", path)
		return nil
	}))
}

func TestDoubt_WhatMatchesIsRecalledAndNothingIsThereBefore(t *testing.T) {
	t.Parallel()
	b := newSample(1, 4*chunkSize+5)
	s := openTest(t, Options{Limits: Limits{Capacity: 4*chunkSize + 5, High: 1, Low: 1}})
	g := doubting(t, s, b)
	require.False(t, g.Complete())
	for i := range b.chunks() {
		require.False(t, g.Has(i))
		_, err := g.ReadChunk(i, make([]byte, 1), 0)
		require.ErrorIs(t, err, content.ErrNotFound)
		has, err := s.Blockstore().Has(t.Context(), content.ChunkCID(b.chunk(i)))
		require.NoError(t, err)
		require.False(t, has)
		require.Equal(t, i != 1, recalls(t, g, b, i))
		write(t, g, b, i)
		require.False(t, recalls(t, g, b, i), "it is present")
		require.Equal(t, b.size(), s.Usage().IngestBytes, "it takes no room twice")
	}
	require.NoError(t, g.Commit(t.Context(), ""))
	require.NoError(t, g.Close())
	requireHas(t, s, b)
	requireNoIngests(t, s)
}

func TestDoubt_WhatRottedIsNotRecalled(t *testing.T) {
	t.Parallel()
	b := newSample(1, 4*chunkSize+5)
	s := openTest(t, Options{})
	g := doubting(t, s, b)
	f, err := os.OpenFile(g.path(), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("rot"), 2*chunkSize+7)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.False(t, recalls(t, g, b, 2))
	require.True(t, recalls(t, g, b, 3))
	write(t, g, b, upTo(b.chunks())...)
	require.NoError(t, g.Commit(t.Context(), ""))
	require.NoError(t, g.Close())
	requireHas(t, s, b)
}

func TestDoubt_WhatIsDoubtfulGoesWithItsIngest(t *testing.T) {
	t.Parallel()
	b := newSample(1, 4*chunkSize+5)
	for name, end := range map[string]func(*Ingest) error{
		"closed": (*Ingest).Close, "discarded": (*Ingest).Discard, "doubted": (*Ingest).Doubt,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTest(t, Options{})
			g := doubting(t, s, b)
			write(t, g, b, 0, 1)
			require.NoError(t, end(g))
			requireNoIngests(t, s)
		})
	}
}

func TestDoubt_WhatNoIngestTakesOverIsDropped(t *testing.T) {
	t.Parallel()
	b, other := newSample(1, 4*chunkSize+5), newSample(2, 4*chunkSize)
	for name, drop := range map[string]func(*testing.T, *Store){
		"on demand": func(t *testing.T, s *Store) { require.NoError(t, s.DropDoubtful(b.digest, Source{})) },
		"for room":  func(t *testing.T, s *Store) { put(t, s, other) },
		"with a commit from elsewhere": func(t *testing.T, s *Store) {
			g, err := s.Ingest(b.digest, b.size(), Origin{Source: Source{1}})
			require.NoError(t, err)
			require.NoError(t, g.fill(context.Background(), bytes.NewReader(b.data)))
			require.NoError(t, g.Commit(t.Context(), ""))
			require.NoError(t, g.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTest(t, Options{Limits: Limits{Capacity: 5 * chunkSize, High: 1, Low: 1}})
			if name == "with a commit from elsewhere" { // which is not in its place
				require.NoError(t, s.SetLimits(Limits{}))
			}
			g := ingest(t, s, b)
			write(t, g, b, 0, 1, 2, 3)
			require.NoError(t, g.Doubt())
			require.Zero(t, s.SizeOf(b.digest, Source{}), "nobody resumes it")
			_, err := s.Left(b.digest, Source{})
			require.ErrorIs(t, err, content.ErrNotFound)
			drop(t, s)
			requireNoIngests(t, s)
		})
	}
}

func TestDoubt_AnIngestOfAnotherSizeOrCutHasNothingOfIt(t *testing.T) {
	t.Parallel()
	b := newSample(1, 4*chunkSize)
	for name, origin := range map[string]Origin{
		"another size": {}, "another cut": {Grain: content.Pieces}, "another source": {Source: Source{1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			size := b.size()
			if name == "another size" {
				size += chunkSize
			}
			s := openTest(t, Options{})
			g := ingest(t, s, b)
			write(t, g, b, 0, 1, 2, 3)
			require.NoError(t, g.Doubt())
			g, err := s.Ingest(b.digest, size, origin)
			require.NoError(t, err)
			_, n := g.Cut().Range(0)
			require.False(t, g.Recall(0, content.ChunkCID(b.data[:n]), make([]byte, n)))
			require.NoError(t, g.Discard())
			require.NoError(t, s.DropDoubtful(b.digest, Source{}))
			requireNoIngests(t, s)
		})
	}
}

func TestDoubt_AfterAKillOnlyAnIngestWithoutDoubtfulChunksIsResumed(t *testing.T) {
	t.Parallel()
	b := newSample(1, 4*chunkSize+5)
	for name, c := range map[string]struct {
		written []int
		resumed bool
	}{
		"nothing was written": {},
		"some are left":       {written: []int{0, 1, 2}},
		"none is left":        {written: upTo(5), resumed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := quiet(Options{Path: t.TempDir()})
			s, err := Open(t.Context(), o)
			require.NoError(t, err)
			g := doubting(t, s, b)
			write(t, g, b, c.written...)
			kill(s)
			after := openTest(t, o)
			<-after.finished
			requireNoIngests(t, after)
			if c.resumed {
				requireHas(t, after, b)
			} else {
				requireGone(t, after, b)
			}
		})
	}
}
