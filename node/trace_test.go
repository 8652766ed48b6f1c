package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/node/internal/bypass"
	"github.com/shoal-cache/shoal/node/internal/config"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/pulls"
	"github.com/shoal-cache/shoal/test/hubtest"
	"github.com/shoal-cache/shoal/test/otlptest"
	"github.com/shoal-cache/shoal/test/registrytest"
)

// pathsOf are the names and nodes of each span and of those above it, up to the root.
func pathsOf(spans []otlptest.Span, nodes map[string]string) map[string]bool {
	by := map[string]otlptest.Span{}
	for _, s := range spans {
		by[string(s.GetSpanId())] = s
	}
	seen := map[string]bool{}
	for _, s := range spans {
		text := ""
		for ok := true; ok; s, ok = by[string(s.GetParentSpanId())] {
			text += fmt.Sprintf("%s on %s; ", s.GetName(), nodes[s.Node])
		}
		seen[text] = true
	}
	return seen
}

// traced starts a node whose spans go to a receiver. more is further configuration.
func traced(t *testing.T, tracing, origin string, bootstrap []string, more string) *node {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, `
registry: {listen: "127.0.0.1:0"}
admin: {listen: "127.0.0.1:0"}
swarm: {listen: [/ip4/127.0.0.1/tcp/0], bootstrap: [%s]}
store: {path: %s}
upstreams: [{registry: registry.test, endpoints: ["%s"]}]
tracing: {%s}
%s`, join(bootstrap), dir, origin, tracing, more), 0o600))
	c, err := config.Load(file, nil, nil)
	require.NoError(t, err)
	n := &node{config: c, log: slog.New(slog.DiscardHandler), started: time.Now(), metrics: prometheus.NewRegistry(),
		policy: policy.NewLive(c.EffectivePolicy())}
	n.watch = bypass.New(n.mirrored)
	n.pulls = pulls.New(n.log, n.metrics)
	require.NoError(t, n.start(t.Context()))
	return n
}

func join(all []string) string {
	text := ""
	for i, s := range all {
		if i > 0 {
			text += ", "
		}
		text += `"` + s + `"`
	}
	return text
}

func TestTrace_LeadsFromTheFrontToAPeerAndToTheRegistry(t *testing.T) {
	t.Parallel()
	got := &otlptest.Receiver{}
	origin := registrytest.New(t)

	first, second := tracedTwo(t, fmt.Sprintf("endpoint: %q", got.HTTP(t)), origin.URL, "")
	for range 24 {
		d := origin.AddRandom(64 << 10)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet,
			"/v2/team/app/blobs/"+d.String()+"?ns=registry.test", nil)
		w := httptest.NewRecorder()
		second.front.ServeHTTP(w, r)
		require.Equal(t, http.StatusOK, w.Code, w.Body.String())
	}
	require.NoError(t, second.close(t.Context()))
	require.NoError(t, first.close(t.Context()))

	seen := pathsOf(got.Spans(), map[string]string{first.name(): "first", second.name(): "second"})
	require.Contains(t, seen, "coordinate on first; join on second; fetch on second; pull on second; ",
		"of so many blobs the other node coordinates some")
	require.Contains(t, seen, "upstream on second; fetch on second; pull on second; ")
}

// tracedTwo starts two nodes that know each other.
func tracedTwo(t *testing.T, tracing, origin, more string) (first, second *node) {
	t.Helper()
	first = traced(t, tracing, origin, nil, more)
	at := fmt.Sprintf("%s/p2p/%s", first.swarm.Addrs()[0], first.swarm.ID())
	second = traced(t, tracing, origin, []string{at}, more)
	require.Eventually(t, func() bool { return len(second.swarm.Peers()) == 1 && len(first.swarm.Peers()) == 1 },
		time.Minute, 10*time.Millisecond)
	return first, second
}

func TestTrace_LeadsFromTheHubFrontToAPeerAndToTheHubByGRPC(t *testing.T) {
	t.Parallel()
	got := &otlptest.Receiver{}
	origin := hubtest.New()
	defer origin.Close()
	files := map[string]hubtest.File{"config.json": {Data: hubtest.Text("{}")}}
	for i := range 24 {
		files[fmt.Sprintf("model-%d.safetensors", i)] = hubtest.File{Data: hubtest.Random(uint64(i), 64<<10), LFS: true}
	}
	origin.Repo("models", "org/m").Commit("main", files)

	first, second := tracedTwo(t, fmt.Sprintf("endpoint: %q, protocol: grpc", got.GRPC(t)), "http://127.0.0.1:1",
		fmt.Sprintf("hub: {enabled: true, listen: \"127.0.0.1:0\", endpoint: %q}\n"+
			"upstream: {allowAddresses: [127.0.0.0/8]}", origin.URL()))
	for name := range files {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/org/m/resolve/main/"+name, nil)
		r.RemoteAddr = "127.0.0.1:1"
		w := httptest.NewRecorder()
		second.hub.ServeHTTP(w, r)
		require.Equal(t, http.StatusOK, w.Code, w.Body.String())
	}
	require.NoError(t, second.close(t.Context()))
	require.NoError(t, first.close(t.Context()))

	seen := pathsOf(got.Spans(), map[string]string{first.name(): "first", second.name(): "second"})
	require.Contains(t, seen, "coordinate on first; join on second; fetch on second; download on second; ",
		"of so many files the other node coordinates some")
	require.Contains(t, seen, "upstream on second; fetch on second; download on second; ")
	require.Contains(t, seen, "ask on second; download on second; ", "the hub is asked what the revision is")
}
