package view_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/shoal-cache/shoal/api/view"
)

func TestUnknown_SaysWhoseHelpToLookAt(t *testing.T) {
	t.Parallel()
	for words, want := range map[string]string{
		"status --once": "unknown flag: --once. shoal status --help lists what there is",
		"status -x":     "unknown shorthand flag: 'x' in -x. shoal status --help lists what there is",
		"--once":        "unknown flag: --once. shoal --help lists what there is",
		"statsu":        `unknown command "statsu" for "shoal". Did you mean status? shoal --help lists what there is`,
		"help statsu":   `unknown command "statsu" for "shoal". Did you mean status? shoal --help lists what there is`,
		"status fails":  "the unknown fails",
	} {
		run := func(*cobra.Command, []string) error { return errors.New("the unknown fails") }
		root := &cobra.Command{Use: "shoal", RunE: run, SilenceUsage: true, SilenceErrors: true}
		root.AddCommand(&cobra.Command{Use: "status", RunE: run})
		view.Strict(root)
		root.SetArgs(strings.Fields(words))
		ran, err := root.ExecuteC()
		require.Equal(t, want, view.Unknown(ran, err.Error()), words)
	}
}

func TestStrict_WhatNamesNoCommandIsAnError(t *testing.T) {
	t.Parallel()
	for words, want := range map[string]string{
		"":                        "",
		"help":                    "",
		"help status":             "",
		"help help":               "",
		"help group":              "",
		"help group one":          "",
		"help completion bash":    "",
		"completion":              "",
		"completion bash":         "",
		"group":                   "",
		"nothing":                 `unknown command "nothing" for "shoal"`,
		"help nothing":            `unknown command "nothing" for "shoal"`,
		"help status nothing":     `unknown command "nothing" for "shoal status"`,
		"help group nothing":      `unknown command "nothing" for "shoal group"`,
		"help group on":           `unknown command "on" for "shoal group"; did you mean one?`,
		"help completion nothing": `unknown command "nothing" for "shoal completion"`,
		"completion nothing":      `unknown command "nothing" for "shoal completion"`,
		"group nothing":           `unknown command "nothing" for "shoal group"`,
	} {
		t.Run(words, func(t *testing.T) {
			t.Parallel()
			run := func(*cobra.Command, []string) error { return nil }
			root := &cobra.Command{Use: "shoal", RunE: run, SilenceUsage: true, SilenceErrors: true}
			group := &cobra.Command{Use: "group", Args: cobra.NoArgs}
			group.AddCommand(&cobra.Command{Use: "one", RunE: run})
			root.AddCommand(&cobra.Command{Use: "status", Args: cobra.NoArgs, RunE: run}, group)
			var out bytes.Buffer
			root.SetOut(&out)
			root.SetErr(&out)
			root.SetArgs(strings.Fields(words))
			view.Strict(root)
			err := root.Execute()
			if want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, want)
			require.Empty(t, out.String())
		})
	}
}
