package guard

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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

// patience is only there to end a test that fails.
const patience = 5 * time.Minute

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
		// An agent on a machine that is busy answers late, and is not to be ended for that.
		Every: 50 * time.Millisecond, Patience: 15 * time.Second, Recheck: 100 * time.Millisecond,
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
	require.Eventually(w.t, condition, patience, 10*time.Millisecond, message)
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
	answer, _ := g.ask(t.Context())
	require.Equal(t, Away, answer)
	require.Equal(t, Nothing, g.state.Heard(time.Now(), answer))
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
	case <-time.After(patience):
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
	case <-time.After(patience):
		t.Fatal("the stopped agent was not ended")
	}
	require.NoError(t, dir.Close())
	end()
	require.False(t, w.installed())
}

// startSomebodyElse starts a program that is no agent, and that holds the port. A guard leaves it alone, however silent
// it is.
func startSomebodyElse(t *testing.T, address string) *exec.Cmd {
	t.Helper()
	program := filepath.Join(t.TempDir(), "somebody-else")
	binary, err := os.ReadFile(os.Args[0])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(program, binary, 0o700))
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), asAgent+"="+address)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	_, err = bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	return cmd
}

func TestGuard_RemovesTheMirrorWhereItCannotEndWhoListens(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "127.0.0.1:0")
	w := newWorld(t, a.address)
	w.run()
	w.eventually(w.installed, "the mirror is installed")
	a.signal(syscall.SIGKILL)
	<-a.gone

	other := startSomebodyElse(t, a.address)
	require.NoError(t, other.Process.Signal(syscall.SIGSTOP))
	w.eventually(func() bool { return !w.installed() }, "the mirror is removed")
	require.NoError(t, other.Process.Signal(syscall.SIGCONT))
	require.Never(t, w.installed, 3*w.o.Recheck, 10*time.Millisecond, "somebody who answers is not the agent")
	require.NoError(t, other.Process.Kill())
	_ = other.Wait()
	startAgent(t, a.address)
	w.eventually(w.installed, "and put back when the agent answers")
}

func TestGuard_WhoAnswersInThePlaceOfTheAgentIsNotTheNodesMirror(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T, address string) (end func()){
		"another program": func(t *testing.T, address string) func() {
			other := startSomebodyElse(t, address)
			return func() {
				require.NoError(t, other.Process.Kill())
				_ = other.Wait()
			}
		},
		"a process that the guard does not see": func(t *testing.T, address string) func() {
			l, err := net.Listen("tcp", address) // it does not look for itself
			require.NoError(t, err)
			s := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Second}
			go func() { _ = s.Serve(l) }()
			t.Cleanup(func() { _ = s.Close() })
			return func() { require.NoError(t, s.Close()) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := startAgent(t, "127.0.0.1:0")
			w := newWorld(t, a.address)
			w.o.Patience = time.Hour // no silence is the reason
			w.run()
			w.eventually(w.installed, "the mirror is installed")
			a.signal(syscall.SIGKILL)
			<-a.gone
			end := start(t, a.address)
			w.eventually(func() bool { return !w.installed() }, "the mirror is removed")
			end()
			startAgent(t, a.address)
			w.eventually(w.installed, "it is put back for the agent")
		})
	}
}

// Who has never seen the agent's process may be unable to: it goes by the answer, as before.
func TestGuard_WhoAnswersIsNotSilentWhileItsProcessIsLookedFor(t *testing.T) {
	t.Parallel()
	front := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(front.Close)
	for doubt, want := range map[bool]Answer{true: Somebody, false: Well} {
		g, err := newGuard(Options{Mirror: mirror.Options{
			Runtime: mirror.Containerd, Endpoint: front.URL, StateDir: "/nowhere"}})
		require.NoError(t, err)
		g.looking.Lock() // by another look
		g.doubt.Store(doubt)
		got, _ := g.ask(t.Context())
		require.Equal(t, want, got)
	}
}

func TestGuard_WhereTheAgentsProcessIsNotSeenTheAnswerCounts(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Second}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	w := newWorld(t, l.Addr().String())
	w.run()
	w.eventually(w.installed, "the mirror is installed")
}

// A guard that is killed leaves the mirror. The next one has never seen the agent answer, and must not leave it so.
func TestGuard_RemovesWhatAGuardBeforeItInstalled(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "127.0.0.1:0")
	a.signal(syscall.SIGKILL)
	<-a.gone
	w := newWorld(t, a.address)
	_, err := mirror.Install(w.o.Mirror)
	require.NoError(t, err)
	other := startSomebodyElse(t, a.address)
	require.NoError(t, other.Process.Signal(syscall.SIGSTOP))
	w.run()
	w.eventually(func() bool { return !w.installed() }, "the mirror is removed")
}

// What an administrator deletes comes back: the entry with its folder, the folder of originals, or both.
func TestGuard_HoldsTheMirror(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "127.0.0.1:0")
	w := newWorld(t, a.address)
	end := w.run()
	for range 2 {
		w.eventually(w.installed, "the mirror is installed")
		// The guard may be at work in a folder, so it goes as a whole.
		require.NoError(t, os.Rename(filepath.Dir(w.hosts), filepath.Join(t.TempDir(), "gone")))
		w.eventually(w.installed, "without its folder")
		require.NoError(t, os.Rename(w.o.Mirror.StateDir, filepath.Join(t.TempDir(), "gone")))
		w.eventually(func() bool {
			_, err := os.Stat(filepath.Join(w.o.Mirror.StateDir, "state.json"))
			return err == nil
		}, "without its state")
	}
	end()
	require.False(t, w.installed())
}

func TestGuard_RefusesWhatInstallRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Options){
		`runtime "docker" is unknown`:  func(o *Options) { o.Mirror.Runtime = "docker" },
		`registry "https://a.example"`: func(o *Options) { o.Mirror.Registries = []string{"https://a.example"} },
		"name those that are":          func(o *Options) { o.Mirror.Runtime = mirror.CRIO },
		`endpoint "127.0.0.1:5050"`:    func(o *Options) { o.Mirror.Endpoint = "127.0.0.1:5050" },
		"patience -5s":                 func(o *Options) { o.Patience = -5 * time.Second },
		`health "127.0.0.1:5051"`:      func(o *Options) { o.Health = "127.0.0.1:5051" },
	} {
		w := newWorld(t, "127.0.0.1:5050")
		change(&w.o)
		require.ErrorContains(t, Run(t.Context(), w.o), name)
	}
}

func TestGuard_UnplugsAnAgentThatSaysItCannotServeAndLeavesItToItsPulls(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "127.0.0.1:0")
	var looks atomic.Int64
	sick := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		looks.Add(1)
		http.Error(w, "disk does not answer", http.StatusServiceUnavailable)
	}), ReadHeaderTimeout: time.Second}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { _ = sick.Serve(l) }()
	t.Cleanup(func() { _ = sick.Close() })
	w := newWorld(t, a.address)
	w.o.Health = "http://" + l.Addr().String() + "/healthz"
	_, err = mirror.Install(w.o.Mirror) // by a guard before, which was killed
	require.NoError(t, err)
	require.True(t, w.installed())
	w.run()
	w.eventually(func() bool { return !w.installed() }, "the mirror is removed")
	enough := looks.Load() + 3*int64(w.o.Patience/w.o.Every)
	w.eventually(func() bool { return looks.Load() >= enough }, "it is looked at for three times the patience")
	select {
	case <-a.gone:
		t.Fatal("the agent was ended")
	default:
	}
	require.False(t, w.installed())
}

// Where containerd reads mirrors from by default changed with 2.2.
func TestGuard_AsksContainerdForItsVersion(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "containerd"),
		[]byte("#!/bin/sh\necho containerd github.com/containerd/containerd/v2 v2.2.1 x\n"),
		0o700)) //nolint:gosec // it is run
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	config := filepath.Join(dir, "config.toml")
	require.NoError(t, os.WriteFile(config, []byte("version = 3\n"), 0o600))
	m := mirror.Options{
		Runtime: mirror.Containerd, Endpoint: "http://" + startAgent(t, "127.0.0.1:0").address, Root: "/",
		Path: filepath.Join(dir, "certs.d"), RuntimeConfig: config, StateDir: filepath.Join(dir, "state"),
	}
	run := func() string {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		said, cmd := new(logged), Command(&m)
		cmd.SetErr(said)
		cmd.SetArgs([]string{"--health", "", "--patience", "15s"})
		ended := make(chan error, 1)
		go func() { ended <- cmd.ExecuteContext(ctx) }()
		require.Eventually(t, func() bool { return strings.Contains(said.String(), "mirror is installed") }, patience,
			10*time.Millisecond)
		cancel()
		require.NoError(t, <-ended)
		return said.String()
	}
	const before, since = "containerd before 2.2 reads no mirrors", "this containerd reads"
	said := run()
	require.Contains(t, said, since)
	require.NotContains(t, said, before)
	m.Release = "2.1.0"
	said = run()
	require.Contains(t, said, before, "it is of another that the question is")
	require.NotContains(t, said, since)
	m.Release = "soon"
	cmd := Command(&m)
	cmd.SetArgs([]string{})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	require.ErrorContains(t, cmd.ExecuteContext(t.Context()), `runtime version "soon": want one such as 2.4.2`)
}

// logged is what was logged so far.
type logged struct {
	mu sync.Mutex
	strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Builder.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Builder.String()
}
