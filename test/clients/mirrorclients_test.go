package clients

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"
)

// siteRegistry is a registry without a port in its name, for podman and its kind take no mirror of another.
const siteRegistry = "127.0.77.1"

// machineClient is a client of registries on a machine of its own.
type machineClient struct {
	name, configuration string
	// registry is the registry's address as images spell it, without a port. Empty: siteRegistry, on port 80.
	registry string
	// front is the host of the agent's address. Empty: 127.0.0.1.
	front string
	// hosts is the machine's hosts(5). Empty: both loopback addresses are localhost.
	hosts string
	// files are more below /etc/containers.
	files map[string]string
	// unread tells that the client reads no mirrors: from install to remove it is given the agent's address.
	unread bool
	// command pulls an image into a folder.
	command func(t *testing.T, dir, reference string) []string
}

func machineClients() []machineClient {
	podman := func(_ *testing.T, dir, reference string) []string {
		return []string{"podman", "--root=" + filepath.Join(dir, "root"), "--runroot=" + filepath.Join(dir, "run"),
			"--storage-driver=vfs", "pull", "--quiet", reference}
	}
	skopeo := func(t *testing.T, _, reference string) []string {
		return []string{"skopeo", "copy", "--quiet", "docker://" + reference, "oci:" + t.TempDir() + ":image"}
	}
	crane := func(t *testing.T, _, reference string) []string {
		return []string{program(t, "crane"), "pull", "--insecure", "--format=oci", reference, t.TempDir()}
	}
	oras := func(t *testing.T, _, reference string) []string {
		return []string{program(t, "oras"), "copy", "--no-tty", "--from-plain-http", "--to-oci-layout", reference,
			t.TempDir() + ":image"}
	}
	deadMirror := map[string]string{"registries.conf.d/mirror.conf": "[[registry]]\nlocation = \"" + siteRegistry +
		"\"\ninsecure = true\n[[registry.mirror]]\nlocation = \"127.0.0.1:1\"\ninsecure = true\n"}
	laterFile := map[string]string{"registries.conf.d/zzz.conf": "[[registry]]\nlocation = \"" + siteRegistry +
		"\"\ninsecure = true\n"}
	return []machineClient{
		{name: "podman", configuration: "named", command: podman},
		{name: "podman", configuration: "named, which has a mirror", files: deadMirror, command: podman},
		{name: "podman", configuration: "named, and a later file says otherwise", files: laterFile, command: podman},
		{name: "podman", configuration: "named, the agent on [::1]", front: "[::1]", command: podman},
		{name: "podman", configuration: "named, the agent on [::1], localhost is 127.0.0.1", front: "[::1]",
			hosts: "127.0.0.1 localhost\n", command: podman},
		{name: "podman", configuration: "named, a registry on [::1]:port", registry: "[::1]", command: podman},
		{name: "podman", configuration: "named, a registry on a port", registry: "127.0.0.1", command: podman},
		{name: "skopeo", configuration: "named", command: skopeo},
		{name: "skopeo", configuration: "named, the agent on [::1]", front: "[::1]", command: skopeo},
		{name: "crane", configuration: "the agent's address", unread: true, command: crane},
		{name: "oras", configuration: "the agent's address", unread: true, command: oras},
	}
}

// Podman and skopeo go by registries.conf(5), and crane and oras by the address that they are given. Each in the same
// life as containerd above: what install and status say must agree with what comes to the agent, and those that know
// the registry itself pull whatever the agent does.
func TestMirror_OtherClientsAskItWhereItIsSaid(t *testing.T) { //nolint:paralleltest // it counts what the agent is asked
	program(t, "shoal-node")
	needsRoot(t)
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "client\tconfiguration\t%s\n", strings.Join(life, "\t"))
	for _, c := range machineClients() {
		t.Run(c.name+" "+c.configuration, func(t *testing.T) {
			row := slices.Concat([]string{c.name, c.configuration}, cells(c.live(t)))
			t.Logf("%q", row)
			_, _ = fmt.Fprintln(w, strings.Join(row, "\t"))
		})
	}
	require.NoError(t, w.Flush())
	t.Logf("requests at the agent, and time, of a pull:\n%s", table.String())
}

// live takes a machine through a mirror's life.
func (c machineClient) live(t *testing.T) (steps []step) {
	t.Helper()
	registry := startRegistry(t, siteRegistry, nil)
	address := siteRegistry + ":80"
	if c.registry != "" {
		address = c.registry + ":0"
	}
	registry.url = registry.gateway(t, address)
	if c.registry != "" {
		registry.host = strings.TrimPrefix(registry.url, "http://")
	}
	m := newMachine(t, c, registry)
	front := freeAddress(t)
	if c.front != "" {
		front = c.front + front[strings.LastIndex(front, ":"):]
	}
	a := startAgentsWith(t, agentOptions{front: front, upstreams: registry.upstreams()})[0]
	requests := func() int64 { return a.metric(t, "shoal_registry_requests_total") }
	none := func() int64 { return 0 }
	pull := func(name string, requests func() int64) (asked bool, err error) {
		img := registry.push(t, unique())
		before, start := requests(), time.Now()
		err = m.pull(t, img.reference())
		s := step{name: name, requests: requests() - before, took: time.Since(start), failed: err != nil}
		steps = append(steps, s)
		return s.requests > 0, err
	}
	asked, err := pull("before", requests)
	if err != nil && strings.Contains(err.Error(), "invalid reference format") {
		steps[0].note = "knows no such name"
		return steps
	}
	require.NoError(t, err)
	require.False(t, asked)

	was := filesBelow(t, m.etc())
	said, err := m.mirror(t, "install", "--endpoint=http://"+a.front)
	require.NoError(t, err)
	_, notInForce := m.mirror(t, "status", "--endpoint=http://"+a.front)
	m.through = a
	asked, err = pull("installed", requests)
	require.NoError(t, err)
	require.Equal(t, notInForce == nil, asked, "%s; status: %v", said, notInForce)

	if asked {
		// All of these read an image from one host to its end, so the pull that is under way fails, soon.
		frozen, err := pullFromFrozen(t, m, a, registry)
		require.Error(t, err, "if that went on elsewhere, say so in charts/shoal/RUNTIMES.md")
		steps = append(steps, frozen)
	} else {
		require.Contains(t, said, "NotMirrored", "nobody is told that the registry is not mirrored")
		require.NoError(t, syscall.Kill(a.pid, syscall.SIGSTOP))
		_, err = pull("agent frozen", none)
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(a.pid, syscall.SIGKILL))
	}
	_, err = pull("agent dead", none)
	require.Equal(t, c.unread, err != nil, "the pull from a dead agent: %v", err)
	_, err = m.mirror(t, "remove")
	require.NoError(t, err)
	require.Equal(t, was, filesBelow(t, m.etc()))
	m.through = nil
	_, err = pull("removed", none)
	require.NoError(t, err)
	return steps
}

// machine has an /etc/containers and an /etc/hosts of its own.
type machine struct {
	client machineClient
	dir    string
	host   string // the registry's
	// through is the agent whose address a client that reads no mirrors is given. Nil: it is given the registry's.
	through *agent
}

func newMachine(t *testing.T, c machineClient, r *registry) *machine {
	t.Helper()
	m := &machine{client: c, dir: shortDir(t), host: r.host}
	policy, err := os.ReadFile("/etc/containers/policy.json")
	require.NoError(t, err)
	names := c.hosts
	if names == "" {
		names = "127.0.0.1 localhost\n::1 localhost\n"
	}
	files := map[string]string{
		"hosts":                  names,
		"containers/policy.json": string(policy),
		"containers/registries.conf.d/50-http.conf": fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", r.host),
	}
	for path, content := range c.files {
		files["containers/"+path] = content
	}
	for path, content := range files {
		path = filepath.Join(m.etc(), path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	return m
}

func (m *machine) etc() string { return filepath.Join(m.dir, "etc") }

func (m *machine) pull(t *testing.T, reference string) error {
	t.Helper()
	if m.client.unread && m.through != nil {
		reference = m.through.front + "/" + reference
	}
	args := []string{"--mount", "--propagation=private", "sh", "-c",
		`mount --bind "$0/containers" /etc/containers && mount --bind "$0/hosts" /etc/hosts && exec "$@"`, m.etc()}
	return tryRun(t, nil, "unshare", append(args, m.client.command(t, m.dir, reference)...)...)
}

func (m *machine) mirror(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return run(t.Context(), nil, program(t, "shoal-node"), slices.Concat([]string{"mirror"}, args, m.flags())...)
}

func (m *machine) flags() []string {
	return []string{"--runtime=cri-o", "--registry=" + m.host, "--root=" + m.dir,
		"--state-dir=" + filepath.Join(m.dir, "shoal")}
}
