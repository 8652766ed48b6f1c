package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

const configPathKey = "config_path"

// edit puts text in the place of content[at:until].
type edit struct {
	at, until int
	text      string
	// whole tells that the text is lines of its own, and not part of a line.
	whole bool
}

// setConfigPath gives a TOML file's table the key config_path, in place of the value that it has. The file may write
// that as lines of a table, as dotted keys, or as tables within a line. Where it has no such table, it gets one.
func setConfigPath(content []byte, tableName []string, value string) ([]byte, error) {
	var was map[string]any
	if err := toml.Unmarshal(content, &was); err != nil {
		return nil, fmt.Errorf("%w: %w", errForeign, err)
	}
	e, err := editFor(content, tableName, value)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errForeign, err)
	}
	edited := e.marked(content)
	var is map[string]any
	if err := toml.Unmarshal(edited, &is); err != nil {
		return nil, fmt.Errorf("%w: its form leaves no place for config_path: %w", errForeign, err)
	}
	delete(was, "version") // a file that holds nothing gets one
	delete(is, "version")
	if !reflect.DeepEqual(is, withKey(was, append(slices.Clone(tableName), configPathKey), value)) {
		return nil, fmt.Errorf("%w: its form leaves no place for config_path", errForeign)
	}
	return edited, nil
}

// withKey is a copy of tables with a key set, in tables that are made where they are missing.
func withKey(tables map[string]any, key []string, value string) map[string]any {
	tables = maps.Clone(tables)
	if tables == nil {
		tables = map[string]any{}
	}
	if len(key) == 1 {
		tables[key[0]] = value
	} else {
		tables[key[0]] = withKey(table(tables, key[0]), key[1:], value)
	}
	return tables
}

// marked is content with the edit between marks, and before it the lines that it stands for.
func (e edit) marked(content []byte) []byte {
	from, to := e.at, e.until
	text := e.text
	if !e.whole {
		from, to = bytes.LastIndexByte(content[:e.at], '\n')+1, lineEnd(content, e.until)
		text = string(content[from:e.at]) + e.text + strings.TrimRight(string(content[e.until:to]), "\r\n") + "\n"
	}
	var b bytes.Buffer
	b.Write(content[:from])
	if from > 0 && content[from-1] != '\n' {
		b.WriteByte('\n')
	}
	b.WriteString(begin)
	for line := range bytes.Lines(content[from:to]) {
		b.WriteString(replaced + strings.TrimRight(string(line), "\r\n") + "\n")
	}
	b.WriteString(text + end)
	b.Write(content[to:])
	return b.Bytes()
}

// editFor finds the place of config_path: its value, the table that it belongs to, or the end of the file.
func editFor(content []byte, tableName []string, value string) (edit, error) {
	key := append(slices.Clone(tableName), configPathKey)
	line := func(section []string) string {
		return fmt.Sprintf("%s = %q\n", dotted(key[len(section):]), value)
	}
	header := fmt.Sprintf("[%s]\n", dotted(tableName))
	if len(bytes.TrimSpace(content)) == 0 {
		return edit{len(content), len(content), "version = 2\n" + header + line(tableName), true}, nil
	}
	insert := edit{len(content), len(content), header + line(tableName), true}
	found := 0 // how well insert fits
	better := func(fit int, e edit) {
		if fit > found {
			found, insert = fit, e
		}
	}
	const besideItsKeys, belowItsHeader, withinALine = 1, 2, 3

	var p unstable.Parser
	p.Reset(content)
	var section []string
	inArray := false
	for p.NextExpression() {
		e := p.Expression()
		parts, offset := keyOf(e)
		switch e.Kind {
		case unstable.ArrayTable:
			inArray = true
		case unstable.Table:
			section, inArray = parts, false
			if slices.Equal(section, tableName) {
				at := lineEnd(content, offset)
				better(belowItsHeader, edit{at, at, line(tableName), true})
			}
		case unstable.KeyValue:
			full := slices.Concat(section, parts)
			switch {
			case inArray:
			case slices.Equal(full, key):
				return replacing(e.Value(), value)
			case len(full) < len(key) && slices.Equal(full, key[:len(full)]):
				within, done, err := inLine(e.Value(), key[len(full):], value)
				if err != nil || done {
					return within, err
				}
				better(withinALine, within)
			case len(full) > len(tableName) && slices.Equal(full[:len(tableName)], tableName) && len(section) <
				len(tableName):
				at := bytes.LastIndexByte(content[:offset], '\n') + 1
				better(besideItsKeys, edit{at, at, line(section), true})
			}
		default:
		}
	}
	return insert, p.Error()
}

// replacing puts the value in the place of another.
func replacing(node *unstable.Node, value string) (edit, error) {
	if node.Kind != unstable.String {
		return edit{}, errors.New("config_path is no string")
	}
	at := int(node.Raw.Offset)
	return edit{at, at + int(node.Raw.Length), fmt.Sprintf("%q", value), false}, nil
}

// inLine finds the place of a key in a table that is written within a line. done reports whether the key is there.
func inLine(node *unstable.Node, key []string, value string) (e edit, done bool, err error) {
	if node.Kind != unstable.InlineTable {
		return edit{}, false, fmt.Errorf("%s is no table", dotted(key))
	}
	at := int(node.Raw.Offset) + 1
	comma := ""
	for it := node.Children(); it.Next(); {
		comma = ", "
		parts, _ := keyOf(it.Node())
		switch {
		case slices.Equal(parts, key):
			e, err := replacing(it.Node().Value(), value)
			return e, true, err
		case len(parts) < len(key) && slices.Equal(parts, key[:len(parts)]):
			return inLine(it.Node().Value(), key[len(parts):], value)
		}
	}
	return edit{at, at, fmt.Sprintf(" %s = %q%s", dotted(key), value, comma), false}, false, nil
}

// bareKey is what needs no quotes in a key.
var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func dotted(parts []string) string {
	quoted := slices.Clone(parts)
	for i, part := range parts {
		if !bareKey.MatchString(part) {
			quoted[i] = fmt.Sprintf("%q", part)
		}
	}
	return strings.Join(quoted, ".")
}
