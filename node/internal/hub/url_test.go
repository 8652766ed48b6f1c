package hub

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/test/hubtest"
)

// fileHost is a host of files, some of them for the holders of a token.
type fileHost struct {
	*httptest.Server
	mu      sync.Mutex
	files   map[string][]byte
	asked   []string // paths, with the authorization
	down    atomic.Bool
	page    atomic.Bool // what it gives for everything, as a file that may be read in parts
	private string      // prefix of paths that want the token "good"
}

func newFileHost(t testing.TB) *fileHost {
	t.Helper()
	f := &fileHost{files: map[string][]byte{}, private: "/private/"}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.asked = append(f.asked, r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Authorization"))
		data, ok := f.files[r.URL.Path]
		f.mu.Unlock()
		switch {
		case f.down.Load():
			panic(http.ErrAbortHandler)
		case f.page.Load():
			http.ServeContent(w, r, "page.html", time.Time{}, strings.NewReader("<html>back soon</html>"))
		case strings.HasPrefix(r.URL.Path, f.private) && r.Header.Get("Authorization") != "Bearer good" &&
			r.URL.Query().Get("signature") != "right":
			http.Error(w, "no", http.StatusUnauthorized)
		case !ok:
			http.NotFound(w, r)
		default:
			http.ServeContent(w, r, "file", time.Time{}, bytes.NewReader(data))
		}
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *fileHost) put(path string, data []byte) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files[path] = data
	return f.at(hexOf(data), path)
}

func (f *fileHost) at(sum, path string) string {
	return "/sha256/" + sum + "/http/" + strings.TrimPrefix(f.URL, "http://") + path
}

func (f *fileHost) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

func hexOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (a *agent) allow(t testing.TB, urls ...string) {
	t.Helper()
	for _, s := range urls {
		u, err := url.Parse(s)
		require.NoError(t, err)
		a.opts.URLs = append(a.opts.URLs, u)
	}
}

func TestURL_AFileIsGivenByItsDigestOnceForAll(t *testing.T) {
	t.Parallel()
	h, host := newHub(t), newFileHost(t)
	data := read(t, hubtest.Random(5, 3<<20+11))
	at := host.put("/models/a b%20/weights.bin", data)
	at = strings.ReplaceAll(at, "a b%20", "a%20b%2520")
	first := newAgent(t, h, "", nil, host.URL)
	first.allow(t, host.URL+"/models/")
	second := newAgent(t, h, "", []peer.AddrInfo{first.info()}, host.URL)
	second.allow(t, host.URL+"/models/")
	for i, a := range []*agent{first, first, second} {
		g := a.ask(t, http.MethodGet, at+"?v=1")
		require.Equal(t, http.StatusOK, g.status, "%d: %s", i, g.body)
		require.NoError(t, g.err)
		require.True(t, bytes.Equal(data, g.body))
		require.Equal(t, `"sha256:`+hexOf(data)+`"`, g.header.Get("Etag"))
		require.Contains(t, g.header.Get("Repr-Digest"), "sha-256=:")
		require.Contains(t, g.header.Get("Content-Disposition"), "weights.bin")
	}
	g := first.ask(t, http.MethodGet, at, "Range", "bytes=1048570-1048580")
	require.Equal(t, http.StatusPartialContent, g.status)
	require.Equal(t, data[1048570:1048581], g.body)
	require.Equal(t, http.StatusNotModified, first.ask(t, http.MethodGet, at, "If-None-Match",
		`"sha256:`+hexOf(data)+`"`).status)
	head := first.ask(t, http.MethodHead, at)
	require.Equal(t, http.StatusOK, head.status)
	require.Equal(t, "3145739", head.header.Get("Content-Length"))
	empty := host.put("/models/empty", nil)
	require.Equal(t, http.StatusOK, first.ask(t, http.MethodGet, empty).status)
}

func TestURL_NothingIsReachedThatTheConfigurationDoesNotName(t *testing.T) {
	t.Parallel()
	h, host := newHub(t), newFileHost(t)
	inside := host.put("/models/a.bin", []byte("a"))
	host.put("/secret/b.bin", []byte("b"))
	sum := hexOf([]byte("b"))
	a := newAgent(t, h, "", nil, host.URL)
	g := a.ask(t, http.MethodGet, inside)
	require.Equal(t, http.StatusForbidden, g.status, "none by default")
	require.Contains(t, string(g.body), "hub.urls")
	a.allow(t, host.URL+"/models")
	require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, inside).status)
	where := strings.TrimPrefix(host.URL, "http://")
	before := len(host.requests())
	for name, path := range map[string]string{
		"another folder":            host.at(sum, "/secret/b.bin"),
		"a folder of a longer name": host.at(sum, "/models2/b.bin"),
		"a way up":                  host.at(sum, "/models/../secret/b.bin"),
		"a way up, escaped":         host.at(sum, "/models/%2e%2e/secret/b.bin"),
		"a way up, within one part": host.at(sum, "/models/..%2fsecret/b.bin"),
		"a way up by a backslash":   host.at(sum, "/models/..%5csecret/b.bin"),
		"a way up with a parameter": host.at(sum, "/models/..;a=b/secret/b.bin"),
		"another scheme":            "/sha256/" + sum + "/https/" + where + "/models/a.bin",
		"a file":                    "/sha256/" + sum + "/file/" + where + "/models/a.bin",
		"another host":              "/sha256/" + sum + "/http/127.0.0.1:1/models/a.bin",
		"a host behind a name":      "/sha256/" + sum + "/http/" + where + "@127.0.0.1:1/models/a.bin",
		"a host with a path":        "/sha256/" + sum + "/http/" + where + "%2fmodels%2f..%2f../models/a.bin",
		"metadata of the cloud":     "/sha256/" + sum + "/http/169.254.169.254/models/a.bin",
		"no digest":                 "/sha256/" + sum[:63] + "/http/" + where + "/models/a.bin",
		"a digest in capitals":      "/sha256/" + strings.ToUpper(sum) + "/http/" + where + "/models/a.bin",
		"a name without end":        host.at(sum, "/models/"+strings.Repeat("a", 9<<10)),
	} {
		g := a.ask(t, http.MethodGet, path)
		require.Contains(t, []int{http.StatusForbidden, http.StatusBadRequest}, g.status, "%s: %d", name, g.status)
	}
	require.Len(t, host.requests(), before, "the host was asked for none of it")
	n, _ := h.Count()
	require.Zero(t, n, "nor was the hub")
}

func TestURL_WrongBytesNeverEndAndErrorsAreTheHosts(t *testing.T) {
	t.Parallel()
	h, host := newHub(t), newFileHost(t)
	host.put("/models/wrong.bin", bytes.Repeat([]byte("x"), 2<<20))
	a := newAgent(t, h, "", nil, host.URL)
	a.allow(t, host.URL)
	sum := hexOf(bytes.Repeat([]byte("y"), 2<<20))
	g := a.ask(t, http.MethodGet, host.at(sum, "/models/wrong.bin"))
	require.True(t, g.err != nil || g.status >= 400, "%d", g.status)
	require.Equal(t, http.StatusNotFound, a.ask(t, http.MethodGet, host.at(sum, "/models/none")).status)
	require.Equal(t, http.StatusUnauthorized, a.ask(t, http.MethodGet, host.at(sum, "/private/none")).status)
	host.down.Store(true)
	require.Equal(t, http.StatusServiceUnavailable, a.ask(t, http.MethodGet, host.at(sum, "/models/x")).status)
}

// Whoever knows a digest must not get by it what the host would not give.
func TestURL_WhatIsHereIsGivenToThoseWhomTheHostGivesIt(t *testing.T) {
	t.Parallel()
	h, host := newHub(t), newFileHost(t)
	data := read(t, hubtest.Random(6, 2<<20))
	private := host.put("/private/a.bin", data)
	host.put("/public/b.bin", []byte("other bytes"))
	a := newAgent(t, h, "", nil, host.URL)
	a.allow(t, host.URL)
	require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, private, bearer("good")...).status)
	require.Eventually(t, func() bool { // the last bytes are given before the file is kept
		_, err := a.store.Stat(digest.FromBytes(data))
		return err == nil
	}, patience, 5*time.Millisecond)
	for name, g := range map[string]got{
		"without a token":     a.ask(t, http.MethodGet, private),
		"with another":        a.ask(t, http.MethodGet, private, bearer("bad")...),
		"by a URL of nothing": a.ask(t, http.MethodGet, host.at(hexOf(data), "/public/none")),
		"by another's URL":    a.ask(t, http.MethodGet, host.at(hexOf(data), "/public/b.bin")),
		"a range":             a.ask(t, http.MethodGet, private, "Range", "bytes=0-0"),
		"its header":          a.ask(t, http.MethodHead, private),
		"what it has already": a.ask(t, http.MethodGet, private, "If-None-Match", "*"),
	} {
		require.GreaterOrEqual(t, g.status, 400, name)
		require.False(t, bytes.Contains(g.body, data[:64]), name)
	}
	t.Log("a signature in a URL opens it to nobody who does not show it")
	require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, private+"?signature=right").status)
	for _, query := range []string{"", "?signature=wrong", "?"} {
		require.GreaterOrEqual(t, a.ask(t, http.MethodGet, private+query).status, 400, query)
	}
	host.down.Store(true)
	rule := policy.DefaultRule()
	rule.Authorization.TTL = 0
	a.rule.Store(&rule)
	g := a.ask(t, http.MethodGet, private, bearer("good")...)
	require.Equal(t, http.StatusOK, g.status, "as it was let in before: %s", g.body)
	require.GreaterOrEqual(t, a.ask(t, http.MethodGet, private).status, 400)
	for _, r := range h.Requests() {
		require.Empty(t, r.Authorization, "a token for the host went to the hub")
	}
}

// The hub's own front asks once for all where a file lies. Here that is the question of who may read it.
func TestURL_AFileOfTheHubItselfIsGivenToThoseWhomTheHubGivesIt(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	repo, commit, files := model(h, "org/secret")
	repo.SetPrivate("good")
	agents := newAgents(t, h, 2)
	for _, a := range agents {
		a.allow(t, "http://"+hubName+"/")
	}
	data := read(t, files[large].Data)
	at := func(sum string) string {
		return "/sha256/" + sum + "/http/" + hubName + resolve("org/secret", commit, large)
	}
	for _, url := range []string{at(hexOf(data)), resolve("org/secret", commit, large)} { // by both ways
		g := agents[0].ask(t, http.MethodGet, url, bearer("good")...)
		require.Equal(t, http.StatusOK, g.status, "%s", g.body)
		require.True(t, bytes.Equal(data, g.body))
	}
	agents[0].rest(t)
	for i, a := range agents {
		for _, token := range [][]string{nil, bearer("bad")} {
			for what, sum := range map[string]string{"its digest": hexOf(data), "some digest": hexOf([]byte("made up"))} {
				for _, part := range [][]string{nil, {"Range", byteRange(0, 99)}} {
					g := a.ask(t, http.MethodGet, at(sum), append(token, part...)...)
					require.GreaterOrEqual(t, g.status, 400, "by %s, agent %d, %v, %v", what, i, token, part)
					require.False(t, bytes.Contains(g.body, data[:64]))
				}
			}
			require.GreaterOrEqual(t, a.ask(t, http.MethodHead, at(hexOf(data)), token...).status, 400)
		}
	}
	g := agents[1].ask(t, http.MethodGet, at(hexOf(data)), bearer("good")...)
	require.True(t, bytes.Equal(data, g.body), "%d", g.status)
}

// Static pages are given in parts, as files are.
func TestURL_AHostThatAnswersEverythingWithAPageLetsNobodyIn(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ held bool }{
		"to what is here":     {held: true},
		"to what comes later": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, host := newHub(t), newFileHost(t)
			data := read(t, hubtest.Random(7, 2<<20))
			private := host.put("/private/a.bin", data)
			a := newAgent(t, h, "", nil, host.URL)
			a.allow(t, host.URL)
			fill := func() {
				require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, private, bearer("good")...).status)
				require.Eventually(t, func() bool { // the last bytes are given before the file is kept
					_, err := a.store.Stat(digest.FromBytes(data))
					return err == nil
				}, patience, 5*time.Millisecond)
			}
			if test.held {
				fill()
			}
			host.page.Store(true)
			head := a.ask(t, http.MethodHead, private)
			require.Equal(t, http.StatusOK, head.status)
			require.NotEqual(t, strconv.Itoa(len(data)), head.header.Get("Content-Length"), "what is here is not for him")
			g := a.ask(t, http.MethodGet, private)
			require.True(t, g.status >= 400 || g.err != nil, "%d", g.status)
			require.False(t, bytes.Contains(g.body, data[:64]))
			host.page.Store(false)
			if !test.held {
				fill()
			}
			for range 2 { // and in an outage
				require.GreaterOrEqual(t, a.ask(t, http.MethodGet, private).status, 400)
				host.down.Store(true)
			}
		})
	}
}
