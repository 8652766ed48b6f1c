package hub

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/test/hubtest"
)

func everything(string) bool { return true }

// hold does what a pin does: it lists, and gets each.
func hold(t testing.TB, a *agent, repo content.Repository, revision, commit, authorization string,
	keep func(string) bool) ([]content.Request, error) {
	t.Helper()
	files, err := a.Files(t.Context(), repo, revision, commit, authorization, keep, true)
	for _, req := range files {
		req.Authorization = authorization
		require.NoError(t, a.fetcher.Ensure(t.Context(), req))
	}
	return files, err
}

func TestFiles_OfACommitAreServedWithTheHubAway(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, files := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	repo := content.Repository{Registry: hubName, Name: "org/m"}
	_, err := a.Files(t.Context(), repo, "main", commit, "", everything, false)
	require.ErrorIs(t, err, content.ErrNotFound, "nothing is here")
	n, _ := h.Count()
	require.Zero(t, n, "who only looks asks nobody")

	held, err := hold(t, a, repo, "main", commit, "", everything)
	require.NoError(t, err)
	h.Set(hubtest.Trouble{Down: true})
	again, err := a.Files(t.Context(), repo, "main", commit, "", everything, false)
	require.NoError(t, err)
	require.Equal(t, held, again)
	rule := policy.DefaultRule()
	rule.TagTTL, rule.Authorization.TTL = 0, 0
	a.rule.Store(&rule)
	for path, f := range files {
		g := a.ask(t, http.MethodGet, resolve("org/m", "main", path))
		require.Equal(t, http.StatusOK, g.status, path)
		require.True(t, bytes.Equal(read(t, f.Data), g.body), path)
	}
	for _, path := range []string{"/api/models/org/m", "/api/models/org/m/revision/main",
		"/api/models/org/m/tree/main?recursive=true"} {
		require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, path).status, path)
	}
}

func TestFiles_AreThoseThatThePinTakes(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, _ := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	repo := content.Repository{Registry: hubName, Name: "org/m"}
	held, err := hold(t, a, repo, "main", commit, "", func(path string) bool { return strings.HasSuffix(path, ".onnx") })
	require.NoError(t, err)
	var names []string
	for _, req := range held {
		if req.File != "" {
			names = append(names, req.File)
		}
	}
	require.Equal(t, []string{"/org/m/resolve/" + commit + "/onnx/model.onnx"}, names)
	_, sent := h.Count()
	require.Less(t, sent, int64(1000), "nothing else was read")
	_, err = a.Files(t.Context(), repo, "main", commit, "", func(string) bool { return false }, true)
	require.ErrorContains(t, err, "no file")
}

func TestFiles_OfAPrivateRepositoryTakeItsTokenAndOpenItToNobodyElse(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	private, commit, _ := model(h, "org/secret")
	private.SetPrivate("good")
	h.Token("other")
	a := newAgent(t, h, "", nil)
	repo := content.Repository{Registry: hubName, Name: "org/secret"}
	for _, authorization := range []string{"", "Bearer other", "Bearer bad"} {
		_, err := a.Files(t.Context(), repo, "main", commit, authorization, everything, true)
		require.Error(t, err)
		require.True(t, content.Denied(err) || strings.Contains(err.Error(), "404"), "%v", err)
	}
	held, err := hold(t, a, repo, "main", commit, "Bearer good", everything)
	require.NoError(t, err)
	for _, req := range held {
		require.Empty(t, req.Authorization, "a request that is kept holds no token")
	}
	for path := range private.Files("main") {
		require.GreaterOrEqual(t, a.ask(t, http.MethodGet, resolve("org/secret", "main", path)).status, 400)
		require.GreaterOrEqual(t, a.ask(t, http.MethodGet, resolve("org/secret", "main", path),
			bearer("other")...).status, 400)
		require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, resolve("org/secret", "main", path),
			bearer("good")...).status)
	}
}

func TestFiles_OfAnotherHubOrOfNoRepositoryAreRefused(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, _ := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	for name, repo := range map[string]content.Repository{
		"another hub": {Registry: "elsewhere.example", Name: "org/m"}, "no name": {Registry: hubName},
		"a way out": {Registry: hubName, Name: "../m"}, "too deep": {Registry: hubName, Name: "a/b/c"},
	} {
		_, err := a.Files(t.Context(), repo, "main", commit, "", everything, true)
		require.ErrorIs(t, err, content.ErrNotFound, name)
	}
	_, err := a.Files(t.Context(), content.Repository{Registry: hubName, Name: "org/m"}, "main", "main", "", everything,
		true)
	require.ErrorIs(t, err, content.ErrNotFound, "no commit")
}
