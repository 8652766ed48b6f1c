// Package upstream sends what is asked of a registry to where the administrator says that it is reached: another
// address, plain HTTP, a certificate of one's own. Its configuration is that of the agents.
package upstream

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-cache/shoal/api/registries"
)

// Upstreams say how registries are reached.
type Upstreams struct{ routes registries.Routes[*route] }

// route is how one registry is reached.
type route struct {
	endpoints  []*url.URL
	namespaced bool // requests carry the query parameter ns
	transport  *registries.Transport
	dialer     *registries.Dialer
}

// New makes Upstreams. Whoever may make a pin chooses the host of an image, and that host chooses where its redirects
// lead. So addresses of the operator's own machine are not asked unless they are allowed or are those of an endpoint.
// New fails for an entry that is malformed, is there twice, or names files that can't be read.
func New(upstreams []registries.Upstream, allowed []netip.Prefix, log *slog.Logger) (*Upstreams, error) {
	routes, err := registries.NewRoutes(upstreams, func(name string, u registries.Upstream) (*route, error) {
		return newRoute(name, u, allowed, log)
	})
	if err != nil {
		return nil, err
	}
	return &Upstreams{routes: routes}, nil
}

// newRoute is to the registry of a name, or to all that have no route of their own where it is "".
func newRoute(name string, u registries.Upstream, allowed []netip.Prefix, log *slog.Logger) (*route, error) {
	endpoints, err := u.URLs()
	if err != nil {
		return nil, err
	}
	dialer := &registries.Dialer{Dialer: net.Dialer{Timeout: 10 * time.Second}, Allowed: allowed}
	for _, at := range endpoints {
		dialer.Name(at)
	}
	if name != "" && len(endpoints) == 0 { // it is listed, and is where its name says
		dialer.Name(&url.URL{Scheme: "https", Host: name})
		dialer.Name(&url.URL{Scheme: "http", Host: name})
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	// A registry that gives no answer within seconds is taken for unreachable.
	base.ResponseHeaderTimeout = 15 * time.Second
	base.DialContext = dialer.DialContext
	base.Proxy = dialer.Proxy(base.Proxy)
	base.MaxIdleConnsPerHost = 4
	transport, err := registries.NewTransport(u, base, log)
	if err != nil {
		return nil, err
	}
	return &route{endpoints: endpoints, namespaced: name == "" && len(endpoints) > 0, transport: transport,
		dialer: dialer}, nil
}

// For is the transport for pulls from one registry, which its caller names by host. Requests to others that the
// registry sends a client to, such as its token server, go where they are addressed, by HTTPS_PROXY where the
// environment sets it, and with the trust and the certificate that the registry has.
func (u *Upstreams) For(registry string) http.RoundTripper {
	route, _ := u.routes.Of(registry)
	return &pulls{registry: registries.Canonical(registry), route: route}
}

// pulls sends the requests of who pulls from one registry.
type pulls struct {
	registry string
	route    *route // to the registry
}

// RoundTrip implements http.RoundTripper.
func (p *pulls) RoundTrip(r *http.Request) (*http.Response, error) {
	asksRegistry := registries.Canonical(r.URL.Host) == p.registry &&
		(r.URL.Path == "/v2" || strings.HasPrefix(r.URL.Path, "/v2/"))
	switch {
	case asksRegistry && len(p.route.endpoints) > 0:
		return p.ask(r)
	case asksRegistry && r.URL.Scheme == "http" && !isLoopback(r.URL.Hostname()):
		// The library tries it with registries in private networks, credentials and all; agents do not.
		return nil, fmt.Errorf("%s: plain HTTP only where upstreams give the registry an endpoint http://…", r.URL.Host)
	}
	if err := p.route.dialer.CheckURL(r.URL); err != nil {
		return nil, err
	}
	return p.route.transport.RoundTrip(r)
}

// ask sends a request to the registry's endpoints, in order, until one gives an answer that settles the matter. Where
// none does, it is the last one's.
func (p *pulls) ask(r *http.Request) (*http.Response, error) {
	var resp *http.Response
	var failures []error
	for i, e := range p.route.endpoints {
		at := r.Clone(r.Context())
		at.URL.Scheme, at.URL.Host, at.URL.Path, at.URL.RawPath = e.Scheme, e.Host, e.Path+r.URL.Path, ""
		at.Host = e.Host
		if p.route.namespaced {
			query := at.URL.Query()
			query.Set("ns", p.registry)
			at.URL.RawQuery = query.Encode()
		}
		var err error
		if resp, err = p.route.transport.RoundTrip(at); err != nil {
			failures = append(failures, fmt.Errorf("%s at %s: %w", r.URL.Host, e.Redacted(), err))
			continue
		}
		if i == len(p.route.endpoints)-1 || settles(resp.StatusCode) {
			return resp, nil
		}
		_ = resp.Body.Close()
		failures = append(failures, fmt.Errorf("%s at %s: answered %d", r.URL.Host, e.Redacted(), resp.StatusCode))
	}
	return nil, errors.Join(failures...)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// settles reports whether another endpoint could not say more.
func settles(status int) bool {
	return status < 500 && status != http.StatusNotFound && status != http.StatusTooManyRequests
}
