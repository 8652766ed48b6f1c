package upstream_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// A registry's answers before the last have bodies too, which have to be read before their connection can be used
// again.
func TestRedirectsAndRefusalsDoNotCostConnections(t *testing.T) {
	t.Parallel()
	storage := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("x")) })
	for name, answer := range map[string]http.HandlerFunc{
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, storage, http.StatusTemporaryRedirect)
		},
		"a refusal": http.NotFound,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var connections atomic.Int32
			registry := httptest.NewUnstartedServer(answer)
			registry.Config.ConnState = func(_ net.Conn, state http.ConnState) {
				if state == http.StateNew {
					connections.Add(1)
				}
			}
			registry.Start()
			t.Cleanup(registry.Close)
			c := newClient(t, upstream.Options{}, registry.URL)
			for i := range 5 {
				b, err := c.Open(t.Context(), content.Request{Repository: repo,
					Digest: digest.FromString(fmt.Sprint(i))}, 0, -1)
				if err == nil {
					read(t, b)
				}
			}
			require.EqualValues(t, 1, connections.Load())
		})
	}
}

func TestCredentialsGoToTheRegistryHoweverItIsWritten(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		location string
		want     string // the Authorization header after the redirect
	}{
		"another path of it":             {"/moved", "Bearer mine"},
		"its name in capitals":           {"http://IMAGES.test/moved", "Bearer mine"},
		"the port that is meant anyway":  {"http://images.test:80/moved", "Bearer mine"},
		"but not another port":           {"http://images.test:8080/moved", ""},
		"but not a subdomain":            {"http://cdn.images.test/moved", ""},
		"but not another scheme":         {"https://images.test/moved", ""},
		"but not on the way back to it":  {"http://elsewhere.test/back", ""},
		"but not another domain it ends": {"http://myimages.test/moved", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			moved := make(chan string, 1)
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/moved":
					moved <- r.Header.Get("Authorization")
					_, _ = w.Write([]byte("x"))
				case "/back":
					http.Redirect(w, r, "http://images.test/moved", http.StatusFound)
				default:
					http.Redirect(w, r, tc.location, http.StatusFound)
				}
			})
			plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
			t.Cleanup(plain.Close)
			t.Cleanup(secure.Close)
			var dialer net.Dialer
			c := newClient(t, upstream.Options{
				Upstreams: []upstream.Upstream{{Registry: images, Endpoints: []string{"http://images.test"},
					InsecureSkipVerify: true}},
				Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					if strings.HasSuffix(address, ":443") {
						return dialer.DialContext(ctx, network, secure.Listener.Addr().String())
					}
					return dialer.DialContext(ctx, network, plain.Listener.Addr().String())
				},
			})
			b, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromString("x"),
				Authorization: "Bearer mine"}, 0, -1)
			require.NoError(t, err)
			read(t, b)
			require.Equal(t, tc.want, <-moved)
		})
	}
}

func TestRedirect_AHostThatCannotBeReachedSaysNothingAboutTheRegistry(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for name, located := range map[string]bool{"that it redirects to": false, "where a file is known to lie": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			registry := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/file" {
					http.Redirect(w, r, gone.URL, http.StatusFound)
					return
				}
				w.Header().Set("Content-Length", "7")
			})
			o := upstream.Options{}
			if located {
				o.Locate = func(context.Context, content.Repository, string, string, bool) (*url.URL, error) {
					return url.Parse(gone.URL + "/file")
				}
			}
			c := newClient(t, o, registry)
			_, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromString("x"),
				File: "/file"}, 0, 1)
			require.ErrorIs(t, err, content.ErrUnavailable)
			size, _, err := c.Stat(t.Context(), content.Request{Repository: repo, Digest: digest.FromString("y")})
			require.NoError(t, err)
			require.EqualValues(t, 7, size)
		})
	}
}

func TestRedirect_AsManyAreFollowedAsNetHTTPFollows(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		redirects int
		to        func(n int) string
	}{
		"one to itself, which sets a cookie": {1, func(int) string { return "" }},
		"some to itself":                     {9, func(int) string { return "" }},
		"too many to itself":                 {10, func(int) string { return "" }},
		"to and fro":                         {8, func(n int) string { return []string{"/there", ""}[n%2] }},
		"some, on and on":                    {9, func(n int) string { return fmt.Sprint("/", n) }},
		"too many, on and on":                {10, func(n int) string { return fmt.Sprint("/", n) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int32
			data := []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `"}`)
			registry := serve(t, func(w http.ResponseWriter, r *http.Request) {
				n := int(requests.Add(1))
				if n > c.redirects {
					w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
					_, _ = w.Write(data)
					return
				}
				to := c.to(n)
				if to == "" {
					to = "/v2/" + repo.Name + "/manifests/" + digest.FromBytes(data).String()
				}
				http.SetCookie(w, &http.Cookie{Name: "seen", Value: "1"})
				http.Redirect(w, r, to, http.StatusFound)
			})
			resp, theirs := http.Get(registry + "/v2/")
			if theirs == nil {
				require.NoError(t, resp.Body.Close())
			}
			requests.Store(0)
			_, err := newClient(t, upstream.Options{}, registry).Open(t.Context(), content.Request{
				Repository: repo, Digest: digest.FromBytes(data), Kind: content.Manifest,
			}, 0, -1)
			if theirs == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, content.ErrBadAnswer)
			require.ErrorContains(t, err, "each of 10 answers is another, the last one to "+registry)
			require.EqualValues(t, 10, requests.Load())
		})
	}
}

// A registry chooses how long its URLs are, and thousands are remembered.
func TestRedirect_IsRememberedUnlessItsURLIsVeryLong(t *testing.T) {
	t.Parallel()
	storage := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("x")) })
	for name, tc := range map[string]struct{ long, asked int }{
		"as of a signed URL": {2 << 10, 1}, "as of none": {9 << 10, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			registry := serve(t, func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				http.Redirect(w, r, storage+"?"+strings.Repeat("a", tc.long), http.StatusTemporaryRedirect)
			})
			c := newClient(t, upstream.Options{}, registry)
			for range 2 {
				b, err := c.Open(t.Context(), content.Request{Repository: repo, Digest: digest.FromString("x")}, 0, -1)
				require.NoError(t, err)
				read(t, b)
			}
			require.EqualValues(t, tc.asked, asked.Load())
		})
	}
}
