package clients

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/hack/ports"
	"github.com/shoal-cache/shoal/test/internal/wait"
)

const (
	// commandTimeout bounds a command, startTimeout the time until a process is ready, stopTimeout its last will.
	commandTimeout = 3 * time.Minute
	startTimeout   = time.Minute
	stopTimeout    = 10 * time.Second
)

// program is the path of a program that hack/clients.sh has built.
func program(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("SHOAL_CLIENTS")
	if dir == "" {
		t.Skip("SHOAL_CLIENTS is not set: run make clients")
	}
	return filepath.Join(dir, name)
}

// needsRoot skips a test whose client mounts file systems.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// run runs a command to its end and returns its standard output. The error holds what it wrote to standard error.
func run(ctx context.Context, env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A program that the command left behind with its output open must not keep us.
	cmd.WaitDelay = stopTimeout
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err,
			strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// tryRun shows a command in the test's log and runs it.
func tryRun(t *testing.T, env []string, name string, args ...string) error {
	t.Helper()
	t.Logf("$ %s", strings.Join(slices.Concat(env, []string{filepath.Base(name)}, args), " "))
	_, err := run(t.Context(), env, name, args...)
	return err
}

// start starts a process that is ended with the test, and returns once ready says so. A failed test shows the end of
// its output.
func start(t *testing.T, env []string, ready func(context.Context) error, name string, args ...string) *os.Process {
	t.Helper()
	logFile := filepath.Join(t.TempDir(), filepath.Base(name)+".log")
	log, err := os.Create(logFile)
	require.NoError(t, err)
	defer log.Close()
	cmd := exec.Command(name, args...) // it is told to end in order, below
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	ended := make(chan struct{})
	var ending error
	go func() {
		defer close(ended)
		ending = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it fails only where the process has ended
		select {
		case <-ended:
		case <-time.After(stopTimeout):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("the last of %s:\n%s", name, tail(logFile))
		}
	})
	eventually(t, startTimeout, func() error {
		select {
		case <-ended:
			require.FailNow(t, "ended at once", "%s: %v: %s", name, ending, tail(logFile))
			return nil
		default:
			return ready(t.Context())
		}
	})
	return cmd.Process
}

func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

// eventually tries until there is no error, and fails with the last one when the time is over.
func eventually(t *testing.T, within time.Duration, try func() error) {
	t.Helper()
	wait.Until(t, within, 100*time.Millisecond, try)
}

// shortDir is a folder with a short path, as sockets and podman need it. What is mounted below it when the test ends is
// unmounted.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shoal-") //nolint:usetesting // whose folders have long names
	require.NoError(t, err)
	t.Cleanup(func() {
		mounts, err := os.ReadFile("/proc/self/mounts")
		require.NoError(t, err)
		for _, line := range slices.Backward(strings.Split(string(mounts), "\n")) {
			if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
				_, err := run(context.WithoutCancel(t.Context()), nil, "umount", "--lazy", fields[1])
				require.NoError(t, err)
			}
		}
		require.NoError(t, os.RemoveAll(dir))
	})
	return dir
}

// freeAddress is an address on the loopback interface on which nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	free, err := ports.Loopback(t.Context(), 1)
	require.NoError(t, err)
	return fmt.Sprintf("127.0.0.1:%d", free[0])
}
