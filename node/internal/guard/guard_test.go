package guard

import (
	"bufio"
	"context"
	"fmt"
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
	"go.uber.org/goleak"

	"github.com/shoal-cache/shoal/node/internal/mirror"
)

// asAgent is the environment variable that makes this test's program an agent: a server on the address that it names.
const asAgent = "SHOAL_GUARD_TEST_AGENT"

func TestMain(m *testing.M) {
	if address := os.Getenv(asAgent); address != "" {
		serveAsAgent(address)
		return
	}
	goleak.VerifyTestMain(m)
}

func serveAsAgent(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	http.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "{}") })
	// A pull that never ends: a byte, and then nothing.
	http.HandleFunc("/v2/pull", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "2")
		_, _ = w.Write([]byte("1"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	_ = http.Serve(l, nil) //nolint:gosec // a test's server, on loopback
}

// agent is a process that is frozen and killed.
type agent struct {
	t       *testing.T
	cmd     *exec.Cmd
	address string
	gone    chan struct{}
}

func startAgent(t *testing.T, address string) *agent {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asAgent+"="+address)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	a := &agent{t: t, cmd: cmd, gone: make(chan struct{})}
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	a.address = strings.TrimSpace(line)
	go func() {
		_ = cmd.Wait()
		close(a.gone)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-a.gone
	})
	return a
}

func (a *agent) signal(s syscall.Signal) { require.NoError(a.t, a.cmd.Process.Signal(s)) }

// world is a node with a containerd directory of mirrors.
type world struct {
	t     *testing.T
	o     Options
	hosts string
}

func newWorld(t *testing.T, address string) world {
	t.Helper()
	root := t.TempDir()
	certs := filepath.Join(root, "etc/containerd/certs.d")
	require.NoError(t, os.MkdirAll(certs, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "etc/containerd/config.toml"),
		[]byte("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"), 0o600))
	return world{t, Options{
		Mirror: mirror.Options{
			Runtime: mirror.Containerd, Endpoint: "http://" + address, Root: root,
			StateDir: filepath.Join(t.TempDir(), "state"),
		},
		Every: 50 * time.Millisecond, Patience: time.Second, Recheck: 100 * time.Millisecond,
	}, filepath.Join(certs, "_default/hosts.toml")}
}

func (w world) run() (end func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, w.o) }()
	once := false
	end = func() {
		if !once {
			once = true
			cancel()
			require.NoError(w.t, <-ended)
		}
	}
	w.t.Cleanup(end)
	return end
}

func (w world) installed() bool {
	_, err := os.Stat(w.hosts)
	return err == nil
}

func (w world) eventually(condition func() bool, message string) {
	w.t.Helper()
	require.Eventually(w.t, condition, 30*time.Second, 10*time.Millisecond, message)
}

func TestGuard_InstallsWhenTheAgentAnswersAndRemovesWhenItEnds(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "127.0.0.1:0")
	w := newWorld(t, a.address)
	end := w.run()
	w.eventually(w.installed, "the mirror is installed")

	require.NoError(t, os.Remove(w.hosts))
	w.eventually(w.installed, "a mirror that somebody removed is put back")

	end()
	require.False(t, w.installed(), "the mirror is removed")
}

func TestGuard_InstallsNothingWithoutAnAgent(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	w := newWorld(t, address)
	g, err := newGuard(w.o)
	require.NoError(t, err)
	for range 3 {
		g.look(t.Context())
	}
	require.False(t, w.installed())
}

func TestGuard_EndsAnAgentThatIsStoppedAndItsOpenPullsWithIt(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "127.0.0.1:0")
	w := newWorld(t, a.address)
	w.run()
	w.eventually(w.installed, "the mirror is installed")

	resp, err := http.Get("http://" + a.address + "/v2/pull")
	require.NoError(t, err)
	defer resp.Body.Close()
	broken := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(resp.Body).ReadString('\n')
		broken <- err
	}()
	a.signal(syscall.SIGSTOP)
	select {
	case <-a.gone:
	case <-time.After(30 * time.Second):
		t.Fatal("the stopped agent was not ended")
	}
	require.Error(t, <-broken, "a pull in its midst is told, so that it goes on elsewhere")

	startAgent(t, a.address)
	w.eventually(w.installed, "the mirror is there for the agent that was started again")
}

func TestGuard_EndsAnAgentThatIsStoppedWhileItsOwnDiskHangs(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "127.0.0.1:0")
	w := newWorld(t, a.address)
	// Who holds the lock keeps the guard from the mirror's files, as a disk that hangs does.
	require.NoError(t, os.MkdirAll(w.o.Mirror.StateDir, 0o700))
	dir, err := os.Open(w.o.Mirror.StateDir)
	require.NoError(t, err)
	require.NoError(t, syscall.Flock(int(dir.Fd()), syscall.LOCK_EX))
	end := w.run()
	a.signal(syscall.SIGSTOP)
	select {
	case <-a.gone:
	case <-time.After(30 * time.Second):
		t.Fatal("the stopped agent was not ended")
	}
	require.NoError(t, dir.Close())
	end()
	require.False(t, w.installed())
}

func TestGuard_RemovesTheMirrorWhereItCannotEndWhoListens(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "127.0.0.1:0")
	w := newWorld(t, a.address)
	// Somebody else holds the port: a program that is no agent. It is left alone, however silent.
	sleeper := filepath.Join(t.TempDir(), "somebody-else")
	binary, err := os.ReadFile(os.Args[0])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(sleeper, binary, 0o700))
	w.run()
	w.eventually(w.installed, "the mirror is installed")
	a.signal(syscall.SIGKILL)
	<-a.gone

	cmd := exec.Command(sleeper)
	cmd.Env = append(os.Environ(), asAgent+"="+a.address)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	_, err = bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Signal(syscall.SIGSTOP))
	w.eventually(func() bool { return !w.installed() }, "the mirror is removed")
	require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
	w.eventually(w.installed, "and put back when somebody answers")
}

func TestGuard_CountsAnAgentThatSaysItCannotServeAsSilent(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "127.0.0.1:0")
	sick := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "disk does not answer", http.StatusServiceUnavailable)
	}), ReadHeaderTimeout: time.Second}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { _ = sick.Serve(l) }()
	t.Cleanup(func() { _ = sick.Close() })
	w := newWorld(t, a.address)
	w.o.Health = "http://" + l.Addr().String() + "/healthz"
	w.run()
	select {
	case <-a.gone:
	case <-time.After(30 * time.Second):
		t.Fatal("the agent was not ended")
	}
}
