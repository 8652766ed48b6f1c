package hub

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/hubtest"
)

const oddName = "sub dir/100% #1 ü.txt"

// requireRight asks for a large file, a file in git and one that is not there.
func requireRight(t *testing.T, a *agent, files map[string]hubtest.File) {
	t.Helper()
	for _, path := range []string{large, "config.json", oddName, "empty.txt"} {
		want := read(t, files[path].Data)
		g := a.ask(t, http.MethodHead, resolve("org/m", "main", path))
		require.Equal(t, http.StatusOK, g.status, path)
		g = a.ask(t, http.MethodGet, resolve("org/m", "main", path))
		require.Equal(t, http.StatusOK, g.status, "%s: %s", path, g.body)
		require.NoError(t, g.err, path)
		require.True(t, bytes.Equal(want, g.body), path)
	}
	require.Equal(t, http.StatusNotFound, a.ask(t, http.MethodGet, resolve("org/m", "main", "absent")).status)
}

func TestOdd_WhatAHubSpellsOtherwiseMeansTheSame(t *testing.T) {
	t.Parallel()
	upper := func(v any) any { return strings.ToUpper(v.(string)) }
	for name, tc := range map[string]struct {
		odd    func(h *hubtest.Hub) hubtest.Odd
		noTree bool
	}{
		"answers are packed, which nobody asked for": {odd: func(*hubtest.Hub) hubtest.Odd {
			return hubtest.OddGzip(false)
		}},
		"a range does not say of how many bytes it is": {odd: func(*hubtest.Hub) hubtest.Odd {
			return hubtest.OddSizes(false)
		}},
		"nor is there HEAD, or a listing": {noTree: true, odd: func(*hubtest.Hub) hubtest.Odd {
			return hubtest.OddSizes(true)
		}},
		"ETags have no quotes": {noTree: true, odd: func(*hubtest.Hub) hubtest.Odd {
			return hubtest.OddETags(func(etag string) string { return etag })
		}},
		"ETags are weak": {noTree: true, odd: func(*hubtest.Hub) hubtest.Odd {
			return hubtest.OddETags(func(etag string) string { return `W/"` + etag + `"` })
		}},
		"digests are in capitals": {odd: func(*hubtest.Hub) hubtest.Odd {
			return hubtest.OddEntries(func(e map[string]any) {
				e["oid"] = upper(e["oid"])
				if lfs, ok := e["lfs"].(map[string]any); ok {
					lfs["oid"] = upper(lfs["oid"])
				}
			})
		}},
		"signed URLs lead on to others":    {odd: func(h *hubtest.Hub) hubtest.Odd { return hubtest.OddHops(h, 2) }},
		"signed URLs lead back to the hub": {odd: func(h *hubtest.Hub) hubtest.Odd { return hubtest.OddHops(h, 1) }},
		"a listing is longer than a whole one may be": {odd: func(*hubtest.Hub) hubtest.Odd {
			return hubtest.OddPages(func(n int) string { return string(rune('1' + n)) })
		}},
		"a listing comes back to where it was": {odd: func(*hubtest.Hub) hubtest.Odd {
			return hubtest.OddPages(func(n int) string { return []string{"1", "2", "1"}[n] })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			_, _, files := model(h, "org/m")
			h.Set(hubtest.Trouble{NoTree: tc.noTree})
			h.SetOdd(tc.odd(h))
			requireRight(t, newAgent(t, h, "", nil), files)
		})
	}
}

// Of what has no name that could be checked nothing is kept.
func TestOdd_AFileWithoutADigestPassesThroughAsTheHubGivesIt(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, _, files := model(h, "org/m")
	h.Set(hubtest.Trouble{NoTree: true})
	h.SetOdd(hubtest.OddETags(func(string) string { return `"0123456789abcdef-12"` }))
	a := newAgent(t, h, "", nil)
	g := a.ask(t, http.MethodGet, resolve("org/m", "main", large))
	require.Equal(t, http.StatusFound, g.status)
	require.Contains(t, g.header.Get("Location"), "/cdn/")
	g = a.ask(t, http.MethodGet, resolve("org/m", "main", "config.json"))
	require.Equal(t, http.StatusTemporaryRedirect, g.status)
	g = a.ask(t, http.MethodGet, g.header.Get("Location"))
	require.True(t, bytes.Equal(read(t, files["config.json"].Data), g.body))
}

func TestOdd_AListingWithoutEndIsRefusedInWords(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, _ := model(h, "org/m")
	h.SetOdd(hubtest.OddPages(func(int) string { return "1" }))
	a := newAgent(t, h, "", nil)
	g := a.ask(t, http.MethodGet, "/api/models/org/m/tree/"+commit+"?recursive=true")
	require.Equal(t, http.StatusBadGateway, g.status)
	require.Contains(t, g.header.Get("X-Error-Message"), "has no end")
	asked, _ := h.Count()
	require.LessOrEqual(t, asked, 5)
	h.Forget()
	for range 3 {
		for _, path := range []string{"config.json", ".gitattributes", "onnx/model.onnx"} {
			require.Equal(t, http.StatusOK, a.ask(t, http.MethodHead, resolve("org/m", commit, path)).status)
		}
		require.Equal(t, http.StatusBadGateway, a.ask(t, http.MethodGet, "/api/models/org/m/tree/"+commit).status)
	}
	for _, r := range h.Requests() {
		require.NotContains(t, r.Path, "/tree/", "it is not asked for again for each file")
	}
}

func TestOdd_WhatIsWrongNeverEndsAsIfItWereRight(t *testing.T) {
	t.Parallel()
	for name, odd := range map[string]func(h *hubtest.Hub) hubtest.Odd{
		"storage packs what it gives": func(*hubtest.Hub) hubtest.Odd { return hubtest.OddGzip(true) },
		"the listing names another size than the file has": func(*hubtest.Hub) hubtest.Odd {
			return hubtest.OddEntries(func(e map[string]any) {
				if lfs, ok := e["lfs"].(map[string]any); ok {
					e["size"], lfs["size"] = e["size"].(float64)+1, lfs["size"].(float64)+1
				}
			})
		},
		"redirects have no end": func(h *hubtest.Hub) hubtest.Odd { return hubtest.OddHops(h, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			model(h, "org/m")
			h.SetOdd(odd(h))
			a := newAgent(t, h, "", nil)
			g := a.ask(t, http.MethodGet, resolve("org/m", "main", "onnx/model.onnx"))
			require.True(t, g.err != nil || g.status >= 500, "%d: %s", g.status, g.body)
		})
	}
}

func TestOdd_AThrottleIsKeptToHoweverItIsSaid(t *testing.T) {
	t.Parallel()
	for name, said := range map[string]func() string{
		"as a date":                 hubtest.InAnHour,
		"for a day":                 func() string { return "86400" },
		"for longer than there is":  func() string { return strings.Repeat("9", 30) },
		"for more than a clock has": func() string { return "9300000000" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			model(h, "org/m")
			h.SetOdd(hubtest.OddThrottle(said))
			a := newAgent(t, h, "", nil)
			g := a.ask(t, http.MethodGet, "/api/models/org/m/revision/main")
			require.Equal(t, http.StatusTooManyRequests, g.status)
			require.NotEmpty(t, g.header.Get("Retry-After"))
			asked, _ := h.Count()
			for range 5 {
				g := a.ask(t, http.MethodGet, "/api/models/org/m/revision/main")
				require.Equal(t, http.StatusTooManyRequests, g.status)
			}
			again, _ := h.Count()
			require.Equal(t, asked, again, "it is not asked again until then")
		})
	}
	require.Zero(t, retryAfter(http.Header{"Retry-After": {"soon"}}))
	require.Zero(t, retryAfter(http.Header{"Retry-After": {"-5"}}))
	require.Zero(t, retryAfter(http.Header{"Retry-After": {"Mon, 01 Jan 2001 00:00:00 GMT"}}))
	require.Equal(t, 7*time.Second, retryAfter(http.Header{"Ratelimit": {`"api";r=0;t=7`}}))
	require.Zero(t, retryAfter(http.Header{"Ratelimit": {`"api";r=498;t=172`}}), "which is not why")
	require.Equal(t, 9*time.Second, retryAfter(http.Header{"Ratelimit": {`"pages";r=5;t=90, "api"; r=0; t=9`}}))
}

// huggingface_hub heeds the RateLimit header before Retry-After.
func TestOdd_AThrottleIsToldWithTheTimeThatIsLeftOfIt(t *testing.T) {
	t.Parallel()
	said := &refusal{header: http.Header{"Ratelimit": {`"api";r=0;t=300`}}}
	o := &origin{key: func(...string) mark { return mark{} }, throttled: map[mark]throttle{
		{}: {time.Now().Add(100 * time.Second), said},
	}}
	got := o.throttledFor("")
	require.Equal(t, "100", got.header.Get("Retry-After"))
	require.Equal(t, `"api";r=0;t=100`, got.header.Get("RateLimit"))
	require.Equal(t, `"api";r=0;t=300`, said.header.Get("RateLimit"))
}

func TestOdd_ATokenThatEndsInTheMiddleCutsNoDownload(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	r, _, files := model(h, "org/m")
	r.SetGated("hf_abcdefghijklmnopqrstuvwxyz0123456789")
	a := newAgent(t, h, "", nil)
	auth := bearer("hf_abcdefghijklmnopqrstuvwxyz0123456789")
	h.SetOdd(hubtest.OddToken(3))
	g := a.ask(t, http.MethodGet, resolve("org/m", "main", large), auth...)
	require.NoError(t, g.err)
	require.True(t, bytes.Equal(read(t, files[large].Data), g.body))
}

// A client asks for the header of a branch's file, and then for the file.
func TestOdd_ABranchThatMovesBetweenHEADAndGETGivesWhatHEADSaid(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	r, first, files := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	head := a.ask(t, http.MethodHead, resolve("org/m", "main", large))
	require.Equal(t, first, head.header.Get("X-Repo-Commit"))
	r.Commit("main", map[string]hubtest.File{large: {Data: hubtest.Random(9, 1000), LFS: true}})
	g := a.ask(t, http.MethodGet, resolve("org/m", "main", large))
	require.Equal(t, first, g.header.Get("X-Repo-Commit"))
	require.True(t, bytes.Equal(read(t, files[large].Data), g.body))
}

func TestOdd_AnEmptyFileInLargeStorageIsGiven(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.Repo("models", "org/m").Commit("main", map[string]hubtest.File{
		"empty.bin": {Data: hubtest.Text(""), LFS: true},
		"lie.bin":   {Data: hubtest.Text(""), LFS: true, ClaimedSHA256: strings.Repeat("ab", 32)},
	})
	a := newAgent(t, h, "", nil)
	for _, headers := range [][]string{nil, {"Range", "bytes=0-0"}, {"Range", "bytes=0-"}} {
		g := a.ask(t, http.MethodGet, resolve("org/m", "main", "empty.bin"), headers...)
		require.Equal(t, http.StatusOK, g.status, "%v", headers)
		require.Empty(t, g.body)
		require.NoError(t, g.err)
	}
	g := a.ask(t, http.MethodGet, resolve("org/m", "main", "lie.bin"))
	require.Equal(t, http.StatusBadGateway, g.status, "%s", g.body)
}

func TestOdd_AListingGoesOnBelowTheHubWhoeverItsLinkNames(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	t.Cleanup(other.Close)
	for name, tc := range map[string]struct {
		next  func(path string) string
		fails string
	}{
		"that of the hub behind a plain proxy": {func(path string) string { return other.URL + path }, ""},
		"the proxy's own, which ends TLS":      {func(path string) string { return "https://proxy.example" + path }, ""},
		"a page that the hub has not":          {func(string) string { return other.URL + "/page-2" }, "no such page"},
		"no URL of a host":                     {func(string) string { return "http:@elsewhere.test/page-2" }, "elsewhere.test"},
		"no URL at all":                        {func(string) string { return "/%zz" }, "%zz"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			h.PageSize = 2
			_, commit, files := model(h, "org/m")
			h.SetOdd(hubtest.OddNext(tc.next))
			a := newAgent(t, h, "", nil)
			for _, query := range []string{"?recursive=true", "?recursive=true&expand=true"} {
				g := a.ask(t, http.MethodGet, "/api/models/org/m/tree/"+commit+query)
				next, _, more := strings.Cut(strings.TrimPrefix(g.header.Get("Link"), "<"), ">")
				switch {
				case tc.fails == "":
					require.Equal(t, http.StatusOK, g.status, "%s: %s", query, g.body)
					if more {
						next, own := strings.CutPrefix(next, a.URL)
						require.True(t, own, "a client follows the link as it is")
						require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, next).status)
					}
				case strings.Contains(query, "expand") && tc.fails == "no such page": // the client asks for that itself
					require.Equal(t, http.StatusUnauthorized, a.ask(t, http.MethodGet, strings.TrimPrefix(next, a.URL)).status)
				default:
					require.Equal(t, http.StatusBadGateway, g.status, "%s: %s", query, g.body)
					require.Contains(t, g.header.Get("X-Error-Message"), tc.fails, query)
				}
			}
			for path := range files {
				require.Equal(t, http.StatusOK, a.ask(t, http.MethodHead, resolve("org/m", commit, path)).status,
					"each file can be asked for by its name")
			}
			require.Zero(t, elsewhere.Load())
		})
	}
}
