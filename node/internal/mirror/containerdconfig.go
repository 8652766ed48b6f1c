package mirror

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// defaultConfigPath is the config_path of containerd 2.2 and later where the configuration sets none.
const defaultConfigPath = "/etc/containerd/certs.d:/etc/docker/certs.d"

// The CRI plugin's names in versions 1, 2, and 3 and later of the configuration file.
const (
	criV1 = "cri"
	criV2 = "io.containerd.grpc.v1.cri"
	criV3 = "io.containerd.cri.v1.images"
)

// settings are what containerd's configuration says about the pulls of CRI, as one release merges it.
type settings struct {
	// configPath is the value in force, which may be a list.
	configPath string
	// set reports whether a file sets config_path, other than to nothing.
	set bool
	// legacy tells of mirrors, or of TLS settings, in the old form.
	legacy bool
	// transfer reports whether the transfer service pulls, which does not split configPath.
	transfer bool
	// refused is why this release does not start with the configuration.
	refused string
}

// configFile is one file of containerd's configuration.
type configFile struct {
	path    string // on the node
	version int
	plugins map[string]any
}

// readConfigFiles reads the configuration file and those that it imports, in the order in which containerd merges them:
// a queue, and no file twice. A main file that is not there configures nothing: containerd runs on its defaults then.
func readConfigFiles(o Options) ([]configFile, error) {
	if o.RuntimeConfig == "" {
		return nil, fs.ErrNotExist
	}
	var files []configFile
	pending, read := []string{o.RuntimeConfig}, make(map[string]bool)
	for len(pending) > 0 {
		path := pending[0]
		pending = pending[1:]
		if read[path] {
			continue
		}
		read[path] = true
		now, err := readFile(o.on(path))
		if err != nil {
			return nil, err
		}
		if !now.exists {
			if path == o.RuntimeConfig {
				return nil, nil
			}
			return nil, fmt.Errorf("%s is imported and does not exist here", path)
		}
		content := now.content
		if !o.asIs {
			if content = stripMarked(content); path == o.RuntimeConfig && len(content) == 0 && len(now.content) > 0 {
				return nil, nil // all of it was installed
			}
		}
		f, imports, err := parseConfigFile(path, content)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
		imports, err = o.imports(path, imports)
		if err != nil {
			return nil, err
		}
		pending = append(pending, imports...)
	}
	return files, nil
}

func parseConfigFile(path string, content []byte) (f configFile, imports []string, err error) {
	var c struct {
		Version int            `toml:"version"`
		Imports []string       `toml:"imports"`
		Plugins map[string]any `toml:"plugins"`
	}
	if err := toml.Unmarshal(content, &c); err != nil {
		return configFile{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	return configFile{path, c.Version, c.Plugins}, c.Imports, nil
}

// imports are the paths, on the node, of what a file imports. Only a pattern with a star is one.
func (o Options) imports(parent string, patterns []string) ([]string, error) {
	var all []string
	for _, pattern := range patterns {
		pattern = filepath.Clean(pattern)
		if r, known := o.release(); known && r.globsHere() && strings.Contains(pattern, "*") {
			pattern = filepath.Join("/", pattern)
		}
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(parent), pattern)
		}
		if !strings.Contains(pattern, "*") {
			all = append(all, pattern)
			continue
		}
		matches, err := o.glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("%s: import %q: %w", parent, pattern, err)
		}
		all = append(all, matches...)
	}
	return all, nil
}

// glob is filepath.Glob on the node, whose root is no pattern.
func (o Options) glob(pattern string) ([]string, error) {
	matches, err := fs.Glob(os.DirFS(o.Root), strings.TrimPrefix(path.Clean(pattern), "/"))
	for i, m := range matches {
		matches[i] = "/" + m
	}
	return matches, err
}

// settingsOf merges the files as a release does.
func settingsOf(files []configFile, r release) settings {
	switch {
	case r.major == 1:
		return mergeV1(files, r).read(r)
	case r.before(firstMigrateEach):
		return mergeV2(files).read(r)
	}
	return mergeEach(files).read(r)
}

// section is the CRI plugin's, or why containerd does not start.
type section struct {
	keys    map[string]any
	refused string
}

// mergeV1 is the way of containerd 1: a later file's section of a plugin replaces an earlier one as a whole, and the
// version of the files says which of the plugin's names counts.
func mergeV1(files []configFile, r release) section {
	version := 1
	for _, f := range files {
		if f.version != 0 {
			version = f.version
		}
	}
	if version > 2 && r.refusesNewer() {
		return section{refused: fmt.Sprintf("its version is %d, and this release knows 2", version)}
	}
	name := criV2
	if version < 2 {
		name = criV1
	}
	var s section
	for _, f := range files {
		for _, plugin := range slices.Sorted(maps.Keys(f.plugins)) {
			if version == 2 && (!strings.HasPrefix(plugin, "io.containerd.") || strings.Count(plugin, ".") < 3) {
				return section{refused: fmt.Sprintf("%s names the plugin %q as version 1 does, and the "+
					"files together have version 2", f.path, plugin)}
			}
		}
		if f.plugins[name] != nil {
			s.keys = table(f.plugins, name)
		}
	}
	return s
}

// mergeV2 is the way of containerd 2.0 to 2.2: tables are merged key by key, where an empty string counts as a value.
// If the merged version is below 3, what stands under the older name then goes to the newer.
func mergeV2(files []configFile) section {
	version := 3
	plugins := map[string]any{}
	for _, f := range files {
		switch {
		case f.version >= 2:
			version = f.version
		case version > 3:
			return section{refused: fmt.Sprintf("%s comes after one of version %d, which this "+
				"release cannot bring it to", f.path, version)}
		case f.plugins[criV1] != nil:
			f.plugins = merged(f.plugins, map[string]any{criV2: f.plugins[criV1]})
		}
		plugins = merged(plugins, f.plugins)
	}
	if version > 3 {
		return section{refused: fmt.Sprintf("its version is %d, and this release knows 3", version)}
	}
	images := table(plugins, criV3)
	if version < 3 {
		images = migrated(images, table(plugins, criV2))
	}
	return section{keys: images}
}

// mergeEach is the way of containerd 2.3 and later: the older names go to the newest in each file, before they are
// merged.
func mergeEach(files []configFile) section {
	images := map[string]any{}
	for _, f := range files {
		if f.version > 4 {
			return section{refused: fmt.Sprintf("%s has version %d, and this release knows 4", f.path, f.version)}
		}
		own := table(f.plugins, criV3)
		if f.version < 2 {
			own = migrated(own, table(f.plugins, criV1))
		}
		if f.version < 4 {
			own = migrated(own, table(f.plugins, criV2))
		}
		images = merged(images, own)
	}
	return section{keys: images}
}

// read reads the keys that matter to mirrors.
func (in section) read(r release) settings {
	section := in.keys
	registry := table(section, "registry")
	s := settings{refused: in.refused}
	s.configPath, _ = registry["config_path"].(string)
	s.set = s.configPath != ""
	mirrors := table(registry, "mirrors")
	configs := table(registry, "configs")
	// Beside a directory of mirrors containerd takes configs with auth, but none with tls.
	s.legacy = len(mirrors) > 0 || slices.ContainsFunc(slices.Collect(maps.Values(configs)), hasTLS)
	if !s.set && len(mirrors) == 0 && !r.before(firstDefaultPath) {
		s.configPath = defaultConfigPath
	}
	local := truth(section, "use_local_image_pull", false) ||
		// What the transfer service does not know makes containerd pull as it did before.
		!truth(section, "disable_snapshot_annotations", true) || truth(section, "discard_unpacked_layers", false) ||
		truth(section, "image_pull_with_sync_fs", false) ||
		len(mirrors)+len(configs)+len(table(registry, "auths")) > 0 ||
		!isDownloadDefault(section["max_concurrent_downloads"])
	s.transfer = !r.before(firstTransfer) && !local
	return s
}

// isDownloadDefault reports whether max_concurrent_downloads is left at 3, in a file or in the output of `containerd
// config dump`.
func isDownloadDefault(v any) bool {
	n, isInt := v.(int64)
	return v == nil || isInt && n == 3
}

func truth(section map[string]any, key string, otherwise bool) bool {
	if v, ok := section[key].(bool); ok {
		return v
	}
	return otherwise
}

// migrated is what containerd 2 makes of the section with the older name, put into that with the newer.
func migrated(images, cri map[string]any) map[string]any {
	images = maps.Clone(images)
	if images == nil {
		images = map[string]any{}
	}
	move := func(from map[string]any, keys ...string) {
		for _, key := range keys {
			if v, ok := from[key]; ok {
				images[key] = v
			}
		}
	}
	move(cri, "registry", "max_concurrent_downloads", "image_pull_with_sync_fs")
	if containerd := table(cri, "containerd"); containerd["runtimes"] != nil {
		move(containerd, "disable_snapshot_annotations", "discard_unpacked_layers")
	}
	return images
}

// merged merges tables key by key; what is later wins.
func merged(to, from map[string]any) map[string]any {
	out := maps.Clone(to)
	if out == nil {
		out = map[string]any{}
	}
	for key, v := range from {
		inner, isTable := v.(map[string]any)
		if outer, ok := out[key].(map[string]any); ok && isTable {
			v = merged(outer, inner)
		}
		out[key] = v
	}
	return out
}

func table(of map[string]any, key string) map[string]any {
	t, _ := of[key].(map[string]any)
	return t
}

func hasTLS(config any) bool {
	keys, _ := config.(map[string]any)
	return keys["tls"] != nil
}
