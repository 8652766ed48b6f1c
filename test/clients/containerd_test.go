package clients

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"
)

// containerd is a running containerd with folders and a socket of its own.
type containerd struct {
	ctr    string // the client's path
	socket string
	root   string
}

// startContainerd starts a containerd from a program, with the settings of plugins, and with snapshotters that are
// processes of their own.
func startContainerd(t *testing.T, daemon, ctr string, plugins, proxies map[string]any) containerd {
	t.Helper()
	needsRoot(t)
	dir := shortDir(t)
	c := containerd{ctr: ctr, socket: filepath.Join(dir, "containerd.sock"), root: filepath.Join(dir, "root")}
	settings := map[string]any{"io.containerd.internal.v1.opt": map[string]any{"path": filepath.Join(dir, "opt")}}
	maps.Copy(settings, plugins)
	config := map[string]any{
		"version": 2, "root": c.root, "state": filepath.Join(dir, "state"),
		"grpc":  map[string]any{"address": c.socket},
		"ttrpc": map[string]any{"address": c.socket + ".ttrpc"},
		"disabled_plugins": []string{"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images",
			"io.containerd.cri.v1.runtime"},
		"plugins":       settings,
		"proxy_plugins": proxies,
	}
	text, err := toml.Marshal(config)
	require.NoError(t, err)
	path := filepath.Join(dir, "config.toml")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	start(t, nil, func(ctx context.Context) error {
		_, err := run(ctx, nil, ctr, "--address", c.socket, "version")
		return err
	}, daemon, "--config", path)
	return c
}

// content is the folder of the content store.
func (c containerd) content() string {
	return filepath.Join(c.root, "io.containerd.content.v1.content")
}

// pull pulls an image through an agent, with the mirror configuration that shoal-node writes, and unpacks it.
func (c containerd) pull(t *testing.T, a *agent, img image, account, snapshotter string) error {
	t.Helper()
	args := []string{"--address=" + c.socket, "images", "pull", "--snapshotter=" + snapshotter,
		"--hosts-dir=" + a.installMirror(t, "containerd", img.registry.host, "etc/containerd/certs.d")}
	if account != "" {
		args = append(args, "--user="+account)
	}
	return tryRun(t, nil, c.ctr, append(args, img.reference())...)
}

func debianContainerd(t *testing.T, a *agent, img image, account string) (string, error) {
	t.Helper()
	c := startContainerd(t, "/usr/bin/containerd", "/usr/bin/ctr", nil, nil)
	return c.content(), c.pull(t, a, img, account, "native")
}

func containerd2(t *testing.T, a *agent, img image, account string) (string, error) {
	t.Helper()
	c := startContainerd(t, program(t, "containerd"), program(t, "ctr"), transfer("native", nil), nil)
	return c.content(), c.pull(t, a, img, account, "native")
}

// containerd2Parallel takes each layer in parallel Ranges of a MiB.
func containerd2Parallel(t *testing.T, a *agent, img image, account string) (string, error) {
	t.Helper()
	c := startContainerd(t, program(t, "containerd"), program(t, "ctr"), transfer("native", map[string]any{
		"max_concurrent_downloads": 4, "concurrent_layer_fetch_buffer": mib,
	}), nil)
	return c.content(), c.pull(t, a, img, account, "native")
}

// transfer are the settings of containerd 2's transfer service, which pulls for ctr: the snapshotter that it may unpack
// with, and more.
func transfer(snapshotter string, more map[string]any) map[string]any {
	settings := map[string]any{"unpack_config": []any{map[string]any{"platform": "linux", "snapshotter": snapshotter}}}
	maps.Copy(settings, more)
	return map[string]any{"io.containerd.transfer.v1.local": settings}
}
