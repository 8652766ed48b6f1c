package mirror

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
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
	// criRuntime is what containerd 2 has split off. Its service needs that, and criV3, too.
	criRuntime = "io.containerd.cri.v1.runtime"
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
	// disabled are the plugins, of those that serve the CRI, that are turned off.
	disabled []string
	// refused is why this release does not start with the configuration.
	refused string
}

// configFile is one file of containerd's configuration.
type configFile struct {
	path    string // on the node
	digest  string // of what it says, comments aside
	version int
	plugins map[string]any
	// disabled are the plugins that it turns off.
	disabled []string
	// marked tells that it begins with a byte order mark.
	marked bool
}

// readConfigFiles reads the configuration file and those that it imports, in the order in which containerd merges them:
// a queue, and no file twice. A main file that is not there configures nothing, unless it was named: containerd runs on
// its defaults then.
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
			if path == o.RuntimeConfig && !o.named {
				return nil, nil
			}
			if path == o.RuntimeConfig {
				return nil, fmt.Errorf("%s does not exist here, and containerd does not start with a file that is "+
					"named and not there", path)
			}
			return nil, fmt.Errorf("%s is imported and does not exist here", path)
		}
		content := now.content
		if o.Runtime == MicroK8s {
			content = snapData.ReplaceAll(content, []byte(snapCurrent))
		}
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

// snapCurrent is the link to the folder of the snap's revision that is in use. MicroK8s writes its configuration anew
// for each revision, and names the folder itself.
const snapCurrent = "/var/snap/microk8s/current/"

var snapData = regexp.MustCompile(`/var/snap/microk8s/x?[0-9]+/|\$\{SNAP_DATA\}/`)

func parseConfigFile(path string, content []byte) (f configFile, imports []string, err error) {
	var c struct {
		Version  int            `toml:"version"`
		Imports  []string       `toml:"imports"`
		Plugins  map[string]any `toml:"plugins"`
		Disabled []string       `toml:"disabled_plugins"`
	}
	mark, content := cutMark(content)
	if err := toml.Unmarshal(content, &c); err != nil {
		return configFile{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	// Digests are stored, so they are of the values alone: names of types and fields change from release to release.
	values, err := json.Marshal([]any{c.Version, c.Imports, c.Plugins, c.Disabled})
	if err != nil {
		values = content // JSON has no infinity, nor what is no number
	}
	return configFile{path: path, digest: digestOf(values), version: c.Version, plugins: c.Plugins,
		disabled: c.Disabled, marked: len(mark) > 0}, c.Imports, nil
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
func settingsOf(files []configFile, r release) (s settings) {
	switch {
	case r.major == 1:
		s = mergeV1(files, r).read(r)
	case r.before(firstMigrateEach):
		s = mergeV2(files).read(r)
	default:
		s = mergeEach(files).read(r)
	}
	s.disabled = disabledOf(files, r)
	for _, f := range files {
		if f.marked && r.major > 1 {
			s.refused = f.path + " begins with a byte order mark; save it without one"
		}
	}
	return s
}

// disabledOf are the plugins that serve the CRI and that a file turns off. Containerd puts the lists of all files
// together, and takes the older name for the newer.
func disabledOf(files []configFile, r release) (off []string) {
	serving := []string{criV2}
	if r.major > 1 {
		serving = append(serving, criV3, criRuntime)
	}
	for _, f := range files {
		for _, plugin := range f.disabled {
			if plugin == criV1 {
				plugin = criV2
			}
			if slices.Contains(serving, plugin) && !slices.Contains(off, plugin) {
				off = append(off, plugin)
			}
		}
	}
	return off
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
		for _, plugin := range slices.Concat(slices.Sorted(maps.Keys(f.plugins)), f.disabled) {
			if version >= 2 && (!strings.HasPrefix(plugin, "io.containerd.") || strings.Count(plugin, ".") < 3) {
				return section{refused: fmt.Sprintf("%s names the plugin %q as version 1 does, and the "+
					"files together have version %d", f.path, plugin, version)}
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
	section := folded(in.keys, r)
	registry := folded(table(section, "registry"), r)
	s := settings{refused: in.refused}
	path, isString := registry[configPathKey].(string)
	if v, given := registry[configPathKey]; given && !isString {
		s.refused = fmt.Sprintf("its config_path is no string: %v; write one directory between quotes", v)
	}
	s.configPath = path
	s.set = s.configPath != ""
	mirrors := table(registry, "mirrors")
	configs := table(registry, "configs")
	// Beside a directory of mirrors containerd takes configs with auth, but none with tls.
	s.legacy = len(mirrors) > 0 || slices.ContainsFunc(slices.Collect(maps.Values(configs)), func(config any) bool {
		keys, _ := config.(map[string]any)
		return folded(keys, r)["tls"] != nil
	})
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

// folded is a section with its keys as they are documented. Containerd 1 reads keys that are all in capitals as well,
// where the others are not there, and containerd 2 those in any case, one after the other in the order of bytes.
func folded(section map[string]any, r release) map[string]any {
	out := make(map[string]any, len(section))
	for _, key := range slices.Sorted(maps.Keys(section)) {
		v, name := section[key], strings.ToLower(key)
		if r.major == 1 {
			if _, plain := section[name]; key != name && (plain || key != strings.ToUpper(key)) {
				continue
			}
		}
		if inner, isTable := v.(map[string]any); isTable && table(out, name) != nil {
			v = merged(table(out, name), inner)
		}
		out[name] = v
	}
	return out
}
