package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// certsD is containerd's way: a directory for each registry with a hosts.toml, in the directories of config_path.
//
// Containerd takes the first directory that exists for a registry, looking through config_path in order and in each of
// its directories for "<host>_<port>_", "<host>:<port>" and "_default" (containerd,
// core/remotes/docker/config/hosts.go). In a hosts.toml it tries the [host.…] tables in the order of the file, and at
// last the server, which without a key `server` is the registry itself. A directory without hosts.toml is read for
// certificates.
type certsD struct{}

const (
	begin = "# Begin of what `shoal-node mirror install` wrote; `shoal-node mirror remove` takes it out.\n"
	end   = "# End of what `shoal-node mirror install` wrote.\n"
)

// replaced precedes, in what Install wrote, a line that was there before.
const replaced = "# In place of: "

func (certsD) plan(o Options) (plan, error) {
	found := containerdDirs(o)
	p := found.mend
	p.findings = found.findings
	var wanted []string
	for _, registry := range o.Registries {
		if registry == All {
			wanted = append(wanted, o.planDefault(found.dirs, &p)...)
			continue
		}
		wanted = append(wanted, o.dirOf(found.dirs, registry))
	}
	for _, dir := range slices.Compact(slices.Sorted(slices.Values(wanted))) {
		p.targets = append(p.targets, o.hostsTOML(found.dirs, dir))
	}
	return p, nil
}

// dirOf is the directory that holds for a registry alone: the one that containerd finds, else the one that it would
// look for first.
func (o Options) dirOf(dirs []string, registry string) string {
	names := hostNames(registry)
	for _, dir := range dirs {
		there := o.registryDirs(dir, dirs)
		for _, name := range names {
			if slices.Contains(there, name) {
				return o.madeFor(filepath.Join(dir, name))
			}
		}
	}
	return filepath.Join(dirs[0], names[0])
}

// hostNames are the names, in containerd's order, of a registry's own directory.
func hostNames(registry string) []string {
	if i := strings.LastIndex(registry, ":"); i > 0 && !strings.HasSuffix(registry, "]") {
		return []string{registry[:i] + "_" + registry[i+1:] + "_", registry}
	}
	return []string{registry}
}

// planDefault gives the directories of all registries: _default, which holds for those without one of their own, and
// those. Directories of registries may stand in a later directory of config_path than _default, which containerd would
// not look into any more. Links keep them in force.
func (o Options) planDefault(dirs []string, p *plan) []string {
	home := dirs[0]
	for _, dir := range dirs {
		if slices.Contains(o.registryDirs(dir, dirs), "_default") {
			home = dir
			break
		}
	}
	wanted := []string{filepath.Join(home, "_default")}
	seen := map[string]bool{"_default": true}
	for _, dir := range dirs {
		for _, name := range o.registryDirs(dir, dirs) {
			if !seen[name] {
				wanted = append(wanted, o.madeFor(filepath.Join(dir, name)))
			}
			seen[name] = true
		}
	}
	for _, l := range o.lifted(dirs, home, false) {
		if !slices.Contains(p.links, l) {
			p.links = append(p.links, l)
		}
	}
	return wanted
}

func (o Options) hostsTOML(dirs []string, dir string) target {
	return target{
		path: filepath.Join(dir, "hosts.toml"),
		insert: func(content []byte) ([]byte, error) {
			if len(content) > 0 {
				rest := o.asRead(content)
				if err := o.accepted(rest); err != nil {
					return nil, err
				}
				inserted, err := insertHost(rest, o.Endpoint, "", "")
				return slices.Concat(content[:len(content)-len(rest)], inserted), err
			}
			if _, err := os.Lstat(o.on(dir)); errors.Is(err, fs.ErrNotExist) || o.state.made(dir) {
				// The registry gets a directory of its own, and so loses what _default says.
				return o.inherited(dirs)
			}
			// Without content, containerd took the certificates that lie beside; with it, it does not.
			certificates, err := certificateKeys(o.on(dir), "")
			if err != nil {
				return nil, err
			}
			return insertHost(nil, o.Endpoint, certificates, "")
		},
	}
}

// inherited is a file of hosts that has the agent first, and then what the _default says that holds so far.
func (o Options) inherited(dirs []string) ([]byte, error) {
	for _, dir := range dirs {
		if !slices.Contains(o.registryDirs(dir, dirs), "_default") {
			continue
		}
		base := filepath.Join(dir, "_default")
		now, err := readFile(o.on(filepath.Join(base, "hosts.toml")))
		if err != nil {
			return nil, err
		}
		if content := o.asRead(stripMarked(now.content)); len(content) > 0 && o.accepted(content) == nil {
			keys, hosts, err := carried(content, base)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", base, err)
			}
			return insertHost(nil, o.Endpoint, keys, hosts)
		}
		// As containerd does with a file that it can't read.
		certificates, err := certificateKeys(o.on(base), base+"/")
		if err != nil {
			return nil, err
		}
		return insertHost(nil, o.Endpoint, certificates, "")
	}
	return insertHost(nil, o.Endpoint, "", "")
}

// insertHost puts the endpoint's table before all other tables, and so before all other hosts. Keys that stand before
// the first table, such as server, stay keys of the file. What is inserted can have more keys of the file, and more
// tables after the endpoint's.
func insertHost(content []byte, endpoint, rootKeys, moreTables string) ([]byte, error) {
	var before struct {
		Host map[string]any `toml:"host"`
	}
	if err := toml.Unmarshal(content, &before); err != nil {
		return nil, fmt.Errorf("%w: %w", errForeign, err)
	}
	for host := range before.Host {
		if strings.TrimSuffix(host, "/") == endpoint {
			return nil, fmt.Errorf("%w: somebody has configured %s here; remove that entry to have it managed",
				errForeign, endpoint)
		}
	}
	at, err := firstTable(content)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errForeign, err)
	}
	head, tail := content[:at], content[at:]
	var b bytes.Buffer
	b.Write(head)
	if len(head) > 0 && !bytes.HasSuffix(head, []byte("\n")) {
		b.WriteByte('\n')
	}
	b.WriteString(begin)
	b.WriteString(rootKeys)
	// A dead agent is noticed within dial_timeout (containerd 2.1 and later; others pass over the key). Only these two
	// capabilities: containerd 1.6 refuses a file that names others.
	fmt.Fprintf(&b, "[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"1s\"\n", endpoint)
	b.WriteString(moreTables)
	b.WriteString(end)
	b.Write(tail)

	var after struct {
		Host map[string]any `toml:"host"`
	}
	if err := toml.Unmarshal(b.Bytes(), &after); err != nil {
		return nil, fmt.Errorf("%w: its form leaves no place for another host: %w", errForeign, err)
	}
	if len(after.Host) < len(before.Host)+1 {
		return nil, fmt.Errorf("%w: its form leaves no place for another host", errForeign)
	}
	return b.Bytes(), nil
}

// firstTable is the offset of the line of the first table header; the length of content where there is none.
func firstTable(content []byte) (int, error) {
	var p unstable.Parser
	p.Reset(content)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.ArrayTable {
			continue
		}
		key := e.Key()
		key.Next()
		offset := int(key.Node().Raw.Offset)
		return bytes.LastIndexByte(content[:offset], '\n') + 1, nil
	}
	return len(content), p.Error()
}

// certificateKeys are the keys of hosts.toml for the certificates that containerd finds in dir where there is no
// hosts.toml: *.crt are authorities, *.cert with *.key client pairs. prefix goes before their names.
func certificateKeys(dir, prefix string) (string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var authorities, clients []string
	for _, e := range entries {
		switch name := e.Name(); {
		case e.IsDir():
		case filepath.Ext(name) == ".crt":
			authorities = append(authorities, fmt.Sprintf("%q", prefix+name))
		case filepath.Ext(name) == ".cert":
			key := strings.TrimSuffix(name, ".cert") + ".key"
			if _, err := os.Stat(filepath.Join(dir, key)); err != nil {
				key = name // it holds both; an empty name would be that of the directory
			}
			clients = append(clients, fmt.Sprintf("[%q, %q]", prefix+name, prefix+key))
		}
	}
	var b strings.Builder
	if len(authorities) > 0 {
		fmt.Fprintf(&b, "ca = [%s]\n", strings.Join(authorities, ", "))
	}
	if len(clients) > 0 {
		fmt.Fprintf(&b, "client = [%s]\n", strings.Join(clients, ", "))
	}
	return b.String(), nil
}

func (certsD) strip(content []byte) []byte { return stripMarked(content) }

// stripMarked takes out what stands between the markers, and puts back the lines that it stands for. An editor may have
// changed how lines end, or copied them.
func stripMarked(content []byte) []byte {
	head, rest, found := cutLine(content, begin)
	if !found {
		return content
	}
	block, tail, found := cutLine(rest, end)
	if !found {
		return content
	}
	out := bytes.Clone(head)
	for line := range bytes.Lines(block) {
		if was, ok := bytes.CutPrefix(bytes.TrimLeft(line, " \t"), []byte(replaced)); ok {
			out = append(out, was...)
		}
	}
	return stripMarked(append(out, tail...))
}

func (certsD) marked(content []byte) []string { return markedLines(content) }

// markedLines are the lines that stripMarked takes out and does not put back, without the spaces around them.
func markedLines(content []byte) (lines []string) {
	for {
		_, rest, found := cutLine(content, begin)
		if !found {
			return lines
		}
		block, tail, found := cutLine(rest, end)
		if !found {
			return lines
		}
		for line := range bytes.Lines(block) {
			text := string(bytes.TrimSpace(line))
			if text != "" && !strings.HasPrefix(text, strings.TrimSpace(replaced)) {
				lines = append(lines, text)
			}
		}
		content = tail
	}
}

// cutLine cuts content around a line, however that ends.
func cutLine(content []byte, line string) (before, after []byte, found bool) {
	line = strings.TrimSpace(line)
	mark, _ := cutMark(content)
	at := len(mark)
	for l := range bytes.Lines(content[at:]) {
		if string(bytes.TrimSpace(l)) == line {
			return content[:at], content[at+len(l):], true
		}
		at += len(l)
	}
	return content, nil, false
}

func (certsD) written(o Options) ([]string, error) {
	found := containerdDirs(o)
	files := []string{o.RuntimeConfig}
	if read, err := readConfigFiles(o); err == nil {
		for _, f := range read {
			files = append(files, f.path)
		}
	}
	for _, dir := range found.dirs {
		for _, name := range o.registryDirs(dir, found.dirs) {
			files = append(files, filepath.Join(dir, name, "hosts.toml"))
		}
	}
	slices.Sort(files)
	return slices.Compact(files), nil
}
