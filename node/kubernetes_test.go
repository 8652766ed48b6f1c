package main

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	crname "github.com/google/go-containerregistry/pkg/name"
	crregistry "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/registry"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// holding is a fetcher of what the store holds.
type holding struct{ *store.Store }

func (h holding) Open(_ context.Context, req content.Request) (content.Reader, error) {
	return h.Get(req.Digest)
}

func (h holding) Stat(_ context.Context, req content.Request) (int64, string, error) {
	info, err := h.Store.Stat(req.Digest)
	return info.Size, info.MediaType, err
}

func TestWhatThePinsTellTheFrontIsServedWhileTheRegistryIsDown(t *testing.T) {
	t.Parallel()
	const password = "Basic dTpwYXNz" // u:pass
	files := crregistry.New(crregistry.Logger(log.New(io.Discard, "", 0)))
	closed := false
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if closed && r.Header.Get("Authorization") != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(origin.Close)
	held, err := store.Open(t.Context(), store.Options{Path: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, held.Close()) })
	client, err := upstream.New(upstream.Options{})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	front, err := registry.New(registry.Options{Fetcher: holding{held}, Upstream: client})
	require.NoError(t, err)

	repo := content.Repository{Registry: strings.TrimPrefix(origin.URL, "http://"), Name: "team/app"}
	push := func() (manifest, layer digest.Digest) {
		image, err := random.Image(100, 1)
		require.NoError(t, err)
		ref, err := crname.ParseReference(repo.String())
		require.NoError(t, err)
		require.NoError(t, remote.Write(ref, image))
		raw, err := image.RawManifest()
		require.NoError(t, err)
		manifest = digest.FromBytes(raw)
		require.NoError(t, held.Put(t.Context(), manifest, "", strings.NewReader(string(raw)), int64(len(raw))))
		layers, err := image.Layers()
		require.NoError(t, err)
		body, err := layers[0].Compressed()
		require.NoError(t, err)
		data, err := io.ReadAll(body)
		require.NoError(t, err)
		layer = digest.FromBytes(data)
		require.NoError(t, held.Put(t.Context(), layer, "", strings.NewReader(string(data)), int64(len(data))))
		return manifest, layer
	}
	told, toldLayer := push()
	untold, _ := push()
	closed = true

	admit := func(d digest.Digest, authorization string) error {
		return gate{front}.Admit(t.Context(), content.Request{Repository: repo, Kind: content.Manifest, Digest: d, Authorization: authorization})
	}
	require.True(t, content.Denied(admit(told, "")), "the registry's own no is told from a registry that is down")
	require.NoError(t, admit(told, password))
	origin.Close()
	require.Error(t, admit(untold, password))

	get := func(kind string, d digest.Digest, authorization string) int {
		u := "/v2/" + repo.Name + "/" + kind + "/" + d.String() + "?ns=" + url.QueryEscape(repo.Registry)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		w := httptest.NewRecorder()
		front.ServeHTTP(w, r)
		return w.Code
	}
	require.Equal(t, http.StatusOK, get("manifests", told, password))
	require.Equal(t, http.StatusOK, get("blobs", toldLayer, password))
	require.Equal(t, http.StatusUnauthorized, get("manifests", told, ""), "for the runtime to show its pull secret")
	require.NotEqual(t, http.StatusOK, get("manifests", told, "Basic b3RoZXI6eA=="))
	require.NotEqual(t, http.StatusOK, get("manifests", untold, password))
}
