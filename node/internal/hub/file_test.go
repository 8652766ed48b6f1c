package hub

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/content/contenttest"
	"github.com/shoal-cache/shoal/node/internal/reply"
	"github.com/shoal-cache/shoal/node/internal/store"
)

func TestLater_IsAReader(t *testing.T) {
	t.Parallel()
	data := []byte("0123456789")
	contenttest.Reader(t, data, func(*testing.T) content.Reader {
		return newLater(int64(len(data)), func() ([]byte, error) { return data, nil })
	})
}

func TestFile_OneThatHuggingfaceHubTakesByXetAloneSaysWhatToSet(t *testing.T) {
	t.Parallel()
	l, err := newListing([]byte(`[{"type": "file", "path": "big", "oid": "1", "size": 60000000000, "xetHash": "aa",
		"lfs": {"oid": "` + strings.Repeat("a", 64) + `", "size": 60000000000}}]`))
	require.NoError(t, err)
	w := httptest.NewRecorder()
	x := &exchange{Exchange: reply.New(w, httptest.NewRequestWithContext(t.Context(), http.MethodHead, "/", nil)),
		route: route{repo: repo{"models", "org/m"}}}
	new(Front).describe(x, l.byPath["big"], strings.Repeat("c", 40))
	require.Equal(t, "aa", w.Header().Get("X-Xet-Hash"))
	require.Contains(t, w.Header().Get("X-Hf-Warning"), "HF_HUB_DISABLE_XET")
}

func TestFile_OneThatHasNoRoomIsGivenAndIsSaidToBe(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, _, files := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	require.NoError(t, a.store.SetLimits(store.Limits{Capacity: 4 << 20}))
	for path, f := range files {
		g := a.ask(t, http.MethodGet, resolve("org/m", "main", path))
		require.Equal(t, http.StatusOK, g.status, path)
		require.NoError(t, g.err, path)
		require.True(t, bytes.Equal(read(t, f.Data), g.body), path)
		if path == large {
			require.Contains(t, g.header.Get("X-Hf-Warning"), "store.capacity", path)
		} else {
			require.Empty(t, g.header.Get("X-Hf-Warning"), path)
		}
	}
	require.InDelta(t, 1, testutil.ToFloat64(a.metrics.noRoom), 0)
}
