// Package upstream is the client of the registries that image references name. It sends a caller's own credentials to
// the registry and to nobody else, reads blobs whole or by Range, and turns whatever a registry may do wrong (short
// bodies, wrong lengths, endless redirects, silence, an HTML page) into an error that says so.
//
// Files in the order in which a request meets them:
//
//	endpoint.go    where a registry is reached
//	mirrors.go     what the node's administrator has put before it
//	send.go        trying its endpoints, with back-off
//	connections.go how many requests are under way
//	redirect.go    following to object storage, without the credentials
//	body.go        reading the answer, and watching that it moves
//	pace.go        telling an answer that drips from a registry that is slow
//	resume.go      reading on where an answer broke off
//	resolve.go     tags and descriptors
//	blob.go        blobs and manifests
//	authorize.go   credentials for pulls that no client drives
//
// The back-off is two lines of this package's own: it ends with the caller's time, gives way to Retry-After, and skips
// endpoints that are down, none of which a library's loop would leave to it.
package upstream

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/lru"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/trace"
)

// Upstream says how one registry is reached.
type Upstream = registries.Upstream

// Timeouts bound the waiting for a registry. A zero field has the default named at it.
type Timeouts struct {
	// Dial is for a connection, TLS included each: 5 s.
	Dial time.Duration
	// Header is from sending a request to the header of its final answer, redirects included: 10 s.
	Header time.Duration
	// File is the same of a file of a hub: 40 s. Who asks for one has nobody else to ask, and there is storage that
	// thinks for half a minute.
	File time.Duration
	// Stall is the longest wait for some KiB more of a body: 15 s.
	Stall time.Duration
	// Resume is how long a body that broke off is asked for anew until more of it comes: 15 s.
	Resume time.Duration
	// Retry is how long one operation goes on trying before its answer's header has come: 30 s.
	Retry time.Duration
	// Down is how long an endpoint that could not be reached is tried last, and only for a short moment: 5 s.
	Down time.Duration
}

func (t Timeouts) withDefaults() Timeouts {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{{&t.Dial, 5 * time.Second}, {&t.Header, 10 * time.Second},
		{&t.File, 40 * time.Second}, {&t.Stall, 15 * time.Second},
		{&t.Resume, 15 * time.Second},
		{&t.Retry, 30 * time.Second}, {&t.Down, 5 * time.Second}} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	return t
}

// Limits bound what is asked of a registry, for whoever shares the limiters. Nil is no limit.
type Limits struct {
	Requests *rate.Limiter
	// Bytes is of what is read of bodies. Its burst is the most that is read at a time.
	Bytes *rate.Limiter
	// Connections is of all that Client asks of the registry itself, and of where that redirects to. What a token
	// server is asked is not counted, nor what goes by Reach.
	Connections *Connections
}

// Options configure a Client. The zero value is usable.
type Options struct {
	Upstreams []Upstream
	// Mirrors gives the hosts that the node's runtime asks for a registry that no entry of Upstreams names, in order.
	// Nil: none.
	Mirrors  func(registry string) ([]Mirror, error)
	Timeouts Timeouts
	// Limits gives the limits of what is asked of the registry for a repository. Nil: there are none.
	Limits func(content.Repository) Limits
	// AllowAddresses are ranges at which registries are asked although they are those of the node itself, such as
	// loopback. Of the endpoints in Upstreams that is true without it.
	AllowAddresses []netip.Prefix
	// Outward are URLs that anyone may have files asked for at. What their hosts redirect to is asked at no address of
	// a private network, but for the hosts of one another.
	Outward []*url.URL
	// Locate finds where the bytes of a content.Request with a File lie, such as at a signed URL: as it is remembered,
	// or anew. nil: with the endpoint itself. Its errors are those of Open. Optional: without it redirects are
	// followed.
	Locate func(ctx context.Context, repo content.Repository, file, authorization string, anew bool) (*url.URL, error)
	// Dial replaces the dialler of TCP connections, and its checks of addresses.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Proxy chooses the proxy of a request. Nil: the variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
	Proxy func(*http.Request) (*url.URL, error)
	// Documents is the memory for manifests that are read whole. nil: a client's own.
	Documents *room.Room
	// Tracer makes a span of each question. Optional.
	Tracer     *trace.Tracer
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Client reads from registries. It is safe for concurrent use.
type Client struct {
	opts    Options
	log     *slog.Logger
	metrics *metrics
	secret  []byte // keys the hashes under which credentials are told apart in memory

	routes    *routes
	redirects *lru.Cache[cacheKey, redirect]
	moved     *lru.Cache[blob, struct{}] // files that were not where they had been located
	tokens    *lru.Cache[cacheKey, token]
	throttles *lru.Fair[cacheKey, throttle]
	accepted  *lru.Cache[cacheKey, struct{}] // what registries have answered with success to, for Renew
	asking    singleflight.Group             // for tokens
}

const (
	maxUnlisted  = 256
	maxRedirects = 4096
	maxTokens    = 256
	maxThrottles = 1024
)

// New returns a client. It fails when an entry of opts.Upstreams is malformed or names files that cannot be read.
func New(opts Options) (*Client, error) {
	opts.Timeouts = opts.Timeouts.withDefaults()
	if opts.Proxy == nil {
		opts.Proxy = http.ProxyFromEnvironment
	}
	if opts.Documents == nil {
		opts.Documents = room.New(room.Share(4))
	}
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	c := &Client{
		opts: opts, log: opts.Logger, secret: make([]byte, 32),
		redirects: lru.New[cacheKey, redirect](maxRedirects), moved: lru.New[blob, struct{}](maxRedirects),
		tokens: lru.New[cacheKey, token](maxTokens), accepted: lru.New[cacheKey, struct{}](maxTokens),
		throttles: lru.NewFair[cacheKey, throttle](maxThrottles),
	}
	_, _ = rand.Read(c.secret) // never fails, says crypto/rand
	var errs [2]error
	c.metrics, errs[0] = newMetrics(opts.Registerer, opts.Upstreams)
	c.routes, errs[1] = c.newRoutes(opts.Upstreams)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return c, nil
}

// Reach gives the base URL of a registry's first endpoint and what sends requests there, for who asks it in another way
// than the distribution API's.
func (c *Client) Reach(registry string) (*url.URL, http.RoundTripper, error) {
	reg, err := c.registry(registry)
	if err != nil {
		return nil, nil, err
	}
	return reg.endpoints[0].base, reg.client.Transport, nil
}

// Close drops idle connections. Running operations go on.
func (c *Client) Close() {
	for _, client := range c.routes.clients {
		client.CloseIdleConnections()
	}
}
