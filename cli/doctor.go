package cli

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambi-cni/ambi/conf"
)

func (a *app) doctorCommand() *cobra.Command {
	asked := ""
	c := &cobra.Command{
		Use:   "doctor",
		Short: "say what is missing or wrong here, and what mends it",
		Long: `Look at everything that containers of this user need: which mode a network would
get here and why, the programs, devices, kernel settings and files, the conflists
in the usual folders, and what is left of dead containers.

Each line is pass, warn or fail, says what was seen, and has the command that mends
it. What only the other mode needs is never worse than warn. The exit status is 1
when something fails. It changes nothing.

CNI_PATH is the plugin folders to look in; without it the usual ones.`,
		Example: "  ambi doctor\n  sudo ambi doctor\n  ambi doctor --mode rootless --json",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			mode := conf.Mode(asked)
			if mode != conf.ModeAuto && mode != conf.ModeRoot && mode != conf.ModeRootless {
				return usageError(c, "--mode is auto, root or rootless, not %q", asked)
			}
			return a.doctor(c.Context(), mode)
		},
	}
	c.Flags().StringVar(&asked, "mode", "auto", "the `mode` to look for: auto, root or rootless, as the key mode of a network")
	return c
}

// verdict is the outcome of a check.
type verdict string

const (
	pass verdict = "pass"
	warn verdict = "warn" // works, or is needed by something else only
	fail verdict = "fail" // containers have no network, or will not have one
)

// check is one precondition.
type check struct {
	Name   string  `json:"name"`
	Status verdict `json:"status"`
	Seen   string  `json:"seen"`
	Mend   string  `json:"mend,omitempty"`   // a command line for the shell
	AsRoot bool    `json:"asRoot,omitempty"` // of the host, has to run it
}

// diagnosis is the JSON of doctor.
type diagnosis struct {
	Mode     conf.Mode `json:"mode,omitempty"`
	Why      string    `json:"why"`
	Checks   []check   `json:"checks"`
	Passed   int       `json:"passed"`
	Warnings int       `json:"warnings"`
	Failures int       `json:"failures"`
}

// doctor is what the checks share.
type doctor struct {
	app  *app
	mode conf.Mode
	able bool // to do what the mode needs
	diagnosis
}

func (d *doctor) note(c check) { d.Checks = append(d.Checks, c) }

func (d *doctor) pass(name, format string, args ...any) {
	d.note(check{Name: name, Status: pass, Seen: fmt.Sprintf(format, args...)})
}

// forMode makes a failure a warning where only the other mode needs it.
func (d *doctor) forMode(mode conf.Mode, c check) {
	if d.mode != mode && c.Status == fail {
		c.Status = warn
		c.Seen += " (only needed " + map[conf.Mode]string{conf.ModeRoot: "as root", conf.ModeRootless: "without root"}[mode] + ")"
	}
	d.note(c)
}

func (a *app) doctor(ctx context.Context, asked conf.Mode) error {
	d := &doctor{app: a}
	done := a.progress("looking")
	d.lookAtMode(asked)
	for _, look := range []func(context.Context){
		d.lookAtKernel, d.lookAtDriver, d.lookAtTun, d.lookAtUserNamespaces, d.lookAtHardening, d.lookAtSubordinateIDs, d.lookAtUnit, d.lookAtLowPorts,
		d.lookAtFirewall, d.lookAtDelegates, d.lookAtSelf,
		d.lookAtStateFolder, d.lookAtConflists, d.lookAtDescriptors, d.lookAtLeftovers,
	} {
		look(ctx)
	}
	done()
	for _, c := range d.Checks {
		switch c.Status {
		case pass:
			d.Passed++
		case warn:
			d.Warnings++
		case fail:
			d.Failures++
		}
	}
	if err := d.print(); err != nil {
		return err
	}
	if d.Failures > 0 {
		return silentError{fmt.Errorf("%d failures", d.Failures)}
	}
	return nil
}

func (d *doctor) lookAtMode(asked conf.Mode) {
	mode, why, err := d.app.program.Mode(asked)
	d.mode, d.Mode, d.Why = mode, mode, why
	if d.able = err == nil; d.able {
		d.pass("mode", "%s, because %s", mode, why)
		return
	}
	d.mode = conf.ModeRoot
	c := check{Name: "mode", Status: fail, Seen: err.Error()}
	if !hostRoot() {
		c.Mend, c.AsRoot = d.app.command("doctor --mode root"), true
	}
	d.note(c)
}

// hostRoot says whether we are root, and not that of a user namespace.
func hostRoot() bool {
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	return os.Geteuid() == 0 && (err != nil || strings.Join(strings.Fields(string(uidMap)), " ") == "0 0 4294967295")
}

const (
	verdictWidth = 6
	nameWidth    = 20
)

func (d *doctor) print() error {
	a := d.app
	if a.json {
		return printJSON(a.out, d.diagnosis)
	}
	styles := map[verdict]style{pass: green, warn: yellow, fail: red}
	const indent = verdictWidth + nameWidth
	for _, c := range d.Checks {
		fmt.Fprintf(a.out, "%s  %-*s%s\n", a.screen.paint(styles[c.Status], string(c.Status)), nameWidth, c.Name, a.screen.wrapped(c.Seen, indent))
		if c.Mend != "" {
			who := ""
			if c.AsRoot && !hostRoot() {
				who = " (as root)"
			}
			fmt.Fprintf(a.out, "%*smend%s: %s\n", verdictWidth, "", who, printable(c.Mend))
		}
	}
	fmt.Fprintf(a.out, "\n%s, %s, %s\n", counting(d.Passed, "check passed", "checks passed"),
		a.screen.paint(styleIf(d.Warnings > 0, yellow), counting(d.Warnings, "warning", "warnings")),
		a.screen.paint(styleIf(d.Failures > 0, red), counting(d.Failures, "failure", "failures")))
	return nil
}

func styleIf(on bool, s style) style {
	if on {
		return s
	}
	return plain
}

func counting(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
