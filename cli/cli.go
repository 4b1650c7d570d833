package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/driver"
)

// The exit statuses.
const (
	ok     = 0
	failed = 1
	misuse = 2
)

// Program is what the command line has to be told by the program around it: of the
// room plugin, which it does not import.
type Program struct {
	Version string // of the build
	// Mode is the mode that a network with this value of the key mode would get here,
	// and why.
	Mode func(asked conf.Mode) (mode conf.Mode, why string, err error)
}

// Main runs the command that the arguments name and returns the exit status.
func Main(p Program, args []string) int {
	ctx := signalContext()
	a := &app{program: p, out: os.Stdout, errOut: os.Stderr, screen: screenOf(os.Stdout), messages: screenOf(os.Stderr)}
	return a.run(ctx, args)
}

// signalContext is a context that a signal ends. Whoever waits without a look at it, for a supervisor
// that does not answer, ends by the signal a moment later; and all by a second one.
func signalContext() context.Context {
	const moment = 2 * time.Second
	ctx, cancel := context.WithCancel(context.Background())
	received := make(chan os.Signal, 1)
	signal.Notify(received, os.Interrupt, unix.SIGTERM)
	go func() {
		s := <-received
		signal.Reset(os.Interrupt, unix.SIGTERM)
		cancel()
		time.Sleep(moment)
		_ = unix.Kill(os.Getpid(), s.(unix.Signal))
	}()
	return ctx
}

// app is one run of the command line.
type app struct {
	program Program
	out     io.Writer
	errOut  io.Writer
	screen  screen // that out is
	// messages is the screen that errOut is.
	messages screen

	json     bool
	stateDir string

	passedOver sync.Once // tells of a state folder that is not ours
}

// output remembers that something could not be written, so that no table has to look.
type output struct {
	to  io.Writer
	err error
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.to.Write(b)
	if o.err == nil {
		o.err = err
	}
	return n, err
}

func (a *app) run(ctx context.Context, args []string) int {
	out := &output{to: a.out}
	a.out, a.errOut = &people{out, a.screen.ink}, &people{a.errOut, a.messages.ink}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.errOut)
	command, err := root.ExecuteContextC(ctx)
	if err == nil && out.err != nil {
		err = hinted(fmt.Errorf("writing what was found: %w", out.err), "see that there is room where standard output goes")
	}
	if err == nil {
		return ok
	}
	if _, ok := errors.AsType[silentError](err); ok {
		return failed
	}
	a.complain(command.CommandPath(), err)
	if errors.Is(err, errUsage) {
		return misuse
	}
	return failed
}

// The groups of commands in the help.
const (
	groupLook   = "look"
	groupChange = "change"
	groupSetUp  = "setup"
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "ambi",
		Short: "the network of containers, as root and without root",
		Long: `ambi is a CNI plugin that gives a container its network and its published ports
whoever starts it: as root by a network of its own, or the CNI plugins of the
host, and nftables; without root by ` + driver.Of("").Name() + ` and a forwarder of its own.

Container runtimes call it by its environment (CNI_COMMAND). These commands are
for people: they show what is there, say why it does not work, and mend it. They
work on the attachments of the user who calls them.`,
		Version:           a.program.Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              cobra.ArbitraryArgs, // else cobra has its own words for an unknown one
		RunE:              unknownCommand,
	}
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(a.help)
	root.SetUsageFunc(a.usage)
	cobra.EnableCommandSorting = false
	root.SetHelpCommand(helpCommand())
	root.AddGroup(
		&cobra.Group{ID: groupLook, Title: "To see what is there:"},
		&cobra.Group{ID: groupChange, Title: "To change and mend it:"},
		&cobra.Group{ID: groupSetUp, Title: "To set ambi up:"},
	)
	root.PersistentFlags().StringVar(&a.stateDir, "state-dir", "", "state `folder` of networks with the key stateDir")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON (docs/cli.md has its shapes)")
	_ = root.MarkPersistentFlagDirname("state-dir")
	probe := probeCommand()
	probe.GroupID = groupSetUp
	root.AddCommand(probe)
	for _, group := range []struct {
		id       string
		commands []*cobra.Command
	}{
		{groupLook, []*cobra.Command{a.listCommand(), a.inspectCommand(), a.statsCommand(), a.namesCommand(), a.logsCommand()}},
		{groupChange, []*cobra.Command{a.portCommand(), a.restoreCommand(), a.gcCommand(), a.upgradeCommand()}},
		{groupSetUp, []*cobra.Command{a.doctorCommand(), a.wrapCommand(), a.installCommand(), a.uninstallCommand(), completionCommand(), a.versionCommand()}},
	} {
		for _, c := range group.commands {
			c.GroupID = group.id
			root.AddCommand(c)
		}
	}
	return root
}

// errUsage marks the errors of a bad command line.
var errUsage = errors.New("bad command line")

// usageError is a bad command line, with the way to its help.
func usageError(c *cobra.Command, format string, args ...any) error {
	return usageHint(fmt.Errorf(format, args...), fmt.Sprintf("%q tells how it is used: %s", c.CommandPath()+" --help", useLine(c)))
}

func usageHint(err error, text string) error {
	return hint{marked{err}, text}
}

// marked is an error that is errUsage without saying so.
type marked struct{ error }

func (m marked) Unwrap() []error { return []error{m.error, errUsage} }

func flagError(c *cobra.Command, err error) error { return usageError(c, "%w", err) }

// unknownCommand is what a command with sub-commands does by itself.
func unknownCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageHint(fmt.Errorf("a command is missing"), fmt.Sprintf("%q lists them", c.CommandPath()+" --help"))
	}
	text := fmt.Sprintf("%q lists the commands", c.CommandPath()+" --help")
	if c.SuggestionsMinimumDistance <= 0 {
		c.SuggestionsMinimumDistance = 2
	}
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		text = fmt.Sprintf("did you mean %q? %s", near[0], text)
	}
	return usageHint(fmt.Errorf("unknown command %q", args[0]), text)
}

// arguments checks how many arguments a command gets; most of 0 is any number.
func arguments(least, most int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usageError(c, "%s is missing", what)
		case most > 0 && len(args) > most:
			return usageError(c, "unexpected argument %q", args[most])
		}
		return nil
	}
}

func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError(c, "unexpected argument %q", args[0])
	}
	return nil
}

// silentError fails a command that has said everything already.
type silentError struct{ error }

// hint is an error with what to do about it.
type hint struct {
	error
	text string
}

func (h hint) Unwrap() error { return h.error }

func hinted(err error, text string) error { return hint{err, text} }

// complain prints an error and its hints: those that it carries, else what its CNI
// code tells.
func (a *app) complain(who string, err error) {
	for line := range strings.Lines(withoutHints(err)) {
		fmt.Fprintf(a.errOut, "%s %s\n", a.messages.paint(red, who+":"), strings.TrimRight(line, "\n"))
	}
	texts := hintsOf(err)
	if len(texts) == 0 {
		texts = []string{hintByCode(err)}
	}
	for i, text := range texts {
		if !slices.Contains(texts[:i], text) {
			fmt.Fprintf(a.errOut, "%s %s\n", a.messages.paint(bold, "hint:"), text)
		}
	}
}

// withoutHints is the text of an error without what the CNI errors in it say to do,
// which comes as hints.
func withoutHints(err error) string {
	text := err.Error()
	eachIn(err, func(inner error) {
		if e, ok := inner.(*types.Error); ok { //nolint:errorlint // one level at a time
			text = strings.Replace(text, e.Error(), e.Msg, 1)
		}
	})
	return text
}

// hintsOf is what the errors in an error say to do.
func hintsOf(err error) (texts []string) {
	eachIn(err, func(inner error) {
		switch e := inner.(type) { //nolint:errorlint // one level at a time
		case hint:
			texts = append(texts, e.text)
		case *types.Error:
			if e.Details != "" {
				texts = append(texts, e.Details)
			}
		}
	})
	return texts
}

// eachIn visits an error and all that it wraps or joins.
func eachIn(err error, visit func(error)) {
	if err == nil {
		return
	}
	visit(err)
	switch e := err.(type) { //nolint:errorlint // one level at a time
	case interface{ Unwrap() error }:
		eachIn(e.Unwrap(), visit)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			eachIn(inner, visit)
		}
	}
}

func hintByCode(err error) string {
	if e, ok := errors.AsType[*types.Error](err); ok {
		switch e.Code {
		case conf.ErrPortInUse:
			return "stop what has the port, or choose another host port"
		case conf.ErrPortPermission:
			return "choose a host port from 1024 on, or ask root for the sysctl"
		}
	}
	return "\"ambi doctor\" looks for the cause"
}
