package main

import (
	"archive/tar"
	"bytes"
	"encoding/pem"
	"fmt"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

const spdxMediaType = "application/spdx+json"

// metadata is what an image says of itself.
type metadata struct {
	name, title, version, revision, user string
	created                              v1.Time
}

// program is one static executable and the platform it is for.
type program struct {
	file     string
	platform v1.Platform
}

type file struct {
	path string // without a leading slash
	mode int64
	data []byte
}

// writeLayout writes the images of all programs and returns the digest of the index that joins them.
func writeLayout(dir string, m metadata, programs []program) (v1.Hash, error) {
	if err := os.RemoveAll(dir); err != nil {
		return v1.Hash{}, err
	}
	target, err := layout.Write(dir, empty.Index)
	if err != nil {
		return v1.Hash{}, err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range programs {
		img, err := image(m, p)
		if err != nil {
			return v1.Hash{}, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img,
			Descriptor: v1.Descriptor{Platform: &p.platform}})
		sbom, err := sbomReferrer(m, p, img)
		if err != nil {
			return v1.Hash{}, err
		}
		if err := target.AppendImage(sbom); err != nil {
			return v1.Hash{}, err
		}
	}
	index = mutate.Annotations(index, m.annotations()).(v1.ImageIndex)
	if err := target.AppendIndex(index,
		layout.WithAnnotations(map[string]string{imagespec.AnnotationRefName: m.version})); err != nil {
		return v1.Hash{}, err
	}
	return index.Digest()
}

func image(m metadata, p program) (v1.Image, error) {
	data, err := os.ReadFile(p.file)
	if err != nil {
		return nil, err
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	// The certificates come first: their layer stays the same from version to version.
	for _, files := range [][]file{baseFiles(), {{path: m.name, mode: 0o755, data: data}}} {
		layer, err := fileLayer(files, m.created)
		if err != nil {
			return nil, err
		}
		img, err = mutate.Append(img, mutate.Addendum{Layer: layer,
			History: v1.History{Created: m.created, CreatedBy: "hack/images"}})
		if err != nil {
			return nil, err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = p.platform.OS, p.platform.Architecture, m.created
	config.Config = v1.Config{Entrypoint: []string{"/" + m.name}, User: m.user, Labels: m.annotations()}
	img, err = mutate.ConfigFile(img, config)
	if err != nil {
		return nil, err
	}
	return mutate.Annotations(img, m.annotations()).(v1.Image), nil
}

func (m metadata) annotations() map[string]string {
	return map[string]string{
		imagespec.AnnotationTitle:       m.name,
		imagespec.AnnotationDescription: m.title,
		imagespec.AnnotationVersion:     m.version,
		imagespec.AnnotationRevision:    m.revision,
		imagespec.AnnotationCreated:     m.created.Format("2006-01-02T15:04:05Z07:00"),
		imagespec.AnnotationSource:      "https://github.com/shoal-cache/shoal",
		imagespec.AnnotationLicenses:    "Apache-2.0",
	}
}

// baseFiles is what an image holds besides the program: the roots by which a registry's certificate is checked.
// Roots that Mozilla trusts only under constraints are left out, for a PEM file cannot say them.
func baseFiles() []file {
	var roots bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			_ = pem.Encode(&roots, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // a Buffer takes all
		}
	}
	return []file{{path: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, data: roots.Bytes()}}
}

func fileLayer(files []file, modified v1.Time) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.path, Mode: f.mode, Size: int64(len(f.data)),
			ModTime: modified.Time}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
}

// sbomReferrer makes the artifact that says which modules are in an image. Its type is that of its config, as the OCI
// image specification 1.1 has it for manifests without an artifactType.
func sbomReferrer(m metadata, p program, subject v1.Image) (v1.Image, error) {
	document, err := spdx(m, p)
	if err != nil {
		return nil, fmt.Errorf("SBOM of %s: %w", p.file, err)
	}
	descriptor, err := partial.Descriptor(subject)
	if err != nil {
		return nil, err
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, spdxMediaType)
	img, err = mutate.AppendLayers(img, static.NewLayer(document, spdxMediaType))
	if err != nil {
		return nil, err
	}
	return mutate.Subject(img, v1.Descriptor{MediaType: descriptor.MediaType, Size: descriptor.Size,
		Digest: descriptor.Digest}).(v1.Image), nil
}

// pushLayout pushes all that a layout names: what has a reference name by that tag, the rest by digest.
func pushLayout(dir string, repository name.Repository) error {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, d := range manifest.Manifests {
		if d.MediaType.IsIndex() {
			tag := repository.Tag(d.Annotations[imagespec.AnnotationRefName])
			child, err := index.ImageIndex(d.Digest)
			if err != nil {
				return err
			}
			if err := remote.WriteIndex(tag, child); err != nil {
				return fmt.Errorf("push %s: %w", tag, err)
			}
			fmt.Printf("%s@%s\n", tag, d.Digest)
		}
	}
	// Referrers after their subjects.
	for _, d := range manifest.Manifests {
		if d.MediaType.IsImage() {
			child, err := index.Image(d.Digest)
			if err != nil {
				return err
			}
			if err := remote.Write(repository.Digest(d.Digest.String()), child); err != nil {
				return fmt.Errorf("push SBOM %s: %w", d.Digest, err)
			}
		}
	}
	return nil
}
