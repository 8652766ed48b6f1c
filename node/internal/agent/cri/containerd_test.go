package cri_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/pullsecret"
	"github.com/shoal-cache/shoal/node/internal/agent/cri"
	"github.com/shoal-cache/shoal/node/internal/agent/pin"
	"github.com/shoal-cache/shoal/node/internal/content"
	"github.com/shoal-cache/shoal/test/registrytest"
)

// A real containerd pulls a private image through a mirror of another address than the registry's, with the pin's
// credentials.
func TestContainerdShowsTheMirrorThePinsCredentials(t *testing.T) {
	t.Parallel()
	program := containerd(t)
	mirror := registrytest.New(t)
	image, err := random.Image(100, 1)
	require.NoError(t, err)
	mirror.Push(t, "team/app:1", image)
	mirror.Protect("team/app", registrytest.Basic("u", "right"))

	dir := t.TempDir()
	certs := filepath.Join(dir, "certs.d", "private.example")
	require.NoError(t, os.MkdirAll(certs, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(certs, "hosts.toml"), fmt.Appendf(nil,
		"server = \"http://127.0.0.1:1\"\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror.URL), 0o600))
	config := filepath.Join(dir, "config.toml")
	// It shares nothing with others on this machine.
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `version = 3
root = %q
state = %q
[grpc]
  address = %q
[ttrpc]
  address = %q
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "native"
  use_local_image_pull = true
[plugins."io.containerd.cri.v1.images".registry]
  config_path = %q
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.internal.v1.opt"]
  path = %q
`, dir+"/root", dir+"/state", dir+"/c.sock", dir+"/t.sock", dir+"/certs.d", dir+"/opt"), 0o600))
	run := exec.Command(program, "--config", config)
	output, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	run.Stdout, run.Stderr = output, output
	run.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, run.Start())
	t.Cleanup(func() {
		require.NoError(t, run.Process.Signal(syscall.SIGTERM))
		_ = run.Wait()
		if said, err := os.ReadFile(output.Name()); err == nil && t.Failed() {
			t.Logf("%s", said)
		}
		require.NoError(t, output.Close())
	})

	images, err := cri.New("unix://" + dir + "/c.sock")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, images.Close()) })
	wanted := pin.Image{
		Repository: content.Repository{Registry: "private.example", Name: "team/app"}, Tag: "1",
		Digest: registrytest.Closure(t, image)[0],
	}
	require.Eventually(t, func() bool {
		held, err := images.Holds(t.Context(), wanted)
		return err == nil && !held
	}, 90*time.Second, 100*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	require.Error(t, images.Load(ctx, wanted))
	wanted.Credential = pullsecret.Credential{Username: "u", Password: "right"}
	require.NoError(t, images.Load(ctx, wanted))
	held, err := images.Holds(ctx, wanted)
	require.NoError(t, err)
	require.True(t, held)
}

// containerd is the one that hack/cluster/build.sh made. It takes root to run it.
func containerd(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	program := filepath.Join(cache, "shoal", "cluster", "bin", "containerd")
	if _, err := os.Stat(program); err != nil || os.Getuid() != 0 {
		t.Skipf("needs root and %s: run hack/cluster/build.sh", program)
	}
	return program
}
