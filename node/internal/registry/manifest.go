package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

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
	declared := ""
	if x.route.tag != "" {
		desc, err := f.tags.resolve(ctx, x)
		x.resolved = time.Since(x.Start)
		if err != nil {
			return err
		}
		req.Digest, req.Size, declared = desc.Digest, desc.Size, desc.MediaType
	}
	if err := f.admit(ctx, x, req); err != nil {
		return err
	}
	req = x.fetchable(req)
	patience.follow(f.progress(req))
	data, err := f.readManifest(ctx, x, patience, req)
	if errors.Is(err, content.ErrMisled) {
		// Nothing has gone out yet, and the fetch that follows believes the registry alone.
		data, err = f.readManifest(ctx, x, patience, req)
	}
	if err != nil {
		return err
	}
	m, err := manifest.Parse(data)
	if err != nil {
		return fmt.Errorf("%s is in the cache, and is no manifest: %w: %w", req.Digest, content.ErrNotFound, err)
	}
	mediaType := m.Type(declared)
	if x.rule.Authorization.Mode != policy.Exempt {
		f.opts.Gate.Learn(ctx, gate.Repository(x.route.repo), m)
	}
	room.Shrink(ctx, int64(len(data))) // of m nothing is needed any more

	etag := etagOf(req)
	h := x.W.Header()
	h.Set("Docker-Content-Digest", req.Digest.String())
	h.Set("Etag", etag)
	if reply.Unchanged(x.R, etag) {
		x.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", mediaType)
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
		f.opts.ManifestServed(req.Digest)
	}
	return nil
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
