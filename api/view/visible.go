package view

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/term"
)

// Text for people has parts that others write: agents, registries, whoever may write a condition. A terminal obeys some
// characters, and others turn what is read around. These are shown as JSON writes them, \u001b.
//
// unseen are those characters. In what we write ourselves the colours of kubectl shoal stay.
var (
	unseen = regexp.MustCompile(`[^\pL\pM\pN\pP\pS\p{Zs}\n\t]`)
	ours   = regexp.MustCompile(`\x1b\[(?:0|3[1-3])m|` + unseen.String())
)

func visible(unseen *regexp.Regexp, text []byte) []byte {
	return escaped(unseen, text, func(shown []byte, c rune) []byte {
		for _, unit := range utf16.Encode([]rune{c}) {
			shown = fmt.Appendf(shown, `\u%04x`, unit)
		}
		return shown
	})
}

func escaped(unseen *regexp.Regexp, text []byte, escape func(shown []byte, c rune) []byte) []byte {
	return unseen.ReplaceAllFunc(bytes.ToValidUTF8(text, []byte("\ufffd")), func(c []byte) []byte {
		if len(c) > 1 && c[0] == '\x1b' {
			return c
		}
		r, _ := utf8.DecodeRune(c)
		return escape(nil, r)
	})
}

// IsTerminal reports whether what is written to w is on somebody's screen.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// ForTerminal shows on w what a terminal would obey. Each write has whole characters.
func ForTerminal(w io.Writer) io.Writer { return terminal{w} }

type terminal struct{ io.Writer }

func (t terminal) Write(text []byte) (int, error) {
	if _, err := t.Writer.Write(visible(ours, text)); err != nil {
		return 0, err
	}
	return len(text), nil
}

// Line is a text that others wrote on one line, so that it cannot pass for more lines of ours.
func Line(text string) string {
	return string(visible(unseen, []byte(strings.Join(strings.FieldsFunc(text, func(r rune) bool {
		return r == '\n' || r == '\r' || r == '\t'
	}), " "))))
}
