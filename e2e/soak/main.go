// Command soak calls ambi for minutes as a busy and careless host would: several
// callers at once, random verbs about random containers in random networks, valid
// and invalid configurations, and meanwhile the plugin, supervisors, slirp4netns and
// whole containers are killed. In the end everything is taken down and the machine
// has to be what it was (e2e/snapshot).
//
//	soak [-minutes N] [-mode root|rootless|shared|all] [-seed N] [-callers N] [-picture FILE]
//
// With "all" the modes run one after the other, each for the whole time. The seed,
// which is printed, decides what the callers do and in which order; how their calls
// meet is up to the machine. The picture (SVG) shows the time of the verbs, memory
// and descriptors over the run.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ambi-cni/ambi/e2e/lab"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

// job is what one machine is to do.
type job struct {
	Mode    string        `json:"mode"`
	Time    time.Duration `json:"time"`
	Least   int           `json:"least"` // ADDs that have to succeed before the end, also on a slow machine
	Seed    uint64        `json:"seed"`
	Callers int           `json:"callers"`
	Machine lab.Machine   `json:"machine"`
}

func run(args []string) error {
	if len(args) > 0 && args[0] == "inside" {
		return inside()
	}
	var j job
	flags := flag.NewFlagSet("soak", flag.ExitOnError)
	minutes := flags.Float64("minutes", 10, "how long, in each mode")
	mode := flags.String("mode", "all", "root, rootless (private networks), shared or all")
	flags.Uint64Var(&j.Seed, "seed", uint64(time.Now().UnixNano()), "of all that is random")
	flags.IntVar(&j.Callers, "callers", 3, "how many call at the same time")
	flags.StringVar(&j.Machine.Checkout, "checkout", ".", "the repository")
	flags.StringVar(&j.Machine.Bin, "bin", "bin", "the folder of the ambi that is tested")
	flags.StringVar(&j.Machine.Tools, "tools", ".tools/bin", "the folder of the delegates")
	picture := flags.String("picture", "", "draw the run into this file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("needs root, to make machines out of namespaces")
	}
	for _, dir := range []*string{&j.Machine.Checkout, &j.Machine.Bin, &j.Machine.Tools} {
		var err error
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	j.Time = time.Duration(*minutes * float64(time.Minute))
	modes := []string{*mode}
	if *mode == "all" {
		modes = []string{"root", "rootless", "shared"}
	}
	fmt.Printf("seed %d, %d callers, %s in each mode\n", j.Seed, j.Callers, j.Time)
	var runs []*outcome
	for _, m := range modes {
		j.Mode = m
		o, err := j.run()
		if err != nil {
			return fmt.Errorf("as %s, with -seed %d: %w", m, j.Seed, err)
		}
		fmt.Print(o.table())
		runs = append(runs, o)
	}
	if *picture != "" {
		if err := os.WriteFile(*picture, []byte(draw(runs)), 0o644); err != nil {
			return err
		}
	}
	for _, o := range runs {
		if len(o.Problems) > 0 {
			return fmt.Errorf("as %s, with -seed %d: %d problems; the first: %s", o.Mode, j.Seed, len(o.Problems), o.Problems[0])
		}
	}
	return nil
}

// run runs the job in a machine.
func (j *job) run() (*outcome, error) {
	what, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	out, err := os.CreateTemp("", "soak-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := lab.Command(self, "inside")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_, werr := stdin.Write(what)
	stdin.Close()
	if err := cmd.Wait(); err != nil || werr != nil {
		return nil, fmt.Errorf("the machine ended: %w", err)
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		return nil, err
	}
	var o outcome
	return &o, json.Unmarshal(text, &o)
}
