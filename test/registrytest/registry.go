// Package registrytest is the registry that tests of whatever pulls from one use: a Registry in memory, a server of
// Tokens to stand before it, and a Suite of what every registry for tests must do.
//
// Two others pass the same Suite. They stand beside real processes, and each does one thing that this one cannot:
// test/internal/origin serves large images from files and counts with no copy of the bytes, and
// test/internal/badregistry misbehaves in thirty ways. test/hubtest is a hub of models and no registry.
package registrytest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// Registry is go-containerregistry's registry, with blobs that a test may count, hold back and spoil. Every repository
// has every blob.
type Registry struct {
	// URL is where it answers, and Host the same without the scheme.
	URL, Host string
	// Files answers from what was pushed, and asks nobody for credentials.
	Files http.Handler
	// Bytes are those sent of blobs and manifests that were asked for by GET, and Gets the requests.
	Bytes, Gets atomic.Int64

	stop  func()
	pipes pipes // where it is reached over pipes

	mu    sync.Mutex
	down  bool
	front http.Handler
	blobs map[digest.Digest][]byte
	spoil func(w http.ResponseWriter, r *http.Request, data []byte) bool
	users map[string]string
	log   []string
}

// New serves a registry on loopback until the test ends.
func New(t testing.TB) *Registry {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return serve(t, l, pipes{})
}

// NewPiped serves a registry that only its Dial reaches, so that a test may run on a fake clock.
func NewPiped(t testing.TB, host string) *Registry {
	p := pipes{name: host, conns: make(chan net.Conn), done: make(chan struct{})}
	return serve(t, p, p)
}

func serve(t testing.TB, l net.Listener, p pipes) *Registry {
	r := &Registry{Host: l.Addr().String(), pipes: p, blobs: map[digest.Digest][]byte{}, users: map[string]string{}}
	r.URL = "http://" + r.Host
	inner := registry.New(registry.WithBlobHandler(shelf{r}), registry.WithReferrersSupport(true),
		registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	r.Files = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { r.serveFile(w, q, inner) })
	r.front = r.Files
	server := &http.Server{Handler: r, ReadHeaderTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	r.stop = sync.OnceFunc(func() {
		_ = server.Close() // of connections that may be gone
		require.ErrorIs(t, <-served, http.ErrServerClosed)
	})
	t.Cleanup(r.stop)
	return r
}

// Close ends the registry before the test ends: connections to it are refused.
func (r *Registry) Close() { r.stop() }

// Handle puts h before what is on files, or before what was put there earlier.
func (r *Registry) Handle(h http.Handler) { r.set(func() { r.front = h }) }

// Front is what answers at present: Files, or what was given to Handle.
func (r *Registry) Front() http.Handler {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.front
}

// SetDown makes it break every connection, or none any more.
func (r *Registry) SetDown(down bool) { r.set(func() { r.down = down }) }

// Down reports whether it breaks every connection.
func (r *Registry) Down() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.down
}

// Protect asks for an Authorization header in a repository.
func (r *Registry) Protect(repository, authorization string) {
	r.set(func() { r.users[repository] = authorization })
}

// Basic is the Authorization header of a user.
func Basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// Spoil lets f answer a GET or HEAD of a blob that is here. f reports whether it has.
func (r *Registry) Spoil(f func(w http.ResponseWriter, r *http.Request, data []byte) bool) {
	r.set(func() { r.spoil = f })
}

// Requests gives the requests since it was called last, as "GET /v2/…".
func (r *Registry) Requests() (log []string) {
	r.set(func() { log, r.log = r.log, nil })
	return log
}

func (r *Registry) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// Challenge is what a protected repository answers, beside 401.
const Challenge = `Basic realm="images.test"`

func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.log = append(r.log, q.Method+" "+q.URL.RequestURI())
	down, front, users := r.down, r.front, maps.Clone(r.users)
	r.mu.Unlock()
	if down {
		panic(http.ErrAbortHandler)
	}
	for repository, want := range users {
		if strings.HasPrefix(q.URL.Path, "/v2/"+repository+"/") && q.Header.Get("Authorization") != want {
			w.Header().Set("WWW-Authenticate", Challenge)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"said upstream"}]}`)
			return
		}
	}
	front.ServeHTTP(w, q)
}

func (r *Registry) serveFile(w http.ResponseWriter, q *http.Request, inner http.Handler) {
	above, reference := path.Split(q.URL.Path)
	if q.Method == http.MethodGet && reference != "" {
		r.Gets.Add(1)
		w = counter{w, &r.Bytes}
	}
	data := r.Blob(digest.Digest(reference))
	if data == nil || path.Base(above) != "blobs" || q.Method != http.MethodGet && q.Method != http.MethodHead {
		inner.ServeHTTP(w, q)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", reference)
	r.mu.Lock()
	spoil := r.spoil
	r.mu.Unlock()
	if spoil == nil || !spoil(w, q, data) {
		http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(data))
	}
}

// counter counts what is written of a body. http.ResponseController sees through it.
type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func (c counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Blob gives the bytes of a blob, or nil.
func (r *Registry) Blob(d digest.Digest) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.blobs[d]
}

// Add adds a blob.
func (r *Registry) Add(data []byte) digest.Digest {
	d := digest.FromBytes(data)
	r.set(func() { r.blobs[d] = data })
	return d
}

// AddRandom adds a blob of so many random bytes.
func (r *Registry) AddRandom(size int) digest.Digest {
	data := make([]byte, size)
	_, _ = rand.Read(data) // never fails
	return r.Add(data)
}

// Delete forgets a blob.
func (r *Registry) Delete(d digest.Digest) { r.set(func() { delete(r.blobs, d) }) }

// shelf lets go-containerregistry's registry keep its blobs in the Registry.
type shelf struct{ *Registry }

func (s shelf) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	data := s.Blob(digest.Digest(h.String()))
	if data == nil {
		return 0, registry.ErrNotFound
	}
	return int64(len(data)), nil
}

func (s shelf) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	data := s.Blob(digest.Digest(h.String()))
	if data == nil {
		return nil, registry.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (s shelf) Put(_ context.Context, _ string, h v1.Hash, body io.ReadCloser) error {
	defer body.Close()
	data, err := io.ReadAll(body)
	if d := digest.FromBytes(data); err == nil && d.String() != h.String() {
		return errors.New("these are the bytes of " + d.String())
	}
	s.Add(data)
	return err
}

// PushManifest puts a manifest under a tag, or under its digest where that is "", past all authentication.
func (r *Registry) PushManifest(t testing.TB, repository, tag, mediaType, data string) digest.Digest {
	t.Helper()
	d := digest.FromString(data)
	if tag == "" {
		tag = d.String()
	}
	q := httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/v2/"+repository+"/manifests/"+tag,
		strings.NewReader(data))
	q.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	r.Files.ServeHTTP(w, q)
	require.Equal(t, http.StatusCreated, w.Code, w.Body)
	return d
}

// Push puts an image or an index at a place such as "team/app:1", past all authentication.
func (r *Registry) Push(t testing.TB, place string, what partial.WithRawManifest) {
	t.Helper()
	ref, err := name.ParseReference(r.Host+"/"+place, name.Insecure)
	require.NoError(t, err)
	if index, ok := what.(v1.ImageIndex); ok {
		require.NoError(t, remote.WriteIndex(ref, index, remote.WithTransport(direct{r.Files})))
		return
	}
	require.NoError(t, remote.Write(ref, what.(v1.Image), remote.WithTransport(direct{r.Files})))
}

// direct is a transport to a handler.
type direct struct{ http.Handler }

func (d direct) RoundTrip(q *http.Request) (*http.Response, error) {
	if q.Body == nil {
		q.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	d.ServeHTTP(w, q)
	answer := w.Result()
	answer.Request = q
	return answer, nil
}

// Closure gives the digests of an image: its manifest's, its config's, its layers'.
func Closure(t testing.TB, image v1.Image) []digest.Digest {
	t.Helper()
	own, err := image.Digest()
	require.NoError(t, err)
	m, err := image.Manifest()
	require.NoError(t, err)
	all := []digest.Digest{digest.Digest(own.String()), digest.Digest(m.Config.Digest.String())}
	for _, l := range m.Layers {
		all = append(all, digest.Digest(l.Digest.String()))
	}
	return all
}

// pipes is a listener without a network.
type pipes struct {
	name  string
	conns chan net.Conn
	done  chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p pipes) Close() error   { close(p.done); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: p.name} }

// Dial connects to a piped registry, whatever the address. One that is down refuses.
func (r *Registry) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if r.Down() {
		return nil, errors.New("connection refused")
	}
	near, far := net.Pipe()
	select {
	case r.pipes.conns <- far:
		return near, nil
	case <-r.pipes.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
