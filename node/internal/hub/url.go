package hub

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
)

// maxURL bounds the URL of a file in bytes.
const maxURL = 8 << 10

// parseURL reads /sha256/hex/scheme/host/path: the digest says what, the rest where from. parts are not escaped, and
// escaped is the path as it was sent.
func parseURL(r *route, parts []string, escaped string) {
	r.action = actURL
	r.digest = digest.NewDigestFromEncoded(digest.SHA256, parts[1])
	rest := strings.SplitN(strings.TrimPrefix(escaped, "/"), "/", 5)
	r.from = &url.URL{Scheme: parts[2], Host: strings.ToLower(parts[3])}
	r.path = "/" + rest[4]
}

// url answers GET and HEAD of a file that is named by its digest and its URL. The caller's credentials go to the URL's
// host and nowhere else, and the host has the word on whether the caller may have the file, as a registry does.
func (f *Front) url(x *exchange) error {
	ctx := x.R.Context()
	req, err := f.urlRequest(x)
	if err != nil {
		return err
	}
	question := gate.Blob(f.opts.Upstream, req)
	question.Upstream = urlHost{question.Upstream, f.opts.Upstream, req}
	if err := f.opts.Gate.Admit(ctx, x.rule, question); err != nil {
		return err
	}
	if x.R.Method == http.MethodHead || content.OfNothing(req.Digest) {
		size, err := f.measure(ctx, req)
		if err != nil {
			return err
		}
		describeURL(x, size)
		return f.give(ctx, x, size, `"`+req.Digest.String()+`"`, nothing, nil, func() error { return nil })
	}
	reader, err := f.opts.Fetcher.Open(ctx, req)
	if err != nil {
		return err
	}
	size := reader.Size()
	describeURL(x, size)
	open := func(int64, int64, *early) (content.Reader, error) {
		if reader != nil { // the one that told the size
			r := reader
			reader = nil
			return r, nil
		}
		req.Part = x.wantsPart()
		r, err := f.opts.Fetcher.Open(ctx, req)
		if err == nil && r.Size() != size {
			_ = r.Close()
			return nil, fmt.Errorf("%s is of %d bytes, and was of %d: %w", req.Digest, r.Size(), size,
				content.ErrDigestMismatch)
		}
		return r, err
	}
	defer func() {
		if reader != nil {
			_ = reader.Close()
		}
	}()
	return f.give(ctx, x, size, `"`+req.Digest.String()+`"`, open, f.peek(ctx, req),
		func() error { return nil })
}

// urlRequest is the request for the file that an exchange is about, and gives the exchange its rule.
func (f *Front) urlRequest(x *exchange) (req content.Request, err error) {
	if err := x.route.digest.Validate(); err != nil {
		return req, &httpError{http.StatusBadRequest, "", "want /sha256/DIGEST/https/HOST/PATH with the " +
			"64 hexadecimal digits of the file's sha256, in lower case"}
	}
	file, query := x.route.path, x.R.URL.RawQuery
	if query != "" {
		file += "?" + query
	}
	if len(file) > maxURL || ambiguous(x.route.path) {
		return req, errBadPath
	}
	if !f.permits(x.route.from, x.route.path) {
		return req, &httpError{http.StatusForbidden, "",
			fmt.Sprintf("%s://%s%s is below no URL of hub.urls, to which whoever "+
				"runs the agents can add one", x.route.from.Scheme, x.route.from.Host, x.route.path)}
	}
	repository := urlSource(x.route.from, x.route.path, query)
	if x.rule = f.opts.Rules(repository); x.rule.Mode == policy.Bypass {
		return req, &httpError{http.StatusForbidden, "", "the policy keeps " + x.route.from.Host +
			" out of the cache: ask it itself"}
	}
	return content.Request{
		Repository: repository, Kind: content.Blob, Digest: x.route.digest, File: file,
		Authorization: x.Authorization(), Part: x.wantsPart(),
	}, nil
}

// nothing opens what has no byte.
func nothing(int64, int64, *early) (content.Reader, error) {
	return inMemory{}, nil
}

// ambiguous reports whether some host would take an escaped path for another than it seems to be: a backslash for a
// slash, or what follows a semicolon for no part of a name.
func ambiguous(escaped string) bool {
	plain, err := url.PathUnescape(escaped)
	if err != nil || strings.ContainsAny(plain, "\\\x00") {
		return true
	}
	for part := range strings.SplitSeq(plain, "/") {
		if name, _, _ := strings.Cut(part, ";"); name == "." || name == ".." {
			return true
		}
	}
	return false
}

// urlSource is a URL as the rest of the agent knows it. No repository of a registry has such a name. Of the query,
// which may be a credential that opens the file, it has a hash: who shows another has to be let in by himself.
func urlSource(from *url.URL, file, query string) content.Repository {
	name := from.Scheme + ":" + strings.TrimPrefix(file, "/")
	if query != "" {
		sum := sha256.Sum256([]byte(query))
		name += "?" + hex.EncodeToString(sum[:])
	}
	return content.Repository{Registry: from.Host, Name: name}
}

// IsURL reports whether a repository stands for a file by its URL, and not for one of the hub.
func IsURL(r content.Repository) bool {
	scheme, _, ok := strings.Cut(r.Name, ":")
	return ok && (scheme == "http" || scheme == "https")
}

// permits reports whether a URL is below one that the configuration names.
func (f *Front) permits(from *url.URL, file string) bool {
	for _, u := range f.opts.URLs {
		base := strings.TrimSuffix(u.EscapedPath(), "/")
		if u.Scheme == from.Scheme && strings.EqualFold(u.Host, from.Host) &&
			(file == base || strings.HasPrefix(file, base+"/")) {
			return true
		}
	}
	return false
}

// measure finds the size of a file of which no byte is wanted.
func (f *Front) measure(ctx context.Context, req content.Request) (int64, error) {
	if content.OfNothing(req.Digest) {
		return 0, nil
	}
	size, _, err := f.opts.Fetcher.Stat(ctx, req)
	if err == nil || content.Denied(err) || errors.Is(err, content.ErrNotFound) ||
		errors.Is(err, content.ErrUnavailable) {
		return size, err
	}
	reader, opened := f.opts.Fetcher.Open(ctx, req) // there are hosts that answer nothing but GET
	if opened != nil {
		return 0, errors.Join(err, opened)
	}
	defer func() { _ = reader.Close() }()
	return reader.Size(), nil
}

// urlHost puts the questions of the gate to the host of a URL, which gives no tokens as registries do.
type urlHost struct {
	gate.Upstream
	upstream Upstream
	req      content.Request
}

func (h urlHost) AskForAnyone(ctx context.Context) (size int64, err error) {
	h.req.Authorization = ""
	return h.Ask(ctx)
}

// Ask asks for the first byte. The answer tells the size, in parts or not: there are hosts that give in parts, too, the
// page that they have for every question.
func (h urlHost) Ask(ctx context.Context) (size int64, err error) {
	body, err := h.upstream.Open(ctx, h.req, 0, 1)
	if err != nil {
		return 0, err
	}
	return body.Size, body.Close()
}

func describeURL(x *exchange, size int64) {
	h := x.W.Header()
	d := x.route.digest
	h.Set("Etag", `"`+d.String()+`"`)
	if sum, err := hex.DecodeString(d.Encoded()); err == nil {
		h.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum)+":")
	}
	h.Set("Accept-Ranges", "bytes")
	h.Set("Cache-Control", "private, max-age=31536000, immutable")
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	if name, err := url.PathUnescape(path.Base(x.route.path)); err == nil {
		if d := mime.FormatMediaType("attachment", map[string]string{"filename": name}); d != "" {
			h.Set("Content-Disposition", d)
		}
	}
}
