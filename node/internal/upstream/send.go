package upstream

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/lru"
	"github.com/shoal-cache/shoal/node/internal/trace"
)

const (
	maxRounds = 5
	// maxDials is the rounds where no connection can be made. They are few, so that the caller soon looks elsewhere.
	maxDials     = 2
	firstBackoff = 200 * time.Millisecond
	maxBackoff   = 5 * time.Second
	// suspectWait is how long an endpoint that was down a moment ago is given to answer.
	suspectWait = 2 * time.Second
	maxErrorDoc = 8 << 10
	// throttleLeast and throttleMost bound how long a registry's wish to be asked later is heeded. A pull in its middle
	// waits for throttleWait at most.
	throttleLeast = time.Second
	throttleMost  = time.Minute
	throttleWait  = 2 * time.Second
	// via tells a registry front that a request comes from an agent; see RFC 9110, section 7.6.3.
	via = "1.1 shoal"
)

// call is one operation at a registry, before it is known at which endpoint.
type call struct {
	method        string
	repo          content.Repository
	path          string // below /v2/<repo>/
	file          string // in its place: the escaped path below the endpoint
	query         url.Values
	accept        []string
	byteRange     string // the Range header, "" for none
	authorization string
	// remember lets a redirect to another host be used again for the same call.
	remember bool
	once     bool        // it is not sent again; whoever calls does, and has a connection for it
	by       *connection // that one
}

// send tries the endpoints of the call's registry in order, and again after a pause where that may help, until one
// answers with success. The caller closes the answer's body. Other answers are a *content.UpstreamError; where no
// endpoint answered the error is content.ErrUnavailable.
func (c *Client) send(ctx context.Context, call call) (resp *http.Response, err error) {
	ctx, span := c.opts.Tracer.Start(ctx, "upstream")
	if span.On() {
		defer func() { call.trace(span, resp, err) }()
	}
	reg, err := c.registry(call.repo.Registry)
	if err != nil {
		return nil, err
	}
	if err := c.throttled(ctx, reg, call); err != nil {
		return nil, err
	}
	suspects := make(map[*endpoint]bool) // known to be down by other calls than this one
	brief := make(map[*endpoint]bool)    // given a short time only
	var able []*endpoint
	unreachable := 0
	for _, ep := range reg.endpoints {
		if ep.serves(call) {
			was := ep.unreachable.Load()
			suspects[ep] = ep.suspect(time.Now(), c.opts.Timeouts.Down)
			brief[ep] = suspects[ep] || was
			able = append(able, ep)
			if suspects[ep] && was {
				unreachable++
			}
		}
	}
	// A pull in its middle tries all the same: the trouble may have been a short one.
	if unreachable == len(able) && call.byteRange == "" {
		return nil, fmt.Errorf("%s of %s: no connection could be made a moment ago: %w", call.method, call.repo,
			content.ErrUnavailable)
	}
	order := lastly(able, func(ep *endpoint) bool { return ep.drips(time.Now()) })
	order = lastly(order, func(ep *endpoint) bool { return suspects[ep] })
	return c.retry(ctx, reg, func() (*http.Response, failure) {
		resp, fails := c.round(ctx, reg, order, brief, call)
		order = lastly(order, func(ep *endpoint) bool { return ep.down(time.Now()) })
		if answered(fails.err) && content.Throttled(fails.err) {
			c.throttle(reg, call, fails)
			fails.transient, fails.rounds = call.byteRange != "" && fails.retryAfter <= throttleWait, 2
		}
		if call.once {
			fails.rounds = 1
		}
		return resp, fails
	})
}

// trace tells the call's span what was asked and answered. Credentials and queries are no part of it.
func (call call) trace(span trace.Span, resp *http.Response, err error) {
	span.Text("http.request.method", call.method)
	span.Text("shoal.repository", call.repo.String())
	span.Text("shoal.path", cmp.Or(call.path, call.file))
	span.Text("shoal.range", call.byteRange)
	if resp != nil {
		span.Number("http.response.status_code", int64(resp.StatusCode))
	}
	span.End(err)
}

// throttle remembers that the registry wants to be asked less often by these credentials.
func (c *Client) throttle(reg *registry, call call, f failure) {
	up, _ := errors.AsType[*content.UpstreamError](f.err)
	until := time.Now().Add(min(max(f.retryAfter, throttleLeast), throttleMost))
	c.throttles.Add(call.owner(reg), c.key(reg.name, call.authorization), throttle{until, *up})
}

// owner is on whose account a registry's wish to these credentials is remembered. Tokens are as many as somebody makes
// up.
func (call call) owner(reg *registry) lru.Owner {
	owner := lru.OwnerOf(reg.name)
	switch scheme, _, _ := strings.Cut(call.authorization, " "); {
	case strings.EqualFold(scheme, "Bearer"):
		owner.Narrow += " tokens"
	case scheme != "":
		owner.Narrow += " passwords"
	}
	return owner
}

// throttled gives the registry's wish as an error for as long as it lasts, so that the retries of clients do not become
// requests to the registry. Only a pull in its middle waits, where that is short.
func (c *Client) throttled(ctx context.Context, reg *registry, call call) error {
	t, ok := c.throttles.Get(call.owner(reg), c.key(reg.name, call.authorization))
	left := time.Until(t.until)
	if !ok || left <= 0 {
		return nil
	}
	if call.byteRange == "" || left > throttleWait {
		again := t.answer
		again.Op, again.RetryAfter = call.method+" of "+call.repo.String()+": as a moment ago", left
		return &again
	}
	if !content.Sleep(ctx, left) {
		return fmt.Errorf("%s of %s: %w: %w", call.method, call.repo, content.ErrUnavailable, context.Cause(ctx))
	}
	return nil
}

// throttle is a registry's wish to be asked later.
type throttle struct {
	until  time.Time
	answer content.UpstreamError
}

// lastly is the endpoints in order, but those that are to be tried last behind the others.
func lastly(endpoints []*endpoint, last func(*endpoint) bool) []*endpoint {
	var front, back []*endpoint
	for _, ep := range endpoints {
		if last(ep) {
			back = append(back, ep)
		} else {
			front = append(front, ep)
		}
	}
	return append(front, back...)
}

// retry calls try until it succeeds, fails for good, or has been called often and long enough, with a pause between
// calls: the registry's own wish, if it has one.
func (c *Client) retry(ctx context.Context, reg *registry,
	try func() (*http.Response, failure)) (*http.Response, error) {
	deadline := time.Now().Add(c.opts.Timeouts.Retry)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	for round := 0; ; round++ {
		resp, fails := try()
		if resp != nil {
			return resp, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", fails.err, context.Cause(ctx))
		}
		pause := max(fails.retryAfter, backoff(round))
		if !fails.transient || round+1 >= fails.rounds || time.Now().Add(pause).After(deadline) {
			return nil, fails.err
		}
		c.metrics.retries.WithLabelValues(c.metrics.label(reg.name)).Inc()
		c.log.Debug("upstream is asked again", "registry", reg.name, "round", round+1, "pause", pause, "cause",
			fails.err)
		if !content.Sleep(ctx, pause) {
			return nil, fmt.Errorf("%w: %w", fails.err, context.Cause(ctx))
		}
	}
}

// failure is the outcome of a round without success.
type failure struct {
	err        error
	transient  bool // trying again may help
	rounds     int  // how often to try in all
	retryAfter time.Duration
}

// round tries each endpoint once, and gives none so much of the time left that the others get no turn. It stops at the
// first answer that settles the matter. Of several failures it gives the one that says most.
//
// An endpoint that is given a short time only is one that other calls have tried long enough.
func (c *Client) round(ctx context.Context, reg *registry, order []*endpoint, brief map[*endpoint]bool,
	call call) (*http.Response, failure) {
	var worst failure
	worstIsMirror := false // what the registry says counts more
	for i, ep := range order {
		wait := c.opts.Timeouts.Header
		if call.file != "" && i == len(order)-1 { // there is nobody else to ask
			wait = c.opts.Timeouts.File
		}
		if end, ok := ctx.Deadline(); ok && i < len(order)-1 {
			wait = min(wait, time.Until(end)/time.Duration(len(order)-i))
		}
		if brief[ep] {
			wait = min(wait, suspectWait)
		}
		resp, err := c.attempt(ctx, reg, ep, call, wait)
		if err == nil {
			return resp, failure{}
		}
		if ctx.Err() != nil {
			return nil, failure{err: err}
		}
		f := judge(err)
		if !answered(err) && (brief[ep] || call.byteRange == "" && isDialTimeout(err)) {
			f.transient = false // it was tried long enough
		}
		if worst.err == nil || worstIsMirror && !ep.isMirror() || worstIsMirror == ep.isMirror() &&
			telling(err) > telling(worst.err) {
			worst, worstIsMirror = f, ep.isMirror()
		}
		if !ep.isMirror() && !f.transient && !errors.Is(err, content.ErrNotFound) && answered(err) {
			return nil, f // such as 401: another endpoint would only confuse the caller
		}
		c.log.Debug("upstream endpoint failed", "registry", reg.name, "endpoint", ep.base.Host, "cause", err)
	}
	return nil, worst
}

// telling ranks failures: an endpoint that answers knows more than one that does not, but that one may have what the
// other has not.
func telling(err error) int {
	switch {
	case errors.Is(err, content.ErrNotFound):
		return 0
	case !answered(err):
		return 1
	}
	return 2
}

func answered(err error) bool {
	_, ok := errors.AsType[*content.UpstreamError](err)
	return ok
}

// isDialTimeout reports whether nothing answered an attempt to connect, as behind a firewall that drops packets. That
// was sent more than once already.
func isDialTimeout(err error) bool {
	dial, ok := errors.AsType[*net.OpError](err)
	return ok && dial.Op == "dial" && dial.Timeout()
}

func judge(err error) failure {
	f := failure{err: err, rounds: maxRounds}
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
		f.rounds = maxDials
	}
	var u *content.UpstreamError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &u):
		f.transient = u.Status == http.StatusTooManyRequests || u.Status == http.StatusRequestTimeout ||
			u.Status >= 500 && u.Status != http.StatusNotImplemented && u.Status != http.StatusLoopDetected
		f.retryAfter = u.RetryAfter
	case errors.As(err, &cert), errors.Is(err, content.ErrBadAnswer), errors.Is(err, content.ErrRateLimit),
		errors.Is(err, registries.ErrAddress):
	default:
		f.transient = true
	}
	return f
}

func backoff(round int) time.Duration {
	d := min(firstBackoff<<round, maxBackoff)
	return d/2 + rand.N(d/2)
}

var errNoHeader = errors.New("no answer within the time allowed")

// attempt sends the call to one endpoint and follows redirects. wait bounds the time to the final answer's header.
func (c *Client) attempt(ctx context.Context, reg *registry, ep *endpoint, call call,
	wait time.Duration) (_ *http.Response, err error) {
	limits := c.limits(call.repo)
	if limits.Requests != nil {
		resume := content.Apart(ctx)
		err := limits.Requests.Wait(ctx)
		resume()
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w: %w", call.method, call.repo, content.ErrRateLimit, err)
		}
	}
	if !call.once {
		if call.by, err = c.connect(ctx, call.repo); err != nil {
			return nil, fmt.Errorf("%s of %s: %w", call.method, call.repo, err)
		}
		defer func() {
			if err != nil {
				call.by.leave()
			}
		}()
	}
	start := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
			if late, ok := errors.AsType[net.Error](err); err != nil && !(ok && late.Timeout()) {
				connected.Store(true) // by somebody who broke it off
			}
		},
	})
	timer := time.AfterFunc(wait, func() { cancel(errNoHeader) })
	defer timer.Stop()
	resp, err := c.follow(ctx, reg, ep, call)
	if err != nil {
		cause := context.Cause(ctx)
		cancel(nil)
		if errors.Is(cause, errNoHeader) {
			err = fmt.Errorf("%w: %w", err, errNoHeader)
		}
		if answered(err) {
			ep.mark(true, time.Now(), 0)
			return nil, err
		}
		if errors.Is(err, registries.ErrAddress) {
			return nil, err // which says nothing about the registry
		}
		if errors.Is(err, errElsewhere) {
			return nil, fmt.Errorf("%w: %w", err, content.ErrUnavailable)
		}
		// A caller that gave up says something about the endpoint only after a while.
		if cause == nil || errors.Is(cause, errNoHeader) || time.Since(start) >= suspectWait {
			// By what was reached and not by the error: an attempt to connect may have lasted longer than the caller.
			ep.unreachable.Store(!connected.Load())
			ep.mark(false, time.Now(), c.opts.Timeouts.Down)
		}
		return nil, fmt.Errorf("%w: %w", err, content.ErrUnavailable)
	}
	ep.mark(true, time.Now(), 0)
	resp.Body = c.watch(ctx, cancel, reg, ep, limits.Bytes, call.by, resp)
	return resp, nil
}

// url is where the call goes at an endpoint.
func (call call) url(reg *registry, ep *endpoint) *url.URL {
	u := *ep.base
	if call.file != "" {
		if at, err := url.Parse(strings.TrimSuffix(u.String(), "/") + call.file); err == nil {
			return at
		}
	}
	if ep.mirror == nil {
		u.Path += "/v2"
	}
	u.Path += "/"
	if call.repo.Name != "" {
		u.Path += call.repo.Name + "/" + call.path
	}
	query := url.Values{}
	maps.Copy(query, call.query)
	if reg.namespaced || ep.isMirror() {
		query.Set("ns", reg.name)
	}
	u.RawQuery = query.Encode()
	return &u
}

// request makes the call's request to u, with the caller's credentials only where trusted.
func (call call) request(ctx context.Context, u *url.URL, trusted bool) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, call.method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if len(call.accept) > 0 {
		// one line: there are registries that read no second
		req.Header.Set("Accept", strings.Join(call.accept, ", "))
	}
	if call.byteRange != "" {
		req.Header.Set("Range", call.byteRange)
	}
	if trusted {
		req.Header.Set("Via", via)
		if call.authorization != "" {
			req.Header.Set("Authorization", call.authorization)
		}
	}
	req.Header.Set("User-Agent", "shoal")
	return req, nil
}

// refusal makes an answer other than success an error, and closes its body. A host that the registry redirected to may
// know that something is not there, but what it says of credentials is not about the caller's. That counts as trouble
// of the registry. Of HEAD it counts as a method that is not known there, because a URL that is signed for GET refuses
// it.
func refusal(resp *http.Response, foreign bool) error {
	defer discard(resp.Body)
	after, _ := content.RetryAfter(resp.Header.Get("Retry-After"))
	e := &content.UpstreamError{Op: describe(resp.Request), Status: resp.StatusCode, RetryAfter: after}
	if foreign {
		switch {
		case resp.StatusCode >= 500, resp.StatusCode == http.StatusTooManyRequests,
			resp.StatusCode == http.StatusNotFound,
			resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
			return e
		case resp.Request.Method == http.MethodHead:
			e.Status = http.StatusMethodNotAllowed
		default:
			e.Status = http.StatusBadGateway
		}
		e.Op += fmt.Sprintf(" (redirected there, answered %d)", resp.StatusCode)
		return e
	}
	e.Challenge = resp.Header.Values("WWW-Authenticate")
	if strings.Contains(resp.Header.Get("Content-Type"), "json") {
		e.Body, _ = io.ReadAll(io.LimitReader(resp.Body, maxErrorDoc)) // the status alone says enough
	}
	return e
}

// describe names a request for errors.
func describe(req *http.Request) string { return req.Method + " " + place(req.URL) }

// place names a URL for errors. The query is left out: that of object storage is a credential.
func place(u *url.URL) string { return u.Scheme + "://" + u.Host + u.Path }

// cacheKey is a keyed hash, so that memory holds no credentials as keys.
type cacheKey [sha256.Size]byte

func (c *Client) key(parts ...string) cacheKey {
	mac := hmac.New(sha256.New, c.secret)
	for _, p := range parts {
		_, _ = fmt.Fprintf(mac, "%d:%s", len(p), p) // a hash never fails
	}
	return cacheKey(mac.Sum(nil))
}
