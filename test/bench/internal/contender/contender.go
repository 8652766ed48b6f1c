// Package contender holds what the benchmark compares: ways for many hosts to pull from one registry. Each brings
// itself up on the hosts of a site, cold, and says where the clients on a host find it.
package contender

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-cache/shoal/test/bench/internal/containerd"
	"github.com/shoal-cache/shoal/test/internal/netns"
	"github.com/shoal-cache/shoal/test/internal/proc"
)

const (
	// readyTimeout is how long a contender has to come up.
	readyTimeout = 60 * time.Second
	readyPoll    = 50 * time.Millisecond
	// Registry is the name under which clients know the origin registry, as an image reference spells it.
	Registry = "images.test"
	// OriginPort is the origin registry's port.
	OriginPort = 5000
)

// Contender is a way to pull.
type Contender interface {
	// Name is a word for tables and flags.
	Name() string
	// Missing says why the contender cannot run on this machine, and is empty when it can.
	Missing() string
	// Start brings the contender up, with nothing cached, and returns when it is ready for pulls.
	Start(ctx context.Context, site Site) (*Running, error)
}

// RuntimeBound is a contender whose clients must be containerd.
type RuntimeBound interface {
	Contender
	NeedsContainerd()
}

// Site is where a contender runs.
type Site struct {
	Network *netns.Network
	// Hosts are those on which clients pull, Origin is the registry's.
	Hosts  []*netns.Host
	Origin *netns.Host
	// Runtimes are the containerds on Hosts, in their order; empty where the plain client pulls.
	Runtimes []*containerd.Daemon
	// Rate is that of every host's link.
	Rate netns.Rate
	// Dir is an empty directory for the contender's own files, Images the one that the origin serves.
	Dir, Images string
	// Program is this benchmark's own executable.
	Program string
	// Hub tells that the origin is a model hub.
	Hub bool
}

// OriginURL is the origin registry's base URL.
func (s Site) OriginURL() string { return fmt.Sprintf("http://%s:%d", s.Origin.Addr, OriginPort) }

// Running is a contender that is up.
type Running struct {
	// Mirrors are the base URLs that the clients on each host ask before the origin, in order of Site.Hosts. Empty: the
	// clients ask the origin.
	Mirrors []string
	// Hubs are the same where the origin is a model hub.
	Hubs []string
	// Processes are the contender's own, whose use of CPU and memory counts.
	Processes []*proc.Process
	// Admin is the base URL, the same on every host, of a server of /metrics and /debug/pprof. Empty: there is none.
	Admin string
	// Verifies tells that the mirror has verified what it serves, so a client need not to weigh the two alike.
	Verifies bool
	// CAFile holds the certificate of an HTTPS mirror, where set.
	CAFile string
	// StoreOnly tells that a client which asks for the last byte of a layer gets it once the whole layer is on its host
	// and verified, so clients ask for no more.
	StoreOnly bool
	// Keep is a directory to which clients write the blobs that they read, where set.
	Keep string
	// Coordinator is the number of the host whose agent coordinates a blob while all agents are there, where set.
	Coordinator func(context.Context, digest.Digest) (int, error)
}

// Stop ends the contender's processes.
func (r *Running) Stop() {
	for _, p := range r.Processes {
		p.Stop()
	}
}

// Usage adds up what the contender's processes have used: CPU of all, the peak memory of the largest that still runs.
func (r *Running) Usage() (proc.Usage, error) {
	var total proc.Usage
	for _, p := range r.Processes {
		u, err := p.Usage()
		if err != nil {
			return proc.Usage{}, err
		}
		total.CPU += u.CPU
		if p.Exited() == nil { // or the kernel's figure has in it what this program took before it became that one
			total.PeakRSS = max(total.PeakRSS, u.PeakRSS)
		}
	}
	return total, nil
}

// Direct is every host pulling from the registry itself: what happens where nothing is installed.
type Direct struct{}

// Name implements Contender.
func (Direct) Name() string { return "direct" }

// Missing implements Contender.
func (Direct) Missing() string { return "" }

// Start implements Contender.
func (Direct) Start(context.Context, Site) (*Running, error) { return &Running{}, nil }

// makeDir makes a directory and returns its path.
func makeDir(parent, name string) (string, error) {
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("contender's folder: %w", err)
	}
	return dir, nil
}

// awaitOK waits until a GET from inside a host answers 200, or p ends.
func awaitOK(ctx context.Context, h *netns.Host, p *proc.Process, url string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	web := http.Client{Transport: &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}}
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return fmt.Errorf("await %s: %w", url, err)
		}
		response, err := web.Do(request)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("answered %s", response.Status)
		}
		if ended := p.Exited(); ended != nil {
			return ended
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("await %s on %s: %w (last: %w)", url, h.Name, context.Cause(ctx), err)
		case <-time.After(readyPoll):
		}
	}
}
