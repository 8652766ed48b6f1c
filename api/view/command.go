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

// VersionCommand prints the version of a program.
func VersionCommand(version string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  Arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
			return err
		},
	}
}

// Arguments refuses too few or too many arguments, and says what is wanted, by the command's own usage line. most -1:
// any number. hint, which may be left out, is what may have been meant by what is too much.
func Arguments(least, most int, hint ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		want := strings.TrimSpace(strings.TrimPrefix(cmd.Use, cmd.Name()))
		given := strings.Join(append([]string{strings.Join(args, " ")}, hint...), "; ")
		switch {
		case len(args) < least:
			return fmt.Errorf("%s: %s is missing, as in\n%s", cmd.Name(), want, cmd.Example)
		case most == 0 && len(args) > 0:
			return fmt.Errorf("%s takes no arguments, and was given %s", cmd.Name(), given)
		case most >= 0 && len(args) > most:
			return fmt.Errorf("%s takes %s alone, and was given %s", cmd.Name(), want, given)
		}
		return nil
	}
}

// Unknown is what a program prints of an error. Where that is of a word or a flag that cobra does not know, it stands
// on one line, with whose help to look at: that of ran, the command that was run, where it is a flag.
func Unknown(ran *cobra.Command, text string) string {
	if !strings.HasPrefix(text, "unknown ") {
		return text
	}
	helps := ran.Root().CommandPath()
	if !strings.HasPrefix(text, "unknown command ") {
		helps = ran.CommandPath()
	}
	said, others, found := strings.Cut(strings.TrimSpace(text), "\n\nDid you mean this?\n")
	if !strings.HasSuffix(said, "?") {
		said += "."
	}
	if found {
		said += " Did you mean " + strings.Join(strings.Fields(others), " or ") + "?"
	}
	return said + " " + helps + " --help lists what there is"
}
