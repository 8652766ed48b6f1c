package mirror

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// dockerCerts is where containerd 2.2 and later look after /etc/containerd/certs.d when config_path is not set.
const dockerCerts = "/etc/docker/certs.d"

// directories are those that containerd looks through for mirrors.
type directories struct {
	// dirs are in containerd's order.
	dirs []string
	// mend is what makes containerd read them, where it does not and a mend was asked for.
	mend plan
	// findings tell why it does not.
	findings []Finding
}

// containerdDirs are the directories that containerd reads, as its configuration says; the one that is written to by
// preference comes first unless the configuration says otherwise.
func containerdDirs(o Options) directories {
	r, known := o.release()
	files, err := readConfigFiles(o)
	if err == nil && o.asIs && o.dump != nil {
		files, err = o.dumped(files)
	}
	if err != nil {
		return directories{dirs: []string{o.mirrors()}, findings: []Finding{{RuntimeConfigUnreadable, o.RuntimeConfig,
			fmt.Sprintf("%v; see that config_path names %s", err, o.mirrors())}}}
	}
	releases := knownReleases
	if known {
		releases = []release{r}
	}
	d := directories{dirs: o.dirsOf(files, releases)}
	d.findings = o.unread(files, releases, d.dirs)
	switch mended, reasons := o.mended(d, files, releases); {
	case o.FixConfigPath && !o.asIs:
		d = mended
		d.findings = advised(d.findings, d.findings, reasons)
	default:
		d.findings = advised(d.findings, mended.findings, reasons)
	}
	d.findings = append(perRelease(files, releases, o.disabled), d.findings...)
	return d
}

// advised are the findings with the advice to mend them, or with the reason why that would not help: unmended are those
// that the mend leaves.
func advised(findings, unmended []Finding, reasons []string) []Finding {
	findings = slices.Clone(findings)
	for i, f := range findings {
		mendable := f.Kind == ConfigPathUnset || f.Kind == ConfigPathList
		left := slices.ContainsFunc(unmended, func(u Finding) bool { return u.Kind == f.Kind })
		switch {
		case mendable && !left:
			findings[i].Message += ", or install with --fix-config-path"
		case mendable && len(reasons) > 0:
			findings[i].Message += "; --fix-config-path can't do that here: " + strings.Join(reasons, "; ")
		}
	}
	return findings
}

// disabled tells that a release with these settings serves no CRI. Docker's package for containerd writes such a
// configuration.
func (o Options) disabled(s settings) (f Finding, ok bool) {
	return Finding{CRIDisabled, o.RuntimeConfig, fmt.Sprintf("disabled_plugins turns %s off (\"cri\" for short, as "+
		"Docker's package for containerd writes it), so that Kubernetes cannot pull through this containerd; take "+
		"that out, and restart containerd", strings.Join(s.disabled, ", "))}, len(s.disabled) > 0
}

// dirsOf are the directories that the configuration names, for the first of the releases that starts with it.
func (o Options) dirsOf(files []configFile, releases []release) []string {
	for _, r := range releases {
		s := settingsOf(files, r)
		switch {
		case s.refused != "":
			continue
		case s.legacy:
			return []string{o.mirrors()}
		case !s.set:
			dirs := []string{o.mirrors()}
			if o.mirrors() == paths[Containerd].mirrors {
				dirs = append(dirs, dockerCerts)
			}
			return dirs
		}
		dirs := filepath.SplitList(s.configPath)
		switch {
		case slices.ContainsFunc(dirs, func(dir string) bool { return !filepath.IsAbs(dir) }):
			return []string{o.mirrors()} // where a relative path leads only containerd knows
		case o.Path != "" && !slices.Contains(dirs, o.Path):
			return []string{o.Path}
		case len(releases) == 1 && s.transfer && len(dirs) > 1 && o.isOwnDir(s.configPath):
			return []string{s.configPath} // somebody has made the directory of that name
		}
		return dirs
	}
	return []string{o.mirrors()}
}

// isOwnDir reports whether path is a directory and no link to one.
func (o Options) isOwnDir(path string) bool {
	info, err := os.Lstat(o.on(path))
	return err == nil && info.IsDir()
}

const registryTables2and3 = `[plugins."io.containerd.cri.v1.images".registry] (version 3) or ` +
	`[plugins."io.containerd.grpc.v1.cri".registry] (version 2)`

// unread are the reasons why the releases do not read dirs[0].
func (o Options) unread(files []configFile, releases []release, dirs []string) []Finding {
	return perRelease(files, releases, func(s settings) (Finding, bool) { return o.why(s, dirs) })
}

// perRelease are the findings of all releases. One that is not one of all of them names its own.
func perRelease(files []configFile, releases []release, look func(settings) (Finding, bool)) []Finding {
	var found []Finding
	by := make(map[Finding][]string)
	started := 0
	if !slices.ContainsFunc(releases, func(r release) bool { return settingsOf(files, r).refused == "" }) {
		releases = releases[len(releases)-1:] // none starts, and the newest tells why best
	}
	for _, r := range releases {
		s := settingsOf(files, r)
		if s.refused != "" && len(releases) > 1 {
			continue
		}
		started++
		f, ok := look(s)
		if !ok {
			continue
		}
		if by[f] == nil {
			found = append(found, f)
		}
		by[f] = append(by[f], r.spans())
	}
	for i, f := range found {
		if len(by[f]) < started {
			found[i].Message = fmt.Sprintf("with containerd %s: %s", strings.Join(by[f], ", "), f.Message)
		}
	}
	return found
}

// why a release with these settings does not read dirs[0].
func (o Options) why(s settings, dirs []string) (f Finding, ok bool) {
	f = Finding{Path: o.RuntimeConfig}
	switch list := filepath.SplitList(s.configPath); {
	case s.refused != "":
		f.Kind, f.Message = RuntimeConfigUnreadable, "containerd does not start with it: "+s.refused
	case s.legacy:
		f.Kind, f.Message = LegacyMirrors, fmt.Sprintf(
			"has registry.mirrors or registry.configs with tls, with which containerd does not read %s; "+
				"move them to hosts.toml files, set config_path = %q in %s, and restart containerd",
			o.mirrors(), o.mirrors(), registryTables2and3)
	case s.configPath == "":
		f.Kind, f.Message = ConfigPathUnset, fmt.Sprintf(
			"does not set config_path, without which containerd before 2.2 reads no mirrors; "+
				"set config_path = %q in %s, and restart containerd",
			o.mirrors(), registryTables2and3)
	case !s.set && !slices.Contains(list, dirs[0]):
		f.Kind, f.Message = ConfigPathUnset, fmt.Sprintf(
			"does not set config_path, without which this containerd reads %q, and not %s; "+
				"set config_path = %q in %s, and restart containerd",
			s.configPath, dirs[0], dirs[0], registryTables2and3)
	case !slices.Contains(list, dirs[0]) && s.configPath != dirs[0]:
		f.Kind, f.Message = ConfigPathElsewhere, fmt.Sprintf(
			"has config_path = %q, so containerd does not read %s; "+
				"give one of those directories, or change config_path and restart containerd", s.configPath, dirs[0])
	case s.transfer && len(list) > 1 && !o.leadsTo(s.configPath, dirs[0]):
		f.Kind, f.Message = ConfigPathList, fmt.Sprintf(
			"config_path is %q, which containerd 2.1 and later take for one directory of that name, so they read no "+
				"mirrors; set config_path = %q in %s, and restart containerd",
			s.configPath, dirs[0], registryTables2and3)
	default:
		return f, false
	}
	return f, true
}

// leadsTo reports whether path is dir, or a link to it; but for one that an installation made, where that is not to
// count.
func (o Options) leadsTo(path, dir string) bool {
	to, err := os.Readlink(o.on(path))
	return path == dir || err == nil && filepath.Clean(to) == dir && (o.asIs || !o.state.linked(filepath.Clean(path)))
}

// mended is d with what makes containerd read d.dirs, and the reasons why a part of that cannot be done.
//
// A list: containerd then looks for one directory of that name, colons and all. It gets one, a link to the first
// directory of the list, and there links to what stands in the others. Containerd reads it with the next pull, and no
// file of anybody is changed. A list that names but one directory, and nothing set: config_path goes into the
// configuration, and containerd has to be restarted.
//
// Where the release is not known both may be asked for: the link serves at once, and those that restart read
// config_path.
func (o Options) mended(d directories, files []configFile, releases []release) (mended directories, reasons []string) {
	mended = directories{dirs: d.dirs}
	was := files
	set := false
	for _, f := range d.findings {
		links := []link(nil)
		switch f.Kind {
		case ConfigPathList:
			if links = o.linked(d.dirs, was, releases); len(links) == 0 && !o.namesOne(was, releases) {
				reasons = append(reasons, "its list has a path that does not begin with /")
				continue
			}
		case ConfigPathUnset:
		default:
			continue
		}
		mended.mend.links = append(mended.mend.links, links...)
		if set || len(links) > 0 {
			continue
		}
		set = true
		t, after, err := o.toSetConfigPath(files, releases, d.dirs)
		if err != nil {
			reasons = append(reasons, err.Error())
			continue
		}
		files = after
		mended.mend.targets = append(mended.mend.targets, t)
	}
	linked := len(mended.mend.links) > 0
	mended.findings = slices.DeleteFunc(o.unread(files, releases, d.dirs), func(f Finding) bool {
		return linked && f.Kind == ConfigPathList
	})
	return mended, reasons
}

// namesOne reports whether the list that a release takes for one directory holds, but for empty elements, no other
// directory than the one that is written to.
func (o Options) namesOne(files []configFile, releases []release) bool {
	for _, r := range releases {
		if s := settingsOf(files, r); s.transfer && strings.Contains(s.configPath, ":") {
			rest := slices.DeleteFunc(filepath.SplitList(s.configPath), func(dir string) bool { return dir == "" })
			return len(rest) == 1 && rest[0] == o.mirrors()
		}
	}
	return false
}

// linked are the links that give containerd the one directory that it takes a list for.
func (o Options) linked(dirs []string, files []configFile, releases []release) []link {
	for _, r := range releases {
		s := settingsOf(files, r)
		list := filepath.SplitList(s.configPath)
		if s.transfer && len(list) > 1 && list[0] == dirs[0] && filepath.IsAbs(s.configPath) {
			return append([]link{{path: filepath.Clean(s.configPath), to: dirs[0]}}, o.lifted(dirs, dirs[0], true)...)
		}
	}
	return nil
}

// lifted are links, in home, to the directories of registries that stand in the directories after it: containerd would
// not look into those any more where it finds home, or a _default in it.
func (o Options) lifted(dirs []string, home string, withDefault bool) []link {
	var links []link
	after := slices.Index(dirs, home) + 1
	for i, dir := range dirs[after:] {
		for _, name := range o.registryDirs(dir, nil) {
			covered := slices.ContainsFunc(dirs[:after+i], func(first string) bool {
				return slices.Contains(o.registryDirs(first, dirs), name)
			})
			if !covered && (withDefault || name != "_default") {
				links = append(links, link{path: filepath.Join(home, name), to: filepath.Join(dir, name)})
			}
		}
	}
	return links
}

// madeFor is the directory that an installation made the link at path for, and otherwise path itself. After a restart
// containerd may no longer look into that directory but by the link.
func (o Options) madeFor(path string) string {
	if to, err := os.Readlink(o.on(path)); err == nil && o.state.linked(path) && to == o.state.Links[path] {
		return to
	}
	return path
}

// hostName is what a registry's directory may be called. Containerd looks for no other: an image's reference has no
// other host.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_\[][A-Za-z0-9._:\[\]-]*$`)

// registryDirs are the names of the directories of registries in dir, but for links to the same name in one of others:
// those are made by lifted, and what they lead to counts.
func (o Options) registryDirs(dir string, others []string) []string {
	entries, err := os.ReadDir(o.on(dir))
	if err != nil {
		return nil // as containerd, which passes over what it can't read
	}
	var names []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		to, err := os.Readlink(o.on(path))
		linked := err == nil
		lifted := linked && slices.ContainsFunc(others, func(other string) bool {
			return other != dir && to == filepath.Join(other, e.Name())
		})
		if !lifted && (linked || e.IsDir()) && hostName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names
}

// toSetConfigPath sets config_path where the releases read it: in the file whose word is the last on the CRI plugin,
// and there under the name that leaves the fewest findings. What a file without a version, or of an old one, may call
// the plugin is not the same in all releases. It returns the files with that.
func (o Options) toSetConfigPath(files []configFile, releases []release, dirs []string) (target, []configFile, error) {
	var best target
	var after []configFile
	var problems []error
	left := len(o.unread(files, releases, dirs))
	path, name := o.lastWord(files)
	for _, plugin := range []string{name, criV3, criV2, criV1} {
		t := o.settingConfigPath(path, plugin)
		changed, err := o.with(files, t)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", path, err))
			continue
		}
		if n := len(o.unread(changed, releases, dirs)); n < left {
			best, after, left = t, changed, n
		}
	}
	switch {
	case after != nil:
		return best, after, nil
	case len(problems) > 0:
		return target{}, nil, problems[0]
	}
	return target{}, nil, fmt.Errorf("%s: no form of config_path is read there", path)
}

// lastWord is the file that is merged last of those that configure the CRI plugin, and what its version calls that.
func (o Options) lastWord(files []configFile) (path, name string) {
	path, name = o.RuntimeConfig, criV2
	for i, f := range files {
		own := criV3
		switch {
		case f.version < 2:
			own = criV1
		case f.version == 2:
			own = criV2
		}
		if i == 0 || f.plugins[own] != nil {
			path, name = f.path, own
		}
	}
	return path, name
}

func (o Options) settingConfigPath(path, plugin string) target {
	return target{
		path: path, restart: true, mark: fmt.Sprintf("config_path = %q", o.mirrors()),
		insert: func(content []byte) ([]byte, error) {
			plugin := plugin
			if len(bytes.TrimSpace(content)) == 0 { // it gets a version, and so the plugin of that
				plugin = criV2
			}
			return setConfigPath(content, []string{"plugins", plugin, "registry"}, o.mirrors())
		},
	}
}

// with are the files as they are with what a target inserts.
func (o Options) with(files []configFile, t target) ([]configFile, error) {
	now, err := readFile(o.on(t.path))
	if err != nil {
		return nil, err
	}
	content, err := t.insert(stripMarked(now.content))
	if err != nil {
		return nil, err
	}
	changed, _, err := parseConfigFile(t.path, content)
	if err != nil {
		return nil, err
	}
	after := slices.Clone(files)
	for i, f := range after {
		if f.path == t.path {
			after[i] = changed
			return after, nil
		}
	}
	return append([]configFile{changed}, after...), nil
}

// keyOf are the parts of an expression's key, and the offset of the first.
func keyOf(e *unstable.Node) (parts []string, offset int) {
	if e.Kind != unstable.Table && e.Kind != unstable.ArrayTable && e.Kind != unstable.KeyValue {
		return nil, 0
	}
	for it := e.Key(); it.Next(); {
		if len(parts) == 0 {
			offset = int(it.Node().Raw.Offset)
		}
		parts = append(parts, string(it.Node().Data))
	}
	return parts, offset
}

// lineEnd is the offset after the line that offset is in.
func lineEnd(content []byte, offset int) int {
	if i := bytes.IndexByte(content[offset:], '\n'); i >= 0 {
		return offset + i + 1
	}
	return len(content)
}

// release is the node's containerd's, if it is known.
func (o Options) release() (release, bool) { return parseRelease(o.Release) }

// dumped is the configuration as `containerd config dump` has it, in place of the files.
func (o Options) dumped(files []configFile) ([]configFile, error) {
	out, err := o.dump()
	if err != nil {
		return files, nil //nolint:nilerr // the files are there to be read
	}
	f, err := parseDump(o.RuntimeConfig, out)
	if err != nil {
		return nil, fmt.Errorf("containerd config dump: %w", err)
	}
	return []configFile{f}, nil
}

// parseDump reads what containerd prints of its configuration. Containerd 1 prints it as of version 2, and plugins that
// are turned off by the names that version 1 has for them.
func parseDump(path string, out []byte) (configFile, error) {
	f, _, err := parseConfigFile(path, out)
	for i, plugin := range f.disabled {
		if plugin == criV1 {
			f.disabled[i] = criV2
		}
	}
	f.disabled = slices.DeleteFunc(f.disabled, func(plugin string) bool { return !strings.Contains(plugin, ".") })
	return f, err
}
