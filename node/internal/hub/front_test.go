package hub

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/registries"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/reply"
	"github.com/shoal-cache/shoal/test/hubtest"
)

func TestFile_EachIsGivenWholeWithTheHeadersThatClientsRead(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, files := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	for path, f := range files {
		for _, revision := range []string{"main", commit} {
			head := a.ask(t, http.MethodHead, resolve("org/m", revision, path), "Accept-Encoding", "identity")
			require.Equal(t, http.StatusOK, head.status, path)
			require.Equal(t, commit, head.header.Get("X-Repo-Commit"))
			require.Equal(t, fmt.Sprint(f.Data.Size()), head.header.Get("Content-Length"))
			require.Empty(t, head.header.Get("Location"))
			require.Empty(t, head.header.Get("X-Xet-Hash"))
			require.Empty(t, head.header.Get("Link"))
			if f.LFS {
				require.Len(t, head.header.Get("X-Linked-Etag"), 66)
				require.Equal(t, fmt.Sprint(f.Data.Size()), head.header.Get("X-Linked-Size"))
			}
			g := a.ask(t, http.MethodGet, resolve("org/m", revision, path))
			require.Equal(t, http.StatusOK, g.status, path)
			require.NoError(t, g.err)
			require.True(t, bytes.Equal(read(t, f.Data), g.body), path)
			require.Equal(t, head.header.Get("Etag"), g.header.Get("Etag"))
			require.Empty(t, g.header.Get("Content-Encoding"))
		}
	}
	for _, r := range h.Requests() {
		require.NotContains(t, r.Path, "xet")
		if r.CDN {
			require.NotEmpty(t, r.Range, "a large file is always asked for by Range")
			require.Empty(t, r.Authorization)
		}
	}
}

func TestFile_RangesAreThoseThatClientsSend(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, _, files := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	for path, f := range files {
		data := read(t, f.Data)
		size := len(data)
		if size == 0 {
			g := a.ask(t, http.MethodGet, resolve("org/m", "main", path), "Range", "bytes=0-0")
			require.Equal(t, http.StatusOK, g.status)
			require.Equal(t, "bytes */0", g.header.Get("Content-Range"))
			require.Empty(t, g.body)
			continue
		}
		for header, want := range map[string][]byte{
			"bytes=0-0":                              data[:1],
			fmt.Sprintf("bytes=%d-", size/2):         data[size/2:],
			"bytes=-8":                               data[max(0, size-8):],
			byteRange(max(0, size-8), size-1):        data[max(0, size-8):],
			fmt.Sprintf("bytes=%d-%d", size/3, size): data[size/3:], // one past the end
			fmt.Sprintf("bytes=0-%d", size+1000):     data,
		} {
			g := a.ask(t, http.MethodGet, resolve("org/m", "main", path), "Range", header)
			require.Equal(t, http.StatusPartialContent, g.status, "%s of %s", header, path)
			require.True(t, bytes.Equal(want, g.body), "%s of %s", header, path)
			require.True(t, strings.HasSuffix(g.header.Get("Content-Range"), fmt.Sprintf("/%d", size)),
				g.header.Get("Content-Range"))
		}
		g := a.ask(t, http.MethodGet, resolve("org/m", "main", path), "Range", fmt.Sprintf("bytes=%d-", size))
		require.Equal(t, http.StatusRequestedRangeNotSatisfiable, g.status)
		require.Equal(t, fmt.Sprintf("bytes */%d", size), g.header.Get("Content-Range"))
		etag := a.ask(t, http.MethodHead, resolve("org/m", "main", path)).header.Get("Etag")
		require.Equal(t, http.StatusNotModified,
			a.ask(t, http.MethodHead, resolve("org/m", "main", path), "If-None-Match", etag).status)
		for condition, want := range map[string]int{etag: http.StatusPartialContent, `"another"`: http.StatusPreconditionFailed} {
			g := a.ask(t, http.MethodGet, resolve("org/m", "main", path), "If-Match", condition, "Range", "bytes=1-")
			require.Equal(t, want, g.status, "%s of %s", condition, path)
		}
	}
}

func TestFile_WhatIsNotThereIsSoSaidOutOfTheListing(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, _ := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	a.ask(t, http.MethodHead, resolve("org/m", "main", "config.json"))
	h.Forget()
	for _, path := range []string{"adapter_config.json", "custom_generate/generate.py", "onnx", "config.json/x"} {
		g := a.ask(t, http.MethodHead, resolve("org/m", commit, path))
		require.Equal(t, http.StatusNotFound, g.status, path)
		require.Equal(t, "EntryNotFound", g.header.Get("X-Error-Code"))
		require.Equal(t, commit, g.header.Get("X-Repo-Commit"))
	}
	require.Empty(t, h.Requests(), "nobody asks the hub about what the listing does not hold")

	g := a.ask(t, http.MethodGet, resolve("org/m", "nosuch", "config.json"))
	require.Equal(t, http.StatusNotFound, g.status)
	require.Equal(t, "RevisionNotFound", g.header.Get("X-Error-Code"))
	g = a.ask(t, http.MethodGet, resolve("org/nosuch", "main", "config.json"))
	require.Equal(t, http.StatusUnauthorized, g.status)
	require.Equal(t, "RepoNotFound", g.header.Get("X-Error-Code"))
}

func TestInfo_TreeAndPathsComeWithoutXetAndWithTheFrontsOwnLinks(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.PageSize = 3
	_, commit, files := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	var info struct {
		SHA      string `json:"sha"`
		Siblings []struct {
			Name string `json:"rfilename"`
			Size *int64 `json:"size"`
		} `json:"siblings"`
	}
	for _, path := range []string{"/api/models/org/m", "/api/models/org/m/revision/main",
		"/api/models/org/m/revision/" + commit, "/api/models/org/m/revision/main?blobs=true"} {
		g := a.ask(t, http.MethodGet, path)
		require.Equal(t, http.StatusOK, g.status)
		require.NoError(t, json.Unmarshal(g.body, &info))
		require.Equal(t, commit, info.SHA)
		require.Len(t, info.Siblings, len(files))
	}
	require.NotNil(t, info.Siblings[0].Size)

	seen := map[string]bool{}
	next := a.URL + "/api/models/org/m/tree/main?recursive=True&expand=False&limit=4"
	for next != "" {
		g := ask(t, "", http.MethodGet, next, nil)
		require.Equal(t, http.StatusOK, g.status)
		require.NotContains(t, string(g.body), "xetHash")
		var elements []element
		require.NoError(t, json.Unmarshal(g.body, &elements))
		require.LessOrEqual(t, len(elements), 4)
		for _, e := range elements {
			seen[e.Path] = e.Type == "file"
		}
		next = ""
		for _, l := range registries.Links(g.header) {
			require.True(t, strings.HasPrefix(l.Target, a.URL), "a client follows the link as it is")
			next = l.Target
		}
	}
	for path := range files {
		require.True(t, seen[path], path)
	}
	for contentType, body := range map[string]string{
		"application/x-www-form-urlencoded": "paths=config.json&paths=onnx&paths=nosuch&paths=config.json&expand=False",
		"application/json":                  `{"paths":["config.json","onnx","nosuch"],"expand":false}`,
	} {
		g := ask(t, a.URL, http.MethodPost, "/api/models/org/m/paths-info/main", strings.NewReader(body),
			"Content-Type", contentType)
		var elements []element
		require.NoError(t, json.Unmarshal(g.body, &elements))
		require.Len(t, elements, 2)
		require.Equal(t, "directory", elements[1].Type)
	}
	g := a.ask(t, http.MethodGet, "/api/models/org/m/tree/main/onnx")
	require.Contains(t, string(g.body), "onnx/model.onnx")
	g = a.ask(t, http.MethodGet, "/api/models/org/m/tree/main/nosuch")
	require.Equal(t, "EntryNotFound", g.header.Get("X-Error-Code"))
	g = a.ask(t, http.MethodGet, "/api/models/org/m/refs")
	require.Contains(t, string(g.body), commit)
}

func TestTree_OneTooLargeToBeKnownIsGivenPageByPage(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.PageSize = 2
	files := map[string]hubtest.File{}
	for i := range 2*maxPages + 3 {
		files[fmt.Sprintf("f%03d.txt", i)] = hubtest.File{Data: hubtest.Text(fmt.Sprint(i))}
	}
	h.Repo("datasets", "org/d").Commit("main", files)
	a := newAgent(t, h, "", nil)
	seen := 0
	next := a.URL + "/api/datasets/org/d/tree/main?recursive=true"
	for next != "" {
		g := ask(t, "", http.MethodGet, next, nil)
		require.Equal(t, http.StatusOK, g.status)
		seen += strings.Count(string(g.body), `"path"`)
		next = ""
		for _, l := range registries.Links(g.header) {
			require.True(t, strings.HasPrefix(l.Target, a.URL))
			next = l.Target
		}
	}
	require.Equal(t, len(files), seen)
	g := a.ask(t, http.MethodGet, resolve("datasets/org/d", "main", "f022.txt"))
	require.Equal(t, "22", string(g.body))
	require.Equal(t, "EntryNotFound", a.ask(t, http.MethodHead,
		resolve("datasets/org/d", "main", "nosuch")).header.Get("X-Error-Code"))
}

func TestFile_AHubWithoutListingsDoes(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, files := model(h, "org/m")
	h.Set(hubtest.Trouble{NoTree: true})
	a := newAgent(t, h, "", nil)
	for path, f := range files {
		g := a.ask(t, http.MethodGet, resolve("org/m", "main", path))
		require.Equal(t, http.StatusOK, g.status, path)
		require.True(t, bytes.Equal(read(t, f.Data), g.body), path)
		require.Equal(t, commit, g.header.Get("X-Repo-Commit"))
	}
	g := a.ask(t, http.MethodHead, resolve("org/m", "main", "nosuch"))
	require.Equal(t, "EntryNotFound", g.header.Get("X-Error-Code"))
}

func TestPass_WhatIsNotKnownGoesToTheHubAndNowhereElse(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	model(h, "org/m")
	h.Token("good")
	a := newAgent(t, h, "", nil)
	require.Equal(t, http.StatusUnauthorized, a.ask(t, http.MethodGet, "/api/whoami-v2").status)
	require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, "/api/whoami-v2", bearer("good")...).status)
	g := a.ask(t, http.MethodGet, "/api/whoami-v2", bearer("bad")...)
	require.Equal(t, "Invalid credentials in Authorization header", g.header.Get("X-Error-Message"))
	require.Equal(t, http.StatusOK, a.ask(t, http.MethodHead, "/api/telemetry/x/y").status)
	for _, path := range []string{"/org/m/resolve/main/../../x", "/org/m/resolve/main/%2e%2e/x", "/%zz",
		"/org/m/resolve/main/a%00b"} {
		req := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path)
		require.Contains(t, raw(t, a.URL, req), " 400 ", path)
	}
	require.Contains(t, raw(t, a.URL,
		"GET http://elsewhere.test/api/whoami-v2 HTTP/1.1\r\nHost: elsewhere.test\r\nConnection: close\r\n\r\n"),
		" 401 ",
		"the name in a request for a proxy is not gone to")
	require.Equal(t, http.StatusLoopDetected, a.ask(t, http.MethodGet, "/api/models/org/m", "Via", "1.1 shoal").status)
}

func TestFront_AnAddressOutsideIsToldWhatToAskFor(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	model(h, "org/m")
	a := newAgent(t, h, "", nil)
	for _, path := range []string{resolve("org/m", "main", "config.json"), "/api/models/org/m", "/whoami", "/"} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		r.RemoteAddr = "10.9.8.7:1234"
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		require.Equal(t, http.StatusForbidden, w.Code, path)
		require.Contains(t, w.Body.String(), "10.9.8.7")
		require.Contains(t, w.Body.String(), "hub.allowFrom")
		require.Equal(t, w.Body.String(), w.Header().Get("X-Error-Message"), "clients show this one")
	}
	n, _ := h.Count()
	require.Zero(t, n)
}

// What is asked for by HEAD before it is by GET must be the same thing, for clients name what they keep by it.
func TestFile_HEADSaysWhatGETSays(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	repo, commit, files := model(h, "org/m")
	repo.Commit("refs/pr/1", files)
	a := newAgent(t, h, "", nil)
	for path := range files {
		for _, revision := range []string{"main", commit, "refs/pr/1"} {
			at := resolve("org/m", revision, path)
			get, head := a.ask(t, http.MethodGet, at), a.ask(t, http.MethodHead, at)
			require.Equal(t, http.StatusOK, get.status, at)
			for _, g := range []got{get, head} {
				g.header.Del("Date")
			}
			require.Equal(t, get.header, head.header, at)
			require.Empty(t, head.body)
		}
	}
	require.Equal(t, a.ask(t, http.MethodGet, resolve("org/m", commit, "none")).header.Get("X-Error-Code"),
		a.ask(t, http.MethodHead, resolve("org/m", commit, "none")).header.Get("X-Error-Code"))
	for _, path := range []string{"/api/models/org/m/revision/refs%2Fpr%2F1", "/api/models/org/m/tree/refs%2Fpr%2F1",
		"/api/models/org/m/revision/refs/pr/1", "/api/models/org/m/tree/refs/pr/1"} {
		require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, path).status, path)
	}
}

func TestFront_OneAddressCannotTakeAllOfANode(t *testing.T) {
	t.Parallel()
	var c callers
	enter := func(remote string) (func(), error) {
		return c.enter(reply.Caller(&http.Request{RemoteAddr: remote}))
	}
	var leave []func()
	for range maxRunning {
		l, err := enter("10.0.0.1:1")
		require.NoError(t, err)
		leave = append(leave, l)
	}
	_, err := enter("10.0.0.1:2")
	require.ErrorContains(t, err, "10.0.0.1")
	_, err = enter("[::ffff:10.0.0.1]:2")
	require.Error(t, err, "the same address in the other family's form")
	other, err := enter("10.0.0.2:1")
	require.NoError(t, err)
	other()
	leave[0]()
	l, err := enter("10.0.0.1:2")
	require.NoError(t, err)
	for _, l := range append(leave[1:], l) {
		l()
	}
	require.Empty(t, c.running)
}

func TestFront_ARepositoryThatThePolicyKeepsFromTheHubSaysSo(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, files := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	rule := policy.DefaultRule()
	rule.Mode = policy.PeersOnly
	a.rule.Store(&rule)
	for _, path := range []string{resolve("org/m", "main", "config.json"), resolve("org/m", commit, large),
		"/api/models/org/m/revision/main"} {
		g := a.ask(t, http.MethodGet, path)
		require.Equal(t, http.StatusForbidden, g.status, path)
		require.Contains(t, g.header.Get("X-Error-Message"), "the policy takes this repository from peers only")
		require.Empty(t, g.header.Get("X-Error-Code"), "else clients do not use what they have on disk")
	}
	require.Empty(t, h.Requests())

	open := policy.DefaultRule()
	a.rule.Store(&open)
	require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, resolve("org/m", "main", large)).status)
	a.rule.Store(&rule)
	g := a.ask(t, http.MethodGet, resolve("org/m", "main", large))
	require.Equal(t, http.StatusOK, g.status, "what is here is given")
	require.True(t, bytes.Equal(read(t, files[large].Data), g.body))
}
