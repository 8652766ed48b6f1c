package mirror

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"
)

// registriesYAML is the way of k3s and RKE2: mirrors.<registry>.endpoint lists the URLs to try, and the registry itself
// comes after them. "*" holds for registries that are not listed. https://docs.k3s.io/installation/private-registry
type registriesYAML struct{}

func (registriesYAML) plan(o Options) (plan, error) {
	var p plan
	now, err := readFile(o.on(o.mirrors()))
	if err != nil {
		return p, err
	}
	document, err := parseYAML(now.content)
	if err != nil {
		return p, fmt.Errorf("%s: %w", o.mirrors(), err)
	}
	var registries []string
	mirrors := lookupYAML(document.Content[0], "mirrors")
	for _, registry := range withNamed(o.Registries, mirrors) {
		entry := cmp.Or(lookupYAML(mirrors, registry), lookupYAML(mirrors, All))
		if lookupYAML(entry, "rewrite") != nil {
			p.findings = append(p.findings, Finding{NotMirrored, o.mirrors(), fmt.Sprintf(
				"mirrors.%s has a rewrite, which would change the names that the front is asked for", registry)})
			continue
		}
		registries = append(registries, registry)
	}
	p.targets = []target{{path: o.mirrors(), restart: true, insert: func(content []byte) ([]byte, error) {
		return insertEndpoint(content, o.Endpoint, registries)
	}}}
	return p, nil
}

// withNamed adds to all registries those that have an entry of their own, for which that of all does not count.
func withNamed(registries []string, mirrors *yaml.Node) []string {
	if !slices.Contains(registries, All) {
		return registries
	}
	registries = slices.Clone(registries)
	for _, name := range keysYAML(mirrors) {
		if !slices.Contains(registries, name) {
			registries = append(registries, name)
		}
	}
	return registries
}

// ours marks the endpoints that Install wrote, for somebody may have written the same one by hand.
const ours = "# by shoal-node mirror"

// insertEndpoint puts the endpoint before the others of each registry.
func insertEndpoint(content []byte, endpoint string, registries []string) ([]byte, error) {
	document, err := parseYAML(content)
	if err != nil {
		return nil, err
	}
	before := endpointsOf(document)
	mirrors, err := tableYAML(document.Content[0], "mirrors")
	if err != nil {
		return nil, err
	}
	changed := false
	want := maps.Clone(before)
	for _, registry := range registries {
		list, listed := before[registry]
		if !listed {
			list = before[All] // with an entry of its own the registry is no longer one of all
		}
		if slices.Contains(list, endpoint) {
			continue // somebody has put it there, and where they want it
		}
		want[registry] = slices.Concat([]string{endpoint}, list)
		changed = true
		if slices.Contains(endpointsOf(document)[registry], endpoint) {
			continue // by an anchor that it shares with one before
		}
		if err := putFirst(mirrors, registry, endpoint, list, listed); err != nil {
			return nil, err
		}
		mirrors.Style, document.Content[0].Style = 0, 0
	}
	switch {
	case !changed:
		return content, nil
	case !maps.EqualFunc(endpointsOf(document), want, slices.Equal):
		return nil, fmt.Errorf("%w: registries share their endpoints by anchors (&) and aliases (*), and not all of "+
			"them are to be mirrored; write the endpoints out", errForeign)
	}
	return printYAML(document)
}

// putFirst puts the endpoint before those of a registry. One that had no entry gets those that it had all the same.
func putFirst(mirrors *yaml.Node, registry, endpoint string, had []string, listed bool) error {
	entry, err := tableYAML(mirrors, registry)
	if err != nil {
		return err
	}
	list := takenYAML(entry, "endpoint")
	switch {
	case list == nil:
		list = &yaml.Node{Kind: yaml.SequenceNode}
		setYAML(entry, "endpoint", list)
	case list.Kind == yaml.ScalarNode && list.Tag == "!!null":
		*list = yaml.Node{Kind: yaml.SequenceNode}
	case list.Kind != yaml.SequenceNode:
		return fmt.Errorf("line %d: the endpoint of %s is no list", list.Line, registry)
	}
	front := []string{endpoint}
	if !listed {
		front = append(front, had...)
	}
	for i, value := range front {
		list.Content = slices.Insert(list.Content, i,
			&yaml.Node{Kind: yaml.ScalarNode, Value: value, Style: yaml.DoubleQuotedStyle, LineComment: ours})
	}
	// In flow style, [a, b], a comment would swallow the rest of the line.
	list.Style, entry.Style = 0, 0
	return nil
}

// endpointsOf are the endpoints of each registry that has an entry.
func endpointsOf(document *yaml.Node) map[string][]string {
	mirrors := lookupYAML(document.Content[0], "mirrors")
	all := make(map[string][]string)
	for _, registry := range keysYAML(mirrors) {
		all[registry] = sequenceYAML(lookupYAML(mirrors, registry), "endpoint")
	}
	return all
}

// strip takes the marked endpoints out of every list, and what is empty then with them.
func (registriesYAML) strip(content []byte) []byte {
	document, err := parseYAML(content)
	if err != nil {
		return content
	}
	root := document.Content[0]
	mirrors := ownYAML(root, "mirrors")
	if mirrors == nil || mirrors.Kind != yaml.MappingNode {
		return content
	}
	changed := false
	for i := len(mirrors.Content) - 2; i >= 0; i -= 2 {
		entry := mirrors.Content[i+1]
		list := ownYAML(entry, "endpoint") // what is merged, or stands for an alias, was never written to
		if list == nil || !slices.ContainsFunc(list.Content, isOurs) {
			continue
		}
		changed = true
		list.Content = slices.DeleteFunc(list.Content, isOurs)
		if len(list.Content) == 0 {
			dropYAML(entry, "endpoint")
		}
		if len(entry.Content) == 0 {
			mirrors.Content = slices.Delete(mirrors.Content, i, i+2)
		}
	}
	if !changed {
		return content
	}
	if len(mirrors.Content) == 0 {
		dropYAML(root, "mirrors")
	}
	if len(root.Content) == 0 {
		return nil
	}
	stripped, err := printYAML(document)
	if err != nil {
		return content
	}
	return stripped
}

// marked are the endpoints that bear the mark.
func (registriesYAML) marked(content []byte) (values []string) {
	document, err := parseYAML(content)
	if err != nil {
		return nil
	}
	mirrors := ownYAML(document.Content[0], "mirrors")
	if mirrors == nil || mirrors.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mirrors.Content); i += 2 {
		if list := ownYAML(mirrors.Content[i+1], "endpoint"); list != nil {
			for _, n := range list.Content {
				if isOurs(n) {
					values = append(values, n.Value)
				}
			}
		}
	}
	return values
}

func isOurs(n *yaml.Node) bool { return n.LineComment == ours }

func (registriesYAML) written(o Options) ([]string, error) { return []string{o.mirrors()}, nil }

// parseYAML is the document, with a mapping at its root even where there is nothing.
func parseYAML(content []byte) (*yaml.Node, error) {
	document := new(yaml.Node)
	d := yaml.NewDecoder(bytes.NewReader(content))
	if err := d.Decode(document); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var second any
	if err := d.Decode(&second); !errors.Is(err, io.EOF) && (err != nil || second != nil) {
		return nil, errors.New("it holds a second document, which k3s does not read; take that out")
	}
	var whole any // a key that is there twice, or an anchor within itself, shows only here
	if err := document.Decode(&whole); err != nil {
		return nil, err
	}
	empty := &yaml.Node{Kind: yaml.MappingNode}
	if len(document.Content) == 0 {
		return &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{empty}}, nil
	}
	root := document.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		document.Content[0] = empty
	} else if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: want keys such as mirrors and configs", root.Line)
	}
	return document, nil
}

func printYAML(document *yaml.Node) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	untagMerges(document)
	if err := e.Encode(document); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// untagMerges has merge keys printed as people write them, and not as !!merge <<.
func untagMerges(node *yaml.Node) {
	if node.Value == mergeKey && node.ShortTag() == "!!merge" {
		node.Tag = ""
	}
	for _, inner := range node.Content {
		untagMerges(inner)
	}
}

// ownYAML is the value that stands under key in a mapping; nil where there is none, or no mapping.
func ownYAML(mapping *yaml.Node, key string) *yaml.Node {
	if mapping == nil || mapping.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// mergeKey is the key of what a mapping merges: an alias of another, or a list of those.
const mergeKey = "<<"

// mergedYAML are the mappings that a mapping merges, the one that counts most first.
func mergedYAML(mapping *yaml.Node) []*yaml.Node {
	switch merged := meantYAML(ownYAML(mapping, mergeKey)); {
	case merged == nil:
		return nil
	case merged.Kind == yaml.SequenceNode:
		return merged.Content
	default:
		return []*yaml.Node{merged}
	}
}

// meantYAML is what an alias stands for, and any other node itself.
func meantYAML(node *yaml.Node) *yaml.Node {
	for node != nil && node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	return node
}

// lookupYAML is the value that holds for key in a mapping, also by an alias or a merge; nil where there is none, or no
// mapping.
func lookupYAML(mapping *yaml.Node, key string) *yaml.Node {
	mapping = meantYAML(mapping)
	if own := ownYAML(mapping, key); own != nil {
		return meantYAML(own)
	}
	for _, merged := range mergedYAML(mapping) {
		if v := lookupYAML(merged, key); v != nil {
			return v
		}
	}
	return nil
}

// keysYAML are the keys that hold in a mapping.
func keysYAML(mapping *yaml.Node) (keys []string) {
	mapping = meantYAML(mapping)
	if mapping == nil || mapping.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if key := mapping.Content[i].Value; key != mergeKey && !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	for _, merged := range mergedYAML(mapping) {
		for _, key := range keysYAML(merged) {
			if !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// takenYAML is the value that holds for key in a mapping, to be changed there alone: what comes by an alias or a merge
// is copied.
func takenYAML(mapping *yaml.Node, key string) *yaml.Node {
	own := ownYAML(mapping, key)
	if own != nil && own.Kind != yaml.AliasNode {
		return own
	}
	value := lookupYAML(mapping, key)
	if value == nil {
		return nil
	}
	copied := copyYAML(value)
	if own != nil {
		*own = *copied
		return own
	}
	setYAML(mapping, key, copied)
	return copied
}

// copyYAML copies a node without its anchors.
func copyYAML(node *yaml.Node) *yaml.Node {
	copied := *node
	copied.Anchor = ""
	copied.Content = make([]*yaml.Node, len(node.Content))
	for i, inner := range node.Content {
		copied.Content[i] = copyYAML(inner)
	}
	return &copied
}

// sequenceYAML are the values of the list under key.
func sequenceYAML(mapping *yaml.Node, key string) (values []string) {
	if list := lookupYAML(mapping, key); list != nil && list.Kind == yaml.SequenceNode {
		for _, n := range list.Content {
			values = append(values, n.Value)
		}
	}
	return values
}

// tableYAML is the mapping under key, to be changed, made where there is none.
func tableYAML(mapping *yaml.Node, key string) (*yaml.Node, error) {
	table := takenYAML(mapping, key)
	switch {
	case table == nil:
		table = &yaml.Node{Kind: yaml.MappingNode}
		setYAML(mapping, key, table)
	case table.Kind == yaml.ScalarNode && table.Tag == "!!null":
		*table = yaml.Node{Kind: yaml.MappingNode}
	case table.Kind != yaml.MappingNode:
		return nil, fmt.Errorf("line %d: %s is no table of keys", table.Line, key)
	}
	return table, nil
}

func setYAML(mapping *yaml.Node, key string, value *yaml.Node) {
	name := &yaml.Node{Kind: yaml.ScalarNode, Value: key, Tag: "!!str"}
	mapping.Content = append(mapping.Content, name, value)
}

func dropYAML(mapping *yaml.Node, key string) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			mapping.Content = slices.Delete(mapping.Content, i, i+2)
			return
		}
	}
}
