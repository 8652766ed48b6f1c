package hub

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/test/hubtest"
)

// ways are all by which a caller may try to learn something of a file.
func ways(id, commit, path string) map[string]func(t testing.TB, a *agent, headers ...string) got {
	file := func(method string, more ...string) func(t testing.TB, a *agent, headers ...string) got {
		return func(t testing.TB, a *agent, headers ...string) got {
			return a.ask(t, method, resolve(id, commit, path), append(headers, more...)...)
		}
	}
	return map[string]func(t testing.TB, a *agent, headers ...string) got{
		"HEAD": file(http.MethodHead), "GET": file(http.MethodGet),
		"a range":             file(http.MethodGet, "Range", "bytes=0-0"),
		"the end":             file(http.MethodGet, "Range", "bytes=-1"),
		"what it has already": file(http.MethodGet, "If-None-Match", "*"),
	}
}

var apiWays = map[string]func(t testing.TB, a *agent, id, commit, path string, headers ...string) got{
	"info": func(t testing.TB, a *agent, id, _, _ string, headers ...string) got {
		return a.ask(t, http.MethodGet, "/api/models/"+id, headers...)
	},
	"info at the commit": func(t testing.TB, a *agent, id, commit, _ string, headers ...string) got {
		return a.ask(t, http.MethodGet, "/api/models/"+id+"/revision/"+commit, headers...)
	},
	"tree": func(t testing.TB, a *agent, id, commit, _ string, headers ...string) got {
		return a.ask(t, http.MethodGet, "/api/models/"+id+"/tree/"+commit+"?recursive=true", headers...)
	},
	"paths-info": func(t testing.TB, a *agent, id, commit, path string, headers ...string) got {
		return ask(t, a.URL, http.MethodPost, "/api/models/"+id+"/paths-info/"+commit, strings.NewReader("paths="+path),
			append(headers, "Content-Type", "application/x-www-form-urlencoded")...)
	},
	"refs": func(t testing.TB, a *agent, id, _, _ string, headers ...string) got {
		return a.ask(t, http.MethodGet, "/api/models/"+id+"/refs", headers...)
	},
	"a file that is not there": func(t testing.TB, a *agent, id, commit, _ string, headers ...string) got {
		return a.ask(t, http.MethodGet, resolve(id, commit, "nosuch"), headers...)
	},
}

func TestAccess_APrivateRepositoryIsReadByItsReadersAlone(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	repo, commit, files := model(h, "org/secret")
	repo.SetPrivate("good")
	h.Token("other")
	a := newAgent(t, h, "", nil)
	// In the middle there is an outage, and throttling, with everything cached.
	for _, trouble := range []hubtest.Trouble{{}, {Down: true}, {Status: 429, RetryAfter: 1}, {}} {
		h.Set(trouble)
		for _, path := range []string{large, "config.json"} {
			f := files[path]
			for name, way := range ways("org/secret", commit, path) {
				g := way(t, a, bearer("good")...)
				require.Less(t, g.status, 400, "%s of %s with the token, %+v", name, path, trouble)
				if name == "GET" {
					require.Equal(t, read(t, f.Data), g.body)
				}
				for _, headers := range [][]string{nil, bearer("other"), bearer("bad")} {
					g := way(t, a, headers...)
					require.GreaterOrEqual(t, g.status, 400, "%s of %s with %v, %+v", name, path, headers, trouble)
					require.NotContains(t, string(g.body), "odd names")
					require.Empty(t, g.header.Get("Etag"))
					if trouble.Down {
						require.Equal(t, http.StatusServiceUnavailable, g.status, "an outage is never a 401 or 404")
					}
				}
			}
		}
		for name, way := range apiWays {
			good := way(t, a, "org/secret", commit, "config.json", bearer("good")...)
			if trouble == (hubtest.Trouble{}) && name != "a file that is not there" {
				require.Equal(t, http.StatusOK, good.status, name)
			}
			for _, headers := range [][]string{nil, bearer("other"), bearer("bad")} {
				g := way(t, a, "org/secret", commit, "config.json", headers...)
				require.GreaterOrEqual(t, g.status, 400, "%s with %v, %+v", name, headers, trouble)
				require.NotContains(t, string(g.body), "safetensors")
			}
		}
	}
	for _, r := range h.Requests() {
		require.False(t, r.CDN && r.Authorization != "", "the CDN gets no token")
	}
}

func TestAccess_AGatedRepositoryTellsAllAndGivesItsFilesToItsReaders(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	repo, commit, files := model(h, "org/gated")
	repo.SetGated("good")
	h.Token("other")
	a := newAgent(t, h, "", nil)
	for name, way := range apiWays {
		if name != "a file that is not there" {
			require.Equal(t, http.StatusOK, way(t, a, "org/gated", commit, "config.json").status, name)
		}
	}
	for path := range files {
		for name, way := range ways("org/gated", commit, path) {
			require.Less(t, way(t, a, bearer("good")...).status, 400, name)
			g := way(t, a)
			require.Equal(t, http.StatusUnauthorized, g.status, name)
			require.Equal(t, "GatedRepo", g.header.Get("X-Error-Code"))
			g = way(t, a, bearer("other")...)
			require.Equal(t, http.StatusForbidden, g.status, name)
			require.Equal(t, "GatedRepo", g.header.Get("X-Error-Code"))
			require.Equal(t, http.StatusUnauthorized, way(t, a, bearer("bad")...).status, name)
		}
	}
}

// Whoever can push can make a repository that lists any digest.
func TestAccess_ARepositoryThatOnlyListsADigestOpensNothing(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	secret := hubtest.Random(1, 3<<20)
	private := h.Repo("models", "org/secret")
	private.Commit("main", map[string]hubtest.File{"w.safetensors": {Data: secret, LFS: true}})
	private.SetPrivate("good")
	a := newAgent(t, h, "", nil)
	digest := strings.Trim(a.ask(t, http.MethodHead, resolve("org/secret", "main", "w.safetensors"),
		bearer("good")...).header.Get("Etag"), `"`)
	require.Len(t, digest, 64)

	h.Repo("models", "evil/fake").Commit("main", map[string]hubtest.File{
		"w.safetensors": {Data: hubtest.Random(2, 3<<20), LFS: true, ClaimedSHA256: digest},
	})
	fake := func() got { return a.ask(t, http.MethodGet, resolve("evil/fake", "main", "w.safetensors")) }
	require.NotEqual(t, digest, fake().sha256())
	a.rest(t)

	require.Equal(t, digest, a.ask(t, http.MethodGet, resolve("org/secret", "main", "w.safetensors"),
		bearer("good")...).sha256())
	a.rest(t) // the last bytes are given before the file is kept
	for range 3 {
		g := fake()
		require.NotEqual(t, digest, g.sha256())
		require.Equal(t, http.StatusBadGateway, g.status)
	}
	h.Set(hubtest.Trouble{Down: true})
	require.GreaterOrEqual(t, fake().status, 500)
	h.Set(hubtest.Trouble{})

	// A fork that has the file is no copy more.
	h.Repo("models", "org/fork").Commit("main", map[string]hubtest.File{"w.safetensors": {Data: secret, LFS: true}})
	h.Forget()
	require.Equal(t, digest, a.ask(t, http.MethodGet, resolve("org/fork", "main", "w.safetensors")).sha256())
	_, bytes := h.Count()
	require.LessOrEqual(t, bytes, int64(proofSize))
}

// The blob comes to the node after all, by a way that is none of the hub's: an image, or a file by its URL.
func TestAccess_ARepositoryThatOnlyListsADigestGetsNothingThatAnotherFrontBrings(t *testing.T) {
	t.Parallel()
	secret := read(t, hubtest.Random(1, 3<<20))
	sum := sha256.Sum256(secret)
	for when, fetched := range map[string]func(t *testing.T, a *agent, fetch func()){
		"before it is asked": func(_ *testing.T, _ *agent, fetch func()) { fetch() },
		"after it was asked": func(t *testing.T, a *agent, fetch func()) {
			require.NotEqual(t, secret, a.ask(t, http.MethodGet, resolve("evil/fake", "main", "w")).body)
			a.rest(t)
			fetch()
		},
	} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			h.Repo("models", "evil/fake").Commit("main", map[string]hubtest.File{
				"w": {Data: hubtest.Random(2, 3<<20), LFS: true, ClaimedSHA256: hex.EncodeToString(sum[:])},
			})
			a := newAgent(t, h, "", nil)
			fetched(t, a, func() {
				require.NoError(t, a.store.Put(t.Context(), digest.FromBytes(secret), bytes.NewReader(secret),
					int64(len(secret))))
			})
			g := a.ask(t, http.MethodGet, resolve("evil/fake", "main", "w"))
			require.Equal(t, http.StatusBadGateway, g.status)
			require.NotEqual(t, secret, g.body)
		})
	}
}

// secret is a private model that "good" may read, and an agent that has given it to that token and asks anew each time.
func secret(t *testing.T) (h *hubtest.Hub, repo *hubtest.Repo, commit string, a *agent) {
	t.Helper()
	h = newHub(t)
	repo, commit, _ = model(h, "org/secret")
	repo.SetPrivate("good")
	a = newAgent(t, h, "", nil)
	rule := policy.DefaultRule()
	rule.Authorization.TTL = 0
	a.rule.Store(&rule)
	require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, resolve("org/secret", commit, "config.json"),
		bearer("good")...).status)
	return h, repo, commit, a
}

func TestAccess_APageInThePlaceOfTheHubLetsNobodyIn(t *testing.T) {
	t.Parallel()
	for mediaType, text := range map[string]string{
		"application/json": `{"status":"away"}`, "text/plain": "please log in", "text/html": "<p>log in</p>",
	} {
		t.Run(mediaType, func(t *testing.T) {
			t.Parallel()
			h, _, commit, a := secret(t)
			file := resolve("org/secret", commit, "config.json")
			h.SetOdd(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				w.Header().Set("Content-Type", mediaType)
				_, _ = io.WriteString(w, text) // of HEAD net/http sends none
			})
			for _, token := range [][]string{nil, bearer("bad")} {
				told := a.ask(t, http.MethodGet, "/api/models/org/secret/revision/"+commit, token...)
				require.Equal(t, text, string(told.body), "what is none of the hub's answers passes through")
				require.GreaterOrEqual(t, a.ask(t, http.MethodGet, file, token...).status, 400)
			}
		})
	}
}

// without is an answer that lacks some headers.
type without struct {
	http.ResponseWriter
	names []string
}

func (w without) WriteHeader(status int) {
	for _, name := range w.names {
		w.Header().Del(name)
	}
	w.ResponseWriter.WriteHeader(status)
}

func TestAccess_AMirrorThatLosesTheCommitDoesWhereItTellsOfTheFileAsItWasListed(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		path   string
		loses  []string
		noTree bool
		status int
	}{
		"a large file by its name":       {large, []string{"X-Repo-Commit"}, false, 200},
		"a small file by its name":       {"config.json", []string{"X-Repo-Commit"}, false, 200},
		"by its size":                    {large, []string{"X-Repo-Commit", "Etag", "X-Linked-Etag"}, false, 200},
		"by a size that a page may have": {"config.json", []string{"X-Repo-Commit", "Etag"}, false, 503},
		"one that was not listed passes": {large, []string{"X-Repo-Commit"}, true, 302},
		"a page in its place does not":   {large, []string{"X-Repo-Commit", "Etag", "X-Linked-Etag"}, true, 503},
		"nothing is told of a large file": {large,
			[]string{"X-Repo-Commit", "Etag", "X-Linked-Etag", "X-Linked-Size"}, false, 503},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			_, commit, _ := model(h, "org/m")
			h.Set(hubtest.Trouble{NoTree: test.noTree})
			h.SetOdd(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Method == http.MethodHead {
					w = without{w, test.loses}
				}
				next.ServeHTTP(w, r)
			})
			a := newAgent(t, h, "", nil)
			g := a.ask(t, http.MethodHead, resolve("org/m", commit, test.path))
			require.Equal(t, test.status, g.status)
			if g.status == http.StatusServiceUnavailable {
				require.Contains(t, g.header.Get("X-Error-Message"), "the hub names no commit", "and not that it is away")
			}
		})
	}
}

func TestAccess_ARevokedTokenIsRefusedOnceItIsAskedAbout(t *testing.T) {
	t.Parallel()
	h, repo, commit, a := secret(t)
	repo.SetPrivate("new")
	require.GreaterOrEqual(t, a.ask(t, http.MethodGet, resolve("org/secret", commit, "config.json"),
		bearer("good")...).status, 400)
	h.Set(hubtest.Trouble{Down: true})
	require.GreaterOrEqual(t, a.ask(t, http.MethodGet, resolve("org/secret", commit, "config.json"),
		bearer("good")...).status, 500)
}

// What opens a repository that anyone could read is remembered in several places.
func TestAccess_WhatIsKnownToHaveBecomePrivateIsNotOpenedByAnOutage(t *testing.T) {
	t.Parallel()
	for name, ask := range map[string]func(t testing.TB, a *agent, commit string) got{
		"who asked by its branch": func(t testing.TB, a *agent, _ string) got {
			return a.ask(t, http.MethodGet, resolve("org/m", "main", "config.json"))
		},
		"who asked by its commit": func(t testing.TB, a *agent, commit string) got {
			return a.ask(t, http.MethodGet, resolve("org/m", commit, "config.json"))
		},
		"who asked what it tells": func(t testing.TB, a *agent, _ string) got {
			return a.ask(t, http.MethodGet, "/api/models/org/m")
		},
	} {
		t.Run(name+" was refused", func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			repo, commit, _ := model(h, "org/m")
			dir := t.TempDir()
			a := newAgent(t, h, dir, nil)
			rule := policy.DefaultRule()
			rule.TagTTL, rule.Authorization.TTL = 0, 0 // as if they were over
			a.rule.Store(&rule)
			all := func(a *agent, check func(status int, what string)) {
				for _, token := range [][]string{nil, bearer("made up"), bearer(longToken)} {
					for _, revision := range []string{"main", commit} {
						check(a.ask(t, http.MethodGet, resolve("org/m", revision, "config.json"), token...).status, "config.json")
						check(a.ask(t, http.MethodHead, resolve("org/m", revision, large), token...).status, large)
						for _, what := range []string{"revision", "tree"} {
							path := "/api/models/org/m/" + what + "/" + revision
							check(a.ask(t, http.MethodGet, path, token...).status, path)
						}
					}
				}
			}
			all(a, func(status int, what string) { require.Equal(t, http.StatusOK, status, what) })
			repo.SetPrivate("good")
			require.Equal(t, http.StatusUnauthorized, ask(t, a, commit).status)
			h.Set(hubtest.Trouble{Down: true})
			shut := func(status int, what string) { require.GreaterOrEqual(t, status, 400, what) }
			all(a, shut)
			a.stop(t)
			a = newAgent(t, h, dir, nil) // a restart does not forget it
			a.rule.Store(&rule)
			all(a, shut)
		})
	}
}

func TestAccess_WhoIsThrottledIsLetOnByNothingThatIsOver(t *testing.T) {
	t.Parallel()
	throttles := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Header.Get("Authorization") == "Bearer new" {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Retry-After", "60")
		http.Error(w, "too many", http.StatusTooManyRequests)
	}
	t.Run("whose token was revoked", func(t *testing.T) {
		t.Parallel()
		h, repo, commit, a := secret(t)
		repo.SetPrivate("new")
		h.SetOdd(throttles)
		for _, revision := range []string{"main", commit} {
			require.Equal(t, http.StatusTooManyRequests, a.ask(t, http.MethodGet, resolve("org/secret", revision,
				"config.json"), bearer("good")...).status)
		}
		require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, resolve("org/secret", commit, "config.json"),
			bearer("new")...).status)
	})
	for name, c := range map[string]struct {
		ago    time.Duration
		status int
	}{
		"what anyone could read a day ago":       {23 * time.Hour, http.StatusOK},
		"what anyone could read before that day": {25 * time.Hour, http.StatusTooManyRequests},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			_, commit, _ := model(h, "org/m")
			a := newAgent(t, h, "", nil)
			rule := policy.DefaultRule()
			rule.Authorization.TTL = 0
			a.rule.Store(&rule)
			file := resolve("org/m", commit, "config.json")
			require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, file).status)
			for _, l := range []level{levelInfo, levelFiles} {
				a.memo.learn(openKey(repo{"models", "org/m"}, l), record{Yes: true}, c.ago, true)
			}
			h.SetOdd(throttles)
			require.Equal(t, c.status, a.ask(t, http.MethodGet, file).status)
		})
	}
}

// Who fills the room keeps the node from hearing what the hub says.
func TestAccess_AFullRoomLetsNobodyOnByWhatIsOver(t *testing.T) {
	t.Parallel()
	full := func(ctx context.Context, _ string) error { return room.Hold(ctx, 2<<20) }
	away := func(ctx context.Context, _ string) error {
		<-time.After(9 * time.Second)
		return content.ErrUnavailable
	}
	for name, c := range map[string]struct {
		ask  probe
		ago  time.Duration
		open bool
	}{
		"what anyone could read a day ago":       {full, 23 * time.Hour, true},
		"what anyone could read before that day": {full, 25 * time.Hour, false},
		"unless it is the hub that is away":      {away, 25 * time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				documents := room.New(6 << 20)
				leave, ok := documents.Try(2 << 20)
				require.True(t, ok)
				defer leave()
				m := newMemo(nil, documents, slog.New(slog.DiscardHandler))
				m.down = func() bool { return false }
				a := &access{memo: m}
				r := repo{"models", "org/m"}
				m.learn(openKey(r, levelInfo), record{Yes: true}, c.ago, true)
				got, err := a.anyone(t.Context(), r, levelInfo, 0, c.ask)
				require.NoError(t, err)
				require.Equal(t, c.open, got.Yes)
				synctest.Wait()
				time.Sleep(time.Minute) // questions end
			})
		})
	}
}

// Whoever has a repository of his own has the hub answer about it as he likes.
func TestAccess_AnAnswerThatIsWrongIsNoOutageOfTheHub(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]http.HandlerFunc{
		"it fails":        func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"it is encoded":   func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Encoding", "br") },
		"it breaks off":   func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "9") },
		"it leads astray": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			repo, commit, _ := model(h, "org/m")
			a := newAgent(t, h, "", nil)
			rule := policy.DefaultRule()
			rule.Authorization.TTL = 0
			a.rule.Store(&rule)
			file := resolve("org/m", commit, "config.json")
			require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, file).status)
			repo.SetPrivate("good")
			h.SetOdd(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.HasPrefix(r.URL.Path, "/api/models/evil/") {
					next = wrong
				}
				next.ServeHTTP(w, r)
			})
			require.GreaterOrEqual(t, a.ask(t, http.MethodGet, "/api/models/evil/m").status, 500)
			require.Equal(t, http.StatusUnauthorized, a.ask(t, http.MethodGet, file).status)
		})
	}
}
