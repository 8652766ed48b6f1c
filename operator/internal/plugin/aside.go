package plugin

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/shoal-cache/shoal/api/view"
)

// fits is how many characters of a problem a cell of a table has room for.
const fits = 40

// asides keep tables narrow. What does not fit in a cell stands below the table, once for all nodes that it is said of.
type asides struct {
	said  []string
	nodes map[string][]string // by what is said of them
}

// cell is what stands in the table for a node's problem: that, or short where it does not fit.
func (a *asides) cell(node, short, problem string) string {
	problem = view.Line(problem)
	if utf8.RuneCountInString(problem) <= fits {
		return problem
	}
	if a.nodes == nil {
		a.nodes = map[string][]string{}
	}
	if !slices.Contains(a.said, problem) {
		a.said = append(a.said, problem)
	}
	a.nodes[problem] = append(a.nodes[problem], node)
	return short + ", see below"
}

// write writes what stands below the table.
func (a *asides) write(t *view.Text) {
	for _, problem := range a.said {
		t.Say("%s: %s\n", view.Line(strings.Join(a.nodes[problem], ", ")), problem)
	}
}
