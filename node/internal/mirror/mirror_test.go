package mirror

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"
)

const front = "http://127.0.0.1:5050"

// tree is a node's file system: paths to contents. A path that ends in "/" is a directory, a content "-> x" a link to
// x.
type tree map[string]string

func (tr tree) write(t require.TestingT, root string) {
	for _, path := range slices.Sorted(maps.Keys(tr)) {
		full := filepath.Join(root, path)
		if strings.HasSuffix(path, "/") {
			require.NoError(t, os.MkdirAll(full, 0o755))
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(full), 0o755))
		if to, isLink := strings.CutPrefix(tr[path], "-> "); isLink {
			require.NoError(t, os.Symlink(to, full))
			continue
		}
		require.NoError(t, os.WriteFile(full, []byte(tr[path]), 0o640))
	}
}

// requireUndone removes the mirror, after which all is as it was before.
func requireUndone(t require.TestingT, o Options, before map[string]string) {
	_, err := Remove(o)
	require.NoError(t, err)
	require.Equal(t, before, read(t, o.Root))
}

// read gives everything below root with modes, so that a difference of any kind shows.
func read(t require.TestingT, root string) map[string]string {
	all := make(map[string]string)
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		value := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			value += " " + string(b)
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			value += " " + to
		}
		all[strings.TrimPrefix(path, root)] = value
		return nil
	}))
	return all
}

// node is a node with tr on its disk.
func node(t *testing.T, r Runtime, tr tree) Options {
	t.Helper()
	root := t.TempDir()
	tr.write(t, root)
	return Options{Runtime: r, Endpoint: front, Root: root, StateDir: filepath.Join(t.TempDir(), "state")}
}

// hosts are the hosts that containerd would try, in its order, and the server it would try at last.
func hosts(t require.TestingT, content string) (list []string, server string) {
	var c struct {
		Server string                    `toml:"server"`
		Host   map[string]map[string]any `toml:"host"`
	}
	require.NoError(t, toml.Unmarshal([]byte(content), &c), content)
	var p unstable.Parser
	p.Reset([]byte(content))
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var parts []string
		for it := e.Key(); it.Next(); {
			parts = append(parts, string(it.Node().Data))
		}
		if len(parts) >= 2 && parts[0] == "host" && !slices.Contains(list, parts[1]) {
			list = append(list, parts[1])
		}
	}
	return list, c.Server
}

func content(t *testing.T, o Options, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(o.Root, path))
	require.NoError(t, err)
	return string(b)
}

const configured = "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"

func TestContainerdTriesTheFrontFirstAndTheRegistryLast(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before string
		want   []string
		server string
	}{
		"nothing there":  {"", []string{front}, ""},
		"only a server":  {"server = \"https://up.example\"", []string{front}, "https://up.example"},
		"another mirror": {"server = \"https://up.example\"\n\n# ours\n[host.\"https://m.example\"]\n  capabilities = [\"pull\"]\n", []string{front, "https://m.example"}, "https://up.example"},
		"headers of the server": {"[header]\n  x = \"y\"\n[host.\"https://m.example\"]\n",
			[]string{front, "https://m.example"}, ""},
		"headers of a mirror":             {"[host.\"https://m.example\"]\n[host.\"https://m.example\".header]\nx = [\"y\"]\n", []string{front, "https://m.example"}, ""},
		"a header that looks like a text": {"mine = '''\n[host.x]\n'''\n  [ host . \"https://m.example\" ] # indented\n", []string{front, "https://m.example"}, ""},
		"lines that end in CR LF": {"server = \"https://up.example\"\r\n[host.\"https://m.example\"]\r\n",
			[]string{front, "https://m.example"}, "https://up.example"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := tree{"/etc/containerd/config.toml": configured}
			if c.before != "" {
				tr["/etc/containerd/certs.d/up.example/hosts.toml"] = c.before
			}
			o := node(t, Containerd, tr)
			o.Registries = []string{"up.example"}
			before := read(t, o.Root)
			result, err := Install(o)
			require.NoError(t, err)
			require.Empty(t, result.Findings)
			require.Equal(t, []string{"/etc/containerd/certs.d/up.example/hosts.toml"}, result.Changed)
			list, server := hosts(t, content(t, o, result.Changed[0]))
			require.Equal(t, c.want, list)
			require.Equal(t, c.server, server)

			again, err := Install(o)
			require.NoError(t, err)
			require.Empty(t, again.Changed, "the second installation has nothing to do")

			requireUndone(t, o, before)
			require.NoDirExists(t, o.StateDir)
		})
	}
}

func TestContainerdDirectories(t *testing.T) {
	t.Parallel()
	const here = "/etc/containerd/certs.d/"
	for name, c := range map[string]struct {
		before     tree
		registries []string
		want       []string // written files
		links      map[string]string
	}{
		"all registries, those with a directory of their own among them": {
			tree{here + "own.example/hosts.toml": "server = \"https://x\"\n"}, nil,
			[]string{here + "_default/hosts.toml", here + "own.example/hosts.toml"}, nil,
		},
		"an IPv6 address": {
			tree{}, []string{"[::1]:5000", "[fd00::1]"}, []string{here + "[::1]_5000_/hosts.toml",
				here + "[fd00::1]/hosts.toml"}, nil,
		},
		"a registry with a port gets the name that is looked for first": {
			tree{}, []string{"up.example:5000"}, []string{here + "up.example_5000_/hosts.toml"}, nil,
		},
		"a registry with a port whose directory has the other name": {
			tree{here + "up.example:5000/": ""}, []string{"up.example:5000"}, []string{here +
				"up.example:5000/hosts.toml"}, nil,
		},
		"a registry whose directory is a later one of config_path": {
			tree{"/etc/docker/certs.d/up.example/ca.crt": "PEM"}, []string{"up.example"}, []string{"/etc/docker/certs.d/up.example/hosts.toml"}, nil,
		},
		"a default does not hide directories of a later one of config_path": {
			tree{"/etc/docker/certs.d/up.example/ca.crt": "PEM", "/etc/docker/certs.d/both.example/ca.crt": "PEM",
				here + "both.example/": ""},
			nil, []string{here + "_default/hosts.toml", here + "both.example/hosts.toml",
				"/etc/docker/certs.d/up.example/hosts.toml"},
			map[string]string{here + "up.example": "/etc/docker/certs.d/up.example"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.before["/etc/containerd/config.toml"] = strings.Replace(configured, "certs.d",
				"certs.d:/etc/docker/certs.d", 1)
			o := node(t, Containerd, c.before)
			o.Registries = c.registries
			before := read(t, o.Root)
			_, err := Install(o)
			require.NoError(t, err)
			for _, path := range c.want {
				list, _ := hosts(t, content(t, o, path))
				require.Equal(t, front, list[0])
			}
			for path, to := range c.links {
				got, err := os.Readlink(filepath.Join(o.Root, path))
				require.NoError(t, err)
				require.Equal(t, to, got)
			}
			written := 0
			for path, now := range read(t, o.Root) {
				if before[path] != now && !strings.HasPrefix(now, "d") && !strings.HasPrefix(now, "L") {
					written++
				}
			}
			require.Equal(t, len(c.want), written, "nothing else was touched")
			_, err = Install(o)
			require.NoError(t, err)
			requireUndone(t, o, before)
		})
	}
}

// With a hosts.toml containerd no longer looks for the certificates beside it, so they have to be named in it.
func TestContainerdKeepsUsingCertificates(t *testing.T) {
	t.Parallel()
	dir := "/etc/containerd/certs.d/up.example/"
	o := node(t, Containerd, tree{
		"/etc/containerd/config.toml": configured,
		dir + "ca.crt":                "PEM", dir + "a.cert": "PEM", dir + "a.key": "PEM", dir + "both.cert": "PEM",
		dir + "old.crt/": "", dir + "old.cert/": "",
	})
	o.Registries = []string{"up.example"}
	before := read(t, o.Root)
	_, err := Install(o)
	require.NoError(t, err)
	var c struct {
		CA     []string    `toml:"ca"`
		Client [][2]string `toml:"client"`
	}
	require.NoError(t, toml.Unmarshal([]byte(content(t, o, dir+"hosts.toml")), &c))
	require.Equal(t, []string{"ca.crt"}, c.CA)
	require.Equal(t, [][2]string{{"a.cert", "a.key"}, {"both.cert", "both.cert"}}, c.Client,
		"an empty name would be that of the directory")
	requireUndone(t, o, before)
}

func TestWhatCannotBeChangedIsLeftAndReported(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]string{
		"a file that is no TOML":         "server = ",
		"hosts as one value":             "host = {}\n",
		"the same endpoint by hand":      "[host.\"" + front + "\"]\n",
		"the same endpoint with a slash": "[host.\"" + front + "/\"]\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, tree{"/etc/containerd/config.toml": configured,
				"/etc/containerd/certs.d/up.example/hosts.toml": before})
			o.Registries = []string{"up.example", "other.example"}
			was := read(t, o.Root)
			result, err := Install(o)
			require.NoError(t, err)
			require.Len(t, result.Findings, 1)
			require.Equal(t, NotMirrored, result.Findings[0].Kind)
			require.Equal(t, before, content(t, o, "/etc/containerd/certs.d/up.example/hosts.toml"))
			require.Equal(t, []string{"/etc/containerd/certs.d/other.example/hosts.toml"}, result.Changed,
				"the others are mirrored all the same")
			requireUndone(t, o, was)
		})
	}
}

func TestFindingsOnContainerdsConfiguration(t *testing.T) {
	t.Parallel()
	const config = "/etc/containerd/config.toml"
	const v2 = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
	for name, c := range map[string]struct {
		before tree
		path   string
		want   FindingKind
		says   string
	}{
		"version 3 with config_path": {tree{config: configured}, "", "", ""},
		"version 2 with config_path": {tree{config: v2}, "", "", ""},
		"config_path in an import": {tree{config: "version = 3\nimports = [\"conf.d/*.toml\"]\n",
			"/etc/containerd/conf.d/a.toml": configured}, "", "", ""},
		"imports that import each other": {tree{config: "imports = [\"/etc/containerd/config.toml\"]\n" + configured},
			"", "", ""},
		"no configuration": {tree{}, "", ConfigPathUnset, "restart containerd"},
		"a configuration without it": {tree{config: "version = 2\n"}, "", ConfigPathUnset,
			"config_path = \"/etc/containerd/certs.d\""},
		"an empty one": {tree{config: strings.Replace(v2, "/etc/containerd/certs.d", "", 1)}, "",
			ConfigPathUnset, "restart"},
		"another directory": {tree{config: configured}, "/opt/certs.d", ConfigPathElsewhere,
			"/opt/certs.d"},
		"mirrors in the old form": {
			tree{config: "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]\n"}, "", LegacyMirrors, "hosts.toml",
		},
		"certificates in the old form": {
			tree{config: "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"m\".tls]\nca_file = \"/ca\"\n"}, "", LegacyMirrors, "hosts.toml",
		},
		"credentials beside config_path": {tree{config: v2 +
			"[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"m\".auth]\nusername = \"u\"\n"}, "", "", ""},
		"a file that is no TOML": {tree{config: "version = "}, "", RuntimeConfigUnreadable, "config_path"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, c.before)
			o.Path, o.Release = c.path, "1.6.20~ds1"
			if strings.Contains(c.before[config], "version = 3") {
				o.Release = "v2.0.5"
			}
			for what, run := range map[string]func(Options) (Result, error){"install": Install, "status": Status} {
				result, err := run(o)
				require.NoError(t, err, what)
				if c.want == "" {
					require.Empty(t, result.Findings, what)
					continue
				}
				require.Len(t, result.Findings, 1, what)
				require.Equal(t, c.want, result.Findings[0].Kind)
				require.Contains(t, result.Findings[0].Message, c.says)
				require.Equal(t, config, result.Findings[0].Path)
			}
		})
	}
}

func TestOtherOptionsReplaceEarlierOnes(t *testing.T) {
	t.Parallel()
	const dir = "/etc/containerd/certs.d/"
	o := node(t, Containerd, tree{"/etc/containerd/config.toml": configured,
		dir + "a.example/hosts.toml": "server = \"https://a\"\n"})
	before := read(t, o.Root)
	o.Registries = []string{"a.example", "b.example"}
	_, err := Install(o)
	require.NoError(t, err)
	o.Registries, o.Endpoint = []string{"b.example", "c.example"}, "http://127.0.0.1:7070/"
	result, err := Install(o)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{dir + "a.example/hosts.toml", dir + "b.example/hosts.toml",
		dir + "c.example/hosts.toml"}, result.Changed)
	require.Equal(t, "server = \"https://a\"\n", content(t, o, dir+"a.example/hosts.toml"))
	for _, registry := range []string{"b.example", "c.example"} {
		list, _ := hosts(t, content(t, o, dir+registry+"/hosts.toml"))
		require.Equal(t, []string{"http://127.0.0.1:7070"}, list)
	}
	requireUndone(t, o, before)
}

func TestRemovalKeepsWhatSomebodyDidSince(t *testing.T) {
	t.Parallel()
	const dir = "/etc/containerd/certs.d/"
	o := node(t, Containerd, tree{"/etc/containerd/config.toml": configured,
		dir + "a.example/hosts.toml": "server = \"https://a\"\n"})
	o.Registries = []string{"a.example", "b.example", "c.example", "d.example"}
	_, err := Install(o)
	require.NoError(t, err)
	edit := func(registry string, change func(string) string) {
		path := filepath.Join(o.Root, dir+registry+"/hosts.toml")
		require.NoError(t, os.WriteFile(path, []byte(change(content(t, o, dir+registry+"/hosts.toml"))), 0o644))
	}
	edit("a.example", func(s string) string { return "# mine\n" + s + "[host.\"https://m.example\"]\n" })
	edit("b.example", func(s string) string { return "server = \"https://b\"\n" + s })
	require.NoError(t, os.RemoveAll(filepath.Join(o.Root, dir+"c.example")))
	require.NoError(t, os.WriteFile(filepath.Join(o.Root, dir+"d.example/ca.crt"), []byte("PEM"), 0o644))

	status, err := Status(o)
	require.NoError(t, err)
	kinds := make(map[string]FindingKind)
	for _, f := range status.Findings {
		kinds[f.Path] = f.Kind
	}
	require.Equal(t, map[string]FindingKind{dir + "a.example/hosts.toml": Edited, dir + "b.example/hosts.toml": Edited,
		dir + "c.example/hosts.toml": Missing}, kinds)

	_, err = Remove(o)
	require.NoError(t, err)
	require.Equal(t, "# mine\nserver = \"https://a\"\n[host.\"https://m.example\"]\n",
		content(t, o, dir+"a.example/hosts.toml"))
	require.Equal(t, "server = \"https://b\"\n", content(t, o, dir+"b.example/hosts.toml"))
	require.NoDirExists(t, filepath.Join(o.Root, dir+"c.example"))
	require.FileExists(t, filepath.Join(o.Root, dir+"d.example/ca.crt"))
	require.NoFileExists(t, filepath.Join(o.Root, dir+"d.example/hosts.toml"))
}

// An edit is harmless or takes the agent's entry out of force, and status has to know which.
func TestStatus_TellsAnEditThatUnplugsTheAgent(t *testing.T) {
	t.Parallel()
	const path = "/etc/containerd/certs.d/a.example/hosts.toml"
	before := "server = \"https://a\"\n[host.\"https://m.example\"]\n  capabilities = [\"pull\"]\n"
	for name, tc := range map[string]struct {
		edit    func(string) string
		inForce bool
	}{
		"a comment":            {func(s string) string { return "# mine\n" + s }, true},
		"other ends of lines":  {func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }, true},
		"one more host behind": {func(s string) string { return s + "[host.\"https://n.example\"]\n" }, true},
		"no comments any more": {func(s string) string { return string(uncommented([]byte(s))) }, true},
		"one more host before": {func(s string) string {
			return strings.Replace(s, begin, "[host.\"https://n.example\"]\n"+begin, 1)
		}, false},
		"the agent's entry behind another": {func(s string) string {
			at, until := strings.Index(s, begin), strings.Index(s, end)+len(end)
			return s[:at] + s[until:] + s[at:until]
		}, false},
		"another port": {func(s string) string { return strings.Replace(s, "127.0.0.1:5050", "127.0.0.1:50501", 1) }, false},
		"no right to pull": {func(s string) string {
			return strings.Replace(s, "[\"pull\", \"resolve\"]", "[\"push\"]", 1)
		}, false},
		"the entry as a comment": {func(s string) string {
			at := strings.Index(s, "[host.\"http://127")
			until := strings.Index(s, end)
			return s[:at] + "#" + strings.ReplaceAll(strings.TrimSuffix(s[at:until], "\n"), "\n", "\n#") + "\n" + s[until:]
		}, false},
		"only a comment that names it": {func(string) string {
			return "# 127.0.0.1:5050 was here\nserver = \"https://a\"\n"
		}, false},
		"what containerd cannot read": {func(s string) string { return s + "[[[\n" }, false},
		"what containerd does not take, and no marks": {func(s string) string {
			return string(uncommented([]byte(s))) + "  capabilities = [\"pul\"]\n"
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, tree{"/etc/containerd/config.toml": configured, path: before})
			o.Registries = []string{"a.example"}
			_, err := Install(o)
			require.NoError(t, err)
			was := content(t, o, path)
			edited := tc.edit(was)
			require.NotEqual(t, was, edited)
			require.NoError(t, os.WriteFile(filepath.Join(o.Root, path), []byte(edited), 0o644))
			status, err := Status(o)
			require.NoError(t, err)
			require.Equal(t, tc.inForce, status.InForce(), "%v\n%s", status.Findings, edited)
		})
	}
}

func TestAnEditBetweenTwoInstallationsIsTheNewOriginal(t *testing.T) {
	t.Parallel()
	const path = "/etc/containerd/certs.d/a.example/hosts.toml"
	o := node(t, Containerd, tree{"/etc/containerd/config.toml": configured, path: "server = \"https://a\"\n"})
	o.Registries = []string{"a.example"}
	_, err := Install(o)
	require.NoError(t, err)
	edited := strings.Replace(content(t, o, path), "https://a", "https://b", 1)
	require.NoError(t, os.WriteFile(filepath.Join(o.Root, path), []byte(edited), 0o644))
	_, err = Install(o)
	require.NoError(t, err)
	list, server := hosts(t, content(t, o, path))
	require.Equal(t, []string{front}, list)
	require.Equal(t, "https://b", server)
	_, err = Remove(o)
	require.NoError(t, err)
	require.Equal(t, "server = \"https://b\"\n", content(t, o, path))
}

func TestRemovalWithoutInstallationDoesNothing(t *testing.T) {
	t.Parallel()
	for _, r := range Runtimes {
		t.Run(string(r), func(t *testing.T) {
			t.Parallel()
			o := node(t, r, tree{
				paths[K3s].mirrors: "mirrors: {docker.io: {endpoint: [" + front + "]}}\n",
				"/etc/containers/registries.conf.d/zz-shoal.conf": "# somebody's\n",
				"/etc/containerd/certs.d/_default/hosts.toml":     "[host.\"" + front + "\"]\n",
			})
			before := read(t, o.Root)
			result, err := Remove(o)
			require.NoError(t, err)
			require.Empty(t, result.Changed)
			require.Equal(t, before, read(t, o.Root))
			require.NoDirExists(t, o.StateDir)
		})
	}
}

func TestRemovalFindsItsEntriesWhenTheStateIsLost(t *testing.T) {
	t.Parallel()
	const dir = "/etc/containerd/certs.d/"
	o := node(t, Containerd, tree{"/etc/containerd/config.toml": configured,
		dir + "a.example/hosts.toml": "server = \"https://a\"\n", dir + "_default/": ""})
	o.Registries = []string{"a.example", All}
	before := read(t, o.Root)
	_, err := Install(o)
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(o.StateDir))
	requireUndone(t, o, before)
}

func TestACrashInTheMiddleOfAFileLeavesNoTrace(t *testing.T) {
	t.Parallel()
	const dir = "/etc/containerd/certs.d/"
	setup := tree{
		"/etc/containerd/config.toml": configured, dir + "a.example/real.toml": "server = \"https://a\"\n",
		dir + "a.example/hosts.toml": "-> real.toml",
	}
	crash := func(t *testing.T) (Options, map[string]string) {
		t.Helper()
		o := node(t, Containerd, setup)
		o.Registries = []string{"a.example", "b.example"}
		before := read(t, o.Root)
		steps := 1 // the state is written, nothing else
		interrupted := o
		interrupted.crash = func() error {
			if steps--; steps < 0 {
				return errors.New("crashed")
			}
			return nil
		}
		_, err := Install(interrupted)
		require.ErrorContains(t, err, "crashed")
		(tree{dir + "a.example/.real.toml.shoal": "half", dir + "b.example/.hosts.toml.shoal": "half"}).write(t, o.Root)
		(tree{"/.state.json.shoal": "half"}).write(t, o.StateDir)
		return o, before
	}
	t.Run("removal", func(t *testing.T) {
		t.Parallel()
		o, before := crash(t)
		_, err := Remove(o)
		require.NoError(t, err)
		require.Equal(t, before, read(t, o.Root))
		require.NoDirExists(t, o.StateDir)
	})
	t.Run("installation", func(t *testing.T) {
		t.Parallel()
		o, _ := crash(t)
		_, err := Install(o)
		require.NoError(t, err)
		straight := node(t, Containerd, setup)
		straight.Registries = o.Registries
		_, err = Install(straight)
		require.NoError(t, err)
		require.Equal(t, read(t, straight.Root), read(t, o.Root))
		times := regexp.MustCompile(`"at": ".*"`)
		want, got := read(t, straight.StateDir), read(t, o.StateDir)
		for path := range want {
			want[path], got[path] = times.ReplaceAllString(want[path], ""), times.ReplaceAllString(got[path], "")
		}
		require.Equal(t, want, got)
	})
}

// A link that leads out of what is mounted here concerns its own registry only.
func TestALinkThatLeadsNowhereLeavesTheOthersToBeMirrored(t *testing.T) {
	t.Parallel()
	const dir = "/etc/containerd/certs.d/"
	o := node(t, Containerd, tree{
		"/etc/containerd/config.toml": configured, dir + "a.example": "-> /nowhere",
		dir + "b.example/hosts.toml": "-> /nowhere/hosts.toml",
	})
	o.Registries = []string{"a.example", "b.example", "c.example"}
	before := read(t, o.Root)
	result, err := Install(o)
	require.NoError(t, err)
	require.Equal(t, []string{dir + "c.example/hosts.toml"}, result.Changed)
	require.Len(t, result.Findings, 2)
	for _, f := range result.Findings {
		require.Equal(t, NotMirrored, f.Kind)
		require.Contains(t, f.Message, "symbolic link to /nowhere")
	}
	requireUndone(t, o, before)
}

func TestALinkedFileStaysALink(t *testing.T) {
	t.Parallel()
	o := node(t, K3s, tree{"/etc/rancher/k3s/real.yaml": "configs: {}\n",
		"/etc/rancher/k3s/registries.yaml": "-> real.yaml"})
	before := read(t, o.Root)
	_, err := Install(o)
	require.NoError(t, err)
	require.Contains(t, content(t, o, "/etc/rancher/k3s/real.yaml"), front)
	requireUndone(t, o, before)
}

func TestK3s(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before     string
		registries []string
		want       map[string][]string
	}{
		"nothing there": {"", nil, map[string][]string{"*": {front}}},
		"an empty file": {"# later\n", []string{"docker.io"},
			map[string][]string{"docker.io": {front}}},
		"keys without values": {"mirrors:\n  docker.io:\n", []string{"docker.io"},
			map[string][]string{"docker.io": {front}}},
		"other mirrors and credentials": {"mirrors:\n  docker.io:\n    # near\n    endpoint: [https://m.example, https://n.example]\nconfigs:\n  m.example:\n    auth: {username: u}\n", []string{"docker.io", "quay.io"}, map[string][]string{"docker.io": {front, "https://m.example", "https://n.example"}, "quay.io": {front}}},
		"all in flow style": {"{mirrors: {docker.io: {endpoint: [https://m.example]}}, configs: {}}",
			[]string{"docker.io"}, map[string][]string{"docker.io": {front, "https://m.example"}}},
		"the endpoint is there by hand": {"mirrors: {docker.io: {endpoint: [https://m.example, " + front + "]}}\n",
			[]string{"docker.io"}, map[string][]string{"docker.io": {"https://m.example", front}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := tree{}
			if c.before != "" {
				tr["/etc/rancher/k3s/registries.yaml"] = c.before
			}
			o := node(t, K3s, tr)
			o.Registries = c.registries
			before := read(t, o.Root)
			result, err := Install(o)
			require.NoError(t, err)
			var got struct {
				Mirrors map[string]struct{ Endpoint []string }
				Configs map[string]any
			}
			now := content(t, o, "/etc/rancher/k3s/registries.yaml")
			require.NoError(t, yaml.Unmarshal([]byte(now), &got), now)
			for registry, want := range c.want {
				require.Equal(t, want, got.Mirrors[registry].Endpoint, now)
			}
			require.Equal(t, strings.Contains(c.before, "username"), strings.Contains(now, "username"))
			require.Equal(t, strings.Contains(c.before, "# near"), strings.Contains(now, "# near"))
			if len(result.Changed) > 0 {
				require.Equal(t, RestartNeeded, result.Findings[0].Kind)
			}
			again, err := Install(o)
			require.NoError(t, err)
			require.Empty(t, again.Changed)
			require.Empty(t, again.Findings)
			requireUndone(t, o, before)
		})
	}
}

func TestK3sRemovalKeepsAnEdit(t *testing.T) {
	t.Parallel()
	const path = "/etc/rancher/k3s/registries.yaml"
	o := node(t, K3s, tree{})
	_, err := Install(o)
	require.NoError(t, err)
	edited := content(t, o, path) + "configs:\n  m.example: {tls: {ca_file: /ca}}\n"
	require.NoError(t, os.WriteFile(filepath.Join(o.Root, path), []byte(edited), 0o644))
	_, err = Remove(o)
	require.NoError(t, err)
	now := content(t, o, path)
	require.NotContains(t, now, front)
	require.NotContains(t, now, "mirrors")
	require.Contains(t, now, "ca_file")
}

func TestK3sLeavesWhatItCannotMirror(t *testing.T) {
	t.Parallel()
	const path = "/etc/rancher/k3s/registries.yaml"
	const before = "mirrors: {docker.io: {endpoint: [https://m], rewrite: {'^a/(.*)': 'b/$1'}}}\n"
	o := node(t, K3s, tree{path: before})
	o.Registries = []string{"docker.io"}
	result, err := Install(o)
	require.NoError(t, err)
	require.Equal(t, NotMirrored, result.Findings[0].Kind)
	require.Equal(t, before, content(t, o, path))

	for _, malformed := range []string{"mirrors: [", "[]", "mirrors: 5\n", "mirrors: {docker.io: {endpoint: 5}}"} {
		require.NoError(t, os.WriteFile(filepath.Join(o.Root, path), []byte(malformed), 0o644))
		_, err := Install(o)
		require.ErrorContains(t, err, path, malformed)
		require.Equal(t, malformed, content(t, o, path))
	}
}

func TestCRIO(t *testing.T) {
	t.Parallel()
	const dir = "/etc/containers/"
	const ours = dir + "registries.conf.d/zz-shoal.conf"
	o := node(t, CRIO, tree{
		dir + "registries.conf":          "unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nprefix = \"docker.io\"\nlocation = \"old.example\"\n",
		dir + "registries.conf.d/a.conf": "[[registry]]\nlocation = \"docker.io\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m.example\"\n[[registry]]\nprefix = \"docker.io/moved\"\nlocation = \"new.example/x\"\n[[registry]]\nprefix = \"docker.io/bad\"\nblocked = true\n[[registry]]\nlocation = \"docker.io/port\"\n",
		dir + "registries.conf.d/b.conf": "[[registry]]\nprefix = \"docker.io/port\"\nlocation = \"new.example:5000/x\"\n",
	})
	before := read(t, o.Root)

	_, err := Install(o)
	require.ErrorContains(t, err, "name those", "there is no way to mirror all")
	o.Registries = []string{"docker.io", "quay.io", "up.example:5000"}
	result, err := Install(o)
	require.NoError(t, err)
	require.Equal(t, []string{ours}, result.Changed)
	var notMirrored, digestsOnly []string
	for _, f := range result.Findings {
		if f.Kind == DigestsOnly {
			digestsOnly = append(digestsOnly, f.Message)
			continue
		}
		require.Equal(t, NotMirrored, f.Kind)
		notMirrored = append(notMirrored, strings.Fields(f.Message)[0])
	}
	require.Len(t, digestsOnly, 1)
	require.Contains(t, digestsOnly[0], "docker.io: what is named by a tag asks no mirror")
	require.ElementsMatch(t, []string{"docker.io/bad", "docker.io/port", "up.example:5000"}, notMirrored)

	type mirrorTable struct {
		Location string
		Insecure bool
	}
	var got struct {
		Registry []struct {
			Prefix, Location string
			DigestOnly       bool `toml:"mirror-by-digest-only"`
			Mirror           []mirrorTable
		}
	}
	require.NoError(t, toml.Unmarshal([]byte(content(t, o, ours)), &got))
	require.Len(t, got.Registry, 3)
	require.Equal(t, "docker.io", got.Registry[0].Location)
	require.True(t, got.Registry[0].DigestOnly, "keys of the table in force are copied")
	require.Equal(t, []mirrorTable{{"127.0.0.1:5050/docker.io", true}, {"m.example", false}}, got.Registry[0].Mirror)
	require.Equal(t, []mirrorTable{{"127.0.0.1:5050/new.example/x", true}}, got.Registry[1].Mirror,
		"the front is asked for where the images are")
	require.Equal(t, "quay.io", got.Registry[2].Prefix)
	require.Equal(t, []mirrorTable{{"127.0.0.1:5050/quay.io", true}}, got.Registry[2].Mirror)

	again, err := Install(o)
	require.NoError(t, err)
	require.Empty(t, again.Changed)
	requireUndone(t, o, before)
}

// A table of its own takes a registry out of the wildcard that was in force for it.
func TestCRIOKeepsWhatAWildcardSays(t *testing.T) {
	t.Parallel()
	const dir = "/etc/containers/"
	o := node(t, CRIO, tree{dir + "registries.conf": `
[[registry]]
prefix = "*.example.com"
insecure = true
[[registry.mirror]]
location = "m.example.com"
[[registry]]
prefix = "*.bad.example.com"
blocked = true
[[registry]]
prefix = "*.moved.test"
location = "new.test/all"
`})
	o.Registries = []string{"aa.example.com", "b.bad.example.com", "cc.moved.test", "example.com"}
	result, err := Install(o)
	require.NoError(t, err)
	require.Len(t, result.Findings, 1)
	require.Contains(t, result.Findings[0].Message, "b.bad.example.com is blocked")
	var got struct{ Registry []map[string]any }
	require.NoError(t, toml.Unmarshal([]byte(content(t, o, dir+"registries.conf.d/zz-shoal.conf")), &got))
	mirror := func(location string) any { return map[string]any{"location": location, "insecure": true} }
	require.Equal(t, []map[string]any{
		{
			"prefix": "aa.example.com", "location": "aa.example.com", "insecure": true,
			"mirror": []any{mirror("127.0.0.1:5050/aa.example.com"), map[string]any{"location": "m.example.com"}},
		},
		{"prefix": "cc.moved.test", "location": "new.test/all", "mirror": []any{mirror("127.0.0.1:5050/new.test/all")}},
		{"prefix": "example.com", "location": "example.com", "mirror": []any{mirror("127.0.0.1:5050/example.com")}},
	}, got.Registry)
}

// A file of somebody's may take the agent out, however its drop-in looks.
func TestCRIO_StatusTellsWhatTakesTheAgentOut(t *testing.T) {
	t.Parallel()
	const dir = "/etc/containers/"
	const mirror = "[[registry.mirror]]\nlocation = \"m.example\"\n"
	for name, c := range map[string]struct {
		path, content string
		want          []FindingKind
		says          string
		mended        bool // by another installation
	}{
		"nothing": {"registries.conf.d/a.conf", "", nil, "", true},
		"a later file": {"registries.conf.d/zzz.conf", "[[registry]]\nlocation = \"docker.io\"\n" + mirror,
			[]FindingKind{Outdated, NotMirrored}, "comes after zz-shoal.conf", false},
		"a later file that names a folder": {"registries.conf.d/zzz.conf",
			"[[registry]]\nprefix = \"docker.io/library\"\nlocation = \"docker.io/library\"\n",
			[]FindingKind{Outdated, NotMirrored}, "comes after zz-shoal.conf", false},
		"a later file of another registry": {"registries.conf.d/zzz.conf", "[[registry]]\nlocation = \"quay.io\"\n", nil,
			"", true},
		"a later file with the agent first": {"registries.conf.d/zzz.conf", "[[registry]]\nlocation = \"docker.io\"\n" +
			"[[registry.mirror]]\nlocation = \"127.0.0.1:5050/docker.io\"\ninsecure = true\n",
			[]FindingKind{Outdated}, "", true},
		"a mirror, in an earlier file": {"registries.conf", "[[registry]]\nlocation = \"docker.io\"\n" + mirror,
			[]FindingKind{Outdated}, "install again", true},
		"a folder, in an earlier file": {"registries.conf", "[[registry]]\nlocation = \"docker.io/library\"\n" + mirror,
			[]FindingKind{Outdated, NotMirrored}, "install again", true},
		"a wildcard that is no shorter": {"registries.conf", "[[registry]]\nprefix = \"*.example\"\n" + mirror,
			[]FindingKind{Outdated, NotMirrored}, "*.example goes before", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, CRIO, tree{dir + "registries.conf.d/": ""})
			o.Registries = []string{"docker.io", "a.example"}
			_, err := Install(o)
			require.NoError(t, err)
			for asked, inForce := range map[string]bool{"": true, "docker.io": true, "a.example docker.io": true,
				"quay.io": false} {
				of := o
				of.Registries = strings.Fields(asked)
				status, err := Status(of)
				require.NoError(t, err)
				require.Equal(t, inForce, status.InForce(), "%s: %v", asked, status.Findings)
			}
			(tree{dir + c.path: c.content}).write(t, o.Root)

			status, err := Status(o)
			require.NoError(t, err)
			require.Equal(t, c.want, kinds(status), status.Findings)
			require.Equal(t, len(c.want) == 0, status.InForce())
			require.Contains(t, fmt.Sprint(status.Findings), c.says)
			again, err := Install(o)
			require.NoError(t, err)
			status, err = Status(o)
			require.NoError(t, err)
			if c.mended {
				require.Empty(t, again.Findings)
				require.True(t, status.InForce(), status.Findings)
			} else if slices.Contains(c.want, NotMirrored) {
				require.Contains(t, fmt.Sprint(again.Findings), c.says, "an installation says it too")
				require.False(t, status.InForce())
			}
			_, err = Remove(o)
			require.NoError(t, err)
			require.NoFileExists(t, filepath.Join(o.Root, dir, "registries.conf.d", dropIn))
		})
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	good := Options{Runtime: Containerd, Endpoint: front, Root: t.TempDir(), StateDir: t.TempDir()}
	registry := func(name string) func(*Options) {
		return func(o *Options) { o.Registries = []string{"docker.io", name} }
	}
	for name, c := range map[string]struct {
		change func(*Options)
		says   string
	}{
		"an unknown runtime":            {func(o *Options) { o.Runtime = "docker" }, `runtime "docker" is unknown`},
		"no state directory":            {func(o *Options) { o.StateDir = "" }, "no state directory"},
		"a root that is not there":      {func(o *Options) { o.Root = "/nowhere/at/all" }, `root "/nowhere/at/all" is not there`},
		"a root that is a file":         {func(o *Options) { o.Root = "/etc/passwd" }, `root "/etc/passwd" is no directory`},
		"an endpoint without scheme":    {func(o *Options) { o.Endpoint = "127.0.0.1:5050" }, "want the URL"},
		"an endpoint with a path":       {func(o *Options) { o.Endpoint = front + "/v2" }, "want the URL"},
		"an endpoint with a quote":      {func(o *Options) { o.Endpoint = "http://a\"b" }, "want the URL"},
		"an endpoint without a host":    {func(o *Options) { o.Endpoint = "http://:5050" }, "want the URL"},
		"an endpoint on port 0":         {func(o *Options) { o.Endpoint = "http://127.0.0.1:0" }, `port "0"`},
		"an endpoint on port 99999":     {func(o *Options) { o.Endpoint = "http://127.0.0.1:99999" }, `port "99999"`},
		"a path that is relative":       {func(o *Options) { o.Path = "certs.d" }, "begins with /"},
		"a registry with a scheme":      {registry("https://a.example"), "it has a scheme; leave that out"},
		"a registry with a path":        {registry("docker.io/library"), "it has a path; leave that out"},
		"a registry that climbs":        {registry(".."), "it ends in a dot"},
		"an empty registry":             {registry(""), "it is empty"},
		"a registry in upper case":      {registry("DOCKER.io"), "write docker.io"},
		"a registry with a space":       {registry("a b.example"), "it is no host"},
		"a registry that is a pattern":  {registry("*.example"), "it is no host"},
		"a registry that ends in a dot": {registry("quay.io."), "it ends in a dot"},
		"a registry on port 0":          {registry("a.example:0"), `its port "0" is no number from 1 to 65535`},
		"a registry on port 99999":      {registry("a.example:99999"), `its port "99999"`},
		"a registry without a port":     {registry("a.example:"), `its port ""`},
		"a registry of another name":    {registry("index.docker.io"), "runtimes call it docker.io"},
		"a registry that is a folder":   {registry("library"), "runtimes take it for a folder of docker.io"},
		"a registry with open brackets": {registry("[::1"), "no IPv6 address"},
		"the directory of all":          {registry("_default"), "it is no host"},
	} {
		o := good
		c.change(&o)
		for _, run := range []func(Options) (Result, error){Install, Remove, Status} {
			_, err := run(o)
			require.ErrorContains(t, err, c.says, name)
		}
	}
	for _, name := range []string{All, "docker.io", "a.example:5000", "localhost", "localhost:5000", "127.0.0.1",
		"127.0.0.1:5000", "[::1]:5000", "[2001:db8::1]", "registry:5000", "xn--bcher-kva.example"} {
		require.NoError(t, CheckRegistry(name))
	}
}

func TestAStateOfAnotherVersionIsRefused(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{})
	(tree{"/state.json": `{"version": 99}`}).write(t, o.StateDir)
	for _, run := range []func(Options) (Result, error){Install, Remove, Status} {
		_, err := run(o)
		require.ErrorContains(t, err, "version 99")
	}
}

func TestCommand(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{"/etc/containerd/config.toml": configured})
	run := func(args ...string) string {
		var out strings.Builder
		c := Command()
		c.SetOut(&out)
		c.SetArgs(append(args, "--root", o.Root, "--state-dir", o.StateDir))
		require.NoError(t, c.Execute())
		return out.String()
	}
	const path = "/etc/containerd/certs.d/docker.io/hosts.toml"
	require.Equal(t, "changed "+path+"\n", run("install", "--registry", "docker.io"))
	require.Equal(t, "installed "+path+"\n", run("status"))
	require.Equal(t, "restored "+path+"\n", run("remove"))
	require.Equal(t, "nothing restored\n", run("remove"))
}

// genTree draws what an administrator may have left on a node.
func genTree(t *rapid.T) tree {
	tr := tree{}
	add := func(path string, contents ...string) {
		if i := rapid.IntRange(-1, len(contents)-1).Draw(t, path); i >= 0 {
			tr[path] = contents[i]
		}
	}
	add("/etc/containerd/config.toml", configured,
		strings.Replace(configured, "certs.d", "certs.d:/etc/docker/certs.d", 1), "version = 2\n", "broken = ",
		"", "\n", v2with(""), strings.ReplaceAll(v2with(""), "\n", "\r\n"),
		"version = 2\nimports = [\"conf.d/*.toml\"]", "plugins = 1\n")
	add("/etc/containerd/conf.d/a.toml", "", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n", v2with(""),
		v2with("/etc/containerd/certs.d:/x"))
	add("/etc/containerd/certs.d/linked.example", "-> /etc/docker/certs.d/linked.example", "-> ../docker.io",
		"-> /nowhere")
	for _, dir := range []string{"/etc/containerd/certs.d/", "/etc/docker/certs.d/"} {
		for _, registry := range []string{"docker.io", "up.example:5000", "up.example_5000_", "_default"} {
			add(dir+registry+"/", "")
			add(dir+registry+"/ca.crt", "PEM")
			add(dir+registry+"/hosts.toml", "", "\n", "server = \"https://x\"",
				"# c\nserver = \"https://x\"\n\n[host.\"https://m\"]\n  ca = \"ca.crt\"\n",
				"[host.\""+front+"\"]\n", "host = 1", "[[x]]", "\r\n[header]\r\n")
		}
	}
	add("/etc/rancher/k3s/registries.yaml", "", "mirrors:\n", "# c\nmirrors: {docker.io: {endpoint: [https://m]}}",
		"configs:\n  a: {tls: {}}\n")
	add("/etc/containers/registries.conf.d/zz-shoal.conf", "# somebody's", "[[registry]]\nlocation = \"docker.io\"\n")
	add("/etc/containers/registries.conf", "[[registry]]\nprefix = \"docker.io\"\nblocked = false\n")
	return tr
}

func genOptions(t *rapid.T, root, stateDir string) Options {
	o := Options{
		Runtime:  rapid.SampledFrom([]Runtime{Containerd, CRIO, K3s}).Draw(t, "runtime"),
		Endpoint: rapid.SampledFrom([]string{front, "http://[::1]:6060"}).Draw(t, "endpoint"),
		Root:     root, StateDir: stateDir,
	}
	o.Registries = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"docker.io", "up.example:5000", "quay.io",
		"[::1]:5000", All}), 0, 3, rapid.ID).Draw(t, "registries")
	o.Release = rapid.SampledFrom([]string{"", "1.6.20", "2.0.14", "2.1.0", "2.4.2"}).Draw(t, "release")
	o.FixConfigPath = rapid.Bool().Draw(t, "fix config_path")
	return o
}

// Whatever was there, whatever was installed how often, and wherever a run was cut short: removal restores every byte.
func TestRemovalRestoresEveryByte(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		root, stateDir := filepath.Join(base, fmt.Sprint(n), "node"), filepath.Join(base, fmt.Sprint(n), "state")
		require.NoError(t, os.MkdirAll(root, 0o755))
		genTree(t).write(t, root)
		before := read(t, root)
		crashed := errors.New("crashed")
		for range rapid.IntRange(1, 4).Draw(t, "installations") {
			o := genOptions(t, root, stateDir)
			steps := rapid.IntRange(0, 12).Draw(t, "steps until the crash")
			o.crash = func() error {
				if steps--; steps < 0 {
					return crashed
				}
				return nil
			}
			_, _ = Install(o) // refusals and crashes are part of the test
		}
		last := genOptions(t, root, stateDir)
		steps := rapid.IntRange(0, 6).Draw(t, "steps of the removal until the crash")
		interrupted := last
		interrupted.crash = func() error {
			if steps--; steps < 0 {
				return crashed
			}
			return nil
		}
		_, _ = Remove(interrupted)
		_, err := Remove(last)
		require.NoError(t, err)
		require.Equal(t, before, read(t, root))
		require.NoDirExists(t, stateDir)
	})
}

// An installation that was cut short is completed by the next.
func TestInstallationConvergesAfterACrash(t *testing.T) {
	t.Parallel()
	for steps := range 8 {
		t.Run(fmt.Sprintf("after %d steps", steps), func(t *testing.T) {
			t.Parallel()
			setup := tree{"/etc/containerd/config.toml": configured,
				"/etc/containerd/certs.d/a.example/hosts.toml": "server = \"https://a\"\n"}
			straight, broken := node(t, Containerd, setup), node(t, Containerd, setup)
			straight.Registries = []string{"a.example", "b.example", All}
			broken.Registries = straight.Registries
			_, err := Install(straight)
			require.NoError(t, err)
			left := steps
			broken.crash = func() error {
				if left--; left < 0 {
					return errors.New("crashed")
				}
				return nil
			}
			_, _ = Install(broken)
			broken.crash = nil
			_, err = Install(broken)
			require.NoError(t, err)
			require.Equal(t, read(t, straight.Root), read(t, broken.Root))
		})
	}
}

func FuzzInsertHost(f *testing.F) {
	f.Add([]byte("server = \"https://x\"\n[host.\"https://m\"]\n"))
	f.Add([]byte("[header]\nx='y'"))
	f.Add([]byte("a = '''\n[b]\n'''\n[ c ]"))
	f.Add([]byte("# only a comment"))
	f.Fuzz(func(t *testing.T, before []byte) {
		after, err := insertHost(before, front, "", "")
		if err != nil {
			require.ErrorIs(t, err, errForeign)
			return
		}
		list, _ := hosts(t, string(after))
		require.Equal(t, front, list[0])
		if len(before) == 0 || before[len(before)-1] == '\n' {
			require.Equal(t, string(before), string(stripMarked(after)))
		}
	})
}

func TestCRIO_TheBlockOfAnAdministratorIsLiftedByNoForm(t *testing.T) {
	t.Parallel()
	const file = "/etc/containers/registries.conf"
	for name, c := range map[string]struct {
		content string
		err     string // of Install
		finding string
	}{
		"the first form of the file": {content: "[registries.block]\nregistries = [\"reg.test\"]\n", err: "first form of this file"},
		"keys in capitals":           {content: "[[Registry]]\nLocation = \"reg.test\"\nBlocked = true\n", finding: "is blocked"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, CRIO, tree{file: c.content})
			o.Registries = []string{"reg.test"}
			result, err := Install(o)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, []FindingKind{NotMirrored}, kinds(result))
			require.Contains(t, result.Findings[0].Message, c.finding)
			result, err = Status(o)
			require.NoError(t, err)
			require.Equal(t, []FindingKind{NotMirrored}, kinds(result))
			require.Equal(t, c.content, content(t, o, file))
		})
	}
}
