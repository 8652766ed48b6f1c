package upstream_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/time/rate"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/manifest"
	"github.com/shoal-cache/shoal/node/internal/upstream"
	"github.com/shoal-cache/shoal/test/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const images = "images.test"

var repo = content.Repository{Registry: images, Name: "team/app"}

// newClient makes a client that reaches images at the endpoints.
func newClient(t *testing.T, o upstream.Options, endpoints ...string) *upstream.Client {
	t.Helper()
	if len(o.Upstreams) == 0 {
		o.Upstreams = []upstream.Upstream{{Registry: images, Endpoints: endpoints}}
	}
	o.AllowAddresses = loopback
	c, err := upstream.New(o)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// loopback is where the servers of tests are.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// holding is the URL of a registry that has data, and how to ask for it.
func holding(t *testing.T, data []byte) (string, content.Request) {
	t.Helper()
	r := registrytest.New(t)
	return r.URL, content.Request{Repository: repo, Digest: r.Add(data)}
}

// asksForTokens answers as a registry does to whoever shows no token of the token server.
func asksForTokens(tokens string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="images.test"`, tokens))
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = rng.Read(b)
	return b
}

func read(t *testing.T, b *upstream.Body) []byte {
	t.Helper()
	defer func() { require.NoError(t, b.Close()) }()
	data, err := io.ReadAll(b)
	require.NoError(t, err)
	return data
}

func TestPullsAnImageFromARealRegistry(t *testing.T) {
	t.Parallel()
	registry := registrytest.New(t)
	image, err := random.Image(3<<20, 2)
	require.NoError(t, err)
	registry.Push(t, "team/app:v1", image)
	want, err := image.Digest()
	require.NoError(t, err)

	metrics := prometheus.NewRegistry()
	c := newClient(t, upstream.Options{Registerer: metrics}, registry.URL)
	ctx := t.Context()
	desc, err := c.Resolve(ctx, repo, "v1", nil, "")
	require.NoError(t, err)
	require.Equal(t, want.String(), desc.Digest.String())

	body, err := c.Open(ctx, content.Request{Repository: repo, Kind: content.Manifest, Digest: desc.Digest}, 0, -1)
	require.NoError(t, err)
	require.Equal(t, desc.MediaType, body.MediaType)
	require.Equal(t, desc.Size, body.Size)
	raw, err := image.RawManifest()
	require.NoError(t, err)
	require.Equal(t, raw, read(t, body))

	layers, err := image.Layers()
	require.NoError(t, err)
	total := len(raw)
	for _, l := range layers {
		h, _ := l.Digest()
		rc, _ := l.Compressed()
		want, _ := io.ReadAll(rc)
		req := content.Request{Repository: repo, Digest: digest.Digest(h.String())}
		size, _, err := c.Stat(ctx, req)
		require.NoError(t, err)
		require.EqualValues(t, len(want), size)
		body, err := c.Open(ctx, req, 0, -1)
		require.NoError(t, err)
		require.Equal(t, want, read(t, body))
		total += len(want)
	}
	require.NoError(t, testutil.GatherAndCompare(metrics, strings.NewReader(fmt.Sprintf(`
# HELP shoal_upstream_bytes_total Bytes of answers' bodies read from upstream registries.
# TYPE shoal_upstream_bytes_total counter
shoal_upstream_bytes_total{registry="images.test"} %s
`, strconv.FormatFloat(float64(total), 'g', -1, 64))), "shoal_upstream_bytes_total"))
	require.Equal(t, upstream.Counters{Bytes: int64(total)}, c.Counters())

	tags, err := c.Forward(ctx, repo, "tags/list", nil, nil, "")
	require.NoError(t, err)
	defer func() { _ = tags.Body.Close() }()
	list, err := io.ReadAll(tags.Body)
	require.NoError(t, err)
	require.Contains(t, string(list), `"v1"`)
}

// A proxy that answers everything with a page, also with one of the right length, says of what it is by no digest.
func TestAsk_TellsWhetherTheAnswerIsAboutTheBlob(t *testing.T) {
	t.Parallel()
	data := randomBytes(1000)
	d := digest.FromBytes(data)
	for sentence, tc := range map[string]struct {
		names  string
		noHead bool
		file   string
		want   bool
	}{
		"an answer that names the digest":              {names: d.String(), want: true},
		"to a GET, where HEAD is not known":            {names: d.String(), noHead: true, want: true},
		"one that names nothing":                       {},
		"one that names nothing to a GET":              {noHead: true},
		"one that names something else":                {names: digest.FromString("page").String()},
		"one of a host of files, which may be anybody": {names: d.String(), file: "/file"},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			url := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if tc.noHead && r.Method == http.MethodHead {
					w.WriteHeader(http.StatusMethodNotAllowed)
					return
				}
				w.Header().Set("Content-Type", "application/octet-stream")
				if tc.names != "" {
					w.Header().Set("Docker-Content-Digest", tc.names)
				}
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
			})
			c := newClient(t, upstream.Options{}, url)
			size, named, err := c.Ask(t.Context(), content.Request{Repository: repo, Digest: d, File: tc.file})
			require.NoError(t, err)
			require.EqualValues(t, len(data), size)
			require.Equal(t, tc.want, named)
		})
	}
}

func TestOpenReadsRanges(t *testing.T) {
	t.Parallel()
	data := randomBytes(100_000)
	url, req := holding(t, data)
	c := newClient(t, upstream.Options{}, url)
	for name, tc := range map[string]struct{ off, n, from, to int64 }{
		"the whole":                         {0, -1, 0, 100_000},
		"the start":                         {0, 10, 0, 10},
		"a piece":                           {500, 1000, 500, 1500},
		"the rest":                          {99_000, -1, 99_000, 100_000},
		"a piece that reaches past the end": {99_990, 100, 99_990, 100_000},
		"more than the whole":               {0, 1 << 20, 0, 100_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := c.Open(t.Context(), req, tc.off, tc.n)
			require.NoError(t, err)
			require.EqualValues(t, len(data), b.Size)
			require.Equal(t, tc.off, b.Offset)
			require.Equal(t, data[tc.from:tc.to], read(t, b))
		})
	}
}

func TestARegistryWithoutRangeGivesTheWholeBlob(t *testing.T) {
	t.Parallel()
	data := randomBytes(5000)
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "5000")
		_, _ = w.Write(data)
	})
	c := newClient(t, upstream.Options{}, url)
	b, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromBytes(data), Size: 5000}, 1000,
		100)
	require.NoError(t, err)
	require.Zero(t, b.Offset)
	require.Equal(t, data, read(t, b))
}

// Every way in which a blob's answer can be wrong ends in an error, never in a clean end.
func TestBadAnswersToABlobAreErrors(t *testing.T) {
	t.Parallel()
	data := randomBytes(1000)
	write := func(status int, header map[string]string, body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for k, v := range header {
				w.Header().Set(k, v)
			}
			w.WriteHeader(status)
			_, _ = w.Write(body)
		}
	}
	// raw answers with bytes that net/http would not send.
	raw := func(answer string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = io.WriteString(conn, answer)
				_ = conn.Close()
			}
		}
	}
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		off, n  int64
		want    string
		stall   time.Duration // 0: the default
	}{
		"a body that ends early": {
			handler: raw("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort"), n: -1, want: "unexpected EOF"},
		"a chunked body that ends early": {
			handler: write(200, map[string]string{"Transfer-Encoding": "chunked"}, data[:900]), n: -1,
			want: "ended 100 bytes early"},
		"a chunked body that goes on": {
			handler: write(200, map[string]string{"Transfer-Encoding": "chunked"}, append(data, 'x')), n: -1,
			want: "longer than announced"},
		"another range": {
			handler: write(206, map[string]string{"Content-Range": "bytes 11-20/1000", "Content-Length": "10"},
				data[11:21]), off: 10, n: 10, want: "not the range"},
		"a range of another length": {
			handler: write(206, map[string]string{"Content-Range": "bytes 10-14/1000", "Content-Length": "5"},
				data[10:15]), off: 10, n: 10, want: "not the range"},
		"a range whose body is shorter than it says": {
			handler: write(206, map[string]string{"Content-Range": "bytes 10-19/1000", "Content-Length": "5"},
				data[10:15]), off: 10, n: 10, want: "not the range"},
		"a range without Content-Range": {
			handler: write(206, map[string]string{"Content-Length": "10"}, data[10:20]), off: 10, n: 10,
			want: "not the range"},
		"several ranges": {
			handler: write(206, map[string]string{"Content-Type": "multipart/byteranges; boundary=x"}, data[10:20]),
			off:     10, n: 10, want: "not the range"},
		"an encoded body": {
			handler: write(200, map[string]string{"Content-Encoding": "gzip"}, data), n: -1, want: "encoded"},
		"a page for people": {
			handler: write(200, map[string]string{"Content-Type": "text/html; charset=utf-8", "Content-Length": "900"},
				data[:900]), n: -1, want: "web page"},
		"an empty answer":         {handler: write(200, map[string]string{"Content-Length": "0"}, nil), n: -1, want: "empty"},
		"rubbish instead of HTTP": {handler: raw("SSH-2.0\r\n"), n: -1, want: "malformed"},
		"nothing at all":          {handler: raw(""), n: -1, want: "EOF"},
		"server errors":           {handler: write(500, nil, nil), n: -1, want: "500"},
		"a redirect to nowhere":   {handler: write(307, nil, nil), n: -1, want: "lead nowhere"},
		"a redirect to a file": {handler: write(307, map[string]string{"Location": "file:///etc/passwd"}, nil),
			n: -1, want: "lead nowhere"},
		"endless redirects": {n: -1, want: "lead nowhere", handler: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"x", http.StatusTemporaryRedirect)
		}},
		"slow drips": {stall: 200 * time.Millisecond, n: -1, want: "stalled",
			handler: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "1000")
				for _, b := range data {
					_, _ = w.Write([]byte{b})
					_ = http.NewResponseController(w).Flush()
					select {
					case <-r.Context().Done():
						return
					case <-time.After(20 * time.Millisecond):
					}
				}
			}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			timeouts := upstream.Timeouts{Stall: tc.stall, Retry: 2 * time.Second}
			c := newClient(t, upstream.Options{Timeouts: timeouts}, serve(t, tc.handler))
			b, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromBytes(data), Size: 1000},
				tc.off, tc.n)
			if err == nil {
				var got []byte
				got, err = io.ReadAll(b)
				require.Less(t, len(got), 1001)
				require.NoError(t, b.Close())
			}
			require.ErrorContains(t, err, tc.want)
			require.ErrorIs(t, err, content.ErrUnavailable)
		})
	}
}

func TestBadAnswersToAManifestAreErrors(t *testing.T) {
	t.Parallel()
	const index = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
	for name, tc := range map[string]struct {
		mediaType, body string
		want            string
		is              error
	}{
		"a page of a proxy that wants a login": {"text/html", "<html>please log in</html>", "no manifest",
			content.ErrUnavailable},
		"text":                             {"text/plain", "hello", "no manifest", content.ErrUnavailable},
		"JSON of no known type under text": {"text/plain", "{}", "no manifest", content.ErrUnavailable},
		"more than may be": {"application/json", strings.Repeat(" ", manifest.MaxSize+1),
			"longer than", content.ErrUnavailable},
		"other bytes than the digest's": {"application/json", index, "digest mismatch",
			content.ErrDigestMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", tc.mediaType)
				_, _ = io.WriteString(w, tc.body)
			}))
			d := digest.FromString(tc.body)
			if errors.Is(tc.is, content.ErrDigestMismatch) {
				d = digest.FromString("another")
			}
			_, err := c.Open(t.Context(), content.Request{Repository: repo, Kind: content.Manifest, Digest: d}, 0, -1)
			require.ErrorContains(t, err, tc.want)
			require.ErrorIs(t, err, tc.is)
			_, err = c.Resolve(t.Context(), repo, d.String(), nil, "")
			require.ErrorContains(t, err, tc.want)
		})
	}
	t.Run("but a manifest under a wrong type that names its own is taken", func(t *testing.T) {
		t.Parallel()
		c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(w, index)
		}))
		desc, err := c.Resolve(t.Context(), repo, "v1", nil, "")
		require.NoError(t, err)
		require.Equal(t, "application/vnd.oci.image.index.v1+json", desc.MediaType)
		require.Equal(t, digest.FromString(index), desc.Digest)
	})
}

func TestResolveFallsBackToGet(t *testing.T) {
	t.Parallel()
	const manifest = `{"schemaVersion":2,"manifests":[]}`
	for name, head := range map[string]http.HandlerFunc{
		"where HEAD is not known": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusMethodNotAllowed)
		},
		"where HEAD gives no digest": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		},
		"where HEAD gives a bad digest": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", "sha256:0")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead {
					head(w, r)
					return
				}
				w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				_, _ = io.WriteString(w, manifest)
			}))
			desc, err := c.Resolve(t.Context(), repo, "v1", nil, "")
			require.NoError(t, err)
			require.Equal(t, digest.FromString(manifest), desc.Digest)
			require.EqualValues(t, len(manifest), desc.Size)
		})
	}
}

func TestRefusalsReachTheCallerWithTheirChallenge(t *testing.T) {
	t.Parallel()
	const challenge = `Bearer realm="https://auth.test/token",service="images.test",scope="repository:team/app:pull"`
	for _, status := range []int{401, 403, 404, 429} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			c := newClient(t, upstream.Options{Timeouts: upstream.Timeouts{Retry: time.Second}},
				serve(t, func(w http.ResponseWriter, _ *http.Request) {
					asked.Add(1)
					w.Header().Set("WWW-Authenticate", challenge)
					w.Header().Set("Retry-After", "3600")
					w.Header().Set("Content-Type", "application/json")
					w.WriteHeader(status)
					_, _ = io.WriteString(w, `{"errors":[{"code":"X"}]}`)
				}))
			_, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromString("x")}, 0, -1)
			var refused *content.UpstreamError
			require.ErrorAs(t, err, &refused)
			require.Equal(t, status, refused.Status)
			require.Equal(t, []string{challenge}, refused.Challenge)
			require.JSONEq(t, `{"errors":[{"code":"X"}]}`, string(refused.Body))
			require.Equal(t, time.Hour, refused.RetryAfter)
			require.EqualValues(t, 1, asked.Load(),
				"an answer that a retry cannot change, or only in an hour, is final")
		})
	}
}

func TestWhatARetryCannotChangeIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		status int
		limits upstream.Limits
		asked  int32
	}{
		"a method that the registry does not know":  {status: http.StatusNotImplemented, asked: 1},
		"an agent whose upstream is an agent again": {status: http.StatusLoopDetected, asked: 1},
		"the policy's own limit":                    {limits: upstream.Limits{Requests: rate.NewLimiter(0, 0)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			metrics := prometheus.NewRegistry()
			url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				w.WriteHeader(tc.status)
			})
			c := newClient(t, upstream.Options{
				Registerer: metrics, Limits: func(content.Repository) upstream.Limits { return tc.limits },
			}, url)
			_, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromString("x")}, 0, -1)
			require.ErrorIs(t, err, content.ErrUnavailable)
			require.Equal(t, tc.asked, asked.Load())
			retries, err := testutil.GatherAndCount(metrics, "shoal_upstream_retries_total")
			require.NoError(t, err)
			require.EqualValues(t, tc.asked, retries, "a series at 0 for a registry that was asked, and none otherwise")
		})
	}
}

func TestAcceptIsOneHeader(t *testing.T) {
	t.Parallel()
	seen := make(chan []string, 1)
	c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Values("Accept")
		w.WriteHeader(http.StatusNotFound)
	}))
	_, err := c.Resolve(t.Context(), repo, "v1", []string{"application/a+json", "application/b+json;q=0.5"}, "")
	require.ErrorIs(t, err, content.ErrNotFound)
	require.Equal(t, []string{"application/a+json, application/b+json;q=0.5"}, <-seen)
}

func TestTroubleThatPassesIsWaitedOut(t *testing.T) {
	t.Parallel()
	data := randomBytes(100)
	for name, trouble := range map[string]http.HandlerFunc{
		"503": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
		},
		"a connection that breaks": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) < 3 {
					trouble(w, r)
					return
				}
				_, _ = w.Write(data)
			}))
			b, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromBytes(data)}, 0, -1)
			require.NoError(t, err)
			require.Equal(t, data, read(t, b))
		})
	}
}

func TestThrottling_IsAnsweredAtOnceUntilItIsOver(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusTooManyRequests, http.StatusRequestTimeout} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			data := randomBytes(100)
			var asked atomic.Int32
			var throttling atomic.Bool
			throttling.Store(true)
			c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				if throttling.Load() {
					w.Header().Set("Retry-After", "1")
					w.WriteHeader(status)
					return
				}
				_, _ = w.Write(data)
			}))
			req := content.Request{Repository: repo, Digest: digest.FromBytes(data)}
			for range 6 { // as containerd does
				_, err := c.Open(t.Context(), req, 0, -1)
				require.True(t, content.Throttled(err), "%v", err)
			}
			require.EqualValues(t, 1, asked.Load())
			other := req
			other.Authorization = "Basic b3RoZXI6eA=="
			_, err := c.Open(t.Context(), other, 0, -1)
			require.True(t, content.Throttled(err))
			require.EqualValues(t, 2, asked.Load(),
				"the wish is about who asked too often, and nobody can make it for others")

			throttling.Store(false)
			b, err := c.Open(t.Context(), req, 0, 50)
			require.NoError(t, err, "a pull in its middle waits for a moment")
			require.NoError(t, b.Close())
		})
	}
}

func TestAddresses_OfTheNodeItselfAreNotAskedUnlessTheyAreAllowed(t *testing.T) {
	t.Parallel()
	data := randomBytes(100)
	at := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) })
	host := strings.TrimPrefix(at, "http://")
	_, port, err := net.SplitHostPort(host)
	require.NoError(t, err)
	redirecting := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, at, http.StatusFound) })
	listed := func(registry, endpoint string) []upstream.Upstream {
		return []upstream.Upstream{{Registry: registry, Endpoints: []string{endpoint}}}
	}
	for name, tc := range map[string]struct {
		registry  string
		upstreams []upstream.Upstream
		allowed   []netip.Prefix
		refused   bool
	}{
		"an unlisted address":        {registry: host, refused: true},
		"a name of it":               {registry: "localhost:" + port, refused: true},
		"an address that maps to it": {registry: "[::ffff:127.0.0.1]:" + port, refused: true},
		"the unspecified address":    {registry: "0.0.0.0:" + port, refused: true},
		"where an endpoint redirects": {registry: images, upstreams: listed(images, redirecting),
			refused: true},
		"the metadata service":             {registry: "169.254.169.254:80", refused: true},
		"a listed endpoint":                {registry: images, upstreams: listed(images, at)},
		"a registry that is listed":        {registry: host, upstreams: []upstream.Upstream{{Registry: host}}},
		"the endpoint of another registry": {registry: host, upstreams: listed(images, at), refused: true},
		"an address in a range":            {registry: host, allowed: loopback},
		"a redirect to an address in a range": {registry: images, upstreams: listed(images, redirecting),
			allowed: loopback},
		"an address that is in no range": {registry: host,
			allowed: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16")}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := upstream.New(upstream.Options{Upstreams: tc.upstreams, AllowAddresses: tc.allowed})
			require.NoError(t, err)
			t.Cleanup(c.Close)
			req := content.Request{
				Repository: content.Repository{Registry: tc.registry, Name: "a"}, Digest: digest.FromBytes(data),
				Size: 100,
			}
			b, err := c.Open(t.Context(), req, 0, -1)
			if tc.refused {
				require.ErrorIs(t, err, registries.ErrAddress)
				require.ErrorContains(t, err, "upstream.allowAddresses", "the key that allows it is named")
				require.NotErrorIs(t, err, content.ErrUnavailable, "it is no outage")
				return
			}
			require.NoError(t, err)
			require.Equal(t, data, read(t, b))
		})
	}
}

// Whoever has a host chooses where its challenge sends those who ask for a token, credentials with them.
func TestAddresses_OfTheNodeItselfAreNoTokenServers(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	inside := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = io.WriteString(w, `{"token":"t"}`)
	})
	elsewhere := func(h http.HandlerFunc) string {
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.2:0")
		require.NoError(t, err)
		s := httptest.NewUnstartedServer(h)
		require.NoError(t, s.Listener.Close())
		s.Listener = listener
		s.Start()
		t.Cleanup(s.Close)
		return s.URL
	}
	redirecting := elsewhere(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, inside, http.StatusTemporaryRedirect)
	})
	for name, realm := range map[string]string{
		"the realm": inside, "where the realm redirects": redirecting,
		"a link-local realm": "http://169.254.169.254/token",
	} {
		for _, listed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, of a registry that is listed: %v", name, listed), func(t *testing.T) {
				t.Parallel()
				at := elsewhere(func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="s"`)
					w.WriteHeader(http.StatusUnauthorized)
				})
				o := upstream.Options{AllowAddresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}}
				name := strings.TrimPrefix(at, "http://")
				if listed {
					name = images
					o.Upstreams = []upstream.Upstream{{Registry: images, Endpoints: []string{at}}}
				}
				c, err := upstream.New(o)
				require.NoError(t, err)
				t.Cleanup(c.Close)
				for _, cred := range []pullsecret.Credential{{}, {Username: "u", Password: "p"}} {
					_, err = c.Authorize(t.Context(), content.Repository{Registry: name, Name: "a"}, cred)
					require.Error(t, err)
				}
				require.Zero(t, asked.Load())
			})
		}
	}
}

func TestManifests_ThatAreEncodedOrNoneAreNotTaken(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ encoding, body string }{
		"encoded": {"gzip",
			`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`},
		"a page":            {"", "<html>log in</html>"},
		"JSON of no kind":   {"", `{"a":1}`},
		"an image's config": {"", `{"architecture":"amd64","config":{},"rootfs":{}}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
				if tc.encoding != "" {
					w.Header().Set("Content-Encoding", tc.encoding)
					w.Header().Set("Docker-Content-Digest", digest.FromString(tc.body).String())
				}
				_, _ = io.WriteString(w, tc.body)
			}))
			_, err := c.Resolve(t.Context(), repo, "v1", nil, "")
			require.ErrorIs(t, err, content.ErrUnavailable)
		})
	}
}

func TestCredentialsStayWithTheRegistry(t *testing.T) {
	t.Parallel()
	data := randomBytes(2000)
	var stored atomic.Int32
	storage := serve(t, func(w http.ResponseWriter, r *http.Request) {
		stored.Add(1)
		if r.Header.Get("Authorization") != "" || r.URL.Query().Get("signature") != "s3cret" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
	var asked atomic.Int32
	registry := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Header.Get("Authorization") != "Bearer mine" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		// Same IP address, another port: another host.
		http.Redirect(w, r, storage+"/bucket?signature=s3cret", http.StatusTemporaryRedirect)
	})
	c := newClient(t, upstream.Options{}, registry)
	req := content.Request{Repository: repo, Digest: digest.FromBytes(data), Authorization: "Bearer mine"}
	for off := int64(0); off < 2000; off += 500 {
		b, err := c.Open(t.Context(), req, off, 500)
		require.NoError(t, err)
		require.Equal(t, data[off:off+500], read(t, b))
	}
	require.EqualValues(t, 4, stored.Load())
	require.EqualValues(t, 1, asked.Load(), "a redirect is remembered for the ranges that follow")

	req.Authorization = "Bearer another"
	_, err := c.Open(t.Context(), req, 0, 500)
	require.True(t, content.Denied(err), "a redirect is remembered for the caller who got it only: %v", err)
	req.Authorization = "Bearer mine"
	_, _, err = c.Stat(t.Context(), req)
	require.NoError(t, err)
	require.EqualValues(t, 3, asked.Load(), "Stat always asks the registry itself")
}

func TestARedirectThatExpiredIsAskedForAgain(t *testing.T) {
	t.Parallel()
	data := randomBytes(100)
	var valid atomic.Int32
	storage := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("s") != strconv.Itoa(int(valid.Load())) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write(data)
	})
	c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, fmt.Sprintf("%s/?s=%d", storage, valid.Load()), http.StatusTemporaryRedirect)
	}))
	req := content.Request{Repository: repo, Digest: digest.FromBytes(data)}
	for range 3 {
		valid.Add(1)
		b, err := c.Open(t.Context(), req, 0, -1)
		require.NoError(t, err)
		require.Equal(t, data, read(t, b))
	}
}

func TestRedirect_WhereWrongBytesCameFromIsRememberedNoLonger(t *testing.T) {
	t.Parallel()
	data := randomBytes(300_000)
	full := func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
	for name, tc := range map[string]struct {
		bad      http.HandlerFunc
		distrust bool // the digest tells, not the answer
		resumed  bool // the same pull is read on
	}{
		"wrong bytes": {bad: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(make([]byte, len(data)))
		}, distrust: true},
		"an answer that breaks off": {bad: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			_, _ = w.Write(data[:1000])
			panic(http.ErrAbortHandler)
		}, resumed: true},
		"answers that break off wherever they begin": {bad: func(w http.ResponseWriter, r *http.Request) {
			flaw{after: 1000, how: breakOff}.serve(w, r, data)
		}, resumed: true},
		"an error page": {bad: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<html>log in</html>")
		}},
		"a wrong range": {bad: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 7-9/10")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, "xyz")
		}},
		"an encoding": {bad: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			_, _ = w.Write(data)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked, badAsked atomic.Int32
			bad, good := serve(t, func(w http.ResponseWriter, r *http.Request) {
				badAsked.Add(1)
				tc.bad(w, r)
			}), serve(t, full)
			c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) == 1 {
					http.Redirect(w, r, bad, http.StatusTemporaryRedirect)
					return
				}
				http.Redirect(w, r, good, http.StatusTemporaryRedirect)
			}))
			req := content.Request{Repository: repo, Digest: digest.FromBytes(data), Size: int64(len(data))}
			b, err := c.Open(t.Context(), req, 0, -1)
			if err == nil {
				got, err := io.ReadAll(b)
				require.NoError(t, b.Close())
				if tc.resumed {
					require.NoError(t, err)
					require.Equal(t, digest.FromBytes(data), digest.FromBytes(got))
					require.EqualValues(t, 2, asked.Load())
					require.EqualValues(t, 1, badAsked.Load(), "it has broken off once")
					return
				}
			}
			if tc.distrust {
				c.Distrust(req)
			}
			b, err = c.Open(t.Context(), req, 0, -1)
			require.NoError(t, err)
			require.Equal(t, digest.FromBytes(data), digest.FromBytes(read(t, b)))
		})
	}
}

func TestARefusalByObjectStorageIsNoVerdictOnTheCaller(t *testing.T) {
	t.Parallel()
	storage := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	c := newClient(t, upstream.Options{Timeouts: upstream.Timeouts{Retry: 100 * time.Millisecond}},
		serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, storage+"/?signature=s3cret", http.StatusTemporaryRedirect)
		}))
	_, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromString("x")}, 0, -1)
	require.ErrorIs(t, err, content.ErrUnavailable)
	require.False(t, content.Denied(err))
	require.NotContains(t, err.Error(), "s3cret")
}

// As registry.k8s.io does, which redirects everything to a registry near by.
func TestARegistryThatRedirectsToAnotherIsBelievedWhatIsMissing(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	nearby := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set("WWW-Authenticate", `Basic realm="nearby"`)
		http.NotFound(w, r)
	})
	c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, nearby+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	_, err := c.Resolve(t.Context(), repo, "no-such-tag", nil, "")
	require.ErrorIs(t, err, content.ErrNotFound)
	require.EqualValues(t, 1, asked.Load())
	var refused *content.UpstreamError
	require.ErrorAs(t, err, &refused)
	require.Empty(t, refused.Challenge, "credentials for the registry are none of another host's business")
}

func TestStatWorksWhereHeadDoesNot(t *testing.T) {
	t.Parallel()
	data := randomBytes(777)
	var heads atomic.Int32 // at object storage
	get := func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			heads.Add(1)
			w.WriteHeader(http.StatusForbidden)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
	storage := serve(t, get)
	for name, registry := range map[string]http.HandlerFunc{
		"at object storage, whose URLs are signed for GET": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, storage, http.StatusTemporaryRedirect)
		},
		"at the registry": func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			get(w, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, upstream.Options{}, serve(t, registry))
			size, _, err := c.Stat(t.Context(), content.Request{Repository: repo, Digest: digest.FromBytes(data)})
			require.NoError(t, err)
			require.EqualValues(t, 777, size)
			require.LessOrEqual(t, heads.Load(), int32(1), "its answer to HEAD is final")
		})
	}
}

func TestEndpointsAreTriedInOrder(t *testing.T) {
	t.Parallel()
	data := randomBytes(100)
	good, req := holding(t, data)
	refusing, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	refused := "http://" + refusing.Addr().String()
	require.NoError(t, refusing.Close())
	var broken atomic.Int32
	for name, first := range map[string]string{
		"past one that cannot be reached": refused,
		"past one that fails": serve(t, func(w http.ResponseWriter, _ *http.Request) {
			broken.Add(1)
			w.WriteHeader(http.StatusBadGateway)
		}),
		"past one that does not have it": serve(t, http.NotFound),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClient(t, upstream.Options{}, first, good)
			b, err := c.Open(t.Context(), req, 0, -1)
			require.NoError(t, err)
			require.Equal(t, data, read(t, b))
		})
	}
	t.Run("and a refusal of the first is final", func(t *testing.T) {
		t.Parallel()
		c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusUnauthorized)
		}), good)
		_, err := c.Open(t.Context(), req, 0, -1)
		require.True(t, content.Denied(err), "%v", err)
	})
	t.Run("and the wish of one that answers counts where another does not", func(t *testing.T) {
		t.Parallel()
		var asked atomic.Int32
		c := newClient(t, upstream.Options{}, refused, serve(t, func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		}))
		_, err := c.Open(t.Context(), req, 0, -1)
		var throttled *content.UpstreamError
		require.ErrorAs(t, err, &throttled)
		require.Equal(t, time.Hour, throttled.RetryAfter)
		require.EqualValues(t, 1, asked.Load())
	})
	t.Run("and a blob is not missing when only one of them says so", func(t *testing.T) {
		t.Parallel()
		c := newClient(t, upstream.Options{Timeouts: upstream.Timeouts{Retry: 100 * time.Millisecond}},
			serve(t, http.NotFound), refused)
		_, err := c.Open(t.Context(), req, 0, -1)
		require.NotErrorIs(t, err, content.ErrNotFound)
		require.ErrorIs(t, err, content.ErrUnavailable)
	})
}

func TestAnEndpointThatIsDownIsTriedLastForAWhile(t *testing.T) {
	t.Parallel()
	data := randomBytes(100)
	good, req := holding(t, data)
	var dials atomic.Int32
	var dialer net.Dialer
	c := newClient(t, upstream.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if strings.HasPrefix(address, "down.test") {
			dials.Add(1)
			return nil, &net.OpError{Op: "dial", Err: io.ErrClosedPipe}
		}
		return dialer.DialContext(ctx, network, address)
	}, Timeouts: upstream.Timeouts{Down: time.Hour}}, "http://down.test", good)
	for range 5 {
		b, err := c.Open(t.Context(), req, 0, -1)
		require.NoError(t, err)
		read(t, b)
	}
	require.EqualValues(t, 1, dials.Load())
}

func TestEndpointsMayHaveAPrefix(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var seen []string
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.URL.RequestURI())
		_, _ = w.Write([]byte("x"))
	})
	d := digest.FromString("x")
	c := newClient(t, upstream.Options{Upstreams: []upstream.Upstream{
		{Registry: images, Endpoints: []string{url + "/cache/images/"}},
		{Registry: "*", Endpoints: []string{url + "/any/v2"}},
	}})
	for _, registry := range []string{images, "other.test:5000"} {
		b, err := c.Open(t.Context(), content.Request{Repository: content.Repository{Registry: registry, Name: "a/b"},
			Digest: d}, 0, -1)
		require.NoError(t, err)
		read(t, b)
	}
	require.Equal(t, []string{
		"/cache/images/v2/a/b/blobs/" + d.String(),
		"/any/v2/a/b/blobs/" + d.String() + "?ns=other.test%3A5000",
	}, seen)
}

func TestRegistriesThatNobodyConfiguredAreReachedByTheirName(t *testing.T) {
	t.Parallel()
	for registry, want := range map[string]string{
		"images.test":      "images.test:443",
		"images.test:5000": "images.test:5000",
		"docker.io":        "registry-1.docker.io:443",
		"index.docker.io":  "registry-1.docker.io:443",
		"localhost":        "localhost:80",
		"localhost:5000":   "localhost:5000",
		"127.0.0.1:5000":   "127.0.0.1:5000",
		"[::1]:5000":       "[::1]:5000",
	} {
		t.Run(registry, func(t *testing.T) {
			t.Parallel()
			dialled := make(chan string, 1)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c := newClient(t, upstream.Options{
				Upstreams: []upstream.Upstream{{Registry: "unrelated.test"}},
				Dial: func(_ context.Context, _, address string) (net.Conn, error) {
					dialled <- address
					cancel()
					return nil, io.ErrClosedPipe
				},
			})
			_, err := c.Resolve(ctx, content.Repository{Registry: registry, Name: "a"}, "v1", nil, "")
			require.Error(t, err)
			require.Equal(t, want, <-dialled)
		})
	}
}

func TestTLSIsConfiguredPerRegistry(t *testing.T) {
	t.Parallel()
	data := []byte("x")
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/known") && len(r.TLS.PeerCertificates) == 0 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write(data)
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	t.Cleanup(server.Close)
	ca, key := filepath.Join(t.TempDir(), "ca.pem"), filepath.Join(t.TempDir(), "key.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: server.Certificate().Raw}), 0o600))
	der, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	req := content.Request{Repository: repo, Digest: digest.FromBytes(data)}
	for name, tc := range map[string]struct {
		conf upstream.Upstream
		path string
		want string // of the error, "" for none
	}{
		"a private CA is trusted where it is given": {conf: upstream.Upstream{CAFile: ca}},
		"and not elsewhere":                         {want: "certificate"},
		"any certificate is taken on demand":        {conf: upstream.Upstream{InsecureSkipVerify: true}},
		"the agent shows its certificate": {upstream.Upstream{CAFile: ca, ClientCertFile: ca,
			ClientKeyFile: key}, "/known", ""},
		"and has none to show elsewhere": {upstream.Upstream{CAFile: ca}, "/known", "403"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.conf.Registry, tc.conf.Endpoints = images, []string{server.URL + tc.path}
			c := newClient(t, upstream.Options{Upstreams: []upstream.Upstream{tc.conf}})
			b, err := c.Open(t.Context(), req, 0, -1)
			if tc.want != "" {
				require.ErrorContains(t, err, tc.want)
				return
			}
			require.NoError(t, err)
			require.Equal(t, data, read(t, b))
		})
	}
}

func TestRequestsGoThroughTheProxy(t *testing.T) {
	t.Parallel()
	data := []byte("x")
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Host == "far.test" { // an absolute URL, as proxies get it
			_, _ = w.Write(data)
		}
	})
	at, err := url.Parse(proxy)
	require.NoError(t, err)
	c := newClient(t, upstream.Options{Proxy: http.ProxyURL(at)}, "http://far.test")
	b, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromBytes(data)}, 0, -1)
	require.NoError(t, err)
	require.Equal(t, data, read(t, b))
}

func TestMistakesInTheConfigurationAreNamed(t *testing.T) {
	t.Parallel()
	for want, ups := range map[string][]upstream.Upstream{
		"want http(s)://":     {{Registry: images, Endpoints: []string{"images.test"}}},
		"holds credentials":   {{Registry: images, Endpoints: []string{"https://u:p@images.test"}}},
		"query or a fragment": {{Registry: images, Endpoints: []string{"https://images.test?x=1"}}},
		"listed twice":        {{Registry: images}, {Registry: "Images.test"}},
		`"*": listed twice`:   {{}, {Registry: "*"}},
		"caFile: stat":        {{Registry: images, CAFile: "/nonexistent"}},
		"no regular file":     {{Registry: images, CAFile: os.DevNull}},
		"no PEM certificate":  {{Registry: images, CAFile: "upstream_test.go"}},
		"clientCertFile":      {{Registry: images, ClientCertFile: "/nonexistent"}},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			_, err := upstream.New(upstream.Options{Upstreams: ups})
			require.ErrorContains(t, err, want)
			require.NotContains(t, err.Error(), "u:p@")
		})
	}
}

func TestTheRateLimitOfThePolicyHolds(t *testing.T) {
	t.Parallel()
	url, req := holding(t, []byte("x"))
	limiter := rate.NewLimiter(rate.Every(time.Hour), 1)
	c := newClient(t, upstream.Options{Limits: func(content.Repository) upstream.Limits {
		return upstream.Limits{Requests: limiter}
	}}, url)
	b, err := c.Open(t.Context(), req, 0, -1)
	require.NoError(t, err)
	read(t, b)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = c.Open(ctx, req, 0, -1)
	require.ErrorContains(t, err, "rate limit")
	require.True(t, content.Throttled(err), "the registry was not asked, and is not silent")
}

func TestBytesComeNoFasterThanThePolicyLets(t *testing.T) {
	t.Parallel()
	data := randomBytes(4 << 10)
	url, req := holding(t, data)
	limiter := rate.NewLimiter(rate.Every(time.Hour), 3<<10)
	c := newClient(t, upstream.Options{Limits: func(content.Repository) upstream.Limits {
		return upstream.Limits{Bytes: limiter}
	}}, url)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b, err := c.Open(ctx, req, 0, -1)
	require.NoError(t, err)
	defer func() { _ = b.Close() }()
	got, err := io.ReadAll(b)
	require.ErrorContains(t, err, "rate limit", "what exceeds the burst would take hours")
	require.ErrorIs(t, err, content.ErrUnavailable)
	require.LessOrEqual(t, len(got), 3<<10)

	limiter.SetLimit(rate.Inf)
	b, err = c.Open(t.Context(), req, 0, -1)
	require.NoError(t, err)
	require.Equal(t, data, read(t, b), "in small pieces, and whole")
}

// silent is a connection to a registry that accepts it and never says a word.
func silent(t *testing.T) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, far) }()
		t.Cleanup(func() { _ = far.Close() })
		return near, nil
	}
}

func TestARegistryThatSaysNothingIsGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, err := upstream.New(upstream.Options{
			Upstreams: []upstream.Upstream{{Registry: images, Endpoints: []string{"http://images.test"}}},
			Dial:      silent(t),
		})
		require.NoError(t, err)
		start := time.Now()
		_, err = c.Resolve(t.Context(), repo, "v1", nil, "")
		require.ErrorIs(t, err, content.ErrUnavailable)
		require.ErrorContains(t, err, "within the time allowed")
		require.LessOrEqual(t, time.Since(start), 50*time.Second)
		require.GreaterOrEqual(t, time.Since(start), 20*time.Second, "it was tried more than once")

		start = time.Now()
		_, err = c.Resolve(t.Context(), repo, "v1", nil, "")
		require.ErrorIs(t, err, content.ErrUnavailable)
		require.LessOrEqual(t, time.Since(start), 2*time.Second, "the next call knows")
	})
}

// Storage may think for half a minute before it answers. Who asks for a file of a hub can ask nobody else.
func TestFiles_OfStorageThatThinksForHalfAMinuteAreWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, err := upstream.New(upstream.Options{
			Upstreams: []upstream.Upstream{{Registry: images, Endpoints: []string{"http://images.test"}}},
			Dial: func(context.Context, string, string) (net.Conn, error) {
				near, far := net.Pipe()
				go func() {
					defer func() { _ = far.Close() }()
					if _, err := http.ReadRequest(bufio.NewReader(far)); err != nil {
						return
					}
					time.Sleep(30 * time.Second)
					_, _ = io.WriteString(far, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nbytes")
				}()
				return near, nil
			},
		})
		require.NoError(t, err)
		req := content.Request{Repository: repo, Digest: digest.FromString("bytes"), File: "/a"}
		body, err := c.Open(t.Context(), req, 0, -1)
		require.NoError(t, err)
		require.Equal(t, "bytes", string(read(t, body)))
		require.NoError(t, body.Close())
		c.Close()

		start := time.Now()
		req.File = "" // a runtime goes on to the registry itself
		_, err = c.Open(t.Context(), req, 0, -1)
		require.ErrorIs(t, err, content.ErrUnavailable)
		require.Less(t, time.Since(start), 50*time.Second)
		time.Sleep(time.Minute) // for what was asked last
	})
}

// RFC 9110 lets a server give less of a range than was asked for.
func TestOpen_AServerThatGivesShorterRangesIsReadOn(t *testing.T) {
	t.Parallel()
	const most = 1 << 20
	data := make([]byte, 5*most+7)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	var asked atomic.Int32
	c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var first, last int64
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
			http.Error(w, "ranges only", http.StatusBadRequest)
			return
		}
		last = min(last, first+most-1)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
		w.Header().Set("Content-Length", strconv.FormatInt(last-first+1, 10))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(data[first : last+1])
	}))
	b, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromBytes(data),
		Size: int64(len(data))}, 5, 4*most)
	require.NoError(t, err)
	got, err := io.ReadAll(b)
	require.NoError(t, err)
	require.NoError(t, b.Close())
	require.True(t, bytes.Equal(data[5:5+4*most], got))
	require.EqualValues(t, 4, asked.Load())
}

// A firewall that drops packets costs one attempt to connect, however long the callers wait for it. From then on it
// costs one call in five seconds a short while, and the others nothing, until the registry can be reached again.
func TestARegistryBehindAFirewallIsWaitedForOnce(t *testing.T) {
	t.Parallel()
	for name, patience := range map[string]time.Duration{
		"callers that wait longer than an attempt to connect": time.Minute,
		"callers that do not": 3 * time.Second,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var open atomic.Bool
				c, err := upstream.New(upstream.Options{
					Upstreams: []upstream.Upstream{{Registry: images, Endpoints: []string{"http://images.test"}}},
					Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
						if open.Load() {
							return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
						}
						select {
						case <-time.After(5 * time.Second):
							return nil, &net.OpError{Op: "dial", Net: network, Err: os.ErrDeadlineExceeded}
						case <-ctx.Done():
							return nil, ctx.Err()
						}
					},
				})
				require.NoError(t, err)
				ask := func() (took time.Duration, err error) {
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					start := time.Now()
					_, err = c.Resolve(ctx, repo, "v1", nil, "")
					require.ErrorIs(t, err, content.ErrUnavailable)
					return time.Since(start), err
				}
				took, _ := ask()
				require.Equal(t, min(patience, 5*time.Second), took)
				for range 4 {
					for range 3 {
						took, _ = ask()
						require.Zero(t, took, "no connection could be made a moment ago")
					}
					time.Sleep(5 * time.Second)
					took, _ = ask()
					require.Equal(t, 2*time.Second, took, "one finds out for all how it is")
				}
				open.Store(true)
				time.Sleep(5 * time.Second)
				_, err = ask()
				require.ErrorIs(t, err, syscall.ECONNREFUSED, "it was tried again")
			})
		})
	}
}

func TestForwardTakesNothingButJSON(t *testing.T) {
	t.Parallel()
	body := "<html>"
	c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/team/app/tags/list" {
			_, _ = io.WriteString(w, body)
		}
	}))
	_, err := c.Forward(t.Context(), repo, "tags/list", nil, nil, "")
	require.ErrorContains(t, err, "no JSON")
	resp, err := c.Forward(t.Context(), content.Repository{Registry: images}, "", nil, nil, "")
	require.NoError(t, err, "/v2/ may be empty")
	require.NoError(t, resp.Body.Close())
}

// tokenRegistry wants a Bearer token, and its token server hands one out to anonymous callers for public/, and for the
// rest to alice.
func tokenRegistry(t *testing.T, asked *atomic.Int32) string {
	r := registrytest.New(t)
	for _, repository := range []string{"public/app", "team/app"} {
		r.PushManifest(t, repository, "v1", v1.MediaTypeImageIndex, "{}")
	}
	r.Handle(registrytest.NewTokens(r.Files, func(q *http.Request) registrytest.Token {
		asked.Add(1)
		user, password, _ := q.BasicAuth()
		refreshed := q.Method == http.MethodPost && q.PostFormValue("grant_type") == "refresh_token" &&
			q.PostFormValue("refresh_token") == "alice's" && q.PostFormValue("service") == "images.test"
		name := strings.TrimSuffix(strings.TrimPrefix(q.FormValue("scope"), "repository:"), ":pull")
		if !strings.HasPrefix(name, "public/") && (user != "alice" || password != "secret") && !refreshed {
			return registrytest.Token{Status: http.StatusUnauthorized}
		}
		return registrytest.Token{Requests: registrytest.Forever, Reads: func(path string) bool {
			return strings.HasPrefix(path, "/v2/"+name+"/")
		}}
	}))
	return r.URL
}

func TestAuthorizeObtainsTokens(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		repo       string
		credential pullsecret.Credential
		ok         bool
	}{
		"for anonymous pulls": {"public/app", pullsecret.Credential{}, true},
		"for a user": {"team/app", pullsecret.Credential{Username: "alice", Password: "secret"},
			true},
		"for an identity token": {"team/app",
			pullsecret.Credential{Username: "<token>", IdentityToken: "alice's"}, true},
		"and not for a wrong password": {"team/app", pullsecret.Credential{Username: "alice", Password: "wrong"},
			false},
		"and not for a wrong identity token": {"team/app", pullsecret.Credential{IdentityToken: "mallory's"}, false},
		"and not for anonymous callers":      {"team/app", pullsecret.Credential{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			c := newClient(t, upstream.Options{}, tokenRegistry(t, &asked))
			repo := content.Repository{Registry: images, Name: tc.repo}
			authorization, err := c.Authorize(t.Context(), repo, tc.credential)
			if !tc.ok {
				require.True(t, content.Denied(err), "%v", err)
				return
			}
			require.NoError(t, err)
			resp, err := c.Forward(t.Context(), repo, "tags/list", nil, nil, authorization)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			_, err = c.Authorize(t.Context(), repo, tc.credential)
			require.NoError(t, err)
			require.EqualValues(t, 1, asked.Load(), "a token is used until it expires")
		})
	}
}

func TestRenewReplacesWhatTheRegistryTakesNoMore(t *testing.T) {
	t.Parallel()
	alice := pullsecret.Credential{Username: "alice", Password: "secret"}
	for name, tc := range map[string]struct {
		scheme     string // of the challenge
		credential pullsecret.Credential
		unused     bool // nothing was asked for with what is refused
		twice      bool // another caller was refused with it before
		want       string
		exchanges  int32
	}{
		"by a new token":                         {"Bearer", alice, false, false, "Bearer 2", 2},
		"by the new token of another caller":     {"Bearer", alice, false, true, "Bearer 2", 2},
		"but no token that it never took":        {"Bearer", alice, true, false, "", 1},
		"but no password that is shown as it is": {"Basic", alice, false, false, "", 0},
		"but no registry token, which is there once": {"Bearer", pullsecret.Credential{RegistryToken: "t"}, false,
			false, "", 0},
		"and an anonymous token as that of a user is": {"Bearer", pullsecret.Credential{}, false, false, "Bearer 2", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var exchanges atomic.Int32
			c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/token":
					_, _ = fmt.Fprintf(w, `{"token":"%d","expires_in":300}`, exchanges.Add(1))
				case "/v2/":
					w.Header().Set("WWW-Authenticate",
						fmt.Sprintf(`%s realm="http://%s/token",service="images.test"`, tc.scheme, r.Host))
					w.WriteHeader(http.StatusUnauthorized)
				default:
					_, _ = io.WriteString(w, `{"tags":["v1"]}`)
				}
			}))
			ctx := t.Context()
			refused, err := c.Authorize(ctx, repo, tc.credential)
			require.NoError(t, err)
			if !tc.unused {
				resp, err := c.Forward(ctx, repo, "tags/list", nil, nil, refused)
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
			}
			if tc.twice {
				_, err := c.Renew(ctx, repo, tc.credential, refused)
				require.NoError(t, err)
			}
			got, err := c.Renew(ctx, repo, tc.credential, refused)
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
			require.Equal(t, tc.exchanges, exchanges.Load())
		})
	}
}

func TestCredentialsDoNotGoFromARegistryWithTLSToATokenServerWithout(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	tokens := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = io.WriteString(w, `{"token":"good"}`)
	})
	secure := httptest.NewTLSServer(asksForTokens(tokens))
	t.Cleanup(secure.Close)
	c := newClient(t, upstream.Options{
		Upstreams: []upstream.Upstream{{Registry: images, Endpoints: []string{secure.URL}, InsecureSkipVerify: true}},
	})
	_, err := c.Authorize(t.Context(), repo, pullsecret.Credential{Username: "alice", Password: "secret"})
	require.ErrorContains(t, err, "has no TLS")
	require.Zero(t, asked.Load())
	authorization, err := c.Authorize(t.Context(), repo, pullsecret.Credential{})
	require.NoError(t, err, "who has no secret may ask")
	require.Equal(t, "Bearer good", authorization)
}

func TestATokenServerInTroubleIsWaitedFor(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		credential pullsecret.Credential
		wait       string // Retry-After of its first answer
		asked      int32
		want       error
	}{
		"for a moment": {wait: "1", asked: 2},
		"also with the form of an identity token": {credential: pullsecret.Credential{IdentityToken: "alice's"},
			wait: "1", asked: 2},
		"but not for an hour, which the caller learns": {wait: "3600", asked: 1, want: content.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			tokens := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) == 1 {
					w.Header().Set("Retry-After", tc.wait)
					w.WriteHeader(http.StatusTooManyRequests)
					return
				}
				if r.FormValue("scope") == "repository:team/app:pull" &&
					r.PostFormValue("refresh_token") == tc.credential.IdentityToken {
					_, _ = io.WriteString(w, `{"token":"good"}`)
				}
			})
			c := newClient(t, upstream.Options{}, serve(t, asksForTokens(tokens)))
			authorization, err := c.Authorize(t.Context(), repo, tc.credential)
			require.Equal(t, tc.asked, asked.Load())
			if tc.want != nil {
				require.ErrorIs(t, err, tc.want)
				var refused *content.UpstreamError
				require.ErrorAs(t, err, &refused)
				require.Equal(t, time.Hour, refused.RetryAfter)
				return
			}
			require.NoError(t, err)
			require.Equal(t, "Bearer good", authorization)
		})
	}
}

// A port that accepts and then says nothing, as a firewall's may, is as far away as one that drops packets.
func TestABlackHoleThatAcceptsConnectionsIsRememberedToo(t *testing.T) {
	t.Parallel()
	for _, patience := range []time.Duration{3 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			c, err := upstream.New(upstream.Options{
				Upstreams: []upstream.Upstream{{Registry: images, Endpoints: []string{"https://images.test"}}},
				Dial: func(context.Context, string, string) (net.Conn, error) {
					ours, theirs := net.Pipe()
					go func() {
						_, _ = io.Copy(io.Discard, theirs)
						_ = theirs.Close()
					}()
					return ours, nil
				},
			})
			require.NoError(t, err)
			defer c.Close()
			ask := func() time.Duration {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				start := time.Now()
				_, err := c.Resolve(ctx, repo, "v1", nil, "")
				require.ErrorIs(t, err, content.ErrUnavailable)
				return time.Since(start)
			}
			require.Positive(t, ask())
			require.Zero(t, ask(), "no connection could be made a moment ago")
		})
	}
}

func TestStat_AnEmptyAnswerIsNoBlobOfNothing(t *testing.T) {
	t.Parallel()
	c := newClient(t, upstream.Options{Timeouts: upstream.Timeouts{Retry: time.Second}}, serve(t,
		func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "0") }))
	_, _, err := c.Stat(t.Context(), content.Request{Repository: repo, Digest: digest.FromString("x")})
	require.ErrorContains(t, err, "empty")
	size, _, err := c.Stat(t.Context(), content.Request{Repository: repo, Digest: digest.FromString("")})
	require.NoError(t, err)
	require.Zero(t, size)
}

// What a header cannot hold the agent itself could not send, and the registry would count as out of reach.
func TestATokenThatNoHeaderCanHoldIsRefused(t *testing.T) {
	t.Parallel()
	tokens := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"token":"a\r\nX: 1"}`)
	})
	c := newClient(t, upstream.Options{}, serve(t, asksForTokens(tokens)))
	_, err := c.Authorize(t.Context(), repo, pullsecret.Credential{})
	require.ErrorContains(t, err, "token of registry images.test has characters")
}

func TestAuthorizeUsesBasicWhereTheRegistryDoes(t *testing.T) {
	t.Parallel()
	c := newClient(t, upstream.Options{}, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="images"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	authorization, err := c.Authorize(t.Context(), repo, pullsecret.Credential{Username: "alice", Password: "secret"})
	require.NoError(t, err)
	require.Equal(t, "Basic YWxpY2U6c2VjcmV0", authorization)
	for _, none := range []pullsecret.Credential{{}, {Username: "<token>", IdentityToken: "for a token server"}} {
		authorization, err = c.Authorize(t.Context(), repo, none)
		require.NoError(t, err)
		require.Empty(t, authorization)
	}
	authorization, err = c.Authorize(t.Context(), repo, pullsecret.Credential{RegistryToken: "as it is"})
	require.NoError(t, err)
	require.Equal(t, "Bearer as it is", authorization)
}

func TestABlobOfUntoldLengthIsAskedForItsSize(t *testing.T) {
	t.Parallel()
	data := randomBytes(3000)
	chunked := func(head string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead && head != "" {
				w.Header().Set("Content-Length", head)
				return
			}
			w.Header().Set("Transfer-Encoding", "chunked")
			_, _ = w.Write(data)
		}
	}
	req := content.Request{Repository: repo, Digest: digest.FromBytes(data)}
	b, err := newClient(t, upstream.Options{}, serve(t, chunked("3000"))).Open(t.Context(), req, 0, -1)
	require.NoError(t, err)
	require.EqualValues(t, 3000, b.Size)
	require.Equal(t, data, read(t, b))

	b, err = newClient(t, upstream.Options{}, serve(t, chunked("4000"))).Open(t.Context(), req, 0, -1)
	require.NoError(t, err)
	_, err = io.ReadAll(b)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NoError(t, b.Close())

	_, err = newClient(t, upstream.Options{}, serve(t, chunked(""))).Open(t.Context(), req, 0, -1)
	require.ErrorContains(t, err, "does not tell the blob's size")
}

func TestCallersCannotFloodTheMetricsWithNames(t *testing.T) {
	t.Parallel()
	metrics := prometheus.NewRegistry()
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("ns") != "good.test" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = fmt.Fprintf(w, `{"config":{"mediaType":"a/b","digest":%q,"size":1}}`, digest.FromString("x"))
	})
	c := newClient(t, upstream.Options{
		Registerer: metrics, Upstreams: []upstream.Upstream{
			{Registry: "*", Endpoints: []string{url}}, {Registry: "listed.test", Endpoints: []string{url}},
		},
	})
	resolve := func(registry string) error {
		_, err := c.Resolve(t.Context(), content.Repository{Registry: registry, Name: "a"}, "v1", nil, "")
		return err
	}
	for i := range 200 {
		require.ErrorIs(t, resolve(fmt.Sprintf("r%d.test", i)), content.ErrNotFound)
	}
	require.NoError(t, resolve("good.test"))
	require.ErrorIs(t, resolve("listed.test"), content.ErrNotFound)
	families, err := metrics.Gather()
	require.NoError(t, err)
	var named []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "shoal_upstream_requests_total" {
				for _, l := range m.GetLabel() {
					if l.GetName() == "registry" {
						named = append(named, l.GetValue())
					}
				}
			}
		}
	}
	slices.Sort(named)
	require.Equal(t, []string{"good.test", "listed.test", "other"}, slices.Compact(named))
}
