package fetch

import (
	"encoding/json"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-cache/shoal/node/internal/store"
)

// maxManifest bounds what is parsed as a manifest: 8 MiB.
const maxManifest = 8 << 20

// learnFrom reads a manifest that has arrived, remembers the sizes and the order of the blobs that it lists, and returns its media type:
// what upstream called it, else what it calls itself.
func (fr *Fetcher) learnFrom(ing *store.Ingest, mediaType string) string {
	if ing.Size() > maxManifest {
		return mediaType
	}
	data := make([]byte, 0, ing.Size())
	for i := range ing.Len() {
		chunk := make([]byte, min(ing.Size()-int64(len(data)), 1<<20))
		if n, err := ing.ReadChunk(i, chunk, 0); n < len(chunk) {
			fr.log.Warn("manifest not read", "digest", ing.Digest(), "error", err)
			return mediaType
		}
		data = append(data, chunk...)
	}
	var m struct {
		MediaType string               `json:"mediaType"`
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		fr.log.Debug("manifest not parsed", "digest", ing.Digest(), "error", err)
		return mediaType
	}
	descriptors := slices.Concat(m.Layers, m.Manifests)
	if m.Config != nil {
		descriptors = append(descriptors, *m.Config)
	}
	for _, d := range descriptors {
		if d.Size > 0 && d.Digest.Validate() == nil {
			fr.sizes.Add(d.Digest, d.Size)
		}
	}
	fr.learnOrder(m.Layers)
	switch {
	case mediaType != "":
		return mediaType
	case m.MediaType != "":
		return m.MediaType
	case m.Manifests != nil: // the OCI types may leave the field out; Docker's may not
		return ocispec.MediaTypeImageIndex
	case m.Layers != nil || m.Config != nil:
		return ocispec.MediaTypeImageManifest
	}
	return ""
}
