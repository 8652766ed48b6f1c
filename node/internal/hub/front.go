package hub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/lru"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/reply"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/trace"
)

// Fetcher has the content: from this node, its peers, or the hub.
type Fetcher interface {
	Open(ctx context.Context, req content.Request) (content.Reader, error)
	// OpenHere fails with content.ErrNoSpace for what is not kept, and OpenPast shares nothing.
	OpenHere(ctx context.Context, req content.Request) (content.Reader, error)
	OpenPast(ctx context.Context, req content.Request) (content.Reader, error)
	// Stat tells the size of what Open would give.
	Stat(ctx context.Context, req content.Request) (size int64, mediaType string, err error)
	// Serves reports whether Open would give what is being fetched for the same source, or for one that has proved to
	// have the content.
	Serves(req content.Request) bool
}

// Upstream reads files from the hub, and from the hosts of URLs.
type Upstream = gate.Registries

// Store keeps documents and small files.
type Store interface {
	PutInto(ctx context.Context, pool store.Pool, d digest.Digest, r io.Reader, size int64) error
	Stat(d digest.Digest) (store.Info, error)
	Usage() store.Usage
}

// Options configure a Front. Endpoint, Transport, Hub, Gate, Fetcher, Upstream and Store are required.
type Options struct {
	// Endpoint is the hub's base URL.
	Endpoint *url.URL
	// Transport reaches it.
	Transport http.RoundTripper
	// Hasty reads the body of an answer of the hub's of which so many bytes are due, -1 where that is not known. It
	// fails with content.ErrUnavailable where the hub had better be asked once more, because that drips. Optional.
	Hasty func(body io.Reader, due int64) io.Reader
	// Hub is the hub's name in policies and in what is asked of Fetcher and Upstream.
	Hub string
	// Gate remembers whom the hub accepted.
	Gate     *gate.Gate
	Fetcher  Fetcher
	Upstream Upstream
	Store    Store
	// Memory is optional: without it a restart forgets what the hub said.
	Memory Memory
	// Rules gives the policy for a repository; nil: policy.DefaultRule.
	Rules func(content.Repository) policy.Rule
	// URLs are those below which files are given by their digest and URL. None: no such file is.
	URLs []*url.URL
	// Documents is the memory for documents, and Questions that for bodies of questions. nil: a front's own.
	Documents, Questions *room.Room
	// Slack is how many times as long as in an agent others are waited for, and the hub's no is used; default 1. For
	// tests, whose machine may be too slow for an agent's times.
	Slack Slack
	// AllowFrom are the address ranges of callers, besides this machine's own.
	AllowFrom []netip.Prefix
	// Tracer makes a span of each request, and of each question to the hub. Optional.
	Tracer     *trace.Tracer
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Slack is a multiple of an agent's times.
type Slack int

func (s Slack) of(d time.Duration) time.Duration { return d * time.Duration(max(1, s)) }

// Front is the hub front. It is an http.Handler for one listener.
type Front struct {
	opts     Options
	log      *slog.Logger
	metrics  *metrics
	origin   *origin
	memo     *memo
	access   *access
	proxy    http.Handler
	listings room.Shelf[*listing]
	apart    *lru.Cache[string, time.Time] // when it was last tried in vain to compare a file
	writes   writes
	running  reply.Running
	callers  callers
	crowded  crowd
	checked  *lru.Cache[string, record] // files out of git whose names were checked
	gitRoom  *semaphore.Weighted        // for the bytes of those that are read or come
	peeks    singleflight.Group
	building room.Flights // of listings

	ctx     context.Context // of what goes on behind an answer
	cancel  context.CancelFunc
	telling sync.WaitGroup
	closing sync.Mutex // held while ctx ends, and while telling goes up
}

const (
	// maxChecked bounds the files out of git of which it is remembered that they are what they are named.
	maxChecked = 16 << 10
	// maxGitBytes bounds the bytes of files out of git in memory, but for small ones. Others wait.
	maxGitBytes = 128 << 20
)

// New makes a front of a node that is alone. Join gives it the others.
func New(opts Options) (*Front, error) {
	if opts.Endpoint == nil || opts.Transport == nil || opts.Hub == "" || opts.Gate == nil ||
		opts.Fetcher == nil || opts.Upstream == nil || opts.Store == nil {
		return nil, errors.New("hub front: needs Endpoint, Transport, Hub, Gate, Fetcher, Upstream and Store")
	}
	if opts.Rules == nil {
		opts.Rules = func(content.Repository) policy.Rule { return policy.DefaultRule() }
	}
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	opts.Documents = cmp.Or(opts.Documents, room.New(room.Share(4)))
	opts.Questions = cmp.Or(opts.Questions, room.New(room.Share(16)))
	f := &Front{
		opts: opts, log: opts.Logger, metrics: newMetrics(opts.Registerer),
		memo:     newMemo(opts.Memory, opts.Documents, opts.Logger),
		listings: room.Keep[*listing](opts.Documents, "hub's listings"),
		apart:    lru.New[string, time.Time](maxIncomparable),
		checked:  lru.New[string, record](maxChecked), gitRoom: semaphore.NewWeighted(maxGitBytes),
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.writes.last = lru.New[string, time.Time](maxWrites)
	f.access = &access{memo: f.memo, gate: opts.Gate, hub: opts.Hub}
	f.origin = &origin{
		base: opts.Endpoint, transport: opts.Transport, metrics: f.metrics, throttled: map[mark]throttle{},
		key: f.memo.mark, tracer: opts.Tracer, slack: opts.Slack, hasty: opts.Hasty,
	}
	f.memo.down, f.memo.slack = f.origin.down, opts.Slack
	f.proxy = f.newProxy()
	return f, nil
}

// Join has the front ask the hub together with the other nodes. It must be called before the front serves.
func (f *Front) Join(shared Shared) { f.memo.shared = shared }

// Known answers other nodes out of what this one remembers; see Shared.
func (f *Front) Known(key string) (value []byte, age time.Duration, ok bool) {
	if blob, asks := strings.CutPrefix(key, "blob\x00"); asks {
		d, _, _ := strings.Cut(blob, "\x00") // agents of before name a repository behind it
		return []byte("{}"), 0, f.has(digest.Digest(d))
	}
	return f.memo.known(key)
}

// Remembers answers other nodes that ask while the hub is away; see Shared.
func (f *Front) Remembers(key string) (value []byte, age time.Duration, ok bool) {
	if kindOf(key) == blobKind {
		return f.Known(key)
	}
	return f.memo.remembers(key)
}

// Told remembers what another node has found out for all.
func (f *Front) Told(key string, value []byte, age time.Duration) { f.memo.told(key, value, age) }

// Close ends what goes on behind the answers.
func (f *Front) Close() {
	f.closing.Lock() // nothing is told from now on
	f.cancel()
	f.closing.Unlock()
	f.telling.Wait()
}

// Drain refuses new requests with 503 and returns when the running ones have ended, or with ctx's error before.
func (f *Front) Drain(ctx context.Context) error {
	if err := f.running.Drain(ctx); err != nil {
		return fmt.Errorf("hub front: %w", err)
	}
	return nil
}

// exchange is one request and what is known of its answer.
type exchange struct {
	reply.Exchange
	route route
	rule  policy.Rule
	stale bool // the hub could not be asked
	whole bool // the answer has all of the file
	held  bool // a peer says that it holds the file
	slack Slack
	past  bool // what others have of the file could not be compared with the hub's, so it comes from the hub alone
	span  trace.Span
}

// wantsPart reports whether the caller wants a part alone. Of an answer that has all of the file no rest is one either:
// the answer may be opened anew in its middle.
func (x *exchange) wantsPart() bool { return !x.whole && reply.WantsPart(x.R, reply.NobodyChecks) }

// host is the base URL at which the client reaches the front.
func (x *exchange) host() string {
	scheme := "http"
	if x.R.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + x.R.Host
}

// ServeHTTP answers one request. As http.Handler allows, it panics with http.ErrAbortHandler when an answer that has
// begun cannot be ended rightly.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r, span := f.opts.Tracer.Answer(r, "download")
	x := &exchange{Exchange: reply.New(w, r), route: route{action: actPass}, rule: policy.DefaultRule(), span: span,
		slack: f.opts.Slack}
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
	if !f.allows(x.R.RemoteAddr) {
		return errOutside(x.R.RemoteAddr)
	}
	leave, err := f.callers.enter(reply.Caller(x.R))
	if err != nil {
		x.W.Header().Set("Retry-After", strconv.Itoa(retrySoon))
		return err
	}
	defer leave()
	if strings.Contains(x.R.Header.Get("Via"), " shoal") {
		return errLoop
	}
	var ok bool
	if x.route, ok = parseRoute(x.R.Method, x.R.URL.EscapedPath()); !ok {
		return errBadPath
	}
	if x.route.repo.id != "" {
		x.rule = f.opts.Rules(x.route.repo.source(f.opts.Hub))
		switch x.rule.Mode {
		case policy.Bypass:
			x.route.action = actPass
		default:
			x.R = x.R.WithContext(ruled(x.R.Context(), x.rule))
		}
	}
	switch x.route.action {
	case actURL:
		return f.url(x)
	case actTelemetry:
		x.WriteHeader(http.StatusOK)
		return nil
	case actHarnesses:
		return f.harnesses(x)
	case actFile:
		return f.file(x)
	case actInfo:
		return f.info(x)
	case actTree:
		return f.tree(x)
	case actPaths:
		return f.paths(x)
	case actRefs:
		return f.refs(x)
	}
	return f.pass(x)
}

// ruled is ctx with the word that the hub is not to be asked, where the policy has that.
func ruled(ctx context.Context, rule policy.Rule) context.Context {
	if rule.Mode == policy.PeersOnly {
		return context.WithValue(ctx, peersOnly{}, true)
	}
	return ctx
}

// maxRunning is how many requests of one address run at a time: more than all clients of a pod make, and so few that
// one pod can't take a node's memory. This machine's own are not counted.
const maxRunning = 1024

// callers are the requests that run, by address.
type callers struct {
	mu      sync.Mutex
	running map[string]int
}

// enter counts a request until leave.
func (c *callers) enter(addr string) (leave func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil {
		c.running = map[string]int{}
	}
	if c.running[addr] >= maxRunning {
		return nil, &httpError{http.StatusTooManyRequests, "", fmt.Sprintf("address %s has %d requests running, which "+
			"is as many as one may", addr, maxRunning)}
	}
	c.running[addr]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.running[addr]--; c.running[addr] == 0 {
			delete(c.running, addr)
		}
	}, nil
}

// allows reports whether a caller's address may use the front: this machine's own, and those that the configuration
// names.
func (f *Front) allows(remote string) bool {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return false
	}
	addr := at.Addr().Unmap().WithZone("")
	if addr.IsLoopback() {
		return true
	}
	for _, p := range f.opts.AllowFrom {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// who tells callers apart in whose names the hub is asked.
func (f *Front) who(x *exchange) mark { return f.memo.mark("who", x.Authorization()) }

// admit returns an error where the exchange's caller may not read its repository at a level.
func (f *Front) admit(ctx context.Context, x *exchange, l level, ask probe) error {
	if x.rule.Authorization.Mode == policy.Exempt {
		return nil
	}
	as, err := f.access.admit(ctx, x.rule, x.route.repo, l, x.Authorization(), ask)
	if err != nil {
		return err
	}
	if as.stale != nil {
		return x.outage(as.stale)
	}
	return nil
}

// trace tells the request's span what came of it.
func (x *exchange) trace() {
	if !x.span.On() {
		return
	}
	x.span.Text("shoal.action", string(x.route.action))
	x.span.Text("shoal.repository", x.route.repo.name())
	x.span.Text("shoal.reference", x.route.revision)
	x.span.Text("shoal.path", x.route.path)
	x.span.Text("http.response.status_code", x.Code())
	x.span.Number("shoal.first_byte_ms", x.FirstByte.Milliseconds())
	x.span.End(x.Err)
}

// finish counts and logs an exchange. It runs also when the handler panics to abort.
func (f *Front) finish(x *exchange) {
	f.metrics.Observe(&x.Exchange, string(x.route.action))
	x.trace()
	if x.stale {
		f.metrics.stale.Inc()
	}
	f.log.LogAttrs(x.R.Context(), x.Level(), "hub front answered",
		slog.String("method", x.R.Method), slog.String("action", string(x.route.action)),
		slog.String("repository", x.route.repo.name()), slog.String("revision", x.route.revision), slog.String("path",
			x.route.path),
		slog.String("code", x.Code()), slog.Duration("took", time.Since(x.Start)), slog.Any("cause", x.Err))
}
