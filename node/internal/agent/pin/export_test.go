package pin

import (
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/manifest"
)

// ManifestDigests are the digests that a manifest refers to.
func ManifestDigests(data []byte) ([]digest.Digest, error) {
	m, err := manifest.Parse(data)
	if err != nil {
		return nil, err
	}
	var all []digest.Digest
	for _, d := range append(pulled(m), m.Manifests...) {
		all = append(all, d.Digest)
	}
	return all, nil
}
