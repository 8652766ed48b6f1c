package hub

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/node/internal/upstream"
	"github.com/shoal-cache/shoal/test/hubtest"
)

// newAgents starts agents that all know each other.
func newAgents(t testing.TB, h *hubtest.Hub, count int) []*agent {
	t.Helper()
	return newAgentsWithLeases(t, h, count, 0)
}

// newAgentsWithLeases has a lease that nothing comes of given to another after a while.
func newAgentsWithLeases(t testing.TB, h *hubtest.Hub, count int, lease time.Duration) []*agent {
	t.Helper()
	var agents []*agent
	var boot []peer.AddrInfo
	for range count {
		a := newAgentThatWaits(t, h, "", boot, waits{
			hub: upstream.Timeouts{Retry: time.Second, Dial: patience, Header: patience, File: patience,
				Stall: patience},
			fetch: 2 * time.Minute, lease: lease,
		})
		agents, boot = append(agents, a), append(boot, a.info())
	}
	meet(t, agents)
	rule := policy.DefaultRule()
	rule.TagTTL, rule.Authorization.TTL = time.Hour, time.Hour // which no test outlasts
	for _, a := range agents {
		a.rule.Store(&rule)
	}
	return agents
}

func meet(t testing.TB, agents []*agent) {
	t.Helper()
	for _, a := range agents {
		<-a.swarm.Started()
		require.Eventually(t, func() bool {
			return len(a.swarm.Peers()) == len(agents)-1
		}, patience, 10*time.Millisecond)
		require.Eventually(t, func() bool {
			return a.errands.Peers() == len(agents)-1
		}, patience, 10*time.Millisecond)
	}
}

// snapshot asks what snapshot_download of huggingface_hub does: old versions a HEAD for each file, new ones the tree as
// well.
func snapshot(t testing.TB, a *agent, id string, files map[string]hubtest.File, withTree bool, headers ...string) {
	t.Helper()
	info := a.ask(t, http.MethodGet, "/api/models/"+id+"/revision/main", headers...)
	require.Equal(t, http.StatusOK, info.status)
	commit := info.header.Get("X-Repo-Commit")
	if withTree {
		require.Equal(t, http.StatusOK, a.ask(t, http.MethodGet,
			"/api/models/"+id+"/tree/"+commit+"?recursive=true&expand=false", headers...).status)
	}
	slots := make(chan struct{}, 8)
	var wg sync.WaitGroup
	for path, f := range files {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			head := a.ask(t, http.MethodHead, resolve(id, commit, path),
				append(headers, "Accept-Encoding", "identity")...)
			if head.status != http.StatusOK || head.header.Get("X-Repo-Commit") != commit {
				t.Errorf("HEAD of %s: %d", path, head.status)
			}
			g := a.ask(t, http.MethodGet, resolve(id, commit, path), headers...)
			if g.status != http.StatusOK || g.err != nil || !bytes.Equal(read(t, f.Data), g.body) {
				t.Errorf("GET of %s: %d, %d bytes, %v", path, g.status, len(g.body), g.err)
			}
		})
	}
	wg.Wait()
}

func shards(h *hubtest.Hub, id string, size int64) (*hubtest.Repo, map[string]hubtest.File, int64) {
	files := map[string]hubtest.File{}
	for i := range 4 {
		files[fmt.Sprintf("model-%d-of-4.safetensors", i+1)] = hubtest.File{Data: hubtest.Random(uint64(i)+10,
			size+int64(i)), LFS: true}
	}
	for i, name := range []string{"README.md", "config.json", "generation_config.json", "special_tokens_map.json",
		"tokenizer_config.json", "vocab.txt"} {
		files[name] = hubtest.File{Data: hubtest.Text(fmt.Sprintf(`{"name":%q,"n":%d}`, name, i))}
	}
	files["tokenizer.json"] = hubtest.File{Data: hubtest.Random(99, 600<<10)}
	var total int64
	for _, f := range files {
		if f.LFS {
			total += f.Data.Size()
		}
	}
	r := h.Repo("models", id)
	r.Commit("main", files)
	return r, files, total
}

// longToken is as long as the hub's are.
const longToken = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"

// It runs alone: eleven nodes that wait for each other have to have the machine.
func TestSwarm_ManyNodesCostTheHubWhatOneDoes(t *testing.T) { //nolint:paralleltest // see above
	const shard = 6 << 20 // one lease that is read twice on a busy machine is less than a twentieth of four
	for name, test := range map[string]struct {
		restrict func(*hubtest.Repo)
		headers  []string
		nodes    int
	}{
		"a public model":  {func(*hubtest.Repo) {}, nil, 6},
		"a gated model":   {func(r *hubtest.Repo) { r.SetGated(longToken) }, bearer(longToken), 8},
		"a private model": {func(r *hubtest.Repo) { r.SetPrivate(longToken) }, bearer(longToken), 9},
	} {
		t.Run(name, func(t *testing.T) {
			lone := newHub(t)
			repo, files, _ := shards(lone, "org/m", shard)
			test.restrict(repo)
			snapshot(t, newAgent(t, lone, "", nil), "org/m", files, true, test.headers...)
			one, _ := lone.Count()

			h := newHub(t)
			repo, files, total := shards(h, "org/m", shard)
			test.restrict(repo)
			agents := newAgents(t, h, test.nodes+2)
			var wg sync.WaitGroup
			for i, a := range agents[:test.nodes] {
				wg.Go(func() { snapshot(t, a, "org/m", files, i%2 == 0, test.headers...) })
			}
			wg.Wait()
			many, sent := h.Count()
			t.Logf("one node: %d questions to the hub; %d: %d, and %.3f copies", one, test.nodes, many,
				float64(sent)/float64(total))
			for _, r := range h.Requests() {
				if !r.CDN {
					t.Logf("%s %s %d %s", r.Method, r.Path, r.Status, r.Authorization)
				}
			}
			require.LessOrEqual(t, float64(sent), 1.05*float64(total))
			require.LessOrEqual(t, float64(many), 1.5*float64(one))

			h.Forget()
			for _, a := range agents[test.nodes:] {
				snapshot(t, a, "org/m", files, true, test.headers...)
			}
			late, sent := h.Count()
			require.Zero(t, sent, "who comes late takes nothing from the hub")
			t.Logf("two late nodes: %d questions", late)
			require.Zero(t, late)
		})
	}
}

// strangers are the other nodes where none of those that are asked at random remembers anything.
type strangers struct{ Shared }

func (strangers) Recall(context.Context, string, func([]byte, time.Duration)) {}

// Of many nodes only some are asked whether they hold a file.
func TestSwarm_AFileThatNoneOfThoseAskedHoldsIsNotTakenFromTheHubAgain(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, files := model(h, "org/m")
	agents := newAgents(t, h, 3)
	data := read(t, files[large].Data)
	req := content.Request{Repository: repo{"models", "org/m"}.source(hubName), Digest: digest.FromBytes(data)}
	// It came to the first so long ago that nobody remembers who took part.
	require.NoError(t, agents[0].store.Put(t.Context(), req.Digest, bytes.NewReader(data), int64(len(data))))
	agents[0].Prove(req)
	agents[0].telling.Wait()
	late := agents[1]
	if late.Proved(req) { // it is the home of this question
		late = agents[2]
	}
	require.False(t, late.Proved(req))
	late.Join(strangers{late.errands})
	require.Equal(t, data, late.ask(t, http.MethodGet, resolve("org/m", commit, large)).body)
	_, sent := h.Count()
	require.Zero(t, sent)
}

// credulous hears that somebody holds each file.
type credulous struct{ Shared }

func (c credulous) Recall(ctx context.Context, key string, take func([]byte, time.Duration)) {
	if strings.HasPrefix(key, blobKey("")) {
		take([]byte("{}"), 0)
		return
	}
	c.Shared.Recall(ctx, key, take)
}

func TestSwarm_AFileThatNobodyGivesForTheComparisonComesFromTheHubOnceAndIsKept(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, files := model(h, "org/m")
	data := read(t, files[large].Data)
	for _, a := range newAgents(t, h, 2) {
		a.Join(credulous{a.errands}) // who holds it may have dropped it since, or be busy
		require.Equal(t, data, a.ask(t, http.MethodGet, resolve("org/m", commit, large)).body)
		a.rest(t)
		_, err := a.store.Stat(digest.FromBytes(data))
		require.NoError(t, err)
	}
	_, sent := h.Count()
	require.LessOrEqual(t, sent, int64(len(data)+2*proofSize))
}

// isComparison reports whether a question to storage is for as many bytes as are compared.
func isComparison(r *http.Request) bool {
	var first, last int
	_, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
	return err == nil && last-first+1 == proofSize
}

// Who knows a part of a file has one draw, and not as many as it asks for.
func TestFile_ARepositoryIsAskedForTheSamePlaceOfAFileEachTime(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, files := model(h, "org/m")
	a := newAgent(t, h, "", nil)
	data := read(t, files[large].Data)
	req := content.Request{Repository: repo{"models", "org/m"}.source(hubName), Digest: digest.FromBytes(data)}
	require.NoError(t, a.store.Put(t.Context(), req.Digest, bytes.NewReader(data), int64(len(data))))
	var mu sync.Mutex
	places := map[string]int{}
	h.SetOdd(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if isComparison(r) {
			mu.Lock()
			places[r.Header.Get("Range")]++
			mu.Unlock()
		}
		next.ServeHTTP(w, r)
	})
	for range 4 {
		require.Equal(t, data, a.ask(t, http.MethodGet, resolve("org/m", commit, large)).body)
		a.memo.forget(heldKey(req))
	}
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, places, 1)
}

// Meanwhile a peer gets the file by another way, as out of an image.
func TestSwarm_NoRangeOfAFileThatIsOnItsWayFromItsRepositoryIsCompared(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, files := model(h, "org/m")
	agents := newAgents(t, h, 2)
	data := read(t, files[large].Data)
	h.Set(hubtest.Trouble{SlowAfter: 1<<20 + 1000}) // more than a chunk
	more := make(chan struct{})
	h.SetOdd(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		part := r.Header.Get("Range")
		switch {
		case isComparison(r):
			http.Error(w, "it is not needed", http.StatusServiceUnavailable)
			return
		case part != "" && !strings.HasPrefix(part, "bytes=0-"):
			select {
			case <-more:
			case <-r.Context().Done():
				return
			}
		}
		next.ServeHTTP(w, r)
	})
	path := resolve("org/m", commit, large)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, agents[0].URL+path, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	first := make([]byte, 1<<19)
	_, err = io.ReadFull(resp.Body, first)
	require.NoError(t, err)
	require.NoError(t, agents[1].store.Put(t.Context(), digest.FromBytes(data), bytes.NewReader(data),
		int64(len(data))))

	require.Equal(t, data[:100], agents[0].ask(t, http.MethodGet, path, "Range", byteRange(0, 99)).body)
	for name, serves := range map[string]bool{"org/m": true, "org/fork": false} {
		require.Equal(t, serves, agents[0].fetcher.Serves(content.Request{
			Repository: repo{"models", name}.source(hubName), File: path, Digest: digest.FromBytes(data),
		}), name)
	}
	close(more)
	h.Set(hubtest.Trouble{})
	rest, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, append(first, rest...)))
}

func TestSwarm_WhatANodeHasNoRoomToCompareIsNotComparedForEachRange(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, commit, files := model(h, "org/m")
	agents := newAgents(t, h, 2)
	data := read(t, files[large].Data)
	require.NoError(t, agents[0].store.Put(t.Context(), digest.FromBytes(data), bytes.NewReader(data),
		int64(len(data))))
	require.NoError(t, agents[1].store.SetLimits(store.Limits{Capacity: 2 << 20}))
	var compared atomic.Int32
	h.SetOdd(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if isComparison(r) {
			compared.Add(1)
		}
		next.ServeHTTP(w, r)
	})
	for off := range 3 {
		require.Equal(t, data[off:off+100], agents[1].ask(t, http.MethodGet, resolve("org/m", commit, large), "Range",
			byteRange(off, off+99)).body)
	}
	require.EqualValues(t, 1, compared.Load())
}

func TestSwarm_WithTheHubAwayANodeThatHasNothingGetsWhatOthersHave(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, files, _ := shards(h, "org/m", 2<<20)
	agents := newAgents(t, h, 3)
	snapshot(t, agents[0], "org/m", files, true)
	h.Set(hubtest.Trouble{Down: true})
	rule := policy.DefaultRule()
	rule.TagTTL = 0
	for _, a := range agents {
		a.rule.Store(&rule)
	}
	snapshot(t, agents[1], "org/m", files, true)
	g := agents[2].ask(t, http.MethodGet, "/api/models/org/m")
	require.Equal(t, http.StatusOK, g.status)
	require.NotEmpty(t, g.header.Get("Warning"))
}

func TestSwarm_ANodeThatDiesInTheMiddleCostsNothing(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	_, files, _ := shards(h, "org/m", 4<<20)
	agents := newAgents(t, h, 4)
	var wg sync.WaitGroup
	for _, a := range agents[1:] {
		wg.Go(func() { snapshot(t, a, "org/m", files, true) })
	}
	agents[0].stop(t)
	wg.Wait()
}

// What nodes tell each other of a caller is a yes, for a token that nobody can guess, for one repository.
func TestSwarm_TheHubsYesToATokenIsHeardByOthersAndNothingElseIs(t *testing.T) {
	t.Parallel()
	const short = "short"
	h := newHub(t)
	repo, commit, _ := model(h, "org/secret")
	repo.SetPrivate(longToken, short)
	other, otherCommit, _ := model(h, "org/other")
	other.SetPrivate("nobody-of-these")
	agents := newAgents(t, h, 4)
	file := func(a *agent, id, commit, token string) int {
		return a.ask(t, http.MethodHead, resolve(id, commit, "config.json"), bearer(token)...).status
	}
	asked := func(token string) (n int) {
		for _, r := range h.Requests() {
			if r.Authorization == "Bearer "+token {
				n++
			}
		}
		return n
	}
	for _, a := range agents[:2] { // what is in the repository is believed once two have asked
		for _, token := range []string{longToken, short} {
			require.Equal(t, http.StatusOK, file(a, "org/secret", commit, token))
		}
	}
	long, brief := asked(longToken), asked(short)
	for _, a := range agents[2:] {
		require.Equal(t, http.StatusOK, file(a, "org/secret", commit, longToken))
		require.Equal(t, http.StatusOK, file(a, "org/secret", commit, short))
	}
	require.Equal(t, long, asked(longToken), "the others had heard of it")
	require.GreaterOrEqual(t, asked(short), brief+2, "a token that can be guessed is asked about by each node")
	for _, a := range agents {
		require.GreaterOrEqual(t, file(a, "org/other", otherCommit, longToken), 400, "a yes is for one repository")
		require.GreaterOrEqual(t, file(a, "org/secret", commit, longToken+"x"), 400)
	}

	// An outage lets on whom the hub let on at this node, and a refusal is forgotten by none.
	repo.SetPrivate("new")
	rule := policy.DefaultRule()
	rule.Authorization.TTL = 0
	for _, a := range agents[:2] {
		a.rule.Store(&rule)
		require.GreaterOrEqual(t, file(a, "org/secret", commit, longToken), 400, "it was revoked")
	}
	h.Set(hubtest.Trouble{Down: true})
	for _, a := range agents[:2] {
		require.Equal(t, http.StatusServiceUnavailable, file(a, "org/secret", commit, longToken))
	}
}

func TestAccess_ARestartRemembersCallersAndNoTokenIsOnTheDisk(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	repo, commit, _ := model(h, "org/secret")
	repo.SetPrivate(longToken)
	dir := t.TempDir()
	a := newAgent(t, h, dir, nil)
	get := func() int {
		return a.ask(t, http.MethodGet, resolve("org/secret", commit, "config.json"), bearer(longToken)...).status
	}
	require.Equal(t, http.StatusOK, get())
	a.stop(t)
	sum := sha256.Sum256([]byte(longToken))
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		require.NotContains(t, string(data), longToken, path)
		require.NotContains(t, string(data), callerKind+"\x00", path)
		require.NotContains(t, string(data), string(sum[:]), path)
		return err
	})
	require.NoError(t, err)
	h.Set(hubtest.Trouble{Down: true})
	a = newAgent(t, h, dir, nil)
	require.Equal(t, http.StatusOK, get())
	g := a.ask(t, http.MethodGet, resolve("org/secret", commit, "config.json"), bearer(longToken+"x")...)
	require.Equal(t, http.StatusServiceUnavailable, g.status)
}

// One node cannot reach the hub, and asks for all.
func TestSwarm_ANodeThatTheHubDoesNotAnswerCostsNobodyElsesHead(t *testing.T) {
	t.Parallel()
	h, hole := newHub(t), newHub(t)
	_, commit, _ := model(h, "org/m")
	end := make(chan struct{})
	asked := make(chan struct{}, 100)
	hole.SetOdd(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		asked <- struct{}{}
		select {
		case <-end:
		case <-r.Context().Done():
		}
	})
	stuck := newAgent(t, hole, "", nil)
	well := newAgent(t, h, "", []peer.AddrInfo{stuck.info()})
	meet(t, []*agent{stuck, well})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(end)
	wg.Go(func() { _, _ = http.Head(stuck.URL + resolve("org/m", "main", "config.json")) })
	<-asked
	g := well.ask(t, http.MethodHead, resolve("org/m", "main", "config.json"))
	require.Equal(t, http.StatusOK, g.status)
	require.Equal(t, commit, g.header.Get("X-Repo-Commit"))
}
