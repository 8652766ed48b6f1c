package registry_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/registry"
)

// told is all that a caller sees of an answer.
type told struct {
	status  int
	header  string
	body    string
	aborted bool
}

// A digest and a size tell that somebody on this node runs something, and what.
func TestGate_WhoIsNotAcceptedIsToldNothingOfWhatIsHeld(t *testing.T) {
	t.Parallel()
	layer := strings.Repeat("private", 1000)
	blob := digest.FromString(layer)
	size := func(n int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", fmt.Sprint(n)) }
	}
	status := func(code int, body string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, body, code) }
	}
	named := func(answer func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Docker-Content-Digest", blob.String())
			answer(w, r)
		}
	}
	bytes := func(data string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(data))
		}
	}
	for name, says := range map[string]struct {
		head, get func(http.ResponseWriter, *http.Request)
		accepted  bool // for what else the repository has
	}{
		"has no such blob":                        {head: status(404, ""), get: status(404, "none")},
		"has no such blob for whom it accepts":    {head: status(404, ""), get: status(404, "none"), accepted: true},
		"refuses the caller":                      {head: status(403, ""), get: status(403, "no")},
		"refuses the blob to whom it accepts":     {head: status(403, ""), get: status(403, "no"), accepted: true},
		"fails":                                   {head: status(500, ""), get: status(500, "oops")},
		"claims another size":                     {head: size(1), get: bytes("x")},
		"claims another size for whom it accepts": {head: size(1), get: bytes("x"), accepted: true},
		"claims the size and gives other bytes":   {head: size(len(layer)), get: bytes(strings.ToUpper(layer))},
		"claims the size and fails for the bytes": {head: size(len(layer)), get: status(500, "oops")},
		"claims the size, and not for whom it accepts": {head: size(len(layer)), get: status(404, "none"),
			accepted: true},
		"answers with a page":               {head: bytes("please log in"), get: status(200, "please log in")},
		"names the digest and another size": {head: named(size(1)), get: named(bytes("x"))},
		"names the digest and gives other bytes": {head: named(size(len(layer))),
			get: named(bytes(strings.ToUpper(layer)))},
		"names the digest and fails for the bytes": {head: named(size(len(layer))), get: status(500, "oops")},
		"names the digest and refuses the bytes":   {head: named(size(len(layer))), get: status(403, "no")},
		"names the digest of what it has not":      {head: named(size(len(layer))), get: status(404, "none")},
	} {
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			t.Run("a registry that "+name+": "+method, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					answer := func(held bool) told {
						w := newWorld(t, func(o *registry.Options) { o.Tags = new(tagMemory) })
						defer w.stop()
						w.origin.pushImage(t, "evil/app", "v1", "e")
						inner := w.origin.Front()
						w.origin.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
							switch own := strings.HasSuffix(r.URL.Path, "/blobs/"+blob.String()); {
							case own && r.Method == http.MethodHead:
								says.head(rw, r)
							case own:
								says.get(rw, r)
							default:
								inner.ServeHTTP(rw, r)
							}
						}))
						if says.accepted {
							require.Equal(t, 200, w.get("/v2/evil/app/manifests/v1").Code)
						}
						if held {
							w.fetcher.held[blob] = []byte(layer)
						}
						r := w.do(method, "/v2/evil/app/blobs/"+blob.String())
						return told{r.Code, fmt.Sprint(r.Header()), r.Body.String(), r.aborted}
					}
					require.Equal(t, answer(false), answer(true))
				})
			})
		}
	}
}

// In an outage, whether a caller may read is not answered by what is there to be read.
func TestGate_AnOutageTellsWhoIsNotAcceptedNothingOfWhatWasPulled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		img := w.origin.pushImage(t, "team/app", "v1", "x")
		w.origin.Protect("team/app", alice)
		require.Equal(t, allRefused, w.pull(img, "team/app", ""))
		require.Equal(t, allServed, w.pull(img, "team/app", alice))
		w.origin.SetDown(true)
		other := digest.FromString("what nobody has pulled")
		for _, authorization := range []string{"", bob} {
			answers := map[told]int{}
			for _, d := range []digest.Digest{img.layer, other} {
				r := w.get("/v2/team/app/blobs/"+d.String(), "Authorization", authorization)
				answers[told{r.Code, r.Header().Get("WWW-Authenticate"), "", r.aborted}]++
			}
			require.Len(t, answers, 1)
		}
		require.Equal(t, 200, w.get("/v2/team/app/blobs/"+img.layer.String(), "Authorization", alice).Code)
	})
}
