package main

import (
	"archive/tar"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// host is a registry that exists under this name in the agents' configuration only.
	host       = "images.demo"
	repository = "shoal/demo"
	tag        = "latest"
)

// layerShares are the sizes of the layers, in sixteenths of the image.
var layerShares = []int64{1, 2, 4, 9}

// image is an image whose blobs lie in a directory.
type image struct {
	dir      string
	manifest []byte
	blobs    []v1.Descriptor // config and layers
}

// size is the bytes of config and layers.
func (i image) size() int64 {
	var total int64
	for _, b := range i.blobs {
		total += b.Size
	}
	return total
}

// makeImage makes an image of about size bytes. Each layer is a tar file with one file of random bytes, so that
// compression on the way or a cache of an earlier run cannot help.
func makeImage(dir string, size int64) (image, error) {
	img := image{dir: dir}
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS: v1.RootFS{Type: "layers"}}
	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for i, share := range layerShares {
		layer, err := writeBlob(dir, v1.MediaTypeImageLayer, func(w io.Writer) error {
			return writeLayer(w, i, size/16*share)
		})
		if err != nil {
			return img, fmt.Errorf("layer %d: %w", i, err)
		}
		manifest.Layers = append(manifest.Layers, layer)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.Digest)
	}
	var err error
	manifest.Config, err = writeBlob(dir, v1.MediaTypeImageConfig, func(w io.Writer) error {
		return json.NewEncoder(w).Encode(config)
	})
	if err != nil {
		return img, fmt.Errorf("config: %w", err)
	}
	img.blobs = append(manifest.Layers, manifest.Config) //nolint:gocritic // a list of its own
	img.manifest, err = json.Marshal(manifest)
	return img, err
}

func writeLayer(w io.Writer, i int, size int64) error {
	t := tar.NewWriter(w)
	name := fmt.Sprintf("layer-%d", i)
	if err := t.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o644}); err != nil {
		return err
	}
	var seed [32]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return err
	}
	if _, err := io.CopyN(t, mathrand.NewChaCha8(seed), size); err != nil {
		return err
	}
	return t.Close()
}

// writeBlob writes a blob under its digest: <dir>/sha256/<hex>.
func writeBlob(dir, mediaType string, write func(io.Writer) error) (v1.Descriptor, error) {
	dir = filepath.Join(dir, digest.SHA256.String())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return v1.Descriptor{}, err
	}
	f, err := os.CreateTemp(dir, "new-")
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer f.Close()
	sum := sha256.New()
	if err := write(io.MultiWriter(f, sum)); err != nil {
		return v1.Descriptor{}, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return v1.Descriptor{}, err
	}
	name := hex.EncodeToString(sum.Sum(nil))
	return v1.Descriptor{MediaType: mediaType, Digest: digest.NewDigestFromEncoded(digest.SHA256, name), Size: size},
		os.Rename(f.Name(), filepath.Join(dir, name))
}
