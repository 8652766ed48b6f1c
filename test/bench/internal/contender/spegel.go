package contender

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/shoal-cache/shoal/test/bench/internal/containerd"
	"github.com/shoal-cache/shoal/test/internal/proc"
)

// spegelMetrics is where each Spegel serves its metrics and profiles.
const spegelMetrics = "127.0.0.1:9090"

// Spegel is one Spegel on every host, over the content that containerd there holds. Its clients are containerd, since
// it shares nothing else.
type Spegel struct {
	// Binary is the user's; there is none where it is empty. The flags are those of its releases 0.7.0 to 0.7.4.
	Binary string
}

// Name implements Contender.
func (Spegel) Name() string { return "spegel" }

// Missing implements Contender.
func (s Spegel) Missing() string {
	if s.Binary == "" {
		return "no binary was given; -spegel takes the path of one"
	}
	if _, err := exec.LookPath(s.Binary); err != nil {
		return fmt.Sprintf("%s cannot be run (%v)", s.Binary, err)
	}
	// It announces a layer when containerd says that the layer has come, and learns of none otherwise.
	return containerd.MissingEvents()
}

// NeedsContainerd implements RuntimeBound.
func (Spegel) NeedsContainerd() {}

// Start implements Contender.
func (s Spegel) Start(ctx context.Context, site Site) (*Running, error) {
	running := &Running{Admin: "http://" + spegelMetrics}
	for i, host := range site.Hosts {
		runtime := site.Runtimes[i]
		cmd := host.Command(ctx, s.Binary, "registry",
			"--registry-addr", ":5050", "--router-addr", fmt.Sprintf("%s:5001", host.Addr),
			"--metrics-addr", spegelMetrics, "--mirrored-registries", "http://"+Registry,
			"--containerd-sock", runtime.Socket(), "--containerd-namespace", containerd.Namespace,
			"--containerd-content-path", runtime.ContentStore(), "--data-dir",
			filepath.Join(site.Dir, host.Name+"-spegel"),
			"--bootstrap-kind", "http", "--http-bootstrap-addr", ":5002",
			"--http-bootstrap-peer", fmt.Sprintf("http://%s:5002", site.Hosts[0].Addr))
		process, err := proc.Start(cmd, filepath.Join(site.Dir, host.Name+".log"))
		if err != nil {
			running.Stop()
			return nil, err
		}
		running.Processes = append(running.Processes, process)
		running.Mirrors = append(running.Mirrors, "http://127.0.0.1:5050")
	}
	// It answers pulls before it has met its peers, and drops for good what it would announce by then.
	for i, host := range site.Hosts {
		if err := awaitOK(ctx, host, running.Processes[i], "http://127.0.0.1:5050/readyz"); err != nil {
			running.Stop()
			return nil, err
		}
	}
	return running, nil
}
