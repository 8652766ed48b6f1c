package hub

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/test/hubtest"
)

// longModel has a listing that is too long to be handed on with its record.
func longModel(h *hubtest.Hub) (commit string) {
	files := map[string]hubtest.File{}
	for i := range 1500 {
		files[fmt.Sprintf("%s/%d.json", strings.Repeat("a", 200), i)] = hubtest.File{Data: hubtest.Text("{}")}
	}
	files["config.json"] = hubtest.File{Data: hubtest.Text(`{"model_type":"shoal"}`)}
	return h.Repo("models", "org/m").Commit("main", files)
}

// opens counts what is opened, and holds it up.
type opens struct {
	Fetcher
	n    atomic.Int32
	wait chan struct{}
}

func (o *opens) Open(ctx context.Context, req content.Request) (content.Reader, error) {
	o.n.Add(1)
	<-o.wait
	return o.Fetcher.Open(ctx, req)
}

func TestList_AListingIsMadeOnceForAllWhoAsk(t *testing.T) {
	t.Parallel()
	const many = 20
	h := newHub(t)
	commit := longModel(h)
	a := newAgent(t, h, "", nil)
	tree := "/api/models/org/m/tree/" + commit
	require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, tree).status)
	a.listings.Remove(treeKey(repo{"models", "org/m"}, commit))
	count := &opens{Fetcher: a.opts.Fetcher, wait: make(chan struct{})}
	a.opts.Fetcher = count
	var in, out sync.WaitGroup
	codes := make([]int, many)
	for i := range codes {
		in.Add(1)
		out.Go(func() {
			req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, tree, nil)
			req.RemoteAddr = "127.0.0.1:1"
			w := httptest.NewRecorder()
			in.Done()
			a.ServeHTTP(w, req)
			codes[i] = w.Code
		})
	}
	in.Wait()
	close(count.wait)
	out.Wait()
	require.Equal(t, slices.Repeat([]int{http.StatusOK}, many), codes)
	require.EqualValues(t, 1, count.n.Load())
}

func TestFind_WhereThereIsNoRoomForAListingNoFileIsAskedForAlone(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	commit := longModel(h)
	a := newAgent(t, h, "", nil)
	a.roomy(60 << 20)
	file := func() got { return a.ask(t, http.MethodGet, resolve("org/m", commit, "config.json")) }
	require.Equal(t, http.StatusOK, file().status)
	a.listings.Remove(treeKey(repo{"models", "org/m"}, commit))
	h.Forget()
	leave := a.fillSmall(t)
	full := file()
	require.Equal(t, http.StatusServiceUnavailable, full.status)
	require.Equal(t, room.ErrFull.Error(), full.header.Get("X-Error-Message"))
	require.Empty(t, h.Requests())
	leave()
	require.Equal(t, http.StatusOK, file().status)
}

func TestList_APageThatOneCallerIsRefusedIsNotMissingForOthers(t *testing.T) {
	t.Parallel()
	for status, forAll := range map[int]bool{
		http.StatusUnauthorized: false, http.StatusForbidden: false, http.StatusNotFound: true, http.StatusGone: true,
	} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			h.PageSize = 3
			h.Token("alice")
			h.Token("bob")
			_, commit, _ := model(h, "org/m")
			var asked atomic.Int32
			h.SetOdd(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.URL.Query().Has("cursor") && r.Header.Get("Authorization") != "Bearer bob" {
					if r.Header.Get("Authorization") != "" { // as anyone the front asks after that
						asked.Add(1)
					}
					w.WriteHeader(status)
					return
				}
				next.ServeHTTP(w, r)
			})
			a := newAgent(t, h, "", nil)
			tree := func(token string) got {
				return a.ask(t, http.MethodGet, "/api/models/org/m/tree/"+commit, bearer(token)...)
			}
			for range 2 {
				refused := tree("alice")
				require.Equal(t, http.StatusBadGateway, refused.status)
				require.Contains(t, refused.header.Get("X-Error-Message"), "no such page")
			}
			require.EqualValues(t, 1, asked.Load(), "who was refused asks no more for a while")
			if forAll {
				require.Equal(t, http.StatusBadGateway, tree("bob").status)
			} else {
				require.Equal(t, http.StatusOK, tree("bob").status)
			}
		})
	}
}
