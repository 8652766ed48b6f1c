package admin

import (
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-cache/shoal/api/view"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/manifest"
)

// Contents is what a node has, as far as an image's view needs it. Nothing in it asks another node or a registry.
type Contents struct {
	// Tag is the digest that a tag was last known to name.
	Tag func(repo content.Repository, tag string) (digest.Digest, bool)
	// Held is the size of a blob that is here.
	Held func(d digest.Digest) (size int64, ok bool)
	// Read gives a manifest that is here.
	Read func(d digest.Digest) ([]byte, error)
}

// maxImageParts bounds the view of an image: an index may list many platforms.
const maxImageParts = 4096

// Image tells what is here of an image, by its reference or digest.
func (c Contents) Image(name string) (view.Image, error) {
	v := view.Image{Name: name}
	root, err := digest.Parse(name)
	if err != nil {
		ref, err := reference.ParseDockerRef(name)
		if err != nil {
			return v, fmt.Errorf("%q names no image: %w; write registry.example/team/app:1.2, or a digest", name, err)
		}
		repo := content.Repository{Registry: reference.Domain(ref), Name: reference.Path(ref)}
		v.Name = ref.String()
		switch r := ref.(type) {
		case reference.Digested:
			root = r.Digest()
		case reference.Tagged:
			known, ok := c.Tag(repo, r.Tag())
			if !ok {
				return v, nil
			}
			root = known
		}
	}
	v.Digest = root.String()
	seen := map[digest.Digest]bool{}
	v.Complete = c.add(&v, seen, v1.Descriptor{Digest: root}, "manifest")
	return v, nil
}

// add adds a part and all that it refers to, and reports whether they make something whole: of an index one of its
// manifests is enough.
func (c Contents) add(v *view.Image, seen map[digest.Digest]bool, d v1.Descriptor, kind string) bool {
	if seen[d.Digest] || len(v.Parts) >= maxImageParts {
		return true
	}
	seen[d.Digest] = true
	size, held := c.Held(d.Digest)
	if !held {
		size = d.Size
	}
	v.Parts = append(v.Parts, view.ImagePart{Digest: d.Digest.String(), Kind: kind, Size: size, Held: held,
		MediaType: d.MediaType})
	if d.Platform != nil {
		v.Parts[len(v.Parts)-1].Platform = d.Platform.OS + "/" + d.Platform.Architecture
	}
	if !held || kind != "manifest" || size > manifest.MaxSize {
		return held
	}
	at := len(v.Parts) - 1
	data, err := c.Read(d.Digest)
	if err != nil {
		return false
	}
	m, err := manifest.Parse(data)
	if err != nil { // a digest of a blob
		v.Parts[at].Kind = "blob"
		return true
	}
	whole := true
	if len(m.Manifests) > 0 {
		v.Parts[at].Kind = "index"
		whole = false
		for _, child := range m.Manifests {
			// What no platform of the index is here, is no part of the image on this node.
			if _, here := c.Held(child.Digest); here {
				whole = c.add(v, seen, child, "manifest") || whole
			}
		}
	}
	for i, b := range m.Blobs() {
		what := "layer"
		if i == 0 && m.Config != nil {
			what = "config"
		}
		whole = c.add(v, seen, b, what) && whole
	}
	return whole
}
