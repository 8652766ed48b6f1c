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

// BenchmarkAgentToAgent moves a blob from the store of one agent into that of another, verified and on disk, and beside it a file of
// the same size by plain HTTPS, hashed and thrown away. It reports the processor time of both ends for each GiB, and the ratio.
func BenchmarkAgentToAgent(b *testing.B) {
	const size = 256 << 20
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // the agent's own
	o := newOrigin(b)
	d := o.add(b, size)
	req := o.request(d)
	holder := newNode(b, o, "holder", nil)
	require.NoError(b, holder.Ensure(b.Context(), req))
	o.down.Store(true)
	o.mu.Lock()
	clear(o.blobs)
	o.mu.Unlock()
	pull := overHTTPS(b, size)

	var agents, https time.Duration
	for b.Loop() {
		https += processorTime(b, pull)
		dir := b.TempDir()
		n := newNodeOn(b, o, "taker", []peer.AddrInfo{holder.info()}, store.Options{Path: dir})
		<-n.swarm.Started()
		eventually(b, "connected", func() bool { return n.knows(holder.swarm.ID()) })
		agents += processorTime(b, func() { require.NoError(b, n.Ensure(b.Context(), req)) })
		n.stop(b)
		require.NoError(b, os.RemoveAll(dir))
	}
	gib := float64(b.N) * size / (1 << 30)
	b.ReportMetric(agents.Seconds()/gib, "agents-cpu-s/GiB")
	b.ReportMetric(https.Seconds()/gib, "https-cpu-s/GiB")
	b.ReportMetric(agents.Seconds()/https.Seconds(), "agents/https")
}

// overHTTPS returns a pull of a file of size bytes.
func overHTTPS(b *testing.B, size int64) func() {
	b.Helper()
	path := filepath.Join(b.TempDir(), "blob")
	f, err := os.Create(path)
	require.NoError(b, err)
	_, err = io.CopyN(f, rand.Reader, size)
	require.NoError(b, err)
	require.NoError(b, f.Close())
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) }))
	b.Cleanup(server.Close)
	return func() {
		resp, err := server.Client().Get(server.URL)
		require.NoError(b, err)
		n, err := io.CopyBuffer(struct{ io.Writer }{sha256.New()}, resp.Body, make([]byte, 256<<10))
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
