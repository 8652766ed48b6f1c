package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
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
	if o.FixConfigPath && !o.asIs {
		return o.mended(d, files, releases)
	}
	return d
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

// unread are the reasons why the releases do not read dirs[0]. A finding that is not one of all of them names its own.
func (o Options) unread(files []configFile, releases []release, dirs []string) []Finding {
	var found []Finding
	by := make(map[Finding][]string)
	started := 0
	for _, r := range releases {
		s := settingsOf(files, r)
		if s.refused != "" && len(releases) > 1 {
			continue
		}
		started++
		f, ok := o.why(s, r, dirs)
		if !ok {
			continue
		}
		if by[f] == nil {
			found = append(found, f)
		}
		by[f] = append(by[f], r.String())
	}
	for i, f := range found {
		if len(by[f]) < started {
			found[i].Message = fmt.Sprintf("with containerd %s: %s", strings.Join(by[f], ", "), f.Message)
		}
	}
	return found
}

// why a release with these settings does not read dirs[0].
func (o Options) why(s settings, r release, dirs []string) (f Finding, ok bool) {
	f = Finding{Path: o.RuntimeConfig}
	switch list := filepath.SplitList(s.configPath); {
	case s.refused != "":
		f.Kind, f.Message = RuntimeConfigUnreadable, fmt.Sprintf("containerd %s does not start with it: %s", r,
			s.refused)
	case s.legacy:
		f.Kind, f.Message = LegacyMirrors, fmt.Sprintf(
			"has registry.mirrors or registry.configs with tls, with which containerd does not read %s; "+
				"move them to hosts.toml files, set config_path = %q in %s, and restart containerd",
			o.mirrors(), o.mirrors(), registryTables2and3)
	case s.configPath == "":
		f.Kind, f.Message = ConfigPathUnset, fmt.Sprintf(
			"does not set config_path, without which containerd before 2.2 reads no mirrors; "+
				"set config_path = %q in %s, and restart containerd, or install with --fix-config-path",
			o.mirrors(), registryTables2and3)
	case !s.set && !slices.Contains(list, dirs[0]):
		f.Kind, f.Message = ConfigPathUnset, fmt.Sprintf(
			"does not set config_path, without which this containerd reads %q, and not %s; "+
				"set config_path = %q in %s, and restart containerd, or install with --fix-config-path",
			s.configPath, dirs[0], dirs[0], registryTables2and3)
	case !slices.Contains(list, dirs[0]) && s.configPath != dirs[0]:
		f.Kind, f.Message = ConfigPathElsewhere, fmt.Sprintf(
			"has config_path = %q, so containerd does not read %s; "+
				"give one of those directories, or change config_path and restart containerd", s.configPath, dirs[0])
	case s.transfer && len(list) > 1 && !o.leadsTo(s.configPath, dirs[0]):
		f.Kind, f.Message = ConfigPathList, fmt.Sprintf(
			"config_path is %q, which containerd 2.1 and later take for one directory of that name, so they read no "+
				"mirrors; install with --fix-config-path, or set config_path = %q in %s and restart containerd",
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

// mended is d with what makes containerd read d.dirs.
//
// A list: containerd then looks for one directory of that name, colons and all. It gets one, a link to the first
// directory of the list, and there links to what stands in the others. Containerd reads it with the next pull, and no
// file of anybody is changed. Nothing set: config_path goes into the configuration, and containerd has to be restarted.
//
// Where the release is not known both may be asked for: the link serves at once, and those that restart read
// config_path.
func (o Options) mended(d directories, files []configFile, releases []release) directories {
	was := files
	for _, f := range d.findings {
		switch f.Kind {
		case ConfigPathList:
			d.mend.links = append(d.mend.links, o.linked(d.dirs, was, releases)...)
		case ConfigPathUnset:
			t := o.toSetConfigPath(files)
			if after, err := o.with(files, t); err == nil {
				files = after
				d.mend.targets = append(d.mend.targets, t)
			}
		}
	}
	linked := len(d.mend.links) > 0
	d.findings = slices.DeleteFunc(o.unread(files, releases, d.dirs), func(f Finding) bool {
		return linked && f.Kind == ConfigPathList
	})
	return d
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

// toSetConfigPath sets config_path in the file whose word is the last on the CRI plugin.
func (o Options) toSetConfigPath(files []configFile) target {
	path, name := o.RuntimeConfig, criV2
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
	return target{
		path: path, restart: true, mark: fmt.Sprintf("config_path = %q", o.mirrors()),
		insert: func(content []byte) ([]byte, error) {
			return setConfigPath(content, fmt.Sprintf("plugins.%q.registry", name), o.mirrors())
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

// setConfigPath gives a TOML file's table the key config_path, in place of an empty one. Where it has no such table, it
// gets one.
func setConfigPath(content []byte, tableName, value string) ([]byte, error) {
	key := fmt.Sprintf("config_path = %q\n", value)
	var header string
	at, until := len(content), len(content)
	if len(bytes.TrimSpace(content)) == 0 {
		header = "version = 2\n[" + tableName + "]\n"
	} else {
		found, start, stop, err := findKey(content, tableName, "config_path")
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errForeign, err)
		}
		if at, until = start, stop; !found {
			header = "[" + tableName + "]\n"
		}
	}
	head, was, tail := content[:at], content[at:until], content[until:]
	var b bytes.Buffer
	b.Write(head)
	if len(head) > 0 && !bytes.HasSuffix(head, []byte("\n")) {
		b.WriteByte('\n')
	}
	b.WriteString(begin + header)
	if len(was) > 0 {
		b.WriteString(replaced + strings.TrimRight(string(was), "\r\n") + "\n")
	}
	b.WriteString(key + end)
	b.Write(tail)
	var check map[string]any
	if err := toml.Unmarshal(b.Bytes(), &check); err != nil {
		return nil, fmt.Errorf("%w: its form leaves no place for config_path: %w", errForeign, err)
	}
	return b.Bytes(), nil
}

// findKey finds a table, and a key in it. found tells of the table. start and stop are around the key's line, or where
// it may be put.
func findKey(content []byte, tableName, key string) (found bool, start, stop int, err error) {
	want, err := keyParts("[" + tableName + "]")
	if err != nil {
		return false, 0, 0, err
	}
	start, stop = len(content), len(content)
	var p unstable.Parser
	p.Reset(content)
	inside := false
	for p.NextExpression() {
		e := p.Expression()
		parts, offset := keyOf(e)
		switch {
		case e.Kind == unstable.Table:
			if inside = slices.Equal(parts, want); inside {
				found = true
				start = lineEnd(content, offset)
				stop = start
			}
		case e.Kind == unstable.ArrayTable:
			inside = false
		case inside && e.Kind == unstable.KeyValue && slices.Equal(parts, []string{key}):
			return true, bytes.LastIndexByte(content[:offset], '\n') + 1, lineEnd(content, offset), nil
		}
	}
	return found, start, stop, p.Error()
}

func keyParts(header string) ([]string, error) {
	var p unstable.Parser
	p.Reset([]byte(header))
	if !p.NextExpression() {
		return nil, errors.Join(errors.New("no table"), p.Error())
	}
	parts, _ := keyOf(p.Expression())
	return parts, nil
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
	var c struct {
		Version int            `toml:"version"`
		Plugins map[string]any `toml:"plugins"`
	}
	if err := toml.Unmarshal(out, &c); err != nil {
		return nil, fmt.Errorf("containerd config dump: %w", err)
	}
	return []configFile{{o.RuntimeConfig, c.Version, c.Plugins}}, nil
}
