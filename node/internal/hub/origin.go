package hub

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/reply"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/trace"
)

const (
	// askTimeout bounds the wait for the header of the hub's answer, for which clients wait 10 s. From then on it
	// bounds the wait for each minProgress bytes of the body, which may take long as a whole.
	askTimeout  = 9 * time.Second
	minProgress = 4 << 10
	// downFor is for how long a hub that could not be asked is not asked where something older will do.
	downFor = 5 * time.Second
	// maxDoc is the longest answer in bytes that is read into memory: a page of a tree, or what is told of a repository
	// with very many files.
	maxDoc = 64 << 20
	// docTimes is how many times over such an answer is in memory while Xet is taken out of it.
	docTimes    = 3
	maxErrorDoc = 64 << 10
	maxHops     = 5
	// againAfter is the pause before the hub is asked once more after an answer that was none.
	againAfter = 300 * time.Millisecond

	// via tells that a request comes from an agent; see RFC 9110, section 7.6.3.
	via = "1.1 shoal"
)

// origin asks the hub itself. A caller's token goes to the hub's own scheme, host and port and nowhere else.
type origin struct {
	base      *url.URL
	transport http.RoundTripper
	metrics   *metrics
	tracer    *trace.Tracer
	slack     Slack
	hasty     func(body io.Reader, due int64) io.Reader // see Options; nil: no answer is given up because it drips

	mu          sync.Mutex
	heard       time.Time // when it last answered anything
	downUntil   time.Time
	failedUntil time.Time         // no question is put a second time until then
	throttled   map[mark]throttle // by whose token
	key         func(parts ...string) mark
}

// throttle is the hub's wish that a caller asks no more for a while.
type throttle struct {
	until time.Time
	said  *refusal
}

// call is a question to the hub.
type call struct {
	method        string
	path          string // escaped, below the hub's base URL
	query         string
	authorization string
	header        http.Header // besides those that every question has
	body          string
	headerOnly    bool  // the body of the answer is not read
	only          int64 // how many bytes of the body are read; 0: all
	stay          bool  // a redirect within the hub is not followed, but the answer
	// progress tells that more of the answer has come.
	progress func()
	hasty    bool // the hub is asked once more where the answer drips
}

func (c call) String() string { return c.method + " " + c.path }

// answer is a success of the hub's.
type answer struct {
	header http.Header
	// location is where else the content lies, nil where it lies with the hub.
	location *url.URL
	// next is the escaped path and query of the next page, something else where that cannot be asked for, "" where
	// there is none.
	next string
	body []byte
}

// refusal is an answer of the hub's other than success. It reaches the caller as it is, because clients branch on its
// status and on its X-Error-Code.
type refusal struct {
	op     string
	status int
	header http.Header
	body   []byte
}

func (r *refusal) Error() string {
	s := fmt.Sprintf("%s: the hub answered %d %s", r.op, r.status, http.StatusText(r.status))
	if code := r.header.Get("X-Error-Code"); code != "" {
		s += " (" + code + ")"
	}
	return s
}

// Is makes a refusal of the hub's fit content's errors, as content.UpstreamError does.
func (r *refusal) Is(target error) bool {
	switch {
	case r.status == http.StatusNotFound:
		return target == content.ErrNotFound
	case r.status == http.StatusTooManyRequests || r.status >= 500:
		return target == content.ErrUnavailable
	}
	return false
}

// denied reports whether the hub refused the caller, or said that there is nothing for it.
func denied(err error) bool {
	r, ok := errors.AsType[*refusal](err)
	return ok && (r.status == http.StatusUnauthorized || r.status == http.StatusForbidden ||
		r.status == http.StatusNotFound ||
		r.status == http.StatusGone || r.status == http.StatusUnavailableForLegalReasons)
}

// throttling reports whether the hub asked to be left alone.
func throttling(err error) bool {
	r, ok := errors.AsType[*refusal](err)
	return ok && r.status == http.StatusTooManyRequests
}

// provoked reports whether err is of a kind that whoever asks much can bring about, for himself or for others.
func provoked(err error) bool { return throttling(err) || errors.Is(err, room.ErrFull) }

// away reports whether err says nothing about the caller or the content: an outage, or throttling, which anyone can
// bring about.
func away(err error) bool {
	return errors.Is(err, content.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

// down reports whether the hub could not be asked a moment ago.
func (o *origin) down() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Now().Before(o.downUntil)
}

// well reports whether no question failed a moment ago.
func (o *origin) well() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Now().After(o.failedUntil)
}

// throttledFor is what the hub said to a caller that it throttles, with the time that is left of it. nil: it does not.
func (o *origin) throttledFor(authorization string) *refusal {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := o.key("throttle", authorization)
	t, ok := o.throttled[k]
	left := time.Until(t.until)
	if !ok || left <= 0 {
		delete(o.throttled, k)
		return nil
	}
	said := *t.said
	said.header = said.header.Clone()
	seconds := strconv.Itoa(int(left.Seconds()) + 1)
	said.header.Set("Retry-After", seconds)
	if limit := said.header.Get("RateLimit"); limit != "" { // which clients heed first
		said.header.Set("RateLimit", rateLimit.ReplaceAllString(limit, "${1}${2}${3}"+seconds))
	}
	return &said
}

// note remembers how a question went that was put at a time. The hub is down where it has answered nothing since: what
// is wrong with one answer, or long in coming, somebody may have chosen.
func (o *origin) note(ctx context.Context, authorization string, asked time.Time, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r, answered := errors.AsType[*refusal](err)
	switch {
	case errors.Is(err, room.ErrFull): // which says nothing about the hub
	case err == nil, answered && r.status < 500 && r.status != http.StatusTooManyRequests:
		o.downUntil, o.failedUntil = time.Time{}, time.Time{}
	case answered && r.status == http.StatusTooManyRequests:
		if wait := retryAfter(r.header); wait > 0 {
			for k, t := range o.throttled { // few, because they end by themselves
				if time.Now().After(t.until) {
					delete(o.throttled, k)
				}
			}
			if len(o.throttled) < maxThrottled {
				o.throttled[o.key("throttle", authorization)] = throttle{time.Now().Add(wait), r}
			}
		}
	case !errors.Is(context.Cause(ctx), context.Canceled): // a caller that went says nothing about the hub
		o.failedUntil = time.Now().Add(downFor)
		if o.heard.Before(asked) {
			o.downUntil = o.failedUntil
		}
	}
}

const (
	maxThrottled  = 1024
	maxRetryAfter = 10 * time.Minute
)

// rateLimit is what a RateLimit header says of one limit: "api";r=0;t=55, no request is left for 55 seconds.
var rateLimit = regexp.MustCompile(`(;\s*r\s*=\s*)(\d+)(\s*;\s*t\s*=\s*)(\d+)`)

// retryAfter reads the wish of a 429: Retry-After in seconds or as a date, or the time that is left of a limit in the
// RateLimit header. The hub tells of its limits with every answer. Only one of which nothing is left is meant.
func retryAfter(h http.Header) time.Duration {
	after, said := content.RetryAfter(h.Get("Retry-After"))
	if said {
		return min(after, maxRetryAfter)
	}
	for _, limit := range rateLimit.FindAllStringSubmatch(h.Get("RateLimit"), -1) {
		if t, _ := content.RetryAfter(limit[4]); strings.Trim(limit[2], "0") == "" {
			after = max(after, t)
		}
	}
	return min(after, maxRetryAfter)
}

// ask asks the hub and reads its whole answer. Redirects within the hub are followed. Its error is a *refusal for what
// the hub answered, and content.ErrUnavailable where it did not.
func (o *origin) ask(ctx context.Context, c call) (*answer, error) {
	if ctx.Value(peersOnly{}) != nil {
		return nil, errPeersOnly
	}
	if said := o.throttledFor(c.authorization); said != nil {
		return nil, said
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	within := o.slack.of(askTimeout)
	patience := time.AfterFunc(within, func() { cancel(context.DeadlineExceeded) })
	defer patience.Stop()
	c.progress = func() { patience.Reset(within) }
	ctx, span := o.tracer.Start(ctx, "ask")
	span.Text("http.request.method", c.method)
	span.Text("shoal.path", c.path)
	asked, tryAgain := time.Now(), o.well()
	c.hasty = tryAgain && o.hasty != nil
	got, err := o.once(ctx, c)
	if err != nil && again(err) && tryAgain && content.Sleep(ctx, againAfter) {
		c.hasty = false
		got, err = o.once(ctx, c)
	}
	o.note(ctx, c.authorization, asked, err)
	span.End(err)
	return got, err
}

// peersOnly is the key under which the context of a request says that the policy keeps it from the hub.
type peersOnly struct{}

// again reports whether a second try may help at once.
func again(err error) bool {
	r, answered := errors.AsType[*refusal](err)
	if answered {
		return r.status == http.StatusBadGateway || r.status == http.StatusServiceUnavailable ||
			r.status == http.StatusGatewayTimeout
	}
	return errors.Is(err, content.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) &&
		!errors.Is(err, room.ErrSlow)
}

// once sends a call one time. Of a mirror that knows no HEAD it asks the first byte, whose header tells the same, and
// of one that does not say then of how many, the whole, of which it reads the header alone.
func (o *origin) once(ctx context.Context, c call) (*answer, error) {
	a, err := o.put(ctx, c)
	refused, ok := errors.AsType[*refusal](err)
	if !ok || c.method != http.MethodHead ||
		refused.status != http.StatusMethodNotAllowed && refused.status != http.StatusNotImplemented {
		return a, err
	}
	whole := c
	whole.method, whole.headerOnly = http.MethodGet, true
	first := whole
	if first.header = c.header.Clone(); first.header == nil {
		first.header = http.Header{}
	}
	first.header.Set("Range", "bytes=0-0")
	if a, err = o.put(ctx, first); err != nil {
		return nil, err
	}
	_, size, partial := strings.Cut(a.header.Get("Content-Range"), "/")
	switch _, known := reply.Number(size); {
	case partial && known:
		a.header.Set("Content-Length", size)
	case partial:
		return o.put(ctx, whole)
	}
	return a, nil
}

// put sends a call one time, as it is.
func (o *origin) put(ctx context.Context, c call) (*answer, error) {
	resp, err := o.follow(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		// A redirect to another host is an answer as well: its own header tells what lies there.
		if resp.StatusCode >= 300 && resp.StatusCode < 400 {
			at, err := resp.Location()
			if err != nil {
				return nil, fmt.Errorf("%s: answered %d: %w: %w", c, resp.StatusCode, content.ErrUnavailable, err)
			}
			return &answer{header: resp.Header, location: at}, nil
		}
		return nil, o.refusal(c, resp)
	}
	a := &answer{header: resp.Header, next: o.nextPage(resp)}
	if c.method == http.MethodHead || c.headerOnly {
		if encoding(resp) != "" { // what is said of the length is not about the file
			a.header.Del("Content-Length")
		}
		return a, nil
	}
	a.body, err = o.bodyOf(ctx, resp, c)
	switch {
	case errors.Is(err, room.ErrFull):
		return nil, fmt.Errorf("%s: %w", c, err)
	case err != nil:
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("%s: %w: %w", c, content.ErrUnavailable, err)
	}
	return a, nil
}

// encoding is how the body of an answer is encoded, "" where it is as it is.
func encoding(resp *http.Response) string {
	if enc := strings.ToLower(resp.Header.Get("Content-Encoding")); enc != "identity" {
		return enc
	}
	return ""
}

// moving tells of each minProgress bytes that were read.
type moving struct {
	io.Reader
	progress func()
	fresh    int
}

func (m *moving) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	if m.fresh += n; m.fresh >= minProgress {
		m.fresh = 0
		m.progress()
	}
	return n, err
}

// bodyOf reads the body of the answer to a call. Storage that has it packed sends it so, whatever was asked for.
func (o *origin) bodyOf(ctx context.Context, resp *http.Response, c call) ([]byte, error) {
	c.progress() // the header has come
	in := io.Reader(&moving{Reader: resp.Body, progress: c.progress})
	if c.hasty {
		in = o.hasty(in, resp.ContentLength)
	}
	enc := encoding(resp)
	switch enc {
	case "":
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("the answer is no gzip, as it says: %w", err)
		}
		in = z
	default:
		return nil, fmt.Errorf("the answer is encoded as %q, which was not asked for", enc)
	}
	if c.only > 0 {
		body := make([]byte, c.only)
		_, err := io.ReadFull(in, body)
		return body, err
	}
	length := resp.ContentLength
	if enc != "" {
		length = -1
	}
	body, err := room.ReadAll(ctx, in, length, maxDoc, docTimes)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the answer: %w", err)
	case length >= 0 && int64(len(body)) != length:
		return nil, fmt.Errorf("%d of %d bytes", len(body), length)
	}
	return body, nil
}

// follow sends a call, and after it to wherever the hub redirects within itself. A redirect elsewhere is the answer.
func (o *origin) follow(ctx context.Context, c call) (*http.Response, error) {
	at, err := o.url(c.path, c.query)
	if err != nil {
		return nil, err
	}
	for range maxHops + 1 {
		resp, err := o.send(ctx, c, at)
		if err != nil {
			return nil, err
		}
		next := o.within(resp)
		if next == nil || c.stay && resp.Header.Get("X-Repo-Commit") != "" && !renamed(next) {
			return resp, nil
		}
		_, _ = io.CopyN(io.Discard, resp.Body, maxErrorDoc)
		_ = resp.Body.Close()
		at = next
	}
	return nil, fmt.Errorf("%s: %w: more than %d redirects", c, content.ErrUnavailable, maxHops)
}

// renamed reports whether a redirect leads to the same file under another name of its repository. The hub may not have
// looked yet at who asks.
func renamed(to *url.URL) bool { return strings.Contains(to.Path, "/resolve/") }

// within is where a redirect leads that stays at the hub; nil: it is none, or it leads to large file storage, which
// some hubs have at their own host.
func (o *origin) within(resp *http.Response) *url.URL {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect,
		http.StatusPermanentRedirect:
	default:
		return nil
	}
	next, err := resp.Location()
	if err != nil || !registries.SameOrigin(next, o.base) {
		return nil
	}
	// The hub links a file in git, too, by the name of its git object.
	if linked := bare(resp.Header.Get("X-Linked-Etag")); linked != "" && !isCommit(strings.ToLower(linked)) {
		return nil
	}
	return next
}

// bare is what an ETag has between its quotes.
func bare(etag string) string { return strings.Trim(strings.TrimPrefix(etag, "W/"), `"`) }

func (o *origin) send(ctx context.Context, c call, at *url.URL) (*http.Response, error) {
	var body io.Reader
	if c.body != "" {
		body = strings.NewReader(c.body)
	}
	req, err := http.NewRequestWithContext(ctx, c.method, at.String(), body)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, c.header)
	req.Header.Set("Accept-Encoding", "identity") // sizes and digests are those of the bytes as they are
	req.Header.Set("User-Agent", "shoal")
	req.Header.Set("Via", via)
	if c.authorization != "" {
		req.Header.Set("Authorization", c.authorization)
	}
	resp, err := o.transport.RoundTrip(req)
	if err != nil {
		o.metrics.asked(c.method, 0)
		return nil, fmt.Errorf("%s: %w: %w", c, content.ErrUnavailable, err)
	}
	o.metrics.asked(c.method, resp.StatusCode)
	o.mu.Lock()
	o.heard = time.Now()
	o.mu.Unlock()
	return resp, nil
}

// url is that of an escaped path at the hub.
func (o *origin) url(path, query string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSuffix(o.base.String(), "/") + path)
	if err != nil {
		return nil, fmt.Errorf("path %q at the hub: %w", path, err)
	}
	u.RawQuery = query
	return u, nil
}

// refusal reads an answer that is no success.
func (o *origin) refusal(c call, resp *http.Response) *refusal {
	r := &refusal{op: c.String(), status: resp.StatusCode, header: http.Header{}}
	for name, values := range resp.Header {
		if relayed(name) {
			r.header[name] = values
		}
	}
	dropWarnings(r.header)
	_, seconds := reply.Number(r.header.Get("Retry-After"))
	if after := retryAfter(r.header); after > 0 && !seconds && r.status == http.StatusTooManyRequests {
		r.header.Set("Retry-After", strconv.Itoa(int(after.Seconds())+1)) // clients read no date
	}
	r.body, _ = io.ReadAll(io.LimitReader(resp.Body, maxErrorDoc)) // the status and the header say what clients act on
	return r
}

// relayed reports whether a header of the hub's refusal is for the caller.
func relayed(name string) bool {
	return slices.Contains([]string{
		"Content-Type", "Retry-After", "Www-Authenticate", "Ratelimit", "Ratelimit-Policy", "X-Error-Code",
		"X-Error-Message",
		"X-Hf-Warning", "X-Repo-Commit", "X-Request-Id", "X-Amz-Cf-Id",
	}, http.CanonicalHeaderKey(name))
}

// nextPage is the escaped path and query of the page that follows an answer, below the hub's base URL. Where nothing
// can be asked it is what the answer says, so that what was read is not taken for the whole.
func (o *origin) nextPage(resp *http.Response) string {
	for _, l := range registries.Links(resp.Header) {
		if l.Rel != "next" {
			continue
		}
		next, err := o.below(resp, l.Target)
		if err != nil {
			return "<" + l.Target + ">"
		}
		return next
	}
	return ""
}

// below is the escaped path and query of a link in an answer of the hub's, below its base URL.
func (o *origin) below(resp *http.Response, link string) (string, error) {
	at, err := registries.Below(o.base, resp.Request.URL, link)
	if err != nil {
		return "", err
	}
	return o.path(at), nil
}

// path is the escaped path and query of a URL at the hub, below its base URL.
func (o *origin) path(at *url.URL) string {
	return strings.TrimPrefix(at.RequestURI(), strings.TrimSuffix(o.base.EscapedPath(), "/"))
}

// outside reports whether a next page cannot be asked for.
func outside(page string) bool { return page != "" && !strings.HasPrefix(page, "/") }
