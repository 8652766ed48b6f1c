package mirror

import (
	"bytes"
	"fmt"
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
	for _, registry := range o.Registries {
		mirrors := lookupYAML(document.Content[0], "mirrors")
		entry := lookupYAML(mirrors, registry)
		if entry == nil {
			entry = lookupYAML(mirrors, All)
		}
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

// ours marks the endpoints that Install wrote, for somebody may have written the same one by hand.
const ours = "# by shoal-node mirror"

// insertEndpoint puts the endpoint before the others of each registry.
func insertEndpoint(content []byte, endpoint string, registries []string) ([]byte, error) {
	document, err := parseYAML(content)
	if err != nil {
		return nil, err
	}
	mirrors, err := tableYAML(document.Content[0], "mirrors")
	if err != nil {
		return nil, err
	}
	changed := false
	inherited := sequenceYAML(lookupYAML(mirrors, All), "endpoint")
	for _, registry := range registries {
		isNew := lookupYAML(mirrors, registry) == nil
		entry, err := tableYAML(mirrors, registry)
		if err != nil {
			return nil, err
		}
		list := lookupYAML(entry, "endpoint")
		switch {
		case list == nil:
			list = &yaml.Node{Kind: yaml.SequenceNode}
			setYAML(entry, "endpoint", list)
		case list.Kind == yaml.ScalarNode && list.Tag == "!!null":
			*list = yaml.Node{Kind: yaml.SequenceNode}
		case list.Kind != yaml.SequenceNode:
			return nil, fmt.Errorf("line %d: the endpoint of %s is no list", list.Line, registry)
		}
		if slices.ContainsFunc(list.Content, func(n *yaml.Node) bool { return n.Value == endpoint }) {
			continue // somebody has put it there, and where they want it
		}
		if isNew {
			// With an entry of its own the registry is no longer one of all.
			for _, value := range inherited {
				list.Content = append(list.Content,
					&yaml.Node{Kind: yaml.ScalarNode, Value: value, Style: yaml.DoubleQuotedStyle, LineComment: ours})
			}
		}
		// In flow style, [a, b], a comment would swallow the rest of the line.
		list.Style = 0
		front := &yaml.Node{Kind: yaml.ScalarNode, Value: endpoint, Style: yaml.DoubleQuotedStyle, LineComment: ours}
		list.Content = slices.Insert(list.Content, 0, front)
		entry.Style, mirrors.Style, document.Content[0].Style = 0, 0, 0
		changed = true
	}
	if !changed {
		return content, nil
	}
	return printYAML(document)
}

// strip takes the marked endpoints out of every list, and what is empty then with them.
func (registriesYAML) strip(content []byte) []byte {
	document, err := parseYAML(content)
	if err != nil {
		return content
	}
	root := document.Content[0]
	mirrors := lookupYAML(root, "mirrors")
	if mirrors == nil || mirrors.Kind != yaml.MappingNode {
		return content
	}
	changed := false
	for i := len(mirrors.Content) - 2; i >= 0; i -= 2 {
		entry := mirrors.Content[i+1]
		list := lookupYAML(entry, "endpoint")
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

func isOurs(n *yaml.Node) bool { return n.LineComment == ours }

func (registriesYAML) written(o Options) ([]string, error) { return []string{o.mirrors()}, nil }

// parseYAML is the document, with a mapping at its root even where there is nothing.
func parseYAML(content []byte) (*yaml.Node, error) {
	document := new(yaml.Node)
	if err := yaml.Unmarshal(content, document); err != nil {
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
	if err := e.Encode(document); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// lookupYAML is the value of key in a mapping; nil where there is none, or no mapping.
func lookupYAML(mapping *yaml.Node, key string) *yaml.Node {
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

// sequenceYAML are the values of the list under key.
func sequenceYAML(mapping *yaml.Node, key string) (values []string) {
	if list := lookupYAML(mapping, key); list != nil && list.Kind == yaml.SequenceNode {
		for _, n := range list.Content {
			values = append(values, n.Value)
		}
	}
	return values
}

// tableYAML is the mapping under key, made where there is none.
func tableYAML(mapping *yaml.Node, key string) (*yaml.Node, error) {
	table := lookupYAML(mapping, key)
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
