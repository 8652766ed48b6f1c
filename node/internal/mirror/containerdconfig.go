package mirror

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// dockerCerts is where containerd 2.2 and later look after /etc/containerd/certs.d when config_path is not set.
const dockerCerts = "/etc/docker/certs.d"

// containerdDirs are the directories that containerd looks through for mirrors, in its order; the one that is written to
// by preference comes first unless the runtime's configuration says otherwise.
func containerdDirs(o Options) ([]string, []Finding) {
	found, err := readContainerdConfig(o)
	if err != nil {
		return []string{o.mirrors()}, []Finding{{RuntimeConfigUnreadable, o.RuntimeConfig,
			fmt.Sprintf("%v; see that config_path names %s", err, o.mirrors())}}
	}
	const table = `[plugins."io.containerd.cri.v1.images".registry] (version 3) or [plugins."io.containerd.grpc.v1.cri".registry] (version 2)`
	switch {
	case found.legacy != "":
		return []string{o.mirrors()}, []Finding{{LegacyMirrors, found.legacy, fmt.Sprintf(
			"has registry.mirrors or registry.configs with tls, with which containerd does not read %s; move them to hosts.toml files, set config_path = %q in %s, and restart containerd",
			o.mirrors(), o.mirrors(), table)}}
	case found.dirs == "":
		dirs := []string{o.mirrors()}
		if o.mirrors() == paths[Containerd].mirrors {
			dirs = append(dirs, dockerCerts)
		}
		return dirs, []Finding{{ConfigPathUnset, o.RuntimeConfig, fmt.Sprintf(
			"does not set config_path, without which containerd before 2.2 reads no mirrors; set config_path = %q in %s, and restart containerd", o.mirrors(), table)}}
	}
	dirs := filepath.SplitList(found.dirs)
	if o.Path != "" && !slices.Contains(dirs, o.Path) {
		return []string{o.Path}, []Finding{{ConfigPathElsewhere, o.RuntimeConfig, fmt.Sprintf(
			"has config_path = %q, so containerd does not read %s; give one of those directories, or change config_path and restart containerd", found.dirs, o.Path)}}
	}
	return dirs, nil
}

// containerdConfig is what containerd's configuration says about mirrors.
type containerdConfig struct {
	dirs   string // config_path
	legacy string // the file that configures mirrors the old way
}

func hasTLS(config any) bool {
	keys, _ := config.(map[string]any)
	return keys["tls"] != nil
}

// readContainerdConfig reads the configuration file and what it imports. A file that is not there configures nothing:
// containerd runs on its defaults then.
func readContainerdConfig(o Options) (containerdConfig, error) {
	var found containerdConfig
	seen := make(map[string]bool)
	var read func(path string) error
	read = func(path string) error {
		if seen[path] {
			return nil
		}
		seen[path] = true
		now, err := readFile(o.on(path))
		if err != nil || !now.exists {
			return err
		}
		var c struct {
			Imports []string                  `toml:"imports"`
			Plugins map[string]map[string]any `toml:"plugins"`
		}
		if err := toml.Unmarshal(now.content, &c); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		// The names of the plugin in versions 1, 2 and 3 of the configuration file.
		for _, plugin := range []string{"cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"} {
			registry, _ := c.Plugins[plugin]["registry"].(map[string]any)
			if dirs, _ := registry["config_path"].(string); dirs != "" {
				found.dirs = dirs
			}
			mirrors, _ := registry["mirrors"].(map[string]any)
			configs, _ := registry["configs"].(map[string]any)
			// Beside a directory of mirrors containerd takes configs with auth, but none with tls.
			if len(mirrors) > 0 || slices.ContainsFunc(slices.Collect(maps.Values(configs)), hasTLS) {
				found.legacy = path
			}
		}
		// What is imported comes after, and so wins.
		for _, pattern := range c.Imports {
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(path), pattern)
			}
			matches, err := filepath.Glob(o.on(pattern))
			if err != nil {
				return fmt.Errorf("%s: import %q: %w", path, pattern, err)
			}
			for _, m := range matches {
				if err := read(filepath.Join("/", strings.TrimPrefix(m, filepath.Clean(o.Root)))); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if o.RuntimeConfig == "" {
		return found, os.ErrNotExist
	}
	return found, read(o.RuntimeConfig)
}
