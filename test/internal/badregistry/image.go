package badregistry

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Tag is the one tag of every image.
const Tag = "v1"

// Image is an image in memory.
type Image struct {
	Repository string
	// Private has the registry ask for User and Password, and with Bearer for a token that it gives for them.
	Private, Bearer bool
	// Digest is the manifest's.
	Digest digest.Digest
	// Manifest is its content, Blobs are config and layers in order.
	Manifest []byte
	Blobs    []v1.Descriptor

	content map[digest.Digest][]byte
}

// NewImage makes an image of random layers of the given sizes. Equal seeds make equal images.
func NewImage(repository string, private bool, seed uint64, layers ...int64) (*Image, error) {
	m := &Image{Repository: repository, Private: private, content: map[digest.Digest][]byte{}}
	config, err := json.Marshal(v1.Image{
		Platform: v1.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Author:   fmt.Sprintf("%s %x", repository, seed),
	})
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	m.add(v1.MediaTypeImageConfig, config)
	for i, size := range layers {
		var key [32]byte
		for j := range 8 {
			key[j], key[8+j] = byte(seed>>(8*j)), byte(i>>(8*j))
		}
		layer := make([]byte, size)
		_, _ = rand.NewChaCha8(key).Read(layer) // it never fails
		m.add(v1.MediaTypeImageLayer, layer)
	}
	m.Manifest, err = json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: m.Blobs[0],
		Layers: m.Blobs[1:],
	})
	if err != nil {
		return nil, fmt.Errorf("image manifest: %w", err)
	}
	m.Digest = digest.FromBytes(m.Manifest)
	m.content[m.Digest] = m.Manifest
	return m, nil
}

// Listing is an image of another repository, which anyone may read. Its manifest lists the blobs of m, and its registry
// did not look whether it has them: it has none.
func (m *Image) Listing(repository string) (*Image, error) {
	l := &Image{Repository: repository, Blobs: m.Blobs, content: map[digest.Digest][]byte{}}
	var err error
	l.Manifest, err = json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: m.Blobs[0],
		Layers: m.Blobs[1:], Annotations: map[string]string{v1.AnnotationTitle: repository},
	})
	if err != nil {
		return nil, fmt.Errorf("image manifest: %w", err)
	}
	l.Digest = digest.FromBytes(l.Manifest)
	l.content[l.Digest] = l.Manifest
	return l, nil
}

func (m *Image) add(mediaType string, content []byte) {
	d := digest.FromBytes(content)
	m.content[d] = content
	m.Blobs = append(m.Blobs, v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))})
}

// Content is the true content of a digest of the image, nil for any other.
func (m *Image) Content(d digest.Digest) []byte { return m.content[d] }

// Size is the bytes of config and layers.
func (m *Image) Size() (total int64) {
	for _, b := range m.Blobs {
		total += b.Size
	}
	return total
}
