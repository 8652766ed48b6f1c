// Package origin is the registry that a benchmark pulls from: images of random bytes made beforehand, and a server that
// hands them out from the page cache and counts every byte and request. It may have the manner of an odd registry.
package origin

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image that was written to a directory.
type Image struct {
	Repository, Tag string
	Manifest        v1.Manifest
	// Digest is the manifest's.
	Digest digest.Digest
}

// Size is the bytes of the config and all layers.
func (m Image) Size() int64 {
	total := m.Manifest.Config.Size
	for _, l := range m.Manifest.Layers {
		total += l.Size
	}
	return total
}

// Layer describes a layer to be made. Equal layers have equal bytes; so a layer that two images share is one that both
// list.
type Layer struct {
	Seed uint64
	// Size is in bytes.
	Size int64
}

// Write makes an image of random, and so incompressible, layers below dir.
func Write(dir, repository, tag string, layers []Layer) (Image, error) {
	config, err := json.Marshal(v1.Image{Platform: v1.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Author: repository + ":" + tag})
	if err != nil {
		return Image{}, fmt.Errorf("image config: %w", err)
	}
	img := Image{Repository: repository, Tag: tag, Manifest: v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
	}}
	if img.Manifest.Config, err = writeBlob(dir, v1.MediaTypeImageConfig, bytes.NewReader(config)); err != nil {
		return Image{}, err
	}
	for _, l := range layers {
		var seed [32]byte
		for i := range 8 {
			seed[i] = byte(l.Seed >> (8 * i))
		}
		desc, err := writeBlob(dir, v1.MediaTypeImageLayer, io.LimitReader(rand.NewChaCha8(seed), l.Size))
		if err != nil {
			return Image{}, err
		}
		img.Manifest.Layers = append(img.Manifest.Layers, desc)
	}
	manifest, err := json.Marshal(img.Manifest)
	if err != nil {
		return Image{}, fmt.Errorf("image manifest: %w", err)
	}
	desc, err := writeBlob(dir, v1.MediaTypeImageManifest, bytes.NewReader(manifest))
	if err != nil {
		return Image{}, err
	}
	img.Digest = desc.Digest
	return img, writeTag(dir, repository, tag, desc.Digest)
}

func writeBlob(dir, mediaType string, r io.Reader) (v1.Descriptor, error) {
	blobs := filepath.Join(dir, "blobs")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return v1.Descriptor{}, fmt.Errorf("blob folder: %w", err)
	}
	f, err := os.CreateTemp(blobs, "new-")
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("new blob: %w", err)
	}
	defer f.Close()
	hash := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, hash), r)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("write blob: %w", err)
	}
	d := digest.NewDigest(digest.SHA256, hash)
	if err := os.Rename(f.Name(), BlobPath(dir, d)); err != nil {
		return v1.Descriptor{}, fmt.Errorf("name blob %s: %w", d, err)
	}
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: size}, nil
}

// BlobPath is the file of a blob or manifest of a directory that Write has filled.
func BlobPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", d.Encoded())
}

func tagPath(dir, repository, tag string) string {
	return filepath.Join(dir, "tags", strings.ReplaceAll(repository, "/", "_")+":"+tag)
}

func writeTag(dir, repository, tag string, d digest.Digest) error {
	path := tagPath(dir, repository, tag)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("tag folder: %w", err)
	}
	if err := os.WriteFile(path, []byte(d), 0o644); err != nil {
		return fmt.Errorf("write tag %s:%s: %w", repository, tag, err)
	}
	return nil
}
