package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/ambi-cni/ambi/e2e/lab"
)

// options are the command line.
type options struct {
	Mode                 string
	Faults               int
	Seed                 uint64
	Checkout, Bin, Tools string
	Settled              time.Duration // see job
}

// machines is how many run at the same time: they wait for the kernel most of the time.
const machines = 4

// batch is how many faults a machine suffers before it is thrown away.
const batch = 50

// run makes the plan and has it suffered.
func (o *options) run() ([]*outcome, error) {
	out, err := o.machine(nil)
	if err != nil {
		return nil, fmt.Errorf("counting the system calls of %s: %w", o.Mode, err)
	}
	var c counts
	if err := json.Unmarshal(out, &c); err != nil {
		return nil, err
	}
	all := plan(c, o.Faults, o.Seed)
	fmt.Fprintf(os.Stderr, "fault: %s: %d of %d possible faults\n", o.Mode, len(all), possible(c))
	todo := make(chan []*planned, len(all))
	for rest := all; len(rest) > 0; {
		n := min(batch, (len(all)+machines-1)/machines, len(rest))
		todo <- rest[:n]
		rest = rest[n:]
	}
	close(todo)
	var (
		mu       sync.Mutex
		outcomes []*outcome
		errs     []error
		wg       sync.WaitGroup
	)
	started := time.Now()
	for range machines {
		wg.Go(func() {
			for part := range todo {
				done, err := o.suffer(part)
				mu.Lock()
				outcomes = append(outcomes, done...)
				errs = append(errs, err)
				fmt.Fprintf(os.Stderr, "fault: %s: %d of %d, %d problems, %s\n", o.Mode, len(outcomes), len(all), problems(outcomes), time.Since(started).Round(time.Second))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return outcomes, errors.Join(errs...)
}

func possible(c counts) (n int) {
	for _, g := range groups(c) {
		n += len(g.faults)
	}
	return n
}

func problems(all []*outcome) (n int) {
	for _, o := range all {
		if o.bad() {
			n++
		}
	}
	return n
}

// suffer has a part of the plan suffered, in a new machine after every problem.
func (o *options) suffer(part []*planned) ([]*outcome, error) {
	var all []*outcome
	for len(part) > 0 {
		out, err := o.machine(part)
		n := 0
		for d := json.NewDecoder(bytes.NewReader(out)); ; n++ {
			var one outcome
			derr := d.Decode(&one)
			if errors.Is(derr, io.EOF) {
				break
			}
			if derr != nil {
				return all, errors.Join(derr, err)
			}
			all = append(all, &one)
			if one.Problem != "" {
				fmt.Fprintf(os.Stderr, "fault: %s: %s, then %s (%s: %s)\n%s\n", one.Mode, &one.planned, one.After, hitAt(&one), one.Did, one.Problem)
			}
		}
		if n == 0 {
			return all, errors.Join(errNoOutcome, err)
		}
		part = part[n:]
	}
	return all, nil
}

// machine runs a job in a machine and returns what it printed.
func (o *options) machine(part []*planned) ([]byte, error) {
	what, err := json.Marshal(job{Mode: o.Mode, Plan: part, Settled: o.Settled, Machine: lab.Machine{Checkout: o.Checkout, Bin: o.Bin, Tools: o.Tools}})
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := lab.Command(self, "inside")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(what), os.Stderr
	return cmd.Output()
}
