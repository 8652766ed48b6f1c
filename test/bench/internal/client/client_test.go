package client_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/bench/internal/client"
	"github.com/shoal-cache/shoal/test/internal/origin"
)

const mib = 1 << 20

// registry serves an image of two layers, one of them large, and tells what it has handed out.
func registry(t *testing.T) (string, origin.Image, *origin.Server, *httptest.Server) {
	t.Helper()
	dir := t.TempDir()
	image, err := origin.Write(dir, "bench/image", "v1",
		[]origin.Layer{{Seed: 1, Size: 3 * mib}, {Seed: 2, Size: 10_000}})
	require.NoError(t, err)
	server := origin.NewServer(dir)
	web := httptest.NewServer(server)
	t.Cleanup(web.Close)
	return dir, image, server, web
}

// handedOut closes web, and so waits for the handlers: they count what they have sent when the client may have it all.
func handedOut(server *origin.Server, web *httptest.Server) origin.Stats {
	web.Close()
	return server.Stats()
}

func pull(t *testing.T, spec client.Spec) client.Result {
	t.Helper()
	spec.Repository, spec.Tag, spec.Timeout = "bench/image", "v1", time.Minute
	result, err := client.Run(t.Context(), spec)
	require.NoError(t, err)
	return result
}

func TestAPullTakesEachByteOnceAndVerifiesIt(t *testing.T) {
	t.Parallel()
	_, image, server, web := registry(t)
	r := pull(t, client.Spec{Endpoints: []string{web.URL}})
	require.Empty(t, r.Err)
	require.Equal(t, image.Size(), r.Bytes)
	sent := handedOut(server, web)
	require.Equal(t, image.Size(), sent.Bytes)
	require.Positive(t, r.FirstByte)
	require.Equal(t, image.Size(), r.Curve[len(r.Curve)-1].Bytes)
	require.EqualValues(t, 5, sent.Requests, "tag, manifest, config, two layers")
}

func TestCurl_PullsWhatThePlainClientPulls(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	_, image, _, web := registry(t)
	refuses := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(refuses.Close)
	r := pull(t, client.Spec{Endpoints: []string{refuses.URL, web.URL}, Curl: true})
	require.Empty(t, r.Err)
	require.Equal(t, image.Size(), r.Bytes)
	require.EqualValues(t, 5, r.Fallbacks, "tag, manifest, config, two layers")
}

func TestFirstByte_OfEachBlobIsTold(t *testing.T) {
	t.Parallel()
	_, image, _, web := registry(t)
	r := pull(t, client.Spec{Endpoints: []string{web.URL}})
	var sizes []int64
	for _, b := range r.Blobs {
		require.Positive(t, b.FirstByte)
		sizes = append(sizes, b.Size)
	}
	require.ElementsMatch(t, []int64{image.Manifest.Config.Size, 3 * mib, 10_000}, sizes)
}

func TestBlobsThatTheHostHoldsAreNotPulled(t *testing.T) {
	t.Parallel()
	_, image, server, web := registry(t)
	large := image.Manifest.Layers[0]
	r := pull(t, client.Spec{Endpoints: []string{web.URL}, Skip: []digest.Digest{large.Digest}})
	require.Empty(t, r.Err)
	require.Equal(t, image.Size()-large.Size, handedOut(server, web).Bytes)
}

func TestAMirrorThatRefusesIsPassedOver(t *testing.T) {
	t.Parallel()
	_, image, _, web := registry(t)
	var namespace atomic.Value
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		namespace.Store(r.URL.Query().Get("ns"))
		w.WriteHeader(http.StatusNotFound)
	}))
	t.Cleanup(mirror.Close)
	r := pull(t, client.Spec{Endpoints: []string{mirror.URL, web.URL}, Namespace: "images.test"})
	require.Empty(t, r.Err)
	require.Equal(t, image.Size(), r.Bytes)
	require.EqualValues(t, 5, r.Fallbacks)
	require.Equal(t, "images.test", namespace.Load())
}

func TestABodyThatBreaksOffIsResumed(t *testing.T) {
	t.Parallel()
	dir, image, server, _ := registry(t)
	var broken atomic.Bool
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		large := strings.HasSuffix(r.URL.Path, image.Manifest.Layers[0].Digest.String())
		if !large || !broken.CompareAndSwap(false, true) {
			server.ServeHTTP(w, r)
			return
		}
		half, err := os.ReadFile(origin.BlobPath(dir, image.Manifest.Layers[0].Digest))
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Length", "3145728")
		_, _ = w.Write(half[:mib])
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(web.Close)
	r := pull(t, client.Spec{Endpoints: []string{web.URL}})
	require.Empty(t, r.Err)
	require.EqualValues(t, 1, r.Resumed)
	require.Equal(t, image.Size(), r.Bytes)
}

func TestWrongBytesFailThePull(t *testing.T) {
	t.Parallel()
	dir, image, _, web := registry(t)
	path := origin.BlobPath(dir, image.Manifest.Layers[1].Digest)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	b[5000] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o644))
	r := pull(t, client.Spec{Endpoints: []string{web.URL}})
	require.Contains(t, r.Err, "another digest")
}

func TestRangeReadsAreComparedWithTheTruth(t *testing.T) {
	t.Parallel()
	dir, image, server, web := registry(t)
	layer := image.Manifest.Layers[0].Digest
	reads := []client.Range{{Digest: layer, Offset: 100, Length: 5000}, {Digest: layer, Offset: 2 * mib, Length: mib}}
	r := pull(t, client.Spec{Endpoints: []string{web.URL}, Ranges: reads, Truth: dir})
	require.Empty(t, r.Err)
	require.Len(t, r.Latencies, 2)
	require.EqualValues(t, 5000+mib, handedOut(server, web).Bytes)

	web = httptest.NewServer(server)
	t.Cleanup(web.Close)
	other := t.TempDir()
	wrong := make([]byte, 3*mib)
	require.NoError(t, os.MkdirAll(other+"/blobs", 0o755))
	require.NoError(t, os.WriteFile(origin.BlobPath(other, layer), wrong, 0o644))
	r = pull(t, client.Spec{Endpoints: []string{web.URL}, Ranges: reads, Truth: other})
	require.Contains(t, r.Err, "wrong bytes")
}

func TestAPullThatIsCancelledBeforeItsStartIsNoResult(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := client.Run(ctx, client.Spec{Start: time.Now().Add(time.Hour)})
	require.ErrorIs(t, err, context.Canceled)
}

// misleading serves an image, but the first answer with its large layer has a wrong byte. broken: and it breaks off.
func misleading(t *testing.T, broken bool) string {
	t.Helper()
	_, image, server, _ := registry(t)
	var answers atomic.Int64
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, image.Manifest.Layers[0].Digest.String()) || answers.Add(1) > 1 {
			server.ServeHTTP(w, r)
			return
		}
		right := httptest.NewRecorder()
		server.ServeHTTP(right, r)
		content := right.Body.Bytes()
		content[0] ^= 0xff
		if broken {
			w.Header().Set("Content-Length", right.Header().Get("Content-Length"))
			content = content[:len(content)/2]
		}
		_, _ = w.Write(content) // a body that is shorter than was said breaks off
	}))
	t.Cleanup(web.Close)
	return web.URL
}

func TestAWrongBlobThatBrokeOffIsReadAnewWhereThatIsAskedFor(t *testing.T) {
	t.Parallel()
	r := pull(t, client.Spec{Endpoints: []string{misleading(t, true)}, Again: 1})
	require.Empty(t, r.Err)
	require.EqualValues(t, 1, r.Again)
	r = pull(t, client.Spec{Endpoints: []string{misleading(t, true)}})
	require.Contains(t, r.Err, "of another digest")
	require.Zero(t, r.Again)
}

func TestAWrongBlobThatEndedCleanlyIsAFailure(t *testing.T) {
	t.Parallel()
	r := pull(t, client.Spec{Endpoints: []string{misleading(t, false)}, Again: 1})
	require.Contains(t, r.Err, "of another digest")
	require.Zero(t, r.Again)
}
