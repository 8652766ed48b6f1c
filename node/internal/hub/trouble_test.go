package hub

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/policy"
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
			require.Equal(t, http.StatusPartialContent, a.ask(t, http.MethodGet, resolve("org/m", "main", large), "Range", "bytes=0-0").status)
			h.Set(trouble)
			g := a.ask(t, http.MethodGet, resolve("org/m", "main", large))
			require.Equal(t, http.StatusOK, g.status)
			require.NoError(t, g.err)
			require.True(t, bytes.Equal(read(t, files[large].Data), g.body))
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

	// In parallel ranges, as hf_transfer and others download.
	data := read(t, files[large].Data)
	const part = 1 << 20
	var wg sync.WaitGroup
	var mu sync.Mutex
	failed := 0
	for off := 0; off < len(data); off += part {
		wg.Go(func() {
			g := a.ask(t, http.MethodGet, resolve("org/m", "main", large), "Range", byteRange(off, off+part-1))
			if g.err != nil || g.status != http.StatusPartialContent {
				mu.Lock()
				defer mu.Unlock()
				failed++
			}
		})
	}
	wg.Wait()
	require.Positive(t, failed)

	h.Set(hubtest.Trouble{})
	g = a.ask(t, http.MethodGet, resolve("org/m", "main", large))
	require.True(t, bytes.Equal(data, g.body))
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
			rule.TagTTL, rule.AuthorizationTTL = 0, 0 // as if they were over
			a.rule.Store(&rule)
			g := a.ask(t, http.MethodGet, "/api/models/org/m/revision/main")
			require.Equal(t, http.StatusOK, g.status)
			require.Contains(t, string(g.body), commit)
			require.True(t, strings.HasPrefix(g.header.Get("Warning"), "110 "))
			require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet, "/api/models/org/m/tree/"+commit+"?recursive=true").status)
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
			rule.Offline = policy.Deny
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
	require.Equal(t, first, a.ask(t, http.MethodHead, resolve("org/m", "main", "config.json")).header.Get("X-Repo-Commit"))
	second := repo.Commit("main", map[string]hubtest.File{"config.json": {Data: hubtest.Text("new")}})
	require.Equal(t, first, a.ask(t, http.MethodHead, resolve("org/m", "main", "config.json")).header.Get("X-Repo-Commit"), "within the TTL")
	rule := policy.DefaultRule()
	rule.TagTTL = 0
	a.rule.Store(&rule)
	g := a.ask(t, http.MethodGet, resolve("org/m", "main", "config.json"))
	require.Equal(t, second, g.header.Get("X-Repo-Commit"))
	require.Equal(t, "new", string(g.body))
	require.Equal(t, `{"model_type":"shoal"}`, string(a.ask(t, http.MethodGet, resolve("org/m", first, "config.json")).body))
	repo.Commit("refs/pr/1", map[string]hubtest.File{"config.json": {Data: hubtest.Text("pr")}})
	require.Equal(t, "pr", string(a.ask(t, http.MethodGet, resolve("org/m", "refs/pr/1", "config.json")).body))
	require.Equal(t, "pr", string(a.ask(t, http.MethodGet, "/org/m/resolve/refs/pr/1/config.json").body))
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
