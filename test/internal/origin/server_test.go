package origin_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/internal/origin"
)

func serve(t *testing.T) (origin.Image, *origin.Server, *httptest.Server) {
	t.Helper()
	dir := t.TempDir()
	image, err := origin.Write(dir, "bench/image", "v1", []origin.Layer{{Seed: 1, Size: 100_000}, {Seed: 2, Size: 10}})
	require.NoError(t, err)
	server := origin.NewServer(dir)
	web := httptest.NewServer(server)
	t.Cleanup(web.Close)
	return image, server, web
}

func TestOnlyWhatIsSentCounts(t *testing.T) {
	t.Parallel()
	image, server, _ := serve(t)
	for sentence, c := range map[string]struct {
		method, header string
		status         int
	}{
		"a HEAD sends nothing":           {http.MethodHead, "", http.StatusOK},
		"a whole body":                   {http.MethodGet, "", http.StatusOK},
		"a range":                        {http.MethodGet, "bytes=10-19", http.StatusPartialContent},
		"a range that cannot be is none": {http.MethodGet, "bytes=200000-", http.StatusRequestedRangeNotSatisfiable},
	} {
		before := server.Stats()
		web := httptest.NewServer(server)
		url := web.URL + "/v2/bench/image/blobs/" + image.Manifest.Layers[0].Digest.String()
		request, err := http.NewRequestWithContext(t.Context(), c.method, url, nil)
		require.NoError(t, err)
		if c.header != "" {
			request.Header.Set("Range", c.header)
		}
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, c.status, response.StatusCode, sentence)
		web.Close() // waits for the handler, which counts what it has sent when the client may have it all
		got := server.Stats().Sub(before)
		require.EqualValues(t, 1, got.BlobRequests, sentence)
		if response.StatusCode/100 == 2 {
			require.EqualValues(t, len(body), got.Bytes, sentence)
		}
	}
}

func TestWhatIsNotThereIsRefused(t *testing.T) {
	t.Parallel()
	image, server, web := serve(t)
	for path, status := range map[string]int{
		"/v2/":                             http.StatusOK,
		"/v2/bench/other/manifests/v1":     http.StatusNotFound,
		"/v2/bench/image/blobs/sha256:12":  http.StatusBadRequest,
		"/v2/bench/image/blobs/..%2f..%2f": http.StatusNotFound,
		"/v2/bench/image/tags/list":        http.StatusNotFound,
		"/":                                http.StatusNotFound,
		"/v2/bench/image/manifests/" + image.Digest.String(): http.StatusOK,
	} {
		response, err := http.Get(web.URL + path)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, status, response.StatusCode, path)
	}
	web.Close() // waits for the handlers
	require.Positive(t, server.Stats().ManifestBytes)
}

func TestEqualSeedsMakeEqualLayers(t *testing.T) {
	t.Parallel()
	first, err := origin.Write(t.TempDir(), "a", "1", []origin.Layer{{Seed: 1, Size: 1000}, {Seed: 2, Size: 1000}})
	require.NoError(t, err)
	second, err := origin.Write(t.TempDir(), "b", "2", []origin.Layer{{Seed: 2, Size: 1000}, {Seed: 1, Size: 2000}})
	require.NoError(t, err)
	require.Equal(t, first.Manifest.Layers[1], second.Manifest.Layers[0])
	require.NotEqual(t, first.Manifest.Layers[0].Digest, second.Manifest.Layers[1].Digest)
}
