package mirror

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// carried writes a hosts.toml of the directory base anew for another directory, in two parts: the keys of the file, and
// its tables, hosts in their order. Paths that are relative to base become absolute.
func carried(content []byte, base string) (keys, tables string, err error) {
	var file map[string]any
	if err := toml.Unmarshal(content, &file); err != nil {
		return "", "", err
	}
	order, err := hostOrder(content)
	if err != nil {
		return "", "", err
	}
	hosts := table(file, "host")
	if len(order) != len(hosts) {
		return "", "", fmt.Errorf("%w: its hosts are no tables of their own", errForeign)
	}
	header := table(file, "header")
	delete(file, "host")
	delete(file, "header")
	root, err := hostKeys(file, base)
	if err != nil {
		return "", "", err
	}
	var b strings.Builder
	for _, host := range order {
		settings := maps.Clone(table(hosts, host))
		own := table(settings, "header")
		delete(settings, "header")
		lines, err := hostKeys(settings, base)
		if err != nil {
			return "", "", err
		}
		fmt.Fprintf(&b, "[host.%q]\n%s", host, lines)
		if err := headerTable(&b, fmt.Sprintf("host.%q.header", host), own); err != nil {
			return "", "", err
		}
	}
	if err := headerTable(&b, "header", header); err != nil {
		return "", "", err
	}
	return root, b.String(), nil
}

func headerTable(b *strings.Builder, name string, header map[string]any) error {
	if len(header) == 0 {
		return nil
	}
	lines, err := toml.Marshal(header)
	fmt.Fprintf(b, "[%s]\n%s", name, lines)
	return err
}

// hostKeys are the lines of one host's keys.
func hostKeys(settings map[string]any, base string) (string, error) {
	settings = maps.Clone(settings)
	for key, v := range settings {
		if strings.EqualFold(key, "ca") || strings.EqualFold(key, "client") {
			settings[key] = absolute(v, base)
		}
	}
	lines, err := toml.Marshal(settings)
	if err == nil && bytes.ContainsRune(lines, '[') &&
		slices.ContainsFunc(slices.Collect(maps.Values(settings)), isTable) {
		return "", fmt.Errorf("%w: it has a table that is not known here", errForeign)
	}
	return string(lines), err
}

func isTable(v any) bool {
	_, ok := v.(map[string]any)
	return ok
}

// absolute makes the paths in a value of the keys ca and client absolute. The empty string, in a pair, is none.
func absolute(v any, base string) any {
	switch v := v.(type) {
	case string:
		if v == "" || filepath.IsAbs(v) {
			return v
		}
		return filepath.Join(base, v)
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = absolute(e, base)
		}
		return out
	}
	return v
}

// hostOrder are the hosts in the order of their tables, as containerd tries them.
func hostOrder(content []byte) ([]string, error) {
	var order []string
	var p unstable.Parser
	p.Reset(content)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		if parts, _ := keyOf(e); len(parts) >= 2 && parts[0] == "host" && !slices.Contains(order, parts[1]) {
			order = append(order, parts[1])
		}
	}
	return order, p.Error()
}
