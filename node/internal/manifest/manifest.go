// Package manifest reads the manifests of the OCI image specification and of its forerunners: what a manifest refers
// to, and of which type it is. It is the one parser, the one size limit and the one rule for a type that is not stated.
// It does no I/O.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// MaxSize is the largest manifest that is taken or given, in bytes. The distribution specification asks registries to
// take manifests of at least 4 MiB (section "Pushing Manifests").
const MaxSize = 8 << 20

// Times is how many times over a manifest is in memory once it is parsed: a descriptor takes more than its text.
const Times = 8

// ErrMalformed is the error of bytes that are no manifest.
var ErrMalformed = errors.New("malformed manifest")

// The media types that image-spec has no constant of.
const (
	// schema1 and schema1Signed are those of version 2, schema 1, which does not name its own.
	schema1       = string(types.DockerManifestSchema1)
	schema1Signed = string(types.DockerManifestSchema1Signed)
	// artifact is that of the release candidates of image-spec 1.1.
	artifact = "application/vnd.oci.artifact.manifest.v1+json"
)

// Manifest is an index, an image manifest, or an artifact manifest.
type Manifest struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        *v1.Descriptor  `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
	Manifests     []v1.Descriptor `json:"manifests"` // of an index
	// BlobList is the blobs of an artifact manifest.
	BlobList []v1.Descriptor `json:"blobs"`
	FSLayers []struct {
		BlobSum digest.Digest `json:"blobSum"`
	} `json:"fsLayers"` // of schema 1
	Signatures []json.RawMessage `json:"signatures"` // of schema 1
}

// Parse reads a manifest. It fails with ErrMalformed for what is none: other bytes than JSON, JSON of no known kind, a
// reference that names nothing, or a size that no blob has.
func Parse(data []byte) (*Manifest, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes; at most %d", ErrMalformed, len(data), MaxSize)
	}
	if n := bytes.Count(data, []byte(",")); n > registries.MaxElements { // which would take far more once parsed
		return nil, fmt.Errorf("%w: %d elements; at most %d", ErrMalformed, n, registries.MaxElements)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if m.kind() == "" && !IsType(m.MediaType) {
		return nil, fmt.Errorf("%w: it refers to nothing", ErrMalformed)
	}
	for _, d := range slices.Concat(m.Blobs(), m.Manifests) {
		if _, err := content.DigestCID(d.Digest); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		if d.Size < 0 || d.Size > content.MaxSize {
			return nil, fmt.Errorf("%w: %s has a size of %d bytes", ErrMalformed, d.Digest, d.Size)
		}
	}
	return &m, nil
}

// Blobs are the config and the layers, the config first. Layers that only another place has are among them; see
// Distributable. Those of schema 1 have no size.
func (m *Manifest) Blobs() []v1.Descriptor {
	var all []v1.Descriptor
	if m.Config != nil {
		all = append(all, *m.Config)
	}
	all = slices.Concat(all, m.Layers, m.BlobList)
	for _, l := range m.FSLayers {
		all = append(all, v1.Descriptor{Digest: l.BlobSum})
	}
	return all
}

// Distributable reports whether registries give out the blob that d describes. Others are to be had elsewhere.
func Distributable(d v1.Descriptor) bool {
	return !strings.Contains(d.MediaType, "foreign") && !strings.Contains(d.MediaType, "nondistributable")
}

// Type is the media type of the manifest: what it says itself, so that every node says the same of it, whoever the node
// got it from. Else it is what was declared of the manifest. Else it is what the fields make of it, because the
// specification allows OCI documents to leave the type out. It is "" where nothing is certain.
func (m *Manifest) Type(declared string) string {
	switch {
	case m.MediaType != "":
		return m.MediaType
	case declared != "":
		return declared
	}
	return m.kind()
}

// kind is the media type that the fields make of the manifest, "" where they leave it open.
func (m *Manifest) kind() string {
	switch {
	case m.SchemaVersion == 1 && len(m.FSLayers) > 0 && len(m.Signatures) > 0:
		return schema1Signed
	case m.SchemaVersion == 1 && len(m.FSLayers) > 0:
		return schema1
	case m.Manifests != nil && m.Config == nil && m.Layers == nil:
		return v1.MediaTypeImageIndex
	case (m.Config != nil || m.Layers != nil) && m.Manifests == nil:
		return v1.MediaTypeImageManifest
	case m.BlobList != nil:
		return artifact
	}
	return ""
}

// IsType reports whether a media type, as a descriptor or a registry states it, is one of those that manifests are
// known to have. Registries may answer with any other.
func IsType(mediaType string) bool {
	mediaType, _, _ = strings.Cut(mediaType, ";")
	t := types.MediaType(strings.TrimSpace(mediaType))
	return t.IsIndex() || t.IsImage() || t.IsSchema1() || t == artifact
}
