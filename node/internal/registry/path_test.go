package registry

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
)

func TestRoutes(t *testing.T) {
	t.Parallel()
	d := digest.FromString("x")
	repo := func(registry, name string) content.Repository {
		return content.Repository{Registry: registry, Name: name}
	}
	for path, tc := range map[string]struct {
		ns, fallback string
		want         route
	}{
		"/v2": {"", "", route{endpoint: endBase}},
		"/v2/": {"images.test", "",
			route{endpoint: endBase, repo: repo("images.test", "")}},
		"/v2/a/manifests/v1": {"images.test", "other.test",
			route{endManifest, repo("images.test", "a"), "v1", ""}},
		"/v2/a/b/manifests/" + d.String(): {"images.test:5000", "",
			route{endManifest, repo("images.test:5000", "a/b"), "", d}},
		"/v2/a/blobs/" + d.String(): {"[::1]:5000", "", route{endBlob, repo("[::1]:5000", "a"), "", d}},
		"/v2/blobs/manifests/blobs/tags/list": {"IMAGES.test", "",
			route{endTags, repo("images.test", "blobs/manifests/blobs"), "", ""}},
		"/v2/a/referrers/" + d.String():  {"registry", "", route{endReferrers, repo("registry", "a"), "", d}},
		"/v2/images.test/a/manifests/v1": {"", "", route{endManifest, repo("images.test", "a"), "v1", ""}},
		"/v2/localhost/a/manifests/v1":   {"", "", route{endManifest, repo("localhost", "a"), "v1", ""}},
		"/v2/images.test/b/manifests/v1": {"", "other.test",
			route{endManifest, repo("images.test", "b"), "v1", ""}},
		"/v2/images.test:80/a/manifests/v1": {"", "other.test",
			route{endManifest, repo("images.test:80", "a"), "v1", ""}},
		"/v2/a.b/manifests/v1": {"", "other.test",
			route{endManifest, repo("other.test", "a.b"), "v1", ""}},
		"/v2/docker.io/redis/manifests/v1": {"", "",
			route{endManifest, repo("docker.io", "library/redis"), "v1", ""}},
		"/v2/index.docker.io/redis/tags/list": {"", "", route{endTags, repo("docker.io", "library/redis"), "", ""}},
		"/v2/acme/redis/tags/list": {"registry-1.docker.io", "",
			route{endTags, repo("docker.io", "acme/redis"), "", ""}},
		"/v2/docker.io/acme/redis/tags/list": {"", "", route{endTags, repo("docker.io", "acme/redis"), "", ""}},
		"/v2/redis/tags/list": {"", "docker.io",
			route{endTags, repo("docker.io", "library/redis"), "", ""}},
		"/v2/manifests/manifests/manifests": {"images.test", "",
			route{endManifest, repo("images.test", "manifests"), "manifests", ""}},
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			got, err := parseRoute(path, tc.ns, tc.fallback)
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

// A route that is accepted holds nothing that could lead a request astray.
func FuzzParseRoute(f *testing.F) {
	zeros := "sha256:" + strings.Repeat("0", 64)
	for _, seed := range [][3]string{
		{"/v2/", "", ""}, {"/v2/a/b/manifests/v1", "images.test", ""}, {"/v2/images.test:80/a/blobs/" + zeros, "", ""},
		{"/v2/a/tags/list", "", "docker.io"}, {"/v2/a/../b/referrers/" + zeros, "[::1]:1", ""}, {"/v2//manifests/",
			"a b", "\x00"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, path, ns, fallback string) {
		if fallback != "" {
			if host, err := hostname(fallback); err != nil || host != fallback {
				t.Skip("New refuses it")
			}
		}
		r, err := parseRoute(path, ns, fallback)
		if err != nil {
			return
		}
		for _, s := range []string{r.repo.Registry, r.repo.Name, r.tag} {
			if strings.ContainsAny(s, " ?#%@\\\x00\r\n") || strings.Contains(s, "..") || strings.HasPrefix(s, "/") ||
				strings.HasSuffix(s, "/") {
				t.Fatalf("%q, ns %q: accepted as %+v", path, ns, r)
			}
		}
		switch r.endpoint {
		case endBase:
		case endTags:
			require.NotEmpty(t, r.repo.Registry)
			require.NotEmpty(t, r.repo.Name)
		case endManifest, endBlob, endReferrers:
			require.NotEmpty(t, r.repo.Registry)
			require.NotEmpty(t, r.repo.Name)
			require.True(t, (r.tag == "") != (r.digest == ""))
			if r.digest != "" {
				require.NoError(t, r.digest.Validate())
			}
		default:
			t.Fatalf("%q: accepted as %q", path, r.endpoint)
		}
	})
}
