package policy

import (
	"fmt"
	"strings"
)

// Match reports whether a pattern matches a repository written host/path. "*" stands for any run of characters but "/",
// also for none, and "**" for any run of characters. Every other character stands for itself, whatever its case. "/**"
// at the end also matches the part before it. These are the patterns of a CachePolicy.
//
//	docker.io/library/*   docker.io/library/redis
//	docker.io/**          docker.io/library/redis, docker.io/a/b/c
//	*.example/**          a.b.example/x
func Match(pattern, repository string) bool {
	pattern, repository = strings.ToLower(pattern), strings.ToLower(repository)
	if head, ok := strings.CutSuffix(pattern, "/**"); ok && matchTokens(tokens(head), repository) {
		return true
	}
	return matchTokens(tokens(pattern), repository)
}

// Covers reports whether a pattern surely matches whatever another one does: it is the same one, "**", or begins the
// other one and ends in "/**".
func Covers(pattern, other string) bool {
	pattern, other = strings.ToLower(pattern), strings.ToLower(other)
	head, ok := strings.CutSuffix(pattern, "/**")
	return pattern == other || pattern == "**" ||
		ok && !strings.Contains(head, "**") && (other == head || strings.HasPrefix(other, head+"/"))
}

// token is a wildcard, or a text that stands for itself.
type token struct {
	text string // empty for a wildcard
	deep bool   // the wildcard crosses "/"
}

func tokens(pattern string) []token {
	var all []token
	for pattern != "" {
		switch at := strings.IndexByte(pattern, '*'); {
		case at < 0:
			return append(all, token{text: pattern})
		case at > 0:
			all, pattern = append(all, token{text: pattern[:at]}), pattern[at:]
		case strings.HasPrefix(pattern, "**"):
			all, pattern = append(all, token{deep: true}), pattern[2:]
		default:
			all, pattern = append(all, token{}), pattern[1:]
		}
	}
	return all
}

// matchTokens keeps the set of positions of s that the tokens so far can reach, so its time is bounded by the product
// of the two lengths.
func matchTokens(pattern []token, s string) bool {
	reached := make([]bool, len(s)+1)
	reached[0] = true
	for _, t := range pattern {
		next := make([]bool, len(s)+1)
		for i := range reached {
			switch {
			case t.text != "":
				if reached[i] && strings.HasPrefix(s[i:], t.text) {
					next[i+len(t.text)] = true
				}
			case reached[i]:
				next[i] = true
			case i > 0 && next[i-1]:
				next[i] = t.deep || s[i-1] != '/'
			}
		}
		reached = next
	}
	return reached[len(s)]
}

// checkPattern fails for what is not written as patterns are.
func checkPattern(pattern string) error {
	for _, c := range pattern {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.ContainsRune("*./-_:[]", c):
		default:
			return fmt.Errorf("pattern %q: %q occurs in no repository; "+
				"want host/path such as registry.example/team-*/**", pattern, c)
		}
	}
	if pattern == "" || strings.Contains(pattern, "//") || strings.HasPrefix(pattern, "/") ||
		strings.Contains(pattern, "***") {
		return fmt.Errorf("pattern %q matches nothing; want host/path such as registry.example/team-*/**", pattern)
	}
	return nil
}
