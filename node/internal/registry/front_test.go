package registry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/registry"
	"github.com/shoal-cache/shoal/test/registrytest"
)

const (
	alice = "Basic YWxpY2U6c2VjcmV0"
	bob   = "Basic Ym9iOnNlY3JldA=="
)

func TestARealClientPullsThroughTheFront(t *testing.T) {
	t.Parallel()
	for name_, tc := range map[string]struct{ defaultRegistry, prefix string }{
		"with the registry in the path": {"", images + "/"},
		"with a configured registry":    {images, ""},
	} {
		t.Run(name_, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(o *registry.Options) { o.DefaultRegistry = tc.defaultRegistry })
			w.origin.pushImage(t, "team/app", "v1", "x")
			server := httptest.NewServer(w.front)
			defer server.Close()
			ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/" + tc.prefix + "team/app:v1")
			require.NoError(t, err)
			img, err := remote.Image(ref)
			require.NoError(t, err)
			layers, err := img.Layers()
			require.NoError(t, err)
			require.Len(t, layers, 1)
			rc, err := layers[0].Compressed()
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, rc)
			require.NoError(t, err)
			require.NoError(t, rc.Close())
			http.DefaultClient.CloseIdleConnections()
			remote.DefaultTransport.(*http.Transport).CloseIdleConnections()
		})
	}
}

func TestManifestsAreAnsweredWithWhatTheRegistrySaysOfThem(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	img := w.origin.pushImage(t, "team/app", "v1", "x")
	for _, path := range []string{
		"/v2/team/app/manifests/v1", "/v2/team/app/manifests/" + img.manifest.String(),
		"/v2/team/app/manifests/v1?ns=" + images,
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			rep := w.do(method, path)
			require.Equal(t, 200, rep.Code, rep.Body)
			require.Equal(t, img.manifest.String(), rep.Header().Get("Docker-Content-Digest"))
			require.Equal(t, v1.MediaTypeImageManifest, rep.Header().Get("Content-Type"))
			require.Equal(t, len(img.raw), int(rep.Result().ContentLength))
			if method == http.MethodGet {
				require.Equal(t, img.raw, rep.Body.String())
			} else {
				require.Empty(t, rep.Body.String())
			}
		}
	}
	rep := w.get("/v2/team/app/manifests/v1", "If-None-Match", `"`+img.manifest.String()+`"`)
	require.Equal(t, 304, rep.Code)
	require.Empty(t, rep.Body.String())
}

func TestTheMediaTypeOfAManifestIsNeverGuessedWrong(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ body, declared, want string }{
		"an artifact that says what it is": {`{"mediaType":"application/vnd.oci.artifact.manifest.v1+json"}`,
			"application/vnd.acme+json", "application/vnd.oci.artifact.manifest.v1+json"},
		"an OCI index that leaves it out": {`{"schemaVersion":2,"manifests":[]}`, v1.MediaTypeImageIndex,
			v1.MediaTypeImageIndex},
		"an OCI manifest that leaves it out":    {`{"schemaVersion":2,"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[]}`, v1.MediaTypeImageManifest, v1.MediaTypeImageManifest},
		"something that says nothing of itself": {`{"a":1}`, "application/vnd.acme.thing+json", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			d := w.origin.PushManifest(t, "team/app", "v1", tc.declared, tc.body)
			for _, ref := range []string{d.String(), "v1"} {
				rep := w.get("/v2/team/app/manifests/" + ref)
				if tc.want == "" {
					require.NotEqual(t, 200, rep.Code,
						"rather no answer than a wrong one: the runtime goes to the registry")
					continue
				}
				require.Equal(t, 200, rep.Code)
				require.Equal(t, tc.want, rep.Header().Get("Content-Type"))
			}
		})
	}
}

func TestBlobsAndTheirRanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	data := []byte("0123456789")
	d := w.origin.Add(data)
	etag := `"` + d.String() + `"`
	path := "/v2/team/app/blobs/" + d.String()
	for name, tc := range map[string]struct {
		header []string
		status int
		span   string
		body   string
	}{
		"no range":                {nil, 200, "", "0123456789"},
		"a range":                 {[]string{"Range", "bytes=2-4"}, 206, "bytes 2-4/10", "234"},
		"an open range":           {[]string{"Range", "bytes=7-"}, 206, "bytes 7-9/10", "789"},
		"the whole as a range":    {[]string{"Range", "bytes=0-"}, 206, "bytes 0-9/10", "0123456789"},
		"a suffix":                {[]string{"Range", "bytes=-3"}, 206, "bytes 7-9/10", "789"},
		"a suffix longer than it": {[]string{"Range", "bytes=-30"}, 206, "bytes 0-9/10", "0123456789"},
		"a range past the end":    {[]string{"Range", "bytes=8-99"}, 206, "bytes 8-9/10", "89"},
		"a range up to any number": {[]string{"Range", "bytes=8-99999999999999999999999"}, 206, "bytes 8-9/10",
			"89"},
		"a range outside":              {[]string{"Range", "bytes=10-"}, 416, "bytes */10", ""},
		"an empty suffix":              {[]string{"Range", "bytes=-0"}, 416, "bytes */10", ""},
		"several ranges":               {[]string{"Range", "bytes=0-1,4-5"}, 200, "", "0123456789"},
		"a range backwards":            {[]string{"Range", "bytes=5-2"}, 200, "", "0123456789"},
		"another unit":                 {[]string{"Range", "lines=1-2"}, 200, "", "0123456789"},
		"rubbish":                      {[]string{"Range", "bytes=a-b"}, 200, "", "0123456789"},
		"if-range of this blob":        {[]string{"Range", "bytes=2-4", "If-Range", etag}, 206, "bytes 2-4/10", "234"},
		"if-range of something else":   {[]string{"Range", "bytes=2-4", "If-Range", `"x"`}, 200, "", "0123456789"},
		"if-none-match of this blob":   {[]string{"If-None-Match", etag}, 304, "", ""},
		"if-none-match of other blobs": {[]string{"If-None-Match", `"x", "y"`}, 200, "", "0123456789"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rep := w.get(path, tc.header...)
			require.Equal(t, tc.status, rep.Code)
			require.Equal(t, tc.span, rep.Header().Get("Content-Range"))
			if tc.status < 300 {
				require.Equal(t, tc.body, rep.Body.String())
				require.EqualValues(t, len(tc.body), rep.Result().ContentLength)
				require.Equal(t, "bytes", rep.Header().Get("Accept-Ranges"))
				require.Equal(t, "application/octet-stream", rep.Header().Get("Content-Type"))
				require.Equal(t, d.String(), rep.Header().Get("Docker-Content-Digest"))
			}
		})
	}
	t.Run("HEAD has no ranges", func(t *testing.T) {
		t.Parallel()
		rep := w.do(http.MethodHead, path, "Range", "bytes=2-4")
		require.Equal(t, 200, rep.Code)
		require.EqualValues(t, 10, rep.Result().ContentLength)
		require.Empty(t, rep.Body.String())
	})
	t.Run("an empty blob has no ranges either", func(t *testing.T) {
		t.Parallel()
		empty := digest.FromString("")
		w := newWorld(t)
		w.rule.Authorization.Mode = policy.Exempt
		w.fetcher.held[empty] = nil
		rep := w.get("/v2/team/app/blobs/"+empty.String(), "Range", "bytes=0-")
		require.Equal(t, 200, rep.Code)
		require.Equal(t, "0", rep.Header().Get("Content-Length"))
	})
}

func TestWhoReadsTheWholeOfABlobIsReadAheadOf(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		method string
		header []string
		ahead  bool
	}{
		"no range":                 {http.MethodGet, nil, true},
		"the whole as a range":     {http.MethodGet, []string{"Range", "bytes=0-"}, true},
		"a range":                  {http.MethodGet, []string{"Range", "bytes=0-4"}, false},
		"the rest":                 {http.MethodGet, []string{"Range", "bytes=5-"}, false},
		"its existence":            {http.MethodHead, nil, false},
		"whether it still is that": {http.MethodGet, []string{"If-None-Match", "*"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			d := w.origin.Add([]byte("0123456789"))
			require.Less(t, w.do(tc.method, "/v2/team/app/blobs/"+d.String(), tc.header...).Code, 400)
			require.Equal(t, tc.ahead, len(w.fetcher.ahead) == 1)
		})
	}
}

// Whatever the state of the world, HEAD must promise what GET gives, or the runtime loops.
func TestHeadAndGetAgree(t *testing.T) {
	t.Parallel()
	missing := digest.FromString("missing").String()
	for name, set := range map[string]func(*world){
		"cold":                     func(*world) {},
		"with the registry down":   func(w *world) { w.origin.SetDown(true) },
		"for a private repository": func(w *world) { w.origin.Protect("team/app", alice) },
		"when the policy says no":  func(w *world) { w.rule.Mode = policy.Bypass },
		"from peers only":          func(w *world) { w.rule.Mode = policy.PeersOnly },
		"for everybody":            func(w *world) { w.rule.Authorization.Mode = policy.Exempt },
		"for everybody, while down": func(w *world) {
			w.rule.Authorization.Mode = policy.Exempt
			w.origin.SetDown(true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				for _, warm := range []bool{false, true} {
					w := newWorld(t)
					img := w.origin.pushImage(t, "team/app", "v1", "x")
					if warm {
						require.Equal(t, 200, w.get("/v2/team/app/manifests/v1").Code)
						require.Equal(t, 200, w.get("/v2/team/app/blobs/"+img.layer.String()).Code)
						time.Sleep(time.Hour)
					}
					set(w)
					for _, path := range []string{
						"/v2/", "/v2/team/app/manifests/v1", "/v2/team/app/manifests/v2",
						"/v2/team/app/manifests/" + img.manifest.String(), "/v2/team/app/manifests/" + missing,
						"/v2/team/app/blobs/" + img.layer.String(), "/v2/team/app/blobs/" + missing,
						"/v2/team/app/tags/list", "/v2/team/app/referrers/" + img.manifest.String(),
						"/v2/team/app/blobs/sha256:0", "/v2/UPPER/blobs/" + missing, "/v2/nothing", "/",
					} {
						head, get := w.do(http.MethodHead, path), w.get(path)
						require.Equal(t, head.Code, get.Code, "%s, warm: %t", path, warm)
						if get.Code >= 400 { // the document may name the method
							head.Header().Del("Content-Length")
							get.Header().Del("Content-Length")
						}
						require.Equal(t, head.Header(), get.Header(), "%s, warm: %t", path, warm)
						require.Empty(t, head.Body.String())
						if get.Code >= 400 {
							var doc struct {
								Errors []struct{ Code, Message string }
							}
							require.NoError(t, json.Unmarshal(get.Body.Bytes(), &doc), "%s: %s", path, get.Body)
							require.NotEmpty(t, doc.Errors[0].Code)
						}
					}
				}
			})
		})
	}
}

// Whoever may read a repository without being asked may have a blob from peers for which the registry would refuse him.
func TestHeadOfABlobThatOnlyPeersHaveAgreesWithGet(t *testing.T) {
	t.Parallel()
	for name, refusal := range map[string]*content.UpstreamError{
		"the registry refuses": {Status: 401}, "the registry has lost it": {Status: 404},
	} {
		for reachable, status := range map[bool]int{true: 200, false: refusal.Status} {
			t.Run(fmt.Sprintf("%s, peers have it: %t", name, reachable), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, func(o *registry.Options) {
					o.Fetcher = &distant{refusal: refusal, reachable: reachable}
				})
				w.rule.Authorization.Mode = policy.Exempt
				path := "/v2/team/app/blobs/" + digest.FromString("any").String()
				head, get := w.do(http.MethodHead, path), w.get(path)
				require.Equal(t, status, get.Code)
				require.Equal(t, status, head.Code)
				require.Equal(t, get.Header(), head.Header())
				require.Empty(t, head.Body.String())
			})
		}
	}
}

// distant is a Fetcher of a blob that the registry does not give, and peers may. Its size is known from a manifest.
type distant struct {
	refusal   error
	reachable bool
}

func (d *distant) Open(context.Context, content.Request) (content.Reader, error) {
	if d.reachable {
		return held("0123456789"), nil
	}
	a := newArriving(10)
	a.send("", d.refusal)
	return a, nil
}

func (d *distant) Stat(context.Context, content.Request) (int64, string, error) {
	return 0, "", d.refusal
}

func (d *distant) OpenPast(context.Context, content.Request) (content.Reader, error) {
	return nil, d.refusal
}

func (*distant) ReadAhead(content.Request)               {}
func (*distant) Progress(content.Request) (int64, int64) { return 0, 0 }

// What containerd gets from a mirror with a status below 400 is content to it, or (300 to 399) the end of the pull.
func TestAnAnswerThatIsNeitherSuccessNorErrorIsNotPassedOn(t *testing.T) {
	t.Parallel()
	for _, status := range []int{201, 204, 300, 304, 416} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.origin.Handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(status)
				}))
				for _, path := range []string{
					"/v2/team/app/manifests/v1", "/v2/team/app/blobs/" + digest.FromString("any").String(),
					"/v2/team/app/tags/list",
				} {
					require.Equal(t, 502, w.do(http.MethodHead, path).Code, path)
					rep := w.get(path)
					require.Equal(t, 502, rep.Code, path)
					require.Contains(t, rep.Body.String(), fmt.Sprintf("upstream answered %d", status))
				}
			})
		})
	}
}

func TestATagIsNotPromisedWhenItsManifestCannotBeHad(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *registry.Options) {
		o.Fetcher = &broken{Fetcher: o.Fetcher, err: content.ErrNotFound}
	})
	w.origin.pushImage(t, "team/app", "v1", "x")
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		require.Equal(t, 404, w.do(method, "/v2/team/app/manifests/v1").Code)
	}
}

// broken is a Fetcher that knows of content but cannot open it.
type broken struct {
	registry.Fetcher
	err error
}

func (b *broken) Open(context.Context, content.Request) (content.Reader, error) { return nil, b.err }

func TestRequestsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *registry.Options) { o.DefaultRegistry = "" })
	zeros := "sha256:" + strings.Repeat("0", 64)
	for name, tc := range map[string]struct {
		method, path string
		status       int
		code         string
	}{
		"a push of a blob":     {"POST", "/v2/a/b/blobs/uploads/?ns=images.test", 405, "UNSUPPORTED"},
		"a push of a manifest": {"PUT", "/v2/a/b/manifests/v1?ns=images.test", 405, "UNSUPPORTED"},
		"a deletion":           {"DELETE", "/v2/a/b/blobs/" + zeros, 405, "UNSUPPORTED"},
		"a malformed digest":   {"GET", "/v2/a/b/blobs/sha256:0?ns=images.test", 400, "DIGEST_INVALID"},
		"a digest of unknown kind": {"GET", "/v2/a/b/blobs/md5:d41d8cd98f00b204e9800998ecf8427e?ns=images.test", 400,
			"DIGEST_INVALID"},
		"a malformed tag":             {"GET", "/v2/a/b/manifests/-v1?ns=images.test", 400, "TAG_INVALID"},
		"a malformed name":            {"GET", "/v2/a//b/manifests/v1?ns=images.test", 400, "NAME_INVALID"},
		"a name that climbs":          {"GET", "/v2/a/../b/manifests/v1?ns=images.test", 400, "NAME_INVALID"},
		"a malformed registry":        {"GET", "/v2/a/b/manifests/v1?ns=images.test/x", 400, "NAME_INVALID"},
		"a registry with credentials": {"GET", "/v2/a/b/manifests/v1?ns=u:p@images.test", 400, "NAME_INVALID"},
		"no registry":                 {"GET", "/v2/a/b/manifests/v1", 404, "NAME_UNKNOWN"},
		"another API":                 {"GET", "/v1/search", 404, "UNSUPPORTED"},
		"no path":                     {"GET", "/", 404, "UNSUPPORTED"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rep := w.do(tc.method, tc.path)
			require.Equal(t, tc.status, rep.Code)
			require.Contains(t, rep.Body.String(), `"code":"`+tc.code+`"`)
			require.Equal(t, "application/json", rep.Header().Get("Content-Type"))
			if tc.status == 405 {
				require.Equal(t, "GET, HEAD", rep.Header().Get("Allow"))
			}
		})
	}
}

func TestAFrontThatIsItsOwnUpstreamSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.origin.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.front.ServeHTTP(rw, r) }))
	rep := w.get("/v2/team/app/manifests/v1")
	require.Equal(t, http.StatusLoopDetected, rep.Code)
}

func TestBypassedRepositoriesAreLeftToTheRuntime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.rule.Mode = policy.Bypass
	img := w.origin.pushImage(t, "team/app", "v1", "x")
	require.Equal(t, 404, w.get("/v2/team/app/manifests/v1").Code)
	require.Equal(t, 404, w.get("/v2/team/app/blobs/"+img.layer.String()).Code)
	require.Empty(t, w.origin.Requests())
}

func TestPeersOnlyTakesNoContentFromTheRegistry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.rule.Mode = policy.PeersOnly
	img := w.origin.pushImage(t, "team/app", "v1", "x")
	require.Equal(t, 404, w.get("/v2/team/app/blobs/"+img.layer.String()).Code)
	w.fetcher.held[img.layer] = img.layerBytes
	require.Equal(t, 200, w.get("/v2/team/app/blobs/"+img.layer.String()).Code)
	gets := slices.DeleteFunc(w.origin.Requests(), func(r string) bool { return !strings.HasPrefix(r, "GET") })
	require.Len(t, gets, 1, "but for the sample that proves that the registry has it")
}

// A registry's word that it has some content opens nothing that others have. As a rule its callers get its own bytes
// then, and here they get none.
func TestPeersOnly_ARegistryThatOnlyClaimsContentIsGivenNothingOfPeers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.rule.Mode = policy.PeersOnly
	img := w.origin.pushImage(t, "team/app", "v1", "x")
	w.fetcher.peers = map[digest.Digest][]byte{img.layer: img.layerBytes, img.manifest: []byte(img.raw)}
	w.fetcher.slow = true
	w.witness = &word{held: []digest.Digest{img.layer, img.manifest}}
	w.restart()
	require.Equal(t, 404, w.get("/v2/team/app/blobs/"+img.layer.String()).Code)
	require.Equal(t, 404, w.get("/v2/team/app/manifests/"+img.manifest.String()).Code)
	w.fetcher.slow = false
	require.Equal(t, 200, w.get("/v2/team/app/blobs/"+img.layer.String()).Code)
	require.Equal(t, 200, w.get("/v2/team/app/manifests/"+img.manifest.String()).Code)
}

func TestMisled_ByOtherNodesIsNoReasonToSendACallerAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	img := w.origin.pushImage(t, "team/app", "v1", "x")
	for _, path := range []string{"manifests/" + img.manifest.String(), "blobs/" + img.layer.String()} {
		w.fetcher.misled = content.MisledAtMost
		require.Equal(t, 200, w.get("/v2/team/app/"+path).Code, path)
		require.Negative(t, w.fetcher.misled)
	}
	w.fetcher.short = true
	part := w.get("/v2/team/app/blobs/"+img.layer.String(), "Range", "bytes=10-19")
	require.Equal(t, 206, part.Code, "though others name a size below that")
	require.Equal(t, img.layerBytes[10:20], part.Body.Bytes())
}

func TestBaseTellsHowToAuthenticate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	require.Equal(t, 200, w.get("/v2/").Code)
	w.origin.Handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", registrytest.Challenge)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	rep := w.get("/v2/")
	require.Equal(t, 401, rep.Code)
	require.Equal(t, registrytest.Challenge, rep.Header().Get("WWW-Authenticate"))
	w.origin.SetDown(true)
	require.Equal(t, 200, w.get("/v2/").Code, "what is cached can be pulled without the registry")
}

func TestTagListsAndReferrersArePassedOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		img := w.origin.pushImage(t, "team/app", "v1", "x")
		rep := w.get("/v2/team/app/tags/list?ns=" + images)
		require.Equal(t, 200, rep.Code)
		require.JSONEq(t, `{"name":"team/app","tags":["v1"]}`, rep.Body.String())
		require.Equal(t, []string{"GET /v2/team/app/tags/list"}, w.origin.Requests())

		w.get("/v2/team/app/tags/list")
		require.Empty(t, w.origin.Requests(), "kept for as long as a tag")
		time.Sleep(w.rule.TagTTL)
		w.origin.pushImage(t, "team/app", "v2", "y")
		require.Contains(t, w.get("/v2/team/app/tags/list").Body.String(), "v2")

		rep = w.get("/v2/team/app/referrers/" + img.manifest.String())
		require.Equal(t, 200, rep.Code)
		require.Equal(t, v1.MediaTypeImageIndex, rep.Header().Get("Content-Type"))

		require.Empty(t, rep.Header().Values("Warning"))
		require.Empty(t, rep.Header().Values("Age"))

		w.origin.SetDown(true)
		time.Sleep(time.Hour)
		for _, path := range []string{"referrers/" + img.manifest.String(), "tags/list"} {
			rep = w.get("/v2/team/app/" + path)
			require.Equal(t, 200, rep.Code, "known to a known caller")
			age, err := strconv.Atoi(rep.Header().Get("Age"))
			require.NoError(t, err)
			require.InDelta(t, 3600, age, 30, "the registry was waited for")
			require.Equal(t, fmt.Sprintf(`110 shoal "read %d s ago; the registry does not answer"`, age),
				rep.Header().Get("Warning"), path)
		}
	})
}

func TestTheNextPageOfAListIsFoundThroughTheFront(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *registry.Options) { o.DefaultRegistry = "" })
	w.origin.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("last") == "" {
			w.Header().Set("Link", `</prefix/v2/team/app/tags/list?last=a&n=1>; rel="next"`)
		}
		_, _ = io.WriteString(w, `{"tags":["`+r.URL.Query().Get("last")+`"]}`)
	}))
	for path, want := range map[string]string{
		"/v2/team/app/tags/list?n=1&ns=images.test": `</v2/team/app/tags/list?last=a&n=1&ns=images.test>; rel="next"`,
		"/v2/images.test/team/app/tags/list?n=1":    `</v2/images.test/team/app/tags/list?last=a&n=1>; rel="next"`,
	} {
		rep := w.get(path)
		require.Equal(t, want, rep.Header().Get("Link"))
		next, _, _ := strings.Cut(strings.TrimPrefix(want, "<"), ">")
		rep = w.get(next)
		require.JSONEq(t, `{"tags":["a"]}`, rep.Body.String())
		require.Empty(t, rep.Header().Get("Link"))
	}
}

func TestTagsFollowTheRegistry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const path = "/v2/team/app/manifests/v1"
		old := w.origin.pushImage(t, "team/app", "v1", "old").manifest.String()
		require.Equal(t, old, w.get(path).Header().Get("Docker-Content-Digest"))
		fresh := w.origin.pushImage(t, "team/app", "v1", "new").manifest.String()
		w.origin.Requests()
		require.Equal(t, old, w.get(path).Header().Get("Docker-Content-Digest"), "within the TTL")
		require.Empty(t, w.origin.Requests())
		time.Sleep(w.rule.TagTTL)
		require.Equal(t, fresh, w.get(path).Header().Get("Docker-Content-Digest"), "after it")
		w.rule.TagTTL = 0
		w.origin.Requests()
		w.get(path)
		require.Equal(t, []string{"HEAD /v2/team/app/manifests/v1"}, w.origin.Requests(),
			"revalidated without its body")
	})
}

func TestTagsOutliveTheRegistry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		memory, others := new(tagMemory), new(word)
		w := newWorld(t)
		w.witness = others
		w.restart(func(o *registry.Options) { o.Tags = memory })
		const path = "/v2/team/app/manifests/v1"
		img := w.origin.pushImage(t, "team/app", "v1", "x")
		require.Equal(t, 200, w.get(path).Code)
		w.origin.SetDown(true)
		time.Sleep(time.Hour)
		start := time.Now()
		old := w.get(path)
		require.Equal(t, img.raw, old.Body.String())
		require.Less(t, time.Since(start), 5*time.Second)
		age, err := strconv.Atoi(old.Header().Get("Age"))
		require.NoError(t, err, "who asks is told how old the answer is")
		require.InDelta(t, time.Hour.Seconds(), age, 5)
		require.Contains(t, old.Header().Get("Warning"), "the registry does not answer")
		require.NoError(t, testutil.GatherAndCompare(w.metrics, strings.NewReader(`
# HELP shoal_tags_stale_total Tags answered from memory because the registry could not be asked.
# TYPE shoal_tags_stale_total counter
shoal_tags_stale_total 1
`), "shoal_tags_stale_total"))
		require.Equal(t, 503, w.get("/v2/team/app/manifests/never-seen").Code)

		newer := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
		d := digest.FromString(newer)
		memory.Remember(t.Context(), content.Repository{Registry: images, Name: "team/app"}, "v1",
			v1.Descriptor{Digest: d, Size: int64(len(newer))})
		w.fetcher.held[d] = []byte(newer)
		require.Equal(t, 503, w.get(path).Code, "a tag proves nothing")
		others.proven = []digest.Digest{d}
		time.Sleep(time.Minute)
		require.Equal(t, newer, w.get(path).Body.String(), "the newest answer that the swarm knows")

		w.origin.SetDown(false)
		time.Sleep(time.Hour)
		last := w.get(path)
		require.Equal(t, img.raw, last.Body.String(), "the registry has the last word")
		require.Empty(t, last.Header().Get("Age")+last.Header().Get("Warning"))
	})
}

// For one answer the registry names another digest than that of the manifest that it has.
func TestATag_OfWhichTheRegistryWasWrongOnceIsRightInTheSameRequest(t *testing.T) {
	t.Parallel()
	const path = "/v2/team/app/manifests/v1"
	for name, wrong := range map[string]func(image) digest.Digest{
		"it has no such manifest": func(image) digest.Digest { return digest.FromString("nothing") },
		"it is no manifest":       func(img image) digest.Digest { return img.config },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				memory := new(tagMemory)
				w := newWorld(t, func(o *registry.Options) { o.Tags = memory })
				img := w.origin.pushImage(t, "team/app", "v1", "x")
				registryItself, lies := w.origin.Front(), 1
				w.origin.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					if r.URL.Path != path || r.Method != http.MethodHead || lies == 0 {
						registryItself.ServeHTTP(rw, r)
						return
					}
					lies--
					rw.Header().Set("Content-Type", v1.MediaTypeImageManifest)
					rw.Header().Set("Content-Length", "2")
					rw.Header().Set("Docker-Content-Digest", wrong(img).String())
				}))
				for range 2 {
					got := w.get(path)
					require.Equal(t, 200, got.Code, got.Body)
					require.Equal(t, img.raw, got.Body.String())
				}
				desc, _, ok := memory.Recall(t.Context(), repository("team/app"), "v1")
				require.True(t, ok)
				require.Equal(t, img.manifest, desc.Digest)

				// Where it is wrong for longer the caller is told so, and nobody hears of it.
				lies = 2
				time.Sleep(w.rule.TagTTL)
				w.origin.Requests()
				require.Equal(t, 404, w.get(path).Code)
				asked := slices.DeleteFunc(w.origin.Requests(), func(r string) bool { return r != "HEAD "+path })
				require.Len(t, asked, 2)
				desc, _, _ = memory.Recall(t.Context(), repository("team/app"), "v1")
				require.Equal(t, img.manifest, desc.Digest)
				require.Equal(t, img.raw, w.get(path).Body.String(), "at once")
			})
		})
	}
}

func TestATagThatIsGoneIsGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(o *registry.Options) { o.Tags = new(tagMemory) })
		w.origin.pushImage(t, "team/app", "v1", "x")
		require.Equal(t, 200, w.get("/v2/team/app/manifests/v1").Code)
		w.origin.Handle(http.NotFoundHandler())
		time.Sleep(time.Hour)
		require.Equal(t, 404, w.get("/v2/team/app/manifests/v1").Code)
	})
}

func TestDrainWaitsForRunningRequests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		w := newWorld(t, func(o *registry.Options) {
			o.Fetcher = opener(func(context.Context, content.Request) (content.Reader, error) {
				<-release
				return held("x"), nil
			})
		})
		w.rule.Authorization.Mode = policy.Exempt
		path := "/v2/team/app/blobs/" + digest.FromString("x").String()
		answered := make(chan reply)
		go func() { answered <- w.get(path) }()
		synctest.Wait()

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, w.front.Drain(ctx), context.DeadlineExceeded)
		require.Equal(t, 503, w.get(path).Code)
		close(release)
		require.NoError(t, w.front.Drain(t.Context()))
		require.Equal(t, "x", (<-answered).Body.String())
	})
}

// Where other nodes were wrong about a manifest the registry is asked, once. Where the registry itself is wrong it is
// not asked for the same once more.
func TestManifest_OfWhichOthersWereWrongIsReadByTheRegistrysWord(t *testing.T) {
	t.Parallel()
	mismatch := fmt.Errorf("fetch: %w", content.ErrDigestMismatch)
	for name, c := range map[string]struct {
		err          error
		opened, code int
	}{
		"others":       {fmt.Errorf("%w: %w", mismatch, content.ErrMisled), 2, http.StatusOK},
		"the registry": {mismatch, 1, http.StatusServiceUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opened := 0
			data := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
			w := newWorld(t, func(o *registry.Options) {
				o.Fetcher = opener(func(context.Context, content.Request) (content.Reader, error) {
					if opened++; opened == 1 {
						return nil, c.err
					}
					return held(data), nil
				})
			})
			w.rule.Authorization.Mode = policy.Exempt
			require.Equal(t, c.code, w.get("/v2/team/app/manifests/"+digest.FromString(data).String()).Code)
			require.Equal(t, c.opened, opened)
		})
	}
}

// opener is a Fetcher of what the function opens.
type opener func(context.Context, content.Request) (content.Reader, error)

func (f opener) Open(ctx context.Context, req content.Request) (content.Reader, error) {
	return f(ctx, req)
}

func (f opener) OpenPast(ctx context.Context, req content.Request) (content.Reader, error) {
	return f(ctx, req)
}

func (opener) Progress(content.Request) (int64, int64) { return 0, 0 }

func (opener) ReadAhead(content.Request) {}

func (f opener) Stat(ctx context.Context, req content.Request) (int64, string, error) {
	r, err := f(ctx, req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = r.Close() }()
	return r.Size(), "", nil
}

// here is a reader of what the node held before it was asked.
type here struct{ held }

func (here) Held() bool { return true }

func TestCounters_AHitIsAnAnswerOfWhatTheNodeHeld(t *testing.T) {
	t.Parallel()
	for what, tc := range map[string]struct {
		held  bool
		calls func(w *world, img image)
		want  registry.Counters
	}{
		"a cold pull": {false, func(w *world, img image) {
			w.get("/v2/team/app/manifests/" + img.manifest.String())
			w.get("/v2/team/app/blobs/" + img.layer.String())
		}, registry.Counters{Misses: 2}},
		"a warm one": {true, func(w *world, img image) {
			w.get("/v2/team/app/manifests/" + img.manifest.String())
			w.get("/v2/team/app/blobs/" + img.layer.String())
		}, registry.Counters{Hits: 2}},
		"a range": {true, func(w *world, img image) {
			w.get("/v2/team/app/blobs/"+img.layer.String(), "Range", "bytes=0-0")
		}, registry.Counters{Hits: 1}},
		"a question for a size": {true, func(w *world, img image) {
			w.do(http.MethodHead, "/v2/team/app/blobs/"+img.layer.String())
		}, registry.Counters{}},
		"what the caller has": {true, func(w *world, img image) {
			w.get("/v2/team/app/manifests/"+img.manifest.String(), "If-None-Match", `"`+img.manifest.String()+`"`)
		}, registry.Counters{}},
		"a refusal": {true, func(w *world, _ image) { w.get("/v2/team/app/manifests/v2") }, registry.Counters{}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			img := w.origin.pushImage(t, "team/app", "v1", "x")
			w.restart(func(o *registry.Options) {
				o.Fetcher = opener(func(ctx context.Context, req content.Request) (content.Reader, error) {
					r, err := w.fetcher.Open(ctx, req)
					if err != nil || !tc.held {
						return r, err
					}
					return here{r.(held)}, nil
				})
			})
			tc.calls(w, img)
			require.Equal(t, tc.want, w.front.Counters())
			require.NoError(t, testutil.GatherAndCompare(w.metrics, strings.NewReader(fmt.Sprintf(`
# HELP shoal_registry_answers_total Requests for manifests and blobs, or ranges of them, that were answered: from this node's disk (local), or with bytes that peers or a registry sent (elsewhere).
# TYPE shoal_registry_answers_total counter
shoal_registry_answers_total{source="elsewhere"} %d
shoal_registry_answers_total{source="local"} %d
`, tc.want.Misses, tc.want.Hits)), "shoal_registry_answers_total"))
		})
	}
}

func TestRequestsAreCountedByKindAndCode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	img := w.origin.pushImage(t, "team/app", "v1", "x")
	w.get("/v2/team/app/manifests/v1")
	w.get("/v2/team/app/manifests/v2")
	w.get("/v2/team/app/blobs/"+img.layer.String(), "Range", "bytes=0-0")
	w.do(http.MethodPut, "/v2/team/app/manifests/v1")
	require.NoError(t, testutil.GatherAndCompare(w.metrics, strings.NewReader(`
# HELP shoal_registry_requests_total Requests to the registry front by kind and status code; "aborted": the answer began and could not be ended.
# TYPE shoal_registry_requests_total counter
shoal_registry_requests_total{code="200",kind="manifest"} 1
shoal_registry_requests_total{code="206",kind="blob"} 1
shoal_registry_requests_total{code="404",kind="manifest"} 1
shoal_registry_requests_total{code="405",kind="unknown"} 1
`), "shoal_registry_requests_total"))
	for _, name := range []string{"shoal_registry_request_duration_seconds", "shoal_registry_first_byte_seconds"} {
		n, err := testutil.GatherAndCount(w.metrics, name)
		require.NoError(t, err)
		require.Equal(t, 4, n, name)
	}
}
