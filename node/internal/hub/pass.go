package hub

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/room"
)

// maxRewritten is the longest JSON document in bytes out of which Xet is taken on its way through.
const maxRewritten = maxDoc

// pass hands a request to the hub, with the caller's own token, and the answer back. Nothing of it is kept.
func (f *Front) pass(x *exchange) error {
	if x.R.Context().Value(peersOnly{}) != nil {
		return errPeersOnly
	}
	if x.route.repo.id == "" { // what it asks is not known here, but it may be known of what
		for _, r := range mentioned(x.R.URL.Path) {
			if f.opts.Rules(r.source(f.opts.Hub)).Mode == policy.PeersOnly {
				return errPeersOnly
			}
		}
	}
	ctx := context.WithValue(x.R.Context(), passing{}, x)
	defer x.Leisure()
	f.proxy.ServeHTTP(&passed{ResponseWriter: x.W, x: x}, x.R.WithContext(ctx))
	return nil
}

// passing is the key under which a request's context holds its exchange.
type passing struct{}

// exchangeOf is the exchange that an answer is for.
func exchangeOf(resp *http.Response) *exchange {
	x, _ := resp.Request.Context().Value(passing{}).(*exchange)
	return x
}

// passed notes the status of an answer that passes through.
type passed struct {
	http.ResponseWriter
	x *exchange
}

func (p *passed) WriteHeader(status int) {
	if status >= 200 {
		p.x.Status = status
	}
	p.ResponseWriter.WriteHeader(status)
}

func (p *passed) Write(b []byte) (int, error) {
	p.x.Status = cmp.Or(p.x.Status, http.StatusOK)
	return p.ResponseWriter.Write(b)
}

// Unwrap is what http.ResponseController looks for.
func (p *passed) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func (f *Front) newProxy() http.Handler {
	return &httputil.ReverseProxy{
		Transport:     f.opts.Transport,
		FlushInterval: -1, // as it comes: some answers are streams of events
		ErrorLog:      slog.NewLogLogger(f.log.Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			base := f.origin.base
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = base.Scheme, base.Host, base.Host
			prefix := strings.TrimSuffix(base.EscapedPath(), "/")
			path := prefix + p.In.URL.EscapedPath()
			if plain, err := url.PathUnescape(path); err == nil {
				p.Out.URL.Path, p.Out.URL.RawPath = plain, path
			}
			p.Out.Header.Set("Via", via)
			p.Out.Header.Set("Accept-Encoding", "identity")
			if accept := withoutXetType(p.In.Header.Get("Accept")); accept != p.In.Header.Get("Accept") {
				p.Out.Header.Set("Accept", accept)
			}
		},
		ModifyResponse: f.rewrite,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			f.metrics.asked(r.Method, 0)
			f.log.Debug("hub not reached", "method", r.Method, "path", r.URL.Path, "cause", err)
			w.Header().Set("Retry-After", strconv.Itoa(retrySoon))
			message := "the hub cannot be asked"
			if errors.Is(err, room.ErrFull) {
				message = room.ErrFull.Error()
			}
			w.Header().Set("X-Error-Message", message)
			http.Error(w, message, http.StatusServiceUnavailable)
		},
	}
}

// withoutXetType is an Accept header without the type by which JavaScript's client asks how to go around plain HTTP.
func withoutXetType(accept string) string {
	const xet = "application/vnd.xet-fileinfo+json"
	if !strings.Contains(accept, xet) {
		return accept
	}
	var rest []string
	for part := range strings.SplitSeq(accept, ",") {
		if part = strings.TrimSpace(part); !strings.HasPrefix(part, xet) && part != "" {
			rest = append(rest, part)
		}
	}
	if len(rest) == 0 {
		return "*/*"
	}
	return strings.Join(rest, ", ")
}

// pathAtHub is the path of what an answer is about, below the hub's own.
func (f *Front) pathAtHub(resp *http.Response) string {
	return strings.TrimPrefix(resp.Request.URL.Path, strings.TrimSuffix(f.origin.base.Path, "/"))
}

// ofBucket reports whether an answer is about a bucket, whose files the hub gives by Xet alone.
func (f *Front) ofBucket(resp *http.Response) bool {
	path := f.pathAtHub(resp)
	return strings.HasPrefix(path, "/buckets/") || strings.HasPrefix(path, "/api/buckets/")
}

// rewrite keeps the clients of an answer at the front: links within the hub become the front's own, and what leads to a
// file by Xet goes. The hub's answers to who asks for a token of Xet, in order to upload, stay as they are.
func (f *Front) rewrite(resp *http.Response) error {
	f.metrics.asked(resp.Request.Method, resp.StatusCode)
	h, base := resp.Header, f.origin.base
	f.noteWrite(resp)
	bucket := f.ofBucket(resp)
	if !bucket {
		h.Del("X-Xet-Hash")
		h.Del("X-Xet-Refresh-Route")
	}
	if to, err := resp.Location(); err == nil && registries.SameOrigin(to, base) {
		h.Set("Location", f.origin.path(to))
	}
	if len(h.Values("Link")) > 0 {
		host := exchangeOf(resp).host()
		var kept []string
		for _, l := range registries.Links(h) {
			if strings.HasPrefix(l.Rel, "xet-") && !bucket {
				continue
			}
			at, err := resp.Request.URL.Parse(l.Target)
			if own, below := f.origin.below(resp, l.Target); below == nil && err == nil &&
				(l.Rel == "next" || registries.SameOrigin(at, base)) {
				l.Text = strings.Replace(l.Text, "<"+l.Target+">", "<"+host+own+">", 1)
			}
			kept = append(kept, l.Text)
		}
		h.Del("Link")
		if len(kept) > 0 {
			h.Set("Link", strings.Join(kept, ", "))
		}
	}
	dropWarnings(h)
	return f.rewriteBody(resp)
}

// dropWarnings takes those out that are about the agent's address and not about the client.
func dropWarnings(h http.Header) {
	kept := slices.DeleteFunc(h.Values("X-Hf-Warning"), func(v string) bool {
		return strings.HasPrefix(strings.ToLower(v), "unauthenticated")
	})
	if h.Del("X-Hf-Warning"); len(kept) > 0 {
		h["X-Hf-Warning"] = kept
	}
}

// knownHub is the host whose URLs clients take for those of their HF_ENDPOINT.
const knownHub = "huggingface.co"

// rewriteBody takes Xet out of a listing. It has the URLs of what was made or changed be the front's own, because
// huggingface_hub takes a repository's name out of them, and knows no other hub than HF_ENDPOINT and knownHub.
func (f *Front) rewriteBody(resp *http.Response) error {
	path := f.pathAtHub(resp)
	listing := !f.ofBucket(resp) && (strings.Contains(path, "/tree/") || strings.Contains(path, "/paths-info/"))
	made := resp.Request.Method == http.MethodPost && f.origin.base.Hostname() != knownHub &&
		(strings.Contains(path, "/commit/") || strings.HasPrefix(path, "/api/repos/"))
	document := resp.StatusCode == http.StatusOK && strings.Contains(resp.Header.Get("Content-Type"), "json")
	if !document || !listing && !made {
		return nil
	}
	ctx, x := resp.Request.Context(), exchangeOf(resp)
	body, err := readSoon(ctx, resp)
	if errors.Is(err, room.ErrTooLong) {
		begun := &begun{Reader: bytes.NewReader(body), taken: func() {
			room.Shrink(ctx, 0)
			x.Leisure()
		}}
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(begun, resp.Body), resp.Body}
		if len(body) > 0 {
			x.Hurry(int64(len(body)))
		}
		return nil
	}
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if made {
		host := x.host()
		base := strings.TrimSuffix(f.origin.base.String(), "/")
		body = bytes.ReplaceAll(body, []byte(`"`+base+`/`), []byte(`"`+host+`/`))
	} else if clean, err := withoutXet(body, plainLimit); err == nil {
		body = clean
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	x.Hurry(int64(len(body)))
	return nil
}

// readSoon reads the body of an answer, unless that is too long. One that stands still is given up: others wait for the
// memory in which it is.
func readSoon(ctx context.Context, resp *http.Response) ([]byte, error) {
	still := time.AfterFunc(askTimeout, func() { _ = resp.Body.Close() }) // which ends the reading
	defer still.Stop()
	in := &moving{Reader: resp.Body, progress: func() { still.Reset(askTimeout) }}
	return room.ReadAll(ctx, in, resp.ContentLength, maxRewritten, docTimes)
}

// begun is the beginning of a body that is too long for memory. Once it is taken it is there no more.
type begun struct {
	io.Reader
	taken func()
}

func (b *begun) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil {
		b.Reader = strings.NewReader("")
		b.taken()
	}
	return n, err
}
