package fetch

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/swarm"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// valve keeps back what comes after a number of bytes of each blob until it is opened, so that a test can look at a
// fetch half-way.
type valve struct {
	after int64
	open  func()
	ready chan struct{}
}

// newValve puts a valve into an origin.
func newValve(t testing.TB, o *origin, chunks int) *valve {
	t.Helper()
	v := &valve{after: int64(chunks) * content.ChunkSize, ready: make(chan struct{})}
	v.open = sync.OnceFunc(func() { close(v.ready) })
	t.Cleanup(v.open)
	o.Spoil(func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		http.ServeContent(w, r, "", time.Time{}, &valved{Reader: bytes.NewReader(data), valve: v, ctx: r.Context()})
		return true
	})
	return v
}

type valved struct {
	*bytes.Reader
	valve *valve
	ctx   context.Context
}

func (v *valved) Read(p []byte) (int, error) {
	pos, err := v.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	if room := v.valve.after - pos; room > 0 {
		return v.Reader.Read(p[:min(int64(len(p)), room)])
	}
	select {
	case <-v.valve.ready:
		return v.Reader.Read(p)
	case <-v.ctx.Done():
		return 0, v.ctx.Err()
	}
}

// WriteTo must not bypass Read.
func (v *valved) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{v}) }

// patient makes a node wait for an origin that a test holds back.
func patient(t testing.TB, o *origin) func(*Options, *swarm.Options) {
	return func(fo *Options, _ *swarm.Options) {
		up, err := upstream.New(upstream.Options{
			Upstreams: []upstream.Upstream{{Registry: "images.test", Endpoints: []string{o.URL}}},
			Timeouts:  upstream.Timeouts{Retry: time.Second, Dial: patience, Header: patience, Stall: patience},
			Logger:    slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		t.Cleanup(up.Close)
		fo.Upstream = up
	}
}

func allPatient(t testing.TB, o *origin) func(int, *Options, *swarm.Options) {
	return func(_ int, fo *Options, so *swarm.Options) { patient(t, o)(fo, so) }
}

// running is the fetch of d on n, if there is one.
func (n *testNode) running(d digest.Digest) (Status, bool) {
	for _, s := range n.Running() {
		if s.Digest == d {
			return s, true
		}
	}
	return Status{}, false
}

// coordinator is the peer that coordinates a blob that n fetches, or "".
func (n *testNode) coordinator(d digest.Digest) peer.ID {
	n.mu.Lock()
	f := n.fetches[d]
	n.mu.Unlock()
	if f == nil {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.session == nil {
		return ""
	}
	return f.session.Coordinator()
}

// pull is a caller that reads a whole blob on its own goroutine.
type pull struct {
	data []byte
	err  error
	done chan struct{}
}

func (n *testNode) pull(ctx context.Context, req content.Request) *pull {
	p := &pull{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.data, p.err = n.read(ctx, req)
	}()
	return p
}

func (p *pull) requireRight(t testing.TB, d digest.Digest) {
	t.Helper()
	<-p.done
	require.NoError(t, p.err)
	require.Equal(t, d, digest.FromBytes(p.data))
}

// patience is only there to end a test that fails.
const patience = 5 * time.Minute

// eventually is for what other goroutines bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, patience, 5*time.Millisecond, what)
}

// lingering shortens for how many milliseconds a fetch goes on that no one waits for.
func lingering(ms int) func(*Options, *swarm.Options) {
	return func(fo *Options, _ *swarm.Options) { fo.Linger = time.Duration(ms) * time.Millisecond }
}

// cutWriter breaks the connection after a number of bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}
