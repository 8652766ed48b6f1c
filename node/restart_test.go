package main

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/shoal-cache/shoal/api/v1alpha1"
	"github.com/shoal-cache/shoal/node/internal/config"
	"github.com/shoal-cache/shoal/node/internal/policy"
	"github.com/shoal-cache/shoal/node/internal/store"
)

// A node whose CachePolicy gives it more room than its configuration keeps what it holds when its agent starts anew,
// also while the API server is away.
func TestARestartEvictsNothingThatTheClustersPolicyKeeps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	kubeconfig := write("kubeconfig", `{apiVersion: v1, kind: Config, current-context: a, clusters: [{name: a, cluster: {server: "https://127.0.0.1:1"}}],
contexts: [{name: a, context: {cluster: a, user: a}}], users: [{name: a, user: {token: x}}]}`)
	file := write("config.yaml", `
registry: {listen: "127.0.0.1:0"}
admin: {listen: "127.0.0.1:0"}
swarm: {listen: [/ip4/127.0.0.1/tcp/0]}
store: {path: `+dir+`/store, capacity: 1MiB}
kubernetes: {enabled: true, nodeName: n, kubeconfig: `+kubeconfig+`}`)
	c, err := config.Load(file, nil, nil)
	require.NoError(t, err)

	before, err := store.Open(t.Context(), store.Options{Path: c.Store.Path})
	require.NoError(t, err)
	large := v1alpha1.EffectivePolicy{Policies: []string{"large"},
		Storage: v1alpha1.StoragePolicy{Capacity: resource.NewQuantity(1<<30, resource.BinarySI)}}
	raw, err := json.Marshal(large)
	require.NoError(t, err)
	require.NoError(t, before.KV("kubernetes").Put("policy", raw))
	for i := range 4 {
		blob := strings.Repeat(string(rune('a'+i)), 1<<20)
		require.NoError(t, before.Put(t.Context(), digest.FromString(blob), strings.NewReader(blob),
			int64(len(blob))))
	}
	require.NoError(t, before.Close())

	n := &node{
		config: c, log: slog.New(slog.DiscardHandler), started: time.Now(), metrics: prometheus.NewRegistry(),
		policy: policy.NewLive(c.EffectivePolicy()),
	}
	require.NoError(t, n.start(t.Context()))
	require.Equal(t, 4, n.store.Usage().Blobs)
	require.EqualValues(t, 1<<30, n.store.Usage().Capacity)
	require.NoError(t, n.close(t.Context()))
}
