package fetch

import (
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/shoal-cache/shoal/node/internal/store"
)

// BenchmarkAgentToAgent moves a blob from the store of one agent into that of another, verified and synced to disk.
// Beside it, in turns, a file of the same size comes by plain HTTPS and is hashed: once as a cache must, written to a
// file and synced ("kept"), and once thrown away. It reports the processor time of both ends for each GiB, and the
// ratios. On a virtual machine whose host takes free memory back, what is written costs up to a second more for each
// GiB; the two that keep the bytes pay that alike.
func BenchmarkAgentToAgent(b *testing.B) {
	const size = 256 << 20
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // the agent's own
	o := newOrigin(b)
	d := o.add(b, size)
	req := o.request(d)
	holder := newNode(b, o, "holder", nil)
	require.NoError(b, holder.Ensure(b.Context(), req))
	o.SetDown(true)
	o.Delete(d)
	pull := overHTTPS(b, size)

	byAgents := func() time.Duration {
		dir := b.TempDir()
		n := newNodeOn(b, o, "taker", []peer.AddrInfo{holder.info()}, store.Options{Path: dir})
		<-n.swarm.Started()
		eventually(b, "connected", func() bool { return n.knows(holder.swarm.ID()) })
		took := processorTime(b, func() { require.NoError(b, n.Ensure(b.Context(), req)) })
		n.stop(b)
		require.NoError(b, os.RemoveAll(dir))
		return took
	}
	kept := func() time.Duration {
		f, err := os.Create(filepath.Join(b.TempDir(), "blob"))
		require.NoError(b, err)
		took := processorTime(b, func() {
			pull(f)
			require.NoError(b, f.Sync())
		})
		require.NoError(b, f.Close())
		require.NoError(b, os.Remove(f.Name()))
		return took
	}
	thrownAway := func() time.Duration { return processorTime(b, func() { pull(io.Discard) }) }

	var agents, keep, discard float64
	rounds := 0
	for b.Loop() {
		// The two that write come after one that does not, so neither finds more of the memory that the other has let
		// go.
		agents += byAgents().Seconds()
		discard += thrownAway().Seconds() / 2
		keep += kept().Seconds()
		discard += thrownAway().Seconds() / 2
		rounds++
	}
	gib := float64(rounds) * size / (1 << 30)
	agents, keep, discard = agents/gib, keep/gib, discard/gib
	b.ReportMetric(0, "ns/op") // of all together, which says nothing
	b.ReportMetric(agents, "agents-cpu-s/GiB")
	b.ReportMetric(keep, "https-kept-cpu-s/GiB")
	b.ReportMetric(discard, "https-cpu-s/GiB")
	b.ReportMetric(agents/keep, "agents/https-kept")
	b.ReportMetric(agents/discard, "agents/https")
}

// overHTTPS returns a pull of a file of size bytes, which hashes them and writes them to w.
func overHTTPS(b *testing.B, size int64) func(w io.Writer) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "blob")
	f, err := os.Create(path)
	require.NoError(b, err)
	_, err = io.CopyN(f, rand.Reader, size)
	require.NoError(b, err)
	require.NoError(b, f.Close())
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, path)
	}))
	b.Cleanup(server.Close)
	return func(w io.Writer) {
		resp, err := server.Client().Get(server.URL)
		require.NoError(b, err)
		n, err := io.CopyBuffer(io.MultiWriter(sha256.New(), w), resp.Body, make([]byte, 256<<10))
		require.NoError(b, err)
		require.Equal(b, size, n)
		require.NoError(b, resp.Body.Close())
	}
}

// processorTime is what this process takes for do.
func processorTime(b *testing.B, do func()) time.Duration {
	b.Helper()
	now := func() time.Duration {
		var u unix.Rusage
		require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := now()
	do()
	return now() - before
}
