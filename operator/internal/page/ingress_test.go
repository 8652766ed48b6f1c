package page

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// loaded are what the page loads, by what stands in it and in its script.
var loaded = regexp.MustCompile(`(?:src|href)="([a-z]+\.[a-z]+)"`)

// TestPage_WorksBehindAnIngress reads it through a reverse proxy that does what those of ingress-nginx and Traefik do.
func TestPage_WorksBehindAnIngress(t *testing.T) {
	t.Parallel()
	p, _ := serve(t, scene(3, 1, "node"))
	pod := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 8082} // an Ingress comes to the pod's address
		p.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, at)))
	}))
	t.Cleanup(pod.Close)
	target, err := url.Parse(pod.URL)
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		at      string // of the page, as its readers know it
		strips  bool
		headers map[string]string
		slash   bool // whether its address without the slash at its end leads there
	}{
		"ingress-nginx, at the root of a host": {at: "/", headers: map[string]string{"X-Request-Id": "1", "X-Real-Ip": "192.0.2.1",
			"X-Forwarded-Port": "443", "X-Forwarded-Scheme": "https", "X-Scheme": "https"}},
		"ingress-nginx, below a path": {at: "/ops/shoal/", slash: true,
			headers: map[string]string{"X-Forwarded-Scheme": "https", "X-Scheme": "https"}},
		"ingress-nginx with rewrite-target": {at: "/ops/shoal/", strips: true,
			headers: map[string]string{"X-Forwarded-Prefix": "/ops/shoal"}},
		"Traefik, below a path": {at: "/shoal/", slash: true, headers: map[string]string{"X-Forwarded-Server": "traefik-0",
			"X-Forwarded-Port": "443"}},
		"Traefik with StripPrefix": {at: "/shoal/", strips: true,
			headers: map[string]string{"X-Forwarded-Prefix": "/shoal", "X-Forwarded-Server": "traefik-0"}},
		"a path that needs escapes": {at: "/a%20b/sh%C3%B6al/", slash: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ingress := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(target)
				r.Out.Host = r.In.Host // as readers know it
				r.SetXForwarded()
				for key, value := range tc.headers {
					r.Out.Header.Set(key, value)
				}
				if tc.strips {
					r.Out.URL.Path = "/" + strings.TrimPrefix(r.Out.URL.Path, tc.at)
					r.Out.URL.RawPath = ""
				}
			}})
			t.Cleanup(ingress.Close)
			reader := ingress.Client() // asks by a name, and not by an address
			transport := reader.Transport.(*http.Transport)
			transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, ingress.Listener.Addr().String())
			}
			transport.TLSClientConfig.ServerName = "example.com" // whom the certificate names
			read := func(at string) (string, *http.Response) {
				return readBy(t, reader, "https://shoal.corp.example"+at)
			}
			body, answer := read(tc.at)
			require.Equal(t, "text/html; charset=utf-8", answer.Header.Get("Content-Type"))
			page := answer.Request.URL
			names := map[string]string{"main": "text/html", "state.json": "application/json"}
			for _, m := range loaded.FindAllStringSubmatch(body, -1) {
				names[m[1]] = map[string]string{"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml",
					"json": "application/json"}[m[1][strings.IndexByte(m[1], '.')+1:]]
			}
			require.Len(t, names, 5)
			for name, mediaType := range names {
				at, err := page.Parse(name) // as a browser does
				require.NoError(t, err)
				body, answer := readBy(t, reader, at.String())
				require.Contains(t, answer.Header.Get("Content-Type"), mediaType, name)
				if mediaType == "application/json" {
					require.True(t, json.Valid([]byte(body)))
				}
			}
			if tc.slash {
				_, answer = read(strings.TrimSuffix(tc.at, "/"))
				require.Equal(t, "https://shoal.corp.example"+tc.at, answer.Request.URL.String())
			}
		})
	}
}

// readBy reads what is at a URL, following where that leads, and expects it to be there.
func readBy(t *testing.T, reader *http.Client, at string) (string, *http.Response) {
	t.Helper()
	status, body, answer := getBy(t, reader, at)
	require.Equal(t, http.StatusOK, status, at)
	return body, answer
}
