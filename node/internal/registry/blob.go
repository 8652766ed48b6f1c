package registry

import (
	"context"
	"fmt"
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
	etag := `"` + req.Digest.String() + `"`
	headerOnly := x.R.Method == http.MethodHead || reply.Unchanged(x.R, etag)
	if headerOnly {
		if size, _, err := f.opts.Fetcher.Stat(ctx, req); err == nil {
			x.blobAnswer(req, etag, size)
			return nil
		}
		// The registry does not tell. Peers may have it even so, and GET would find out.
	}
	reader, err := f.opts.Fetcher.Open(ctx, req)
	if err != nil {
		return because(ctx, err)
	}
	defer func() { _ = reader.Close() }()
	patience.watch(reader.Arrived, !headerOnly)

	size := reader.Size()
	part, partial, err := reply.ParseRange(reply.RangeHeader(x.R, etag), size)
	if err != nil {
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
	header := func() {
		x.blobHeader(req, etag, part.N)
		status := http.StatusOK
		if partial {
			status = http.StatusPartialContent
			x.W.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", part.Off, part.Off+part.N-1, size))
		}
		x.WriteHeader(status)
	}
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
	if x.Status == 0 {
		header()
	}
	if err := x.Stream(first, body, part.N); err != nil {
		return because(ctx, err)
	}
	x.bytes = part.N
	return nil
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
