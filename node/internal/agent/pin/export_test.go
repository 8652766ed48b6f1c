package pin

import "github.com/opencontainers/go-digest"

// ManifestDigests are the digests that a manifest refers to.
func ManifestDigests(data []byte) ([]digest.Digest, error) {
	m, err := parseManifest(data)
	if err != nil {
		return nil, err
	}
	var all []digest.Digest
	for _, d := range append(m.blobs(), m.Manifests...) {
		all = append(all, d.Digest)
	}
	return all, nil
}
