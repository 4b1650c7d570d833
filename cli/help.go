package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The help is made here and not by cobra's templates: text/template would add two
// megabytes to the binary and to each supervisor, and would not fit the terminal.

// helpWidth is the width of help that goes elsewhere than to a terminal.
const helpWidth = 80

func (a *app) helpScreen() screen {
	s := a.screen
	if s.width == 0 || s.width > helpWidth {
		s.width = helpWidth
	}
	return s
}

func (a *app) help(c *cobra.Command, _ []string) {
	text := c.Long
	if text == "" {
		text = capitalized(c.Short) + "."
	}
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		fmt.Fprintf(a.out, "%s\n\n", a.helpScreen().wrapped(paragraph, 0))
	}
	_ = a.usage(c) // never fails
}

// helpCommand is "ambi help list" for who types that.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND…]", Hidden: true, GroupID: groupSetUp,
		RunE: func(c *cobra.Command, args []string) error {
			about, rest, err := c.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return unknownCommand(c.Root(), args)
			}
			about.InitDefaultHelpFlag() // as --help would
			return about.Help()
		},
	}
}

func capitalized(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func (a *app) usage(c *cobra.Command) error {
	a.heading("Usage:")
	fmt.Fprintf(a.out, "  %s\n", useLine(c))
	if len(c.Aliases) > 0 {
		fmt.Fprintf(a.out, "  (%s will do as well)\n", strings.Join(c.Aliases, ", "))
	}
	a.listCommands(c)
	if c.Example != "" {
		a.heading("\nExamples:")
		fmt.Fprintln(a.out, c.Example)
	}
	a.listFlags("\nFlags:", c.LocalNonPersistentFlags())
	a.listFlags("\nFlags of every command:", c.Root().PersistentFlags())
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(a.out, "\n\"%s COMMAND --help\" tells more about a command.\n", c.CommandPath())
	}
	return nil
}

// useLine is how a command is used, in a line.
func useLine(c *cobra.Command) string {
	if c.HasAvailableSubCommands() {
		return c.CommandPath() + " COMMAND [FLAGS]"
	}
	return strings.Replace(c.UseLine(), "[flags]", "[FLAGS]", 1)
}

func (a *app) heading(text string) { fmt.Fprintln(a.out, a.screen.paint(bold, text)) }

// listCommands lists sub-commands by group, in the order they were added.
func (a *app) listCommands(c *cobra.Command) {
	const indent = 14
	groups := c.Groups()
	if len(groups) == 0 && c.HasAvailableSubCommands() {
		groups = []*cobra.Group{{Title: "Commands:"}}
	}
	for _, g := range groups {
		a.heading("\n" + g.Title)
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() && sub.GroupID == g.ID {
				fmt.Fprintf(a.out, "  %-*s%s\n", indent-2, sub.Name(), a.helpScreen().wrapped(sub.Short, indent))
			}
		}
	}
}

func (a *app) listFlags(title string, flags *pflag.FlagSet) {
	if flags.HasAvailableFlags() {
		a.heading(title)
		fmt.Fprint(a.out, flags.FlagUsagesWrapped(a.helpScreen().width-1))
	}
}
