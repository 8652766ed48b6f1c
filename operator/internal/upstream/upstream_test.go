package upstream_test

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/api/registries/registriestest"
	"github.com/shoal-cache/shoal/operator/internal/upstream"
)

// files is a registry with one image, team/app:1.
func files(t *testing.T) (h http.Handler, digest string) {
	t.Helper()
	h = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(h)
	defer server.Close()
	image, err := random.Image(64, 1)
	require.NoError(t, err)
	tag, err := name.NewTag(strings.TrimPrefix(server.URL, "http://") + "/team/app:1")
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, image))
	d, err := image.Digest()
	require.NoError(t, err)
	return h, d.String()
}

func serve(t *testing.T, tls bool, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if tls {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

// loopback is where the servers of tests are.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// byName is the server's URL by a name, for no registry may send its clients to private addresses.
func byName(s *httptest.Server) string { return strings.Replace(s.URL, "127.0.0.1", "localhost", 1) }

// resolve asks for registry.example/team/app:1, a name that leads nowhere by itself.
func resolve(upstreams []registries.Upstream, options ...remote.Option) (string, error) {
	ways, err := upstream.New(upstreams, loopback, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	return resolveBy(ways.For("registry.example"), options...)
}

func resolveBy(transport http.RoundTripper, options ...remote.Option) (string, error) {
	tag, err := name.NewTag("registry.example/team/app:1")
	if err != nil {
		return "", err
	}
	descriptor, err := remote.Get(tag, append(options, remote.WithTransport(transport))...)
	if err != nil {
		return "", err
	}
	return descriptor.Digest.String(), nil
}

func TestCredentialsAreNotSentInTheClearUnasked(t *testing.T) {
	t.Parallel()
	ways, err := upstream.New(nil, loopback, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	// with which the library would try it
	for _, host := range []string{"10.0.0.7:5000", "192.168.1.2", "registry.local:5000"} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/v2/", nil)
		require.NoError(t, err)
		_, err = ways.For(host).RoundTrip(request)
		require.ErrorContains(t, err, host+": plain HTTP only where upstreams give the registry an endpoint http://")
	}
}

// Whoever may make a pin names any host, and what a registry answers stands in the pin's conditions.
func TestAddressesOfTheOperatorsOwnMachineAreNotAsked(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	secret := serve(t, false, func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	port := secret.Listener.Addr().(*net.TCPAddr).Port
	for name, c := range map[string]struct {
		url     string
		allowed []netip.Prefix
		ups     []registries.Upstream
		reached bool
	}{
		"a registry on it":             {url: fmt.Sprintf("https://127.0.0.1:%d/v2/", port)},
		"what a registry redirects to": {url: fmt.Sprintf("http://127.0.0.1:%d/latest/meta-data", port)},
		"a name that leads there":      {url: fmt.Sprintf("http://localhost:%d/token", port)},
		"a cloud's metadata":           {url: "http://169.254.169.254/latest/meta-data"},
		"one that is allowed": {url: fmt.Sprintf("http://127.0.0.1:%d/token", port), reached: true,
			allowed: loopback},
		"one that the administrator has named": {url: "http://registry.example/v2/", reached: true,
			ups: []registries.Upstream{{Registry: "registry.example", Endpoints: []string{secret.URL}}}},
		"one that is listed without an endpoint": {url: fmt.Sprintf("http://localhost:%d/v2/", port), reached: true,
			ups: []registries.Upstream{{Registry: fmt.Sprintf("localhost:%d", port)}}},
	} {
		t.Run(name, func(t *testing.T) {
			ways, err := upstream.New(c.ups, c.allowed, slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url, nil)
			require.NoError(t, err)
			before := asked.Load()
			answer, err := ways.For(request.URL.Host).RoundTrip(request)
			if c.reached {
				require.NoError(t, err)
				require.NoError(t, answer.Body.Close())
				require.Equal(t, before+1, asked.Load())
				return
			}
			require.ErrorIs(t, err, registries.ErrAddress)
			require.Equal(t, before, asked.Load())
		})
	}
}

func TestARegistryIsReachedWhereTheAdministratorSays(t *testing.T) {
	t.Parallel()
	h, digest := files(t)
	var namespaces atomic.Value
	plain := serve(t, false, func(w http.ResponseWriter, r *http.Request) {
		namespaces.Store(r.URL.Query().Get("ns"))
		r.URL.Path = strings.TrimPrefix(r.URL.Path, "/mirror")
		h.ServeHTTP(w, r)
	})
	secure := serve(t, true, h.ServeHTTP)
	broken := serve(t, false, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	moved := serve(t, false, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v2/team/") {
			http.Redirect(w, r, byName(plain)+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		h.ServeHTTP(w, r)
	})
	gone := httptest.NewServer(nil)
	gone.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: secure.Certificate().Raw}), 0o600))

	at := func(endpoints ...string) registries.Upstream {
		return registries.Upstream{Registry: "registry.example", Endpoints: endpoints}
	}
	for what, u := range map[string]registries.Upstream{
		"plain HTTP at another address": at(plain.URL),
		"below a prefix":                at(plain.URL + "/mirror/v2/"),
		"by another name in capitals":   {Registry: "Registry.Example", Endpoints: []string{plain.URL}},
		"a certificate of one's own": {Registry: "registry.example", Endpoints: []string{secure.URL},
			CAFile: ca},
		"a certificate that is not checked": {Registry: "registry.example", Endpoints: []string{secure.URL},
			InsecureSkipVerify: true},
		"the second where the first is down":       at(gone.URL, plain.URL),
		"the second where the first is broken":     at(broken.URL, plain.URL),
		"an address that redirects to another one": at(moved.URL),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			got, err := resolve([]registries.Upstream{u})
			require.NoError(t, err)
			require.Equal(t, digest, got)
		})
	}
	t.Run("a mirror of all registries is told which one is meant", func(t *testing.T) {
		t.Parallel()
		mirror := serve(t, false, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("ns") != "registry.example" {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			h.ServeHTTP(w, r)
		})
		got, err := resolve([]registries.Upstream{{Registry: "*", Endpoints: []string{mirror.URL}}})
		require.NoError(t, err)
		require.Equal(t, digest, got)
	})
	t.Run("a certificate that nobody vouches for is refused", func(t *testing.T) {
		t.Parallel()
		_, err := resolve([]registries.Upstream{at(secure.URL)})
		require.ErrorContains(t, err, "certificate")
	})
	t.Run("where none answers, all are named", func(t *testing.T) {
		t.Parallel()
		_, err := resolve([]registries.Upstream{at(gone.URL, gone.URL+"/second")})
		require.ErrorContains(t, err, gone.URL)
		require.ErrorContains(t, err, "/second")
	})
}

func TestCertificatesThatAreRenewedAreUsedWithoutARestart(t *testing.T) {
	t.Parallel()
	h, digest := files(t)
	secure := serve(t, true, h.ServeHTTP)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write := func(certificate []byte) {
		t.Helper()
		require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
			0o600))
	}
	write(registriestest.Certificate(t).Certificate[0])
	ways, err := upstream.New([]registries.Upstream{{Registry: "registry.example", Endpoints: []string{secure.URL},
		CAFile: ca}}, loopback, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	transport := ways.For("registry.example")
	_, err = resolveBy(transport)
	require.ErrorContains(t, err, "certificate")

	write(secure.Certificate().Raw)
	got, err := resolveBy(transport)
	require.NoError(t, err)
	require.Equal(t, digest, got)

	require.NoError(t, os.WriteFile(ca, []byte("half of a fi"), 0o600))
	got, err = resolveBy(transport)
	require.NoError(t, err, "what can't be read leaves things as they were")
	require.Equal(t, digest, got)
	write(registriestest.Certificate(t).Certificate[0])
	_, err = resolveBy(transport)
	require.ErrorContains(t, err, "certificate",
		"a connection that an authority of before vouched for is not used again")
}

const token = "let-me-in"

// wantsToken is h for who shows the token, and to others names where tokens are given.
func wantsToken(h http.Handler, realm string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="registry.example"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	}
}

func giveToken(w http.ResponseWriter) { _, _ = fmt.Fprintf(w, `{"token": %q}`, token) }

func TestCredentialsAreNotSentToATokenServerInTheClear(t *testing.T) {
	t.Parallel()
	h, _ := files(t)
	var asked atomic.Bool
	tokens := serve(t, false, func(w http.ResponseWriter, _ *http.Request) { asked.Store(true) })
	secure := serve(t, true, wantsToken(h, byName(tokens)+"/token"))
	_, err := resolve([]registries.Upstream{{Registry: "registry.example", Endpoints: []string{secure.URL},
		InsecureSkipVerify: true}},
		remote.WithAuth(&authn.Basic{Username: "u", Password: "p"}))
	require.ErrorContains(t, err, "not allowed for a secure registry")
	require.False(t, asked.Load())
}

func TestCredentialsAndTokensTakeTheirWayThroughAnEndpoint(t *testing.T) {
	t.Parallel()
	h, digest := files(t)
	tokens := serve(t, false, func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "u" || password != "p" || r.URL.Query().Get("ns") != "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		giveToken(w)
	})
	locked := serve(t, false, wantsToken(h, byName(tokens)+"/token"))
	for _, registry := range []string{"registry.example", "*"} {
		got, err := resolve([]registries.Upstream{{Registry: registry, Endpoints: []string{locked.URL}}},
			remote.WithAuth(&authn.Basic{Username: "u", Password: "p"}))
		require.NoError(t, err, registry)
		require.Equal(t, digest, got)
	}
}

func TestATokenServerIsTrustedAsTheRegistryThatNamesIt(t *testing.T) {
	t.Parallel()
	h, digest := files(t)
	// The name localhost is in nobody's certificate, so that the file vouches for the registry alone.
	tokens := serve(t, true, func(w http.ResponseWriter, _ *http.Request) { giveToken(w) })
	locked := serve(t, true, wantsToken(h, byName(tokens)+"/v2/token"))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: locked.Certificate().Raw}), 0o600))
	registry := registries.Upstream{Registry: "registry.example", Endpoints: []string{locked.URL},
		InsecureSkipVerify: true}
	trusted := registries.Upstream{Registry: "registry.example", Endpoints: []string{locked.URL}, CAFile: ca}
	tokenHost := strings.TrimPrefix(byName(tokens), "https://")
	for name, c := range map[string]struct {
		upstreams []registries.Upstream
		refused   string
	}{
		"one that nobody listed": {[]registries.Upstream{registry}, ""},
		"one beside a mirror of all other registries": {[]registries.Upstream{registry,
			{Endpoints: []string{"https://mirror.invalid"}}}, ""},
		"one that is listed too, otherwise": {[]registries.Upstream{registry,
			{Registry: tokenHost, Endpoints: []string{"https://r.invalid"}}}, ""},
		"one that is listed as trusted, unlike its registry": {[]registries.Upstream{trusted,
			{Registry: tokenHost, InsecureSkipVerify: true}}, "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := resolve(c.upstreams)
			if c.refused != "" {
				require.ErrorContains(t, err, c.refused)
				return
			}
			require.NoError(t, err)
			require.Equal(t, digest, got)
		})
	}
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for want, ups := range map[string][]registries.Upstream{
		"want http(s)://":       {{Registry: "a.example", Endpoints: []string{"a.example:5000"}}},
		"holds credentials":     {{Registry: "a.example", Endpoints: []string{"https://u:p@a.example"}}},
		"a query":               {{Registry: "a.example", Endpoints: []string{"https://a.example?x=1"}}},
		"caFile: stat":          {{Registry: "a.example", CAFile: "/nonexistent"}},
		"clientCertFile":        {{Registry: "a.example", ClientKeyFile: "/nonexistent"}},
		`"*": listed twice`:     {{}, {Registry: "*"}},
		`"B.example": listed t`: {{Registry: "b.example"}, {Registry: "B.example"}},
	} {
		_, err := upstream.New(ups, nil, slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "u:p@")
	}
}
