package view

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Output is the form that the flag -o asks for. Empty: text for people.
type Output string

// The forms. Wide is text for people, with more columns.
const (
	JSON Output = "json"
	YAML Output = "yaml"
	Wide Output = "wide"
)

// Check refuses a form that is neither empty nor one of those that a command has.
func (o Output) Check(forms ...Output) error {
	if o == "" || slices.Contains(forms, o) {
		return nil
	}
	names := make([]string, len(forms))
	for i, f := range forms {
		names[i] = string(f)
	}
	last := len(names) - 1
	return fmt.Errorf("--output %q: want %s or %s", string(o), strings.Join(names[:last], ", "), names[last])
}

// ForPeople reports whether people read it.
func (o Output) ForPeople() bool { return o != JSON && o != YAML }

// Print writes a value as JSON or YAML, or for people what human makes of it.
func (o Output) Print(w io.Writer, value any, human func(*Text)) error {
	var data []byte
	var err error
	switch o {
	case JSON:
		data, err = json.MarshalIndent(value, "", "  ")
		data = append(visible(unseen, data), '\n')
	case YAML:
		data, err = asYAML(value)
	default:
		var t Text
		human(&t)
		w, data = ForTerminal(w), []byte(t.String())
	}
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// asYAML writes a value as YAML. Of characters that nobody sees, YAML leaves some as they are and refuses others. So a
// value with such a character is written as JSON, which is YAML too: there each stands in quotes, where it is escaped.
func asYAML(value any) ([]byte, error) {
	if data, err := yaml.Marshal(value); err == nil && !unseen.Match(data) {
		return data, nil
	}
	data, err := json.MarshalIndent(value, "", "  ")
	return escaped(unseen, append(data, '\n'), func(shown []byte, c rune) []byte {
		return fmt.Appendf(shown, `\U%08x`, c) // YAML knows no pairs of surrogates
	}), err
}
