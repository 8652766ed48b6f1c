package hub

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/hubtest"
)

// BenchmarkWarm reads a file that the node has through the front, and the same bytes from http.ServeFile, in turns. It
// reports the front's throughput over that of ServeFile.
func BenchmarkWarm(b *testing.B) {
	const size = 256 << 20
	h := newHub(b)
	data := hubtest.Random(1, size)
	h.Repo("models", "org/m").Commit("main", map[string]hubtest.File{"w.safetensors": {Data: data, LFS: true}})
	a := newAgent(b, h, "", nil)
	path := filepath.Join(b.TempDir(), "w.safetensors")
	f, err := os.Create(path)
	require.NoError(b, err)
	_, err = io.Copy(f, io.NewSectionReader(data, 0, size))
	require.NoError(b, err)
	require.NoError(b, f.Close())
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, path)
	}))
	defer plain.Close()
	read := func(url string) time.Duration {
		start := time.Now()
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, nil)
		require.NoError(b, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(b, err)
		n, err := io.Copy(io.Discard, resp.Body)
		require.NoError(b, err)
		require.NoError(b, resp.Body.Close())
		require.EqualValues(b, size, n)
		return time.Since(start)
	}
	front := a.URL + resolve("org/m", "main", "w.safetensors")
	read(front) // from the hub
	read(front) // and once from the disk, checked
	read(plain.URL)
	var ours, theirs time.Duration
	b.SetBytes(size)
	for b.Loop() {
		ours += read(front)
		theirs += read(plain.URL)
	}
	b.ReportMetric(float64(theirs)/float64(ours), "of-ServeFile")
}

// BenchmarkArriving reads a file while it comes from the hub, and then as the node has it. It reports the processor
// time of both, with that of the client, and for the first also of the hub.
func BenchmarkArriving(b *testing.B) {
	const size = 256 << 20
	h := newHub(b)
	a := newAgent(b, h, "", nil)
	var cpu [2]time.Duration
	seed := uint64(1)
	for b.Loop() {
		b.StopTimer()
		seed++
		file := map[string]hubtest.File{"w.safetensors": {Data: hubtest.Random(seed, size), LFS: true}}
		commit := h.Repo("models", "org/m").Commit("main", file)
		b.StartTimer()
		for i := range cpu {
			before := processor(b)
			g, err := http.Get(a.URL + resolve("org/m", commit, "w.safetensors"))
			require.NoError(b, err)
			n, err := io.Copy(io.Discard, g.Body)
			require.NoError(b, errors.Join(err, g.Body.Close()))
			require.EqualValues(b, size, n)
			a.rest(b)
			cpu[i] += processor(b) - before
		}
	}
	perGiB := func(d time.Duration) float64 { return d.Seconds() / (float64(b.N) * size / (1 << 30)) }
	b.ReportMetric(perGiB(cpu[0]), "arriving-CPU-s/GiB")
	b.ReportMetric(perGiB(cpu[1]), "warm-CPU-s/GiB")
}

// processor is the processor time that this process has used.
func processor(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
