package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
)

// Body is the bytes of a blob or manifest as they come from the registry. An answer that breaks off is read on from
// there. Read fails, and never ends with io.EOF, when fewer or more bytes come than were announced, or none for
// Timeouts.Resume after a break. Their digest is not checked here.
type Body struct {
	io.ReadCloser
	// Size is the size in bytes of the whole blob.
	Size int64
	// Offset is where in the blob the first byte read lies: what was asked for, or 0 where the registry ignored the
	// Range, or for a manifest, which always comes whole.
	Offset int64
	// MediaType is the registry's Content-Type, for a manifest the type of the manifest.
	MediaType string
	// Whole: the answer is all of the blob, whatever was asked for.
	Whole bool
	// OnBreak, where it is set before the first Read, is told when an answer has broken off and the rest is asked for,
	// and when that has ended.
	OnBreak func(broken bool)
}

// Open reads n bytes of a blob from offset off, or all that follow where n is negative. Where off+n exceeds the blob,
// it reads to its end. req.Size counts where the answer tells no size.
func (c *Client) Open(ctx context.Context, req content.Request, off, n int64) (*Body, error) {
	if off < 0 || n == 0 {
		return nil, fmt.Errorf("%s %s of %s: range of %d bytes at %d", req.Kind, req.Digest, req.Repository, n, off)
	}
	if req.Kind == content.Manifest {
		return c.openManifest(ctx, req)
	}
	last := int64(-1)
	if n > 0 {
		last = off + n - 1
	}
	body, err := c.openRange(ctx, req, off, last, false, nil)
	if err != nil {
		return nil, err
	}
	c.resumable(ctx, req, body, last)
	return body, nil
}

func blobCall(method string, req content.Request) call {
	return call{
		method: method, repo: req.Repository, path: "blobs/" + req.Digest.String(), file: req.File,
		accept:        []string{"*/*"},
		authorization: req.Authorization,
	}
}

// openManifest reads all of a manifest, for which there is room until the body is closed. Who wants the manifest may be
// no request, and have no room of his own.
func (c *Client) openManifest(ctx context.Context, req content.Request) (*Body, error) {
	ctx, end := c.opts.Documents.Lease(ctx)
	desc, data, err := c.getManifest(ctx, call{
		method: http.MethodGet, repo: req.Repository, path: "manifests/" + req.Digest.String(), accept: manifestTypes,
		authorization: req.Authorization,
	}, req.Digest.String())
	if err != nil {
		end()
		return nil, err
	}
	return &Body{ReadCloser: inRoom{bytes.NewReader(data), end}, Size: desc.Size, MediaType: desc.MediaType,
		Whole: true}, nil
}

// inRoom is a document in memory.
type inRoom struct {
	io.Reader
	leave func()
}

func (r inRoom) Close() error {
	r.leave()
	return nil
}

var (
	errNoSize = errors.New("answer does not tell the blob's size")
	errRange  = errors.New("answer is not the range that was asked for")
	errPage   = errors.New("answer is a web page, and its size is not the blob's")
	errEmpty  = errors.New("answer is empty, and the digest is not that of an empty blob")
)

// mayBeEmpty reports whether the digest allows content of no bytes. "": it is not known.
func mayBeEmpty(d digest.Digest) bool { return d == "" || content.OfNothing(d) }

// newBody checks that an answer's header fits the request; last is -1 for "to the end".
func newBody(resp *http.Response, req content.Request, off, last int64) (*Body, error) {
	if encoded(resp) {
		return nil, fmt.Errorf("answer is encoded as %q, which would change the digest",
			resp.Header.Get("Content-Encoding"))
	}
	body := &Body{ReadCloser: resp.Body, MediaType: resp.Header.Get("Content-Type")}
	due := resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		first, end, total, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil {
			return nil, err
		}
		if total < 0 {
			total = req.Size
		}
		if total <= 0 {
			return nil, errNoSize
		}
		want := total - 1
		if last >= 0 {
			want = min(last, want)
		}
		// A server may give less of a range than was asked for. What it leaves out is read on, as where an answer
		// breaks off.
		if first != off || end < off || end > want || due >= 0 && due != end-off+1 {
			return nil, fmt.Errorf("%w: %q of %d bytes, for bytes %d to %d", errRange, resp.Header.Get("Content-Range"),
				due, off, want)
		}
		body.Size, body.Offset, due = total, off, want-off+1
	} else {
		switch {
		case isPage(resp) && due != req.Size:
			return nil, errPage
		case due < 0:
			due = req.Size
		}
		if due <= 0 && resp.ContentLength != 0 {
			return nil, errNoSize
		}
		body.Size, body.Whole = due, true
	}
	if body.Size == 0 && !mayBeEmpty(req.Digest) {
		return nil, errEmpty
	}
	if body.Size > content.MaxSize {
		return nil, fmt.Errorf("blob of %d bytes is larger than %d", body.Size, int64(content.MaxSize))
	}
	if s, ok := resp.Body.(*stream); ok {
		s.due = due
	}
	return body, nil
}

// parseContentRange reads "bytes first-last/total" (RFC 9110, section 14.4). total is -1 where it is "*".
func parseContentRange(v string) (first, last, total int64, err error) {
	bad := fmt.Errorf("%w: Content-Range %q", errRange, v)
	spec, ok := strings.CutPrefix(v, "bytes ")
	if !ok {
		return 0, 0, 0, bad
	}
	span, size, ok := strings.Cut(spec, "/")
	if !ok {
		return 0, 0, 0, bad
	}
	a, b, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, 0, bad
	}
	first, err1 := strconv.ParseInt(a, 10, 64)
	last, err2 := strconv.ParseInt(b, 10, 64)
	total, err3 := int64(-1), error(nil)
	if size != "*" {
		total, err3 = strconv.ParseInt(size, 10, 64)
	}
	if err := errors.Join(err1, err2, err3); err != nil || first < 0 || last < first || size != "*" && last >= total {
		return 0, 0, 0, bad
	}
	return first, last, total, nil
}

// Stat asks the registry, with the caller's credentials, whether it has a blob or manifest, and of what size in bytes
// and media type. Success proves that these credentials may read the repository.
func (c *Client) Stat(ctx context.Context, req content.Request) (size int64, mediaType string, err error) {
	size, mediaType, _, err = c.stat(ctx, req)
	return size, mediaType, err
}

// Ask is Stat for who has to know what the answer is about. named: it names the digest, which no page of a proxy does.
// That is the registry's word for what it has, and no proof of it.
func (c *Client) Ask(ctx context.Context, req content.Request) (size int64, named bool, err error) {
	size, _, named, err = c.stat(ctx, req)
	return size, named, err
}

func (c *Client) stat(ctx context.Context, req content.Request) (size int64, mediaType string, named bool, err error) {
	if req.Kind == content.Manifest {
		desc, err := c.Resolve(ctx, req.Repository, req.Digest.String(), nil, req.Authorization)
		return desc.Size, desc.MediaType, true, err
	}
	if req.File != "" { // where it leads to may be signed for GET alone
		return c.statByRange(ctx, req)
	}
	resp, err := c.send(ctx, blobCall(http.MethodHead, req))
	if err == nil {
		_ = resp.Body.Close()
		known := resp.ContentLength > 0 || resp.ContentLength == 0 && mayBeEmpty(req.Digest)
		if known && (!isPage(resp) || resp.ContentLength == req.Size) {
			return resp.ContentLength, resp.Header.Get("Content-Type"), names(resp, req), nil
		}
	} else if !noHead(err) {
		return 0, "", false, err
	}
	return c.statByRange(ctx, req)
}

// isPage tells a page for people, such as that of a proxy which wants a login, from a blob: its length says nothing of
// the blob's.
func isPage(resp *http.Response) bool { return mediaType(resp) == "text/html" }

// names reports whether a registry's answer names the digest of the blob that it was asked for.
func names(resp *http.Response, req content.Request) bool {
	return req.File == "" && resp.Header.Get("Docker-Content-Digest") == req.Digest.String()
}

// statByRange learns the same from the answer to a GET of one byte.
func (c *Client) statByRange(ctx context.Context, req content.Request) (int64, string, bool, error) {
	call := blobCall(http.MethodGet, req)
	call.byteRange = "bytes=0-0"
	resp, err := c.send(ctx, call)
	if err != nil {
		return 0, "", false, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := newBody(resp, req, 0, 0)
	if err != nil {
		return 0, "", false, fmt.Errorf("%s: %w: %w", describe(resp.Request), content.ErrBadAnswer, err)
	}
	return body.Size, body.MediaType, names(resp, req), nil
}
