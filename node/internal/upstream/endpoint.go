package upstream

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/lru"
)

// routes is who is reached how.
type routes struct {
	registries.Routes[route]
	clients []*http.Client // all, to close them
	// unlisted holds the registries that were asked for and are not listed. Callers choose the names, so it is bounded.
	unlisted *lru.Fair[string, *registry]
}

// route is to one registry that is listed, or to all that are not.
type route struct {
	upstream Upstream
	client   *http.Client
	away     *http.Client // of the registries that are not listed: see registry.away
	registry *registry    // nil: the registries that are not listed
}

// registry is where one registry is reached.
type registry struct {
	name      string
	endpoints []*endpoint
	client    *http.Client
	// away is what follows a redirect to elsewhere, unless the registry itself is in the network around. nil: client.
	away *http.Client
	// namespaced requests carry the query parameter ns, because the endpoints serve more than one registry.
	namespaced bool
	listed     bool // an entry of the configuration names it
	// mirrors are those that the node has for it, as they were until mirroredUntil.
	mirrors       []Mirror
	mirroredUntil moment
	pace          pace
}

// plain reports whether the administrator has the registry asked without TLS.
func (r *registry) plain() bool {
	return slices.ContainsFunc(r.endpoints, func(e *endpoint) bool { return e.base.Scheme == "http" && !e.isMirror() })
}

// endpoint is one base URL of a registry.
type endpoint struct {
	base      *url.URL
	downUntil moment  // not set: it was reached when it was last tried
	mirror    *mirror // nil where the configuration, or the registry's name, says the endpoint
	// unreachable: no connection could be made when it was last tried.
	unreachable atomic.Bool
	// dripsUntil: its last answer dripped, and until then the others are tried before it.
	dripsUntil moment
}

// moment is a time that many look at. It is not Unix time, which comes hours late where the clock is set back.
type moment struct{ atomic.Pointer[time.Time] }

func (m *moment) set(at time.Time) { m.Store(&at) }

// comes reports whether it was set and has yet to come.
func (m *moment) comes(now time.Time) bool {
	at := m.Load()
	return at != nil && now.Before(*at)
}

func (e *endpoint) drips(now time.Time) bool { return e.dripsUntil.comes(now) }

func (e *endpoint) down(now time.Time) bool { return e.downUntil.comes(now) }

// suspect reports whether the endpoint could not be reached a moment ago. When the moment is over, the first to ask
// finds out for all how it is now, and to the others it stays suspect for another d.
func (e *endpoint) suspect(now time.Time, d time.Duration) bool {
	until, next := e.downUntil.Load(), now.Add(d)
	return until != nil && (now.Before(*until) || !e.downUntil.CompareAndSwap(until, &next))
}

func (e *endpoint) mark(reached bool, now time.Time, d time.Duration) {
	if reached {
		e.unreachable.Store(false)
		e.downUntil.Store(nil)
		return
	}
	e.downUntil.set(now.Add(d))
}

func (c *Client) newRoutes(ups []Upstream) (*routes, error) {
	var err error
	next := &routes{unlisted: lru.NewFair[string, *registry](maxUnlisted)}
	next.Routes, err = registries.NewRoutes(ups, func(name string, u Upstream) (route, error) {
		client, err := c.newClient(u)
		if err != nil {
			return route{}, err
		}
		next.clients = append(next.clients, client)
		if name == "" {
			away, err := c.awayClient(u)
			if err != nil {
				return route{}, err
			}
			next.clients = append(next.clients, away)
			_, err = u.URLs()
			return route{upstream: u, client: client, away: away}, err
		}
		reg, err := newRegistry(name, u, client)
		if err != nil {
			return route{}, err
		}
		reg.listed = true
		return route{upstream: u, client: client, registry: reg}, nil
	})
	return next, err
}

// registry finds how the registry of this name is reached.
func (c *Client) registry(name string) (*registry, error) {
	name = registries.Canonical(name)
	table := c.routes
	to, listed := table.Of(name)
	if listed {
		return to.registry, nil
	}
	before, ok := table.unlisted.Get(lru.OwnerOf(name), name)
	now := time.Now()
	if ok && (c.opts.Mirrors == nil || before.mirroredUntil.comes(now)) {
		return before, nil
	}
	reg, err := newRegistry(name, to.upstream, to.client)
	if err != nil {
		return nil, fmt.Errorf("registry %q: %w", name, err)
	}
	reg.namespaced = len(to.upstream.Endpoints) > 0
	if !reg.namespaced { // where the configuration says how all are reached, that holds
		reg.away = to.away
		reg = c.mirrored(reg, before, now)
	}
	table.unlisted.Add(lru.OwnerOf(name), name, reg)
	return reg, nil
}

func newRegistry(name string, u Upstream, client *http.Client) (*registry, error) {
	if len(u.Endpoints) == 0 {
		u.Endpoints = []string{defaultEndpoint(name)}
	}
	bases, err := u.URLs()
	if err != nil {
		return nil, err
	}
	reg := &registry{name: name, client: client, pace: pace{more: semaphore.NewWeighted(moreTries)}}
	for _, base := range bases {
		reg.endpoints = append(reg.endpoints, &endpoint{base: base})
	}
	return reg, nil
}

// defaultEndpoint is where a registry is reached that no configuration mentions.
func defaultEndpoint(name string) string {
	if name == registries.DockerHub {
		return "https://" + registries.DockerHubAPI
	}
	host := name
	if h, _, err := net.SplitHostPort(name); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return "http://" + name
	}
	return "https://" + name
}

// newClient makes the HTTP client for the TLS settings of u. It follows no redirect of its own; see redirect.go.
func (c *Client) newClient(u Upstream) (*http.Client, error) {
	endpoints := u.Endpoints
	if len(endpoints) == 0 && !u.Every() {
		endpoints = []string{defaultEndpoint(u.Registry)}
	}
	d := c.newDialer()
	for _, e := range endpoints {
		if at, err := url.Parse(e); err == nil {
			d.Name(at)
		}
	}
	for _, at := range c.opts.Outward {
		if registries.Canonical(at.Host) == registries.Canonical(u.Registry) {
			d.Outward = true
		}
	}
	for _, at := range c.opts.Outward {
		if d.Outward {
			d.Name(at)
		}
	}
	return c.dialling(d, u)
}

// awayClient makes that for what registries redirect to that are not listed. Whoever has one chooses where it leads,
// and gets what is there without a word about its digest, where he asks for a part.
func (c *Client) awayClient(u Upstream) (*http.Client, error) {
	d := c.newDialer()
	d.Outward = true
	return c.dialling(d, u)
}

func (c *Client) dialling(d *registries.Dialer, u Upstream) (*http.Client, error) {
	transport, err := registries.NewTransport(u, c.baseTransport(d), c.log)
	if err != nil {
		return nil, err
	}
	return c.newHTTPClient(d, transport), nil
}

func (c *Client) newDialer() *registries.Dialer {
	return &registries.Dialer{Dialer: net.Dialer{Timeout: c.opts.Timeouts.Dial}, Allowed: c.opts.AllowAddresses}
}

func (c *Client) newHTTPClient(d *registries.Dialer, transport http.RoundTripper) *http.Client {
	if c.opts.Dial == nil {
		transport = &checkedTransport{transport, d.CheckURL}
	}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     transport,
	}
}

// baseTransport is the transport without TLS settings.
func (c *Client) baseTransport(d *registries.Dialer) *http.Transport {
	dial := c.opts.Dial
	if dial == nil {
		dial = d.DialContext
	}
	return &http.Transport{
		Proxy:               d.Proxy(c.opts.Proxy),
		DialContext:         dial,
		TLSHandshakeTimeout: c.opts.Timeouts.Dial,
		// Blobs are named by the digest of the bytes as stored, so nothing may be decoded on the way.
		DisableCompression: true,
		// HTTP/2 is left off on purpose: it costs a third more CPU for each byte of a blob, and puts all ranges
		// of it on one connection.
		ForceAttemptHTTP2:      false,
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{},
		MaxIdleConnsPerHost:    32,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// checkedTransport sends requests to where registries may be asked: also where a proxy would dial for it.
type checkedTransport struct {
	http.RoundTripper
	check func(*url.URL) error
}

// RoundTrip implements http.RoundTripper.
func (t *checkedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := t.check(r.URL); err != nil {
		return nil, err
	}
	return t.RoundTripper.RoundTrip(r)
}

// CloseIdleConnections is what http.Client calls to do the same.
func (t *checkedTransport) CloseIdleConnections() {
	(&http.Client{Transport: t.RoundTripper}).CloseIdleConnections()
}
