package upstream_test

import (
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/upstream"
)

// site is an HTTP server that counts what it is asked.
type site struct {
	*httptest.Server
	asked atomic.Int64
	last  atomic.Pointer[http.Request]
}

func newSite(t *testing.T, start func(http.Handler) *httptest.Server, answer http.HandlerFunc) *site {
	t.Helper()
	s := &site{}
	s.Server = start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		s.last.Store(r)
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *site) at(t *testing.T, path string) *url.URL {
	t.Helper()
	u, err := url.Parse(s.URL + path)
	require.NoError(t, err)
	return u
}

const manifestText = `{"schemaVersion":2}`

func manifestAnswer(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	w.Header().Set("Docker-Content-Digest", digest.FromString(manifestText).String())
	_, _ = w.Write([]byte(manifestText))
}

func TestMirrors_AreAskedBeforeTheRegistryAndInItsPlace(t *testing.T) {
	t.Parallel()
	none := func(w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) }
	refuses := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }
	for name, c := range map[string]struct {
		mirror, registry http.HandlerFunc
		pull, resolve    bool
		err              error
		status           int
		asked            [2]int64 // the mirror, the registry
	}{
		"what the mirror has":     {manifestAnswer, none, true, true, nil, 0, [2]int64{1, 0}},
		"what the mirror has not": {none, manifestAnswer, true, true, nil, 0, [2]int64{1, 1}},
		"what the mirror refuses": {refuses, manifestAnswer, true, true, nil, 0, [2]int64{1, 1}},
		"what nobody has":         {none, none, true, true, content.ErrNotFound, 0, [2]int64{1, 1}},
		"what the registry refuses": {none, refuses, true, true, nil, http.StatusForbidden,
			[2]int64{1, 1}},
		"a mirror's refusal is not the registry's": {refuses, none, true, true, content.ErrNotFound, 0, [2]int64{1, 1}},
		"a mirror that may not say what tags mean": {manifestAnswer, manifestAnswer, true, false, nil, 0,
			[2]int64{0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newSite(t, httptest.NewTLSServer, c.mirror)
			r := newSite(t, httptest.NewServer, c.registry)
			client, err := upstream.New(upstream.Options{Mirrors: func(registry string) ([]upstream.Mirror, error) {
				if registry != "up.example" {
					return nil, nil
				}
				return []upstream.Mirror{
					{
						URL: m.at(t, "/deep/v2"), Pull: c.pull, Resolve: c.resolve,
						Header: http.Header{"X-Token": {"t"}},
						CAs:    [][]byte{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Certificate().Raw})},
					},
					{URL: r.at(t, "/v2"), Self: true, Pull: true, Resolve: true},
				}, nil
			}})
			require.NoError(t, err)
			t.Cleanup(client.Close)
			_, err = client.Resolve(t.Context(), content.Repository{Registry: "up.example", Name: "team/app"}, "1", nil,
				"Basic dTpw")
			switch answer, isAnswer := errors.AsType[*content.UpstreamError](err); {
			case c.err != nil:
				require.ErrorIs(t, err, c.err)
			case c.status != 0:
				require.True(t, isAnswer, err)
				require.Equal(t, c.status, answer.Status)
			default:
				require.NoError(t, err)
			}
			require.Equal(t, c.asked[0] > 0, m.asked.Load() > 0)
			require.Equal(t, c.asked[1] > 0, r.asked.Load() > 0)
			if req := m.last.Load(); req != nil {
				require.Equal(t, "/deep/v2/team/app/manifests/1", req.URL.Path)
				require.Equal(t, "up.example", req.URL.Query().Get("ns"))
				require.Equal(t, "t", req.Header.Get("X-Token"))
				require.Empty(t, req.Header.Get("Authorization"), "the registry's credentials went to somebody else")
			}
			if req := r.last.Load(); req != nil {
				require.Equal(t, "Basic dTpw", req.Header.Get("Authorization"))
				require.Empty(t, req.Header.Get("X-Token"))
			}
		})
	}
}

// A registry that the configuration names is reached as that says.
func TestMirrors_AreNotAskedWhereTheConfigurationNamesTheRegistry(t *testing.T) {
	t.Parallel()
	r := newSite(t, httptest.NewServer, manifestAnswer)
	for _, registry := range []string{"up.example", "*"} {
		client, err := upstream.New(upstream.Options{
			Upstreams: []upstream.Upstream{{Registry: registry, Endpoints: []string{r.URL}}},
			Mirrors: func(string) ([]upstream.Mirror, error) {
				t.Error("it was asked for")
				return nil, nil
			},
		})
		require.NoError(t, err)
		t.Cleanup(client.Close)
		_, err = client.Resolve(t.Context(), content.Repository{Registry: "up.example", Name: "a"}, "1", nil, "")
		require.NoError(t, err)
	}
}

// A failure to read what is configured leaves the registry as it is reached without.
func TestMirrors_ThatCannotBeReadLeaveTheRegistry(t *testing.T) {
	t.Parallel()
	r := newSite(t, httptest.NewServer, manifestAnswer)
	client, err := upstream.New(upstream.Options{AllowAddresses: loopback,
		Mirrors: func(string) ([]upstream.Mirror, error) {
			return nil, errors.New("unreadable")
		}})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	_, err = client.Resolve(t.Context(), content.Repository{Registry: r.Listener.Addr().String(), Name: "a"}, "1", nil,
		"")
	require.NoError(t, err)
}
