package main

import "os/exec"

// commandLine is what having the command line in the same binary costs a verb: the
// pages of it that are loaded, and its packages' initialisation. The other side is
// ambi built without one.
func (p *costPlan) commandLine() error {
	c := p.compare(comparison{
		Key: "command-line", Title: "VERSION: with and without the command line linked in", Section: everyCall,
		Subject: "ambi", Other: "ambi -tags ambi_nocli", Unit: "ms", Margin: 0.5,
	})
	version := func(program string) (float64, error) {
		cmd := exec.Command(program)
		cmd.Env = []string{"CNI_COMMAND=VERSION"}
		return milliseconds(cmd)
	}
	const more = 10 // the difference is smaller than the noise of one
	for n := range more * p.times {
		with := func() (float64, error) { return version(stage + "/bin/ambi") }
		without := func() (float64, error) { return version(stage + "/tools/ambi-nocli") }
		if err := evenly(c, n, with, without); err != nil {
			return err
		}
	}
	return nil
}

// evenly measures both sides once, and has each be first every other time: what was
// just started leaves the machine in another state than what was not.
func evenly(c *comparison, n int, a, b func() (float64, error)) error {
	if n%2 == 0 {
		return inTurns(c, a, b)
	}
	right, err := b()
	if err != nil {
		return err
	}
	left, err := a()
	if err != nil {
		return err
	}
	c.add(left, right)
	return nil
}
