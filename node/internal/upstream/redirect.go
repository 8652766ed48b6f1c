package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
)

const (
	// maxHops is how many requests one call comes to: as many as net/http sends, and with it each runtime. One that is
	// redirected to where it came from may be answered there the next time, so that is none but one hop more.
	maxHops = 10
	// redirectTTL is well below the life of the signed URLs that registries redirect to.
	redirectTTL = 30 * time.Second
	// maxRemembered is the longest URL in bytes that is remembered: a registry chooses how long those are.
	maxRemembered = 8 << 10
)

// errElsewhere is the error of a host that the registry redirects to, or where a file of it is known to lie. It says
// nothing about the registry.
var errElsewhere = errors.New("the registry redirects there")

var errRedirects = fmt.Errorf("redirects that lead nowhere: %w", content.ErrBadAnswer)

// redirect is where the bytes of a blob were found a moment ago.
type redirect struct {
	blob    blob
	to      *url.URL
	by      *http.Client // what it was asked with
	expires time.Time
}

// blob is what a call asks for, of whoever's registry and in whoever's name.
type blob struct {
	repo       content.Repository
	path, file string
}

func (call call) blob() blob { return blob{call.repo, call.path, call.file} }

// Distrust forgets where the bytes of a blob were found, which turned out to be wrong: the registry is asked anew.
func (c *Client) Distrust(req content.Request) { c.distrust(blobCall(http.MethodGet, req).blob()) }

func (c *Client) distrust(b blob) {
	for _, key := range c.redirects.Keys() {
		if r, ok := c.redirects.Peek(key); ok && r.blob == b {
			c.redirects.Remove(key)
		}
	}
	if b.file != "" {
		c.moved.Add(b, struct{}{})
	}
}

// follow sends the call to the endpoint and after it to wherever it redirects. Credentials go only to the endpoint's
// own scheme, host and port: not, as net/http has it, to subdomains and other ports of it, nor to where another host
// sends it.
func (c *Client) follow(ctx context.Context, reg *registry, ep *endpoint, call call) (*http.Response, error) {
	if ep.isMirror() {
		call.authorization = "" // it is for the registry
	}
	origin := call.url(reg, ep)
	if call.file != "" && c.opts.Locate != nil {
		resp, err := c.located(ctx, reg, ep, call, origin)
		if resp != nil || err != nil {
			return resp, err
		}
	}
	key := c.key(origin.String(), call.authorization)
	if call.remember {
		if r, ok := c.redirects.Get(key); ok && time.Now().Before(r.expires) {
			resp, err := c.hop(ctx, reg, ep, call, r.to, r.by, false)
			if err == nil && success(resp) {
				return resp, nil
			}
			if err == nil {
				discard(resp.Body)
			}
			c.redirects.Remove(key) // expired, as a rule: ask the registry for a new one
		}
	}
	last, err := c.walk(ctx, reg, ep, call, origin, origin)
	switch {
	case err != nil:
		return nil, err
	case !success(last.resp):
		return nil, refusal(last.resp, !last.home)
	}
	if call.authorization != "" {
		c.accepted.Add(c.key(call.authorization), struct{}{})
	}
	if call.remember && !last.home && len(last.at.String()) <= maxRemembered {
		c.redirects.Add(key, redirect{blob: call.blob(), to: last.at, by: last.by,
			expires: time.Now().Add(redirectTTL)})
	}
	return last.resp, nil
}

// hopped is an answer, and where it came from.
type hopped struct {
	resp *http.Response
	at   *url.URL
	by   *http.Client
	home bool // the call never left the endpoint's own origin
}

// walk sends the call to a place, and after it to wherever that redirects, until an answer is none. Where it leaves
// the endpoint's own origin credentials stay behind, also if it leads back; and it leads into no private network from
// a registry that is outside and that nobody has listed. A file of a hub has rules of its own for that.
func (c *Client) walk(
	ctx context.Context, reg *registry, ep *endpoint, call call, at, origin *url.URL,
) (hopped, error) {
	own, away := ep.clients(reg)
	last := hopped{at: at, by: own, home: true}
	var inner atomic.Bool
	for range maxHops {
		last.home = last.home && registries.SameOrigin(last.at, origin)
		hopping := ctx
		switch {
		case last.home && away != nil:
			hopping = c.noteInner(ctx, last.at, &inner)
		case away != nil && call.file == "" && !inner.Load():
			last.by = away
		}
		var err error
		//nolint:bodyclose // whoever is given last closes it
		last.resp, err = c.hop(hopping, reg, ep, call, last.at, last.by, last.home)
		if err != nil && !last.home {
			err = fmt.Errorf("%w: %w", errElsewhere, err)
		}
		if err != nil || !redirects(last.resp) {
			return last, err
		}
		discard(last.resp.Body)
		next, err := last.resp.Location()
		if err != nil {
			return hopped{}, fmt.Errorf("%s: answered %d: %w: %w", describe(last.resp.Request), last.resp.StatusCode,
				errRedirects, err)
		}
		if next.Scheme != "http" && next.Scheme != "https" || next.Host == "" {
			return hopped{}, fmt.Errorf("%s: %w: to scheme %q", describe(last.resp.Request), errRedirects, next.Scheme)
		}
		last.at = next
	}
	return hopped{}, fmt.Errorf("%s %s: %w: each of %d answers is another, the last one to %s", call.method,
		place(origin), errRedirects, maxHops, place(last.at))
}

// noteInner has a request to a place note whether its connection is to the network around. Where a proxy made it that
// is not known.
func (c *Client) noteInner(ctx context.Context, at *url.URL, inner *atomic.Bool) context.Context {
	if proxy, err := c.opts.Proxy(&http.Request{URL: at}); proxy != nil || err != nil {
		return ctx
	}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		to, err := netip.ParseAddrPort(got.Conn.RemoteAddr().String())
		inner.Store(err == nil && registries.Inner(to.Addr()))
	}})
}

// located sends the call to where its file lies for the moment, and asks anew for that place where it does not serve
// any more, as a signed URL whose time is over. nil: the endpoint has the file itself.
func (c *Client) located(ctx context.Context, reg *registry, ep *endpoint, call call,
	origin *url.URL) (*http.Response, error) {
	for _, anew := range []bool{false, true} {
		if !anew && c.moved.Remove(call.blob()) {
			continue
		}
		at, err := c.opts.Locate(ctx, call.repo, call.file, call.authorization, anew)
		if at == nil || err != nil {
			return nil, err
		}
		last, err := c.walk(ctx, reg, ep, call, at, origin)
		switch resp := last.resp; {
		case err != nil || success(resp):
			return resp, err
		case anew || resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
			return nil, refusal(resp, !last.home)
		}
		discard(last.resp.Body)
	}
	return nil, errRedirects
}

func (c *Client) hop(ctx context.Context, reg *registry, ep *endpoint, call call, at *url.URL, by *http.Client,
	home bool) (*http.Response, error) {
	req, err := call.request(ctx, at, home)
	if err != nil {
		return nil, err
	}
	if home {
		ep.dress(req)
	}
	resp, err := by.Do(req)
	if err != nil {
		c.metrics.request(reg.name, call.method, 0)
		// url.Error repeats the whole URL, and with it the signature of a redirect's target.
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return nil, fmt.Errorf("%s: %w", describe(req), err)
	}
	c.metrics.request(reg.name, call.method, resp.StatusCode)
	return resp, nil
}

func success(resp *http.Response) bool {
	return resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent
}

func redirects(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect,
		http.StatusPermanentRedirect:
		return true
	}
	return false
}
