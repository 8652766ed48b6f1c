package mirror

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// registriesConf is the way of CRI-O and podman, containers-registries.conf(5): a file of our own among the drop-ins.
//
// A [[registry]] table replaces an earlier one of the same prefix as a whole, so ours is a copy of the one in force
// with the front as its first mirror. These runtimes send no ?ns=; the registry goes into the path instead: the mirror
// of docker.io is 127.0.0.1:5050/docker.io.
type registriesConf struct{}

// dropIn sorts after the names that people choose, for the last table of a prefix is the one in force.
const dropIn = "zz-shoal.conf"

// registryTable is a [[registry]] table with all its keys, known here or not.
type registryTable struct {
	// path is the file that it stands in.
	path   string
	prefix string
	keys   map[string]any
}

func (registriesConf) plan(o Options) (plan, error) {
	path := filepath.Join(o.mirrors(), dropIn)
	now, err := readFile(o.on(path))
	if err != nil {
		return plan{}, err
	}
	tables, err := registryTables(o, stripMarked(now.content))
	if err != nil {
		return plan{}, err
	}
	var p plan
	var ours []map[string]any
	o.Registries = slices.Compact(slices.Sorted(slices.Values(o.Registries)))
	for _, registry := range o.Registries {
		if registry == All {
			return p, fmt.Errorf("%s has no way to mirror all registries; name those that are to be mirrored",
				o.Runtime)
		}
		for _, t := range under(tables, registry) {
			keys, reason := t.withMirror(o.Endpoint)
			if reason != "" {
				p.findings = append(p.findings, Finding{NotMirrored, path, t.prefix + " " + reason})
				continue
			}
			ours = append(ours, keys)
		}
	}
	if len(ours) == 0 {
		return p, nil
	}
	insert, err := inserting(ours)
	if err != nil {
		return p, err
	}
	p.targets = []target{{path: path, insert: insert, restart: o.hasToBeRenewed()}}
	content := now.content
	if !o.asIs {
		if content, err = insert(stripMarked(content)); err != nil {
			return p, err
		}
	}
	if len(content) == 0 {
		return p, nil // it was removed, or never written
	}
	if tables, err = registryTables(o, content); err != nil {
		return p, nil //nolint:nilerr // the others can be read, and who cannot read ours says so
	}
	for _, registry := range o.Registries {
		p.findings = append(p.findings, o.passing(tables, registry)...)
	}
	return p, nil
}

// inserting puts tables at the end of a file.
func inserting(tables []map[string]any) (insert func(content []byte) ([]byte, error), err error) {
	body, err := toml.Marshal(map[string]any{"registry": tables})
	if err != nil {
		return nil, err
	}
	block := slices.Concat([]byte(begin), body, []byte(end))
	return func(content []byte) ([]byte, error) {
		if len(content) > 0 && !bytes.HasSuffix(content, []byte("\n")) {
			content = append(bytes.Clone(content), '\n')
		}
		return slices.Concat(content, block), nil
	}, nil
}

// passing are findings for the tables that hold for images of a registry and do not have the agent as their first
// mirror, but for those that cannot have one.
func (o Options) passing(tables []registryTable, registry string) (found []Finding) {
	ours := filepath.Join(o.mirrors(), dropIn)
	for _, t := range under(tables, registry) {
		t = inForceFor(tables, t)
		if digests, _ := t.keys["mirror-by-digest-only"].(bool); digests && t.asks(o.Endpoint) {
			found = append(found, Finding{DigestsOnly, cmp.Or(t.path, ours), fmt.Sprintf("mirror-by-digest-only holds "+
				"for %s: what is named by a tag asks no mirror, and so not the agent, but the registry", t.prefix)})
		}
		if t.asks(o.Endpoint) {
			continue
		}
		if _, reason := t.withMirror(o.Endpoint); reason != "" {
			continue
		}
		f := Finding{NotMirrored, cmp.Or(t.path, ours), fmt.Sprintf("what it says of %s holds, and does not name the "+
			"agent; install again", t.prefix)}
		switch {
		case strings.HasPrefix(t.prefix, "*."):
			f.Message = fmt.Sprintf("its %s goes before a table of %s alone, because it is no shorter; "+
				"name the registries one by one in place of it, and install again", t.prefix, registry)
		case filepath.Dir(t.path) == filepath.Dir(ours) && t.path > ours:
			f.Message = fmt.Sprintf("comes after %s, and so what it says of %s holds, which does not name the "+
				"agent; give it a name that comes before, and install again", dropIn, t.prefix)
		}
		found = append(found, f)
	}
	return found
}

// inForceFor is the table that these runtimes take for images below the prefix of t: the one with the longest prefix,
// and of two as long the one that sorts first, which is a wildcard.
func inForceFor(tables []registryTable, t registryTable) registryTable {
	for _, other := range tables {
		if strings.HasPrefix(other.prefix, "*.") && strings.HasSuffix(t.prefix, other.prefix[1:]) &&
			len(other.prefix) >= len(t.prefix) {
			t = other
		}
	}
	return t
}

// asks reports whether the front at the endpoint is the first mirror.
func (t registryTable) asks(endpoint string) bool {
	mirrors, _ := t.keys["mirror"].([]any)
	if len(mirrors) == 0 {
		return false
	}
	first, _ := mirrors[0].(map[string]any)
	location, _ := first["location"].(string)
	blocked, _ := t.keys["blocked"].(bool)
	_, host, _ := strings.Cut(endpoint, "://")
	return !blocked && strings.HasPrefix(location, host+"/")
}

// registryTables are the tables in force, with the given content of the drop-in that is ours.
func registryTables(o Options, ours []byte) ([]registryTable, error) {
	files := []string{filepath.Join(filepath.Dir(o.mirrors()), "registries.conf")}
	entries, err := os.ReadDir(o.on(o.mirrors()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".conf" {
			files = append(files, filepath.Join(o.mirrors(), e.Name()))
		}
	}
	var tables []registryTable
	own := filepath.Join(o.mirrors(), dropIn)
	if !slices.Contains(files, own) {
		files = append(files, own)
		slices.Sort(files[1:])
	}
	for _, path := range files {
		now, err := readFile(o.on(path))
		if err != nil {
			return nil, err
		}
		if path == own {
			now.content = ours
		}
		var c any
		_, content := cutMark(now.content) // which the library of these runtimes passes over
		if err := toml.Unmarshal(content, &c); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		file, _ := lowerKeys(c).(map[string]any)
		if file["registries"] != nil {
			return nil, fmt.Errorf("%s: tables [registries] are of the first form of this file, and do not hold "+
				"beside tables [[registry]]: what they block would be pulled; write them as tables [[registry]], and "+
				"install again", path)
		}
		registries, _ := file["registry"].([]any)
		for _, r := range registries {
			keys, _ := r.(map[string]any)
			t := registryTable{path: path, keys: keys}
			if t.prefix, _ = keys["prefix"].(string); t.prefix == "" {
				t.prefix, _ = keys["location"].(string)
			}
			tables = slices.DeleteFunc(tables, func(earlier registryTable) bool { return earlier.prefix == t.prefix })
			tables = append(tables, t)
		}
	}
	return tables, nil
}

// lowerKeys is a value of a TOML file with its keys in lower case. The library of these runtimes takes them in any.
func lowerKeys(v any) any {
	switch v := v.(type) {
	case map[string]any:
		lower := make(map[string]any, len(v))
		for key, value := range v {
			lower[strings.ToLower(key)] = lowerKeys(value)
		}
		return lower
	case []any:
		for i := range v {
			v[i] = lowerKeys(v[i])
		}
	}
	return v
}

// under are the tables that hold for images of a registry: its own, and those of namespaces and repositories in it.
// Where it has none of its own, it gets one as the wildcard has it that is in force for it, such as *.example.com.
func under(tables []registryTable, registry string) []registryTable {
	var found []registryTable
	own := false
	for _, t := range tables {
		own = own || t.prefix == registry
		if t.prefix == registry || strings.HasPrefix(t.prefix, registry+"/") {
			found = append(found, t)
		}
	}
	if own {
		return found
	}
	keys := map[string]any{}
	longest := 0
	for _, t := range tables {
		if strings.HasPrefix(t.prefix, "*.") && strings.HasSuffix(registry, t.prefix[1:]) && len(t.prefix) > longest {
			keys, longest = maps.Clone(t.keys), len(t.prefix)
		}
	}
	keys["prefix"] = registry
	if location, _ := keys["location"].(string); location == "" {
		keys["location"] = registry
	}
	return append(found, registryTable{prefix: registry, keys: keys})
}

// withMirror is a copy of the table's keys with the endpoint as the first mirror, or the reason why it cannot have one.
func (t registryTable) withMirror(endpoint string) (keys map[string]any, reason string) {
	location, _ := t.keys["location"].(string)
	location = cmp.Or(location, t.prefix)
	host, _, _ := strings.Cut(location, "/")
	switch blocked, _ := t.keys["blocked"].(bool); {
	case blocked:
		return nil, "is blocked, and stays so"
	case strings.Contains(host, ":"):
		return nil, fmt.Sprintf("is at %s, and these runtimes take no mirror whose path holds a port", location)
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err.Error()
	}
	front := map[string]any{"location": u.Host + "/" + location}
	if u.Scheme == "http" {
		front["insecure"] = true
	}
	mirrors, _ := t.keys["mirror"].([]any)
	keys = maps.Clone(t.keys)
	keys["mirror"] = append([]any{front}, mirrors...)
	return keys, ""
}

func (registriesConf) strip(content []byte) []byte { return stripMarked(content) }

func (registriesConf) marked(content []byte) []string { return markedLines(content) }

func (registriesConf) written(o Options) ([]string, error) {
	return []string{filepath.Join(o.mirrors(), dropIn)}, nil
}
