// Package containerd runs a real containerd on a host of the benchmark, and pulls images with it.
package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/shoal-cache/shoal/test/bench/internal/client"
	"github.com/shoal-cache/shoal/test/internal/netns"
	"github.com/shoal-cache/shoal/test/internal/proc"
)

const (
	// Namespace is containerd's own namespace of the images: that of Kubernetes, which is where peers look for them.
	Namespace = "k8s.io"

	readyTimeout = 30 * time.Second
	readyPoll    = 100 * time.Millisecond
	sampleEvery  = 100 * time.Millisecond
	// someContent is more than a manifest and a config: from here on a layer has begun to arrive.
	someContent = 64 << 10
)

// Daemon is a running containerd.
type Daemon struct {
	// Process is the daemon.
	Process *proc.Process

	host *netns.Host
	dir  string
}

// Missing says why containerd cannot run on this machine, and is empty when it can.
func Missing() string {
	for _, program := range []string{"containerd", "ctr"} {
		if _, err := exec.LookPath(program); err != nil {
			return program + " is not installed (Debian: apt-get install containerd)"
		}
	}
	return ""
}

// MissingEvents says why containerd here publishes no event for a blob that it has stored, and is empty when it does.
func MissingEvents() string {
	if missing := Missing(); missing != "" {
		return missing
	}
	out, err := exec.CommandContext(context.Background(), "containerd", "--version").Output()
	if err != nil {
		return fmt.Sprintf("containerd --version: %v", err)
	}
	var major, minor int
	fields := strings.Fields(string(out)) // "containerd", its Go module, its version, and maybe its revision
	if len(fields) < 3 {
		return fmt.Sprintf("containerd --version says %q", out)
	}
	if _, err := fmt.Sscanf(strings.TrimPrefix(fields[2], "v"), "%d.%d", &major, &minor); err != nil {
		return fmt.Sprintf("containerd --version says %q", out)
	}
	if major < 2 || major == 2 && minor < 1 {
		return fmt.Sprintf("containerd %s tells nobody of a layer that has come; 2.1 and later do", fields[2])
	}
	return ""
}

// Start starts containerd on a host with everything below dir, and returns when it answers.
func Start(ctx context.Context, host *netns.Host, dir string) (*Daemon, error) {
	d := &Daemon{host: host, dir: dir}
	if err := os.MkdirAll(d.MirrorConfig(), 0o755); err != nil {
		return nil, fmt.Errorf("containerd's folder: %w", err)
	}
	config, err := toml.Marshal(map[string]any{
		"version": 2, "root": filepath.Join(dir, "root"), "state": filepath.Join(dir, "state"),
		"grpc":  map[string]any{"address": d.Socket()},
		"ttrpc": map[string]any{"address": d.Socket() + ".ttrpc"},
		"plugins": map[string]any{
			"io.containerd.grpc.v1.cri": map[string]any{
				"registry": map[string]any{"config_path": d.MirrorConfig()}},
			"io.containerd.internal.v1.opt": map[string]any{"path": filepath.Join(dir, "opt")},
			"io.containerd.nri.v1.nri":      map[string]any{"disable": true}, // its socket is one for the whole machine
		},
	})
	if err != nil {
		return nil, fmt.Errorf("configure containerd: %w", err)
	}
	path := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(path, config, 0o644); err != nil {
		return nil, fmt.Errorf("configure containerd: %w", err)
	}
	cmd := host.Command(ctx, "containerd", "--config", path)
	if d.Process, err = proc.Start(cmd, filepath.Join(dir, "containerd.log")); err != nil {
		return nil, err
	}
	if err := d.await(ctx); err != nil {
		d.Process.Stop()
		return nil, err
	}
	return d, nil
}

// Socket is where the daemon answers.
func (d *Daemon) Socket() string { return filepath.Join(d.dir, "containerd.sock") }

// MirrorConfig is the directory of the daemon's hosts.toml files.
func (d *Daemon) MirrorConfig() string { return filepath.Join(d.dir, "certs.d") }

// ContentStore is the directory of the daemon's content.
func (d *Daemon) ContentStore() string {
	return filepath.Join(d.dir, "root", "io.containerd.content.v1.content")
}

func (d *Daemon) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		out, err := d.ctr(ctx, "version").CombinedOutput()
		if err == nil {
			return nil
		}
		if ended := d.Process.Exited(); ended != nil {
			return ended
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd on %s does not answer: %s", d.host.Name, bytes.TrimSpace(out))
		case <-time.After(readyPoll):
		}
	}
}

func (d *Daemon) ctr(ctx context.Context, args ...string) *exec.Cmd {
	return d.host.Command(ctx, "ctr", append([]string{"--address", d.Socket(), "--namespace", Namespace}, args...)...)
}

// Pull pulls one image with its endpoints in hosts.toml, as an administrator would set them, and without unpacking it.
// The second value is the CPU time of daemon and command.
func (d *Daemon) Pull(ctx context.Context, spec client.Spec) (client.Result, time.Duration, error) {
	if err := d.writeMirrors(spec); err != nil {
		return client.Result{}, 0, err
	}
	select {
	case <-ctx.Done():
		return client.Result{}, 0, fmt.Errorf("waiting for the start: %w", context.Cause(ctx))
	case <-time.After(time.Until(spec.Start)):
	}
	before, err := d.Process.Usage()
	if err != nil {
		return client.Result{}, 0, err
	}
	held := d.contentSize()
	r := client.Result{Started: time.Now()}
	curve := client.Sample(r.Started, sampleEvery, func() int64 { return d.contentSize() - held })
	deadline, cancel := context.WithTimeout(ctx, spec.Timeout)
	defer cancel()
	reference := fmt.Sprintf("%s/%s:%s", spec.Namespace, spec.Repository, spec.Tag)
	cmd := d.ctr(deadline, "content", "fetch", "--hosts-dir", d.MirrorConfig(), reference)
	out, err := cmd.CombinedOutput()
	r.Done = time.Now()
	r.Curve = curve()
	r.Bytes = d.contentSize() - held
	r.Curve = append(r.Curve, client.Point{At: r.Done.Sub(r.Started), Bytes: r.Bytes})
	for _, point := range r.Curve {
		if point.Bytes > someContent {
			r.FirstByte = point.At
			break
		}
	}
	if err != nil {
		r.Err = fmt.Sprintf("ctr: %v: %s", err, bytes.TrimSpace(out[max(0, len(out)-500):]))
	}
	after, err := d.Process.Usage()
	if err != nil {
		return client.Result{}, 0, err
	}
	return r, after.CPU - before.CPU + cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// writeMirrors writes the hosts.toml of the registry (containerd's docs/hosts.md).
func (d *Daemon) writeMirrors(spec client.Spec) error {
	last := len(spec.Endpoints) - 1
	mirrors := map[string]any{}
	for _, endpoint := range spec.Endpoints[:max(1, last)] { // containerd 1.6 reads no file that has a server alone
		mirrors[endpoint] = map[string]any{"capabilities": []string{"pull", "resolve"}}
	}
	text, err := toml.Marshal(map[string]any{"server": spec.Endpoints[last], "host": mirrors})
	if err != nil {
		return fmt.Errorf("mirrors of %s: %w", d.host.Name, err)
	}
	folder := filepath.Join(d.MirrorConfig(), spec.Namespace)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("mirrors of %s: %w", d.host.Name, err)
	}
	if err := os.WriteFile(filepath.Join(folder, "hosts.toml"), text, 0o644); err != nil {
		return fmt.Errorf("mirrors of %s: %w", d.host.Name, err)
	}
	return nil
}

// contentSize is the size of what the content store holds, committed or arriving.
func (d *Daemon) contentSize() int64 {
	total := int64(0)
	// Files come and go meanwhile; one missed makes a sample too small, no more.
	_ = filepath.WalkDir(d.ContentStore(), func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		arriving := entry.Name() == "data" && filepath.Base(filepath.Dir(filepath.Dir(path))) == "ingest"
		committed := filepath.Base(filepath.Dir(filepath.Dir(path))) == "blobs"
		if info, err := entry.Info(); err == nil && !entry.IsDir() && (arriving || committed) {
			total += info.Size()
		}
		return nil
	})
	return total
}
