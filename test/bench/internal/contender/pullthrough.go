package contender

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/shoal-cache/shoal/test/internal/proc"
)

// PullThrough is one pull-through cache for all hosts: the distribution registry (Debian's docker-registry) on a host
// of its own, whose link is like any other.
type PullThrough struct {
	// Binary is the registry's executable.
	Binary string
}

// Name implements Contender.
func (PullThrough) Name() string { return "pull-through" }

// Missing implements Contender.
func (p PullThrough) Missing() string {
	if _, err := exec.LookPath(p.Binary); err != nil {
		return p.Binary + " is not installed (Debian: apt-get install docker-registry)"
	}
	return ""
}

// Start implements Contender.
func (p PullThrough) Start(ctx context.Context, site Site) (*Running, error) {
	host, err := site.Network.AddHost(ctx, "cache", "", site.Rate)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(site.Dir, "registry.yml")
	text := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}}
http: {addr: ":5000"}
proxy: {remoteurl: %q}
`, filepath.Join(site.Dir, "registry"), site.OriginURL())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("configure %s: %w", p.Binary, err)
	}
	process, err := proc.Start(host.Command(ctx, p.Binary, "serve", config), filepath.Join(site.Dir, "registry.log"))
	if err != nil {
		return nil, err
	}
	running := &Running{Processes: []*proc.Process{process}}
	url := fmt.Sprintf("http://%s:5000", host.Addr)
	for range site.Hosts {
		running.Mirrors = append(running.Mirrors, url)
	}
	if err := awaitOK(ctx, host, process, url+"/v2/"); err != nil {
		running.Stop()
		return nil, err
	}
	return running, nil
}
