package e2e

import (
	"crypto/rand"
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
