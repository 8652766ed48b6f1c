package pin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"

	crv1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// maxManifest is the largest manifest that is read, in bytes. Registries need take no more than 4 MiB
	// (distribution specification, "Pushing Manifests").
	maxManifest = 8 << 20
	// maxBlobs bounds the closure of one artifact, whatever its manifests say.
	maxBlobs = 16384
	// maxDepth bounds indexes within indexes.
	maxDepth = 8
)

// manifest is what an index and an image manifest have in common for us: what they refer to. blobs is of the artifact
// manifests that came before OCI 1.1.
type manifest struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Blobs         []ocispec.Descriptor `json:"blobs"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
}

// parseManifest reads data as a manifest. It fails for what is none.
func parseManifest(data []byte) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformedManifest, err)
	}
	if m.Config == nil && m.Layers == nil && m.Manifests == nil && m.Blobs == nil {
		return nil, fmt.Errorf("%w: it refers to nothing", errMalformedManifest)
	}
	for _, d := range slices.Concat(m.Layers, m.Blobs, m.Manifests, m.config()) {
		if _, err := content.DigestCID(d.Digest); err != nil {
			return nil, fmt.Errorf("%w: %w", errMalformedManifest, err)
		}
		if d.Size < 0 || d.Size > content.MaxSize {
			return nil, fmt.Errorf("%w: %s has a size of %d bytes", errMalformedManifest, d.Digest, d.Size)
		}
	}
	return &m, nil
}

func (m *manifest) config() []ocispec.Descriptor {
	if m.Config == nil {
		return nil
	}
	return []ocispec.Descriptor{*m.Config}
}

// blobs are those that a client pulls: not the layers that the registry does not distribute.
func (m *manifest) blobs() []ocispec.Descriptor {
	all := slices.Concat(m.config(), m.Layers, m.Blobs)
	return slices.DeleteFunc(all, func(d ocispec.Descriptor) bool { return !types.MediaType(d.MediaType).IsDistributable() })
}

func isManifestType(mediaType string) bool {
	t := types.MediaType(mediaType)
	return t.IsIndex() || t.IsImage()
}

// platforms are what a pin keeps of an index.
type platforms struct {
	all    bool
	wanted []crv1.Platform
}

// parsePlatforms reads PinAssignment.platforms: none stands for the node's own, "*" for all.
func parsePlatforms(names []string) (platforms, error) {
	if slices.Contains(names, "*") {
		return platforms{all: true}, nil
	}
	if len(names) == 0 {
		names = []string{runtime.GOOS + "/" + runtime.GOARCH}
	}
	var p platforms
	for _, name := range names {
		parsed, err := crv1.ParsePlatform(name)
		if err != nil {
			return p, fmt.Errorf("platform %q: %w", name, err)
		}
		p.wanted = append(p.wanted, *parsed)
	}
	return p, nil
}

// choose picks the manifests of an index that are kept: those of the wanted platforms, and those that are of no platform.
// It fails with errNoSuchPlatform where a wanted one is missing.
func (p platforms) choose(index []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if p.all || !slices.ContainsFunc(index, func(d ocispec.Descriptor) bool { return d.Platform != nil }) {
		return index, nil
	}
	var chosen []ocispec.Descriptor
	found := make([]bool, len(p.wanted))
	for _, d := range index {
		keep := d.Platform == nil
		for i, want := range p.wanted {
			if d.Platform != nil && platformOf(d).Satisfies(want) {
				keep, found[i] = true, true
			}
		}
		if keep {
			chosen = append(chosen, d)
		}
	}
	if i := slices.Index(found, false); i >= 0 {
		return nil, fmt.Errorf("%w %s", errNoSuchPlatform, p.wanted[i].String())
	}
	return chosen, nil
}

// platformOf is d's platform in its full form: arm64 without a variant is arm64/v8, says the image specification.
func platformOf(d ocispec.Descriptor) crv1.Platform {
	p := crv1.Platform{
		OS: d.Platform.OS, Architecture: d.Platform.Architecture, Variant: d.Platform.Variant,
		OSVersion: d.Platform.OSVersion, OSFeatures: d.Platform.OSFeatures,
	}
	if p.Architecture == "arm64" && p.Variant == "" {
		p.Variant = "v8"
	}
	return p
}

// closure is everything that one artifact needs, its root first and each manifest before what it refers to.
type closure struct {
	repo      content.Repository
	platforms platforms
	blobs     []content.Request
	seen      map[digest.Digest]bool
	// get commits a blob to the store; read returns the bytes of one that is there. A get that is content.ErrNotFound
	// in a closure of what is held ends the walk below it.
	get  func(context.Context, content.Request) error
	read func(context.Context, content.Request) ([]byte, error)
	// held walks only what the store holds.
	held bool
}

// add lists a blob. It tells whether it is new.
func (c *closure) add(req content.Request) (bool, error) {
	if c.seen[req.Digest] {
		return false, nil
	}
	if len(c.blobs) >= maxBlobs {
		return false, fmt.Errorf("%w: more than %d blobs", errMalformedManifest, maxBlobs)
	}
	c.seen[req.Digest] = true
	c.blobs = append(c.blobs, req)
	return true, nil
}

// walk adds a root and all below it. mediaType is empty where nobody knows whether the root is a manifest.
func (c *closure) walk(ctx context.Context, root digest.Digest, mediaType string, size int64) error {
	req := content.Request{Repository: c.repo, Digest: root, Size: size}
	if mediaType != "" && !isManifestType(mediaType) {
		_, err := c.add(req)
		return err
	}
	if c.repo != (content.Repository{}) {
		req.Kind = content.Manifest
	}
	err := c.get(ctx, req)
	if mediaType == "" && req.Kind == content.Manifest && errors.Is(err, content.ErrNotFound) && !c.held {
		req.Kind = content.Blob
		_, err := c.add(req)
		return err
	}
	return c.manifest(ctx, req, mediaType != "", 0, err)
}

// manifest adds the manifest req, whose get ended with err, and all below it. Where it is not sure to be a manifest, it may
// turn out to be a blob.
func (c *closure) manifest(ctx context.Context, req content.Request, sure bool, depth int, err error) error {
	if errors.Is(err, content.ErrNotFound) && c.held {
		return nil
	}
	if err != nil {
		return err
	}
	if fresh, err := c.add(req); err != nil || !fresh {
		return err
	}
	data, err := c.read(ctx, req)
	if err == nil {
		var m *manifest
		if m, err = parseManifest(data); err == nil {
			return c.below(ctx, m, depth)
		}
	}
	if !sure && errors.Is(err, errMalformedManifest) {
		c.blobs[len(c.blobs)-1].Kind = content.Blob
		return nil
	}
	return fmt.Errorf("manifest %s: %w", req.Digest, err)
}

func (c *closure) below(ctx context.Context, m *manifest, depth int) error {
	if depth >= maxDepth {
		return fmt.Errorf("%w: indexes are nested more than %d deep", errMalformedManifest, maxDepth)
	}
	for _, d := range m.blobs() {
		if _, err := c.add(content.Request{Repository: c.repo, Digest: d.Digest, Size: d.Size}); err != nil {
			return err
		}
	}
	chosen, err := c.platforms.choose(m.Manifests)
	if err != nil {
		return err
	}
	for _, d := range chosen {
		req := content.Request{Repository: c.repo, Kind: content.Manifest, Digest: d.Digest, Size: d.Size}
		if err := c.manifest(ctx, req, isManifestType(d.MediaType), depth+1, c.get(ctx, req)); err != nil {
			return err
		}
	}
	return nil
}

// readAll reads a whole manifest.
func readAll(ctx context.Context, f Fetcher, req content.Request) ([]byte, error) {
	r, err := f.Open(ctx, req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	if r.Size() > maxManifest {
		return nil, fmt.Errorf("%w: %d bytes; at most %d", errMalformedManifest, r.Size(), maxManifest)
	}
	rc, err := r.Range(ctx, 0, r.Size())
	if err != nil {
		return nil, err
	}
	defer func() { _ = rc.Close() }()
	return io.ReadAll(rc)
}
