package registry_test

import (
	"log/slog"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/pulls"
	"github.com/shoal-cache/shoal/node/internal/registry"
)

func TestRecord_HearsOfAPullAndOfWhyItFailed(t *testing.T) {
	t.Parallel()
	record := pulls.New(slog.New(slog.DiscardHandler), nil)
	w := newWorld(t, func(o *registry.Options) { o.Record = record })
	img := w.origin.pushImage(t, "team/app", "v1", "x")
	require.Equal(t, http.StatusOK, w.do(http.MethodGet, "/v2/team/app/manifests/v1").Code)
	blob := w.do(http.MethodGet, "/v2/team/app/blobs/"+img.layer.String())
	require.Equal(t, http.StatusOK, blob.Code)
	require.Equal(t, http.StatusNotFound, w.do(http.MethodGet, "/v2/team/app/manifests/v2").Code)
	require.Equal(t, http.StatusOK, w.do(http.MethodGet, "/v2/").Code)

	all := record.Pulls()
	require.Len(t, all, 2, "each tag is a pull of its own, and questions for the base are none")
	failed, pulled := all[0], all[1]
	require.Equal(t, images+"/team/app:v2", failed.Image())
	require.Len(t, failed.Parts, 1)
	require.Equal(t, images+"/team/app:v1", pulled.Image())
	require.Len(t, pulled.Parts, 2)
	manifest, layer, missing := pulled.Parts[0], pulled.Parts[1], failed.Parts[0]
	require.Equal(t, img.manifest.String(), manifest.Digest)
	require.Positive(t, manifest.Bytes)
	require.Positive(t, manifest.Resolve)
	require.GreaterOrEqual(t, manifest.Authorize, manifest.Resolve)
	require.GreaterOrEqual(t, manifest.FirstByte, manifest.Authorize)
	require.EqualValues(t, blob.Body.Len(), layer.Bytes)
	require.Equal(t, "404", missing.Code)
	require.NotEmpty(t, missing.Problem)
}
