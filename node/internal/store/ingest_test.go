package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func ingest(t testing.TB, s *Store, b sample) *Ingest {
	t.Helper()
	g, err := s.Ingest(b.digest, b.size(), Origin{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = g.Close() })
	return g
}

// presentIn is the set of present chunks: chunk i is bit i%8 of byte i/8.
func presentIn(g *Ingest) []byte {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return bytes.Clone(g.present)
}

func bits(chunks ...int) (set []byte) {
	set = make([]byte, 1)
	for _, i := range chunks {
		set[0] |= 1 << i
	}
	return set
}

func TestChunksAreReadableAsTheyArriveAndTheBlobAfterCommit(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 4*chunkSize+9)
	g := ingest(t, s, b)
	bs := s.Blockstore()
	for k, i := range []int{3, 0, 4, 2, 1} {
		c := content.ChunkCID(b.chunk(i))
		require.False(t, g.Has(i))
		require.False(t, g.CID(i).Defined())
		_, err := g.ReadChunk(i, make([]byte, 1), 0)
		require.ErrorIs(t, err, content.ErrNotFound)
		require.ErrorIs(t, g.Commit(t.Context(), ""), ErrIncomplete)

		write(t, g, b, i)
		require.True(t, g.Has(i))
		require.Equal(t, c, g.CID(i))
		block, err := bs.Get(t.Context(), c)
		require.NoError(t, err)
		require.True(t, bytes.Equal(b.chunk(i), block.RawData()))
		require.Equal(t, k == 4, g.Complete())
		requireGone(t, s, b)
	}
	require.NoError(t, g.Verify(t.Context()))
	requireGone(t, s, b)
	require.NoError(t, g.Commit(t.Context(), "a/b"))
	requireHas(t, s, b)
	require.NoError(t, g.Commit(t.Context(), "a/b"), "repeating it does nothing")
	write(t, g, b, 2)
	got := make([]byte, 9)
	_, err := g.ReadChunk(4, got, 0)
	require.True(t, err == nil || err == io.EOF)
	require.Equal(t, b.chunk(4), got, "an open ingest stays readable after the commit")
	require.NoError(t, g.Discard(), "after the commit it only closes")
	requireHas(t, s, b)
	requireBlocks(t, s, b)
}

func TestIngestResumesWithTheChunksItHad(t *testing.T) {
	t.Parallel()
	b := newSample(1, 3*chunkSize+100)
	for name, reopen := range map[string]func(*testing.T, *Store) *Store{
		"in the same process": func(_ *testing.T, s *Store) *Store { return s },
		"after closing the store": func(t *testing.T, s *Store) *Store {
			require.NoError(t, s.Close())
			return openTest(t, s.opts)
		},
		"after a kill": func(t *testing.T, s *Store) *Store {
			kill(s)
			return openTest(t, s.opts)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := Open(t.Context(), quiet(Options{Path: t.TempDir()}))
			require.NoError(t, err)
			g := ingest(t, s, b)
			write(t, g, b, 0, 2)
			if name != "after a kill" {
				require.NoError(t, g.Close())
			}
			s = reopen(t, s)
			require.GreaterOrEqual(t, s.Usage().IngestBytes, int64(2*chunkSize))

			g = ingest(t, s, b)
			require.Equal(t, bits(0, 2), presentIn(g))
			for _, i := range []int{0, 2} {
				require.Equal(t, content.ChunkCID(b.chunk(i)), g.CID(i))
			}
			write(t, g, b, 1, 3)
			require.NoError(t, g.Commit(t.Context(), ""))
			requireHas(t, s, b)
			requireBlocks(t, s, b)
			require.Zero(t, s.Usage().IngestBytes)
			if name == "in the same process" {
				require.NoError(t, s.Close())
			}
		})
	}
}

func TestChunksThatAreNoLongerWhatWasWrittenAreGivenToNobody(t *testing.T) {
	t.Parallel()
	b := newSample(1, 3*chunkSize)
	for name, c := range map[string]struct {
		spoil func(*os.File) error
		kept  []byte
	}{
		"a bit is another": {func(f *os.File) error {
			_, err := f.WriteAt([]byte{b.data[chunkSize+17] ^ 1}, chunkSize+17)
			return err
		}, bits(0)},
		"a power failure has taken one": {func(f *os.File) error {
			_, err := f.WriteAt(make([]byte, chunkSize), chunkSize)
			return err
		}, bits(0)},
		"the end is gone": {func(f *os.File) error { return f.Truncate(chunkSize) }, bits()},
		"the end is gone, and a hole is there": {func(f *os.File) error {
			return errors.Join(f.Truncate(chunkSize+1), f.Truncate(b.size()))
		}, bits(0)},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", restarted: ", restarted), func(t *testing.T) {
				t.Parallel()
				path := t.TempDir()
				s, err := Open(t.Context(), quiet(Options{Path: path}))
				require.NoError(t, err)
				g := ingest(t, s, b)
				write(t, g, b, 0, 1)
				require.NoError(t, g.Close())
				f, err := os.OpenFile(flat(s.ingestDir, b.digest), os.O_WRONLY, 0)
				require.NoError(t, err)
				require.NoError(t, errors.Join(c.spoil(f), f.Close()))
				if restarted {
					require.NoError(t, s.Close())
					s, err = Open(t.Context(), quiet(Options{Path: path}))
					require.NoError(t, err)
				}
				defer func() { require.NoError(t, s.Close()) }()

				g = ingest(t, s, b)
				_, err = g.ReadChunk(1, make([]byte, 1), 0)
				require.ErrorIs(t, err, content.ErrNotFound)
				require.Equal(t, c.kept, presentIn(g))
				require.NoError(t, g.Close())
				g = ingest(t, s, b)
				require.Equal(t, c.kept, presentIn(g), "and that is remembered")
				write(t, g, b, 0, 1, 2)
				require.NoError(t, g.Commit(t.Context(), ""))
				requireHas(t, s, b)
			})
		}
	}
}

// Resuming takes its time on a slow disk. Nothing else waits for it.
func TestResumingAnIngestHoldsUpNobody(t *testing.T) {
	t.Parallel()
	var slow atomic.Bool
	resuming, goOn := make(chan struct{}), make(chan struct{})
	s := openFaulty(t, Options{}, func(op, path string) error {
		if op == "truncate" && strings.Contains(path, "ingest") && slow.CompareAndSwap(true, false) {
			close(resuming)
			<-goOn
		}
		return nil
	})
	b, other := newSample(1, 2*chunkSize), newSample(2, chunkSize)
	g := ingest(t, s, b)
	write(t, g, b, 0)
	require.NoError(t, g.Close())
	put(t, s, other)
	slow.Store(true)
	opened := make(chan error, 1)
	go func() {
		g, err := s.Ingest(b.digest, b.size(), Origin{})
		if err == nil {
			err = g.Close()
		}
		opened <- err
	}()
	<-resuming

	requireHas(t, s, other)
	requireBlocks(t, s, other)
	require.Equal(t, other.size(), s.Usage().Bytes)
	_, err := s.Ingest(b.digest, b.size(), Origin{})
	require.ErrorIs(t, err, ErrBusy)
	put(t, s, newSample(3, 10))
	close(goOn)
	require.NoError(t, <-opened)
}

// A disk that cannot give back what was written to it must not spoil every later try.
func TestAPartialThatCannotBeReadBackIsDropped(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 2*chunkSize)
	g := ingest(t, s, b)
	write(t, g, b, 1)
	file := flat(s.ingestDir, b.digest)
	require.NoError(t, os.Truncate(file, chunkSize+1))
	write(t, g, b, 0)
	err := g.Commit(t.Context(), "")
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.ErrorIs(t, err, content.ErrStorage, "so that readers are given the rest from elsewhere")
	require.NoError(t, os.Truncate(file, b.size()))
	require.NoError(t, g.Close())
	put(t, s, b)
	requireHas(t, s, b)
}

func TestAPartialOfAnotherSizeIsDropped(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 2*chunkSize)
	g, err := s.Ingest(b.digest, 3*chunkSize, Origin{})
	require.NoError(t, err)
	write(t, g, b, 0, 1)
	require.NoError(t, g.Close())
	g = ingest(t, s, b)
	require.Equal(t, bits(), presentIn(g))
	write(t, g, b, 0, 1)
	require.NoError(t, g.Commit(t.Context(), ""))
	requireHas(t, s, b)
}

func TestADamagedJournalMakesNoChunkPresent(t *testing.T) {
	t.Parallel()
	b := newSample(1, 3*chunkSize)
	for name, tt := range map[string]struct {
		damage func(b []byte) []byte
		want   []byte
	}{
		"a torn slot":       {func(b []byte) []byte { b[journalHeader+journalSlot+3] ^= 1; return b }, bits(0, 2)},
		"slots exchanged":   {swapSlots, bits(2)},
		"cut within a slot": {func(b []byte) []byte { return b[:journalHeader+journalSlot+5] }, bits(0)},
		"a damaged header":  {func(b []byte) []byte { b[9] ^= 1; return b }, bits()},
		"empty":             {func([]byte) []byte { return nil }, bits()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTest(t, Options{})
			g := ingest(t, s, b)
			write(t, g, b, 0, 1, 2)
			require.NoError(t, g.Close())
			path := flat(s.ingestDir, b.digest) + journalSuffix
			j, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, tt.damage(j), 0o600))
			g = ingest(t, s, b)
			require.Equal(t, tt.want, presentIn(g))
			write(t, g, b, 0, 1, 2)
			require.NoError(t, g.Commit(t.Context(), ""))
			requireHas(t, s, b)
		})
	}
}

func swapSlots(b []byte) []byte {
	zero, one := b[journalHeader:journalHeader+journalSlot], b[journalHeader+journalSlot:journalHeader+2*journalSlot]
	held := bytes.Clone(zero)
	copy(zero, one)
	copy(one, held)
	return b
}

func TestWrongBytesNeverBecomeABlob(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b, liar := newSample(1, 3*chunkSize), newSample(2, 3*chunkSize)
	g := ingest(t, s, b)
	write(t, g, b, 0, 2)
	write(t, g, liar, 1)
	require.ErrorIs(t, g.WriteChunk(1, content.ChunkCID(b.chunk(1)), b.chunk(1)), content.ErrDigestMismatch,
		"one of two CIDs for a chunk is wrong")
	require.ErrorIs(t, g.Verify(t.Context()), content.ErrDigestMismatch)
	require.ErrorIs(t, g.Commit(t.Context(), ""), content.ErrDigestMismatch)
	requireGone(t, s, b)
	require.NoError(t, g.Close(), "which drops what was found wrong")
	require.Zero(t, s.Usage().IngestBytes)

	g = ingest(t, s, b)
	require.Equal(t, bits(), presentIn(g))
	write(t, g, b, 0, 1, 2)
	require.NoError(t, g.Commit(t.Context(), ""))
	requireHas(t, s, b)
}

func TestMalformedChunksAreRefused(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, chunkSize+10)
	g := ingest(t, s, b)
	c := content.ChunkCID(b.chunk(0))
	d, err := content.DigestCID("sha512:" +
		"00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000")
	require.NoError(t, err)
	require.Error(t, g.WriteChunk(-1, c, b.chunk(0)))
	require.Error(t, g.WriteChunk(2, c, b.chunk(0)))
	require.Error(t, g.WriteChunk(0, c, b.chunk(0)[1:]), "too short")
	require.Error(t, g.WriteChunk(1, c, b.chunk(0)), "too long")
	require.Error(t, g.WriteChunk(0, d, b.chunk(0)), "not a chunk's CID")
	require.Equal(t, bits(), presentIn(g))
	for _, r := range [][2]int64{{-1, 1}, {chunkSize, 1}, {0, chunkSize + 1}, {0, -1}} {
		write(t, g, b, 0)
		_, err := g.SectionWriterTo(t.Context(), 0, r[0], r[1])
		require.Error(t, err)
	}
}

func TestOneIngestOfADigestAtATime(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, chunkSize)
	g := ingest(t, s, b)
	_, err := s.Ingest(b.digest, b.size(), Origin{})
	require.ErrorIs(t, err, ErrBusy)
	write(t, g, b, 0)
	require.NoError(t, g.Commit(t.Context(), ""))
	_, err = s.Ingest(b.digest, b.size(), Origin{})
	require.ErrorIs(t, err, ErrExists)
	require.NoError(t, g.Close())
	_, err = s.Ingest(b.digest, content.MaxSize+1, Origin{})
	require.Error(t, err)
	_, err = s.Ingest(b.digest, -1, Origin{})
	require.Error(t, err)
}

func TestDiscardLeavesNothing(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 2*chunkSize)
	g := ingest(t, s, b)
	write(t, g, b, 1)
	require.NoError(t, g.Discard())
	require.NoError(t, g.Close())
	require.Zero(t, s.Usage().IngestBytes)
	has, err := s.Blockstore().Has(t.Context(), content.ChunkCID(b.chunk(1)))
	require.NoError(t, err)
	require.False(t, has)
	require.Equal(t, bits(), presentIn(ingest(t, s, b)))
}

func TestVerifyEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 1000)
	g := ingest(t, s, b)
	// The chunk is there, but nobody has told the goroutine that hashes.
	require.NoError(t, s.disk.writeAt(g.file, b.data, 0))
	require.NoError(t, g.note(0, content.ChunkCID(b.data)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, g.Verify(ctx), context.Canceled)
	g.follow.kick()
	require.NoError(t, g.Verify(t.Context()))
}

// Many writers, several of each chunk, and readers of all that is present.
func TestConcurrentWritersAndReadersOfOneIngest(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 24*chunkSize+5)
	g := ingest(t, s, b)
	bs := s.Blockstore()
	var group sync.WaitGroup
	for range 3 {
		order := rand.Perm(b.chunks())
		group.Go(func() {
			for _, i := range order {
				if err := g.WriteChunk(i, content.ChunkCID(b.chunk(i)), b.chunk(i)); err != nil {
					t.Error(err)
				}
			}
			if err := g.Commit(context.Background(), ""); err != nil {
				t.Error(err)
			}
		})
		group.Go(func() {
			for _, i := range order {
				if !g.Has(i) {
					continue
				}
				block, err := bs.Get(t.Context(), g.CID(i))
				if err != nil || !bytes.Equal(block.RawData(), b.chunk(i)) {
					t.Errorf("chunk %d: %v", i, err)
				}
				_ = g.Map()
				_ = s.Usage()
			}
		})
	}
	group.Wait()
	requireHas(t, s, b)
	requireBlocks(t, s, b)
}

func TestIngestMayBeClosedWhileItIsUsed(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	b := newSample(1, 8*chunkSize)
	for range 10 {
		g := ingest(t, s, b)
		var group sync.WaitGroup
		for i := range b.chunks() {
			group.Go(func() {
				if err := g.WriteChunk(i, content.ChunkCID(b.chunk(i)), b.chunk(i)); err != nil &&
					g.currentPhase() != phaseClosed {
					t.Error(err)
				}
			})
		}
		group.Go(func() { _ = g.Close() })
		group.Wait()
		requireTrueChunks(t, s, b)
	}
}

func TestEqualChunksOfOneBlob(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	data := make([]byte, 5*chunkSize) // all chunks are equal
	b := sampleOf(data)
	put(t, s, b)
	requireHas(t, s, b)
	requireBlocks(t, s, b)
	require.NoError(t, s.Delete(b.digest))
	has, err := s.Blockstore().Has(t.Context(), content.ChunkCID(b.chunk(0)))
	require.NoError(t, err)
	require.False(t, has)
}

// A source that has proved nothing may give anything under the digest of a blob that it does not have.
func TestIngest_WhatOneSourceGaveIsNoOthersAndCostsNoOtherItsOwn(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	s := openTest(t, Options{Path: path})
	b, wrong := newSample(1, 3*chunkSize), newSample(2, 4*chunkSize)
	evil, honest := Origin{Source: Source{1}, Pool: Models}, Origin{Source: Source{2}}
	give := func(origin Origin, of sample, chunks ...int) (before []byte) {
		g, err := s.Ingest(b.digest, of.size(), origin)
		require.NoError(t, err)
		before = presentIn(g)
		write(t, g, of, chunks...)
		require.NoError(t, g.Close())
		return before
	}
	require.Equal(t, bits(), give(honest, b, 0, 1))
	require.Equal(t, bits(), give(evil, wrong, 0))
	require.Equal(t, bits(), give(Origin{}, b, 2))
	require.NoError(t, s.Close())

	s = openTest(t, Options{Path: path})
	require.Equal(t, wrong.size(), s.SizeOf(b.digest, evil.Source))
	require.Equal(t, b.size(), s.SizeOf(b.digest, Source{}))
	require.Equal(t, bits(0), give(evil, wrong))
	require.Equal(t, bits(0, 1), give(honest, b))
	require.Equal(t, bits(2), give(Origin{}, b))

	put(t, s, b)
	require.Empty(t, s.partials)
	left, err := os.ReadDir(filepath.Dir(flat(s.ingestDir, b.digest)))
	require.NoError(t, err)
	require.Empty(t, left, "nobody resumes a blob that is here")
}

func TestIngest_ThatOfASourceIsCommittedAtTheNextStartIfItIsTheBlob(t *testing.T) {
	t.Parallel()
	path, b, other := t.TempDir(), newSample(1, 2*chunkSize), newSample(2, 2*chunkSize)
	s := openTest(t, Options{Path: path})
	for source, given := range map[Source]sample{{1}: other, {2}: b} {
		g, err := s.Ingest(b.digest, b.size(), Origin{Source: source})
		require.NoError(t, err)
		write(t, g, given, 0, 1)
		require.NoError(t, g.Close())
	}
	kill(s)
	s = openTest(t, Options{Path: path})
	<-s.finished
	requireHas(t, s, b)
}

func TestIngest_ThatOfAReleaseWhichNamedNoSourceIsResumedOnlyIfItHadNone(t *testing.T) {
	t.Parallel()
	path, b := t.TempDir(), newSample(1, 2*chunkSize)
	s := openTest(t, Options{Path: path})
	g, err := s.Ingest(b.digest, b.size(), Origin{Source: Source{1}})
	require.NoError(t, err)
	write(t, g, b, 0)
	was := g.path()
	require.NoError(t, g.Close())
	require.NoError(t, s.Close())
	for _, suffix := range []string{"", journalSuffix} {
		require.NoError(t, os.Rename(was+suffix, flat(filepath.Join(path, "ingest"), b.digest)+suffix))
	}
	s = openTest(t, Options{Path: path})
	require.Zero(t, s.SizeOf(b.digest, Source{}))
	require.Equal(t, bits(), presentIn(ingest(t, s, b)))
}
