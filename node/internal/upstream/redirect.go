package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
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
			resp, err := c.hop(ctx, reg, ep, call, r.to, false)
			if err == nil && success(resp) {
				return resp, nil
			}
			if err == nil {
				discard(resp.Body)
			}
			c.redirects.Remove(key) // expired, as a rule: ask the registry for a new one
		}
	}
	resp, at, home, err := c.walk(ctx, reg, ep, call, origin, origin)
	switch {
	case err != nil:
		return nil, err
	case !success(resp):
		return nil, refusal(resp, !home)
	}
	if call.authorization != "" {
		c.accepted.Add(c.key(call.authorization), struct{}{})
	}
	if call.remember && !home && len(at.String()) <= maxRemembered {
		c.redirects.Add(key, redirect{blob: call.blob(), to: at, expires: time.Now().Add(redirectTTL)})
	}
	return resp, nil
}

// walk sends the call to a place, and after it to wherever that redirects, until an answer is none. It tells where that
// was, and whether it never left the endpoint's own origin: where it did, credentials stay behind, also if it leads
// back.
func (c *Client) walk(ctx context.Context, reg *registry, ep *endpoint, call call, at, origin *url.URL) (
	resp *http.Response, last *url.URL, home bool, err error) {
	home = true
	for range maxHops {
		home = home && registries.SameOrigin(at, origin)
		resp, err = c.hop(ctx, reg, ep, call, at, home)
		if err != nil && !home {
			err = fmt.Errorf("%w: %w", errElsewhere, err)
		}
		if err != nil || !redirects(resp) {
			return resp, at, home, err
		}
		discard(resp.Body)
		next, err := resp.Location()
		if err != nil {
			return nil, at, true, fmt.Errorf("%s: answered %d: %w: %w", describe(resp.Request), resp.StatusCode,
				errRedirects, err)
		}
		if next.Scheme != "http" && next.Scheme != "https" || next.Host == "" {
			return nil, at, true, fmt.Errorf("%s: %w: to scheme %q", describe(resp.Request), errRedirects, next.Scheme)
		}
		at = next
	}
	return nil, at, true, fmt.Errorf("%s %s: %w: each of %d answers is another, the last one to %s", call.method,
		place(origin), errRedirects, maxHops, place(at))
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
		resp, _, home, err := c.walk(ctx, reg, ep, call, at, origin)
		switch {
		case err != nil || success(resp):
			return resp, err
		case anew || resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
			return nil, refusal(resp, !home)
		}
		discard(resp.Body)
	}
	return nil, errRedirects
}

func (c *Client) hop(ctx context.Context, reg *registry, ep *endpoint, call call, at *url.URL,
	home bool) (*http.Response, error) {
	req, err := call.request(ctx, at, home)
	if err != nil {
		return nil, err
	}
	if home {
		ep.dress(req)
	}
	resp, err := ep.client(reg).Do(req)
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
