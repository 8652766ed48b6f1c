package store

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestCommittedBlobIsReadBackWhateverItsSize(t *testing.T) {
	t.Parallel()
	sizes := map[string]int{
		"empty": 0, "one byte": 1, "one chunk": chunkSize, "a chunk and a byte": chunkSize + 1,
		"some chunks": 4*chunkSize + 123,
	}
	s := openTest(t, Options{})
	seed := uint64(0)
	for name, size := range sizes {
		seed++
		b := newSample(seed, size)
		t.Run(name, func(t *testing.T) {
			put(t, s, b)
			requireHas(t, s, b)
			info, err := s.Stat(b.digest)
			require.NoError(t, err)
			require.Equal(t, b.size(), info.Size)
			m, err := s.ChunkMap(b.digest)
			require.NoError(t, err)
			root, _, err := m.DAG()
			require.NoError(t, err)
			require.Equal(t, root, info.Root)
		})
	}
}

func TestBlobsSurviveClosingWithAllThatIsKnownOfThem(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	a, b := newSample(1, 3*chunkSize+5), newSample(2, 100)
	s := openTest(t, Options{Path: path})
	put(t, s, a)
	putAs(t, s, b, "application/manifest")
	before, err := s.List(t.Context())
	require.NoError(t, err)
	require.Len(t, before, 2)
	require.NoError(t, s.Close())

	s = openTest(t, Options{Path: path})
	after, err := s.List(t.Context())
	require.NoError(t, err)
	for i := range before {
		before[i].LastUsed = before[i].LastUsed.Round(0)
	}
	for i := range after {
		after[i].LastUsed = after[i].LastUsed.Round(0)
	}
	require.ElementsMatch(t, before, after)
	requireHas(t, s, a)
	requireHas(t, s, b)
	require.Equal(t, int64(len(a.data)+len(b.data)), s.Usage().Bytes)
}

func TestRangesOfABlob(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	a := newSample(1, 2*chunkSize+10)
	put(t, s, a)
	b, err := s.Get(a.digest)
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	for name, r := range map[string]struct{ off, n int64 }{
		"the whole": {0, a.size()}, "nothing": {5, 0}, "the last byte": {a.size() - 1, 1},
		"across a chunk's end": {chunkSize - 3, 7}, "nothing at the end": {a.size(), 0},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, a.data[r.off:r.off+r.n], readRange(t, b, r.off, r.n))
			if r.n > 10 {
				return // the reader's test reads single bytes
			}
			sec, err := b.Range(t.Context(), r.off, r.n)
			require.NoError(t, err)
			defer func() { require.NoError(t, sec.Close()) }()
			require.NoError(t, iotest.TestReader(onlyReader{sec}, a.data[r.off:r.off+r.n]))
		})
	}
	for name, r := range map[string]struct{ off, n int64 }{
		"before the start": {-1, 1}, "past the end": {a.size() - 1, 2}, "of negative length": {1, -1},
		"that overflows": {1, 1<<63 - 1},
	} {
		t.Run("refuses one "+name, func(t *testing.T) {
			_, err := b.Range(t.Context(), r.off, r.n)
			require.Error(t, err)
		})
	}
}

type onlyReader struct{ io.Reader }

func TestRangeOutlivesItsBlobAndItsEviction(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	a := newSample(1, 2*chunkSize)
	put(t, s, a)
	b, err := s.Get(a.digest)
	require.NoError(t, err)
	before, err := b.Range(t.Context(), 0, a.size())
	require.NoError(t, err)
	require.NoError(t, s.Delete(a.digest))
	requireGone(t, s, a)
	after, err := b.Range(t.Context(), 1, a.size()-1)
	require.NoError(t, err)
	require.NoError(t, b.Close())
	for off, r := range map[int]io.ReadCloser{0: before, 1: after} {
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.True(t, bytes.Equal(a.data[off:], got))
		require.NoError(t, r.Close())
	}
}

func TestRangeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	a := newSample(1, 10)
	put(t, s, a)
	b, err := s.Get(a.digest)
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := b.Range(ctx, 0, 10)
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	cancel()
	_, err = io.ReadAll(onlyReader{r})
	require.ErrorIs(t, err, context.Canceled)
	_, err = io.Copy(io.Discard, r)
	require.ErrorIs(t, err, context.Canceled)
}

// fileTaker stands where net/http's response stands; sendfile(2) is used for exactly the form it looks for.
type fileTaker struct {
	bytes.Buffer
	files int
}

func (w *fileTaker) ReadFrom(r io.Reader) (int64, error) {
	if lr, ok := r.(*io.LimitedReader); ok {
		if _, ok := lr.R.(*os.File); ok {
			w.files++
		}
	}
	return w.Buffer.ReadFrom(r)
}

func TestRangesAreSentAsFiles(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	a := newSample(1, 2*chunkSize)
	put(t, s, a)
	b, err := s.Get(a.digest)
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	blob, err := b.Range(t.Context(), 7, chunkSize)
	require.NoError(t, err)
	c := newSample(2, 2*chunkSize)
	g, err := s.Ingest(c.digest, c.size(), Origin{})
	require.NoError(t, err)
	defer func() { require.NoError(t, g.Close()) }()
	write(t, g, c, 1)
	chunk, err := g.SectionWriterTo(t.Context(), 1, 7, chunkSize-9)
	require.NoError(t, err)
	for name, tt := range map[string]struct {
		r     io.ReadCloser
		want  []byte
		files int
	}{
		"of a blob":            {blob, a.data[7 : 7+chunkSize], 2}, // its end by itself
		"of an arriving chunk": {chunk, c.data[chunkSize+7 : 2*chunkSize-2], 1},
	} {
		t.Run(name, func(t *testing.T) {
			var w fileTaker
			n, err := io.Copy(&w, tt.r)
			require.NoError(t, err)
			require.Equal(t, int64(len(tt.want)), n)
			require.True(t, bytes.Equal(tt.want, w.Bytes()))
			require.Equal(t, tt.files, w.files)
			require.NoError(t, tt.r.Close())
		})
	}
}

func TestPutRefusesWhatIsNotTheBlob(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	a := newSample(1, chunkSize+10)
	for name, tt := range map[string]struct {
		data []byte
		size int64
	}{
		"other bytes":     {newSample(2, chunkSize+10).data, a.size()},
		"too few bytes":   {a.data[:chunkSize], a.size()},
		"too many bytes":  {append(bytes.Clone(a.data), 1), a.size()},
		"a smaller size":  {a.data, chunkSize},
		"a larger size":   {a.data, a.size() + 1},
		"no bytes at all": {nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			err := s.Put(t.Context(), a.digest, bytes.NewReader(tt.data), tt.size)
			require.ErrorIs(t, err, content.ErrDigestMismatch)
			requireGone(t, s, a)
			require.Zero(t, s.Usage().IngestBytes)
		})
	}
	put(t, s, a)
	requireHas(t, s, a)
}

func TestPutOfABlobThatExistsReadsNothing(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	a := newSample(1, 10)
	put(t, s, a)
	require.NoError(t, s.Put(t.Context(), a.digest, strings.NewReader("is not read"), a.size()))
	requireHas(t, s, a)
}

func TestSHA512(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	s := openTest(t, Options{Path: path})
	data := newSample(1, chunkSize+10).data
	a := sample{data: data, digest: digest.SHA512.FromBytes(data)}
	put(t, s, a)
	requireHas(t, s, a)
	require.NoError(t, s.Close())
	s = openTest(t, Options{Path: path})
	requireHas(t, s, a)
	m, err := s.ChunkMap(a.digest)
	require.NoError(t, err)
	block, err := s.Blockstore().Get(t.Context(), m.CID(1))
	require.NoError(t, err)
	require.Equal(t, a.chunk(1), block.RawData())
}

func TestNamesThatAreNoDigestsAreRefused(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{RuntimePath: t.TempDir()})
	for _, d := range []digest.Digest{"", "sha256:", "sha256:../../etc/passwd",
		"sha384:" + digest.Digest(strings.Repeat("0", 96))} {
		_, err := s.Get(d)
		require.Error(t, err, d)
		_, err = s.Stat(d)
		require.Error(t, err, d)
		_, err = s.Ingest(d, 1, Origin{})
		require.Error(t, err, d)
		require.Error(t, s.Delete(d), d)
		require.Error(t, s.Pin("me", []digest.Digest{d}), d)
	}
}

func TestDeleteForgetsBlobAndPartial(t *testing.T) {
	t.Parallel()
	var events recorder
	s := openTest(t, Options{OnEvent: events.add})
	a, b := newSample(1, chunkSize+1), newSample(2, 2*chunkSize)
	put(t, s, a)
	g, err := s.Ingest(b.digest, b.size(), Origin{})
	require.NoError(t, err)
	write(t, g, b, 0)
	require.ErrorIs(t, s.Delete(b.digest), ErrBusy)
	require.NoError(t, g.Close())
	require.NotZero(t, s.Usage().IngestBytes)

	require.NoError(t, s.Delete(a.digest))
	require.NoError(t, s.Delete(b.digest))
	require.NoError(t, s.Delete(a.digest), "removal of what is not there is no error")
	requireGone(t, s, a)
	u := s.Usage()
	require.Zero(t, u.Bytes)
	require.Zero(t, u.IngestBytes)
	require.Equal(t, []EventType{Committed, Removed}, events.types(a.digest))
	put(t, s, a)
	requireHas(t, s, a)
}

func TestAListenerMayUseTheStore(t *testing.T) {
	t.Parallel()
	var s *Store
	var events recorder
	s = openTest(t, Options{OnEvent: func(ev Event) {
		events.add(ev)
		if ev.Type == Committed {
			require.NoError(t, s.Delete(ev.Info.Digest))
		}
	}})
	a := newSample(1, 10)
	put(t, s, a)
	requireGone(t, s, a)
	require.Equal(t, []EventType{Committed, Removed}, events.types(a.digest))
}

func TestASecondProcessIsTurnedAway(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=open", childPathEnv+"="+s.opts.Path)
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "another process has the store open")
	_, err = Open(t.Context(), quiet(Options{Path: s.opts.Path}))
	require.ErrorContains(t, err, "another process has the store open")
	a := newSample(1, 10)
	put(t, s, a)
	requireHas(t, s, a)
}

func TestBadOptionsAreRefused(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{
		"no path":                    {},
		"low above high":             {Path: t.TempDir(), Limits: Limits{High: 0.5, Low: 0.6}},
		"high above one":             {Path: t.TempDir(), Limits: Limits{High: 1.5}},
		"negative capacity":          {Path: t.TempDir(), Limits: Limits{Capacity: -1}},
		"unknown eviction":           {Path: t.TempDir(), Limits: Limits{Eviction: "FIFO"}},
		"path below a file":          {Path: os.Args[0] + "/store"},
		"negative floor of the disk": {Path: t.TempDir(), Limits: Limits{MinFree: -1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(t.Context(), quiet(o))
			require.Error(t, err)
		})
	}
}

func TestAClosedStoreSaysSo(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{})
	a, b := newSample(1, 10), newSample(2, 2*chunkSize)
	put(t, s, a)
	blob, err := s.Get(a.digest)
	require.NoError(t, err)
	g, err := s.Ingest(b.digest, b.size(), Origin{})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NoError(t, s.Close(), "closing twice does nothing")

	require.Equal(t, a.data, readRange(t, blob, 0, a.size()), "an open blob stays readable")
	require.NoError(t, blob.Close())
	require.ErrorIs(t, g.WriteChunk(0, content.ChunkCID(b.chunk(0)), b.chunk(0)), content.ErrClosed)
	require.ErrorIs(t, g.Commit(t.Context(), ""), content.ErrClosed)
	require.NoError(t, g.Close())
	_, err = s.Get(a.digest)
	require.ErrorIs(t, err, content.ErrClosed)
	_, err = s.Stat(a.digest)
	require.ErrorIs(t, err, content.ErrClosed)
	_, err = s.List(t.Context())
	require.ErrorIs(t, err, content.ErrClosed)
	_, err = s.Ingest(a.digest, 10, Origin{})
	require.ErrorIs(t, err, content.ErrClosed)
	_, err = s.Scrub(t.Context())
	require.ErrorIs(t, err, content.ErrClosed)
	require.ErrorIs(t, s.SetLimits(Limits{}), content.ErrClosed)
	require.ErrorIs(t, s.Pin("me", nil), content.ErrClosed)
	require.ErrorIs(t, s.KV("x").Put("k", nil), content.ErrClosed)
	_, ok := s.KV("x").Get("k")
	require.False(t, ok)
	has, err := s.Blockstore().Has(t.Context(), content.ChunkCID(a.data))
	require.NoError(t, err)
	require.False(t, has)
}

func TestMetricsCountWhatTheStoreHolds(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewPedanticRegistry()
	path := t.TempDir()
	o := Options{Path: path, Registerer: reg, Limits: Limits{Capacity: 64 * chunkSize}}
	s := openTest(t, o)
	a, b := newSample(1, chunkSize+10), newSample(2, 2*chunkSize)
	put(t, s, a)
	require.NoError(t, s.Pin("me", []digest.Digest{a.digest}))
	g, err := s.Ingest(b.digest, b.size(), Origin{})
	require.NoError(t, err)
	write(t, g, b, 1)
	want := `
# HELP shoal_store_blobs Number of committed blobs.
# TYPE shoal_store_blobs gauge
shoal_store_blobs 1
# HELP shoal_store_bytes Bytes of committed blobs.
# TYPE shoal_store_bytes gauge
shoal_store_bytes 1.048586e+06
# HELP shoal_store_capacity_bytes Capacity in bytes, 0 for no limit.
# TYPE shoal_store_capacity_bytes gauge
shoal_store_capacity_bytes 6.7108864e+07
# HELP shoal_store_ingest_bytes Bytes present in open and partial ingests.
# TYPE shoal_store_ingest_bytes gauge
shoal_store_ingest_bytes 1.048576e+06
# HELP shoal_store_ingested_bytes_total Bytes of chunks written to ingests.
# TYPE shoal_store_ingested_bytes_total counter
shoal_store_ingested_bytes_total 2.097162e+06
# HELP shoal_store_pinned_bytes Bytes of committed blobs that are pinned.
# TYPE shoal_store_pinned_bytes gauge
shoal_store_pinned_bytes 1.048586e+06
`
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(want), "shoal_store_blobs", "shoal_store_bytes",
		"shoal_store_capacity_bytes", "shoal_store_ingest_bytes", "shoal_store_ingested_bytes_total",
		"shoal_store_pinned_bytes"))
	require.NoError(t, g.Close())
	require.NoError(t, s.Close())
	openTest(t, o) // the same registry takes a second store after the first
}
