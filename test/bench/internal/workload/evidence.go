package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-cache/shoal/test/internal/netns"
)

// keepEvidence copies what explains a run to the folder for logs: the logs of all processes and the metrics of those
// that have some. The folder is empty where nobody asked for it.
func (b *bed) keepEvidence() error {
	if b.KeepLogs == "" {
		return nil
	}
	if err := os.MkdirAll(b.KeepLogs, 0o755); err != nil {
		return fmt.Errorf("keep logs: %w", err)
	}
	logs, err := filepath.Glob(filepath.Join(b.site.Dir, "*.log"))
	if err != nil {
		return fmt.Errorf("keep logs: %w", err)
	}
	var errs []error
	for _, log := range logs {
		text, err := os.ReadFile(log)
		errs = append(errs, err, os.WriteFile(filepath.Join(b.KeepLogs, filepath.Base(log)), text, 0o644))
	}
	if b.contender != nil && b.contender.Admin != "" {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		for i, host := range b.hosts {
			if b.contender.Processes[i].Exited() == nil {
				errs = append(errs, b.save(ctx, host, "/metrics", host.Name+".metrics"))
			}
		}
	}
	return errors.Join(errs...)
}

// profileKinds are the profiles taken, as net/http/pprof names them, and as their files are named.
var profileKinds = []struct{ path, name string }{{"profile", "cpu"}, {"allocs", "alloc"}, {"block", "block"},
	{"mutex", "mutex"}}

// profile takes profiles of the contender on the first and the last host, over the time that the folder for logs and
// a duration were given for, and returns a function that waits for them.
func (b *bed) profile(ctx context.Context) (wait func() error) {
	if b.KeepLogs == "" || b.Profile <= 0 || b.contender.Admin == "" {
		return func() error { return nil }
	}
	var group errgroup.Group
	for _, host := range []*netns.Host{b.hosts[0], b.hosts[len(b.hosts)-1]} {
		for _, kind := range profileKinds {
			group.Go(func() error {
				path := fmt.Sprintf("/debug/pprof/%s?seconds=%d", kind.path, int(b.Profile.Seconds()))
				return b.save(ctx, host, path, host.Name+"."+kind.name+".pprof")
			})
		}
	}
	return group.Wait
}

// save writes what the contender's admin server on a host answers to a file in the folder for logs.
func (b *bed) save(ctx context.Context, host *netns.Host, path, name string) error {
	web := http.Client{Transport: &http.Transport{DialContext: host.DialContext, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.contender.Admin+path, nil)
	if err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	response, err := web.Do(request)
	if err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	defer response.Body.Close()
	if err := os.MkdirAll(b.KeepLogs, 0o755); err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	f, err := os.Create(filepath.Join(b.KeepLogs, name))
	if err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	_, err = io.Copy(f, response.Body)
	return errors.Join(err, f.Close())
}
