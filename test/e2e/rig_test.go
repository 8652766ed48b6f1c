package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/test/internal/wait"
)

// rig is the machine room: what can be done to the cluster from outside of it.
type rig struct{ program string }

// commandTimeout bounds every command that no test bounds itself.
const commandTimeout = 5 * time.Minute

// run runs a command and returns its standard output. The error holds what it wrote to standard error.
func run(ctx context.Context, stdin string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	// A program that the command left behind with its output open must not keep us.
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err,
			strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func (r rig) do(t *testing.T, args ...string) string {
	t.Helper()
	out, err := run(t.Context(), "", r.program, args...)
	require.NoError(t, err)
	return strings.TrimSpace(out)
}

func (r rig) nodes(t *testing.T) []string { return strings.Fields(r.do(t, "nodes")) }

// exec runs a command on a node, in the node's namespaces.
func (r rig) exec(t *testing.T, node string, command ...string) string {
	t.Helper()
	out, err := r.tryExec(t.Context(), node, command...)
	require.NoError(t, err)
	return out
}

func (r rig) tryExec(ctx context.Context, node string, command ...string) (string, error) {
	out, err := run(ctx, "", r.program, append([]string{"node", "exec", node}, command...)...)
	return strings.TrimSpace(out), err
}

func (r rig) stopNode(t *testing.T, node string) { r.do(t, "node", "stop", node) }

// stopService stops a service of the hub until the test ends or startService is called.
func (r rig) stopService(t *testing.T, service string) {
	t.Helper()
	r.do(t, "service", "stop", service)
	t.Cleanup(func() {
		if _, err := run(context.Background(), "", r.program, "service", "start", service); err != nil {
			t.Errorf("%s did not come back: %v", service, err)
		}
	})
}

func (r rig) startService(t *testing.T, service string) { r.do(t, "service", "start", service) }

// limit bounds what a node receives until the test ends.
func (r rig) limit(t *testing.T, node, rate string) {
	t.Helper()
	r.do(t, "node", "limit", node, rate)
	t.Cleanup(func() {
		if _, err := run(context.Background(), "", r.program, "node", "limit", node, "none"); err != nil {
			t.Errorf("%s stays limited: %v", node, err)
		}
	})
}

// egress is how many bytes the registries have sent to nodes so far, headers of all layers included.
func (r rig) egress(t *testing.T) int64 {
	t.Helper()
	n, err := strconv.ParseInt(r.do(t, "egress"), 10, 64)
	require.NoError(t, err)
	return n
}

// eventually tries until there is no error, and fails with the last one when the time is over.
func eventually(t *testing.T, within time.Duration, try func() error) {
	t.Helper()
	wait.Until(t, within, 500*time.Millisecond, try)
}

func setting(t *testing.T, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Skipf("%s is not set: run hack/e2e.sh", name)
	}
	return value
}
