package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
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
// its directories for "<host>_<port>_", "<host>:<port>" and "_default" (containerd, core/remotes/docker/config/hosts.go).
// In a hosts.toml it tries the [host.…] tables in the order of the file, and at last the server, which without a key
// `server` is the registry itself. A directory without hosts.toml is read for certificates.
type certsD struct{}

const (
	begin = "# Begin of what `shoal-node mirror install` wrote; `shoal-node mirror remove` takes it out.\n"
	end   = "# End of what `shoal-node mirror install` wrote.\n"
)

func (certsD) plan(o Options) (plan, error) {
	dirs, findings := containerdDirs(o)
	p := plan{findings: findings}
	for _, registry := range o.Registries {
		if registry == All {
			if err := planDefault(o, dirs, &p); err != nil {
				return p, err
			}
			continue
		}
		dir := filepath.Join(dirs[0], registry)
		if host, port, err := net.SplitHostPort(registry); err == nil {
			dir = filepath.Join(dirs[0], host+"_"+port+"_")
		}
		for _, candidate := range candidates(dirs, registry) {
			if isDir(o.on(candidate)) {
				dir = candidate
				break
			}
		}
		p.targets = append(p.targets, hostsTOML(o, dir))
	}
	return p, nil
}

// planDefault plans for _default, which holds for registries without a directory of their own. Such directories may stand
// in a later directory of config_path, which containerd would not look into any more. Links keep them in force.
func planDefault(o Options, dirs []string, p *plan) error {
	home := dirs[0]
	for _, dir := range dirs {
		if isDir(o.on(filepath.Join(dir, "_default"))) {
			home = dir
			break
		}
	}
	p.targets = append(p.targets, hostsTOML(o, filepath.Join(home, "_default")))
	after := slices.Index(dirs, home) + 1
	for _, dir := range dirs[after:] {
		entries, err := os.ReadDir(o.on(dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			own := filepath.Join(dir, e.Name())
			covered := slices.ContainsFunc(dirs[:after], func(first string) bool { return isDir(o.on(filepath.Join(first, e.Name()))) })
			taken := slices.ContainsFunc(p.links, func(l link) bool { return filepath.Base(l.path) == e.Name() })
			if e.Name() == "_default" || covered || taken || !isDir(o.on(own)) {
				continue
			}
			p.links = append(p.links, link{path: filepath.Join(home, e.Name()), to: own})
		}
	}
	return nil
}

// candidates are the directories that containerd looks at for a registry, but for _default.
func candidates(dirs []string, registry string) []string {
	var all []string
	for _, dir := range dirs {
		if host, port, err := net.SplitHostPort(registry); err == nil {
			all = append(all, filepath.Join(dir, host+"_"+port+"_"))
		}
		all = append(all, filepath.Join(dir, registry))
	}
	return all
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func hostsTOML(o Options, dir string) target {
	return target{
		path: filepath.Join(dir, "hosts.toml"),
		insert: func(content []byte) ([]byte, error) {
			var certificates string
			if len(content) == 0 {
				// Without content, containerd took the certificates that lie beside; with it, it does not.
				var err error
				if certificates, err = certificateKeys(o.on(dir)); err != nil {
					return nil, err
				}
			}
			return insertHost(content, o.Endpoint, certificates)
		},
	}
}

// insertHost puts the endpoint's table before all other tables, and so before all other hosts. Keys that stand before the
// first table, such as server, stay keys of the file.
func insertHost(content []byte, endpoint, rootKeys string) ([]byte, error) {
	var before struct {
		Host map[string]any `toml:"host"`
	}
	if err := toml.Unmarshal(content, &before); err != nil {
		return nil, fmt.Errorf("%w: containerd cannot read it either: %w", errForeign, err)
	}
	for host := range before.Host {
		if strings.TrimSuffix(host, "/") == endpoint {
			return nil, fmt.Errorf("%w: somebody has configured %s here; remove that entry to have it managed", errForeign, endpoint)
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
	b.WriteString(end)
	b.Write(tail)

	var after struct {
		Host map[string]any `toml:"host"`
	}
	if err := toml.Unmarshal(b.Bytes(), &after); err != nil {
		return nil, fmt.Errorf("%w: its form leaves no place for another host: %w", errForeign, err)
	}
	if len(after.Host) != len(before.Host)+1 {
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
// hosts.toml: *.crt are authorities, *.cert with *.key client pairs.
func certificateKeys(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var authorities, clients []string
	for _, e := range entries {
		switch name := e.Name(); filepath.Ext(name) {
		case ".crt":
			authorities = append(authorities, fmt.Sprintf("%q", name))
		case ".cert":
			key := strings.TrimSuffix(name, ".cert") + ".key"
			if _, err := os.Stat(filepath.Join(dir, key)); err != nil {
				clients = append(clients, fmt.Sprintf("[%q, \"\"]", name))
				continue
			}
			clients = append(clients, fmt.Sprintf("[%q, %q]", name, key))
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

// stripMarked takes out what stands between the markers.
func stripMarked(content []byte) []byte {
	head, rest, found := bytes.Cut(content, []byte(begin))
	if !found {
		return content
	}
	_, tail, found := bytes.Cut(rest, []byte(end))
	if !found {
		return content
	}
	return append(bytes.Clone(head), tail...)
}

func (certsD) written(o Options) ([]string, error) {
	dirs, _ := containerdDirs(o)
	var files []string
	for _, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(o.on(dir), "*", "hosts.toml"))
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			rel, err := filepath.Rel(o.Root, path)
			if err != nil {
				return nil, err
			}
			files = append(files, filepath.Join("/", rel))
		}
	}
	return files, nil
}
