package fetch

import (
	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/manifest"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// hint is of what a manifest says of a blob: it may be wrong, and counts for its own repository.
type hint struct {
	repo   content.Repository
	digest digest.Digest
}

// sizeNamed is the size that a request or a manifest of its repository names; 0: none does.
func (fr *Fetcher) sizeNamed(req content.Request) int64 {
	if req.Size != 0 {
		return req.Size
	}
	size, _ := fr.hints.Get(hint{req.Repository, req.Digest})
	return size
}

// learnFrom reads a manifest that has arrived, remembers the sizes and the order of the blobs that it lists, and
// returns its media type; upstream called it declared.
func (fr *Fetcher) learnFrom(repo content.Repository, ing *store.Ingest, declared string) string {
	if ing.Size() > manifest.MaxSize {
		return declared
	}
	data := make([]byte, ing.Size())
	for i := range ing.Len() {
		off, n := ing.Cut().Range(i)
		if got, err := ing.ReadChunk(i, data[off:off+n], 0); int64(got) < n {
			fr.log.Warn("manifest not read", "digest", ing.Digest(), "error", err)
			return declared
		}
	}
	m, err := manifest.Parse(data)
	if err != nil {
		fr.log.Debug("manifest not parsed", "digest", ing.Digest(), "error", err)
		return declared
	}
	for _, d := range append(m.Blobs(), m.Manifests...) {
		if d.Size > 0 {
			fr.hints.Add(hint{repo, d.Digest}, d.Size)
		}
	}
	fr.learnOrder(repo, m.Layers)
	return m.Type(declared)
}
