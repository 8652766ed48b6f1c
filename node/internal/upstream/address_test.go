package upstream

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/content"
)

// Anyone may have files asked for at the hosts of URLs, so those must not lead into the network around.
func TestOutward_AFilesHostLeadsIntoNoPrivateNetwork(t *testing.T) {
	t.Parallel()
	base, err := url.Parse("https://files.example/models/")
	require.NoError(t, err)
	c, err := New(Options{Outward: []*url.URL{base}, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	for name, want := range map[string]bool{"files.example": true, "images.example": false} {
		client, err := c.newClient(Upstream{Registry: name})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // nothing is sent in any case
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://10.0.0.1/admin", nil)
		require.NoError(t, err)
		_, err = client.Do(req)
		require.Equal(t, want, errors.Is(err, registries.ErrAddress), "%s: %v", name, err)
	}
}

// leading is a host, as if it had an address, that redirects whoever asks into a private network, and that network.
type leading struct{ address string }

func (l leading) RoundTrip(r *http.Request) (*http.Response, error) {
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil {
		remote := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(l.address))
		trace.GotConn(httptrace.GotConnInfo{Conn: connectedTo{address: remote}})
	}
	resp := &http.Response{Status: "302 Found", StatusCode: http.StatusFound, Header: http.Header{}, Request: r}
	resp.Header.Set("Location", "http://10.0.0.7/secret")
	resp.Body = http.NoBody
	if r.URL.Host == "10.0.0.7" {
		resp.Status, resp.StatusCode, resp.ContentLength = "200 OK", http.StatusOK, 6
		resp.Body = io.NopCloser(strings.NewReader("secret"))
	}
	return resp, nil
}

// connectedTo is a connection to an address.
type connectedTo struct {
	net.Conn
	address net.Addr
}

func (c connectedTo) RemoteAddr() net.Addr { return c.address }

// Who names the registry in an image may be the one to whom it belongs.
func TestAddresses_ARegistryOutsideThatIsNotListedLeadsIntoNoPrivateNetwork(t *testing.T) {
	t.Parallel()
	const name, outside = "registry.example", "192.0.2.1:443"
	direct := func(*http.Request) (*url.URL, error) { return nil, nil }
	for what, tc := range map[string]struct {
		address string
		options Options
		refused bool
	}{
		"one outside": {address: outside, options: Options{Proxy: direct}, refused: true},
		"one that may be anywhere, behind a proxy": {address: "10.1.1.1:3128", refused: true,
			options: Options{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: "10.1.1.1:3128"})}},
		"one outside, after the runtime's mirrors": {address: outside, refused: true, options: Options{Proxy: direct,
			Mirrors: func(string) ([]Mirror, error) { return []Mirror{{Self: true, Pull: true}}, nil }}},
		"one that is listed": {address: outside,
			options: Options{Proxy: direct, Upstreams: []Upstream{{Registry: name}}}},
		"one that is given a host for all that are not listed": {address: outside,
			options: Options{Proxy: direct, Upstreams: []Upstream{{Registry: "*", Endpoints: []string{"https://cache.example"}}}}},
		"one in the network around": {address: "10.1.1.1:443", options: Options{Proxy: direct}},
		"one on this machine":       {address: "127.0.0.1:443", options: Options{Proxy: direct}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c, err := New(tc.options)
			require.NoError(t, err)
			t.Cleanup(c.Close)
			reg, err := c.registry(name)
			require.NoError(t, err)
			own, _ := reg.endpoints[0].clients(reg)
			own.Transport = leading{tc.address}
			for range 2 { // where it led is remembered
				b, err := c.Open(t.Context(), content.Request{
					Repository: content.Repository{Registry: name, Name: "a"}, Digest: digest.FromString("x"),
				}, 0, -1)
				if tc.refused {
					require.ErrorIs(t, err, registries.ErrAddress)
					continue
				}
				require.NoError(t, err)
				require.NoError(t, b.Close())
			}
		})
	}
}
