package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/reply"
)

// blob answers GET and HEAD of a blob. The header goes out with the first bytes: until then, every failure is an answer
// on which the runtime can fall back. Only where they are long in coming it goes out before.
func (f *Front) blob(x *exchange) error {
	asked := x.request(content.Blob)
	asked.Part = reply.WantsPart(x.R, reply.CallerChecks)
	req := x.fetchable(asked)
	ctx, patience := newPatience(x.R.Context(), f.opts.FirstByteTimeout, f.progress(req))
	defer patience.end()
	if err := f.admit(ctx, x, asked); err != nil {
		return err
	}
	if etag := etagOf(req); x.headerOnly(etag) {
		if size, _, err := f.opts.Fetcher.Stat(ctx, req); err == nil {
			x.blobAnswer(req, etag, size)
			return nil
		}
		// The registry does not tell. Peers may have it even so, and GET would find out.
	}
	err := f.giveBlob(ctx, x, patience, req, false)
	for again := 0; again < content.MisledAtMost && errors.Is(err, content.ErrMisled) && x.Status == 0; again++ {
		err = f.giveBlob(ctx, x, patience, req, false) // nothing has gone out yet
	}
	return err
}

// etagOf is the entity tag of what a request is for.
func etagOf(req content.Request) string { return `"` + req.Digest.String() + `"` }

// headerOnly reports whether the caller is to be given no body.
func (x *exchange) headerOnly(etag string) bool {
	return x.R.Method == http.MethodHead || reply.Unchanged(x.R, etag)
}

// isOfAnotherSize reports whether a blob is not of the size that others may have named.
func (f *Front) isOfAnotherSize(ctx context.Context, req content.Request, size int64) bool {
	right, _, err := f.opts.Fetcher.Stat(ctx, req)
	return err == nil && right != size
}

// giveBlob answers with a blob; past: straight from upstream.
func (f *Front) giveBlob(
	ctx context.Context, x *exchange, patience *patience, req content.Request, past bool,
) error {
	etag := etagOf(req)
	headerOnly := x.headerOnly(etag)
	open := f.opts.Fetcher.Open
	if past {
		open = f.opts.Fetcher.OpenPast
	}
	reader, err := open(ctx, req)
	if err != nil {
		return because(ctx, err)
	}
	defer func() { _ = reader.Close() }()
	x.opened(reader)
	patience.watch(reader.Arrived, !headerOnly)

	size := reader.Size()
	part, partial, err := reply.ParseRange(reply.RangeHeader(x.R, etag), size)
	if err != nil {
		if !past && f.isOfAnotherSize(ctx, req, size) {
			return f.giveBlob(ctx, x, patience, req, true)
		}
		x.W.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return err
	}
	if headerOnly {
		part.N = min(part.N, 1) // not more is asked for than shows that there is something
	}
	body, err := reader.Range(ctx, part.Off, part.N)
	if err != nil {
		return because(ctx, err)
	}
	defer func() { _ = body.Close() }()
	if !headerOnly && part.N == size {
		f.opts.Fetcher.ReadAhead(req)
	}
	header := func() { x.partHeader(req, etag, part, partial, size) }
	first, err := x.First(body, part.N, patience.header, header)
	if err != nil {
		return because(ctx, fmt.Errorf("blob %s: %w", req.Digest, err))
	}
	patience.stop()
	if cause := context.Cause(ctx); cause != nil { // at the last moment: nothing may be promised any more
		return cause
	}
	if headerOnly {
		x.blobAnswer(req, etag, size)
		return nil
	}
	return because(ctx, x.blobBody(first, body, part.N, header))
}

// blobBody is an answer with a body, of which the first bytes are here. The header may have gone out before.
func (x *exchange) blobBody(first []byte, body io.Reader, n int64, header func()) error {
	if x.Status == 0 {
		header()
	}
	if err := x.Stream(first, body, n); err != nil {
		return err
	}
	x.bytes = n
	return nil
}

// partHeader begins an answer with a part of a blob, or with all of it where partial is not set.
func (x *exchange) partHeader(req content.Request, etag string, part reply.Span, partial bool, size int64) {
	x.blobHeader(req, etag, part.N)
	status := http.StatusOK
	if partial {
		status = http.StatusPartialContent
		x.W.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", part.Off, part.Off+part.N-1, size))
	}
	x.WriteHeader(status)
}

// blobAnswer is an answer without a body: the header that GET would have, or that the caller has the blob already.
func (x *exchange) blobAnswer(req content.Request, etag string, size int64) {
	if reply.Unchanged(x.R, etag) {
		x.W.Header().Set("Etag", etag)
		x.WriteHeader(http.StatusNotModified)
		return
	}
	x.blobHeader(req, etag, size)
	x.WriteHeader(http.StatusOK)
}

// blobHeader sets the header of an answer with a blob. Ollama asks for the whole of a blob only to learn from Location
// where it lies, and reads it there in parts; without a Location it gives up. Others are not told one, which says
// nothing with 200.
func (x *exchange) blobHeader(req content.Request, etag string, length int64) {
	h := x.W.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(length, 10))
	h.Set("Accept-Ranges", "bytes")
	h.Set("Docker-Content-Digest", req.Digest.String())
	h.Set("Etag", etag)
	if strings.HasPrefix(x.R.UserAgent(), "ollama/") && x.R.Header.Get("Range") == "" {
		h.Set("Location", x.R.URL.RequestURI())
	}
}
