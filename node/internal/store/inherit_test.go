package store

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ipld "github.com/ipfs/go-ipld-format"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// inheriting opens a store to which an earlier one has left chunks of b, of which those lost never reached the disk.
func inheriting(t *testing.T, k disk, b sample, chunks, lost []int) *Store {
	t.Helper()
	o := quiet(Options{Path: t.TempDir()})
	s := openTest(t, o)
	g := ingest(t, s, b)
	write(t, g, b, chunks...)
	require.NoError(t, g.Close())
	f, err := os.OpenFile(flat(s.ingestDir, b.digest), os.O_WRONLY, 0)
	require.NoError(t, err)
	for _, i := range lost {
		_, err := f.WriteAt(make([]byte, len(b.chunk(i))), int64(i)*chunkSize)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	require.NoError(t, s.Close())
	var complete atomic.Bool
	after, err := openWith(t.Context(), o, disk{beforeRead: func(path string) {
		if k.beforeRead != nil && complete.Load() {
			k.beforeRead(path)
		}
	}})
	require.NoError(t, err)
	<-after.finished // it has read what is complete
	complete.Store(true)
	t.Cleanup(func() { require.NoError(t, after.Close()) })
	return after
}

// stalling has the two goroutines wait that hash what is there, one for the chunks' sums and one for the whole's digest.
func stalling(t *testing.T) (k disk, stalled func(), goOn func()) {
	t.Helper()
	var calls atomic.Int32
	gate := make(chan struct{})
	goOn = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(goOn)
	k = disk{beforeRead: func(path string) {
		if strings.Contains(path, "ingest") && calls.Add(1) <= 2 {
			<-gate
		}
	}}
	return k, func() {
		t.Helper()
		require.Eventually(t, func() bool { return calls.Load() >= 2 }, time.Minute, time.Millisecond)
	}, goOn
}

func upTo(n int) (list []int) {
	for i := range n {
		list = append(list, i)
	}
	return list
}

func TestInherit_AChunkIsGivenWhileAllOthersAreStillToBeHashed(t *testing.T) {
	t.Parallel()
	b := newSample(1, 64*chunkSize)
	k, stalled, goOn := stalling(t)
	s := inheriting(t, k, b, upTo(63), nil)
	g := ingest(t, s, b)
	stalled()
	for _, i := range []int{0, 17, 62} {
		r, err := g.SectionWriterTo(t.Context(), i, 0, chunkSize)
		require.NoError(t, err)
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.True(t, bytes.Equal(b.chunk(i), got))
		block, err := s.Blockstore().Get(t.Context(), content.ChunkCID(b.chunk(i+1-i/62)))
		require.NoError(t, err)
		require.True(t, bytes.Equal(b.chunk(i+1-i/62), block.RawData()))
	}
	require.True(t, g.inherits(30), "which nobody has read")
	goOn()
	write(t, g, b, 63)
	require.NoError(t, g.Commit(t.Context(), ""))
	requireHas(t, s, b)
	requireBlocks(t, s, b)
}

func TestInherit_AChunkThatWasLostIsGivenToNobody(t *testing.T) {
	t.Parallel()
	b := newSample(1, 4*chunkSize)
	for name, read := range map[string]func(*Store, *Ingest) error{
		"by a reader": func(_ *Store, g *Ingest) error {
			_, err := g.SectionWriterTo(context.Background(), 2, 7, 9)
			return err
		},
		"by one of a few bytes": func(_ *Store, g *Ingest) error {
			_, err := g.ReadChunk(2, make([]byte, 1), 0)
			return err
		},
		"by a peer": func(s *Store, _ *Ingest) error {
			if _, err := s.Blockstore().Get(context.Background(), content.ChunkCID(b.chunk(2))); ipld.IsNotFound(err) {
				return content.ErrNotFound
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, stalled, goOn := stalling(t)
			s := inheriting(t, k, b, upTo(4), []int{2})
			<-s.finished // nothing is committed by itself where a chunk is lost
			g := ingest(t, s, b)
			stalled()
			require.True(t, g.Complete(), "as far as is known")
			verified := make(chan error, 1)
			go func() { verified <- g.Verify(context.Background()) }()
			require.ErrorIs(t, read(s, g), content.ErrNotFound)
			require.Equal(t, bits(0, 1, 3), presentIn(g))
			require.Equal(t, 1, g.Lost())
			require.ErrorIs(t, <-verified, ErrIncomplete)
			goOn()
			write(t, g, b, 2)
			require.NoError(t, g.Commit(t.Context(), ""))
			requireHas(t, s, b)
			requireBlocks(t, s, b)
		})
	}
}

func TestInherit_WhoWritesALostChunkAnewNeedNotKnowThatItWasLost(t *testing.T) {
	t.Parallel()
	b := newSample(1, 4*chunkSize)
	k, _, goOn := stalling(t)
	goOn()
	s := inheriting(t, k, b, upTo(3), []int{0, 2})
	put(t, s, b)
	requireHas(t, s, b)
	requireBlocks(t, s, b)
}

func TestInherit_WhatNobodyHasHashedIsHashedAfterTheNextKillToo(t *testing.T) {
	t.Parallel()
	b := newSample(1, 4*chunkSize)
	k, stalled, goOn := stalling(t)
	s := inheriting(t, k, b, upTo(3), []int{1})
	g := ingest(t, s, b)
	stalled()
	_, err := g.ReadChunk(0, make([]byte, 1), 0)
	require.NoError(t, err)
	go goOn() // as a killed process lets go of all
	require.NoError(t, g.Close())
	g = ingest(t, s, b)
	_, err = g.ReadChunk(1, make([]byte, 1), 0)
	require.ErrorIs(t, err, content.ErrNotFound)
}
