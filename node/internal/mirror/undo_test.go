package mirror

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

func listen(t *testing.T, socket string) {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
}

// Whatever somebody puts in the place of what was made is theirs.
func TestRemove_LeavesALinkThatSomebodyPutInPlaceOfADirectory(t *testing.T) {
	t.Parallel()
	for name, to := range map[string]string{"to nowhere": "/nowhere", "to a directory": "."} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, tree{config: configured})
			o.Registries = []string{"a.example"}
			_, err := Install(o)
			require.NoError(t, err)
			dir := filepath.Join(o.Root, certs, "a.example")
			require.NoError(t, os.RemoveAll(dir))
			require.NoError(t, os.Symlink(to, dir))
			_, err = Remove(o)
			require.NoError(t, err)
			now, err := os.Readlink(dir)
			require.NoError(t, err)
			require.Equal(t, to, now)
			require.NoDirExists(t, o.StateDir)
		})
	}
}

func TestRemove_TakesItsEntriesOutOfWhatSomebodyLinked(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured})
	o.Registries = []string{"a.example"}
	_, err := Install(o)
	require.NoError(t, err)
	path := filepath.Join(o.Root, certs, "a.example/hosts.toml")
	require.NoError(t, os.Rename(path, filepath.Join(o.Root, "etc/mine.toml")))
	require.NoError(t, os.Symlink("../../../mine.toml", path))
	_, err = Remove(o)
	require.NoError(t, err)
	to, err := os.Readlink(path)
	require.NoError(t, err)
	require.Equal(t, "../../../mine.toml", to)
	require.Empty(t, content(t, o, "/etc/mine.toml"))
}

// An editor that changes how lines end, or spaces at their ends, does not keep the entry in.
func TestRemove_FindsMarkersThatAnEditorHasTouched(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(string) string{
		"CR LF":             func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") },
		"spaces at ends":    func(s string) string { return strings.ReplaceAll(s, "\n", "  \n") },
		"it is there twice": func(s string) string { return s + strings.TrimPrefix(s, "server = \"https://a\"\n") },
		"all is indented":   func(s string) string { return "\t" + strings.ReplaceAll(s, "\n", "\n\t") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := node(t, Containerd, tree{config: configured,
				certs + "a.example/hosts.toml": "server = \"https://a\"\n"})
			o.Registries = []string{"a.example"}
			_, err := Install(o)
			require.NoError(t, err)
			path := filepath.Join(o.Root, certs, "a.example/hosts.toml")
			require.NoError(t, os.WriteFile(path, []byte(edit(content(t, o, certs+"a.example/hosts.toml"))), 0o640))
			_, err = Remove(o)
			require.NoError(t, err)
			list, server := hosts(t, content(t, o, certs+"a.example/hosts.toml"))
			require.Empty(t, list)
			require.Equal(t, "https://a", server)
			require.NotContains(t, content(t, o, certs+"a.example/hosts.toml"), "shoal")
		})
	}
}

// What cannot be told from somebody's own is left and said, and nothing that was saved is thrown away.
func TestRemove_SaysWhatItCannotUndo(t *testing.T) {
	t.Parallel()
	comments := func(s string) string {
		var kept []string
		for line := range strings.SplitSeq(s, "\n") {
			line, _, _ = strings.Cut(line, "#")
			kept = append(kept, strings.TrimRight(line, " "))
		}
		return strings.Join(kept, "\n")
	}
	for name, c := range map[string]struct {
		runtime    Runtime
		path       string
		before     string
		registries []string
	}{
		"hosts.toml": {Containerd, certs + "a.example/hosts.toml", "server = \"https://a\"\n",
			[]string{"a.example", "b.example"}},
		"config.toml": {Containerd, config, v2with(""), nil},
		"registries.yaml": {K3s, "/etc/rancher/k3s/registries.yaml",
			"mirrors:\n  docker.io:\n    endpoint: [https://m]\n", []string{"docker.io"}},
		"registries.conf": {CRIO, "/etc/containers/registries.conf.d/zz-shoal.conf", "", []string{"docker.io"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := tree{"/etc/containerd/": ""}
			if c.before != "" {
				tr[c.path] = c.before
			}
			o := node(t, c.runtime, tr)
			o.Release, o.FixConfigPath, o.Registries = "1.7.28", true, c.registries
			_, err := Install(o)
			require.NoError(t, err)
			path := filepath.Join(o.Root, c.path)
			stripped := comments(content(t, o, c.path))
			require.NoError(t, os.WriteFile(path, []byte(stripped), 0o640))

			result, err := Remove(o)
			require.ErrorIs(t, err, ErrNotUndone)
			require.Equal(t, []FindingKind{NotUndone}, kinds(result))
			require.Equal(t, c.path, result.Findings[0].Path)
			require.Equal(t, stripped, content(t, o, c.path))
			require.NoFileExists(t, filepath.Join(o.Root, certs, "b.example/hosts.toml"), "the others are undone")
			st, err := loadState(o.StateDir)
			require.NoError(t, err)
			require.Equal(t, c.before, string(st.Files[c.path].Original))

			reinstalled, err := Install(o)
			require.NoError(t, err)
			require.Subset(t, []FindingKind{NotMirrored, NotUndone, RestartNeeded}, kinds(reinstalled),
				"nor is it taken for somebody's own now")
			require.NotEmpty(t, kinds(reinstalled))
			_, err = Remove(o)
			require.ErrorIs(t, err, ErrNotUndone)

			require.NoError(t, os.WriteFile(path, []byte("# by hand\n"), 0o640))
			_, err = Remove(o)
			require.NoError(t, err)
			require.Equal(t, "# by hand\n", content(t, o, c.path))
			require.NoDirExists(t, o.StateDir)
		})
	}
}

func TestStatus_AfterAnInstallationThatFailed(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured, certs + "a.example/hosts.toml": "server = \"https://a\"\n"})
	o.Release = "2.0.0"
	o.Registries = []string{"a.example", "b.example"}
	steps := 1
	interrupted := o
	interrupted.crash = func() error {
		if steps--; steps < 0 {
			return os.ErrPermission
		}
		return nil
	}
	_, err := Install(interrupted)
	require.ErrorIs(t, err, os.ErrPermission)
	status, err := Status(o)
	require.NoError(t, err)
	require.Empty(t, status.Changed)
	require.Equal(t, []FindingKind{Missing, Missing}, kinds(status))
	require.Contains(t, status.Findings[0].Message, "did not come to its end")
	require.Contains(t, status.Findings[1].Message, "is not there")
	require.False(t, status.InForce())
}

func TestRemove_SaysThatARestartIsNeeded(t *testing.T) {
	t.Parallel()
	o := node(t, K3s, tree{})
	_, err := Install(o)
	require.NoError(t, err)
	result, err := Remove(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{RestartNeeded}, kinds(result))
}

func TestK3s_AllRegistriesAreThoseWithAnEntryOfTheirOwnToo(t *testing.T) {
	t.Parallel()
	const path = "/etc/rancher/k3s/registries.yaml"
	before := "mirrors:\n  docker.io:\n    endpoint: [https://m.example]\n  quay.io: {}\n" +
		"  re.example:\n    endpoint: [https://m.example]\n    rewrite: {\"^(.*)$\": \"x/$1\"}\n"
	o := node(t, K3s, tree{path: before})
	_, err := Install(o)
	require.NoError(t, err)
	status, err := Status(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{NotMirrored}, kinds(status), "what is left out is said: %v", status.Findings)
	require.Contains(t, status.Findings[0].Message, "re.example")
	var file struct {
		Mirrors map[string]struct{ Endpoint []string }
	}
	require.NoError(t, yaml.Unmarshal([]byte(content(t, o, path)), &file))
	require.Equal(t, []string{front}, file.Mirrors[All].Endpoint)
	require.Equal(t, []string{front, "https://m.example"}, file.Mirrors["docker.io"].Endpoint)
	require.Equal(t, []string{front}, file.Mirrors["quay.io"].Endpoint)
	require.Equal(t, []string{"https://m.example"}, file.Mirrors["re.example"].Endpoint)
	_, err = Remove(o)
	require.NoError(t, err)
	require.Equal(t, before, content(t, o, path))
}

func TestK3s_ARegistryThatIsNamedKeepsTheMirrorsOfAll(t *testing.T) {
	t.Parallel()
	const path = "/etc/rancher/k3s/registries.yaml"
	o := node(t, K3s, tree{path: "mirrors:\n  \"*\":\n    endpoint: [https://m, https://n]\n  own.example:\n    endpoint: [https://o]\n"})
	o.Registries = []string{"docker.io", "own.example"}
	before := read(t, o.Root)
	_, err := Install(o)
	require.NoError(t, err)
	now := content(t, o, path)
	document, err := parseYAML([]byte(now))
	require.NoError(t, err)
	endpoints := func(registry string) (all []string) {
		for _, n := range lookupYAML(lookupYAML(lookupYAML(document.Content[0], "mirrors"), registry),
			"endpoint").Content {
			all = append(all, n.Value)
		}
		return all
	}
	require.Equal(t, []string{front, "https://m", "https://n"}, endpoints("docker.io"))
	require.Equal(t, []string{front, "https://o"}, endpoints("own.example"))
	require.Equal(t, []string{"https://m", "https://n"}, endpoints("*"))
	require.NoError(t, os.WriteFile(filepath.Join(o.Root, path), []byte("# mine\n"+now), 0o640))
	_, err = Remove(o)
	require.NoError(t, err)
	require.NotContains(t, content(t, o, path), "docker.io")
	require.NoError(t, os.WriteFile(filepath.Join(o.Root, path),
		[]byte("mirrors:\n  \"*\":\n    endpoint: [https://m, https://n]\n  own.example:\n    endpoint: [https://o]\n"),
		0o640))
	require.Equal(t, before, read(t, o.Root))
}

func TestCommand_SaysWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	c := Command()
	c.SetArgs([]string{"instal"})
	c.SilenceErrors, c.SilenceUsage = true, true
	require.ErrorContains(t, c.Execute(), "did you mean install?")
}

func TestCommand_StatusFailsWhereTheRuntimeDoesNotAsk(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured})
	run := func(args ...string) (string, error) {
		var out strings.Builder
		c := Command()
		c.SilenceErrors, c.SilenceUsage = true, true
		c.SetOut(&out)
		c.SetArgs(append(args, "--root", o.Root, "--state-dir", o.StateDir, "--runtime-version=2.0.5"))
		err := c.Execute()
		return out.String(), err
	}
	_, err := run("status")
	require.ErrorContains(t, err, "nothing is installed")
	_, err = run("install", "--registry=a.example")
	require.NoError(t, err)
	_, err = run("status")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(o.Root, config), []byte("version = 3\n"), 0o644))
	out, err := run("status")
	require.ErrorContains(t, err, "not in force")
	require.Contains(t, out, "ConfigPathUnset")
	_, err = run("install", "--restart", "--fix-config-path")
	require.ErrorContains(t, err, "on the node itself")
}

// The agent's file is no configuration of the mirror's: to pass over it would mirror at another address than the agent's.
func TestCommand_TakesAnEmptyRegistryForAMistake(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: configured})
	for _, args := range [][]string{{"--registry", ""}, {"--registry", "docker.io,"}, {"--registry", "", "--registry", ""}} {
		c := Command()
		c.SilenceUsage = true
		c.SetArgs(append([]string{"install", "--root", o.Root, "--state-dir", o.StateDir}, args...))
		require.ErrorContains(t, c.Execute(), `registry "": it is empty`, args)
	}
	require.NoDirExists(t, filepath.Join(o.Root, certs, "_default"))
}

func TestCommand_RefusesTheAgentsConfiguration(t *testing.T) {
	t.Parallel()
	root := &cobra.Command{Use: "shoal-node", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().String("config", "", "")
	root.AddCommand(Command())
	root.SetArgs([]string{"mirror", "status", "--root", t.TempDir(), "--state-dir", t.TempDir(), "--config", "x.yaml"})
	require.ErrorContains(t, root.ExecuteContext(t.Context()), "--endpoint")
}

// What somebody writes between the marks goes with them, and so it is kept elsewhere, and said.
func TestRemove_KeepsWhatSomebodyWroteBetweenTheMarks(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		runtime     Runtime
		path        string
		before      string
		registries  []string
		was, is     string
		saved       string
		stays       string
		reinstalled bool
	}{
		"another value": {Containerd, config, v2with(""), nil, "config_path = \"/etc/containerd/certs.d\"",
			"config_path = \"/etc/mine\"", "config_path = \"/etc/mine\"", "config_path = \"\"", false},
		"another host": {Containerd, certs + "a.example/hosts.toml", "server = \"https://a\"\n", []string{"a.example"}, end,
			"[host.\"https://mine\"]\n" + end, "[host.\"https://mine\"]", "server = \"https://a\"", false},
		"a comment, before another installation": {Containerd, certs + "a.example/hosts.toml", "", []string{"a.example"}, end,
			"# mine\n" + end, "# mine", "", true},
		"another endpoint": {K3s, "/etc/rancher/k3s/registries.yaml", "mirrors:\n  quay.io:\n    endpoint: [https://m]\n",
			[]string{"docker.io"}, front, "http://mine", "http://mine", "https://m", false},
		"another mirror": {CRIO, "/etc/containers/registries.conf.d/zz-shoal.conf", "", []string{"docker.io"}, end,
			"[[registry.mirror]]\nlocation = \"mine\"\n" + end, "location = \"mine\"", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := tree{"/etc/containerd/": ""}
			if c.before != "" {
				tr[c.path] = c.before
			}
			o := node(t, c.runtime, tr)
			o.Release, o.FixConfigPath, o.Registries = "1.7.28", true, c.registries
			_, err := Install(o)
			require.NoError(t, err)
			edited := strings.Replace(content(t, o, c.path), c.was, c.is, 1)
			require.NotEqual(t, edited, content(t, o, c.path))
			require.NoError(t, os.WriteFile(filepath.Join(o.Root, c.path), []byte(edited), 0o640))

			var result Result
			if c.reinstalled {
				result, err = Install(o)
				require.NoError(t, err)
			} else {
				result, err = Remove(o)
				require.ErrorIs(t, err, ErrEditSaved)
			}
			require.Contains(t, kinds(result), EditSaved)
			require.Contains(t, fmt.Sprint(result.Findings), "mine")
			copies, err := filepath.Glob(filepath.Join(o.StateDir, savedEdits, "*"))
			require.NoError(t, err)
			require.Len(t, copies, 1)
			kept, err := os.ReadFile(copies[0])
			require.NoError(t, err)
			require.Equal(t, edited, string(kept))
			require.Contains(t, string(kept), c.saved)

			_, err = Remove(o)
			require.NoError(t, err, "it is said once")
			if c.before != "" {
				require.Contains(t, content(t, o, c.path), c.stays)
				require.NotContains(t, content(t, o, c.path), "mine")
			} else {
				require.NoFileExists(t, filepath.Join(o.Root, c.path))
			}
			require.FileExists(t, copies[0])
		})
	}
}

func TestRemove_AFileThatCannotBeWrittenKeepsNoneOfTheOthers(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: v2with("/etc/containerd/certs.d"),
		certs + "a.example/hosts.toml": "server = \"https://a\"\n", certs + "b.example/hosts.toml": "server = \"https://b\"\n"})
	o.Release, o.Registries = "1.7.28", []string{"a.example", "b.example"}
	before := map[string]string{}
	for _, name := range []string{"a.example", "b.example"} {
		before[name] = content(t, o, certs+name+"/hosts.toml")
	}
	_, err := Install(o)
	require.NoError(t, err)
	first := true
	o.crash = func() error {
		defer func() { first = false }()
		if first {
			return fs.ErrPermission
		}
		return nil
	}
	result, err := Remove(o)
	require.ErrorIs(t, err, fs.ErrPermission)
	require.ErrorContains(t, err, "writable")
	require.Len(t, result.Changed, 1)
	result, err = Remove(o)
	require.NoError(t, err)
	require.Len(t, result.Changed, 1)
	for name, want := range before {
		require.Equal(t, want, content(t, o, certs+name+"/hosts.toml"))
	}
}

func TestStatus_TellsThatTheMirrorLeadsToAnotherAgent(t *testing.T) {
	t.Parallel()
	o := node(t, Containerd, tree{config: v2with("/etc/containerd/certs.d")})
	o.Release = "1.7.28"
	_, err := Install(o)
	require.NoError(t, err)
	result, err := Status(o)
	require.NoError(t, err)
	require.Empty(t, result.Findings)
	o.Endpoint = "http://127.0.0.1:5999"
	result, err = Status(o)
	require.NoError(t, err)
	require.Equal(t, []FindingKind{Outdated}, kinds(result))
	require.Contains(t, result.Findings[0].Message, "not to the one at 127.0.0.1:5999")
	o.AnyEndpoint = true
	result, err = Status(o)
	require.NoError(t, err)
	require.Empty(t, result.Findings, "nobody says which it is to be")
}
