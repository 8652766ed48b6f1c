package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"github.com/shoal-cache/shoal/hack/httpget"
	"github.com/shoal-cache/shoal/hack/ports"
)

// agent is a running shoal-node.
type agent struct {
	name     string
	registry string // address of its registry front
	hub      string // address of its hub front
	admin    string // URL of its admin address
	swarm    string // multiaddr of its swarm port
	store    string
	log      string
	process  *process
	killed   atomic.Bool
}

// portsEach is how many ports an agent listens on.
const portsEach = 4

// startAgents starts the agents, the first of which is the others' bootstrap peer, and returns when all are ready and
// know one another. Only they are admitted to the swarm.
func startAgents(ctx context.Context, children *processes, o options, dir, upstream string) ([]*agent, error) {
	free, err := ports.Loopback(ctx, portsEach*o.agents)
	if err != nil {
		return nil, err
	}
	agents, ids := make([]*agent, o.agents), make([]string, o.agents)
	for i := range agents {
		name, p := fmt.Sprintf("agent-%d", i), free[portsEach*i:]
		agents[i] = &agent{
			name:     name,
			registry: fmt.Sprintf("127.0.0.1:%d", p[0]),
			admin:    fmt.Sprintf("http://127.0.0.1:%d", p[1]),
			swarm:    fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", p[2]),
			hub:      fmt.Sprintf("127.0.0.1:%d", p[3]),
			store:    filepath.Join(dir, name),
			log:      filepath.Join(dir, name+".log"),
		}
		// An agent's peer ID is that of the key in its store, which this makes.
		id, err := exec.CommandContext(ctx, o.node, "id", "--store-path", agents[i].store).Output()
		if err != nil {
			return nil, fmt.Errorf("%s: shoal-node id: %w", name, err)
		}
		ids[i] = strings.TrimSpace(string(id))
	}
	for i, a := range agents {
		var bootstrap []string
		if i > 0 {
			bootstrap = []string{agents[0].swarm + "/p2p/" + ids[0]}
		}
		config := filepath.Join(dir, a.name+".yaml")
		if err := a.writeConfig(config, bootstrap, ids, upstream, o); err != nil {
			return nil, err
		}
		if a.process, err = children.start(ctx, a.log, o.node, "--config", config); err != nil {
			return nil, err
		}
	}
	for _, a := range agents {
		err := a.process.until(ctx, a.name, func(ctx context.Context) error {
			if _, err := httpget.Body(ctx, a.admin+"/readyz"); err != nil {
				return err
			}
			return a.knows(ctx, len(agents)-1)
		})
		if err != nil {
			a.explain(ctx)
			return nil, err
		}
	}
	return agents, nil
}

func (a *agent) writeConfig(path string, bootstrap, peers []string, upstream string, o options) error {
	c := map[string]any{
		"registry": map[string]any{"listen": a.registry},
		"admin":    map[string]any{"listen": strings.TrimPrefix(a.admin, "http://")},
		"swarm":    map[string]any{"listen": []string{a.swarm}, "bootstrap": bootstrap, "peers": peers},
		"store": map[string]any{
			"path": a.store, "capacity": fmt.Sprint(4 * o.size),
			"minFree": "100MiB", // a laptop's disk is often nearly full
		},
		"upstreams": []any{map[string]any{"registry": host, "endpoints": []string{upstream}}},
		"log":       map[string]any{"format": "text"},
	}
	if o.room > 0 {
		c["store"].(map[string]any)["modelCapacity"] = fmt.Sprint(o.room)
	}
	if o.hub != "" {
		c["hub"] = map[string]any{"enabled": true, "listen": a.hub, "endpoint": o.hub}
		c["upstream"] = map[string]any{"allowAddresses": []string{"127.0.0.0/8"}} // where the hub has its large files
	}
	config, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(path, config, 0o600)
}

// knows fails while the agent is connected to fewer than n others.
func (a *agent) knows(ctx context.Context, n int) error {
	body, err := httpget.Body(ctx, a.admin+"/debug/shoal/peers")
	if err != nil {
		return err
	}
	var peers []struct{}
	if err := json.Unmarshal(body, &peers); err != nil {
		return err
	}
	if len(peers) < n {
		return fmt.Errorf("connected to %d of %d others", len(peers), n)
	}
	return nil
}

// traffic is what an agent has moved, in bytes.
type traffic struct {
	upstream, fromPeers, toPeers int64
}

// traffic reads the agent's metrics.
func (a *agent) traffic(ctx context.Context) (traffic, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	body, err := httpget.Body(ctx, a.admin+"/metrics")
	if err != nil {
		return traffic{}, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return traffic{}, fmt.Errorf("metrics of %s: %w", a.name, err)
	}
	sum := func(name string) int64 {
		var total float64
		for _, m := range families[name].GetMetric() {
			total += m.GetCounter().GetValue()
		}
		return int64(total)
	}
	return traffic{
		upstream:  sum("shoal_upstream_bytes_total"),
		fromPeers: sum("shoal_peer_received_bytes_total"),
		toPeers:   sum("shoal_peer_sent_bytes_total"),
	}, nil
}

// killInTheMiddle kills the agent, without a chance to say goodbye, once it has a third of the image.
func killInTheMiddle(ctx context.Context, a *agent, img image) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.process.ended:
			return
		case <-tick.C:
			t, err := a.traffic(ctx)
			if err != nil || t.upstream+t.fromPeers < img.size()/3 {
				continue
			}
			a.killed.Store(true)
			if err := a.process.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				say("could not kill %s: %v", a.name, err)
			}
			return
		}
	}
}

// explain shows what may tell why a pull went wrong: the fetches that are not done, and the last warnings of the log.
func (a *agent) explain(ctx context.Context) {
	if body, err := httpget.Body(ctx, a.admin+"/debug/shoal/fetches"); err == nil {
		var fetches []struct {
			Digest  string    `json:"digest"`
			Size    int64     `json:"size"`
			Present int64     `json:"present"`
			Started time.Time `json:"started"`
		}
		_ = json.Unmarshal(body, &fetches) // what cannot be read is not shown
		for _, f := range fetches {
			fmt.Printf("  %s: %s: %s of %s after %s\n", a.name, f.Digest, mebibytes(f.Present), mebibytes(f.Size),
				time.Since(f.Started).Round(time.Second))
		}
	}
	f, err := os.Open(a.log)
	if err != nil {
		return
	}
	defer f.Close()
	var last []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if line := lines.Text(); !strings.Contains(line, "level=INFO") && !strings.Contains(line, "level=DEBUG") {
			last = append(last, line)
		}
	}
	for _, line := range last[max(0, len(last)-5):] {
		fmt.Printf("  %s: %s\n", a.name, line)
	}
}
