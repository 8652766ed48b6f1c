// Package upstream sends what is asked of a registry to where the administrator says that it is reached: another address, plain
// HTTP, a certificate of one's own. Its configuration is that of the agents.
package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-cache/shoal/api/registries"
)

// Transport sends requests to registries, which callers name by their hosts, to where they are reached. Requests to others,
// such as token servers, go where they are addressed, by HTTPS_PROXY where the environment sets it.
type Transport struct {
	byName   map[string]*route
	fallback *route                           // of registries not listed
	byHost   map[string]*registries.Transport // of the hosts of endpoints, which may also be token servers
}

// route is how one registry is reached.
type route struct {
	endpoints  []*url.URL
	namespaced bool // requests carry the query parameter ns
	transport  *registries.Transport
}

// New makes a Transport. It fails for an entry that is malformed, is there twice, or names files that can't be read.
func New(upstreams []registries.Upstream, log *slog.Logger) (*Transport, error) {
	t := &Transport{byName: map[string]*route{}, byHost: map[string]*registries.Transport{}}
	for _, u := range upstreams {
		r, err := newRoute(u, log)
		if err != nil {
			return nil, fmt.Errorf("upstream %q: %w", cmp.Or(u.Registry, "*"), err)
		}
		name := registries.Canonical(u.Registry)
		if u.Every() {
			if t.fallback != nil {
				return nil, errors.New(`upstream "*": listed twice`)
			}
			r.namespaced = len(r.endpoints) > 0
			t.fallback = r
		} else if t.byName[name] != nil {
			return nil, fmt.Errorf("upstream %q: listed twice", u.Registry)
		} else {
			t.byName[name] = r
		}
		for _, e := range r.endpoints {
			t.byHost[e.Host] = r.transport
		}
	}
	if t.fallback == nil {
		var err error
		if t.fallback, err = newRoute(registries.Upstream{}, log); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func newRoute(u registries.Upstream, log *slog.Logger) (*route, error) {
	endpoints, err := u.URLs()
	if err != nil {
		return nil, err
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	// A registry that gives no answer within seconds is taken for unreachable.
	base.ResponseHeaderTimeout = 15 * time.Second
	base.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	base.MaxIdleConnsPerHost = 4
	transport, err := registries.NewTransport(u, base, log)
	if err != nil {
		return nil, err
	}
	return &route{endpoints: endpoints, transport: transport}, nil
}

// RoundTrip sends a request to the endpoints of the registry that it names, in order, until one gives an answer that settles
// the matter. Where none does, it is the last one's.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	route, listed := t.byName[registries.Canonical(r.URL.Host)]
	if !listed {
		route = t.fallback
	}
	if len(route.endpoints) == 0 || !asksRegistry(r) {
		return t.direct(route, listed, r)
	}
	var resp *http.Response
	var failures []error
	for i, e := range route.endpoints {
		at := r.Clone(context.WithValue(r.Context(), asked{}, r.URL.Host))
		at.URL.Scheme, at.URL.Host, at.URL.Path, at.URL.RawPath = e.Scheme, e.Host, e.Path+r.URL.Path, ""
		at.Host = e.Host
		if route.namespaced {
			query := at.URL.Query()
			query.Set("ns", registries.Canonical(r.URL.Host))
			at.URL.RawQuery = query.Encode()
		}
		var err error
		if resp, err = route.transport.RoundTrip(at); err != nil {
			failures = append(failures, fmt.Errorf("%s at %s: %w", r.URL.Host, e.Redacted(), err))
			continue
		}
		if i == len(route.endpoints)-1 || settles(resp.StatusCode) {
			return resp, nil
		}
		_ = resp.Body.Close()
		failures = append(failures, fmt.Errorf("%s at %s: answered %d", r.URL.Host, e.Redacted(), resp.StatusCode))
	}
	return nil, errors.Join(failures...)
}

// direct sends a request where it is addressed, with the trust that the administrator gave that host.
func (t *Transport) direct(route *route, listed bool, r *http.Request) (*http.Response, error) {
	if own := t.byHost[r.URL.Host]; own != nil && !listed {
		return own.RoundTrip(r)
	}
	if r.URL.Scheme == "http" && asksRegistry(r) && !isLoopback(r.URL.Hostname()) {
		// The library tries it with registries in private networks, credentials and all; agents do not.
		return nil, fmt.Errorf("%s: plain HTTP only where upstreams give the registry an endpoint http://…", r.URL.Host)
	}
	return route.transport.RoundTrip(r)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// asksRegistry tells a request of the registry's API from one of a token server, and from one that a registry redirected to
// another host.
func asksRegistry(r *http.Request) bool {
	if r.URL.Path != "/v2" && !strings.HasPrefix(r.URL.Path, "/v2/") {
		return false
	}
	if r.Response == nil {
		return true
	}
	before, ok := r.Response.Request.Context().Value(asked{}).(string)
	return !ok || before == r.URL.Host
}

// asked is the key under which the context of a request at an endpoint has the registry that was asked.
type asked struct{}

// settles tells whether another endpoint could not say more.
func settles(status int) bool {
	return status < 500 && status != http.StatusNotFound && status != http.StatusTooManyRequests
}
