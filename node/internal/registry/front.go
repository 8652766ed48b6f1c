// Package registry is the registry front: the HTTP server that speaks the pull half of the OCI distribution
// specification to container runtimes and other clients.
//
// Files in the order in which a request meets them:
//
//	path.go       registry, repository, and what is asked for
//	tags.go       from a tag to a digest
//	manifest.go   the answer with a manifest
//	blob.go       the answer with a blob
//	patience.go   how long the runtime is kept waiting
//	errors.go     every failure as an answer on which the runtime can act
//	pages.go      tag lists and referrers, passed on
//
// Package gate lets only those callers on whom the registry lets on, and package reply has what is plain HTTP.
//
// Two rules hold everywhere. HEAD says what GET would do, so a HEAD of a manifest fetches it. And an answer either ends
// with the right bytes or with an aborted connection.
package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/pulls"
	"github.com/shoal-cache/shoal/node/internal/reply"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/trace"
)

// Fetcher has the content: from this node, its peers, or upstream.
type Fetcher interface {
	// Open gives a reader of a blob or manifest, whose bytes may still be arriving. The reader ends with ctx.
	Open(ctx context.Context, req content.Request) (content.Reader, error)
	// OpenPast is Open straight from upstream, whatever others say.
	OpenPast(ctx context.Context, req content.Request) (content.Reader, error)
	// Stat tells what Open would give: size in bytes and media type ("" where that is not known), without fetching.
	Stat(ctx context.Context, req content.Request) (size int64, mediaType string, err error)
	// Progress is how many bytes have arrived at this node of what req is for, parts of chunks among them, and of all
	// from its repository. It changes for as long as a pull is slow and not stuck.
	Progress(req content.Request) (blob, pull int64)
	// ReadAhead tells that the whole of a blob is being read, so that what is likely to be asked for next may be
	// fetched.
	ReadAhead(req content.Request)
}

// Upstream asks the registries themselves, with the caller's credentials. Its errors are *content.UpstreamError for
// what a registry answered, and content.ErrUnavailable where none did.
type Upstream interface {
	gate.Registries
	Resolve(ctx context.Context, repo content.Repository, reference string, accept []string,
		authorization string) (v1.Descriptor, error)
	Forward(ctx context.Context, repo content.Repository, path string, query url.Values, accept []string,
		authorization string) (*http.Response, error)
}

// TagMemory remembers the registries' answers for tags, for the time when they cannot be asked.
type TagMemory interface {
	Remember(ctx context.Context, repo content.Repository, tag string, desc v1.Descriptor)
	// Recall gives the newest answer that this node or the swarm knows, and when the registry gave it.
	Recall(ctx context.Context, repo content.Repository, tag string) (v1.Descriptor, time.Time, bool)
}

// Record remembers requests.
type Record interface {
	// Asked is called when a request begins. What it returns is called once its answer has ended.
	Asked(registry, name string) func(pulls.Answer)
}

// Options configure a Front. Fetcher, Upstream and Gate are required.
type Options struct {
	Fetcher  Fetcher
	Upstream Upstream
	Gate     *gate.Gate
	// Tags is optional: without it tags do not resolve while their registry is down, once TagTTL has passed.
	Tags TagMemory
	// Rules gives the policy for a repository; nil: policy.DefaultRule.
	Rules func(content.Repository) policy.Rule
	// ManifestServed hears of each manifest that a caller was given. Optional.
	ManifestServed func(digest.Digest)
	// Record hears of the requests for content, for who asks later how a pull went. Optional.
	Record Record
	// DefaultRegistry is that of requests which name none, as of Docker, crane and skopeo. May be empty.
	DefaultRegistry string
	// FirstByteTimeout is how long a caller waits for the first byte of an answer while nothing of its pull arrives at
	// this node. 0: content.DefaultFirstByte.
	FirstByteTimeout time.Duration
	// UpstreamTimeout bounds a question to the registry; a registry that takes longer counts as silent. 0: gate.Timeout
	// of FirstByteTimeout.
	UpstreamTimeout time.Duration
	// Documents is the memory for manifests and lists. nil: a front's own.
	Documents *room.Room
	// Tracer makes a span of each request. Optional.
	Tracer     *trace.Tracer
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Front is the registry front. It is an http.Handler for one listener.
type Front struct {
	opts    Options
	log     *slog.Logger
	metrics *metrics
	tags    *tags
	pages   *pages
	running reply.Running
}

// New makes a front.
func New(opts Options) (*Front, error) {
	if opts.Fetcher == nil || opts.Upstream == nil || opts.Gate == nil {
		return nil, errors.New("registry front: needs a Fetcher, an Upstream and a Gate")
	}
	if opts.DefaultRegistry != "" {
		host, err := hostname(opts.DefaultRegistry)
		if err != nil {
			return nil, fmt.Errorf("registry front: default registry: %w", err)
		}
		opts.DefaultRegistry = host
	}
	if opts.Rules == nil {
		opts.Rules = func(content.Repository) policy.Rule { return policy.DefaultRule() }
	}
	opts.FirstByteTimeout = cmp.Or(opts.FirstByteTimeout, content.DefaultFirstByte)
	opts.UpstreamTimeout = cmp.Or(opts.UpstreamTimeout, gate.Timeout(opts.FirstByteTimeout))
	opts.Documents = cmp.Or(opts.Documents, room.New(room.Share(4)))
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	f := &Front{opts: opts, log: opts.Logger, metrics: newMetrics(opts.Registerer)}
	f.tags = newTags(opts.Upstream, opts.UpstreamTimeout, opts.Tags, opts.Documents, opts.Gate, f.metrics, f.log)
	f.pages = newPages(opts.Upstream, opts.UpstreamTimeout, opts.Gate, opts.Documents)
	return f, nil
}

// Drain refuses new requests with 503 and returns when the running ones have ended, or with ctx's error before.
func (f *Front) Drain(ctx context.Context) error {
	defer f.tags.close()
	if err := f.running.Drain(ctx); err != nil {
		return fmt.Errorf("registry front: %w", err)
	}
	return nil
}

// admit returns nil when the caller of x may read what req asks for.
func (f *Front) admit(ctx context.Context, x *exchange, req content.Request) error {
	x.digest = req.Digest
	err := f.opts.Gate.Admit(ctx, x.rule, gate.Blob(f.opts.Upstream, req))
	x.authorized = time.Since(x.Start)
	// Elsewhere a source that has proved nothing is given what it gives itself. Here its registry is asked for nothing.
	if err == nil && x.rule.Mode == policy.PeersOnly && x.rule.Authorization.Mode != policy.Exempt &&
		!f.opts.Gate.Proved(req) {
		return fmt.Errorf("%s of %s, whose registry has not shown that it has it: %w", req.Digest, req.Repository,
			content.ErrNotFound)
	}
	return err
}

// exchange is one request and what is known of its answer.
type exchange struct {
	reply.Exchange
	route route
	rule  policy.Rule

	answered             func(pulls.Answer) // nil where nobody wants to know
	digest               digest.Digest      // of what was asked for, once it is known
	resolved, authorized time.Duration      // since its start
	bytes                int64              // of the content that went out
	given                given
	span                 trace.Span
}

// given is where the content of an answer lay when it was asked for.
type given uint8

const (
	givenNone  given = iota // no content was opened
	givenHeld               // on this node, all of it
	givenOther              // elsewhere, or some of it
)

// opened notes what the answer is read from.
func (x *exchange) opened(r content.Reader) {
	x.given = givenOther
	if content.Held(r) {
		x.given = givenHeld
	}
}

// request is what the exchange asks of the Fetcher and of the gate.
func (x *exchange) request(kind content.Kind) content.Request {
	return content.Request{
		Repository: x.route.repo, Kind: kind, Digest: x.route.digest, Authorization: x.Authorization(), Since: x.Start,
	}
}

// ServeHTTP answers one request. As http.Handler allows, it panics with http.ErrAbortHandler when an answer that has
// begun cannot be ended rightly.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r, span := f.opts.Tracer.Answer(r, "pull")
	x := &exchange{Exchange: reply.New(w, r), route: route{endpoint: endUnknown}, span: span}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if !f.running.Enter() {
		w.Header().Set("Connection", "close")
		x.fail(errDraining)
		return
	}
	defer f.running.Leave()
	ctx, end := f.opts.Documents.Lease(room.For(r.Context(), reply.Caller(r)))
	defer end()
	x.R = r.WithContext(ctx)     //nolint:contextcheck // the exchange carries the request, and with it its context
	defer f.finish(x)            //nolint:contextcheck // as above
	x.Settle(f.serve(x), x.fail) //nolint:contextcheck // as above
}

func (f *Front) serve(x *exchange) error {
	if x.R.Method != http.MethodGet && x.R.Method != http.MethodHead {
		x.W.Header().Set("Allow", "GET, HEAD")
		return errReadOnly
	}
	if strings.Contains(x.R.Header.Get("Via"), " shoal") {
		return errLoop
	}
	var err error
	x.route, err = parseRoute(x.R.URL.Path, x.R.URL.Query().Get("ns"), f.opts.DefaultRegistry)
	if err != nil {
		return err
	}
	if x.route.endpoint == endBase {
		return f.base(x)
	}
	x.rule = f.opts.Rules(x.route.repo)
	if x.rule.Mode == policy.Bypass {
		return errBypass
	}
	if f.opts.Record != nil && (x.route.endpoint == endManifest || x.route.endpoint == endBlob) {
		x.answered = f.opts.Record.Asked(x.route.repo.Registry, x.route.repo.Name)
	}
	switch x.route.endpoint {
	case endManifest:
		return f.manifest(x)
	case endBlob:
		return f.blob(x)
	default:
		return f.page(x)
	}
}

// fetchable is req as the Fetcher gets it: where the policy says peers only, it does not learn the repository.
func (x *exchange) fetchable(req content.Request) content.Request {
	if x.rule.Mode == policy.PeersOnly {
		return req.WithoutUpstream()
	}
	return req
}

// progress returns what counts the bytes that have arrived for req and its pull. The patience calls it from a goroutine
// of its own.
func (f *Front) progress(req content.Request) progress {
	return func() (blob, pull int64) { return f.opts.Fetcher.Progress(req) }
}

// base answers GET /v2/, by which clients learn whether and how to authenticate. Where the registry is known, it is the
// registry's own answer; a registry that is down does not keep its images from being pulled.
func (f *Front) base(x *exchange) error {
	if x.route.repo.Registry != "" {
		ctx, cancel := context.WithTimeout(x.R.Context(), f.opts.UpstreamTimeout)
		defer cancel()
		resp, err := f.opts.Upstream.Forward(ctx, x.route.repo, "", nil, nil, x.Authorization())
		if content.Denied(err) {
			return err
		}
		if err == nil {
			_ = resp.Body.Close()
		}
	}
	return x.writeJSON([]byte("{}"), "application/json")
}

func (x *exchange) writeJSON(body []byte, mediaType string) error {
	h := x.W.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", fmt.Sprint(len(body)))
	x.WriteHeader(http.StatusOK)
	if x.R.Method == http.MethodHead {
		return nil
	}
	return x.Give(body)
}

// trace tells the request's span what came of it.
func (x *exchange) trace() {
	if !x.span.On() {
		return
	}
	x.span.Text("shoal.kind", string(x.route.endpoint))
	x.span.Text("shoal.repository", x.route.repo.String())
	x.span.Text("shoal.reference", x.route.reference())
	x.span.Text("http.response.status_code", x.Code())
	x.span.Number("shoal.bytes", x.bytes)
	x.span.Number("shoal.resolve_ms", x.resolved.Milliseconds())
	x.span.Number("shoal.authorize_ms", x.authorized.Milliseconds())
	x.span.Number("shoal.first_byte_ms", x.FirstByte.Milliseconds())
	x.span.End(x.Err)
}

// finish counts and logs an exchange. It runs also when the handler panics to abort.
func (f *Front) finish(x *exchange) {
	f.metrics.count(x)
	x.trace()
	if x.answered != nil {
		x.answered(pulls.Answer{
			Kind: string(x.route.endpoint), Reference: x.route.reference(), Digest: x.digest.String(), Code: x.Code(),
			Err: x.Err, Bytes: x.bytes,
			Start: x.Start, Resolve: x.resolved, Authorize: x.authorized, FirstByte: x.FirstByte,
			Took: time.Since(x.Start),
		})
	}
	f.log.LogAttrs(x.R.Context(), x.Level(), "registry front answered",
		slog.String("method", x.R.Method), slog.String("kind", string(x.route.endpoint)),
		slog.String("repository", x.route.repo.String()), slog.String("reference", x.route.reference()),
		slog.String("code", x.Code()), slog.Duration("took", time.Since(x.Start)), slog.Any("cause", x.Err))
}
