package puller_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/chaos/internal/puller"
	"github.com/shoal-cache/shoal/test/internal/badregistry"
)

// spec is a pull of a private image from a registry that is its own mirror.
func spec(t *testing.T, bearer bool, before func(http.Handler) http.Handler) (puller.Spec, *badregistry.Registry) {
	t.Helper()
	m, err := badregistry.NewImage("private/app", true, 1, 100_000)
	require.NoError(t, err)
	m.Bearer = bearer
	registry := badregistry.New()
	registry.Add(m)
	mirror := httptest.NewServer(before(registry))
	t.Cleanup(mirror.Close)
	return puller.Spec{
		Image: m, Mirror: mirror.URL, Namespace: "images.test", Tries: 1, Tokens: new(puller.Tokens),
		Dial: new(net.Dialer).DialContext,
	}, registry
}

func honest(h http.Handler) http.Handler { return h }

func TestPull_AMirrorsTagThatNamesAnotherImageIsAWrongAnswer(t *testing.T) {
	t.Parallel()
	s, _ := spec(t, false, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.Header().Set("Docker-Content-Digest", digest.FromString("other").String())
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	got := puller.Pull(t.Context(), s)
	require.Error(t, got.Err)
	require.Equal(t, []puller.Bad{{Digest: digest.FromString("other"), Clean: true, Tag: true}}, got.Bad)
}

func TestSteal_GetsNothingOfARegistryThatIsInOrderAndAllOfOneThatLetsEveryoneIn(t *testing.T) {
	t.Parallel()
	for name, bearer := range map[string]bool{"a password": false, "a token": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, registry := spec(t, bearer, honest)
			require.NoError(t, puller.Pull(t.Context(), s).Err)
			require.NoError(t, puller.Lists(t.Context(), s))
			for thief := range puller.Revoked {
				require.Empty(t, puller.Steal(t.Context(), s, thief, "images.test/other"), thief)
			}
			require.NotEmpty(t, puller.Steal(t.Context(), s, puller.Revoked), "they are not revoked yet")
			registry.Revoke(s.Image.Repository, true)
			require.Empty(t, puller.Steal(t.Context(), s, puller.Revoked))
			require.Error(t, puller.Pull(t.Context(), s).Err)

			open, _ := spec(t, bearer, func(h http.Handler) http.Handler {
				m := *s.Image
				m.Private = false
				everyone := badregistry.New()
				everyone.Add(&m)
				return everyone
			})
			stolen := strings.Join(puller.Steal(t.Context(), open, puller.Nobody), "\n") + "\n" // in any order
			for _, d := range []digest.Digest{open.Image.Digest, open.Image.Blobs[1].Digest} {
				require.Regexp(t, `GET \S+`+d.String()+`\S+ \n`, stolen, "the whole")
				require.Regexp(t, `HEAD \S+`+d.String(), stolen, "the size")
				require.Regexp(t, `GET \S+`+d.String()+`\S+ bytes=`, stolen, "the middle")
			}
			require.Contains(t, stolen, "/tags/list")
			require.Contains(t, stolen, "/referrers/")
		})
	}
}
