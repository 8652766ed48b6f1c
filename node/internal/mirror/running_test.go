package mirror

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// runs starts a process that runs a program of a name, and waits until it does. The program is a shell.
func runs(t *testing.T, program string, args ...string) (stop func()) {
	t.Helper()
	return start(t, prepared(t, program, args...))
}

// prepared is the command of what runs starts.
func prepared(t *testing.T, program string, args ...string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	shell, err := os.ReadFile("/bin/sh")
	require.NoError(t, err)
	path := filepath.Join(dir, program)
	syscall.ForkLock.RLock() // a child that is made while the file is open keeps it from being run
	err = os.WriteFile(path, shell, 0o700)
	syscall.ForkLock.RUnlock()
	require.NoError(t, err)
	script := filepath.Join(dir, "script")
	require.NoError(t, os.WriteFile(script, []byte("echo up\nread line\n"), 0o600))
	return exec.CommandContext(t.Context(), path, append([]string{script}, args...)...)
}

func start(t *testing.T, c *exec.Cmd) (stop func()) {
	t.Helper()
	stdin, err := c.StdinPipe()
	require.NoError(t, err)
	stdout, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	_, err = io.ReadFull(stdout, make([]byte, len("up\n")))
	require.NoError(t, err)
	stop = func() {
		_ = stdin.Close()
		_ = c.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// pass waits until a file that is written now is newer than every process that runs.
func pass() { time.Sleep(3 * clockPrecision) }

// Whoever runs containerd at another place has no socket where it usually is.
func TestStatus_TellsThatAContainerdThatRunsHasNotReadItsConfiguration(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: "version = 2\n",
		// It gets a link, as a list of directories does.
		"/etc/docker/certs.d/up.example:5000/ca.crt": "PEM"})
	o.Release, o.FixConfigPath = "1.7.28", true
	stop := runs(t, "containerd", "--address", "/x.sock", "--config", filepath.Join(o.Root, config))
	pass()
	_, err := Install(o)
	require.NoError(t, err)
	status, err := Status(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{RestartNeeded}, kinds(status))
	require.False(t, status.InForce())
	again, err := Install(o)
	require.NoError(t, err)
	require.Empty(t, again.Changed)
	status, err = Status(o)
	require.NoError(t, err)
	require.False(t, status.InForce(), "an installation that changes nothing restarts nothing")

	stop()
	pass()
	stop = runs(t, "containerd", "--config="+filepath.Join(o.Root, config))
	status, err = Status(o)
	require.NoError(t, err)
	require.True(t, status.InForce(), status.Findings)

	// The state may be of a program that did not write times down.
	st, err := loadState(o.StateDir)
	require.NoError(t, err)
	for _, rec := range st.Files {
		rec.At = time.Time{}
	}
	require.NoError(t, st.save(o))
	status, err = Status(o)
	require.NoError(t, err)
	require.True(t, status.InForce(), status.Findings)
	stop()
}

// A clock that is set tells nothing of which was first: the process that runs, or the file.
func TestStatus_ARestartIsDueWhateverTheClockSays(t *testing.T) {
	t.Parallel()
	for name, written := range map[string]time.Time{
		"the clock was set back since":    time.Now().Add(time.Hour),
		"the clock was set forward since": time.Now().Add(-time.Hour),
	} {
		for how, begin := range map[string]func(*testing.T, *Options) (stop func()){
			"a process": func(t *testing.T, o *Options) func() {
				return runs(t, "containerd", "-c", filepath.Join(o.Root, config))
			},
			"a socket": func(t *testing.T, o *Options) func() {
				l, err := new(net.ListenConfig).Listen(t.Context(), "unix", o.Socket)
				require.NoError(t, err)
				return func() {
					_ = os.Rename(o.Socket, o.Socket+".old") // the next has another inode
					_ = l.Close()
				}
			},
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				o := node(t, Containerd, tree{config: "version = 2\n"})
				o.Release, o.FixConfigPath, o.Socket = "1.7.28", true, filepath.Join(t.TempDir(), "s")
				stop := begin(t, &o)
				_, err := Install(o)
				require.NoError(t, err)
				st, err := loadState(o.StateDir)
				require.NoError(t, err)
				st.Files[config].At = written
				require.NoError(t, st.save(o))
				status, err := Status(o)
				require.NoError(t, err)
				require.Equal(t, []FindingKind{RestartNeeded}, kinds(status))
				stop()
				t.Cleanup(begin(t, &o))
				status, err = Status(o)
				require.NoError(t, err)
				require.True(t, status.InForce(), status.Findings)
			})
		}
	}
}

// What counts is what the file said when containerd read it, and not the file's time, which a copy may keep.
func TestStatus_TellsThatAContainerdReadSomethingElse(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edit string
		want []FindingKind
	}{
		"another directory of mirrors": {v2with("/etc/containerd/certs.d:/x"), []FindingKind{RestartNeeded}},
		"a comment":                    {"# mine\n" + v2with("/etc/containerd/certs.d"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, tree{config: v2with("/etc/containerd/certs.d")})
			o.Release = "1.7.28"
			pass()
			stop := runs(t, "containerd", "-c", filepath.Join(o.Root, config))
			_, err := Install(o)
			require.NoError(t, err)
			was, err := os.Stat(filepath.Join(o.Root, config))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(o.Root, config), []byte(c.edit), 0o600))
			require.NoError(t, os.Chtimes(filepath.Join(o.Root, config), was.ModTime(), was.ModTime()))
			status, err := Status(o)
			require.NoError(t, err)
			require.Equal(t, c.want, kinds(status))
			stop()
			runs(t, "containerd", "-c", filepath.Join(o.Root, config))
			status, err = Status(o)
			require.NoError(t, err)
			require.Empty(t, status.Findings)
		})
	}
}

// Where the release is not known the link serves the new ones at once, and config_path those that restart.
func TestStatus_ALinkThatServesAtOnceWaitsForNoRestart(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: "version = 2\n"})
	o.FixConfigPath = true
	o.Socket = filepath.Join(t.TempDir(), "s")
	socket, err := new(net.ListenConfig).Listen(t.Context(), "unix", o.Socket)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, socket.Close()) })
	pass()
	result, err := Install(o)
	require.NoError(t, err)
	require.Contains(t, kinds(result), RestartNeeded)
	status, err := Status(o)
	require.NoError(t, err)
	require.True(t, status.InForce(), status.Findings)
}

// The advice to set config_path was followed, and that to restart was not.
func TestStatus_TellsThatAnAdministratorsChangeWaitsForARestart(t *testing.T) {
	t.Parallel()
	const dropIn = "/etc/containerd/conf.d/a.toml"
	o := node(t, Containerd, tree{config: "version = 2\nimports = [\"conf.d/*.toml\"]\n", dropIn: ""})
	o.Release = "1.7.28"
	runs(t, "containerd", "-c", filepath.Join(o.Root, config))
	pass()
	require.NoError(t, os.WriteFile(filepath.Join(o.Root, dropIn), []byte(v2with("/etc/containerd/certs.d")), 0o600))
	_, err := Install(o)
	require.NoError(t, err)
	status, err := Status(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{RestartNeeded}, kinds(status))
	require.Equal(t, dropIn, status.Findings[0].Path)
}

func TestStatus_AnotherContainerdThatRunsIsNotMeant(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: "version = 2\n", "/etc/other.toml": ""})
	o.Release, o.FixConfigPath = "1.7.28", true
	runs(t, "containerd", "--config", filepath.Join(o.Root, "/etc/other.toml"))
	runs(t, "containerd", "--config", filepath.Join(o.Root, config), "config", "dump")
	runs(t, "dockerd", "--config", filepath.Join(o.Root, config))
	pass()
	_, err := Install(o)
	require.NoError(t, err)
	status, err := Status(o)
	require.NoError(t, err)
	require.True(t, status.InForce(), status.Findings)
}

// The root of a container has the number of the node's, and names its programs and files as it likes.
func TestProcess_OneOfAContainerIsNotTheRuntime(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make namespaces")
	}
	o := node(t, Containerd, tree{config: "version = 2\n"})
	o.RuntimeConfig = config
	file := filepath.Join(o.Root, config)
	for sentence, flags := range map[string]uintptr{
		"with processes of its own":    syscall.CLONE_NEWPID,
		"as the root of its own users": syscall.CLONE_NEWUSER,
	} {
		c := prepared(t, "containerd", "--config", file)
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
		if flags == syscall.CLONE_NEWUSER {
			c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
		}
		start(t, c)
		_, found := o.process(Containerd)
		require.False(t, found, "one %s", sentence)
	}
	unshared := prepared(t, "containerd", "--config", "/../../.."+file)
	unshared.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	stop := start(t, unshared)
	p, found := o.process(Containerd)
	require.True(t, found, "one with a view of its own on the node's files")
	require.Empty(t, p.program, "but it is not run")
	stop()
	runs(t, "containerd", "--config", file)
	p, found = o.process(Containerd)
	require.True(t, found, "one of the node")
	require.NotEmpty(t, p.program)
}

func TestCRIO_StatusTellsThatAReloadIsDue(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "registries.conf.d")
	o := Options{Runtime: CRIO, Endpoint: front, Registries: []string{"docker.io"}, Path: dir,
		StateDir: filepath.Join(t.TempDir(), "state")}
	stop := runs(t, "crio")
	pass()
	result, err := Install(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{RestartNeeded}, kinds(result))
	require.Contains(t, result.Findings[0].Message, "systemctl try-reload-or-restart crio")
	status, err := Status(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{RestartNeeded}, kinds(status))
	require.False(t, status.InForce())

	st, err := loadState(o.StateDir)
	require.NoError(t, err)
	for _, rec := range st.Files {
		rec.Restart = false // as it is written in a pod, which sees no process of the node
	}
	require.NoError(t, st.save(o))
	status, err = Status(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{RestartNeeded}, kinds(status))

	reloaded := o
	reloaded.reloaded = func(since time.Time) bool { return time.Now().After(since) }
	status, err = Status(reloaded)
	require.NoError(t, err)
	require.True(t, status.InForce(), status.Findings)

	stop()
	status, err = Status(o)
	require.NoError(t, err)
	require.True(t, status.InForce(), "podman reads it with every pull: %v", status.Findings)
}

// Digests are kept while releases come and go. With one that changes, each containerd would seem to be due for a
// restart.
func TestParseConfigFile_TheDigestIsOfWhatAFileSaysAndTheSameInAllReleases(t *testing.T) {
	t.Parallel()
	const file = "version = 2\nimports = [\"/a\"]\ndisabled_plugins = [\"b\"]\n[plugins.c]\nd = 1\ne = 2026-11-29\n"
	of := func(content string) string {
		f, _, err := parseConfigFile("/x", []byte(content))
		require.NoError(t, err)
		return f.digest
	}
	require.Equal(t, digestOf([]byte(`[2,["/a"],{"c":{"d":1,"e":"2026-11-29"}},["b"]]`)), of(file))
	require.Equal(t, of(file), of("# mine\n"+strings.Replace(file, "d = 1\ne = 2026-11-29", "e = 2026-11-29\nd=1", 1)))
	for what, other := range map[string]string{
		"another value":  strings.Replace(file, "d = 1", "d = 2", 1),
		"another key":    strings.Replace(file, "d = 1", "f = 1", 1),
		"another import": strings.Replace(file, "/a", "/b", 1),
		"no number":      file + "f = nan\n",
		"infinity":       file + "f = inf\n",
	} {
		require.NotEqual(t, of(file), of(other), what)
	}
	require.NotEqual(t, of(file+"f = nan\n"), of(file+"f = inf\n"))
}

func TestFollowsRegistries_TheLastFileThatSaysSoCounts(t *testing.T) {
	t.Parallel()
	const on, off = "[crio.image]\nauto_reload_registries = true\n", "[crio.image]\nauto_reload_registries = false\n"
	for name, c := range map[string]struct {
		files tree
		want  bool
	}{
		"nothing":              {tree{}, false},
		"other keys":           {tree{"/etc/crio/crio.conf": "[crio.image]\npause_image = \"x\"\n"}, false},
		"on":                   {tree{"/etc/crio/crio.conf": on}, true},
		"on, and then not":     {tree{"/etc/crio/crio.conf": on, "/etc/crio/crio.conf.d/10-crio.conf": off}, false},
		"on, and then nothing": {tree{"/etc/crio/crio.conf.d/00.conf": on, "/etc/crio/crio.conf.d/10.conf": ""}, true},
		"no TOML":              {tree{"/etc/crio/crio.conf": "[["}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, node(t, CRIO, c.files).followsRegistries())
		})
	}
}

// systemd prints this of a service with ExecReload, and journalctl the lines of the service.
func TestCRIOReloaded_ReadsWhatTheServiceManagerSays(t *testing.T) {
	since := time.Date(2026, 11, 29, 6, 45, 34, 500_000_000, time.UTC)
	for name, c := range map[string]struct {
		systemctl, journalctl string
		want                  bool
	}{
		"never":              {"start_time=[n/a]", "", false},
		"before":             {"start_time=[Sun 2026-11-29 06:45:33 UTC]", "", false},
		"in the same second": {"start_time=[Sun 2026-11-29 06:45:34 UTC]", "", true},
		"after":              {"start_time=[Mon 2026-11-30 00:00:00 UTC]", "", true},
		"by a signal, which only the journal tells": {"start_time=[n/a]",
			"Applied new registry configuration: &{Registries:[]}", true},
		"the journal tells of other things": {"start_time=[n/a]", "Starting CRI-O", false},
	} {
		t.Run(name, func(t *testing.T) {
			bin := t.TempDir()
			for program, out := range map[string]string{
				"systemctl": "ExecReload={ path=/bin/kill ; argv[]=/bin/kill -s HUP $MAINPID ; ignore_errors=no ; " +
					c.systemctl + " ; stop_time=[n/a] ; pid=700 ; code=exited ; status=0 }",
				"journalctl": c.journalctl,
			} {
				require.NoError(t, os.WriteFile(filepath.Join(bin, program), []byte("#!/bin/sh\ncat <<'EOF'\n"+out+
					"\nEOF\n"), 0o700)) //nolint:gosec // it is run
			}
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			require.Equal(t, c.want, crioReloaded(t.Context(), since))
		})
	}
	t.Setenv("PATH", t.TempDir())
	require.False(t, crioReloaded(context.Background(), since), "neither is there")
}

func TestConfigOf_IsWhatContainerdIsTold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args []string
		want string
		runs bool
	}{
		"nothing":             {[]string{"/usr/bin/containerd"}, "/etc/containerd/config.toml", true},
		"--config X":          {[]string{"containerd", "-l", "debug", "--config", "/x"}, "/x", true},
		"--config=X":          {[]string{"containerd", "--config=/x"}, "/x", true},
		"-c X":                {[]string{"containerd", "-c", "/x", "-a", "/run/k3s/containerd.sock"}, "/x", true},
		"-config X":           {[]string{"containerd", "-config", "/x"}, "/x", true},
		"no value":            {[]string{"containerd", "--config"}, "/etc/containerd/config.toml", true},
		"an empty argument":   {[]string{"containerd", ""}, "/etc/containerd/config.toml", true},
		"it prints its files": {[]string{"containerd", "--config", "/x", "config", "dump"}, "/x", false},
		"it is published to":  {[]string{"containerd", "publish", "--topic", "x"}, "/etc/containerd/config.toml", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, runs := configOf(c.args)
			require.Equal(t, c.want, config)
			require.Equal(t, c.runs, runs)
		})
	}
}

// The one in the PATH may be another than the one that runs, and a relative pattern means a folder of its own to some.
func TestAsk_AsksTheContainerdThatRuns(t *testing.T) {
	programs := containerds(t)
	program := ""
	for r, at := range programs {
		if r.major == 2 {
			program = at
		}
	}
	if program == "" || os.Geteuid() != 0 {
		t.Skip("needs root, and a containerd 2: make containerds")
	}
	bin, dir := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "containerd"),
		[]byte("#!/bin/sh\necho containerd github.com/containerd/containerd 1.6.20 x\n"), 0o700)) //nolint:gosec // it is run
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	file := filepath.Join(dir, "config.toml")
	require.NoError(t, os.WriteFile(file, []byte("version = 2\nroot = \""+dir+"/root\"\nstate = \""+dir+"/state\"\n"+
		"[grpc]\naddress = \""+dir+"/c.sock\"\n[ttrpc]\naddress = \""+dir+"/t.sock\"\n"+
		"[plugins.\"io.containerd.internal.v1.opt\"]\npath = \""+dir+"/opt\"\n"+
		"[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n"), 0o600))
	c := exec.CommandContext(t.Context(), program, "--config", file)
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Signal(os.Interrupt)
		_ = c.Wait()
	})
	o := Options{Runtime: Containerd, Endpoint: front, Root: "/", RuntimeConfig: file}
	o.Ask(t.Context())
	r, known := o.release()
	require.True(t, known)
	require.Equal(t, 2, r.major)
	require.NotNil(t, o.dump)

	o = Options{Runtime: Containerd, Endpoint: front, Root: "/", RuntimeConfig: file, Release: "1.7.28"}
	o.Ask(t.Context())
	require.Nil(t, o.dump, "it is of another that the question is")
}
