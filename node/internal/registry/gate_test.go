package registry_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/registry"
	"github.com/shoal-cache/shoal/test/registrytest"
)

// paths are the ways to ask for parts of an image.
func (i image) paths(repo string) []string {
	return []string{
		"/v2/" + repo + "/manifests/v1", "/v2/" + repo + "/manifests/" + i.manifest.String(),
		"/v2/" + repo + "/blobs/" + i.config.String(), "/v2/" + repo + "/blobs/" + i.layer.String(),
	}
}

// pull asks for all of them, in the order of a runtime, and gives the status codes seen.
func (w *world) pull(img image, repo, authorization string) map[int]int {
	w.t.Helper()
	codes := make(map[int]int)
	for _, p := range img.paths(repo) {
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			var header []string
			if authorization != "" {
				header = []string{"Authorization", authorization}
			}
			codes[w.do(method, p, header...).Code]++
		}
	}
	return codes
}

var (
	allServed  = map[int]int{200: 8}
	allRefused = map[int]int{401: 8}
	allMissing = map[int]int{404: 8}
	allLater   = map[int]int{503: 8}
)

func TestWhatIsCachedOfAPrivateRepositoryIsServedOnlyToWhomTheRegistryAccepts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		img := w.origin.pushImage(t, "team/app", "v1", "x")
		w.origin.Protect("team/app", alice)
		require.Equal(t, allRefused, w.pull(img, "team/app", ""), "cold")
		require.Equal(t, allServed, w.pull(img, "team/app", alice))
		require.Equal(t, allRefused, w.pull(img, "team/app", ""), "warm, without credentials")
		require.Equal(t, allRefused, w.pull(img, "team/app", bob), "warm, with another's")

		rep := w.get(img.paths("team/app")[0])
		require.Equal(t, []string{registrytest.Challenge}, rep.Header().Values("WWW-Authenticate"), "the registry's own challenge")

		w.origin.Requests()
		require.Equal(t, allServed, w.pull(img, "team/app", alice))
		require.Empty(t, w.origin.Requests(), "an acceptance is remembered")

		w.origin.Protect("team/app", bob)
		require.Equal(t, allServed, w.pull(img, "team/app", alice), "for its time")
		time.Sleep(w.rule.Authorization.TTL)
		require.Equal(t, allRefused, w.pull(img, "team/app", alice), "and no longer")
		require.Equal(t, allServed, w.pull(img, "team/app", bob))
	})
}

func TestNoBlobIsReadThroughARepositoryThatDoesNotHoldIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// ggcr keeps the blobs of all repositories together, so what each holds is kept apart here.
	public := w.origin.pushImage(t, "public/app", "v1", "p")
	secret := w.origin.pushImage(t, "private/app", "v1", "s")
	w.origin.Protect("private/app", alice)
	inner := w.origin.Front()
	w.origin.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v2/public/app/blobs/") &&
			(strings.Contains(r.URL.Path, secret.layer.String()) ||
				strings.Contains(r.URL.Path, secret.config.String())) {
			http.NotFound(rw, r)
			return
		}
		inner.ServeHTTP(rw, r)
	}))
	require.Equal(t, allServed, w.pull(secret, "private/app", alice))
	require.Equal(t, allServed, w.pull(public, "public/app", ""))
	for _, path := range secret.paths("public/app")[1:] {
		for _, authorization := range []string{"", alice} {
			rep := w.get(path, "Authorization", authorization)
			require.Equal(t, 404, rep.Code, path)
		}
	}
}

func TestAManifestVouchesForWhatItLists(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	img := w.origin.pushImage(t, "team/app", "v1", "x")
	w.get("/v2/team/app/manifests/v1")
	w.get("/v2/team/app/blobs/" + img.layer.String())
	for _, r := range w.origin.Requests() {
		require.NotContains(t, r, "HEAD /v2/team/app/blobs/", "no question about a blob that the manifest lists")
	}
	// The subject is not vouched for: registries take manifests whose subject they do not have.
	referrer := `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest +
		`","subject":{"mediaType":"x","digest":"` + img.layer.String() + `","size":1}}`
	other := newWorld(t)
	other.origin.PushManifest(t, "evil/app", "v1", v1.MediaTypeImageManifest, referrer)
	require.Equal(t, 200, other.get("/v2/evil/app/manifests/v1").Code)
	other.fetcher.held[img.layer] = img.layerBytes
	require.Equal(t, 404, other.get("/v2/evil/app/blobs/"+img.layer.String()).Code)
}

// Registries take an index whose manifests they do not have, and a manifest whose layers are to be had elsewhere. So
// who may push somewhere can name there what he may not read.
func TestAManifestDoesNotVouchForWhatItsRegistryNeedNotHave(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		manifest func(secret image) string
		paths    func(secret image) []string
	}{
		"the manifests of an index": {
			func(secret image) string {
				return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":1}]}`,
					v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, secret.manifest)
			},
			func(secret image) []string { return secret.paths("evil/app")[1:] },
		},
		"layers that are to be had elsewhere": {
			func(secret image) string {
				return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"layers":[
					{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":%q,"size":1},
					{"mediaType":%q,"digest":%q,"size":1,"urls":["https://elsewhere.test/"]}]}`,
					v1.MediaTypeImageManifest, secret.layer, v1.MediaTypeImageLayer, secret.config)
			},
			func(secret image) []string { return secret.paths("evil/app")[2:] },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				secret := w.origin.pushImage(t, "private/app", "v1", "s")
				w.origin.Protect("private/app", alice)
				require.Equal(t, allServed, w.pull(secret, "private/app", alice))
				evil := tc.manifest(secret)
				inner := w.origin.Front()
				w.origin.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					switch {
					case !strings.HasPrefix(r.URL.Path, "/v2/evil/app/"):
						inner.ServeHTTP(rw, r)
					case strings.HasSuffix(r.URL.Path, "/manifests/v1"),
						strings.HasSuffix(r.URL.Path, digest.FromString(evil).String()):
						rw.Header().Set("Content-Type", v1.MediaTypeImageManifest)
						_, _ = io.WriteString(rw, evil)
					default:
						http.NotFound(rw, r)
					}
				}))
				require.Equal(t, 200, w.get("/v2/evil/app/manifests/v1").Code)
				for _, path := range tc.paths(secret) {
					require.Equal(t, 404, w.get(path).Code, path)
				}
				// Not even what was read during an outage opens a way that stays open after it.
				w.origin.SetDown(true)
				for _, path := range tc.paths(secret) {
					w.get(path)
				}
				w.origin.SetDown(false)
				time.Sleep(time.Hour)
				require.Equal(t, 200, w.get("/v2/evil/app/manifests/v1").Code)
				for _, path := range tc.paths(secret) {
					require.Equal(t, 404, w.get(path).Code, path)
				}
			})
		})
	}
}

// A node that has seen no more of an image than its tag serves the whole of it while the registry is away.
func TestAnImageOfManyPlatformsIsServedWhileTheRegistryIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(o *registry.Options) { o.Tags = new(tagMemory) })
		w.witness = new(word)
		w.restart(func(o *registry.Options) { o.Tags = new(tagMemory) })
		img := w.origin.pushImage(t, "team/app", "v1-amd64", "x")
		index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
			v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, img.manifest, len(img.raw))
		w.origin.PushManifest(t, "team/app", "v1", v1.MediaTypeImageIndex, index)
		require.Equal(t, 200, w.get("/v2/team/app/manifests/v1").Code)
		w.origin.SetDown(true)
		w.fetcher.peers = map[digest.Digest][]byte{
			img.manifest: []byte(img.raw), img.layer: img.layerBytes, img.config: []byte(`{"seed":"x"}`),
		}
		time.Sleep(time.Hour)
		paths := img.paths("team/app")[1:]
		for _, path := range paths {
			require.Equal(t, 503, w.get(path).Code, "that others hold it does not tell whose it is")
		}
		w.witness.(*word).proven = []digest.Digest{img.manifest, img.layer, img.config}
		time.Sleep(time.Minute)
		for _, path := range paths {
			require.Equal(t, 200, w.get(path).Code, "that another node pulled it from there does")
		}
	})
}

func TestExemptRepositoriesAreServedToAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	img := w.origin.pushImage(t, "team/app", "v1", "x")
	w.origin.Protect("team/app", alice)
	require.Equal(t, allServed, w.pull(img, "team/app", alice))
	w.rule.Authorization.Mode = policy.Exempt
	require.Equal(t, allServed, w.pull(img, "team/app", ""))
	w.rule.TagTTL = 0
	require.Equal(t, allServed, w.pull(img, "team/app", ""),
		"also when the registry would not tell them what the tag is now")
}

func TestARegistryThatHangsIsWaitedForOnceInAPull(t *testing.T) {
	t.Parallel()
	for sentence, elsewhere := range map[string]bool{
		"where this node has pulled the image": false, "where only another node has": true,
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tags := new(tagMemory)
				set := func(o *registry.Options) { o.Tags = tags }
				w := newWorld(t, set)
				img := w.origin.pushImage(t, "team/app", "v1", "x")
				require.Equal(t, allServed, w.pull(img, "team/app", ""))
				if elsewhere {
					w.stop()
					all := []digest.Digest{img.manifest, img.config, img.layer}
					w.memory, w.witness = disk{}, &word{public: true, proven: all, held: all}
					w.restart(set)
				}
				w.origin.Handle(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
				time.Sleep(24 * time.Hour)
				start := time.Now()
				require.Equal(t, allServed, w.pull(img, "team/app", ""))
				require.LessOrEqual(t, time.Since(start), gate.Hedge, "the first request waits, and no other")
			})
		})
	}
}

func TestWhileTheRegistryIsDown(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		offline policy.UnreachableMode
		private bool
		by      string
		want    map[int]int
	}{
		"known credentials are let on":                         {policy.Remembered, true, alice, allServed},
		"unknown ones are not":                                 {policy.Remembered, true, bob, allLater},
		"who shows none is asked for them, as by the registry": {policy.Remembered, true, "", allRefused},
		"a public repository stays public":                     {policy.Remembered, false, "", allServed},
		"also to those with credentials":                       {policy.Remembered, false, bob, allServed},
		"nobody is let on where the policy denies it":          {policy.Deny, true, alice, allLater},
		"not even to a public repository":                      {policy.Deny, false, "", allLater},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				tags := new(tagMemory)
				set := func(o *registry.Options) { o.Tags = tags }
				w := newWorld(t, set)
				w.rule.Authorization.OnUnreachable = tc.offline
				img := w.origin.pushImage(t, "team/app", "v1", "x")
				if tc.private {
					w.origin.Protect("team/app", alice)
					require.Equal(t, allRefused, w.pull(img, "team/app", ""))
					require.Equal(t, allServed, w.pull(img, "team/app", alice))
				} else {
					require.Equal(t, allServed, w.pull(img, "team/app", ""))
				}
				w.origin.SetDown(true)
				time.Sleep(24 * time.Hour)
				require.Equal(t, tc.want, w.pull(img, "team/app", tc.by))

				if tc.by != "" || !tc.private { // the challenge is not kept across restarts
					w.stop()
					w.restart(set)
					require.Equal(t, tc.want, w.pull(img, "team/app", tc.by), "also after a restart")
				}
				w.stop()
				for _, saved := range w.memory {
					require.NotContains(t, string(saved), "Basic")
					require.NotContains(t, string(saved), "team/app")
				}
			})
		})
	}
}

func TestAnImageThatTheRegistryLostIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		img := w.origin.pushImage(t, "team/app", "v1", "x")
		require.Equal(t, allServed, w.pull(img, "team/app", ""))
		w.origin.Handle(http.NotFoundHandler()) // many registries say so to whom may not know
		time.Sleep(24 * time.Hour)
		require.Equal(t, allMissing, w.pull(img, "team/app", ""))
	})
}

func TestADamagedMemoryIsForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.origin.pushImage(t, "team/app", "v1", "x")
	for _, damage := range []string{"", "\x02", "\x01" + strings.Repeat("x", 100),
		"\x02" + strings.Repeat("\xff", 100), "\x03" + strings.Repeat("\xff", 100)} {
		w.memory = disk{"gate": []byte(damage)}
		w.restart()
		require.Equal(t, 200, w.get("/v2/team/app/manifests/v1").Code)
	}
}
