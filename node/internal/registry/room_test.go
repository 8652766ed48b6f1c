package registry_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/manifest"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/registry"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/room/roomtest"
)

// longManifest is one of about size bytes.
func longManifest(img image, size int) string {
	layer := fmt.Sprintf(`{"digest":%q}`, img.layer)
	head := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":12},"layers":[`,
		v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, img.config)
	return head + strings.TrimSuffix(strings.Repeat(layer+",", (size-len(head)-2)/(len(layer)+1)), ",") + "]}"
}

func TestMemory_ManifestsThatNobodyTakesHaveABoundedRoomTogether(t *testing.T) { //nolint:paralleltest // it weighs the process
	const many = 40
	w := newWorld(t, func(o *registry.Options) { o.Documents = room.New(96 << 20) })
	w.rule.Authorization.Mode = policy.Exempt
	img := w.origin.pushImage(t, "team/app", "v1", "x")
	long := w.origin.PushManifest(t, "team/app", "long", v1.MediaTypeImageManifest, longManifest(img, manifest.MaxSize))
	server := httptest.NewServer(w.front)
	defer server.Close()
	get := func(reference string) int {
		resp, err := server.Client().Get(server.URL + "/v2/team/app/manifests/" + reference)
		require.NoError(t, err)
		defer func() { _ = resp.Body.Close() }()
		_, err = io.Copy(io.Discard, resp.Body)
		require.NoError(t, err)
		if resp.StatusCode == http.StatusServiceUnavailable {
			require.Equal(t, "2", resp.Header.Get("Retry-After"))
		}
		return resp.StatusCode
	}
	require.Equal(t, http.StatusOK, get(long.String()))
	require.Equal(t, http.StatusOK, get(img.manifest.String()))
	before := roomtest.Live()
	conns := make([]net.Conn, many)
	for i := range conns {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(server.URL, "http://"))
		require.NoError(t, err)
		defer func() { _ = c.Close() }()
		_, err = fmt.Fprintf(c, "GET /v2/team/app/manifests/%s HTTP/1.1\r\nHost: x\r\n\r\n", long)
		require.NoError(t, err)
		conns[i] = c
	}
	for began := time.Now(); time.Since(began) < 2*room.Patience; {
		require.Equal(t, http.StatusOK, get(img.manifest.String()), "an ordinary image is pulled meanwhile")
	}
	held := roomtest.Live() - before
	t.Logf("%d manifests of %d MiB that nobody reads take %d MiB", many, manifest.MaxSize>>20, held>>20)
	require.Less(t, held, int64(80<<20))
	require.Equal(t, http.StatusServiceUnavailable, get(long.String()), "and the runtime goes to the registry")
	for _, c := range conns {
		_ = c.Close()
	}
	require.Eventually(t, func() bool { return get(long.String()) == http.StatusOK }, time.Minute, 10*time.Millisecond)
}

func TestMemory_AFullRoomIsNoRegistryThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		path    string
		timeout time.Duration
	}{
		"a list":                           {"tags/list", gate.Hedge / 2},
		"a tag of a registry without HEAD": {"manifests/v1", gate.Hedge / 2},
		"one that is waited for longer":    {"manifests/v1", gate.Timeout(content.DefaultFirstByte)},
	} {
		path := test.path
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				documents := room.New(30 << 20)
				w := newWorld(t, func(o *registry.Options) {
					o.Documents, o.UpstreamTimeout = documents, test.timeout
				})
				long := longManifest(image{layer: digest.FromString("x"), config: digest.FromString("y")}, 100<<10)
				asked := 0
				w.origin.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					asked++
					switch {
					case r.Method == http.MethodHead:
						w.WriteHeader(http.StatusMethodNotAllowed)
					case path == "tags/list":
						_, _ = fmt.Fprintf(w, `{"tags":[%q]}`, strings.Repeat("v", 100<<10))
					default:
						w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
						_, _ = io.WriteString(w, long)
					}
				}))
				require.Equal(t, http.StatusOK, w.get("/v2/team/app/"+path).Code)
				time.Sleep(w.rule.TagTTL)
				var leave []func()
				for range 5 {
					ctx, end := documents.Lease(t.Context())
					require.NoError(t, room.Hold(ctx, 2<<20))
					leave = append(leave, end)
				}
				full := w.get("/v2/team/app/" + path)
				require.Equal(t, http.StatusServiceUnavailable, full.Code)
				require.Contains(t, full.Body.String(), room.ErrFull.Error())
				require.Equal(t, "2", full.Header().Get("Retry-After"))
				for _, end := range leave {
					end()
				}
				asked = 0
				require.Equal(t, http.StatusOK, w.get("/v2/team/app/"+path).Code)
				require.NotZero(t, asked, "it is asked as before")
			})
		})
	}
}

func TestMemory_ABurstOfOrdinaryPullsIsRefusedNothing(t *testing.T) {
	t.Parallel()
	const pulls = 40 // what comes to one node at one time, and few enough for the race detector on a busy machine
	// A fourth of the memory that the agent has of a container of 512 MiB, and the least that it has.
	for _, documents := range []int64{115 << 20, 48 << 20} {
		t.Run(fmt.Sprintf("%d MiB", documents>>20), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(o *registry.Options) { o.Documents = room.New(documents) })
			w.rule.Authorization.Mode = policy.Exempt
			w.origin.pushImage(t, "team/app", "v1", "x")
			img := w.origin.pushImage(t, "team/app", "v2", "y")
			large := longManifest(img, 200<<10) // of a model of a thousand files
			w.origin.PushManifest(t, "team/app", "large", v1.MediaTypeImageManifest, large)
			server := httptest.NewServer(w.front)
			defer server.Close()
			var all sync.WaitGroup
			codes := make([]int, pulls)
			for i := range codes {
				all.Go(func() {
					tag := []string{"v1", "v2", "v1", "large"}[i%4]
					resp, err := server.Client().Get(server.URL + "/v2/team/app/manifests/" + tag)
					if err != nil {
						return
					}
					defer func() { _ = resp.Body.Close() }()
					if _, err := io.Copy(io.Discard, resp.Body); err == nil {
						codes[i] = resp.StatusCode
					}
				})
			}
			all.Wait()
			for i, code := range codes {
				require.Equal(t, http.StatusOK, code, i)
			}
		})
	}
}

func TestMemory_WhoFillsTheRoomKeepsNobodyElseOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		documents := room.New(30 << 20)
		w := newWorld(t, func(o *registry.Options) { o.Documents = documents })
		w.rule.Authorization.Mode = policy.Exempt
		img := w.origin.pushImage(t, "team/app", "v1", "x")
		long := w.origin.PushManifest(t, "team/app", "long", v1.MediaTypeImageManifest, longManifest(img, 200<<10))
		get := func(remote string) int {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/team/app/manifests/"+long.String(), nil)
			r.RemoteAddr = remote
			rec := httptest.NewRecorder()
			w.front.ServeHTTP(rec, r)
			return rec.Code
		}
		require.Equal(t, http.StatusOK, get("10.0.0.1:1"))
		greedy := room.For(t.Context(), "10.0.0.1")
		for range 3 {
			ctx, end := documents.Lease(greedy)
			defer end()
			require.NoError(t, room.Hold(ctx, 2<<20))
		}
		require.Equal(t, http.StatusServiceUnavailable, get("10.0.0.1:2"))
		require.Equal(t, http.StatusOK, get("10.0.0.2:1"))
		require.Equal(t, http.StatusOK, get("127.0.0.1:1"), "nor from the runtime")
	})
}
