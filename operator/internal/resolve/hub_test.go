package resolve_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/operator/internal/resolve"
	"github.com/shoal-cache/shoal/test/hubtest"
)

func hubResolver(t *testing.T, h *hubtest.Hub) (r *resolve.Resolver, host string) {
	t.Helper()
	r = resolve.New(direct, time.Now)
	u, err := url.Parse(h.URL())
	require.NoError(t, err)
	r.Hub = u
	return r, u.Host
}

func login(t *testing.T, host, password string) pullsecret.Credentials {
	t.Helper()
	all, err := pullsecret.Parse(&corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{
		corev1.DockerConfigJsonKey: []byte(`{"auths": {"` + host + `": {"password": "` + password + `"}}}`)}})
	require.NoError(t, err)
	return all
}

func TestHub_ARevisionIsResolvedToACommitAndItsFilesAreMeasured(t *testing.T) {
	t.Parallel()
	h := hubtest.New()
	t.Cleanup(h.Close)
	h.PageSize = 2
	files := map[string]hubtest.File{
		"config.json": {Data: hubtest.Text("12345")}, "onnx/a.onnx": {Data: hubtest.Random(1, 300), LFS: true},
		"a.safetensors": {Data: hubtest.Random(2, 1000), LFS: true}, "b.safetensors": {Data: hubtest.Random(3, 2000), LFS: true},
	}
	model, dataset := h.Repo("models", "org/m"), h.Repo("datasets", "org/d")
	commit := model.Commit("main", files)
	pr := model.Commit("refs/pr/1", map[string]hubtest.File{"config.json": {Data: hubtest.Text("1")}})
	data := dataset.Commit("main", files)
	secret := h.Repo("models", "org/secret")
	hidden := secret.Commit("main", files)
	secret.SetPrivate("good")
	r, host := hubResolver(t, h)

	for name, tc := range map[string]struct {
		hub    v1alpha1.HubArtifact
		secret pullsecret.Credentials
		commit string
		size   int64
		reason string
	}{
		"all of it":      {v1alpha1.HubArtifact{Repository: "org/m"}, nil, commit, 3305, ""},
		"some files":     {v1alpha1.HubArtifact{Repository: "org/m", Files: []string{"*.safetensors", "*.json"}}, nil, commit, 3005, ""},
		"a folder":       {v1alpha1.HubArtifact{Repository: "org/m", Files: []string{"onnx/"}}, nil, commit, 300, ""},
		"a dataset":      {v1alpha1.HubArtifact{Repository: "datasets/org/d"}, nil, data, 3305, ""},
		"a pull request": {v1alpha1.HubArtifact{Repository: "org/m", Revision: "refs/pr/1"}, nil, pr, 1, ""},
		"a commit":       {v1alpha1.HubArtifact{Repository: "org/m", Revision: commit}, nil, commit, 3305, ""},
		"with a token":   {v1alpha1.HubArtifact{Repository: "org/secret"}, login(t, host, "good"), hidden, 3305, ""},
		"a token's line": {v1alpha1.HubArtifact{Repository: "org/secret"}, login(t, host, `good\n`), "", 0,
			v1alpha1.ReasonInvalidSecret},
		"without a token": {v1alpha1.HubArtifact{Repository: "org/secret"}, nil, "", 0, v1alpha1.ReasonUnauthorized},
		"no such branch":  {v1alpha1.HubArtifact{Repository: "org/m", Revision: "nosuch"}, nil, "", 0, v1alpha1.ReasonNotFoundUpstream},
		"nothing matches": {v1alpha1.HubArtifact{Repository: "org/m", Files: []string{"*.gguf"}}, nil, "", 0, v1alpha1.ReasonNotFoundUpstream},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.hub.Revision == "" {
				tc.hub.Revision = "main"
			}
			got, err := r.Resolve(t.Context(), v1alpha1.Artifact{Hub: &tc.hub}, resolve.Options{Credentials: tc.secret,
				Secrets: len(tc.secret)})
			if tc.reason != "" {
				var failure *resolve.Error
				require.ErrorAs(t, err, &failure)
				require.Equal(t, tc.reason, failure.Reason, err)
				require.NotContains(t, err.Error(), "good")
				return
			}
			require.NoError(t, err)
			require.Equal(t, host+"/"+tc.hub.Repository, got.Repository)
			require.Equal(t, tc.commit, got.Hub.Commit)
			require.Equal(t, tc.size, got.Size)
			require.Equal(t, tc.hub.Files, got.Hub.Files)
		})
	}
}

func TestHub_WhichIsNotKnownOrAwayIsSaid(t *testing.T) {
	t.Parallel()
	artifact := v1alpha1.Artifact{Hub: &v1alpha1.HubArtifact{Repository: "org/m", Revision: "main"}}
	reason := func(r *resolve.Resolver) string {
		_, err := r.Resolve(t.Context(), artifact, resolve.Options{})
		var failure *resolve.Error
		require.ErrorAs(t, err, &failure)
		return failure.Reason
	}
	require.Equal(t, v1alpha1.ReasonInvalidSpec, reason(resolve.New(direct, time.Now)))
	for status, want := range map[int]string{429: v1alpha1.ReasonRateLimited, 503: v1alpha1.ReasonRegistryUnreachable} {
		h := hubtest.New()
		t.Cleanup(h.Close)
		h.Set(hubtest.Trouble{Status: status})
		r, _ := hubResolver(t, h)
		require.Equal(t, want, reason(r))
	}
}

// Who was let ask a hub that was away, and did not, must not keep all others from it.
func TestHub_ATokenThatCanNotBeSentKeepsNobodyFromTheHub(t *testing.T) {
	t.Parallel()
	status := 0
	hub := network(func(r *http.Request) (*http.Response, error) {
		if status == 0 {
			return nil, errSilent
		}
		return answer(r, status)
	})
	now := time.Now()
	r := resolve.New(hub.to, func() time.Time { return now })
	r.Hub = &url.URL{Scheme: "https", Host: "hub.example"}
	model := v1alpha1.Artifact{Hub: &v1alpha1.HubArtifact{Repository: "org/m", Revision: "main"}}
	require.Equal(t, v1alpha1.ReasonRegistryUnreachable, reason(t, r, model))

	status, now = http.StatusNotFound, now.Add(time.Minute)
	_, err := r.Resolve(t.Context(), model, resolve.Options{Credentials: login(t, "hub.example", `good\n`)})
	require.ErrorContains(t, err, "the token holds a line break")
	require.Equal(t, v1alpha1.ReasonNotFoundUpstream, reason(t, r, model))
}

// What comes round again would be counted again, and a pin would be planned by a size that it does not have.
func TestHub_AListingThatHasNoEndIsRefusedInWords(t *testing.T) {
	t.Parallel()
	h := hubtest.New()
	t.Cleanup(h.Close)
	h.Repo("models", "org/m").Commit("main", map[string]hubtest.File{"a": {Data: hubtest.Text("1")}})
	h.SetOdd(hubtest.OddPages(func(int) string { return "1" }))
	r, _ := hubResolver(t, h)
	_, err := r.Resolve(t.Context(), v1alpha1.Artifact{Hub: &v1alpha1.HubArtifact{Repository: "org/m",
		Revision: "main"}}, resolve.Options{})
	require.ErrorContains(t, err, "listing has no end")
	asked, _ := h.Count()
	require.LessOrEqual(t, asked, 4)
}

// Some hubs lie below a path of their host, and name the next page with it.
func TestHub_AListingGoesOnWhereTheHubSaysAndNowhereElse(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	t.Cleanup(other.Close)
	otherHost := strings.TrimPrefix(other.URL, "http://")
	for name, tc := range map[string]struct {
		next  string // %s is the hub's own URL
		fails string
	}{
		"a path of the host": {"/models-hub/api/models/org/m/tree/page-2", ""},
		"a path of the host, of a hub that does not know below what it lies": {"/api/models/org/m/tree/page-2", ""},
		"a path beside the page": {"page-2", ""},
		"a path with a comma":    {"page-2?a=1&b=,c", ""},
		"its own URL":            {"%s/api/models/org/m/tree/page-2", ""},
		"the hub's behind a proxy, whose token stays here": {other.URL + "/api/models/org/m/tree/page-2?a=1", ""},
		"the proxy's own where it ends TLS": {
			"https://proxy.example/models-hub/api/models/org/m/tree/page-2?a=1", ""},
		"a page that the proxy has not": {other.URL + "/page-2", "404"},
		"a host as part of a URL that the hub's would go before": {"http:@" + otherHost + "/page-2",
			"is no URL of a host"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var hub *httptest.Server
			hub = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch path := strings.TrimPrefix(r.URL.Path, "/models-hub/api/models/org/m"); {
				case path == "/revision/main":
					_, _ = io.WriteString(w, `{"sha":"`+strings.Repeat("a", 40)+`"}`)
				case path == "/tree/page-2" && (strings.HasPrefix(r.URL.RawQuery, "a=1") || !strings.Contains(tc.next, "?")):
					_, _ = io.WriteString(w, `[{"type":"file","path":"b","size":2}]`)
				case strings.HasPrefix(path, "/tree/"):
					w.Header().Set("Link", "<"+strings.ReplaceAll(tc.next, "%s", hub.URL+"/models-hub")+`>; rel="next"`)
					_, _ = io.WriteString(w, `[{"type":"file","path":"a","size":1}]`)
				default:
					http.NotFound(w, r)
				}
			}))
			t.Cleanup(hub.Close)
			r := resolve.New(direct, time.Now)
			at, err := url.Parse(hub.URL + "/models-hub/")
			require.NoError(t, err)
			r.Hub = at
			got, err := r.Resolve(t.Context(), v1alpha1.Artifact{Hub: &v1alpha1.HubArtifact{Repository: "org/m",
				Revision: "main"}}, resolve.Options{})
			require.Zero(t, elsewhere.Load())
			if tc.fails != "" {
				require.ErrorContains(t, err, tc.fails)
				return
			}
			require.NoError(t, err)
			require.Equal(t, int64(3), got.Size)
		})
	}
}
