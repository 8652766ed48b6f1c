package hub

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/room"
	"github.com/shoal-cache/shoal/node/internal/room/roomtest"
)

// roomy has the front's documents be of so many bytes together, and its questions of 24 MiB.
func (a *agent) roomy(documents int64) {
	a.opts.Documents, a.opts.Questions = room.New(documents), room.New(24<<20)
	a.memo.room = a.opts.Documents
}

// fillSmall takes what a room of 60 MiB has for documents that are not large, until leave is called.
func (a *agent) fillSmall(t *testing.T) (leave func()) {
	t.Helper()
	var ends []func()
	for range 10 {
		ctx, end := a.opts.Documents.Lease(t.Context())
		require.NoError(t, room.Hold(ctx, 2<<20))
		ends = append(ends, end)
	}
	return func() {
		for _, end := range ends {
			end()
		}
	}
}

// dial sends a request and reads no answer. said gets the first line of that once it is there.
func dial(t *testing.T, base, request string, body io.Reader, said func(string)) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(base, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = io.WriteString(c, request)
	require.NoError(t, err)
	go func() { _, _ = io.Copy(c, body) }() // the front has closed it, if it fails
	if said != nil {
		go func() {
			line, err := bufio.NewReader(c).ReadString('\n')
			if err == nil {
				said(line)
			}
		}()
	}
	return c
}

func TestMemory_QuestionsThatLackTheirEndTakeABoundedRoomTogether(t *testing.T) { //nolint:paralleltest // it weighs the process
	const many, long = 50, maxQuestion - 1000
	h := newHub(t)
	_, commit, _ := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	a.roomy(64 << 20)
	ask := func(n int) got {
		question := `{"paths":["config.json"],"expand":false` + strings.Repeat(" ", n) + `}`
		return ask(t, a.URL, http.MethodPost, "/api/models/org/m/paths-info/"+commit, strings.NewReader(question),
			"Content-Type", "application/json")
	}
	require.Equal(t, http.StatusOK, ask(0).status)
	before := roomtest.Live()
	var refused atomic.Int32
	conns := make([]net.Conn, many)
	for i := range conns {
		head := fmt.Sprintf("POST /api/models/org/m/paths-info/main HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", long)
		conns[i] = dial(t, a.URL, head, io.LimitReader(zeros{}, long-1), func(line string) {
			if strings.Contains(line, strconv.Itoa(http.StatusServiceUnavailable)) {
				refused.Add(1)
			}
		})
	}
	require.Eventually(t, func() bool { return refused.Load() >= many-2 }, patience, 10*time.Millisecond)
	t.Logf("%d questions of %d MiB without their end take %d MiB", many, long>>20, (roomtest.Live()-before)>>20)
	require.Less(t, roomtest.Live()-before, int64(40<<20))
	require.Equal(t, http.StatusOK, ask(10<<10).status, "who asks as one does is answered meanwhile")
	late := ask(1 << 20)
	require.Equal(t, http.StatusServiceUnavailable, late.status)
	require.Equal(t, "2", late.header.Get("Retry-After"))
	require.Equal(t, room.ErrFull.Error(), late.header.Get("X-Error-Message"))
	require.False(t, a.origin.down(), "which says nothing of the hub")
	for _, c := range conns {
		_ = c.Close()
	}
	require.Eventually(t, func() bool { return ask(1<<20).status == http.StatusOK }, patience, 10*time.Millisecond)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestMemory_DocumentsThatNobodyTakesHaveABoundedRoomTogether(t *testing.T) { //nolint:paralleltest // it weighs the process
	const many, long = 40, 6 << 20
	h := newHub(t)
	_, commit, _ := model(h, "org/m")
	h.SetOdd(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !r.URL.Query().Has("x") {
			next.ServeHTTP(w, r)
			return
		}
		rewritten(w, fmt.Sprintf(`{"id":"org/m","sha":%q,"x":%q,"xetEnabled":true,"long":%q}`, commit,
			r.URL.Query().Get("x"), bytes.Repeat([]byte("a"), long)))
	})
	a := newAgent(t, h, "", nil)
	a.roomy(60 << 20)
	require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, "/api/models/org/m").status)
	before := roomtest.Live()
	conns := make([]net.Conn, many)
	for i := range conns {
		conns[i] = dial(t, a.URL, fmt.Sprintf("GET /api/models/org/m/revision/main?x=%d HTTP/1.1\r\nHost: x\r\n\r\n", i),
			strings.NewReader(""), nil)
	}
	most := int64(0)
	for began := time.Now(); time.Since(began) < 2*room.Patience; { // until all are in, or have been told
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most = max(most, int64(m.HeapAlloc)-before)
		require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, "/api/models/org/m").status, "what is small comes at once")
	}
	t.Logf("%d documents of %d MiB that nobody reads take %d MiB, and %d at most with what is not collected yet", many,
		long>>20, (roomtest.Live()-before)>>20, most>>20)
	require.Eventually(t, func() bool { // the room, and what is being read at the moment
		return roomtest.Live()-before < many*long/2
	}, patience, time.Second)
	for _, c := range conns {
		_ = c.Close()
	}
	require.Eventually(t, func() bool {
		return a.ask(t, http.MethodGet, "/api/models/org/m/revision/main?x=last").status == http.StatusOK
	}, patience, 10*time.Millisecond)
}

func TestMemory_AFullRoomMakesNoDocumentForgotten(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, _ := model(h, "org/m")
	var down atomic.Bool
	h.SetOdd(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		if down.Load() {
			panic(http.ErrAbortHandler)
		}
		rewritten(w, fmt.Sprintf(`{"id":"org/m","sha":%q,"long":%q}`, commit, bytes.Repeat([]byte("a"), 500<<10)))
	})
	a := newAgent(t, h, "", nil)
	a.roomy(60 << 20)
	ask := func() got { return a.ask(t, http.MethodGet, "/api/models/org/m/revision/"+commit) }
	require.Equal(t, http.StatusOK, ask().status)
	down.Store(true)
	leave := a.fillSmall(t)
	full := ask()
	require.Equal(t, http.StatusServiceUnavailable, full.status)
	require.Equal(t, room.ErrFull.Error(), full.header.Get("X-Error-Message"))
	leave()
	require.Equal(t, http.StatusOK, ask().status)
}

func rewritten(w http.ResponseWriter, doc string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(doc)))
	_, _ = io.WriteString(w, doc) // the caller has gone, if it fails
}
