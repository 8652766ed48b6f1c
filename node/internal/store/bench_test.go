package store

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"syscall"
	"testing"
	"time"

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
	m, err := content.NewChunkMap(content.CutLeaves(x.size()))
	require.NoError(b, err)
	for i := range x.chunks() {
		require.NoError(b, m.Set(i, content.ChunkCID(x.chunk(i))))
	}
	b.SetBytes(x.size())
	b.ReportAllocs()
	for b.Loop() {
		g, err := s.Ingest(x.digest, x.size(), Origin{})
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

// BenchmarkServe is what a warm pull of one layer over loopback costs, its client included, beside http.ServeFile on
// the same file: in seconds of processor time for each GiB.
func BenchmarkServe(b *testing.B) {
	s := openTest(b, Options{})
	x := newSample(1, 256*chunkSize)
	put(b, s, x)
	letSettle(b, s.blobPath(x.digest))
	e, err := s.entry(x.digest)
	require.NoError(b, err)
	blob := func(w http.ResponseWriter, r *http.Request) {
		got, err := s.Get(x.digest)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer func() { _ = got.Close() }()
		body, err := got.Range(r.Context(), 0, got.Size())
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer func() { _ = body.Close() }()
		w.Header().Set("Content-Length", strconv.FormatInt(got.Size(), 10))
		if _, err := io.Copy(w, body); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	for _, bb := range []struct {
		name    string
		handler http.HandlerFunc
	}{
		{"a file by net/http", func(w http.ResponseWriter, r *http.Request) {
			http.ServeFile(w, r, s.blobPath(x.digest))
		}},
		{"a blob checked of late", blob},
		{"a blob to be checked", func(w http.ResponseWriter, r *http.Request) {
			e.checks.forget(0, x.chunks())
			blob(w, r)
		}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			server := httptest.NewServer(bb.handler)
			defer server.Close()
			buf := make([]byte, 256<<10)
			before := processorTime(b)
			b.SetBytes(x.size())
			for b.Loop() {
				res, err := server.Client().Get(server.URL)
				require.NoError(b, err)
				n, err := io.CopyBuffer(onlyWriter{io.Discard}, struct{ io.Reader }{res.Body}, buf)
				require.NoError(b, err)
				require.NoError(b, res.Body.Close())
				require.Equal(b, x.size(), n)
			}
			gib := float64(b.N) * float64(x.size()) / (1 << 30)
			b.ReportMetric((processorTime(b)-before).Seconds()/gib, "cpu-s/GiB")
		})
	}
}

// processorTime is what this process has used so far.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
