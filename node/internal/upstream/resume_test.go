package upstream_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// flaw is how an answer to a GET goes wrong after so many bytes of its body; -1: it does not.
type flaw struct {
	after int
	how   func(w http.ResponseWriter, r *http.Request)
}

func (f flaw) serve(w http.ResponseWriter, r *http.Request, data []byte) {
	http.ServeContent(&flawed{ResponseWriter: w, r: r, flaw: f}, r, "", time.Time{}, bytes.NewReader(data))
}

type flawed struct {
	http.ResponseWriter
	r *http.Request
	flaw
}

func (f *flawed) Write(p []byte) (int, error) {
	if f.after < 0 {
		return f.ResponseWriter.Write(p)
	}
	n, err := f.ResponseWriter.Write(p[:min(len(p), f.after)])
	if f.after -= n; f.after == 0 {
		_ = http.NewResponseController(f.ResponseWriter).Flush()
		f.how(f.ResponseWriter, f.r)
	}
	return n, err
}

func reset(w http.ResponseWriter, _ *http.Request) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
	panic(http.ErrAbortHandler)
}

func breakOff(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func standStill(_ http.ResponseWriter, r *http.Request) {
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

func withoutRange(w http.ResponseWriter, r *http.Request, data []byte) {
	r.Header.Del("Range")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func TestResume_ABlobIsReadOnWhereItsAnswerBrokeOff(t *testing.T) {
	t.Parallel()
	type answer = func(w http.ResponseWriter, r *http.Request, data []byte)
	good := flaw{after: -1}.serve
	status := func(code int) answer {
		return func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(code) }
	}
	data := randomBytes(900_000)
	for name, tc := range map[string]struct {
		answers []answer // the last one is that to all that follow
		off, n  int64
		sent    int // the most bytes that may be sent; 0 where a reset throws away some that had come
	}{
		"by a reset":                  {answers: []answer{flaw{300_000, reset}.serve, good}, n: -1},
		"at its first byte":           {answers: []answer{flaw{1, reset}.serve, good}, n: -1},
		"by an early end":             {answers: []answer{flaw{300_000, breakOff}.serve, good}, n: -1, sent: 900_000},
		"in a range":                  {answers: []answer{flaw{100_000, reset}.serve, good}, off: 5, n: 200_000},
		"in the last byte of a range": {answers: []answer{flaw{199_999, reset}.serve, good}, off: 5, n: 200_000},
		"again and again": {answers: []answer{flaw{300_000, reset}.serve, flaw{300_000, breakOff}.serve,
			flaw{299_990, reset}.serve, good}, n: -1},
		"and the next one is an error": {answers: []answer{flaw{300_000, reset}.serve, status(502), status(503), good},
			n: -1},
		"since it stood still": {answers: []answer{flaw{300_000, standStill}.serve, good}, n: -1},
		"and the registry has no Range": {answers: []answer{flaw{300_000, reset}.serve, withoutRange}, n: -1,
			sent: 1_200_000},
		"and it has none any more": {answers: []answer{flaw{100_000, reset}.serve, withoutRange}, off: 5,
			n: 899_995, sent: 1_300_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked, sent atomic.Int64
			url := serve(t, func(w http.ResponseWriter, r *http.Request) {
				i := min(int(asked.Add(1)), len(tc.answers)) - 1
				tc.answers[i](&counted{w, &sent}, r, data)
			})
			c := newClient(t, upstream.Options{Timeouts: upstream.Timeouts{Stall: 500 * time.Millisecond}}, url)
			b, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromBytes(data)}, tc.off,
				tc.n)
			require.NoError(t, err)
			var broken []bool
			b.OnBreak = func(now bool) { broken = append(broken, now) }
			got := read(t, b)
			want := data[tc.off:]
			if tc.n > 0 {
				want = want[:tc.n]
			}
			require.True(t, bytes.Equal(want, got), "%d bytes, want %d", len(got), len(want))
			require.NotEmpty(t, broken)
			require.False(t, broken[len(broken)-1], "who waits is told that it goes on")
			if tc.sent > 0 {
				require.LessOrEqual(t, int(sent.Load()), tc.sent, "nothing is read twice that need not be")
			}
		})
	}
}

// waitedFor is a context that never ends, and counts who waits for that.
type waitedFor struct {
	context.Context
	n atomic.Int64
}

func (w *waitedFor) Done() <-chan struct{} { return make(chan struct{}) }
func (w *waitedFor) AfterFunc(func()) (stop func() bool) {
	w.n.Add(1)
	return sync.OnceValue(func() bool { w.n.Add(-1); return true })
}

// The reading of a large blob may last for hours.
func TestResume_AnswersThatFailedAreHeldNoLonger(t *testing.T) {
	t.Parallel()
	data := randomBytes(900_000)
	var asked atomic.Int64
	c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 1:
			flaw{300_000, reset}.serve(w, r, data)
		case 2, 3:
			w.WriteHeader(http.StatusBadGateway)
		default:
			flaw{after: -1}.serve(w, r, data)
		}
	}))
	ctx := &waitedFor{Context: context.Background()}
	b, err := c.Open(ctx, content.Request{Repository: repo, Digest: digest.FromBytes(data)}, 0, -1)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, read(t, b)))
	require.EqualValues(t, 4, asked.Load())
	require.Zero(t, ctx.n.Load())
}

type counted struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }
func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func TestResume_TheRestOfAnotherBlobIsNotTaken(t *testing.T) {
	t.Parallel()
	data := randomBytes(10_000)
	other := append([]byte("x"), data[1:]...)
	for name, second := range map[string]http.HandlerFunc{
		"of another size": func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data[:9_000]))
		},
		"whose start differs": func(w http.ResponseWriter, r *http.Request) { withoutRange(w, r, other) },
		"which is gone":       http.NotFound,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) > 1 {
					second(w, r)
					return
				}
				flaw{5_000, reset}.serve(w, r, data)
			}))
			b, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromBytes(data)}, 0, -1)
			require.NoError(t, err)
			got, err := io.ReadAll(b)
			require.Error(t, err)
			require.Less(t, len(got), len(data))
			require.NoError(t, b.Close())
			require.EqualValues(t, 2, asked.Load(), "it is not asked for in vain")
		})
	}
}

func TestResume_WhatBreaksOffForEverIsGivenUp(t *testing.T) {
	t.Parallel()
	data := randomBytes(10_000)
	var asked atomic.Int64
	c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		flaw{10, reset}.serve(w, r, data)
	}))
	b, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromBytes(data)}, 0, -1)
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	_, err = io.ReadAll(b)
	require.ErrorIs(t, err, content.ErrUnavailable)
	require.LessOrEqual(t, asked.Load(), int64(10))
}

// outage is a registry whose machine can be taken away and come back at the same address.
type outage struct {
	address string
	handler http.Handler
	server  *httptest.Server
}

func newOutage(t *testing.T, h http.HandlerFunc) *outage {
	o := &outage{address: "127.0.0.1:0", handler: h}
	o.up(t)
	t.Cleanup(func() { o.server.Close() })
	return o
}

func (o *outage) up(t *testing.T) {
	l, err := net.Listen("tcp", o.address)
	require.NoError(t, err)
	o.address = l.Addr().String()
	o.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: o.handler}}
	o.server.Start()
}

func TestResume_ARegistryThatIsAwayForSecondsEndsNothing(t *testing.T) {
	t.Parallel()
	data := randomBytes(2_000_000)
	var o *outage
	gone, back := make(chan struct{}), make(chan struct{})
	o = newOutage(t, func(w http.ResponseWriter, r *http.Request) {
		once := sync.OnceFunc(func() { close(gone) })
		select {
		case <-gone:
			flaw{after: -1}.serve(w, r, data)
		default:
			flaw{1_000_000, func(w http.ResponseWriter, r *http.Request) { once(); reset(w, r) }}.serve(w, r, data)
		}
	})
	go func() {
		defer close(back)
		<-gone
		o.server.CloseClientConnections()
		o.server.Close()
		<-time.After(3 * time.Second)
		o.up(t)
	}()
	c := newClient(t, upstream.Options{}, "http://"+o.address)
	b, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromBytes(data)}, 0, -1)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, read(t, b)))
	<-back
}

func TestResume_AManifestThatBreaksOffIsAskedForAgain(t *testing.T) {
	t.Parallel()
	manifest := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","x":"` +
		strings.Repeat("x", 10_000) + `"}`
	var asked atomic.Int64
	c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
		if asked.Add(1) == 1 {
			_, _ = io.WriteString(w, manifest[:5_000])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, manifest)
	}))
	b, err := c.Open(t.Context(), content.Request{Repository: repo, Kind: content.Manifest,
		Digest: digest.FromString(manifest)}, 0, -1)
	require.NoError(t, err)
	require.Equal(t, manifest, string(read(t, b)))
}

func TestOpen_AManifestIsReadWhereThereIsRoomForIt(t *testing.T) {
	t.Parallel()
	manifest := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","x":"` +
		strings.Repeat("x", 100_000) + `"}`
	documents := room.New(30 << 20)
	c := newClient(t, upstream.Options{Documents: documents}, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = io.WriteString(w, manifest)
	}))
	open := func() (*upstream.Body, error) {
		return c.Open(t.Context(), content.Request{Repository: repo, Kind: content.Manifest,
			Digest: digest.FromString(manifest)}, 0, -1)
	}
	var leave []func()
	for range 5 { // which is all that there is for what is not large
		end, ok := documents.Try(2 << 20)
		require.True(t, ok)
		leave = append(leave, end)
	}
	_, err := open()
	require.ErrorIs(t, err, room.ErrFull)
	for _, end := range leave {
		end()
	}
	b, err := open()
	require.NoError(t, err)
	full := func() bool { // for more than the rest
		end, ok := documents.Try(2 << 20)
		if ok {
			defer end()
		}
		return !ok
	}
	for range 4 {
		end, ok := documents.Try(2 << 20)
		require.True(t, ok)
		defer end()
	}
	require.True(t, full(), "what is read is held")
	require.NoError(t, b.Close())
	require.False(t, full())
}
