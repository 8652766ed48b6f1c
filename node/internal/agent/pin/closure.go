package pin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"

	crv1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/manifest"
)

const (
	// maxBlobs bounds the closure of one artifact, whatever its manifests say.
	maxBlobs = 16384
	// maxDepth bounds indexes within indexes.
	maxDepth = 8
)

// pulled are the blobs of a manifest that a client pulls: not the layers that registries do not give out.
func pulled(m *manifest.Manifest) []ocispec.Descriptor {
	return slices.DeleteFunc(m.Blobs(), func(d ocispec.Descriptor) bool { return !manifest.Distributable(d) })
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

// choose picks the manifests of an index that are kept: those of the wanted platforms, which it notes in found, and
// those that are of no platform.
func (p platforms) choose(index []ocispec.Descriptor, found []bool) []ocispec.Descriptor {
	if p.all || !hasPlatforms(index) {
		return index
	}
	var chosen []ocispec.Descriptor
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
	return chosen
}

func hasPlatforms(index []ocispec.Descriptor) bool {
	return slices.ContainsFunc(index, func(d ocispec.Descriptor) bool { return d.Platform != nil })
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

// closure is everything that one artifact needs, its top first and each manifest before what it refers to.
type closure struct {
	repo      content.Repository
	platforms platforms
	found     []bool // which of the wanted platforms, in the top or an index within it
	chooses   bool   // an index was seen that tells platforms apart
	blobs     []content.Request
	seen      map[digest.Digest]bool
	// size finds the size of a blob in bytes; get commits one to the store; read returns the bytes of one that is
	// there. What is content.ErrNotFound in a closure of what is held ends the walk below it.
	size func(context.Context, content.Request) (int64, error)
	get  func(context.Context, content.Request) error
	read func(context.Context, content.Request) ([]byte, error)
	// held walks only what the store holds.
	held bool
}

// add lists a blob. It reports whether it is new.
func (c *closure) add(req content.Request) (bool, error) {
	if c.seen[req.Digest] {
		return false, nil
	}
	if len(c.blobs) >= maxBlobs {
		return false, fmt.Errorf("%w: more than %d blobs", manifest.ErrMalformed, maxBlobs)
	}
	c.seen[req.Digest] = true
	c.blobs = append(c.blobs, req)
	return true, nil
}

// walk adds the top of an artifact and all below it. mediaType is empty where nobody knows whether it is a manifest,
// and size 0 where that is not known.
func (c *closure) walk(ctx context.Context, top digest.Digest, mediaType string, size int64) error {
	req := content.Request{Repository: c.repo, Digest: top, Size: size}
	if !c.repo.None() {
		req.Kind = content.Manifest
	}
	if manifest.IsType(mediaType) {
		err := c.manifest(ctx, req, true, 0, c.get(ctx, req))
		return cmp.Or(err, c.unmet())
	}
	// What is no manifest is not fetched here, before it is known whether the node has room for it.
	err := c.measure(ctx, &req)
	blob := err == nil && req.Size > manifest.MaxSize
	if err == nil && !blob {
		err = c.get(ctx, req)
	}
	if errors.Is(err, content.ErrNotFound) && req.Kind == content.Manifest && !c.held {
		req.Kind = content.Blob
		err, blob = c.measure(ctx, &req), true
	}
	if err == nil && blob {
		req.Kind = content.Blob
		_, err := c.add(req)
		return err
	}
	err = c.manifest(ctx, req, false, 0, err)
	return cmp.Or(err, c.unmet())
}

func (c *closure) measure(ctx context.Context, req *content.Request) (err error) {
	if req.Size == 0 {
		req.Size, err = c.size(ctx, *req)
	}
	return err
}

// unmet fails with errNoSuchPlatform where a wanted platform is missing.
func (c *closure) unmet() error {
	if i := slices.Index(c.found, false); c.chooses && i >= 0 {
		return fmt.Errorf("%w %s", errNoSuchPlatform, c.platforms.wanted[i].String())
	}
	return nil
}

// manifest adds the manifest req, whose get ended with err, and all below it. Where it is not sure to be a manifest, it
// may turn out to be a blob.
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
		var m *manifest.Manifest
		if m, err = manifest.Parse(data); err == nil {
			return c.below(ctx, m, depth)
		}
	}
	if !sure && errors.Is(err, manifest.ErrMalformed) {
		c.blobs[len(c.blobs)-1].Kind = content.Blob
		return nil
	}
	return fmt.Errorf("manifest %s: %w", req.Digest, err)
}

func (c *closure) below(ctx context.Context, m *manifest.Manifest, depth int) error {
	if depth >= maxDepth {
		return fmt.Errorf("%w: indexes are nested more than %d deep", manifest.ErrMalformed, maxDepth)
	}
	for _, d := range pulled(m) {
		if _, err := c.add(content.Request{Repository: c.repo, Digest: d.Digest, Size: d.Size}); err != nil {
			return err
		}
	}
	c.chooses = c.chooses || hasPlatforms(m.Manifests)
	for _, d := range c.platforms.choose(m.Manifests, c.found) {
		req := content.Request{Repository: c.repo, Kind: content.Manifest, Digest: d.Digest, Size: d.Size}
		if err := c.manifest(ctx, req, manifest.IsType(d.MediaType), depth+1, c.get(ctx, req)); err != nil {
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
	if r.Size() > manifest.MaxSize {
		return nil, fmt.Errorf("%w: %d bytes; at most %d", manifest.ErrMalformed, r.Size(), manifest.MaxSize)
	}
	rc, err := r.Range(ctx, 0, r.Size())
	if err != nil {
		return nil, err
	}
	defer func() { _ = rc.Close() }()
	return io.ReadAll(rc)
}
