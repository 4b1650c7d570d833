// Command fault shows that nothing is left behind, whatever happens to a verb. It
// runs one with a system call that fails, or kills it, at every step in turn; then
// DEL, or GC, or a second ADD and DEL; and then it compares the machine with how it
// was before (e2e/snapshot). It drives the built binary in throw-away machines
// (e2e/lab) and knows nothing of its inside but the names of its processes.
//
//	fault [-mode root|built-in|rootless|shared|shared-plugins|all] [-faults N] [-seed N] [-bin DIR] [-report FILE]
//
// What has to hold, for every fault:
//
//   - an ADD that says it failed has taken back all that it did
//   - an ADD that says it succeeded made a network that CHECK finds in order
//   - a DEL or GC that says it succeeded has left nothing, faulty as its way was
//   - after an ADD that was killed or has crashed, and after a DEL or GC that failed,
//     the next DEL, GC or ADD succeeds, and then nothing is left
//   - no verb hangs
//   - in a shared network, another container that is in it does not notice
//
// The exit status is 1 when one of them does not.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/ambi-cni/ambi/e2e/fault/inject"
	"github.com/ambi-cni/ambi/e2e/lab"
)

// allModes are the ways to get a network in which faults happen.
var allModes = []string{"root", "built-in", "rootless", "shared", "shared-plugins"}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fault:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "trace":
			return trace(args[1:])
		case "inside":
			return inside()
		}
	}
	o := options{}
	flags := flag.NewFlagSet("fault", flag.ExitOnError)
	mode := flags.String("mode", "all", "root (with delegates), built-in (the built-in network), rootless, shared (by users' containers), shared-plugins (the same with delegates) or all")
	flags.IntVar(&o.Faults, "faults", 450, "how many faults in each mode")
	flags.Uint64Var(&o.Seed, "seed", 1, "which of the possible faults")
	flags.StringVar(&o.Checkout, "checkout", ".", "the repository")
	flags.StringVar(&o.Bin, "bin", "bin", "the folder of the ambi that is tested")
	flags.StringVar(&o.Tools, "tools", ".tools/bin", "the folder of the delegates")
	report := flags.String("report", "", "write the report, Markdown, to this file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	for _, dir := range []*string{&o.Checkout, &o.Bin, &o.Tools} {
		var err error
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("needs root, to make machines out of namespaces")
	}
	modes := []string{*mode}
	if *mode == "all" {
		modes = allModes
	}
	var all []*outcome
	for _, m := range modes {
		o.Mode = m
		outcomes, err := o.run()
		all = append(all, outcomes...)
		if err != nil {
			return err
		}
	}
	if *report != "" {
		if err := os.WriteFile(*report, []byte(markdown(all)), 0o644); err != nil {
			return err
		}
	}
	return verdict(all, os.Stdout)
}

// trace runs a program as a user, with a fault, in a process of its own: REPORT UID
// FAULT PIDS PROGRAM…; the fault is JSON.
func trace(args []string) error {
	var fault *inject.Fault
	if err := json.Unmarshal([]byte(args[2]), &fault); err != nil {
		return err
	}
	var also []int
	if err := json.Unmarshal([]byte(args[3]), &also); err != nil {
		return err
	}
	uid, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	cmd := exec.Command(args[4], args[5:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = lab.As(uid)
	report, err := inject.Run(inject.Program{Cmd: cmd, Also: also}, fault)
	if err != nil {
		return err
	}
	text, err := json.Marshal(report)
	if err != nil {
		return err
	}
	return os.WriteFile(args[0], text, 0o600)
}
