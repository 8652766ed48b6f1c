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
	dumps = regexp.MustCompile(`[;,:]?\s*\[?(?:&?map\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]\s*)+\]?`)
	// patterns are for programs; the words and examples before them say the same.
	patterns = regexp.MustCompile(`, regex used for validation is '[^']*'`)
	spaces   = regexp.MustCompile(`[ \t]+`)
	// steps name a digest and nothing else, as one layer after the other does: "fetch sha256:…: ingest sha256:…".
	steps   = regexp.MustCompile(`^[a-z]+ (sha(?:256|512):[0-9a-f]{64,128})$`)
	digests = regexp.MustCompile(`sha(?:256|512):[0-9a-f]{64,128}`)
)

// repeated are words that one layer after the other adds. The last of them is enough.
var repeated = []string{"context deadline exceeded", "context canceled", "unavailable", "not found", "unexpected EOF",
	"EOF"}

// longest is how much of a text is looked at. A registry's whole answer may be in it, and what is looked for below
// takes a time that grows with its square.
const longest = 8 << 10

// Plain is text in plain words. Of a text that is very long it is the beginning.
func Plain(text string) string {
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + " …"
	}
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	seen := lines[:0]
	for _, line := range lines {
		line = dumps.ReplaceAllString(patterns.ReplaceAllString(line, ""), "")
		line = strings.TrimSpace(spaces.ReplaceAllString(line, " "))
		line = once(line)
		if line != "" && !slices.Contains(seen, line) {
			seen = append(seen, line)
		}
	}
	return strings.Join(seen, "; ")
}

// once leaves of the repeated words the last, and of the steps with one digest the first.
func once(line string) string {
	parts := strings.Split(line, ": ")
	kept := parts[:0]
	named := make(map[string]bool)
	for i, part := range parts {
		if step := steps.FindStringSubmatch(part); step != nil && named[step[1]] {
			continue
		}
		for _, d := range digests.FindAllString(part, -1) {
			named[d] = true
		}
		again := slices.Contains(parts[i+1:], part)
		if again && (slices.Contains(repeated, part) || parts[i+1] == part) {
			continue
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, ": ")
}
