package view_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/shoal-cache/shoal/api/view"
)

func TestForTerminal_ShowsWhatATerminalWouldObey(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct{ text, want string }{
		"plain text":                    {"docker.io/library/redis:7 ✓ größe 日本\n\tx", "docker.io/library/redis:7 ✓ größe 日本\n\tx"},
		"a colour of ours":              {"\x1b[31m✗\x1b[0m x", "\x1b[31m✗\x1b[0m x"},
		"a screen that is cleared":      {"a\x1b[2Jb", `a\u001b[2Jb`},
		"text that is hidden":           {"\x1b[8mx", `\u001b[8mx`},
		"a title, and its end":          {"\x1b]0;x\a", `\u001b]0;x\u0007`},
		"a line that is written over":   {"ok\rno", `ok\u000dno`},
		"a character that is taken off": {"a\bb\x7f", `a\u0008b\u007f`},
		"an escape of eight bits":       {"\u009b2J", `\u009b2J`},
		"a byte that is no character":   {"\x9b2J", "\ufffd2J"},
		"text that is turned around":    {"a\u202eb", `a\u202eb`},
		"a line's end of another kind":  {"a\u2028b", `a\u2028b`},
		"a tag that nobody sees":        {"a\U000e0041", `a\udb40\udc41`},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			n, err := io.WriteString(view.ForTerminal(&out), c.text)
			require.NoError(t, err)
			require.Equal(t, len(c.text), n)
			require.Equal(t, c.want, out.String())
		})
	}
}

func TestLine_LeavesNoColourToOthers(t *testing.T) {
	t.Parallel()
	require.Equal(t, `\u001b[32m✓ all is well ✗`, view.Line("\x1b[32m✓ all is well\r\n✗"))
}

// evil is what an agent or a registry may say.
const evil = "x\r\n\t\v\f\x1b[2J\u009b31m\x7f\u202e\n✗ Forged: line"

func TestOutput_WhatOthersSayNeitherMovesTheCursorNorForgesALine(t *testing.T) {
	t.Parallel()
	lines := func(said string, output view.Output) (string, int) {
		var out bytes.Buffer
		pull := view.Pull{Repository: "docker.io/a", Reference: "1", Parts: []view.PullPart{{Kind: "blob", Code: "500",
			Problem: said, Fetch: &view.PullFetch{Problem: said}}}}
		require.NoError(t, output.Print(&out, []any{said, pull}, func(text *view.Text) {
			text.Pull(said, pull)
			text.Blobs([]view.Blob{{MediaType: said, Digest: said, Source: said}}, pull.Started)
			text.Image(view.Image{Name: said, Digest: said, Parts: []view.ImagePart{{Kind: said}}})
		}))
		return out.String(), strings.Count(out.String(), "\n")
	}
	for _, output := range []view.Output{"", view.Wide, view.JSON} {
		_, want := lines("x", output)
		said, got := lines(evil, output)
		require.Equal(t, want, got, said)
		require.NotRegexp(t, "[\x00-\x09\x0b-\x1f\x7f-\u009f\u202e]", said)
	}
	said, _ := lines(evil, view.JSON)
	var back []any
	require.NoError(t, json.Unmarshal([]byte(said), &back))
	require.Equal(t, evil, back[0], "a program reads what was said")
}

func TestOutput_YAMLHasNothingThatATerminalObeysAndReadsBack(t *testing.T) {
	t.Parallel()
	for _, said := range []string{evil, "\u202e", "a\u200b", "\u2028", "\U000e0001", "\U0001f600",
		"plain: text\nof two lines"} {
		var out bytes.Buffer
		require.NoError(t, view.YAML.Print(&out, map[string][]string{"said": {said}}, nil))
		require.NotRegexp(t, `[^\pL\pM\pN\pP\pS\p{Zs}\n]`, out.String())
		var back map[string][]string
		require.NoError(t, yaml.Unmarshal(out.Bytes(), &back), "%q", out.String())
		require.Equal(t, said, back["said"][0])
	}
}

func TestSaved_ATerminalGetsContentOnlyWhereItIsAskedFor(t *testing.T) {
	t.Parallel()
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no terminal to be had here:", err)
	}
	defer func() { _ = terminal.Close() }()
	require.ErrorContains(t, view.Saved("", terminal), "-o FILE writes it to a file")
	require.NoError(t, view.Saved("-", terminal))
	require.NoError(t, view.Saved("layer.tar", terminal))
	require.EqualError(t, view.Saved("/nowhere/layer.tar", terminal), "there is no folder /nowhere")
	failing := iotest.ErrReader(errors.New("you may not"))
	d := digest.FromString("x")
	require.EqualError(t, view.Save("", io.Discard, d, failing), d.String()+": you may not")
	some := io.MultiReader(strings.NewReader("12"), failing)
	require.EqualError(t, view.Save("", io.Discard, d, some), d.String()+": you may not after 2B")
	var pipe bytes.Buffer
	require.NoError(t, view.Saved("", &pipe))
	require.NoError(t, view.Save("", &pipe, digest.FromString("x"), strings.NewReader("x")))
	require.Equal(t, "x", pipe.String())
}
