package e2e

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/internal/layer"
)

const mib = 1 << 20

// image is an image in one of the cluster's registries.
type image struct {
	ref  string // as pods name it
	id   string // as runtimes name it, its config's digest
	size int64  // of its blobs
	own  int64  // of its layers that no other image has
}

// registry is one of the cluster's registries. It speaks plain HTTP.
type registry struct{ address, user, password string }

// push makes an image that no registry or node has seen, of about the given size, and pushes it. It runs the cluster's
// probe, a small web server.
func (r registry) push(t *testing.T, repository string, mebibytes, layers int) image {
	t.Helper()
	program, err := os.ReadFile(setting(t, "SHOAL_E2E_PROBE"))
	require.NoError(t, err)
	files := []map[string][]byte{{"probe": program}}
	own := 0
	for i := range layers {
		data := make([]byte, mebibytes*mib/layers)
		_, _ = rand.Read(data) // never fails
		files = append(files, map[string][]byte{fmt.Sprintf("data/%d", i): data})
		own += len(data)
	}
	img := r.pushFiles(t, repository, files...)
	img.own = int64(own)
	return img
}

// pushFiles pushes an image with a layer for each set of files.
func (r registry) pushFiles(t *testing.T, repository string, layers ...map[string][]byte) image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, files := range layers {
		var err error
		img, err = mutate.AppendLayers(img, static.NewLayer(layer.Archive(t, files), types.OCIUncompressedLayer))
		require.NoError(t, err)
	}
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config.Entrypoint = []string{"/probe"}
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)

	tag, err := name.NewTag(r.address+"/"+repository+":1", name.Insecure)
	require.NoError(t, err)
	options := []remote.Option{remote.WithContext(t.Context())}
	if r.user != "" {
		options = append(options, remote.WithAuth(&authn.Basic{Username: r.user, Password: r.password}))
	}
	require.NoError(t, remote.Write(tag, img, options...))
	id, err := img.ConfigName()
	require.NoError(t, err)
	return image{ref: r.address + "/" + repository + ":1", id: id.String(), size: blobBytes(t, img)}
}

// pushModel pushes an artifact of the ModelPack specification with one layer, of random weights.
func (r registry) pushModel(t *testing.T, repository string, size int) image {
	t.Helper()
	data := make([]byte, size)
	_, _ = rand.Read(data) // never fails
	weights := layer.Archive(t, map[string][]byte{"weights": data})
	tag, err := name.NewTag(r.address+"/"+repository+":1", name.Insecure)
	require.NoError(t, err)
	blob := func(data []byte, kind string) map[string]any {
		l := static.NewLayer(data, types.MediaType(kind))
		require.NoError(t, remote.WriteLayer(tag.Context(), l, remote.WithContext(t.Context())))
		return map[string]any{"mediaType": kind, "digest": digest.FromBytes(data), "size": len(data)}
	}
	config, err := json.Marshal(map[string]any{
		"descriptor": map[string]any{"name": repository},
		"config":     map[string]any{"format": "text"},
		"modelfs":    map[string]any{"type": "layers", "diffIds": []any{digest.FromBytes(weights)}},
	})
	require.NoError(t, err)
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": types.OCIManifestSchema1,
		"artifactType": "application/vnd.cncf.model.manifest.v1+json",
		"config":       blob(config, "application/vnd.cncf.model.config.v1+json"),
		"layers":       []any{blob(weights, "application/vnd.cncf.model.weight.v1.tar")},
	})
	require.NoError(t, err)
	require.NoError(t, remote.Put(tag, rawManifest(manifest), remote.WithContext(t.Context())))
	return image{ref: tag.String(), size: int64(len(weights) + len(config)), own: int64(size)}
}

// rawManifest is a manifest as it is.
type rawManifest []byte

func (m rawManifest) RawManifest() ([]byte, error)        { return m, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func blobBytes(t *testing.T, img v1.Image) int64 {
	t.Helper()
	manifest, err := img.Manifest()
	require.NoError(t, err)
	total := manifest.Config.Size
	for _, layer := range manifest.Layers {
		total += layer.Size
	}
	return total
}
