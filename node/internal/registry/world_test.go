package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/registry"
	"github.com/shoal-cache/shoal/node/internal/upstream"
	"github.com/shoal-cache/shoal/test/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const images = "images.test"

// origin is a registry that is reached over pipes, so that tests may run on a fake clock.
type origin struct{ *registrytest.Registry }

// image is a pushed image of one layer.
type image struct {
	manifest, config, layer digest.Digest
	raw                     string
	layerBytes              []byte
}

func (o origin) pushImage(t *testing.T, repo, tag, seed string) image {
	t.Helper()
	img := image{layerBytes: bytes.Repeat([]byte(seed), 1000)}
	img.layer = o.Add(img.layerBytes)
	config := `{"seed":"` + seed + `"}`
	img.config = o.Add([]byte(config))
	img.raw = fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, img.config, len(config), v1.MediaTypeImageLayer, img.layer, len(img.layerBytes))
	img.manifest = o.PushManifest(t, repo, tag, v1.MediaTypeImageManifest, img.raw)
	return img
}

// fetcher is a node's fetch path without peers: what it has, else upstream, whole.
type fetcher struct {
	upstream *upstream.Client
	source   *gate.Observed
	proved   func(content.Request) bool
	prove    func(content.Request)
	mu       sync.Mutex
	held     map[digest.Digest][]byte
	peers    map[digest.Digest][]byte // what other nodes hold
	slow     bool                     // they do not bring it as long as the gate waits
	short    bool                     // they name a size that is too small, once
	misled   int                      // how often others' word leads it astray from now on
	ahead    []digest.Digest          // whose successors may be fetched
}

func (f *fetcher) Progress(content.Request) (int64, int64) { return 0, 0 }

func (f *fetcher) ReadAhead(req content.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ahead = append(f.ahead, req.Digest)
}

// mayGive reports whether a request is given what others have brought; see fetch.Sources.
func (f *fetcher) mayGive(req content.Request) bool {
	return f.proved == nil || req.NoUpstream() || f.proved(req)
}

func (f *fetcher) get(ctx context.Context, req content.Request) ([]byte, error) {
	f.mu.Lock()
	data, ok := f.held[req.Digest]
	if !ok {
		data, ok = f.peers[req.Digest]
	}
	ok = ok && f.mayGive(req)
	f.misled--
	misled := f.misled >= 0
	f.mu.Unlock()
	if misled {
		return nil, fmt.Errorf("%s: %w: %w", req.Digest, content.ErrDigestMismatch, content.ErrMisled)
	}
	if ok {
		return data, nil
	}
	if req.NoUpstream() {
		return nil, fmt.Errorf("%s: %w", req.Digest, content.ErrNotFound)
	}
	body, err := f.source.Open(ctx, req, 0, -1)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	data, err = io.ReadAll(content.NewVerifier(body, req.Digest, body.Size))
	if err != nil {
		return nil, err
	}
	f.prove(req)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held[req.Digest] = data
	return data, nil
}

// Held, Has and FromPeers make it a gate.Cache.
func (f *fetcher) Held(d digest.Digest) (content.Reader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if data, ok := f.held[d]; ok {
		return held(data), nil
	}
	return nil, content.ErrNotFound
}

func (f *fetcher) Has(d digest.Digest) (int64, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, ok := f.held[d]
	return int64(len(data)), ok
}

func (f *fetcher) FromPeers(_ context.Context, d digest.Digest) (content.Reader, error) {
	if data, ok := f.peers[d]; ok && !f.slow {
		return held(data), nil
	}
	return nil, content.ErrNotFound
}

func (f *fetcher) Open(ctx context.Context, req content.Request) (content.Reader, error) {
	data, err := f.get(ctx, req)
	if err != nil {
		return nil, err
	}
	if f.short {
		f.short = false
		return held(data[:1]), nil
	}
	return held(data), nil
}

func (f *fetcher) OpenPast(ctx context.Context, req content.Request) (content.Reader, error) {
	return f.Open(ctx, req)
}

func (f *fetcher) Stat(ctx context.Context, req content.Request) (int64, string, error) {
	f.mu.Lock()
	data, ok := f.held[req.Digest]
	f.mu.Unlock()
	if ok && f.mayGive(req) {
		return int64(len(data)), "", nil
	}
	if req.NoUpstream() {
		return 0, "", fmt.Errorf("%s: %w", req.Digest, content.ErrNotFound)
	}
	return f.upstream.Stat(ctx, req)
}

// held is a content.Reader of bytes that are all here.
type held []byte

func (h held) Size() int64    { return int64(len(h)) }
func (h held) Arrived() int64 { return int64(len(h)) }
func (h held) Range(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > h.Size()-n {
		return nil, errors.New("range outside the blob")
	}
	return io.NopCloser(bytes.NewReader(h[off : off+n])), nil
}
func (h held) Close() error { return nil }

// tagMemory is what a node remembers of tags.
type tagMemory struct{ sync.Map }

func (m *tagMemory) Remember(_ context.Context, repo content.Repository, tag string, d v1.Descriptor) {
	m.Store(repo.String()+":"+tag, toldTag{d, time.Now()})
}

type toldTag struct {
	desc v1.Descriptor
	at   time.Time
}

func (m *tagMemory) Recall(_ context.Context, repo content.Repository, tag string) (v1.Descriptor, time.Time, bool) {
	d, ok := m.Load(repo.String() + ":" + tag)
	if !ok {
		return v1.Descriptor{}, time.Time{}, false
	}
	return d.(toldTag).desc, d.(toldTag).at, true
}

// disk is a content.Memory.
type disk map[string][]byte

func (d disk) Get(key string) ([]byte, bool)      { v, ok := d[key]; return v, ok }
func (d disk) Put(key string, value []byte) error { d[key] = value; return nil }

// word is the word of another node: of what it has proof, and what it holds.
type word struct {
	public       bool
	proven, held []digest.Digest
}

func (w *word) Hear(_ context.Context, _ gate.Source, asked []digest.Digest) gate.Testimony {
	among := func(all []digest.Digest) []digest.Digest {
		return slices.DeleteFunc(slices.Clone(all), func(d digest.Digest) bool { return !slices.Contains(asked, d) })
	}
	var public []time.Duration
	if w.public {
		public = []time.Duration{0}
	}
	return gate.Testimony{Public: public, Proven: among(w.proven), Held: among(w.held), Everyone: true}
}

// world is a front with a real registry behind it.
type world struct {
	t       *testing.T
	origin  origin
	fetcher *fetcher
	gate    *gate.Gate
	front   *registry.Front
	rule    policy.Rule
	memory  disk
	witness gate.Witness
	metrics *prometheus.Registry
}

// newWorld makes one; set may change the options.
func newWorld(t *testing.T, set ...func(*registry.Options)) *world {
	t.Helper()
	o := origin{registrytest.NewPiped(t, images)}
	client, err := upstream.New(upstream.Options{
		Upstreams: []upstream.Upstream{{Registry: images, Endpoints: []string{"http://" + images}}},
		Dial:      o.Dial,
	})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	w := &world{t: t, origin: o, rule: policy.DefaultRule(), memory: disk{},
		fetcher: &fetcher{upstream: client, held: make(map[digest.Digest][]byte)}}
	w.restart(set...)
	t.Cleanup(w.stop)
	return w
}

// restart replaces the front and its gate by new ones.
func (w *world) restart(set ...func(*registry.Options)) {
	w.t.Helper()
	w.metrics = prometheus.NewRegistry()
	g, err := gate.New(gate.Options{Cache: w.fetcher, Memory: w.memory, Witness: w.witness})
	require.NoError(w.t, err)
	w.gate, w.fetcher.source = g, g.Observe(w.fetcher.upstream)
	w.fetcher.proved = func(req content.Request) bool {
		return w.rule.Authorization.Mode == policy.Exempt || g.Proved(req)
	}
	w.fetcher.prove = g.Prove
	opts := registry.Options{
		Fetcher: w.fetcher, Upstream: w.fetcher.upstream, Gate: g, DefaultRegistry: images, Registerer: w.metrics,
		Rules: func(content.Repository) policy.Rule { return w.rule },
	}
	for _, f := range set {
		f(&opts)
	}
	w.front, err = registry.New(opts)
	require.NoError(w.t, err)
}

// stop ends the front, and saves what the gate knows.
func (w *world) stop() {
	w.t.Helper()
	require.NoError(w.t, w.front.Drain(context.WithoutCancel(w.t.Context())))
	require.NoError(w.t, w.gate.Close())
}

// reply is an answer of the front. It is aborted when the server would have broken the connection.
type reply struct {
	*httptest.ResponseRecorder
	headerAt *time.Time
	aborted  bool
}

func (r reply) WriteHeader(status int) {
	*r.headerAt = time.Now()
	r.ResponseRecorder.WriteHeader(status)
}

func (w *world) do(method, path string, header ...string) (rep reply) {
	r := httptest.NewRequestWithContext(w.t.Context(), method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	rep.ResponseRecorder, rep.headerAt = httptest.NewRecorder(), new(time.Time)
	defer func() {
		if p := recover(); p != nil {
			require.Equal(w.t, http.ErrAbortHandler, p)
			rep.aborted = true
		}
	}()
	w.front.ServeHTTP(rep, r)
	return rep
}

func (w *world) get(path string, header ...string) reply {
	return w.do(http.MethodGet, path, header...)
}

// repository is one of the origin's.
func repository(name string) content.Repository {
	return content.Repository{Registry: images, Name: name}
}
