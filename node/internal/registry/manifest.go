package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// maxManifest is the largest manifest in bytes that is served. It is read into memory before its first byte goes out.
const maxManifest = 8 << 20

// Media types of the image manifest version 2, schema 1, which does not name its own.
const (
	typeSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	typeSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// manifest answers GET and HEAD of a manifest. It fetches it for both: a HEAD that promised what GET cannot give would
// send the runtime into a loop.
func (f *Front) manifest(x *exchange) error {
	req := x.request(content.Manifest)
	ctx, patience := newPatience(x.r.Context(), f.opts.FirstByteTimeout, func() int64 { return f.opts.Fetcher.Progress(x.fetchable(req)) })
	defer patience.end()
	declared := ""
	if x.route.tag != "" {
		desc, err := f.tags.resolve(ctx, x)
		if err != nil {
			return err
		}
		req.Digest, req.Size, declared = desc.Digest, desc.Size, desc.MediaType
	} else if err := f.gate.admit(ctx, x.rule, req); err != nil {
		return err
	}
	req = x.fetchable(req)
	data, err := f.readManifest(ctx, patience, req)
	if err != nil {
		return err
	}
	m := parseManifest(data)
	mediaType := m.mediaType(declared)
	if mediaType == "" {
		if _, mediaType, err = f.opts.Fetcher.Stat(ctx, req); err != nil {
			return fmt.Errorf("media type of manifest %s: %w", req.Digest, err)
		}
	}
	if mediaType == "" {
		return fmt.Errorf("media type of manifest %s is not known: %w", req.Digest, content.ErrUnavailable)
	}
	f.gate.learn(x.route.repo, req.Digest, m)

	etag := `"` + req.Digest.String() + `"`
	h := x.w.Header()
	h.Set("Docker-Content-Digest", req.Digest.String())
	h.Set("Etag", etag)
	if unchanged(x.r, etag) {
		x.writeHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.Itoa(len(data)))
	x.writeHeader(http.StatusOK)
	if x.r.Method == http.MethodHead {
		return nil
	}
	if _, err = x.w.Write(data); err != nil {
		return err
	}
	if f.opts.ManifestServed != nil {
		f.opts.ManifestServed(req.Digest)
	}
	return nil
}

func (f *Front) readManifest(ctx context.Context, p *patience, req content.Request) ([]byte, error) {
	reader, err := f.opts.Fetcher.Open(ctx, req)
	if err != nil {
		return nil, because(ctx, err)
	}
	defer func() { _ = reader.Close() }()
	p.watch(reader.Arrived, false)
	if reader.Size() > maxManifest {
		return nil, fmt.Errorf("manifest %s of %d bytes is larger than %d: %w", req.Digest, reader.Size(), maxManifest, content.ErrUnavailable)
	}
	body, err := reader.Range(ctx, 0, reader.Size())
	if err != nil {
		return nil, because(ctx, err)
	}
	defer func() { _ = body.Close() }()
	data := make([]byte, reader.Size())
	if _, err := io.ReadFull(body, data); err != nil {
		return nil, because(ctx, fmt.Errorf("manifest %s: %w", req.Digest, err))
	}
	return data, nil
}

// because adds why ctx ended, where it did, to an error that may only say that it did.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// manifestDoc is what the front needs to know of a manifest or index.
type manifestDoc struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        *v1.Descriptor  `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
	Blobs         []v1.Descriptor `json:"blobs"` // of the artifact manifest of image-spec 1.1's drafts
	Manifests     []v1.Descriptor `json:"manifests"`
	FSLayers      []struct {
		BlobSum digest.Digest `json:"blobSum"`
	} `json:"fsLayers"`
	Signatures []json.RawMessage `json:"signatures"`
}

// parseManifest gives an empty document for what is no JSON: the digest vouches for the bytes, whatever they are.
func parseManifest(data []byte) manifestDoc {
	var m manifestDoc
	if err := json.Unmarshal(data, &m); err != nil {
		return manifestDoc{}
	}
	return m
}

// mediaType is what the manifest says it is, so that every node says the same of it whoever it got it from; else what the
// registry declared; else what its fields make it, as the image specification allows OCI documents to leave the type out.
// It is "" where nothing is certain.
func (m manifestDoc) mediaType(declared string) string {
	switch {
	case m.MediaType != "":
		return m.MediaType
	case declared != "":
		return declared
	case m.SchemaVersion == 1 && len(m.FSLayers) > 0 && len(m.Signatures) > 0:
		return typeSchema1Signed
	case m.SchemaVersion == 1 && len(m.FSLayers) > 0:
		return typeSchema1
	case m.SchemaVersion == 2 && m.Manifests != nil && m.Config == nil && m.Layers == nil:
		return v1.MediaTypeImageIndex
	case m.SchemaVersion == 2 && m.Config != nil && m.Manifests == nil:
		return v1.MediaTypeImageManifest
	}
	return ""
}

// children are the digests that the manifest lists: those of blobs that a registry must have before it takes the manifest,
// and those that it need not have. Such are the manifests of an index, which may be sparse, and layers that are to be had
// elsewhere. The subject is in neither list: it need not be in the registry at all.
func (m manifestDoc) children() (required, optional []digest.Digest) {
	if m.Config != nil {
		required = append(required, m.Config.Digest)
	}
	for _, d := range slices.Concat(m.Layers, m.Blobs) {
		if len(d.URLs) > 0 || strings.Contains(d.MediaType, "foreign") || strings.Contains(d.MediaType, "nondistributable") {
			optional = append(optional, d.Digest)
		} else {
			required = append(required, d.Digest)
		}
	}
	for _, l := range m.FSLayers {
		required = append(required, l.BlobSum)
	}
	for _, d := range m.Manifests {
		optional = append(optional, d.Digest)
	}
	return required, optional
}
