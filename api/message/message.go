// Package message makes of the text of an error what a person reads in a status, a condition or an event: one line,
// without what Go prints of its own values, and without saying the same twice.
package message

import (
	"regexp"
	"slices"
	"strings"
)

var (
	// dumps are Go's maps and structs, as registries' error details come out of libraries: "; map[Tag:1]",
	// "[map[Action:pull]]".
	dumps  = regexp.MustCompile(`[;,:]?\s*\[?(?:&?map\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]\s*)+\]?`)
	spaces = regexp.MustCompile(`[ \t]+`)
)

// repeated are words that one layer after the other adds. The last of them is enough.
var repeated = []string{"context deadline exceeded", "context canceled", "unavailable", "not found", "unexpected EOF",
	"EOF"}

// Plain is text in plain words.
func Plain(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	seen := lines[:0]
	for _, line := range lines {
		line = strings.TrimSpace(spaces.ReplaceAllString(dumps.ReplaceAllString(line, ""), " "))
		line = once(line)
		if line != "" && !slices.Contains(seen, line) {
			seen = append(seen, line)
		}
	}
	return strings.Join(seen, "; ")
}

// once leaves of the repeated words the last.
func once(line string) string {
	parts := strings.Split(line, ": ")
	kept := parts[:0]
	for i, part := range parts {
		again := slices.Contains(parts[i+1:], part)
		if again && (slices.Contains(repeated, part) || parts[i+1] == part) {
			continue
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, ": ")
}
