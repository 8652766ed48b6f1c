package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/manifest"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/reply"
	"github.com/shoal-cache/shoal/node/internal/room"
)

// manifest answers GET and HEAD of a manifest. It fetches it for both: a HEAD that promised what GET cannot give would
// send the runtime into a loop.
func (f *Front) manifest(x *exchange) error {
	req := x.request(content.Manifest)
	ctx, patience := newPatience(x.R.Context(), f.opts.FirstByteTimeout, f.progress(x.fetchable(req)))
	defer patience.end()
	var got document
	var err error
	if x.route.tag == "" {
		got, err = f.openManifest(ctx, x, patience, v1.Descriptor{Digest: req.Digest})
	} else {
		got, err = f.tagged(ctx, x, patience)
	}
	if err != nil {
		return err
	}
	data, etag := got.data, etagOf(got.req)
	h := x.W.Header()
	h.Set("Docker-Content-Digest", got.req.Digest.String())
	h.Set("Etag", etag)
	if reply.Unchanged(x.R, etag) {
		x.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", got.mediaType)
	h.Set("Content-Length", strconv.Itoa(len(data)))
	x.WriteHeader(http.StatusOK)
	if x.R.Method == http.MethodHead {
		return nil
	}
	if err = x.Give(data); err != nil {
		return err
	}
	x.bytes = int64(len(data))
	if f.opts.ManifestServed != nil {
		f.opts.ManifestServed(got.req.Digest)
	}
	return nil
}

// document is a manifest that is here.
type document struct {
	req       content.Request
	mediaType string
	data      []byte
}

// tagged gives the manifest of the exchange's tag. Where there is none of the digest that the tag is said to have, or
// another, that is forgotten and the registry is asked about the tag once more: it may have been wrong for a moment.
func (f *Front) tagged(ctx context.Context, x *exchange, patience *patience) (document, error) {
	q := f.tags.question(x)
	last, err := f.tags.resolve(ctx, q)
	x.resolved = time.Since(x.Start)
	if err != nil {
		return document{}, err
	}
	got, err := f.openManifest(ctx, x, patience, last.desc)
	if x.rule.Mode != policy.PeersOnly && // else it is not the registry that says so
		(errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrDigestMismatch)) {
		f.tags.forget(q, last.desc.Digest)
		again, askErr := f.tags.resolve(ctx, q)
		if askErr != nil || again.desc.Digest == last.desc.Digest {
			return document{}, err
		}
		last = again
		got, err = f.openManifest(ctx, x, patience, last.desc)
	}
	if err == nil {
		f.tags.tell(ctx, q, last.desc.Digest)
		if last.stale {
			x.outOfDate(last.at)
		}
	}
	return got, err
}

// openManifest reads a manifest that the caller may have.
func (f *Front) openManifest(
	ctx context.Context, x *exchange, patience *patience, desc v1.Descriptor,
) (document, error) {
	req := x.request(content.Manifest)
	req.Digest, req.Size = desc.Digest, desc.Size
	if err := f.admit(ctx, x, req); err != nil {
		return document{}, err
	}
	req = x.fetchable(req)
	patience.follow(f.progress(req))
	data, err := f.readManifest(ctx, x, patience, req)
	for again := 0; again < content.MisledAtMost && errors.Is(err, content.ErrMisled); again++ {
		data, err = f.readManifest(ctx, x, patience, req) // nothing has gone out yet
	}
	if err != nil {
		return document{}, err
	}
	m, err := manifest.Parse(data)
	if err != nil {
		return document{}, fmt.Errorf("%s is in the cache, and is no manifest: %w: %w", req.Digest,
			content.ErrNotFound, err)
	}
	if x.rule.Authorization.Mode != policy.Exempt {
		f.opts.Gate.Learn(ctx, gate.Repository(x.route.repo), m)
	}
	room.Shrink(ctx, int64(len(data))) // of m nothing is needed any more
	return document{req, m.Type(desc.MediaType), data}, nil
}

func (f *Front) readManifest(
	ctx context.Context, x *exchange, p *patience, req content.Request,
) ([]byte, error) {
	reader, err := f.opts.Fetcher.Open(ctx, req)
	if err != nil {
		return nil, because(ctx, err)
	}
	defer func() { _ = reader.Close() }()
	x.opened(reader)
	p.watch(reader.Arrived, false)
	if reader.Size() > manifest.MaxSize {
		return nil, fmt.Errorf("manifest %s of %d bytes is larger than %d: %w", req.Digest, reader.Size(),
			manifest.MaxSize, content.ErrUnavailable)
	}
	if err := room.Hold(ctx, reader.Size()*manifest.Times); err != nil {
		return nil, because(ctx, err)
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
