// Package rig is the machinery of a chaos run: a swarm of real agents, each in a network namespace and on a file system
// of its own, the registries that they pull from, and a hand on every part that can fail.
package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"sigs.k8s.io/yaml"

	"github.com/shoal-cache/shoal/test/internal/netns"
	"github.com/shoal-cache/shoal/test/internal/proc"
)

const (
	// Mirror is where clients on a node find its agent, admin where its state is shown.
	Mirror    = "http://127.0.0.1:5050"
	admin     = "http://127.0.0.1:5051"
	swarmPort = 5052
	// Namespace is the registry's name in image references.
	Namespace = "images.test"
	// Asked begins the repositories of which agents ask the registry each time.
	Asked = "asked"
	// Evil is the name of a registry that claims to have everything.
	Evil = "evil.test"
	// bootstraps is how many agents every other knows from the start.
	bootstraps = 3
)

// Node is an agent and the machine it runs on.
type Node struct {
	Index int
	Host  *netns.Host

	dir, binary string
	disk        *disk
	starts      int
	peer        peer.ID

	mu      sync.Mutex // held while the process changes
	process *proc.Process
	peak    int64 // bytes of memory, of the processes before
	rotten  map[string]bool
}

func (n *Node) store() string  { return filepath.Join(n.disk.mount, "store") }
func (n *Node) config() string { return n.dir + ".yaml" }

func (n *Node) configure(bootstrap []string, registry, evil string) error {
	swarm := map[string]any{"listen": []string{fmt.Sprintf("/ip4/%s/tcp/%d", n.Host.Addr, swarmPort)}}
	if len(bootstrap) > 0 {
		swarm["bootstrap"] = bootstrap
	}
	b, err := yaml.Marshal(map[string]any{
		"registry": map[string]any{"listen": strings.TrimPrefix(Mirror, "http://")},
		"admin":    map[string]any{"listen": strings.TrimPrefix(admin, "http://")},
		"swarm":    swarm,
		"store":    map[string]any{"path": n.store(), "capacity": "256MiB", "minFree": "1MiB"},
		"upstreams": []any{
			map[string]any{"registry": Namespace, "endpoints": []string{registry}},
			map[string]any{"registry": "*", "endpoints": []string{evil}},
		},
		"policy": map[string]any{"rules": []any{map[string]any{
			"match": []string{Namespace + "/" + Asked + "/**"}, "tagTTL": "0s",
			"authorization": map[string]any{"ttl": "0s"},
		}}},
		// Nobody asks it for a model here, but its protocols are there to be attacked.
		"hub": map[string]any{"enabled": true, "listen": "127.0.0.1:5053", "endpoint": registry},
		"log": map[string]any{"level": "debug"},
	})
	if err != nil {
		return fmt.Errorf("configure node %d: %w", n.Index, err)
	}
	if err := os.WriteFile(n.config(), b, 0o644); err != nil {
		return fmt.Errorf("configure node %d: %w", n.Index, err)
	}
	return nil
}

// address is where the agent is dialled.
func (n *Node) address(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, n.binary, "id", "--config", n.config())
	var problem bytes.Buffer
	cmd.Stderr = &problem
	id, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(problem.Bytes()))
	}
	if n.peer, err = peer.Decode(string(bytes.TrimSpace(id))); err != nil {
		return "", fmt.Errorf("identity of node %d: %w", n.Index, err)
	}
	return fmt.Sprintf("/ip4/%s/tcp/%d/p2p/%s", n.Host.Addr, swarmPort, n.peer), nil
}

// Start starts the agent where it does not run.
func (n *Node) Start(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil && n.process.Exited() == nil {
		return nil
	}
	n.starts++
	p, err := proc.Start(n.Host.Plain(ctx, n.binary, "--config", n.config()),
		fmt.Sprintf("%s.%02d.log", n.dir, n.starts))
	if err != nil {
		return err
	}
	n.process = p
	return nil
}

// Kill ends the agent at once, Stop as an orderly end does.
func (n *Node) Kill() { n.end((*proc.Process).Kill) }

// Stop asks the agent to end.
func (n *Node) Stop() { n.end((*proc.Process).Stop) }

func (n *Node) end(how func(*proc.Process)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil {
		if usage, err := n.process.Usage(); err == nil {
			n.peak = max(n.peak, usage.PeakRSS)
		}
		how(n.process)
	}
	n.process = nil
}

// Signal sends SIGSTOP or SIGCONT. An agent that has ended hears nothing.
func (n *Node) Signal(s syscall.Signal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process != nil {
		_ = n.process.Signal(s)
	}
}

// Died is an error where the agent has ended by itself.
func (n *Node) Died() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return nil
	}
	return n.process.Exited()
}

// FailDisk makes the file system read-only for good, MendDisk brings back a new one with what was synced. Between them
// the agent ends.
func (n *Node) FailDisk(ctx context.Context) error { return n.disk.fail(ctx) }

// MendDisk needs an agent that has ended.
func (n *Node) MendDisk(ctx context.Context) error {
	return errors.Join(n.disk.detach(ctx), n.disk.repair(ctx), n.disk.attach(ctx))
}

// FillDisk leaves nothing free, FreeDisk undoes it.
func (n *Node) FillDisk() error { return n.disk.fill() }

// FreeDisk undoes FillDisk.
func (n *Node) FreeDisk() error { return n.disk.empty() }

// Rot damages one of the wanted blobs, and returns its digest, empty where the node holds none.
func (n *Node) Rot(seed uint64, wanted func(digest string) bool) (string, error) {
	d, err := n.disk.rot(n.store(), seed, wanted)
	if d != "" {
		n.mu.Lock()
		n.rotten[d] = true
		n.mu.Unlock()
	}
	return d, err
}

// Rotten reports whether a blob was damaged on this node.
func (n *Node) Rotten(digest string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rotten[digest]
}

// State is what an agent uses. Peak is the most memory that any of a node's processes has taken.
type State struct {
	RSS, Peak, Heap          int64
	Goroutines, Files, Peers int
	CPU                      time.Duration
}

// State asks the agent and the kernel.
func (n *Node) State(ctx context.Context) (State, error) {
	n.mu.Lock()
	process, peak := n.process, n.peak
	n.mu.Unlock()
	if process == nil {
		return State{}, fmt.Errorf("node %d does not run", n.Index)
	}
	usage, err := process.Usage()
	if err != nil {
		return State{}, err
	}
	s := State{RSS: usage.RSS, Peak: max(peak, usage.PeakRSS), CPU: usage.CPU}
	var metrics []byte
	if err := n.get(ctx, "/metrics", func(b []byte) error { metrics = b; return nil }); err != nil {
		return s, err
	}
	for line := range strings.Lines(string(metrics)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue // a comment
		}
		switch name {
		case "go_goroutines":
			s.Goroutines = int(v)
		case "go_memstats_heap_inuse_bytes":
			s.Heap = int64(v)
		case "process_open_fds":
			s.Files = int(v)
		case "shoal_swarm_peers":
			s.Peers = int(v)
		}
	}
	return s, nil
}

// Ready is an error while the agent says that it is not.
func (n *Node) Ready(ctx context.Context) error {
	return n.get(ctx, "/readyz", func([]byte) error { return nil })
}

// Held are the digests that the agent says it holds.
func (n *Node) Held(ctx context.Context) (map[string]bool, error) {
	held := map[string]bool{}
	err := n.get(ctx, "/debug/shoal/blobs", func(b []byte) error {
		var blobs []struct{ Digest string }
		if err := json.Unmarshal(b, &blobs); err != nil {
			return err
		}
		for _, blob := range blobs {
			held[blob.Digest] = true
		}
		return nil
	})
	return held, err
}

// Evicted are the digests of the blobs that the agent says it has evicted since a time.
func (n *Node) Evicted(since time.Time) (map[string]bool, error) {
	logs, err := filepath.Glob(n.dir + ".*.log")
	if err != nil {
		return nil, err
	}
	evicted := map[string]bool{}
	for _, path := range logs {
		log, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(log) {
			var said struct {
				Time        time.Time
				Msg, Digest string
			}
			if !bytes.Contains(line, []byte(`"evicted a blob"`)) || json.Unmarshal(line, &said) != nil {
				continue // or the last line of one that was killed
			}
			if said.Msg == "evicted a blob" && said.Time.After(since) {
				evicted[said.Digest] = true
			}
		}
	}
	return evicted, nil
}

// Goroutines are the stacks of the agent.
func (n *Node) Goroutines(ctx context.Context) (stacks string, err error) {
	err = n.get(ctx, "/debug/pprof/goroutine?debug=1", func(b []byte) error { stacks = string(b); return nil })
	return stacks, err
}

func (n *Node) get(ctx context.Context, path string, use func([]byte) error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, admin+path, nil)
	if err != nil {
		return fmt.Errorf("node %d: %w", n.Index, err)
	}
	web := http.Client{Transport: &http.Transport{DialContext: n.Host.DialContext, DisableKeepAlives: true}}
	response, err := web.Do(request)
	if err != nil {
		return fmt.Errorf("node %d: %w", n.Index, err)
	}
	defer response.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(response.Body); err != nil {
		return fmt.Errorf("node %d: %s: %w", n.Index, path, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("node %d: %s: %s: %s", n.Index, path, response.Status, bytes.TrimSpace(b.Bytes()))
	}
	return use(b.Bytes())
}
