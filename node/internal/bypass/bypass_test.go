package bypass

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func image(repository, digest string) Image { return Image{Repository: repository, Digest: digest} }

func TestWatch_NamesImagesThatCamePastTheAgent(t *testing.T) {
	t.Parallel()
	start := time.Unix(0, 0)
	at := func(minutes int) time.Time { return start.Add(time.Duration(minutes) * time.Minute) }
	old, alpine, redis, private := image("docker.io/library/old", "a"), image("docker.io/library/alpine",
		"b"), image("docker.io/library/redis", "c"), image("private.example/app", "d")
	w := New(func(registry string) bool { return registry != "private.example" })
	require.Empty(t, w.Look([]Image{old}, at(0)), "what is there already may have come at any time")
	require.Empty(t, w.Look([]Image{old, image("docker.io/library/slow", "s")}, at(2)), "it may have been on its way")

	w.Asked("docker.io/library/alpine", at(4))
	require.Empty(t, w.Look([]Image{old, alpine}, at(5)), "it was asked for")
	require.Empty(t, w.Look([]Image{old, alpine, private}, at(6)), "the mirror is not for its registry")

	require.Equal(t, []Image{redis}, w.Look([]Image{old, alpine, redis}, at(7)))
	require.Equal(t, []Image{redis}, w.Look([]Image{old, alpine, redis}, at(8)), "it is told until something changes")
	w.Asked("quay.io/other", at(9))
	require.Equal(t, []Image{redis}, w.Look([]Image{old, alpine, redis}, at(9)),
		"another registry says nothing about it")
	w.Asked("docker.io/library/busybox", at(10))
	require.Empty(t, w.Look([]Image{old, alpine, redis}, at(10)), "the runtime has found its way")

	again := image("docker.io/library/alpine", "e")
	require.Equal(t, []Image{again}, w.Look([]Image{old, alpine, redis, again}, at(80)),
		"it was asked for too long ago")
	require.Empty(t, w.Look([]Image{old}, at(81)), "nobody has to look for an image that is gone")
}

func TestHandler_NotesWhatIsAskedFor(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"/v2/library/alpine/manifests/3?ns=docker.io":       "docker.io/library/alpine",
		"/v2/library/alpine/blobs/sha256:ab?ns=docker.io":   "docker.io/library/alpine",
		"/v2/docker.io/library/alpine/manifests/3":          "docker.io/library/alpine",
		"/v2/a/manifests/b/manifests/c?ns=registry.ex:5000": "registry.ex:5000/a/manifests/b",
		"/v2/":              "",
		"/metrics":          "",
		"/v2/a/tags/list":   "",
		"/v2//manifests/x":  "",
		"/v2/manifests/one": "",
	} {
		reached := false
		w := New(func(string) bool { return true })
		w.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true })).
			ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, url, nil))
		require.True(t, reached)
		var got string
		for _, key := range w.asked.Keys() {
			got = key
		}
		require.Equal(t, want, got, url)
	}
}

func TestWatch_AnOldPullOfANameThatAnotherEndsInHidesNoNewOne(t *testing.T) {
	t.Parallel()
	at := func(minutes int) time.Time { return time.Unix(0, 0).Add(time.Duration(minutes) * time.Minute) }
	w := New(func(string) bool { return true })
	require.Empty(t, w.Look(nil, at(0)))
	w.Asked("library/alpine", at(10))
	w.Asked("docker.io/library/alpine", at(130))
	require.Empty(t, w.Look([]Image{image("docker.io/library/alpine", "a")}, at(131)), "it was asked for just now")
}

// A client that sends no ns, as CRI-O with a default registry, is heard too.
func TestWatch_TakesARequestWithoutTheRegistry(t *testing.T) {
	t.Parallel()
	w := New(func(string) bool { return true })
	now := time.Unix(0, 0)
	w.Look(nil, now)
	now = now.Add(time.Hour)
	w.Asked("library/alpine", now)
	require.Empty(t, w.Look([]Image{image("docker.io/library/alpine", "a")}, now))
}

// Whoever asks chooses the name, and thousands are remembered.
func TestWatch_ANameThatIsTooLongForARepositoryIsNotRemembered(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]int{200: 1, 10_000: 0} {
		w := New(func(string) bool { return true })
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet,
			"/v2/"+strings.Repeat("a", n)+"/manifests/v1?ns=docker.io", nil)
		w.Handler(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), r)
		require.Equal(t, want, w.asked.Len(), n)
	}
}
