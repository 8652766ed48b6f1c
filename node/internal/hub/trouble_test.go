package hub

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/reply"
	"github.com/shoal-cache/shoal/node/internal/upstream"
	"github.com/shoal-cache/shoal/test/hubtest"
)

const large = "model-00001-of-00002.safetensors"

func TestTrouble_WhatTheHubsCDNDoesNeverCutsAClient(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]hubtest.Trouble{
		"answers are cut":             {CutAfter: 700 << 10, Cuts: 4},
		"there are no ranges":         {NoRange: true},
		"there is nothing but ranges": {RangeOnly: true},
		"the first byte comes late":   {Stall: 800 * time.Millisecond},
		"the URLs were void at once":  {Expired: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			_, _, files := model(h, "org/m")
			a := newAgent(t, h, "", nil)
			require.Equal(t, http.StatusPartialContent,
				a.ask(t, http.MethodGet, resolve("org/m", "main", large), "Range", "bytes=0-0").status)
			h.Set(trouble)
			g := a.ask(t, http.MethodGet, resolve("org/m", "main", large))
			require.Equal(t, http.StatusOK, g.status)
			require.NoError(t, g.err)
			require.True(t, bytes.Equal(read(t, files[large].Data), g.body))
		})
	}
}

func TestTrouble_AHubThatKnowsNoHEADIsAskedByGET(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]hubtest.Trouble{
		"with listings":    {NoHead: true},
		"without listings": {NoHead: true, NoTree: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			_, _, files := model(h, "org/m")
			h.Set(trouble)
			a := newAgent(t, h, "", nil)
			for _, path := range []string{large, "config.json"} {
				g := a.ask(t, http.MethodHead, resolve("org/m", "main", path))
				require.Equal(t, http.StatusOK, g.status, path)
				require.Equal(t, fmt.Sprint(files[path].Data.Size()), g.header.Get("Content-Length"), path)
				g = a.ask(t, http.MethodGet, resolve("org/m", "main", path))
				require.NoError(t, g.err, path)
				require.True(t, bytes.Equal(read(t, files[path].Data), g.body), path)
			}
		})
	}
}

func TestTrouble_ASameHostThatServesItsFilesItselfDoes(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.SameHost = true
	_, _, files := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	g := a.ask(t, http.MethodGet, resolve("org/m", "main", large))
	require.True(t, bytes.Equal(read(t, files[large].Data), g.body))
}

func TestTrouble_WrongBytesNeverEndAsIfTheyWereRight(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, _, files := model(h, "org/m")
	h.Set(hubtest.Trouble{Wrong: true})
	a := newAgent(t, h, "", nil)
	g := a.ask(t, http.MethodGet, resolve("org/m", "main", large))
	require.True(t, g.err != nil || g.status >= 500, "%d", g.status)

	data := read(t, files[large].Data)
	h.Set(hubtest.Trouble{})
	g = a.ask(t, http.MethodGet, resolve("org/m", "main", large))
	require.True(t, bytes.Equal(data, g.body))
}

// Nobody but the front checks what is put together of many ranges.
func TestTrouble_NoRangeWithTheEndOfAWrongFileEnds(t *testing.T) {
	t.Parallel()
	const part = 1<<20 - 3
	for name, order := range map[string]func(offsets []int){
		"from the start":  func([]int) {},
		"the last before": slices.Reverse[[]int],
		"in any order":    func(o []int) { rand.Shuffle(len(o), func(i, j int) { o[i], o[j] = o[j], o[i] }) },
	} {
		for how, atOnce := range map[string]int{"one by one": 1, "three at once": 3, "all at once": 100} {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				h := newHub(t)
				_, _, files := model(h, "org/m")
				h.Set(hubtest.Trouble{Wrong: true})
				a := newAgent(t, h, "", nil)
				size := int(files[large].Data.Size())
				var offsets []int
				for off := 0; off < size; off += part {
					offsets = append(offsets, off)
				}
				order(offsets)
				slots := make(chan struct{}, atOnce)
				var wg sync.WaitGroup
				for _, off := range offsets {
					slots <- struct{}{}
					wg.Go(func() {
						defer func() { <-slots }()
						for range 2 { // a client tries again
							g := a.ask(t, http.MethodGet, resolve("org/m", "main", large), "Range",
								byteRange(off, off+part-1))
							if off+part >= size && g.err == nil && g.status == http.StatusPartialContent {
								t.Errorf("the range with the end of a wrong file ended")
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

func TestStream_BytesThatStayAwayAndURLsThatExpireMeanwhileNeverCutAClient(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, _, files := model(h, "org/m")
	h.Set(hubtest.Trouble{StopAfter: 2<<20 + 700})
	a := newAgent(t, h, "", nil)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.URL+resolve("org/m", "main", large), nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	var got []byte
	var drips int
	buf := make([]byte, 64<<10)
	for err == nil {
		var n int
		n, err = resp.Body.Read(buf)
		if n == 1 { // nothing else comes byte by byte
			if drips++; drips == 3 {
				h.Set(hubtest.Trouble{Expired: true})
			}
		}
		got = append(got, buf[:n]...)
	}
	require.ErrorIs(t, err, io.EOF)
	require.True(t, bytes.Equal(read(t, files[large].Data), got))
	require.GreaterOrEqual(t, drips, 3, "clients give up after 10 s without a byte")
}

// All nodes read on where they were, and share what comes: none of them is worse than another.
func TestTrouble_AHubThatStandsStillForAllForLongIsReadOnceAllTheSame(t *testing.T) {
	t.Parallel()
	const size, lease = 16 << 20, 2 * time.Second
	h := newHub(t)
	h.Repo("models", "org/m").Commit("main",
		map[string]hubtest.File{large: {Data: hubtest.Random(13, size), LFS: true}})
	agents := newAgentsWithLeases(t, h, 2, lease)
	h.Set(hubtest.Trouble{StopAfter: 6 << 20})
	var done sync.WaitGroup
	for _, a := range agents {
		done.Go(func() {
			g := a.ask(t, http.MethodGet, resolve("org/m", "main", large))
			if g.err != nil || !bytes.Equal(read(t, hubtest.Random(13, size)), g.body) {
				t.Errorf("%d, %d bytes: %v", g.status, len(g.body), g.err)
			}
		})
	}
	var came int64
	since := time.Now()
	require.Eventually(t, func() bool { // leases end by time, which shows nowhere else
		var now int64
		for _, a := range agents {
			for _, f := range a.fetcher.Running() {
				now += f.Arrived
			}
		}
		if now != came || now < 6<<20 {
			came, since = now, time.Now()
		}
		return time.Since(since) > 3*lease
	}, patience, 50*time.Millisecond)
	h.Set(hubtest.Trouble{})
	done.Wait()
	_, sent := h.Count()
	t.Logf("%.2f copies", float64(sent)/size)
	require.LessOrEqual(t, float64(sent), 1.25*size)
}

// One of the CDN's machines hangs: another answers at once. There is nothing yet that could be given meanwhile.
func TestStream_AMachineOfTheCDNThatHangsBeforeTheFirstByteCostsNoClient(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, _, files := model(h, "org/m")
	h.Set(hubtest.Trouble{Hang: 1})
	a := newAgentThatWaits(t, h, "", nil, waits{hub: upstream.Timeouts{Header: 5 * time.Minute},
		fetch: 2 * time.Second})
	start := time.Now()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.URL+resolve("org/m", "main", large), nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	first := make([]byte, 1)
	_, err = io.ReadFull(resp.Body, first)
	require.NoError(t, err)
	require.Less(t, time.Since(start), time.Minute, "the answer that hangs is not waited for")
	h.Set(hubtest.Trouble{})
	rest, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.True(t, bytes.Equal(read(t, files[large].Data), append(first, rest...)))
}

func TestTrouble_WithTheHubAwayANewClientGetsWhatIsKnown(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]hubtest.Trouble{
		"down": {Down: true}, "in trouble": {Status: 503}, "throttling": {Status: 429, RetryAfter: 60},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t)
			_, commit, files := model(h, "org/m")
			dir := t.TempDir()
			a := newAgent(t, h, dir, nil)
			for path := range files {
				a.ask(t, http.MethodGet, resolve("org/m", "main", path))
			}
			a.ask(t, http.MethodGet, "/api/models/org/m/tree/main?recursive=true")
			a.stop(t) // a restart forgets nothing of it
			h.Set(trouble)
			a = newAgent(t, h, dir, nil)
			rule := policy.DefaultRule()
			rule.TagTTL, rule.Authorization.TTL = 0, 0 // as if they were over
			a.rule.Store(&rule)
			g := a.ask(t, http.MethodGet, "/api/models/org/m/revision/main")
			require.Equal(t, http.StatusOK, g.status)
			require.Contains(t, string(g.body), commit)
			require.True(t, strings.HasPrefix(g.header.Get("Warning"), "110 "))
			require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet,
				"/api/models/org/m/tree/"+commit+"?recursive=true").status)
			for path, f := range files {
				g := a.ask(t, http.MethodGet, resolve("org/m", "main", path))
				require.Equal(t, http.StatusOK, g.status, path)
				require.True(t, bytes.Equal(read(t, f.Data), g.body))
				require.NotEmpty(t, g.header.Get("Warning"))
			}
			g = a.ask(t, http.MethodGet, resolve("org/unknown", "main", "x"))
			if trouble.Status == 429 {
				require.Equal(t, http.StatusTooManyRequests, g.status)
				require.NotEmpty(t, g.header.Get("Retry-After"))
			} else {
				require.Equal(t, http.StatusServiceUnavailable, g.status)
			}
			rule.Authorization.OnUnreachable = policy.Deny
			a.rule.Store(&rule)
			require.GreaterOrEqual(t, a.ask(t, http.MethodGet, resolve("org/m", "main", "config.json")).status, 429)
		})
	}
}

func TestTrouble_AHubThatThrottlesIsLeftAlone(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	model(h, "org/m")
	h.Set(hubtest.Trouble{Status: 429, RetryAfter: 60})
	a := newAgent(t, h, "", nil)
	for range 5 {
		g := a.ask(t, http.MethodGet, "/api/models/org/m")
		require.Equal(t, http.StatusTooManyRequests, g.status)
		require.NotEmpty(t, g.header.Get("RateLimit"))
	}
	n, _ := h.Count()
	require.Equal(t, 1, n)
}

func TestRevision_ABranchThatMovesIsSeenAndNoSnapshotMixesTwoCommits(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	repo, first, _ := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	require.Equal(t, first, a.ask(t, http.MethodHead,
		resolve("org/m", "main", "config.json")).header.Get("X-Repo-Commit"))
	second := repo.Commit("main", map[string]hubtest.File{"config.json": {Data: hubtest.Text("new")}})
	require.Equal(t, first, a.ask(t, http.MethodHead,
		resolve("org/m", "main", "config.json")).header.Get("X-Repo-Commit"), "within the TTL")
	rule := policy.DefaultRule()
	rule.TagTTL = 0
	a.rule.Store(&rule)
	g := a.ask(t, http.MethodGet, resolve("org/m", "main", "config.json"))
	require.Equal(t, second, g.header.Get("X-Repo-Commit"))
	require.Equal(t, "new", string(g.body))
	require.Equal(t, `{"model_type":"shoal"}`, string(a.ask(t, http.MethodGet,
		resolve("org/m", first, "config.json")).body))
	repo.Commit("refs/pr/1", map[string]hubtest.File{"config.json": {Data: hubtest.Text("pr")}})
	require.Equal(t, "pr", string(a.ask(t, http.MethodGet, resolve("org/m", "refs/pr/1", "config.json")).body))
	require.Equal(t, "pr", string(a.ask(t, http.MethodGet, "/org/m/resolve/refs/pr/1/config.json").body))
}

// Readers of tables ask for the footer first, by its place in the file. Python gives up after 10 s without a byte.
func TestStream_TheEndAloneComesButForItsLastBytesWhileTheRestIsOnItsWay(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	const size, footer = 3<<20 + 5000, 4000
	table := hubtest.Random(11, size)
	h.Repo("datasets", "org/d").Commit("main", map[string]hubtest.File{"table.parquet": {Data: table, LFS: true}})
	h.Set(hubtest.Trouble{StopAfter: 2 << 20})
	a := newAgent(t, h, "", nil)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
		a.URL+"/datasets/org/d/resolve/main/table.parquet", nil)
	require.NoError(t, err)
	req.Header.Set("Range", byteRange(size-footer, size-1))
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	require.Equal(t, http.StatusPartialContent, resp.StatusCode)
	got := make([]byte, footer-2*endSize)
	_, err = io.ReadFull(resp.Body, got)
	require.NoError(t, err)
	_, sent := h.Count()
	require.Less(t, sent, int64(size), "the file is not whole yet")
	h.Set(hubtest.Trouble{})
	rest, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.True(t, bytes.Equal(read(t, table)[size-footer:], append(got, rest...)))
}

func TestStream_TheHeaderGoesOutBeforeThereAreBytes(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	model(h, "org/m")
	a := newAgent(t, h, "", nil)
	a.ask(t, http.MethodHead, resolve("org/m", "main", large))
	h.Set(hubtest.Trouble{Stall: time.Minute})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.URL+resolve("org/m", "main", large), nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err, "the header does not wait for the CDN")
	require.Equal(t, http.StatusOK, resp.StatusCode)
	h.Set(hubtest.Trouble{})
	_, _ = io.CopyN(io.Discard, resp.Body, 0)
	_ = resp.Body.Close()
}

// Storage may be slow and alive. Python gives up after 10 s without a byte, and a chunk takes far longer than that.
func TestStream_StorageThatGivesNoChunkForLongKeepsTheClient(t *testing.T) {
	t.Parallel()
	const size = 3<<20 + 17
	want := read(t, hubtest.Random(12, size))
	for name, part := range map[string]struct{ first, last int }{
		"the whole":                          {0, size - 1},
		"a part without the middle":          {100, 1 << 20},
		"the last bytes, which wait for all": {size - endSize, size - 1},
	} {
		for how, wrong := range map[string]bool{"": false, ", and the file is wrong": true} {
			t.Run(name+how, func(t *testing.T) {
				t.Parallel()
				h := newHub(t)
				h.Repo("models", "org/m").Commit("main",
					map[string]hubtest.File{large: {Data: hubtest.Bytes(want), LFS: true}})
				h.Set(hubtest.Trouble{SlowAfter: 100})
				a := newAgent(t, h, "", nil)
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
					a.URL+resolve("org/m", "main", large), nil)
				require.NoError(t, err)
				req.Header.Set("Range", byteRange(part.first, part.last))
				resp, err := http.DefaultClient.Do(req)
				require.NoError(t, err)
				defer func() { _ = resp.Body.Close() }()
				got := make([]byte, 1)
				_, err = io.ReadFull(resp.Body, got)
				require.NoError(t, err, "a byte comes before a chunk does")
				h.Set(hubtest.Trouble{Wrong: wrong})
				rest, err := io.ReadAll(resp.Body)
				if wrong && part.last == size-1 {
					require.Error(t, err)
					return
				}
				require.NoError(t, err)
				require.True(t, bytes.Equal(want[part.first:part.last+1], append(got, rest...)))
			})
		}
	}
}

func TestForetaste_WhatWasGivenBeforeIsComparedAndNotGivenAgain(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		given, first, body, rest string
		wrong                    bool
	}{
		"nothing was given":            {first: "abc", body: "def", rest: "abc"},
		"less than what comes first":   {given: "ab", first: "abc", body: "def", rest: "c"},
		"as much":                      {given: "abc", first: "abc", body: "def", rest: ""},
		"more":                         {given: "abcde", first: "abc", body: "def", rest: ""},
		"another byte":                 {given: "aX", first: "abc", wrong: true},
		"another byte behind the rest": {given: "abcX", first: "abc", body: "def", wrong: true},
		"more than there is":           {given: "abcd", first: "abc", wrong: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rest, err := (&foretaste{given: []byte(test.given)}).after([]byte(test.first), strings.NewReader(test.body))
			require.Equal(t, test.wrong, err != nil, "%v", err)
			require.Equal(t, test.rest, string(rest))
		})
	}
}

// Three questions may come before the answer to a HEAD, and clients wait 10 s for all of them together.
func TestFile_TheQuestionsBeforeAHEADHaveOneTimeTogether(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	model(h, "org/m")
	asked, answer, inTime := make(chan struct{}), make(chan struct{}), make(chan bool, 1)
	once := sync.OnceFunc(func() { close(asked) })
	h.SetOdd(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/tree/") {
			once()
			select {
			case <-answer:
				inTime <- true
			case <-r.Context().Done():
				inTime <- false
			}
		}
		next.ServeHTTP(w, r)
	})
	a := newAgent(t, h, "", nil)
	a.ask(t, http.MethodGet, "/api/models/org/m") // the first question
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodHead, resolve("org/m", "main", large), http.NoBody)
	r.RemoteAddr = "127.0.0.1:1"
	x := &exchange{Exchange: reply.New(w, r), rule: policy.DefaultRule()}
	x.Start = x.Start.Add(-a.opts.Slack.of(askTimeout)) // which is over
	x.Settle(a.serve(x), x.fail)
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	<-asked
	close(answer)
	require.True(t, <-inTime, "the answer was not waited for, and the question goes on")
	require.Equal(t, http.StatusOK, a.ask(t, http.MethodHead, resolve("org/m", "main", large)).status)
}
