package clients

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/internal/layer"
)

const mib = 1 << 20

// layerSizes are such that a layer has many chunks, one has a few and an odd rest, and one less than a chunk.
var layerSizes = []int{9 * mib, 3*mib + 12345, 321}

// image is an image in a registry.
type image struct {
	registry        *registry
	repository, tag string
	// size is that of all blobs in bytes.
	size int64
	// blobs are config and layers as the registry has them; plain are config and layers without compression.
	blobs, plain []digest.Digest
	// files are what is in the image, by path.
	files map[string][]byte
}

// unique is the name of a repository that no agent remembers a tag of.
func unique() string { return "team/" + strings.ToLower(rand.Text()) }

// push makes an image of random bytes that nobody has seen and pushes it.
func (r *registry) push(t *testing.T, repository string) image {
	t.Helper()
	files := map[string][]byte{}
	var layers []mutate.Addendum
	for _, size := range layerSizes {
		name, data := rand.Text(), randomBytes(size)
		files[name] = data
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(layer.Archive(t, map[string][]byte{name: data}))), nil
		}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestSpeed))
		require.NoError(t, err)
		layers = append(layers, mutate.Addendum{Layer: layer})
	}
	return r.pushLayers(t, repository, files, layers...)
}

// pushLayers pushes an image of these layers, which hold these files.
func (r *registry) pushLayers(t *testing.T, repository string, files map[string][]byte,
	layers ...mutate.Addendum) image {
	t.Helper()
	img, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1),
		types.OCIConfigJSON), layers...)
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)

	pushed := image{registry: r, repository: repository, tag: "1", files: files}
	tag, err := name.NewTag(r.address+"/"+repository+":"+pushed.tag, name.Insecure)
	require.NoError(t, err)
	options := []remote.Option{remote.WithContext(t.Context())}
	if r.private {
		options = append(options, remote.WithAuth(&authn.Basic{Username: user, Password: password}))
	}
	require.NoError(t, remote.Write(tag, img, options...))

	manifest, err := img.Manifest()
	require.NoError(t, err)
	for _, d := range append([]v1.Descriptor{manifest.Config}, manifest.Layers...) {
		pushed.size += d.Size
		pushed.blobs = append(pushed.blobs, digest.Digest(d.Digest.String()))
	}
	pushed.plain = append(pushed.plain, pushed.blobs[0])
	for _, d := range config.RootFS.DiffIDs {
		pushed.plain = append(pushed.plain, digest.Digest(d.String()))
	}
	return pushed
}

// pushBlob pushes an image whose only layer is some random bytes, and returns those.
func (r *registry) pushBlob(t *testing.T, repository string, size int) (image, digest.Digest, []byte) {
	t.Helper()
	data := randomBytes(size)
	img := r.pushLayers(t, repository, nil, mutate.Addendum{Layer: static.NewLayer(data, types.OCIUncompressedLayer)})
	return img, img.blobs[1], data
}

// reference is the image's name, as a runtime with a mirror is given it.
func (i image) reference() string { return i.registry.host + "/" + i.repository + ":" + i.tag }

// through is the image's name for a client that knows nothing of mirrors and asks the agent.
func (i image) through(a *agent) string {
	if a.defaultRegistry == i.registry.host {
		return a.front + "/" + i.repository + ":" + i.tag
	}
	return a.front + "/" + i.reference()
}

// blobURL is where an agent has a blob of the image.
func (i image) blobURL(a *agent, d digest.Digest) string {
	return "http://" + a.front + "/v2/" + i.repository + "/blobs/" + d.String() + "?ns=" + i.registry.host
}

// blobPath is where a blob lies in a folder of the OCI image layout, which is that of containerd's content store too.
func blobPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded())
}

// requireBlobs reads the blobs in such a folder.
func requireBlobs(t *testing.T, dir string, want []digest.Digest) {
	t.Helper()
	for _, d := range want {
		f, err := os.Open(blobPath(dir, d))
		require.NoError(t, err)
		got, err := d.Algorithm().FromReader(f)
		f.Close()
		require.NoError(t, err)
		require.Equal(t, d, got)
	}
}

func randomBytes(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.Read(data) // never fails
	return data
}
