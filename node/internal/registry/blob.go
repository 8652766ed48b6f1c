package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// firstPiece is how many bytes of a blob are read, at most, before the header of the answer goes out.
const firstPiece = 32 << 10

// blob answers GET and HEAD of a blob. The header goes out with the first bytes: until then, every failure is an answer
// on which the runtime can fall back. Only where they are long in coming it goes out before.
func (f *Front) blob(x *exchange) error {
	asked := x.request(content.Blob)
	asked.Part = x.r.Method == http.MethodHead || wantsPart(x.r.Header.Get("Range"))
	req := x.fetchable(asked)
	ctx, patience := newPatience(x.r.Context(), f.opts.FirstByteTimeout, f.progress(req))
	defer patience.end()
	if err := f.admit(ctx, x, asked); err != nil {
		return err
	}
	etag := `"` + req.Digest.String() + `"`
	headerOnly := x.r.Method == http.MethodHead || unchanged(x.r, etag)
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
	part, partial, err := parseRange(rangeHeader(x.r, etag), size)
	if err != nil {
		x.w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return err
	}
	if headerOnly {
		part.n = min(part.n, 1) // not more is asked for than shows that there is something
	}
	body, err := reader.Range(ctx, part.off, part.n)
	if err != nil {
		return because(ctx, err)
	}
	defer func() { _ = body.Close() }()
	if !headerOnly && part.n == size {
		f.opts.Fetcher.ReadAhead(req)
	}
	header := func() {
		x.blobHeader(req, etag, part.n)
		status := http.StatusOK
		if partial {
			status = http.StatusPartialContent
			x.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", part.off, part.off+part.n-1, size))
		}
		x.writeHeader(status)
	}
	first, err := x.first(body, part.n, patience.header, header)
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
	if x.status == 0 {
		header()
	}
	return because(ctx, x.stream(first, body, part.n))
}

// first reads the first of n bytes. Where they do not come before due is closed, the header goes out without them.
func (x *exchange) first(body io.Reader, n int64, due <-chan struct{}, header func()) ([]byte, error) {
	buf := make([]byte, min(n, firstPiece))
	var got int
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		got, err = io.ReadAtLeast(body, buf, min(1, len(buf)))
	}()
	select {
	case <-done:
	case <-due:
		header()
		flushed := http.NewResponseController(x.w).Flush()
		<-done
		if flushed != nil && !errors.Is(flushed, http.ErrNotSupported) {
			err = errors.Join(err, flushed)
		}
	}
	return buf[:got], err
}

// blobAnswer is an answer without a body: the header that GET would have, or that the caller has the blob already.
func (x *exchange) blobAnswer(req content.Request, etag string, size int64) {
	if unchanged(x.r, etag) {
		x.w.Header().Set("Etag", etag)
		x.writeHeader(http.StatusNotModified)
		return
	}
	x.blobHeader(req, etag, size)
	x.writeHeader(http.StatusOK)
}

func (x *exchange) blobHeader(req content.Request, etag string, length int64) {
	h := x.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", strconv.FormatInt(length, 10))
	h.Set("Accept-Ranges", "bytes")
	h.Set("Docker-Content-Digest", req.Digest.String())
	h.Set("Etag", etag)
}

// stream writes first and then the rest of n bytes from body. The rest goes by the body's WriteTo and the connection's
// ReadFrom, so that file pages move without copying; nothing may wrap either.
func (x *exchange) stream(first []byte, body io.Reader, n int64) error {
	if _, err := x.w.Write(first); err != nil {
		return err
	}
	if int64(len(first)) == n {
		return nil
	}
	if err := http.NewResponseController(x.w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	copied, err := io.Copy(x.w, body)
	if err != nil {
		return err
	}
	if total := int64(len(first)) + copied; total != n {
		return fmt.Errorf("%d of %d bytes: %w", total, n, io.ErrUnexpectedEOF)
	}
	return nil
}
