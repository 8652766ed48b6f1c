package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		runChild()
		return
	}
	goleak.VerifyTestMain(m)
}

// sample is a blob made from a number, so that another process can make the same.
type sample struct {
	data   []byte
	digest digest.Digest
}

func newSample(seed uint64, size int) sample {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	pattern := make([]byte, 64<<10)
	_, _ = rand.NewChaCha8(key).Read(pattern)
	// No two chunks are equal: each copy of the pattern starts with its number.
	data := make([]byte, 0, size+len(pattern))
	for i := uint64(0); len(data) < size; i++ {
		binary.BigEndian.PutUint64(pattern, i)
		data = append(data, pattern...)
	}
	return sampleOf(data[:size:size])
}

func (s sample) chunk(i int) []byte {
	off, n := content.CutLeaves(int64(len(s.data))).Range(i)
	return s.data[off : off+n]
}

func (s sample) size() int64 { return int64(len(s.data)) }

func (s sample) chunks() int { return content.CutLeaves(s.size()).Len() }

const chunkSize = content.ChunkSize

func quiet(o Options) Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// openTest opens a store that the test closes at its end, unless it does so before.
func openTest(t testing.TB, o Options) *Store {
	t.Helper()
	if o.Path == "" {
		o.Path = t.TempDir()
	}
	s, err := Open(context.Background(), quiet(o))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// openFaulty opens a store whose file operations ask fault first.
func openFaulty(t testing.TB, o Options, fault func(op, path string) error) *Store {
	t.Helper()
	if o.Path == "" {
		o.Path = t.TempDir()
	}
	s, err := openWith(context.Background(), quiet(o), disk{fault: fault})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// kill lets go of the store's files as the end of a killed process does: nothing is written any more.
func kill(s *Store) {
	s.mu.Lock()
	s.closed = true
	open := s.ingests
	s.ingests = nil
	s.mu.Unlock()
	s.cancel()
	s.workers.Wait()
	for _, g := range open {
		g.follow.end()
		_ = g.file.Close()
		_ = g.journal.close()
	}
	s.abandon()
}

func put(t testing.TB, s *Store, b sample) {
	t.Helper()
	require.NoError(t, s.Put(context.Background(), b.digest, bytes.NewReader(b.data), b.size()))
}

// putAs puts what has a media type, as a fetch does.
func putAs(t testing.TB, s *Store, b sample, mediaType string) {
	t.Helper()
	g := ingest(t, s, b)
	require.NoError(t, g.fill(context.Background(), bytes.NewReader(b.data)))
	require.NoError(t, g.Commit(context.Background(), mediaType))
}

func readRange(t testing.TB, b *Blob, off, n int64) []byte {
	t.Helper()
	r, err := b.Range(context.Background(), off, n)
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	data := make([]byte, n)
	_, err = io.ReadFull(r, data)
	require.NoError(t, err)
	more, err := r.Read(make([]byte, 1))
	require.Zero(t, more)
	require.ErrorIs(t, err, io.EOF)
	return data
}

func requireHas(t testing.TB, s *Store, b sample) {
	t.Helper()
	got, err := s.Get(b.digest)
	require.NoError(t, err)
	defer func() { require.NoError(t, got.Close()) }()
	require.Equal(t, b.size(), got.Size())
	require.True(t, bytes.Equal(b.data, readRange(t, got, 0, got.Size())), "bytes of %s", b.digest)
}

func requireGone(t testing.TB, s *Store, b sample) {
	t.Helper()
	_, err := s.Get(b.digest)
	require.ErrorIs(t, err, content.ErrNotFound)
	_, err = s.Stat(b.digest)
	require.ErrorIs(t, err, content.ErrNotFound)
	_, err = s.ChunkMap(b.digest)
	require.ErrorIs(t, err, content.ErrNotFound)
}

// write writes chunks of b into its ingest.
func write(t testing.TB, g *Ingest, b sample, chunks ...int) {
	t.Helper()
	for _, i := range chunks {
		require.NoError(t, g.WriteChunk(i, content.ChunkCID(b.chunk(i)), b.chunk(i)))
	}
}

// recorder collects events.
type recorder struct {
	mu   sync.Mutex
	list []Event
}

func (r *recorder) add(ev Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, ev)
}

func (r *recorder) types(d digest.Digest) []EventType {
	r.mu.Lock()
	defer r.mu.Unlock()
	var types []EventType
	for _, ev := range r.list {
		if ev.Info.Digest == d {
			types = append(types, ev.Type)
		}
	}
	return types
}

func sampleOf(data []byte) sample { return sample{data: data, digest: digest.FromBytes(data)} }
