package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/reply"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/test/hubtest"
)

// Clients of large files above the limit of plain HTTP, and all that upload, ask for a token of Xet. huggingface_hub
// reads it from the header until 1.20, and from the body since.
func TestPass_TokensOfXetStayAsTheHubGivesThem(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	model(h, "org/m")
	h.Token("writer")
	a := newAgent(t, h, "", nil)
	for _, verb := range []string{"xet-read-token", "xet-write-token"} {
		g := a.ask(t, http.MethodGet, "/api/models/org/m/"+verb+"/main", bearer("writer")...)
		require.Equal(t, http.StatusOK, g.status)
		for _, name := range []string{"X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration"} {
			require.NotEmpty(t, g.header.Get(name), "%s of %s", name, verb)
		}
		require.Contains(t, string(g.body), "casUrl")
	}
}

// The files of a bucket come by Xet alone: a client that is not told of it has no way to them.
func TestPass_ABucketIsGivenWithItsXet(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.SetOdd(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/buckets/org/b/resolve/"):
			w.Header().Set("X-Xet-Hash", "abc")
			w.Header().Set("Link", "<"+h.URL()+`/api/buckets/org/b/xet-read-token>; rel="xet-auth"`)
			w.Header().Set("Content-Length", "7")
		case strings.HasPrefix(r.URL.Path, "/api/buckets/org/b/tree"):
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`[{"type":"file","path":"a","size":7,"xetHash":"abc"}]`))
		default:
			next.ServeHTTP(w, r)
		}
	})
	a := newAgent(t, h, "", nil)
	g := a.ask(t, http.MethodHead, "/buckets/org/b/resolve/a")
	require.Equal(t, "abc", g.header.Get("X-Xet-Hash"))
	require.Equal(t, "<"+a.URL+`/api/buckets/org/b/xet-read-token>; rel="xet-auth"`, g.header.Get("Link"))
	g = a.ask(t, http.MethodGet, "/api/buckets/org/b/tree")
	require.Contains(t, string(g.body), `"xetHash":"abc"`)
}

func TestPass_WhatOnlyLooksLikeARepositoryIsForTheHubToAnswer(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.SetOdd(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch r.URL.Path {
		case "/api/spaces/hardware", "/api/spaces/semantic-search", "/api/models/gpt2/likers", "/api/models/new-list":
			_, _ = w.Write([]byte(`["` + r.URL.RequestURI() + `"]`))
		default:
			next.ServeHTTP(w, r)
		}
	})
	model(h, "gpt2")
	a := newAgent(t, h, "", nil)
	for _, path := range []string{"/api/spaces/hardware", "/api/spaces/semantic-search?q=x", "/api/models/gpt2/likers",
		"/api/models/new-list"} {
		g := a.ask(t, http.MethodGet, path)
		require.Equal(t, http.StatusOK, g.status, path)
		require.JSONEq(t, `["`+path+`"]`, string(g.body))
	}
	g := a.ask(t, http.MethodGet, "/api/models/gpt2")
	require.Contains(t, string(g.body), `"siblings"`)
	g = a.ask(t, http.MethodGet, "/api/models/org/nosuch")
	require.Equal(t, http.StatusUnauthorized, g.status)
	require.Equal(t, "RepoNotFound", g.header.Get("X-Error-Code"))
}

func TestPass_APolicyThatKeepsARepositoryFromTheHubHoldsForAllThatIsAskedOfIt(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, _ := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	rule := policy.DefaultRule()
	rule.Mode = policy.PeersOnly
	a.rule.Store(&rule)
	for _, path := range []string{"/api/models/org/m?revision=main", "/api/models/org/m", "/api/models/org/m/refs",
		"/api/models/org/m/tree/" + commit + "?expand=true",
		"/org/m/raw/main/config.json", "/org%2Fm/raw/main/config.json", "//org/m/raw/main/config.json",
		"/api/resolve-cache/models/org/m/" + commit + "/config.json", "/api/models/org/m/commits/main",
		"/org/m.git/info/refs", "/datasets/org/m/raw/main/config.json", "/gpt2/raw/main/config.json"} {
		require.Equal(t, http.StatusForbidden, a.ask(t, http.MethodGet, path).status, path)
	}
	require.Equal(t, http.StatusForbidden,
		a.ask(t, http.MethodPost, "/org/m.git/info/lfs/objects/batch").status)
	require.Empty(t, h.Requests())
	a.ask(t, http.MethodGet, "/api/whoami-v2")
	require.Len(t, h.Requests(), 1, "it is about no repository")
}

// Clients that know a repository by its old name, as most know gpt2, need no redirect to it.
func TestFile_OneOfARenamedRepositoryIsGivenUnderTheOldName(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	r, commit, files := model(h, "old")
	r.Rename("org/new")
	a := newAgent(t, h, "", nil)
	requireRenamed := func(id, commit string, auth ...string) {
		for path, f := range files {
			head := a.ask(t, http.MethodHead, resolve(id, "main", path), auth...)
			require.Equal(t, http.StatusOK, head.status, path)
			require.Equal(t, commit, head.header.Get("X-Repo-Commit"))
			g := a.ask(t, http.MethodGet, resolve(id, "main", path), auth...)
			require.True(t, bytes.Equal(read(t, f.Data), g.body), path)
		}
	}
	requireRenamed("old", commit)
	requireRenamed("org/new", commit)
	for _, path := range []string{"/api/models/old", "/api/models/old/revision/main"} {
		require.Contains(t, string(a.ask(t, http.MethodGet, path).body), `"id":"org/new"`)
	}
	g := ask(t, a.URL, http.MethodPost, "/api/models/old/paths-info/main", strings.NewReader("paths=onnx"),
		"Content-Type", "application/x-www-form-urlencoded")
	require.Contains(t, string(g.body), `"path":"onnx"`)

	r, commit, files = model(h, "old-gated")
	r.Rename("org/gated")
	r.SetGated("reader")
	g = a.ask(t, http.MethodHead, resolve("old-gated", "main", "config.json"))
	require.Equal(t, http.StatusUnauthorized, g.status)
	require.Equal(t, "GatedRepo", g.header.Get("X-Error-Code"))
	requireRenamed("old-gated", commit, bearer("reader")...)
}

// Before 0.36 HfFileSystem asks so for all that it lists.
func TestTree_WhatIsToldAtLengthIsAskedOfTheHubOnce(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.PageSize = 4
	_, commit, files := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	list := func() (all []map[string]any) {
		for path := "/api/models/org/m/tree/main?recursive=True&expand=True"; path != ""; {
			g := a.ask(t, http.MethodGet, path)
			require.Equal(t, http.StatusOK, g.status, path)
			var page []map[string]any
			require.NoError(t, json.Unmarshal(g.body, &page))
			all = append(all, page...)
			path = ""
			if next, _, ok := strings.Cut(g.header.Get("Link"), ">"); ok {
				path = strings.TrimPrefix(next, "<"+a.URL)
			}
		}
		return all
	}
	question := func() string {
		return string(ask(t, a.URL, http.MethodPost, "/api/models/org/m/paths-info/"+commit,
			strings.NewReader("paths=config.json&paths=nosuch&expand=True"),
			"Content-Type", "application/x-www-form-urlencoded").body)
	}
	first, told := list(), question()
	require.GreaterOrEqual(t, len(first), len(files))
	for _, e := range first {
		require.Contains(t, e, "lastCommit")
		require.NotContains(t, e, "xetHash")
	}
	require.Contains(t, told, "securityFileStatus")
	require.NotContains(t, told, "nosuch")
	h.Forget()
	require.Equal(t, first, list())
	require.Equal(t, told, question())
	require.Empty(t, h.Requests())
}

// huggingface_hub repeats a GET for a file on 429 alone since 1.0. Others, and it itself for a header, read 503.
func TestTrouble_WhoRepeatsOn429AloneIsToldSo(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	model(h, "org/m")
	h.Set(hubtest.Trouble{Down: true})
	a := newAgent(t, h, "", nil)
	for _, tc := range []struct {
		method, agent, part string
		want                int
	}{
		{http.MethodGet, "unknown/None; hf_hub/1.28.0; python/3.13", "", 429},
		{http.MethodGet, "transformers/5.0; hf_hub/1.0.0; python/3.13", "bytes=9-", 429},
		{http.MethodGet, "unknown/None; hf_hub/1.0.0", "bytes=0-99", 503},
		{http.MethodHead, "unknown/None; hf_hub/1.28.0", "", 503},
		{http.MethodGet, "unknown/None; hf_hub/0.36.2", "", 503},
		{http.MethodGet, "curl/8.5.0", "", 503},
		{http.MethodGet, "hf_hub/", "", 503},
	} {
		g := a.ask(t, tc.method, resolve("org/m", "main", "config.json"), "User-Agent", tc.agent, "Range", tc.part)
		require.Equal(t, tc.want, g.status, "%+v", tc)
		require.NotEmpty(t, g.header.Get("Retry-After"))
		require.NotEmpty(t, g.header.Get("X-Error-Message"))
	}
}

// Each huggingface_hub asks for it once a day, wherever it runs: each fresh pod does.
func TestHarnesses_AreAskedOfTheHubOnce(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	a := newAgent(t, h, "", nil)
	for range 3 {
		g := a.ask(t, http.MethodGet, "/api/agent-harnesses")
		require.Equal(t, http.StatusOK, g.status)
		require.Contains(t, string(g.body), "standardEnvVars")
	}
	require.Len(t, h.Requests(), 1)
}

func TestRevision_WhoUploadsMeetsWhatItUploaded(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, before, _ := model(h, "org/m")
	h.Token("writer")
	a := newAgent(t, h, "", nil)
	for _, path := range []string{"/api/models/org/m", "/api/models/org/m/refs"} {
		require.Contains(t, string(a.ask(t, http.MethodGet, path).body), before)
	}
	g := ask(t, a.URL, http.MethodPost, "/api/models/org/m/commit/main",
		strings.NewReader(`{"key":"header","value":{"summary":"new"}}
{"key":"file","value":{"path":"new.txt","content":"bmV3","encoding":"base64"}}`),
		append(bearer("writer"), "Content-Type", "application/x-ndjson")...)
	require.Equal(t, http.StatusOK, g.status, "%s", g.body)
	require.Contains(t, string(g.body), `"commitUrl":"`+a.URL+`/org/m/commit/`)
	g = a.ask(t, http.MethodGet, resolve("org/m", "main", "new.txt"))
	require.Equal(t, "new", string(g.body))
	for _, path := range []string{"/api/models/org/m", "/api/models/org/m/refs"} {
		body := string(a.ask(t, http.MethodGet, path).body)
		require.NotContains(t, body, before)
		require.Contains(t, body, g.header.Get("X-Repo-Commit"))
	}
	h.Forget()
	a.ask(t, http.MethodHead, resolve("org/m", "main", "new.txt"))
	require.Empty(t, h.Requests(), "what was asked since is remembered like any other")
	require.Equal(t, []repo{{"datasets", "org/d"}}, changed(http.MethodPost, "/datasets/org/d.git/git-receive-pack"))
	require.Equal(t, []repo{{"models", "org/m"}}, changed(http.MethodPost, "/org/m/git-receive-pack"))
	require.Equal(t, []repo{{"models", "gpt2"}}, changed(http.MethodPost, "/gpt2.git/git-receive-pack"))
	require.Equal(t, []repo{{"datasets", "squad"}}, changed(http.MethodPost, "/datasets/squad.git/git-receive-pack"))
	require.Nil(t, changed(http.MethodPost, "/org/m.git/git-upload-pack"))
	require.Nil(t, changed(http.MethodGet, "/api/models/org/m"))
}

func TestPass_TheNextPageIsTheFrontsOwnAndOtherLinksLeadWhereTheyLed(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.SetOdd(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Add("Link", `<https://hub.example/api/models?search=x&cursor=2>; rel="next"`)
		w.Header().Add("Link", `<https://hub.example/terms>; rel="license"`)
	})
	a := newAgent(t, h, "", nil)
	g := a.ask(t, http.MethodGet, "/api/models?search=x")
	require.Equal(t, "<"+a.URL+`/api/models?search=x&cursor=2>; rel="next", <https://hub.example/terms>; rel="license"`,
		g.header.Get("Link"))
}

// client is where an answer goes, with the deadline by which it has to be taken.
type client struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (c *client) SetWriteDeadline(at time.Time) error {
	c.deadline = at
	return nil
}

// stuck gives so many bytes, and then nothing until it is closed.
type stuck struct {
	io.Reader
	closed chan struct{}
}

func (s *stuck) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil {
		<-s.closed
		return 0, http.ErrBodyReadAfterClose
	}
	return n, nil
}

func (s *stuck) Close() error {
	close(s.closed)
	return nil
}

// passPage has a page of a listing pass through, whose length nobody tells.
func passPage(t *testing.T, documents *room.Room, body io.ReadCloser) (*client, *http.Response, error) {
	t.Helper()
	w := &client{ResponseRecorder: httptest.NewRecorder()}
	ctx, end := documents.Lease(t.Context())
	t.Cleanup(end)
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/models/org/m/tree/main", nil)
	x := &exchange{Exchange: reply.New(w, r)}
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}},
		ContentLength: -1, Body: body, Request: r.WithContext(context.WithValue(ctx, passing{}, x))}
	f := &Front{origin: &origin{base: &url.URL{Scheme: "http", Host: "hub.test"}}}
	return w, resp, f.rewriteBody(resp)
}

func TestPass_APageThatIsTooLongForMemoryLeavesTheRoomOnceWhatWasReadIsTaken(t *testing.T) {
	t.Parallel()
	const size = maxRewritten + 10<<20
	documents := room.New(60 << 20)
	free := func() bool {
		leave, ok := documents.Try(maxRewritten)
		if ok {
			leave()
		}
		return ok
	}
	w, resp, err := passPage(t, documents, io.NopCloser(io.LimitReader(zeros{}, size)))
	require.NoError(t, err)
	require.False(t, free())
	require.False(t, w.deadline.IsZero(), "the client has to take it soon")
	n, err := io.CopyN(io.Discard, resp.Body, maxRewritten+1<<20)
	require.NoError(t, err)
	require.True(t, free())
	require.True(t, w.deadline.IsZero(), "what follows is in nobody's way")
	rest, err := io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	require.EqualValues(t, size, n+rest)
}

func TestPass_APageThatStandsStillLeavesTheRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		_, _, err := passPage(t, room.New(60<<20), &stuck{io.LimitReader(zeros{}, 3<<20), make(chan struct{})})
		require.Error(t, err)
		require.Equal(t, askTimeout, time.Since(began))
	})
}
