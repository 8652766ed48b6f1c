package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/shoal-cache/shoal/hack/httpget"
)

// agent is a running shoal-node.
type agent struct {
	pid int
	// front and admin are addresses; swarm is a multiaddr with the peer ID.
	front, admin, swarm string
	// defaultRegistry is what requests mean that name no registry.
	defaultRegistry string
}

// agentOptions say how an agent is configured.
type agentOptions struct {
	// front is the address of the registry front. Empty: a free one.
	front string
	// defaultRegistry is what requests mean that name no registry.
	defaultRegistry string
	// upstreams and mirror are the sections of the configuration of that name.
	upstreams []any
	mirror    map[string]any
}

// startAgents starts an agent for each default registry, which may be empty. They know one another and the registry.
func startAgents(t *testing.T, r *registry, defaultRegistries ...string) []*agent {
	t.Helper()
	options := make([]agentOptions, len(defaultRegistries))
	for i, registry := range defaultRegistries {
		options[i] = agentOptions{defaultRegistry: registry, upstreams: r.upstreams()}
	}
	return startAgentsWith(t, options...)
}

// upstreams tell an agent where the registry is.
func (r *registry) upstreams() []any {
	return []any{map[string]any{"registry": r.host, "endpoints": []string{r.url}}}
}

// startAgentsWith starts an agent for each of the options. They know one another.
func startAgentsWith(t *testing.T, options ...agentOptions) []*agent {
	t.Helper()
	node := program(t, "shoal-node")
	agents := make([]*agent, len(options))
	for i, o := range options {
		dir := t.TempDir()
		a := &agent{front: o.front, admin: freeAddress(t), defaultRegistry: o.defaultRegistry}
		if a.front == "" {
			a.front = freeAddress(t)
		}
		_, port, _ := strings.Cut(freeAddress(t), ":")
		listen := "/ip4/127.0.0.1/tcp/" + port
		var bootstrap []string
		if i > 0 {
			bootstrap = []string{agents[0].swarm}
		}
		settings := map[string]any{
			"registry":  map[string]any{"listen": a.front, "defaultRegistry": a.defaultRegistry},
			"admin":     map[string]any{"listen": a.admin},
			"swarm":     map[string]any{"listen": []string{listen}, "bootstrap": bootstrap},
			"store":     map[string]any{"path": filepath.Join(dir, "store"), "capacity": "8GiB", "minFree": "100MiB"},
			"upstreams": o.upstreams,
			"log":       map[string]any{"format": "text"},
		}
		if o.mirror != nil {
			settings["mirror"] = o.mirror
		}
		config, err := yaml.Marshal(settings)
		require.NoError(t, err)
		path := filepath.Join(dir, "shoal.yaml")
		require.NoError(t, os.WriteFile(path, config, 0o600))
		id, err := run(t.Context(), nil, node, "id", "--config", path)
		require.NoError(t, err)
		a.swarm = listen + "/p2p/" + strings.TrimSpace(id)
		a.pid = start(t, nil, func(ctx context.Context) error {
			_, err := httpget.Body(ctx, "http://"+a.admin+"/readyz")
			return err
		}, node, "--config", path).Pid
		agents[i] = a
	}
	for _, a := range agents {
		eventually(t, startTimeout, func() error { return a.knows(t.Context(), len(agents)-1) })
	}
	return agents
}

// knows fails while the agent is connected to fewer than n others.
func (a *agent) knows(ctx context.Context, n int) error {
	var peers []struct{}
	if err := a.view(ctx, "peers", &peers); err != nil {
		return err
	}
	if len(peers) < n {
		return fmt.Errorf("%s is connected to %d of %d others", a.front, len(peers), n)
	}
	return nil
}

// view reads a part of the agent's read-only view.
func (a *agent) view(ctx context.Context, name string, into any) error {
	body, err := httpget.Body(ctx, "http://"+a.admin+"/debug/shoal/"+name)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

// metric is the sum of a metric over all series that have the labels, given as name and value in turn.
func (a *agent) metric(t *testing.T, name string, labels ...string) int64 {
	t.Helper()
	body, err := httpget.Body(t.Context(), "http://"+a.admin+"/metrics")
	require.NoError(t, err)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	require.NoError(t, err)
	var total float64
	for _, m := range families[name].GetMetric() {
		values := map[string]string{}
		for _, pair := range m.GetLabel() {
			values[pair.GetName()] = pair.GetValue()
		}
		matches := true
		for i := 0; i < len(labels); i += 2 {
			matches = matches && values[labels[i]] == labels[i+1]
		}
		if matches {
			total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return int64(total)
}

// installMirror writes the mirror configuration of a runtime below a folder, as on a node, and returns where it is.
func (a *agent) installMirror(t *testing.T, runtime, host, path string) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "node")
	require.NoError(t, os.Mkdir(root, 0o755))
	_, err := run(t.Context(), nil, program(t, "shoal-node"), "mirror", "install", "--runtime="+runtime,
		"--endpoint=http://"+a.front,
		"--registry="+host, "--root="+root, "--state-dir="+filepath.Join(dir, "state"))
	require.NoError(t, err)
	return filepath.Join(root, path)
}
