package hub

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/content/contenttest"
	"github.com/shoal-cache/shoal/node/internal/reply"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/test/hubtest"
)

func TestLater_IsAReader(t *testing.T) {
	t.Parallel()
	data := []byte("0123456789")
	contenttest.Reader(t, data, func(*testing.T) content.Reader {
		return newLater(int64(len(data)), func() (content.Reader, error) { return inMemory{data: data}, nil })
	})
	contenttest.Reader(t, data, func(*testing.T) content.Reader { return inMemory{data: data} })
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

// Whoever lists a digest and a size without an end would learn by the warning whether the node holds the file.
func TestFile_WhoOnlyListsADigestIsNotToldThatTheFileIsHere(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	secret := read(t, hubtest.Random(1, 2<<20))
	h.Repo("models", "evil/fake").Commit("main", map[string]hubtest.File{
		large: {Data: hubtest.Random(2, 5<<20), LFS: true, ClaimedSHA256: digest.FromBytes(secret).Encoded()},
	})
	a := newAgent(t, h, "", nil)
	require.NoError(t, a.store.SetLimits(store.Limits{Capacity: 4 << 20}))
	warning := func() string {
		return a.ask(t, http.MethodHead, resolve("evil/fake", "main", large)).header.Get("X-Hf-Warning")
	}
	before := warning()
	require.Contains(t, before, "store.capacity")
	require.NoError(t, a.store.Put(t.Context(), digest.FromBytes(secret), bytes.NewReader(secret), int64(len(secret))))
	require.Equal(t, before, warning())
}

// What has no room is nowhere to be compared with. So whoever only lists another's file is given what his own
// repository has, however the other's passes by meanwhile.
func TestFile_OneWithoutRoomIsSharedWithNobodyWhoOnlyListsIt(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	const size = 40 << 20
	secret := hubtest.Random(9, size)
	private := h.Repo("models", "org/private")
	private.Commit("main", map[string]hubtest.File{"model.bin": {Data: secret, LFS: true}})
	sum := sha256.Sum256(read(t, secret))
	own := hubtest.Random(10, size)
	h.Repo("models", "org/liar").Commit("main", map[string]hubtest.File{"model.bin": {
		Data: own, LFS: true, ClaimedSHA256: hex.EncodeToString(sum[:]),
	}})
	a := newAgent(t, h, "", nil)
	require.NoError(t, a.store.SetLimits(store.Limits{Capacity: 32 << 20}))

	at := a.URL + resolve("org/private", "main", "model.bin")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	got := make([]byte, 3<<20)
	_, err = io.ReadFull(resp.Body, got)
	require.NoError(t, err)

	stolen := a.ask(t, http.MethodGet, resolve("org/liar", "main", "model.bin"))
	require.Error(t, stolen.err, "what the liar's repository has is not what it lists")
	secretBytes, ownBytes := read(t, secret), read(t, own)
	require.Less(t, len(stolen.body), size)
	require.False(t, bytes.HasPrefix(secretBytes, stolen.body[:min(len(stolen.body), 1<<20)]) && len(stolen.body) > 0,
		"none of the private bytes are given")
	require.True(t, bytes.HasPrefix(ownBytes, stolen.body), "but those of the repository itself")

	rest, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.True(t, bytes.Equal(secretBytes, append(got, rest...)))
}
