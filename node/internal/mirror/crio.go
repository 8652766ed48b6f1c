package mirror

import (
	"bytes"
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
	prefix string
	keys   map[string]any
}

func (registriesConf) plan(o Options) (plan, error) {
	tables, err := registryTables(o)
	if err != nil {
		return plan{}, err
	}
	path := filepath.Join(o.mirrors(), dropIn)
	var p plan
	var ours []map[string]any
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
	body, err := toml.Marshal(map[string]any{"registry": ours})
	if err != nil {
		return p, err
	}
	block := slices.Concat([]byte(begin), body, []byte(end))
	p.targets = []target{{path: path, insert: func(content []byte) ([]byte, error) {
		if len(content) > 0 && !bytes.HasSuffix(content, []byte("\n")) {
			content = append(bytes.Clone(content), '\n')
		}
		return slices.Concat(content, block), nil
	}}}
	return p, nil
}

// registryTables are the tables in force without ours.
func registryTables(o Options) ([]registryTable, error) {
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
	for _, path := range files {
		now, err := readFile(o.on(path))
		if err != nil {
			return nil, err
		}
		var c struct {
			Registry []map[string]any `toml:"registry"`
		}
		if err := toml.Unmarshal(stripMarked(now.content), &c); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		for _, keys := range c.Registry {
			t := registryTable{keys: keys}
			if t.prefix, _ = keys["prefix"].(string); t.prefix == "" {
				t.prefix, _ = keys["location"].(string)
			}
			tables = slices.DeleteFunc(tables, func(earlier registryTable) bool { return earlier.prefix == t.prefix })
			tables = append(tables, t)
		}
	}
	return tables, nil
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
	return append(found, registryTable{registry, keys})
}

// withMirror is a copy of the table's keys with the endpoint as the first mirror, or the reason why it cannot have one.
func (t registryTable) withMirror(endpoint string) (keys map[string]any, reason string) {
	location, _ := t.keys["location"].(string)
	if location == "" {
		location = t.prefix
	}
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

func (registriesConf) written(o Options) ([]string, error) {
	return []string{filepath.Join(o.mirrors(), dropIn)}, nil
}
