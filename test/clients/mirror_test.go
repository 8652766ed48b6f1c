package clients

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// configuration is how a node's containerd is told, or not told, where its mirrors are.
type configuration struct {
	name string
	// configPath is the key of that name; nil: it is not there.
	configPath *string
	// pullsItself has containerd 2 pull with its own client, not with the transfer service.
	pullsItself bool
	// files are more below /etc.
	files map[string]string
	// fix are flags with which install makes containerd ask, where it would not without.
	fix []string
	// registry is the address of the node on which the registry listens, as images spell it, and install is told of
	// that registry alone. Empty: 127.0.0.1, and all.
	registry string
}

const (
	oneDirectory = "/etc/containerd/certs.d"
	twoInAList   = "/etc/containerd/certs.d:/etc/docker/certs.d"
)

func configurations() []configuration {
	fix := []string{"--fix-config-path"}
	return []configuration{
		{name: "untouched", fix: fix},
		{name: "config_path empty", configPath: new(""), fix: fix},
		{name: "one directory", configPath: new(oneDirectory)},
		{name: "a list", configPath: new(twoInAList), fix: fix},
		{name: "a list, own client", configPath: new(twoInAList), pullsItself: true},
		{name: "a mirror in _default", configPath: new(oneDirectory), files: map[string]string{
			"containerd/certs.d/_default/hosts.toml": "[host.\"http://127.0.0.1:1\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
		}},
		{name: "a registry on localhost", configPath: new(oneDirectory), registry: "localhost"},
		{name: "a registry on [::1]", configPath: new(oneDirectory), registry: "[::1]"},
	}
}

// step is a pull of an image that nobody has seen, at some point of a node's life with a mirror.
type step struct {
	name     string
	requests int64 // that came to the agent
	took     time.Duration
	failed   bool
	note     string // what is to be said instead
}

// life are the names of the steps of one configuration.
var life = []string{"before", "installed", "mended", "agent frozen", "agent dead", "removed"}

// cells are the steps as cells of a row, in their order in life.
func cells(steps []step) []string {
	row := make([]string, len(life))
	for _, s := range steps {
		cell := fmt.Sprintf("%d in %.1f s", s.requests, s.took.Seconds())
		if s.failed {
			cell = fmt.Sprintf("fails in %.1f s", s.took.Seconds())
		}
		if s.note != "" {
			cell = s.note
		}
		row[slices.Index(life, s.name)] = cell
	}
	return row
}

// mirrored is a machine on which the mirror is installed.
type mirrored interface {
	// pull pulls an image with the machine's client.
	pull(t *testing.T, reference string) error
	// mirror runs shoal-node mirror on the machine, with flags.
	mirror(t *testing.T, args ...string) (string, error)
	flags() []string
}

// Whether a runtime asks the agent is seen where the requests arrive. Each containerd that is here, in each
// configuration: before there is a mirror, with it, with an agent that stops in the middle of a pull, with one that is
// dead, and after the mirror was removed. What install and status say of it must agree with what comes.
func TestMirror_IsAskedWhereItIsSaidToBe(t *testing.T) { //nolint:paralleltest // it counts what the one agent is asked
	program(t, "shoal-node")
	needsRoot(t)
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "containerd\tconfiguration\t%s\tmend\n", strings.Join(life, "\t"))
	for _, daemon := range daemons(t) {
		for _, c := range configurations() {
			t.Run(daemon.version+" "+c.name, func(t *testing.T) {
				steps, mend := live(t, daemon, c)
				row := slices.Concat([]string{daemon.version, c.name}, cells(steps))
				row = append(row, mend)
				t.Logf("%q", row)
				_, _ = fmt.Fprintln(w, strings.Join(row, "\t"))
			})
		}
	}
	require.NoError(t, w.Flush())
	t.Logf("requests at the agent, and time, of a pull by CRI:\n%s", table.String())
}

// live takes a node through a mirror's life.
func live(t *testing.T, d daemon, c configuration) (steps []step, mend string) {
	t.Helper()
	registry := startRegistry(t, "", nil)
	if c.registry != "" {
		registry.url = registry.gateway(t, c.registry+":0")
	}
	registry.host = strings.TrimPrefix(registry.url, "http://")
	n := newMirrorNode(t, d, c)
	if c.registry != "" {
		// What the gateway's address is called.
		registry.host = c.registry + registry.host[strings.LastIndex(registry.host, ":"):]
		n.named = []string{"--registry=" + registry.host}
	}
	a := startAgents(t, registry, "")[0]
	n.start(t)
	pull := func(name string, asked bool, requests func() int64) {
		img := registry.push(t, unique())
		before, start := requests(), time.Now()
		err := n.pull(t, img.reference())
		if err != nil && strings.Contains(err.Error(), "invalid reference format") {
			t.Skip("this containerd knows no image by that name: ", img.reference()) // 1.6, of an IPv6 address
		}
		require.NoError(t, err, name)
		steps = append(steps, step{name: name, requests: requests() - before, took: time.Since(start)})
		require.Equal(t, asked, requests() > before, "%s: %v", name, steps)
	}
	requests := func() int64 { return a.metric(t, "shoal_registry_requests_total") }
	none := func() int64 { return 0 }
	pull("before", false, requests)

	was := filesBelow(t, n.dir+"/etc")
	said, err := n.mirror(t, "install", "--endpoint=http://"+a.front)
	require.NoError(t, err)
	_, statusErr := n.mirror(t, "status", "--endpoint=http://"+a.front)
	pull("installed", statusErr == nil, requests)
	require.Equal(t, statusErr == nil, !strings.Contains(said, "ConfigPath"), said)
	if statusErr != nil {
		require.NotEmpty(t, c.fix, "containerd does not ask, and nothing mends it: %s", said)
		said, err = n.mirror(t, slices.Concat([]string{"install", "--endpoint=http://" + a.front}, c.fix)...)
		require.NoError(t, err)
		mend = "no restart"
		if strings.Contains(said, "RestartNeeded") {
			mend = "restart"
			_, err = n.mirror(t, "status", "--endpoint=http://"+a.front)
			require.Error(t, err, "the containerd that runs has not read it: %s", said)
			n.restart(t)
		}
		_, err = n.mirror(t, "status", "--endpoint=http://"+a.front)
		require.NoError(t, err, said)
		pull("mended", true, requests)
	}
	frozen, err := pullFromFrozen(t, n, a, registry, c.fix...)
	require.NoError(t, err, "the pull whose agent stopped")
	steps = append(steps, frozen)
	pull("agent dead", false, none)
	_, err = n.mirror(t, "remove")
	require.NoError(t, err)
	if mend == "restart" {
		n.restart(t)
	}
	require.Equal(t, was, filesBelow(t, n.dir+"/etc"))
	pull("removed", false, none)
	return steps, mend
}

// frozenCost is what an agent that stops in the middle of a pull may cost the pull.
const frozenCost = 15 * time.Second

// pullFromFrozen stops the agent in the middle of a pull. A guard is there, as beside every agent, and is killed in the
// end: it then leaves everything as it is.
func pullFromFrozen(t *testing.T, n mirrored, a *agent, registry *registry, flags ...string) (step, error) {
	t.Helper()
	guard := startGuard(t, n, a, flags...)
	img := registry.push(t, unique())
	requests := a.metric(t, "shoal_registry_requests_total")
	had := a.metric(t, "shoal_upstream_bytes_total")
	registry.slow.Store(true)
	defer registry.slow.Store(false)
	pulled := make(chan error, 1)
	go func() { pulled <- n.pull(t, img.reference()) }()
	eventually(t, time.Minute, func() error {
		if got := a.metric(t, "shoal_upstream_bytes_total") - had; got < 2*mib {
			return fmt.Errorf("the agent has %d bytes of the image", got)
		}
		return nil
	})
	requests = a.metric(t, "shoal_registry_requests_total") - requests
	require.NoError(t, syscall.Kill(a.pid, syscall.SIGSTOP))
	stopped := time.Now()
	registry.slow.Store(false)
	err := <-pulled
	took := time.Since(stopped)
	require.LessOrEqual(t, took, frozenCost, "what the agent that stopped cost: %v", err)
	require.NoError(t, guard.Signal(syscall.SIGKILL))
	return step{name: "agent frozen", requests: requests, took: took, failed: err != nil}, err
}

// startGuard starts the guard of an agent on the machine.
func startGuard(t *testing.T, n mirrored, a *agent, more ...string) *os.Process {
	t.Helper()
	args := slices.Concat([]string{"mirror", "guard", "--endpoint=http://" + a.front,
		"--health=http://" + a.admin + "/healthz"}, n.flags(), more)
	return start(t, nil, func(context.Context) error {
		_, err := n.mirror(t, "status", "--endpoint=http://"+a.front)
		return err
	}, program(t, "shoal-node"), args...)
}

// daemon is a containerd program.
type daemon struct{ version, path string }

// daemons are Debian's containerd, that of hack/clients.sh, and those that hack/containerds.sh has built.
func daemons(t *testing.T) []daemon {
	t.Helper()
	all := []daemon{{"1.6", "/usr/bin/containerd"}, {"2.4", program(t, "containerd")}}
	home, err := os.UserHomeDir()
	require.NoError(t, err)
	built, err := filepath.Glob(filepath.Join(home, ".cache/shoal/containerd-v*/containerd"))
	require.NoError(t, err)
	for _, path := range built {
		version := strings.TrimPrefix(filepath.Base(filepath.Dir(path)), "containerd-v")
		version = version[:strings.LastIndex(version, ".")]
		if !slices.ContainsFunc(all, func(d daemon) bool { return d.version == version }) {
			all = append(all, daemon{version, path})
		}
	}
	slices.SortFunc(all, func(a, b daemon) int { return strings.Compare(a.version, b.version) })
	return all
}

// mirrorNode is a containerd whose /etc/containerd is a folder of its own.
type mirrorNode struct {
	daemon  daemon
	dir     string
	named   []string // flags that name the registries
	process *os.Process
}

func newMirrorNode(t *testing.T, d daemon, c configuration) *mirrorNode {
	t.Helper()
	n := &mirrorNode{daemon: d, dir: shortDir(t)}
	for path, content := range c.files {
		path = filepath.Join(n.dir, "etc", path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	etc := filepath.Join(n.dir, "etc/containerd")
	require.NoError(t, os.MkdirAll(etc, 0o755))
	var b strings.Builder
	version, images, section := 3, "io.containerd.cri.v1.images", "[plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = \"native\"\n"
	if strings.HasPrefix(d.version, "1.") {
		version, images, section = 2, "io.containerd.grpc.v1.cri", "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n"
	}
	fmt.Fprintf(&b, "version = %d\nroot = %q\nstate = %q\n", version, n.dir+"/root", n.dir+"/state")
	fmt.Fprintf(&b, "[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n", n.socket(), n.dir+"/t.sock")
	fmt.Fprintf(&b, "[plugins.\"io.containerd.internal.v1.opt\"]\npath = %q\n[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n", n.dir+"/opt")
	if version == 3 {
		b.WriteString("[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\nplatform = \"linux\"\nsnapshotter = \"native\"\n")
	}
	b.WriteString(section)
	if c.pullsItself && version == 3 {
		b.WriteString("discard_unpacked_layers = true\n")
	}
	if c.configPath != nil {
		fmt.Fprintf(&b, "[plugins.%q.registry]\nconfig_path = %q\n", images, *c.configPath)
	}
	require.NoError(t, os.WriteFile(filepath.Join(etc, "config.toml"), []byte(b.String()), 0o644))
	return n
}

func (n *mirrorNode) socket() string { return n.dir + "/c.sock" }

func (n *mirrorNode) start(t *testing.T) {
	t.Helper()
	n.process = start(t, nil, func(ctx context.Context) error {
		return n.cri(ctx, func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := runtimev1.NewImageServiceClient(c).ListImages(ctx, &runtimev1.ListImagesRequest{})
			return err
		})
	}, "unshare", "--mount", "--propagation=private", "sh", "-c", `mkdir -p /etc/containerd && mount --bind "$0" /etc/containerd && exec "$@"`,
		filepath.Join(n.dir, "etc/containerd"), n.daemon.path, "--config", "/etc/containerd/config.toml")
}

func (n *mirrorNode) restart(t *testing.T) {
	t.Helper()
	require.NoError(t, n.process.Signal(syscall.SIGTERM))
	eventually(t, stopTimeout, func() error {
		if n.process.Signal(syscall.Signal(0)) == nil {
			return fmt.Errorf("containerd is still there")
		}
		return nil
	})
	n.start(t)
}

func (n *mirrorNode) cri(ctx context.Context, do func(context.Context, *grpc.ClientConn) error) error {
	c, err := grpc.NewClient("unix://"+n.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return do(ctx, c)
}

func (n *mirrorNode) pull(t *testing.T, reference string) error {
	t.Helper()
	return n.cri(t.Context(), func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := runtimev1.NewImageServiceClient(c).PullImage(ctx,
			&runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: reference}})
		return err
	})
}

// mirror runs shoal-node mirror on the node, which is told what containerd it has.
func (n *mirrorNode) mirror(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return run(t.Context(), nil, program(t, "shoal-node"), slices.Concat([]string{"mirror"}, args, n.flags())...)
}

// flags tell shoal-node mirror what node it is on.
func (n *mirrorNode) flags() []string {
	return append([]string{"--runtime-version=" + n.daemon.version + ".99", "--root=" + n.dir,
		"--state-dir=" + filepath.Join(n.dir, "shoal")}, n.named...)
}

// filesBelow are all files below a folder, each as what it holds.
func filesBelow(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			all[path] = "directory"
			return err
		}
		if to, err := os.Readlink(path); err == nil {
			all[path] = "link to " + to
			return nil
		}
		content, err := os.ReadFile(path)
		all[path] = string(content)
		return err
	}))
	return all
}
