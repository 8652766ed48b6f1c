package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/chaos/internal/puller"
	"github.com/shoal-cache/shoal/test/internal/badregistry"
	"github.com/shoal-cache/shoal/test/internal/proc"
)

// fuseDisk is an ext4 file system that a process serves. While that is stopped, whoever reads from the disk or writes
// to it hangs in the kernel, as on a dead network disk.
type fuseDisk struct {
	image, dir string
	server     *exec.Cmd
}

// newFuseDisk skips the test where there can be none.
func newFuseDisk(t *testing.T) *fuseDisk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("the kernel has no FUSE: ", err)
	}
	for _, tool := range []string{"fuse2fs", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err, " (Debian: apt-get install fuse2fs e2fsprogs)")
		}
	}
	d := &fuseDisk{image: filepath.Join(t.TempDir(), "image"), dir: filepath.Join(t.TempDir(), "disk")}
	require.NoError(t, os.Mkdir(d.dir, 0o755))
	require.NoError(t, os.WriteFile(d.image, nil, 0o600))
	require.NoError(t, os.Truncate(d.image, 256<<20))
	out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", d.image).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return d
}

func (d *fuseDisk) mount(ctx context.Context) error {
	d.server = exec.CommandContext(context.WithoutCancel(ctx), "fuse2fs", "-f", d.image, d.dir)
	if err := d.server.Start(); err != nil {
		return fmt.Errorf("fuse2fs: %w", err)
	}
	return until(ctx, func() error {
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err == nil && !strings.Contains(string(mounts), " "+d.dir+" ") {
			err = fmt.Errorf("%s is not mounted", d.dir)
		}
		return err
	})
}

func (d *fuseDisk) unmount() {
	_ = d.server.Process.Signal(syscall.SIGCONT) // where the test failed in between
	_ = syscall.Unmount(d.dir, 0)                // it may hang on what the agent has open
	_ = syscall.Unmount(d.dir, syscall.MNT_DETACH)
	_ = d.server.Wait() // it ends with the mount
}

// get is the status and the body of one answer, which has to come within the bound.
func get(ctx context.Context, url string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, refuseWithin)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// says is nil where the agent gives that status, and a body that holds the text.
func (a *agent) says(ctx context.Context, path string, status int, text string) error {
	got, body, err := get(ctx, a.admin+path)
	if err == nil && (got != status || !strings.Contains(body, text)) {
		err = fmt.Errorf("%s: %d, without %q or with another status", path, got, text)
	}
	return err
}

// hungDisk is an agent that holds an image on a disk which hangs while its server is stopped, and how the image is pulled.
func hungDisk(t *testing.T) (disk *fuseDisk, a *agent, spec puller.Spec, registry net.Listener) {
	t.Helper()
	disk = newFuseDisk(t)
	served := badregistry.New()
	registry, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { registry.Close() })
	go func() { _ = served.Serve(registry) }() // it ends with the listener
	url := "http://" + registry.Addr().String()
	image, err := badregistry.NewImage("team/app", false, 1, 5<<20, 2<<20, 300<<10)
	require.NoError(t, err)
	served.Add(image)
	spec = puller.Spec{Image: image, Dial: (&net.Dialer{}).DialContext, Namespace: "images.test", Tries: 1}

	require.NoError(t, disk.mount(t.Context()))
	t.Cleanup(func() { disk.unmount() })
	dir := t.TempDir()
	require.NoError(t, os.Symlink(disk.dir, filepath.Join(dir, "store")))
	a, err = startAgent(t.Context(), dir, url)
	require.NoError(t, err)
	spec.Mirror = a.mirror
	require.NoError(t, puller.Pull(t.Context(), spec).Err, "by the agent alone")
	a.process.Stop()

	// Mounted anew, so that nothing of what it holds is in memory.
	disk.unmount()
	require.NoError(t, disk.mount(t.Context()))
	require.NoError(t, a.start(t.Context()))
	t.Cleanup(func() { a.process.Kill() })
	return disk, a, spec, registry
}

func TestHungDisk_CallersGoThroughToTheRegistryAndTheAgentSaysSo(t *testing.T) {
	t.Parallel()
	disk, a, spec, registry := hungDisk(t)
	require.NoError(t, disk.server.Process.Signal(syscall.SIGSTOP))
	for range 2 {
		pulled := puller.Pull(t.Context(), spec)
		require.NoError(t, pulled.Err, "by the agent alone, which reads from the registry")
		require.Empty(t, pulled.Bad)
	}
	require.NoError(t, until(t.Context(), func() error {
		return a.says(t.Context(), "/healthz", http.StatusServiceUnavailable, "the disk hangs")
	}), "so the guard unplugs the node")
	require.NoError(t, a.says(t.Context(), "/readyz", http.StatusServiceUnavailable, "the disk hangs"))
	require.NoError(t, a.says(t.Context(), "/metrics", http.StatusOK, "shoal_store_free_disk_bytes -1"))
	require.NoError(t, puller.Pull(t.Context(), spec).Err, "by the agent alone")

	require.NoError(t, disk.server.Process.Signal(syscall.SIGCONT))
	require.NoError(t, until(t.Context(), func() error { return a.says(t.Context(), "/healthz", http.StatusOK, "") }))
	require.NoError(t, until(t.Context(), a.ready))
	registry.Close()
	require.NoError(t, until(t.Context(), func() error { return puller.Pull(t.Context(), spec).Err }),
		"of what it held all the time")
}

// The guard is the one who acts on what the agent says. The test is in the place of what starts an agent again.
func TestHungDisk_TheGuardUnplugsTheNodeAndPlugsItInAgain(t *testing.T) {
	t.Parallel()
	disk, a, spec, _ := hungDisk(t)
	root := t.TempDir()
	guard, err := proc.Start(exec.Command(agentBinary, "mirror", "guard", "--root", root, "--path", "/certs.d",
		"--state-dir", "/state", "--endpoint", a.mirror, "--health", a.admin+"/healthz"),
		filepath.Join(t.TempDir(), "guard"))
	require.NoError(t, err)
	defer guard.Kill()
	plugged := func() error {
		if err := guard.Exited(); err != nil {
			return err
		}
		hosts, err := os.ReadFile(filepath.Join(root, "certs.d/_default/hosts.toml"))
		if err == nil && !strings.Contains(string(hosts), a.mirror) {
			err = fmt.Errorf("the runtime is told: %s", hosts)
		}
		return err
	}
	require.NoError(t, until(t.Context(), plugged))

	require.NoError(t, disk.server.Process.Signal(syscall.SIGSTOP))
	began := time.Now()
	_ = puller.Pull(t.Context(), spec) // by which the agent meets the disk, and in whose midst it may be ended
	require.NoError(t, until(t.Context(), func() error {
		c, err := net.DialTimeout("tcp", strings.TrimPrefix(a.mirror, "http://"), time.Second)
		if err != nil || plugged() != nil {
			return nil //nolint:nilerr // nobody is asked any more who does not answer
		}
		return errors.Join(errors.New("the node is still plugged in"), c.Close(), guard.Exited())
	}))
	t.Logf("unplugged after %s", time.Since(began))

	require.NoError(t, disk.server.Process.Signal(syscall.SIGCONT))
	a.process.Kill() // which the guard did before, as a rule
	require.NoError(t, a.start(t.Context()))
	require.NoError(t, until(t.Context(), plugged))
	require.NoError(t, puller.Pull(t.Context(), spec).Err, "by the agent alone")
	guard.Stop()
	require.Error(t, plugged(), "the guard leaves nothing behind")
}
