package hub

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/test/hubtest"
)

const tokenizer = "tokenizer.json"

// gitWorld is an agent and a hub whose file in git stops halfway until it may go on.
type gitWorld struct {
	*agent
	hub  *hubtest.Hub
	data []byte
	rest []byte // the second half, as the hub gives it
	goOn func()
}

func newGitWorld(t *testing.T) *gitWorld {
	t.Helper()
	h := newHub(t)
	file := hubtest.Random(11, 6<<20)
	h.Repo("models", "org/m").Commit("main", map[string]hubtest.File{tokenizer: {Data: file}})
	w := &gitWorld{agent: newAgent(t, h, "", nil), hub: h, data: read(t, file)}
	w.rest = w.data[len(w.data)/2:]
	going := make(chan struct{})
	w.goOn = sync.OnceFunc(func() { close(going) })
	t.Cleanup(w.goOn) // before the hub is closed
	h.SetOdd(func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.HasPrefix(r.URL.Path, "/api/resolve-cache/") || r.Method != http.MethodGet {
			next.ServeHTTP(rw, r)
			return
		}
		half := len(w.data) / 2
		_, _ = rw.Write(w.data[:half]) // the caller has gone, if it fails
		_ = http.NewResponseController(rw).Flush()
		<-going
		_, _ = rw.Write(w.rest)
	})
	return w
}

// get begins to read the file.
func (w *gitWorld) get(t *testing.T) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.URL+resolve("org/m", "main", tokenizer), nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// requireRest reads an answer, which must be the file.
func (w *gitWorld) requireRest(t *testing.T, resp *http.Response) {
	t.Helper()
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%.200q", got)
	require.True(t, bytes.Equal(w.data, got))
}

// requireNothingHeld requires that the bytes of no file are in memory, or will not be once their readers have left.
func (w *gitWorld) requireNothingHeld(t *testing.T) {
	t.Helper()
	require.NoError(t, w.gitRoom.Acquire(t.Context(), maxGitBytes))
	w.gitRoom.Release(maxGitBytes)
}

func TestGit_ManyWhoReadAFileAtOnceHoldNoCopiesAndAskOnce(t *testing.T) {
	t.Parallel()
	const readers = 24
	w := newGitWorld(t)
	require.Greater(t, int64(readers*len(w.data)), int64(maxGitBytes), "there is no memory for a copy each")
	var asking sync.WaitGroup
	answers := make([]*http.Response, readers)
	for i := range answers { // the headers come at once, and none reads on
		asking.Go(func() { answers[i] = w.get(t) })
	}
	asking.Wait()
	w.goOn()
	w.requireRest(t, answers[0])
	w.requireNothingHeld(t)
	for _, resp := range append(answers[1:], w.get(t)) {
		w.requireRest(t, resp)
	}
	n := 0
	for _, r := range w.hub.Requests() {
		if r.Method == http.MethodGet && strings.Contains(r.Path, "/resolve/") && r.Range == "" {
			n++
		}
	}
	require.Equal(t, 1, n)
}

func TestGit_AFileThatHasNoRoomIsGiven(t *testing.T) {
	t.Parallel()
	w := newGitWorld(t)
	w.goOn()
	require.NoError(t, w.store.SetLimits(store.Limits{Capacity: 3 << 20}))
	for range 2 {
		w.requireRest(t, w.get(t))
		w.requireNothingHeld(t)
	}
}

// Python gives up after 10 s without a byte, and a file of 9 MB takes longer than that by a slow link.
func TestGit_AFileThatTakesLongKeepsItsClient(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]bool{"a right one": false, "a wrong one, which does not end well": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newGitWorld(t)
			if wrong {
				w.rest = bytes.Clone(w.rest)
				w.rest[0] ^= 1
			}
			resp := w.get(t)
			first := make([]byte, 1)
			_, err := io.ReadFull(resp.Body, first)
			require.NoError(t, err, "a byte comes before the file does")
			w.goOn()
			rest, err := io.ReadAll(resp.Body)
			if wrong {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.True(t, bytes.Equal(w.data, append(first, rest...)))
		})
	}
}
