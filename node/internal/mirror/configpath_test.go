package mirror

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"
)

const (
	config = "/etc/containerd/config.toml"
	certs  = "/etc/containerd/certs.d/"
)

// kinds are those of the findings.
func kinds(r Result) (all []FindingKind) {
	for _, f := range r.Findings {
		all = append(all, f.Kind)
	}
	return all
}

func v2with(configPath string) string {
	return "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"" + configPath + "\"\n"
}

// Containerd takes a list for one directory where the transfer service pulls, and for what it is where its own client
// does.
func TestFindings_SayWhetherTheReleaseReadsTheDirectory(t *testing.T) {
	t.Parallel()
	const list = "/etc/containerd/certs.d:/etc/docker/certs.d"
	local := strings.Replace(v2with(list), "[plugins",
		"[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndiscard_unpacked_layers = true\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n[plugins", 1)
	for name, c := range map[string]struct {
		before  tree
		release string
		want    []FindingKind
	}{
		"a list, 1.6":             {tree{config: v2with(list)}, "1.6.20", nil},
		"a list, 2.0":             {tree{config: v2with(list)}, "2.0.14", nil},
		"a list, 2.1":             {tree{config: v2with(list)}, "2.1.5", []FindingKind{ConfigPathList}},
		"a list, 2.4":             {tree{config: v2with(list)}, "2.4.2", []FindingKind{ConfigPathList}},
		"a list, not known which": {tree{config: v2with(list)}, "", []FindingKind{ConfigPathList}},
		"a list with a pull by the client itself": {tree{config: local}, "2.4.2", nil},
		"one directory, 2.4":                      {tree{config: v2with("/etc/containerd/certs.d")}, "2.4.2", nil},
		"no configuration, 1.7":                   {tree{}, "1.7.28", []FindingKind{ConfigPathUnset}},
		"no configuration, 2.1":                   {tree{}, "2.1.5", []FindingKind{ConfigPathUnset}},
		"no configuration, 2.2":                   {tree{}, "2.2.0", []FindingKind{ConfigPathList}},
		"no configuration, not known which":       {tree{}, "", []FindingKind{ConfigPathUnset, ConfigPathList}},
		"a directory of the list's name": {tree{config: v2with(list),
			"/etc/containerd/certs.d:/etc/docker/certs.d/": ""}, "2.4.2", nil},
		"a link of the list's name": {tree{config: v2with(list),
			"/etc/containerd/certs.d:/etc/docker/certs.d": "-> /etc/containerd/certs.d"}, "2.4.2", nil},
		"a later file that replaces the section": {tree{
			config: "imports = [\"conf.d/*.toml\"]\n" +
				v2with("/etc/containerd/certs.d"),
			"/etc/containerd/conf.d/gpu.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"nvidia\"\n",
		}, "1.7.28", []FindingKind{ConfigPathUnset}},
		"a later file that is merged": {tree{
			config: "imports = [\"conf.d/*.toml\"]\n" +
				v2with("/etc/containerd/certs.d"),
			"/etc/containerd/conf.d/gpu.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"nvidia\"\n",
		}, "2.0.0", nil},
		"a version that the release does not know": {tree{config: configured}, "1.7.30",
			[]FindingKind{RuntimeConfigUnreadable}},
		"a list that is written as one": {tree{config: strings.Replace(configured, "\"/etc/containerd/certs.d\"",
			"[\"/etc/containerd/certs.d\"]", 1)}, "2.4.2", []FindingKind{RuntimeConfigUnreadable}},
		"a list that is written as one, not known which": {tree{config: strings.Replace(configured,
			"\"/etc/containerd/certs.d\"", "[\"/etc/containerd/certs.d\"]", 1)}, "",
			[]FindingKind{RuntimeConfigUnreadable}},
		"keys in capitals, 2.4": {tree{config: strings.Replace(configured, "config_path", "Config_Path", 1)}, "2.4.2", nil},
		"keys in capitals, 1.7": {tree{config: strings.Replace(v2with("/etc/containerd/certs.d"), "config_path",
			"Config_Path", 1)}, "1.7.28", []FindingKind{ConfigPathUnset}},
		"keys that are all capitals, 1.7": {tree{config: strings.Replace(v2with("/etc/containerd/certs.d"), "config_path",
			"CONFIG_PATH", 1)}, "1.7.28", nil},
		"a byte order mark, 1.7": {tree{config: byteOrderMark + v2with("/etc/containerd/certs.d")}, "1.7.28", nil},
		"a byte order mark, 2.4": {tree{config: byteOrderMark + configured}, "2.4.2", []FindingKind{RuntimeConfigUnreadable}},
		"CR alone at the ends of lines": {tree{config: strings.ReplaceAll(configured, "\n", "\r")}, "2.4.2",
			[]FindingKind{RuntimeConfigUnreadable}},
		"an import that is not there": {tree{config: "imports = [\"/etc/more.toml\"]\n" + configured},
			"2.0.0", []FindingKind{RuntimeConfigUnreadable}},
		"a root that looks like a pattern": {tree{config: "imports = [\"/etc/x/*.toml\"]\nversion = 3\n",
			"/etc/x/a.toml": configured}, "2.0.0", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, tree{})
			o.Root = filepath.Join(o.Root, "node[1]*")
			c.before["/etc/"] = ""
			c.before.write(t, o.Root)
			o.Release = c.release
			before := read(t, o.Root)
			for what, run := range map[string]func(Options) (Result, error){"install": Install, "status": Status} {
				result, err := run(o)
				require.NoError(t, err, what)
				require.Equal(t, c.want, kinds(result), "%s: %v", what, result.Findings)
			}
			status, err := Status(o)
			require.NoError(t, err)
			require.Equal(t, len(c.want) == 0, status.InForce())
			requireUndone(t, o, before)
		})
	}
}

func TestFixConfigPath_GivesAListTheOneDirectoryThatContainerdLooksFor(t *testing.T) {
	t.Parallel()
	const one = "/etc/containerd/certs.d:/etc/docker/certs.d"
	for name, before := range map[string]tree{
		"nothing there": {},
		"both directories in use": {
			config: v2with(one), certs + "a.example/hosts.toml": "server = \"https://a\"\n", certs +
				"both.example/": "",
			"/etc/docker/certs.d/both.example/ca.crt": "PEM", "/etc/docker/certs.d/b.example/ca.crt": "PEM",
			"/etc/docker/certs.d/_default/hosts.toml": "server = \"https://d\"\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, before)
			o.Release, o.FixConfigPath = "2.4.2", true
			o.Registries = []string{"quay.io"}
			was := read(t, o.Root)
			result, err := Install(o)
			require.NoError(t, err)
			require.Empty(t, result.Findings, "no restart is needed")
			to, err := os.Readlink(filepath.Join(o.Root, one))
			require.NoError(t, err)
			require.Equal(t, "/etc/containerd/certs.d", to)
			if _, both := before[config]; both {
				for _, name := range []string{"b.example", "_default"} {
					to, err := os.Readlink(filepath.Join(o.Root, certs, name))
					require.NoError(t, err)
					require.Equal(t, "/etc/docker/certs.d/"+name, to)
				}
				_, server := hosts(t, content(t, o, certs+"quay.io/hosts.toml"))
				require.Equal(t, "https://d", server)
			}
			status, err := Status(o)
			require.NoError(t, err)
			require.True(t, status.InForce(), status.Findings)
			again, err := Install(o)
			require.NoError(t, err)
			require.Empty(t, again.Changed)
			o.Registries = nil
			_, err = Install(o)
			require.NoError(t, err)
			requireUndone(t, o, was)
		})
	}
}

func TestFixConfigPath_SetsWhatIsNotSet(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before  tree
		release string
		file    string
	}{
		"no configuration":            {tree{}, "1.6.20", config},
		"no configuration, not known": {tree{}, "", config},
		"an empty value": {tree{config: "# mine\n" + v2with("") +
			"x = 1 # stays\n[plugins.\"io.containerd.y.v1.z\"]\n"}, "1.7.28", config},
		"a table without it": {tree{config: strings.Replace(v2with("/x"), "config_path = \"/x\"\n", "",
			1)}, "1.7.28", config},
		"no table":  {tree{config: "version = 3\nroot = \"/r\""}, "2.0.5", config},
		"version 1": {tree{config: "[plugins.cri]\nsandbox_image = \"x\"\n"}, "1.6.20", config},
		"a later file with the section": {tree{config: "imports = [\"/etc/containerd/conf.d/*.toml\"]\nversion = 2\n",
			"/etc/containerd/conf.d/a.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n"}, "1.6.20", "/etc/containerd/conf.d/a.toml"},
		"lines that end in CR LF": {tree{config: strings.ReplaceAll(v2with(""), "\n", "\r\n")}, "1.7.28",
			config},
		"certificates that Docker has": {tree{"/etc/docker/certs.d/up.example/ca.crt": "PEM"}, "1.6.20", config},
		"a key that follows, not in TOML": {tree{config: v2with("") +
			"[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n"}, "2.1.0", config},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.before["/etc/containerd/"] = ""
			o := node(t, Containerd, c.before)
			o.Release = c.release
			before := read(t, o.Root)
			o.FixConfigPath = true
			result, err := Install(o)
			require.NoError(t, err)
			require.Contains(t, result.Changed, c.file)
			require.Contains(t, kinds(result), RestartNeeded)
			if c.release == "" {
				to, err := os.Readlink(filepath.Join(o.Root, defaultConfigPath))
				require.NoError(t, err, "a containerd 2.2 that is not restarted reads its default")
				require.Equal(t, "/etc/containerd/certs.d", to)
			}
			status, err := Status(o)
			require.NoError(t, err)
			if c.release != "" {
				require.Empty(t, status.Findings)
			}
			files, err := readConfigFiles(Options{Root: o.Root, RuntimeConfig: config, asIs: true})
			require.NoError(t, err)
			r, known := o.release()
			if !known {
				r = release{2, 4, 0}
			}
			s := settingsOf(files, r)
			require.Equal(t, "/etc/containerd/certs.d", s.configPath)

			again, err := Install(o)
			require.NoError(t, err)
			require.Empty(t, again.Changed)
			removed, err := Remove(o)
			require.NoError(t, err)
			require.Contains(t, kinds(removed), RestartNeeded)
			require.Equal(t, before, read(t, o.Root))
		})
	}
}

// A file that is there and says nothing gets a version, and with it the plugin's name of that version: containerd 1.x does
// not start with another.
func TestFixConfigPath_GivesAnEmptyFileWhatEachReleaseReads(t *testing.T) {
	t.Parallel()
	for _, empty := range []string{"", "\n", "  \n\n"} {
		for _, release := range []string{"1.6.20", "1.7.35", "2.0.14", "2.1.9"} {
			o := node(t, Containerd, tree{config: empty})
			o.Release, o.FixConfigPath = release, true
			_, err := Install(o)
			require.NoError(t, err)
			require.Contains(t, content(t, o, config), "version = 2\n[plugins.\""+criV2+"\".registry]\n", release)
			_, err = Remove(o)
			require.NoError(t, err)
			require.Equal(t, empty, content(t, o, config))
		}
	}
}

// What somebody adds to the configuration afterwards stays, and the line that was replaced comes back.
func TestFixConfigPath_IsTakenOutOfAnEditedConfiguration(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: v2with("")})
	o.Release, o.FixConfigPath = "1.7.28", true
	_, err := Install(o)
	require.NoError(t, err)
	edited := "# mine\n" + content(t, o, config) + "[debug]\n"
	require.NoError(t, os.WriteFile(filepath.Join(o.Root, config), []byte(edited), 0o644))
	_, err = Remove(o)
	require.NoError(t, err)
	require.Equal(t, "# mine\n"+v2with("")+"[debug]\n", content(t, o, config))
}

// A runtime that was started before its configuration was written does not know it.
func TestStatus_TellsThatARestartIsDue(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{"/run/containerd/": ""})
	o.Release, o.FixConfigPath = "1.7.28", true
	listen(t, filepath.Join(o.Root, sockets[Containerd]))
	_, err := Install(o)
	require.NoError(t, err)
	status, err := Status(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{RestartNeeded}, kinds(status))
	require.False(t, status.InForce())

	require.NoError(t, os.Remove(filepath.Join(o.Root, sockets[Containerd])))
	listen(t, filepath.Join(o.Root, sockets[Containerd]))
	status, err = Status(o)
	require.NoError(t, err)
	require.True(t, status.InForce(), status.Findings)
}

func TestInherited_MirrorsOfTheDefaultComeAfterTheAgent(t *testing.T) {
	t.Parallel()
	const before = `server = "https://last.example"
ca = "last.crt"
[host."https://b.example"]
  capabilities = ["pull"]
  ca = ["b.crt", "/etc/b.crt"]
  client = [["b.cert", ""]]
  override_path = true
[host."https://b.example".header]
  x-token = ["secret"]
[host."https://a.example"]
  skip_verify = true
`
	o := node(t, Containerd, tree{config: configured, certs + "_default/hosts.toml": before})
	o.Release = "2.0.0"
	o.Registries = []string{"up.example:5000"}
	was := read(t, o.Root)
	_, err := Install(o)
	require.NoError(t, err)
	now := content(t, o, certs+"up.example_5000_/hosts.toml")
	list, server := hosts(t, now)
	require.Equal(t, []string{front, "https://b.example", "https://a.example"}, list)
	require.Equal(t, "https://last.example", server)
	var got struct {
		CA   string `toml:"ca"`
		Host map[string]map[string]any
	}
	require.NoError(t, toml.Unmarshal([]byte(now), &got), now)
	require.Equal(t, certs+"_default/last.crt", got.CA)
	require.Equal(t, map[string]any{
		"capabilities": []any{"pull"}, "override_path": true, "ca": []any{certs + "_default/b.crt", "/etc/b.crt"},
		"client": []any{[]any{certs + "_default/b.cert", ""}}, "header": map[string]any{"x-token": []any{"secret"}},
	}, got.Host["https://b.example"])
	require.Equal(t, map[string]any{"skip_verify": true}, got.Host["https://a.example"])

	// With all registries the default has the agent itself, which is not inherited twice.
	o.Registries = []string{All, "up.example:5000"}
	_, err = Install(o)
	require.NoError(t, err)
	again, err := Install(o)
	require.NoError(t, err)
	require.Empty(t, again.Changed)
	list, _ = hosts(t, content(t, o, certs+"up.example_5000_/hosts.toml"))
	require.Equal(t, []string{front, "https://b.example", "https://a.example"}, list)
	requireUndone(t, o, was)
}

func TestInherited_CertificatesOfTheDefaultHold(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured, certs + "_default/ca.crt": "PEM",
		certs + "_default/c.cert": "PEM"})
	o.Release, o.Registries = "2.0.0", []string{"up.example"}
	_, err := Install(o)
	require.NoError(t, err)
	var got struct {
		CA     []string    `toml:"ca"`
		Client [][2]string `toml:"client"`
	}
	require.NoError(t, toml.Unmarshal([]byte(content(t, o, certs+"up.example/hosts.toml")), &got))
	require.Equal(t, []string{certs + "_default/ca.crt"}, got.CA)
	require.Equal(t, [][2]string{{certs + "_default/c.cert", certs + "_default/c.cert"}}, got.Client)
}

// Some runtimes drop a file that holds an IPv6 address, brackets and all.
func TestEndpoint_IsWrittenSoThatEveryRuntimeReadsIt(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured})
	o.Endpoint = "http://[::1]:5050"
	_, err := Install(o)
	require.NoError(t, err)
	list, _ := hosts(t, content(t, o, certs+"_default/hosts.toml"))
	require.Equal(t, []string{"http://localhost:5050"}, list)
	o.Endpoint = "http://[::]:5050" // as a listener has it
	again, err := Install(o)
	require.NoError(t, err)
	require.Empty(t, again.Changed)
	o.Endpoint = "http://[fd00::1]:5050"
	_, err = Install(o)
	require.ErrorContains(t, err, "IPv6")
}

// Where localhost is another address than ::1, no runtime would come to an agent that listens there.
func TestEndpoint_IsNotInForceWhereItsNameLeadsElsewhere(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		hosts, endpoint string
		elsewhere       bool
	}{
		"localhost is 127.0.0.1 alone":        {"127.0.0.1\tlocalhost\n", "http://[::1]:5050", true},
		"a comment names ::1":                 {"127.0.0.1 localhost # ::1 localhost\n", "http://[::1]:5050", true},
		"localhost is both":                   {"127.0.0.1 localhost\n::1 ip6-loopback localhost\n", "http://[::1]:5050", false},
		"the file does not know localhost":    {"10.0.0.1 node\n", "http://[::1]:5050", false},
		"there is no file":                    {"", "http://[::1]:5050", false},
		"the agent listens on all addresses":  {"127.0.0.1 localhost\n", "http://[::]:5050", false},
		"the agent listens on 127.0.0.1":      {"127.0.0.1 localhost\n", "http://127.0.0.1:5050", false},
		"the endpoint is the name from first": {"127.0.0.1 localhost\n", "http://localhost:5050", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := tree{config: configured}
			if c.hosts != "" {
				files[hostsFile] = c.hosts
			}
			o := node(t, Containerd, files)
			o.Endpoint = c.endpoint
			result, err := Install(o)
			require.NoError(t, err)
			about := func(f Finding) bool { return f.Kind == NotMirrored && f.Path == hostsFile }
			require.Equal(t, c.elsewhere, slices.ContainsFunc(result.Findings, about), result.Findings)
			result, err = Status(o)
			require.NoError(t, err)
			require.Equal(t, c.elsewhere, !result.InForce(), result.Findings)
		})
	}
}

// A registry that gets a directory of its own after the installation is pulled past the agent.
func TestStatus_NamesWhatCameAfterTheInstallation(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured})
	o.Release = "2.0.0"
	_, err := Install(o)
	require.NoError(t, err)
	(tree{certs + "new.example/hosts.toml": "server = \"https://n\"\n"}).write(t, o.Root)
	status, err := Status(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{Missing}, kinds(status))
	require.Equal(t, certs+"new.example/hosts.toml", status.Findings[0].Path)
	_, err = Install(o)
	require.NoError(t, err)
	status, err = Status(o)
	require.NoError(t, err)
	require.True(t, status.InForce(), status.Findings)
}

// However somebody has written the table, what is mended is what the releases read, and nothing else; and what cannot be
// mended is not said to be.
func TestFixConfigPath_MendsEveryForm(t *testing.T) {
	t.Parallel()
	const grpc = "\"io.containerd.grpc.v1.cri\""
	const images = "\"io.containerd.cri.v1.images\""
	for name, c := range map[string]struct {
		content string
		release string
		refused string
	}{
		"dotted keys":            {"version = 2\nplugins." + grpc + ".registry.config_path = \"\"\nroot = \"/r\"\n", "1.7.28", ""},
		"dotted keys beside it":  {"version = 2\nplugins." + grpc + ".registry.headers.a = [\"b\"]\n", "1.7.28", ""},
		"dotted keys in a table": {"version = 2\n[plugins." + grpc + "]\nregistry.config_path = ''\nsandbox_image = \"x\"\n", "1.6.20", ""},
		"dotted keys above it":   {"version = 2\nplugins." + grpc + ".sandbox_image = \"x\"\n", "1.7.28", ""},
		"a table within a line":  {"version = 2\n[plugins." + grpc + "]\nregistry = { config_path = \"\" }\n", "1.7.28", ""},
		"a table within a line, empty": {"version = 3\n[plugins." + images + "]\nregistry = {}\nuse_local_image_pull = true\n",
			"2.1.0", ""},
		"a table within a line, with more": {"version = 3\n[plugins." + images + "]\n" +
			"registry = { headers = {a = [\"b\"]} } # mine\n", "2.1.0", ""},
		"all within a line": {"version = 2\nplugins = {" + grpc + " = {sandbox_image = \"x\"}}\n", "1.7.28", ""},
		"a string of many lines": {"version = 2\n[plugins." + grpc + ".registry]\nconfig_path = \"\"\"\n\"\"\"\n# c\n",
			"1.7.28", ""},
		"a colon before":      {v2with(":/etc/containerd/certs.d"), "2.4.2", ""},
		"a colon after":       {v2with("/etc/containerd/certs.d:"), "2.4.2", ""},
		"no version, 2.1":     {"[plugins." + images + ".registry]\nconfig_path = \"\"\n", "2.1.5", ""},
		"no version, no name": {"root = \"/r\"\n", "2.1.5", ""},
		"no version, 1.7":     {"[plugins.cri]\nsandbox_image = \"x\"\n", "1.7.28", ""},
		"no version, 2.4":     {"[plugins.cri]\nsandbox_image = \"x\"\n", "2.4.2", ""},
		"no string":           {"version = 2\n[plugins." + grpc + ".registry]\nconfig_path = 1\n", "1.7.28", "config_path is no string"},
		"no table":            {"version = 2\n[plugins." + grpc + "]\nregistry = 1\n", "1.7.28", "is no table"},
		"a list of relative":  {v2with("certs.d:/etc/containerd/certs.d"), "2.4.2", "does not begin with /"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, tree{config: c.content, certs: ""})
			o.Release = c.release
			before := read(t, o.Root)
			plain, err := Install(o)
			require.NoError(t, err)
			o.FixConfigPath = true
			result, err := Install(o)
			require.NoError(t, err)
			if c.refused != "" {
				for _, r := range []Result{plain, result} {
					require.NotContains(t, fmt.Sprint(r.Findings), "install with --fix-config-path")
					require.Contains(t, fmt.Sprint(r.Findings), c.refused)
				}
			} else {
				if c.release != "2.4.2" || c.content[0] == 'v' {
					require.Contains(t, fmt.Sprint(plain.Findings), "install with --fix-config-path")
				}
				for _, f := range result.Findings {
					require.Equal(t, RestartNeeded, f.Kind, "%s\n%s", f, content(t, o, config))
				}
				status, err := Status(o)
				require.NoError(t, err)
				require.True(t, status.InForce(), status.Findings)
				again, err := Install(o)
				require.NoError(t, err)
				require.Empty(t, again.Changed)
				require.Equal(t, c.content, string(stripMarked([]byte(content(t, o, config)))))
			}
			requireUndone(t, o, before)
		})
	}
}

func TestFindings_SayThatContainerdServesNoCRI(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before  tree
		release string
		want    bool
	}{
		"Docker's package": {tree{config: "disabled_plugins = [\"cri\"]\n"}, "1.7.28", true},
		"version 2":        {tree{config: v2with("/etc/containerd/certs.d") + "", "/x": ""}, "1.7.28", false},
		"by its name":      {tree{config: "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n" + configured}, "2.4.2", true},
		"images alone":     {tree{config: "disabled_plugins = [\"io.containerd.cri.v1.images\"]\n" + configured}, "2.1.0", true},
		"runtime alone":    {tree{config: "disabled_plugins = [\"io.containerd.cri.v1.runtime\"]\n" + configured}, "2.1.0", true},
		"another one":      {tree{config: "disabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\"]\n" + configured}, "2.1.0", false},
		"by an import": {tree{config: "imports = [\"/etc/containerd/off.toml\"]\n" + configured,
			"/etc/containerd/off.toml": "version = 3\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"}, "2.4.2", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, c.before)
			o.Release = c.release
			for what, run := range map[string]func(Options) (Result, error){"install": Install, "status": Status} {
				result, err := run(o)
				require.NoError(t, err)
				require.Equal(t, c.want, slices.Contains(kinds(result), CRIDisabled), "%s: %v", what, result.Findings)
			}
			status, err := Status(o)
			require.NoError(t, err)
			require.Equal(t, !c.want, status.InForce(), status.Findings)
		})
	}
}

// A registry that is named takes over what _default says when the mirror is installed. What that says later has to be
// taken over too.
func TestStatus_TellsThatTheDefaultHasChangedSince(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured, certs + "_default/hosts.toml": "[host.\"https://m\"]\n"})
	o.Release, o.Registries = "2.4.2", []string{"a.example"}
	_, err := Install(o)
	require.NoError(t, err)
	status, err := Status(o)
	require.NoError(t, err)
	require.True(t, status.InForce(), status.Findings)
	(tree{certs + "_default/hosts.toml": "[host.\"https://n\"]\n"}).write(t, o.Root)
	status, err = Status(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{Outdated}, kinds(status))
	require.False(t, status.InForce())
	_, err = Install(o)
	require.NoError(t, err)
	list, _ := hosts(t, content(t, o, certs+"a.example/hosts.toml"))
	require.Equal(t, []string{front, "https://n"}, list)
}
