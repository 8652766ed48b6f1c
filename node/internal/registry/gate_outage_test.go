package registry_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/registry"
)

// strict makes an origin keep blobs and manifests of its repositories apart, as registries do and ggcr does not, and
// lets a test put trouble in front of them.
type strict struct {
	inner http.Handler
	lacks map[string][]digest.Digest // by repository
	also  map[string]string          // manifests by path, whatever they list

	mu      sync.Mutex
	trouble func(w http.ResponseWriter, r *http.Request) bool // answers in its place, if it reports true
}

func (w *world) strictly(lacks map[string][]digest.Digest) *strict {
	s := &strict{inner: w.origin.Front(), lacks: lacks, also: make(map[string]string)}
	w.origin.Handle(s)
	return s
}

func (s *strict) set(trouble func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = trouble
}

func (s *strict) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	trouble := s.trouble
	s.mu.Unlock()
	if trouble != nil && trouble(w, r) {
		return
	}
	for repo, digests := range s.lacks {
		for _, d := range digests {
			if strings.HasPrefix(r.URL.Path, "/v2/"+repo+"/") && strings.HasSuffix(r.URL.Path, d.String()) {
				http.NotFound(w, r)
				return
			}
		}
	}
	if raw, ok := s.also[r.URL.Path]; ok {
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		w.Header().Set("Content-Length", fmt.Sprint(len(raw)))
		w.Header().Set("Docker-Content-Digest", digest.FromString(raw).String())
		_, _ = io.WriteString(w, raw)
		return
	}
	s.inner.ServeHTTP(w, r)
}

// tag gives out a manifest as a registry would that looks into none.
func (s *strict) tag(repo, tag, raw string) {
	s.also["/v2/"+repo+"/manifests/"+tag] = raw
	s.also["/v2/"+repo+"/manifests/"+digest.FromString(raw).String()] = raw
}

// answering makes a trouble of one answer to all requests under a path.
func answering(prefix string, status int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, prefix) {
			return false
		}
		w.WriteHeader(status)
		return true
	}
}

// page is a trouble of one page for every question, as proxies have it for a login or the time of an outage.
func page(mediaType, text string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		_, _ = io.WriteString(w, text) // of HEAD net/http sends none
		return true
	}
}

// Whoever may read what: by the state of the registry, by the caller, and by how the digest is known.
func TestGate_OpensNothingThatTheRegistryHasNotAcceptedWhateverItsState(t *testing.T) {
	t.Parallel()
	const served, refused = true, false
	for state, trouble := range map[string]func(w *world, s *strict){
		"up":                             func(*world, *strict) {},
		"throttling another repository":  func(_ *world, s *strict) { s.set(answering("/v2/other/", 429)) },
		"failing for another repository": func(_ *world, s *strict) { s.set(answering("/v2/other/", 503)) },
		"throttling":                     func(_ *world, s *strict) { s.set(answering("/", 429)) },
		"failing":                        func(_ *world, s *strict) { s.set(answering("/", 500)) },
		"away":                           func(w *world, _ *strict) { w.origin.SetDown(true) },
		"behind a page of JSON":          func(_ *world, s *strict) { s.set(page("application/json", `{"status":"away"}`)) },
		"behind a page of text":          func(_ *world, s *strict) { s.set(page("text/plain", "please log in")) },
		"behind a page for people":       func(_ *world, s *strict) { s.set(page("text/html", "<p>log in</p>")) },
		"behind a page of no type":       func(_ *world, s *strict) { s.set(page("application/octet-stream", "away")) },
	} {
		up := !slices.Contains([]string{"throttling", "failing", "away"}, state) && !strings.HasPrefix(state, "behind")
		for who, tc := range map[string]struct {
			authorization string
			path          func(public, secret image) string
			want          bool
		}{
			"the accepted caller reads the private layer": {alice, func(_, s image) string {
				return "/v2/team/app/blobs/" + s.layer.String()
			},
				up || state != "throttling"},
			"a caller without credentials does not": {"", func(_, s image) string {
				return "/v2/team/app/blobs/" + s.layer.String()
			}, refused},
			"nor one with others": {bob, func(_, s image) string {
				return "/v2/team/app/blobs/" + s.layer.String()
			}, refused},
			"nor the private manifest": {"", func(_, s image) string {
				return "/v2/team/app/manifests/" + s.manifest.String()
			}, refused},
			"nor the private tags": {"", func(_, _ image) string { return "/v2/team/app/tags/list" }, refused},
			"nor what refers to the private manifest": {"", func(_, s image) string {
				return "/v2/team/app/referrers/" + s.manifest.String()
			}, refused},
			"nor through a public index that lists the manifest": {"",
				func(_, s image) string { return "/v2/public/app/manifests/" + s.manifest.String() }, refused},
			"nor through a public image that lists the layer": {"",
				func(_, s image) string { return "/v2/public/app/blobs/" + s.layer.String() }, refused},
			"nor by a digest that nobody lists": {"",
				func(_, s image) string { return "/v2/public/app/blobs/" + s.config.String() }, refused},
			"a public layer is for anyone": {"", func(p, _ image) string {
				return "/v2/public/app/blobs/" + p.layer.String()
			}, served},
		} {
			t.Run(state+": "+who, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, func(o *registry.Options) { o.Tags = new(tagMemory) })
					secret := w.origin.pushImage(t, "team/app", "v1", "s")
					public := w.origin.pushImage(t, "public/app", "v1", "p")
					w.origin.Protect("team/app", alice)
					s := w.strictly(map[string][]digest.Digest{"public/app": {secret.manifest, secret.layer,
						secret.config}})
					s.tag("public/app", "index", fmt.Sprintf(
						`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
						v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, secret.manifest, len(secret.raw)))
					s.tag("public/app", "evil", fmt.Sprintf(
						`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"x","digest":%q,"size":1},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
						v1.MediaTypeImageManifest, public.config, v1.MediaTypeImageLayer, secret.layer, len(secret.layerBytes)))
					require.Equal(t, allServed, w.pull(secret, "team/app", alice))
					require.Equal(t, allServed, w.pull(public, "public/app", ""))
					require.Equal(t, 200, w.get("/v2/public/app/manifests/index").Code)
					require.Equal(t, 200, w.get("/v2/public/app/manifests/evil").Code)

					trouble(w, s)
					time.Sleep(time.Hour)
					w.get("/v2/other/app/manifests/v1") // whatever becomes of it
					for range 2 {                       // the second within the moment in which silence is remembered
						code := w.get(tc.path(public, secret), "Authorization", tc.authorization).Code
						require.Equal(t, tc.want, code == 200, "answered %d", code)
					}
				})
			})
		}
	}
}

func TestGate_RevokedCredentialsAreRefusedThoughTheRegistryIsInTroubleElsewhere(t *testing.T) {
	t.Parallel()
	for _, status := range []int{429, 503} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			img := w.origin.pushImage(t, "team/app", "v1", "x")
			w.origin.Protect("team/app", alice)
			s := w.strictly(nil)
			require.Equal(t, allServed, w.pull(img, "team/app", alice))
			w.origin.Protect("team/app", bob)
			s.set(answering("/v2/other/", status))
			time.Sleep(time.Hour)
			w.get("/v2/other/app/manifests/v1", "Authorization", alice)
			require.NotContains(t, w.pull(img, "team/app", alice), 200)
			time.Sleep(time.Minute)
			require.Equal(t, allRefused, w.pull(img, "team/app", alice))
		})
	}
}

// A host that anyone may name in an image reference claims every digest.
func TestGate_ASourceThatOnlyClaimsADigestOpensNothing(t *testing.T) {
	t.Parallel()
	for name, get := range map[string]func(w http.ResponseWriter, path string){
		"it fails":             func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusInternalServerError) },
		"it gives other bytes": func(w http.ResponseWriter, _ string) { _, _ = w.Write(make([]byte, 1000)) },
		"it gives nothing":     func(http.ResponseWriter, string) {},
		"it gives the digest of what it claims": func(w http.ResponseWriter, path string) {
			_, d, _ := strings.Cut(path, "sha256:")
			w.Header().Set("Docker-Content-Digest", "sha256:"+d)
			_, _ = w.Write([]byte("{}"))
		},
	} {
		for where, atPeers := range map[string]bool{"held here": false, "held by peers": true} {
			t.Run(name+", "+where, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					others := new(word)
					w.witness = others
					w.restart()
					img := w.origin.pushImage(t, "team/app", "v1", "x")
					w.origin.Protect("team/app", alice)
					require.Equal(t, allServed, w.pull(img, "team/app", alice))
					if atPeers {
						w.fetcher.peers, w.fetcher.held = w.fetcher.held, map[digest.Digest][]byte{}
						others.held = []digest.Digest{img.manifest, img.layer, img.config}
						time.Sleep(time.Minute)
					}
					sizes := map[string]int{img.manifest.String(): len(img.raw),
						img.layer.String(): len(img.layerBytes), img.config.String(): 12}
					s := w.strictly(nil)
					s.set(func(rw http.ResponseWriter, r *http.Request) bool {
						if !strings.HasPrefix(r.URL.Path, "/v2/evil/x/") {
							return false
						}
						if r.Method == http.MethodHead {
							d := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
							if d == "latest" {
								d = img.manifest.String()
							}
							rw.Header().Set("Docker-Content-Digest", d)
							rw.Header().Set("Content-Type", v1.MediaTypeImageManifest)
							rw.Header().Set("Content-Length", fmt.Sprint(sizes[d]))
							return true
						}
						get(rw, r.URL.Path)
						return true
					})
					for _, path := range append(img.paths("evil/x")[1:], "/v2/evil/x/manifests/latest") {
						rep := w.get(path)
						require.NotEqual(t, 200, rep.Code, path)
						require.NotContains(t, rep.Body.String(), string(img.layerBytes[:4]), path)
					}
				})
			})
		}
	}
}

func TestGate_ASourceProvesOnceWhatItHas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		img := w.origin.pushImage(t, "team/app", "v1", "x")
		w.origin.pushImage(t, "copy/app", "v1", "x")
		require.Equal(t, allServed, w.pull(img, "team/app", ""))
		w.origin.Requests()
		require.Equal(t, allServed, w.pull(img, "copy/app", ""), "what came from another repository, once it is proved")
		gets := 0
		for _, r := range w.origin.Requests() {
			if strings.HasPrefix(r, "GET") {
				gets++
			}
		}
		require.Equal(t, 3, gets, "a sample of each")
		w.stop()
		w.restart()
		require.Equal(t, allServed, w.pull(img, "copy/app", ""))
		require.Empty(t, w.origin.Requests()[1:], "a proof outlives a restart; only the tag is asked for")
	})
}
