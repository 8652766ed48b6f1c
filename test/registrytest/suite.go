package registrytest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// Suite is what each registry for tests must do with an image that it has. The first layer has over 20 bytes.
func Suite(t *testing.T, h http.Handler, repository, tag string, manifest digest.Digest) {
	t.Helper()
	server := httptest.NewServer(h)
	defer server.Close()
	ref, err := name.ParseReference(server.Listener.Addr().String() + "/" + repository + ":" + tag)
	require.NoError(t, err)
	image, err := remote.Image(ref)
	require.NoError(t, err)
	require.Equal(t, manifest, Closure(t, image)[0])
	layers, err := image.Layers()
	require.NoError(t, err)
	var first []byte
	for _, layer := range layers {
		body, err := layer.Compressed()
		require.NoError(t, err)
		data, err := io.ReadAll(body) // the library verifies the digest as it reads
		require.NoError(t, err)
		require.NoError(t, body.Close())
		if first == nil {
			first = data
		}
	}
	raw, err := image.RawManifest()
	require.NoError(t, err)

	blob, unknown := "/blobs/"+digest.FromBytes(first).String(), digest.FromString("unknown").String()
	for sentence, c := range map[string]struct {
		method, path, ranges string
		status               int
		body                 []byte
	}{
		"HEAD tells of a blob":  {"HEAD", blob, "", http.StatusOK, nil},
		"GET sends it":          {"GET", blob, "", http.StatusOK, first},
		"a range is sent alone": {"GET", blob, "bytes=10-19", http.StatusPartialContent, first[10:20]},
		"a range may be open":   {"GET", blob, "bytes=10-", http.StatusPartialContent, first[10:]},
		"a range behind the end is refused": {"GET", blob, "bytes=1000000000-",
			http.StatusRequestedRangeNotSatisfiable, nil},
		"an unknown blob is not found":     {"GET", "/blobs/" + unknown, "", http.StatusNotFound, nil},
		"a manifest has its tag":           {"GET", "/manifests/" + tag, "", http.StatusOK, raw},
		"a manifest has its digest":        {"GET", "/manifests/" + manifest.String(), "", http.StatusOK, raw},
		"an unknown tag is not found":      {"GET", "/manifests/unknown", "", http.StatusNotFound, nil},
		"an unknown manifest is not found": {"GET", "/manifests/" + unknown, "", http.StatusNotFound, nil},
	} {
		q, err := http.NewRequestWithContext(t.Context(), c.method, server.URL+"/v2/"+repository+c.path, nil)
		require.NoError(t, err)
		if c.ranges != "" {
			q.Header.Set("Range", c.ranges)
		}
		answer, err := server.Client().Do(q)
		require.NoError(t, err)
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		require.Equal(t, c.status, answer.StatusCode, sentence)
		if c.body != nil {
			require.Equal(t, c.body, body, sentence)
		}
		if c.status == http.StatusOK {
			require.NotEmpty(t, answer.Header.Get("Docker-Content-Digest"), sentence)
		}
	}
}
