package mirror

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestParseRelease(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{
		"v2.4.2": "2.4", "1.6.20~ds1": "1.6", "1.7.35": "1.7", "v2.0.0-rc.1+unknown": "2.0",
		"containerd github.com/containerd/containerd/v2 v2.2.9 abcdef1.2.3":             "2.2",
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n": "1.6",
		"2.1.5-k3s1.32":      "2.1",
		"containerd dev 2.x": "",
		"":                   "",
	} {
		r, ok := parseRelease(version)
		require.Equal(t, want != "", ok, version)
		if ok {
			require.Equal(t, want, r.String(), version)
		}
	}
}

// containerds are the containerd programs of this machine: Debian's, and those that hack/containerds.sh has built.
func containerds(t *testing.T) map[release]string {
	t.Helper()
	home, err := os.UserHomeDir()
	require.NoError(t, err)
	programs, err := filepath.Glob(filepath.Join(home, ".cache/shoal/containerd-v*/containerd"))
	require.NoError(t, err)
	found := make(map[release]string)
	for _, program := range append(programs, "/usr/bin/containerd") {
		out, err := exec.CommandContext(t.Context(), program, "--version").Output()
		if err != nil {
			continue
		}
		version := strings.Fields(string(out))[2]
		if version == "" || version == "1.7.0+unknown" || strings.HasPrefix(version, "2.") &&
			strings.HasSuffix(version, "+unknown") {
			version = strings.TrimPrefix(filepath.Base(filepath.Dir(program)), "containerd-")
		}
		r, ok := parseRelease(version)
		require.True(t, ok, "%s: %s", program, out)
		found[r] = program
	}
	return found
}

// A configuration of many files is to be read as each containerd itself reads it.
func TestSettings_AreThoseThatContainerdDumps(t *testing.T) {
	t.Parallel()
	programs := containerds(t)
	if len(programs) == 0 {
		t.Skip("there is no containerd here: apt-get install containerd, or make containerds")
	}
	examples := 15
	if os.Getenv("SHOAL_CLIENTS") != "" {
		examples = 200
	}
	for r, program := range programs {
		t.Run(r.String(), func(t *testing.T) {
			t.Parallel()
			for seed := range examples {
				dir := t.TempDir()
				tr := rapid.Custom(func(t *rapid.T) tree {
					tr := tree{}
					for _, path := range []string{"/config.toml", "/conf.d/10.toml", "/conf.d/20.toml",
						"/nested/n.toml"} {
						tr[path] = genConfig(t, path, dir)
					}
					return tr
				}).Example(seed)
				tr.write(t, dir)
				dump := exec.CommandContext(t.Context(), program, "--config", dir+"/config.toml", "config", "dump")
				dump.Dir = "/" // as a service
				out, err := dump.Output()
				files, readErr := readConfigFiles(Options{RuntimeConfig: dir + "/config.toml", Root: "/",
					Release: fmt.Sprintf("%d.%d.%d", r.major, r.minor, r.patch), asIs: true})
				require.NoError(t, readErr)
				got := settingsOf(files, r)
				if err != nil {
					require.NotEmpty(t, got.refused, "containerd refuses what is taken: %v %v", err, tr)
					continue
				}
				require.Empty(t, got.refused, "what containerd takes is refused: %v", tr)
				dumped, err := parseDump(dir+"/config.toml", out)
				require.NoError(t, err)
				want := settingsOf([]configFile{dumped}, r)
				if len(got.disabled) > 0 { // and then it prints nothing else of the plugin
					require.Equal(t, want.disabled, got.disabled, "%v", tr)
					continue
				}
				require.Equal(t, want, got, "%v", tr)
			}
		})
	}
}

// genConfig draws a file of containerd's configuration.
func genConfig(t *rapid.T, path, dir string) string {
	var b strings.Builder
	draw := func(what string, choices ...string) {
		b.WriteString(rapid.SampledFrom(choices).Draw(t, path+" "+what))
	}
	if rapid.IntRange(0, 19).Draw(t, path+" byte order mark") == 0 {
		b.WriteString(byteOrderMark)
	}
	version := rapid.SampledFrom([]int{0, 1, 2, 2, 3, 3, 4}).Draw(t, path+" version")
	if version > 0 {
		fmt.Fprintf(&b, "version = %d\n", version)
	}
	if version > 1 {
		draw("disabled", "", "", "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n")
	} else {
		draw("disabled", "", "", "disabled_plugins = [\"cri\"]\n")
	}
	switch path {
	case "/config.toml":
		draw("imports", "", "imports = [\"conf.d/*.toml\"]\n",
			fmt.Sprintf("imports = [%q, %q]\n", dir+"/conf.d/20.toml", dir+"/conf.d/*.toml"))
	case "/conf.d/10.toml":
		draw("imports", "", "imports = [\"../nested/n.toml\"]\n", "imports = [\"../config.toml\"]\n")
	}
	both := false
	for _, plugin := range []string{criV1, criV2, criV3} {
		if plugin == criV2 && both {
			continue // of both in a file without a version, containerd takes one by chance
		}
		if plugin == criV1 && version > 1 || plugin != criV1 && version == 1 {
			continue // containerd 1 refuses names without dots
		}
		section := fmt.Sprintf("plugins.%q", plugin)
		if !rapid.Bool().Draw(t, path+" "+section) {
			continue
		}
		both = plugin == criV1
		fmt.Fprintf(&b, "[%s]\n", section)
		draw(section, "", "sandbox_image = \"x\"\n", "max_concurrent_downloads = 3\n", "max_concurrent_downloads = 5\n")
		if plugin != criV3 {
			draw(section+".containerd", "", "", fmt.Sprintf("[%s.containerd]\ndiscard_unpacked_layers = true\n",
				section),
				fmt.Sprintf("[%s.containerd]\ndiscard_unpacked_layers = true\n[%s.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n", section, section))
		} else {
			draw(section+".discard", "", "discard_unpacked_layers = true\n", "discard_unpacked_layers = false\n",
				"use_local_image_pull = true\n")
		}
		draw(section+".registry", "", fmt.Sprintf("[%s.registry]\n", section),
			fmt.Sprintf("[%s.registry]\nconfig_path = \"\"\n", section),
			fmt.Sprintf("[%s.registry]\nconfig_path = \"/a\"\n",
				section), fmt.Sprintf("[%s.registry]\nconfig_path = \"/a:/b\"\n", section),
			fmt.Sprintf("[%s.registry]\nconfig_path = [\"/a\"]\n", section),
			fmt.Sprintf("[%s.registry]\nCONFIG_PATH = \"/c\"\n", section),
			fmt.Sprintf("[%s.registry]\nConfig_Path = \"/d\"\nconfig_path = \"/e\"\n", section),
			fmt.Sprintf("[%s.Registry]\nConfig_Path = \"/f\"\n", section),
			fmt.Sprintf("[%s.REGISTRY]\nconfig_path = \"/g\"\n", section),
			fmt.Sprintf("[%s.registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]\n", section))
	}
	return b.String()
}
