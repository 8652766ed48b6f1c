package view

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// Strict has a program refuse what names none of its commands. cobra refuses that as the first word alone: help of it,
// and what follows completion, print something else, and end as if all were well.
//
// What the program prints must be set before: cobra's completion takes it down here.
func Strict(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch {
		case c.Name() == "help":
			c.Args = known
		case c.HasSubCommands() && !c.Runnable():
			c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() } // so that its Args are looked at
		}
	}
}

// known refuses words that lead to no command.
func known(help *cobra.Command, words []string) error {
	cmd, rest, err := help.Root().Find(words)
	if err == nil && len(rest) > 0 {
		err = UnknownCommand(cmd, rest[0])
	}
	return err
}

// UnknownCommand is the error about a sub-command that there is none of.
func UnknownCommand(cmd *cobra.Command, name string) error {
	hint := ""
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		hint = "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return fmt.Errorf("unknown command %q for %q%s", name, cmd.CommandPath(), hint)
}
