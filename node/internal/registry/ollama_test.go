package registry_test

import (
	"bytes"
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/registry"
)

// The requests are those of ollama's server/download.go: HEAD for the size, GET for where the blob lies, and from there
// its parts by Range, without the token.
func TestOllama_AModelIsPulledByItsOwnRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *registry.Options) { o.DefaultRegistry = images })
	model := bytes.Repeat([]byte("gguf weights "), 20_000)
	layer := w.origin.Add(model)
	config := w.origin.Add([]byte("{}"))
	const media = "application/vnd.docker.distribution.manifest.v2+json"
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":%q,"size":2},"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":%q,"size":%d}]}`,
		media, config, layer, len(model))
	w.origin.PushManifest(t, "library/tiny", "latest", media, manifest)
	ollama := []string{"User-Agent", "ollama/0.17.4 (amd64 linux) Go/go1.26"}

	rep := w.get("/v2/library/tiny/manifests/latest", ollama...)
	require.Equal(t, http.StatusOK, rep.Code)
	require.Equal(t, manifest, rep.Body.String())
	at := "/v2/library/tiny/blobs/" + layer.String()
	head := w.do(http.MethodHead, at, ollama...)
	require.Equal(t, fmt.Sprint(len(model)), head.Header().Get("Content-Length"))
	whole := w.get(at, ollama...)
	require.Equal(t, http.StatusOK, whole.Code)
	location := whole.Header().Get("Location")
	require.NotEmpty(t, location, "http: no Location header in response")
	var got []byte
	const part = 100_000
	for off := 0; off < len(model); off += part {
		last := min(off+part, len(model)) - 1
		rep := w.get(location, append(ollama, "Range", fmt.Sprintf("bytes=%d-%d", off, last))...)
		require.Equal(t, http.StatusPartialContent, rep.Code)
		require.Empty(t, rep.Header().Get("Location"))
		got = append(got, rep.Body.Bytes()...)
	}
	require.True(t, bytes.Equal(model, got))
	require.Empty(t, w.get(at).Header().Get("Location"), "it is for Ollama alone")
}
