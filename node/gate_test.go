package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/node/internal/fetch"
	"github.com/shoal-cache/shoal/node/internal/gate"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/store"
	"github.com/shoal-cache/shoal/test/registrytest"
)

// held is a cache of nothing.
type held struct{ gate.Cache }

// front is what the hub's front knows.
type front map[content.Request]bool

func (f front) Proved(req content.Request) bool { return f[req] }
func (f front) Prove(req content.Request)       { f[req] = true }
func (f front) Doubted(content.Request) bool    { return false }

// nothing is a cache of nothing, on a node without peers.
type nothing struct{}

func (nothing) Held(digest.Digest) (content.Reader, error) { return nil, content.ErrNotFound }
func (nothing) Has(digest.Digest) (int64, bool)            { return 0, false }
func (nothing) FromPeers(context.Context, digest.Digest) (content.Reader, error) {
	return nil, content.ErrNotFound
}

// vague is a registry whose yes may be about anything.
type vague struct{ gate.Upstream }

func (vague) Ask(context.Context) (int64, error)          { return 7, nil }
func (vague) AskForAnyone(context.Context) (int64, error) { return 0, content.ErrUnavailable }
func (vague) Whole() bool                                 { return true }
func (vague) Arrived() int64                              { return 0 }

func TestSources_WhomTheRepositoryAcceptsIsNotDoubtedWhereNoManifestIsKnown(t *testing.T) {
	t.Parallel()
	g, err := gate.New(gate.Options{Cache: nothing{}, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	s := sources{g, policy.NewLive(policy.Default()), "", nil}
	req := content.Request{Repository: content.Repository{Registry: "registry.test", Name: "app"}, Kind: content.Blob,
		Digest: digest.FromString("x"), Authorization: "Basic eDp5"}
	source := gate.Repository(req.Repository)
	asks := gate.Request{Source: source, Digest: req.Digest, Credentials: req.Authorization, Upstream: vague{}}
	require.NoError(t, g.Admit(t.Context(), policy.Default().For(req.Repository), asks))
	require.True(t, s.Doubted(req))
	g.Accept(source, req.Authorization, time.Now())
	require.False(t, s.Doubted(req), "as after a restart in the middle of a layer")
	require.False(t, s.Proved(req))
	g.Accept(source, "", time.Now())
	other := req
	other.Authorization = "Basic b3RoZXI6"
	asks.Credentials = other.Authorization
	require.NoError(t, g.Admit(t.Context(), policy.Default().For(req.Repository), asks))
	require.True(t, s.Doubted(other), "another is no surer by that")
}

func TestSources_OnlyTheHubItselfHasItsFrontForAProof(t *testing.T) {
	t.Parallel()
	g, err := gate.New(gate.Options{Cache: held{}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	of := front{}
	s := sources{g, policy.NewLive(policy.Default()), "hub.test", func() fetch.Sources { return of }}
	file := func(registry, name string) content.Request {
		return content.Request{Repository: content.Repository{Registry: registry, Name: name}, Kind: content.Blob,
			Digest: digest.FromString("x"), File: "/x"}
	}
	model := file("hub.test", "models/org/m")
	require.False(t, s.Proved(model), "a repository that only lists it")
	s.Prove(model)
	require.True(t, of[model])
	require.True(t, s.Proved(model))
	for what, req := range map[string]content.Request{
		"a file by its URL":            file("files.test", "https:public/a.bin"),
		"one whose host is the hub's":  file("hub.test", "http:public/a.bin"),
		"a repository of a registry":   {Repository: content.Repository{Registry: "hub.test", Name: "a/b"}, Digest: "sha256:1"},
		"a file of some other machine": file("other.test", "models/org/m"),
	} {
		require.False(t, s.Proved(req), what)
	}
	known := file("files.test", "https:public/a.bin")
	s.Prove(known)
	require.True(t, s.Proved(known), "what it has proved counts")
}

// Each node that learns of a manifest asks others about all that it lists.
func TestTestify_WhatOtherNodesAskAboutIsEvictedAsIfNobodyHadAsked(t *testing.T) {
	t.Parallel()
	held, err := store.Open(t.Context(), store.Options{
		Path: t.TempDir(), Limits: store.Limits{Capacity: 3 << 20, High: 1, Low: 1},
	})
	require.NoError(t, err)
	defer held.Close()
	g, err := gate.New(gate.Options{Cache: cache{store: held}})
	require.NoError(t, err)
	defer g.Close()
	put := func(fill byte) digest.Digest {
		data := bytes.Repeat([]byte{fill}, 1<<20)
		require.NoError(t, held.Put(t.Context(), digest.FromBytes(data), bytes.NewReader(data), 1<<20))
		return digest.FromBytes(data)
	}
	oldest, next := put(1), put(2)
	put(3)
	testimony := g.Testify("oci registry.test/app", []digest.Digest{oldest})
	require.Equal(t, []digest.Digest{oldest}, testimony.Held)
	put(4)
	_, err = held.Stat(oldest)
	require.ErrorIs(t, err, content.ErrNotFound, "the oldest makes room")
	_, err = held.Stat(next)
	require.NoError(t, err)
}

// A client such as crane blob, or one that has the manifest from elsewhere, asks for the blob alone. Each shows a token
// of its own.
func TestGate_ABlobThatSomeAskForWithoutItsManifestLeavesTheRegistryOnce(t *testing.T) {
	t.Parallel()
	origin := registrytest.New(t)
	const size = 12 << 20
	layer, config := origin.AddRandom(size), origin.Add([]byte("{}"))
	manifest := origin.PushManifest(t, "team/app", "v1", v1.MediaTypeImageManifest, imageOf(config, layer, size))
	tokens := registrytest.NewTokens(origin.Files, func(*http.Request) registrytest.Token {
		return registrytest.Token{}
	})
	origin.Handle(tokens)

	first, second := tracedTwo(t, "", origin.URL, "")
	third := traced(t, "", origin.URL, []string{fmt.Sprintf("%s/p2p/%s", first.swarm.Addrs()[0], first.swarm.ID())}, "")
	nodes := []*node{first, second, third}
	for _, n := range nodes {
		require.Eventually(t, func() bool { return len(n.swarm.Peers()) == 2 }, time.Minute, 10*time.Millisecond)
	}
	get := func(n *node, path, token string) digest.Digest {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/team/app/"+path+"?ns=registry.test", nil)
		r.Header.Set("Authorization", token)
		w := httptest.NewRecorder()
		n.front.ServeHTTP(w, r)
		return digest.FromBytes(w.Body.Bytes())
	}
	token := func() string { return tokens.Give(registrytest.Token{Requests: registrytest.Forever}) }
	require.Equal(t, manifest, get(first, "manifests/v1", token()))
	before := origin.Bytes.Load()
	var all sync.WaitGroup
	got := make([]digest.Digest, len(nodes))
	for i, n := range nodes {
		who := token()
		all.Go(func() { got[i] = get(n, "blobs/"+layer.String(), who) })
	}
	all.Wait()
	sent := origin.Bytes.Load() - before
	for _, n := range nodes {
		require.NoError(t, n.close(t.Context()))
	}
	require.Equal(t, []digest.Digest{layer, layer, layer}, got)
	require.LessOrEqual(t, float64(sent)/size, 1.05, "copies")
}

// imageOf is the manifest of an image of one layer.
func imageOf(config, layer digest.Digest, size int) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":2},`+
		`"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`, v1.MediaTypeImageManifest, v1.MediaTypeImageConfig,
		config, v1.MediaTypeImageLayer, layer, size)
}

// While the registry brings nothing somebody without credentials asks for the same layer in a public repository, whose
// manifest lists it.
func TestGate_AMomentWithoutTheRegistryCostsTheCallersOfANodeNoSecondCopy(t *testing.T) {
	t.Parallel()
	for name, part := range map[string]string{
		"while they wait for the tag": "/manifests/v1", "while they wait for the layer": "/blobs/",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testMoment(t, part)
		})
	}
}

// testMoment has callers, each with a token of its own, pull an image while no answer comes to some requests.
func testMoment(t *testing.T, unanswered string) {
	origin := registrytest.New(t)
	const size, callers = 12 << 20, 12
	layer, config := origin.AddRandom(size), origin.Add([]byte("{}"))
	for _, repository := range []string{"team/app", "public/lists"} {
		origin.PushManifest(t, repository, "v1", v1.MediaTypeImageManifest, imageOf(config, layer, size))
	}
	tokens := registrytest.NewTokens(origin.Files, func(*http.Request) registrytest.Token {
		return registrytest.Token{}
	})
	var waiting atomic.Int32
	ready := make(chan struct{})
	back := sync.OnceFunc(func() { close(ready) })
	t.Cleanup(back)
	origin.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		isLayer := strings.HasSuffix(r.URL.Path, layer.String())
		switch public := strings.HasPrefix(r.URL.Path, "/v2/public/"); {
		case public && isLayer:
			http.NotFound(w, r)
			return
		case public:
			origin.Files.ServeHTTP(w, r)
			return
		case strings.Contains(r.URL.Path, unanswered) && (!isLayer || r.Method == http.MethodGet):
			waiting.Add(1)
			select {
			case <-ready:
			case <-r.Context().Done():
				panic(http.ErrAbortHandler)
			}
		}
		tokens.ServeHTTP(w, r)
	}))

	n := traced(t, "", origin.URL, nil, "")
	get := func(path, token string) (int, digest.Digest) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/"+path+"?ns=registry.test", nil)
		r.Header.Set("Authorization", token)
		w := httptest.NewRecorder()
		n.front.ServeHTTP(w, r)
		return w.Code, digest.FromBytes(w.Body.Bytes())
	}
	var all sync.WaitGroup
	got, want := make([]digest.Digest, callers), make([]digest.Digest, callers)
	for i := range callers {
		token := tokens.Give(registrytest.Token{Requests: registrytest.Forever})
		want[i] = layer
		all.Go(func() {
			_, _ = get("team/app/manifests/v1", token)
			_, got[i] = get("team/app/blobs/"+layer.String(), token)
		})
	}
	require.Eventually(t, func() bool {
		running := n.fetcher.Running()
		return waiting.Load() == callers || len(running) == 1 && running[0].Readers == callers
	}, time.Minute, 5*time.Millisecond)
	code, _ := get("public/lists/manifests/v1", "")
	require.Equal(t, http.StatusOK, code)
	code, _ = get("public/lists/blobs/"+layer.String(), "") // which waits for what stands still, for a while
	require.Equal(t, http.StatusNotFound, code)
	back()
	all.Wait()
	code, _ = get("team/app/blobs/"+layer.String(), "Bearer made up")
	require.Equal(t, http.StatusUnauthorized, code)
	require.NoError(t, n.close(t.Context()))
	require.Equal(t, want, got)
	// A node that has waited for long for a leaf asks for that once more.
	require.LessOrEqual(t, float64(origin.Bytes.Load())/size, 1.1, "copies")
}
