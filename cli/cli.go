// Package cli is ambi's command line: the verbs for people.
//
// A command prints what it did on standard output. Its errors go to standard error
// with a line "hint:" that says what to do. The exit status is 0 for success, 1
// when something failed, 2 for a bad command line.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// The exit statuses.
const (
	ok     = 0
	failed = 1
	misuse = 2
)

// command is one verb for people. It gets its arguments and returns an error that
// may carry a hint.
type command func(ctx context.Context, args []string, out io.Writer) error

func commands() map[string]command {
	return map[string]command{"restore": restore}
}

// Main runs the command that the arguments name and returns the exit status.
func Main(about string, args []string) int {
	return run(about, args, os.Stdout, os.Stderr)
}

func run(about string, args []string, out, errOut io.Writer) int {
	if args[0] == "version" || args[0] == "--version" {
		fmt.Fprintf(out, "%s\n", about)
		return ok
	}
	c, known := commands()[args[0]]
	if !known {
		names := append(slices.Sorted(maps.Keys(commands())), "version")
		return complain(errOut, misuse, "ambi", hinted(fmt.Errorf("unknown command %q", args[0]),
			"the commands are "+strings.Join(names, ", ")+"; everything else a CNI runtime runs, see the README"))
	}
	err := c(context.Background(), args[1:], out)
	switch {
	case err == nil:
		return ok
	case errors.Is(err, errUsage), errors.Is(err, flag.ErrHelp):
		return complain(errOut, misuse, "ambi "+args[0], err)
	}
	return complain(errOut, failed, "ambi "+args[0], err)
}

// errUsage marks the errors of a bad command line.
var errUsage = errors.New("bad command line")

// hint is an error with what to do about it.
type hint struct {
	error
	text string
}

func (h hint) Unwrap() error { return h.error }

func hinted(err error, text string) error { return hint{err, text} }

func complain(errOut io.Writer, status int, who string, err error) int {
	fmt.Fprintf(errOut, "%s: %v\n", who, err)
	var h hint
	if errors.As(err, &h) {
		fmt.Fprintf(errOut, "hint: %s\n", h.text)
	}
	return status
}
