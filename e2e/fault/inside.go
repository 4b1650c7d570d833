package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/fault/inject"
	"github.com/ambi-cni/ambi/e2e/lab"
	"github.com/ambi-cni/ambi/e2e/snapshot"
)

// job is what one machine is to do: count the system calls, or suffer the plan.
type job struct {
	Mode    string      `json:"mode"`
	Machine lab.Machine `json:"machine"`
	Plan    []*planned  `json:"plan"`
	// Settled is how long what is left may take to go; zero is the usual time.
	Settled time.Duration `json:"settled"`
}

// outcome is what came of a fault.
type outcome struct {
	planned
	Mode string      `json:"mode"`
	Hit  *inject.Hit `json:"hit"`           // nil: the moment never came
	Did  string      `json:"did,omitempty"` // what the verb did: succeeded, failed, crashed, was killed
	Said string      `json:"said,omitempty"`
	// Known is why a delegate left something behind that nobody else can know of; the
	// rest is then as it should be.
	Known string `json:"known,omitempty"`
	// Problem is what should not be: a leak, a hang, a false word. Empty when all is
	// well.
	Problem string `json:"problem,omitempty"`
}

// inside does a job that standard input describes, and prints its outcomes, one
// JSON document a line. It ends at the first problem: the machine is not as it was.
func inside() error {
	var j job
	if err := json.NewDecoder(os.Stdin).Decode(&j); err != nil {
		return err
	}
	if err := j.Machine.Furnish(); err != nil {
		return err
	}
	b, err := newBox(j.Mode, j.Settled)
	if err != nil {
		return err
	}
	// What is learnt about the host, and made once for all, is there from now on: also
	// by iptables, which ambi turns to when nftables fails.
	if usual := b.config; !rootless(j.Mode) {
		b.config += `,"portmap":{"backend":"iptables"}`
		if err := errors.Join(b.must("ADD"), b.must("DEL")); err != nil {
			return err
		}
		b.config = usual
	}
	// The built-in network keeps its locks, and the address that it gave out last, in the
	// state folder: also in the one that it uses when the first cannot be made.
	if usual := b.config; j.Mode == "built-in" {
		b.config += `,"stateDir":"/tmp/ambi-0"`
		if err := errors.Join(b.must("ADD"), b.must("DEL")); err != nil {
			return err
		}
		b.config = usual
	}
	for _, verb := range []string{"ADD", "CHECK", "DEL", "ADD", "GC"} {
		if err := b.must(verb); err != nil {
			return err
		}
	}
	out := json.NewEncoder(os.Stdout)
	if j.Plan == nil {
		c, err := b.count()
		if err != nil {
			return err
		}
		return out.Encode(c)
	}
	var usual time.Duration
	if slices.ContainsFunc(j.Plan, func(p *planned) bool { return p.Fault == nil }) {
		if usual, err = b.duration(); err != nil {
			return err
		}
	}
	before := b.everything()
	for _, p := range j.Plan {
		o := &outcome{planned: *p, Mode: j.Mode}
		if err := b.sufferBeside(o, before, usual); err != nil {
			o.Problem = err.Error()
			o.Known = o.knownLeak()
		}
		if err := out.Encode(o); err != nil || o.Problem != "" {
			return err
		}
	}
	return nil
}

// must calls a verb that has to succeed.
func (b *box) must(verb string) error {
	r, err := b.verb(verb)
	if err == nil && r.Exit != 0 {
		err = fmt.Errorf("status %d: %s%s", r.Exit, r.Out, r.Stderr)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	return nil
}

// count counts the system calls of every verb.
func (b *box) count() (counts, error) {
	c := counts{}
	err := b.countAll(c, "")
	if b.mate == nil || err != nil {
		return c, err
	}
	if err := b.mate.must("ADD"); err != nil {
		return nil, err
	}
	return c, errors.Join(b.countAll(c, besideMark), b.mate.must("DEL"))
}

func (b *box) countAll(c counts, mark string) error {
	for _, verb := range []string{"ADD", "CHECK", "DEL", "ADD", "GC"} {
		r, err := b.traced(verb, nil)
		if err == nil && r.Exit != 0 {
			err = fmt.Errorf("status %d: %s%s", r.Exit, r.Out, r.Stderr)
		}
		if err != nil {
			return fmt.Errorf("%s, traced: %w", verb+mark, err)
		}
		c[verb+mark] = r.report.Counts
		maps.DeleteFunc(c[verb+mark], func(role string, _ map[string]int) bool { return ofTests(role) })
	}
	return nil
}

// duration is how long an ADD takes here, the median of some.
func (b *box) duration() (time.Duration, error) {
	var took []time.Duration
	for range 5 {
		started := time.Now()
		if err := b.must("ADD"); err != nil {
			return 0, err
		}
		took = append(took, time.Since(started))
		if err := b.must("DEL"); err != nil {
			return 0, err
		}
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

// sufferBeside has a fault happen, in the company that is planned. The error is the
// problem.
func (b *box) sufferBeside(o *outcome, before snapshot.Snapshot, usual time.Duration) error {
	if !o.Beside {
		return b.suffer(o, before, usual)
	}
	if err := b.mate.must("ADD"); err != nil {
		return fmt.Errorf("the mate: %w", err)
	}
	hub := supervisors()
	if err := b.suffer(o, b.everything(), usual); err != nil {
		return err
	}
	if !hubDied(hub) {
		if err := b.mate.healthy(); err != nil {
			return fmt.Errorf("the mate noticed: %w", err)
		}
	}
	if err := b.mate.must("DEL"); err != nil {
		return fmt.Errorf("the mate: %w", err)
	}
	if left := snapshot.Await(b.settled, before, b.everything); left != "" {
		return fmt.Errorf("left behind when the mate had gone, too (- before, + now):\n%s", left)
	}
	return nil
}

// hubDied says whether the fault has ended a supervisor of before.
func hubDied(before []int) bool {
	return slices.ContainsFunc(before, func(pid int) bool { return zombie(pid) || inject.RoleOf(pid) != "supervisor" })
}

func supervisors() []int {
	return slices.DeleteFunc(daemons(), func(pid int) bool { return inject.RoleOf(pid) != "supervisor" })
}

// suffer has a fault happen, cleans up as planned, and compares. The error is the
// problem.
func (b *box) suffer(o *outcome, before snapshot.Snapshot, usual time.Duration) error {
	hub := supervisors()
	same := func(when string) error {
		if o.Beside && hubDied(hub) {
			return nil // and with it all that the mate had
		}
		if left := snapshot.Await(b.settled, before, b.everything); left != "" {
			return fmt.Errorf("left behind %s (- before, + now):\n%s", when, left)
		}
		return nil
	}
	var held snapshot.Snapshot
	if o.Verb != "ADD" {
		if err := b.must("ADD"); err != nil {
			return err
		}
		if o.Verb == "CHECK" {
			held = b.everything()
		}
	}
	r, err := b.strike(o, usual)
	if err != nil {
		return fmt.Errorf("%s %w", o.Verb, err)
	}
	switch {
	case o.Verb == "ADD" && o.Did == "failed":
		// It may say that it could not take everything back; DEL has to, then.
		if strings.Contains(o.Said, "taking back what was done failed") {
			break
		}
		if err := same("by an ADD that said it failed: " + o.Said); err != nil {
			return err
		}
	case o.Verb == "ADD" && o.Did == "succeeded" && o.signalled("supervisor"):
		// A daemon that got its signal when ADD was as good as done.
	case o.Verb == "ADD" && o.Did == "succeeded":
		if err := b.healthy(); err != nil {
			return fmt.Errorf("ADD said it succeeded: %w", err)
		}
	case o.Verb == "CHECK":
		if strings.HasPrefix(o.action(), "SIG") {
			break // a supervisor may have got it
		}
		if left := snapshot.Await(b.settled, held, b.everything); left != "" {
			return fmt.Errorf("changed by CHECK (- before, + now):\n%s", left)
		}
	case o.Did == "succeeded" && o.foreign():
		// A delegate that could not do its work and kept it to itself. Nobody can know,
		// but calling DEL again, with the same result, has to mend it.
		if left := snapshot.Await(glance, before, b.everything); left != "" {
			o.Said = "kept to itself that it left behind: " + left
			o.After = "DEL"
		}
	case o.Did == "succeeded":
		if err := same("by a " + o.Verb + " that said it succeeded"); err != nil {
			return fmt.Errorf("%w%s", err, r.Stderr)
		}
	}
	if err := b.cleanUp(o); err != nil {
		return err
	}
	return same("after " + o.After)
}

// cleanUp calls what is planned for after the fault. It has to succeed.
func (b *box) cleanUp(o *outcome) error {
	if o.After != "ADD" {
		return b.must(o.After)
	}
	if o.Did != "succeeded" {
		// Unless the verb was killed when everything was done, which the caller cannot
		// know: then ADD says so.
		r, err := b.verb("ADD")
		if err != nil {
			return err
		}
		if msg, said := r.Error(); r.Exit != 0 && (!said || !strings.Contains(msg, "exists already")) {
			return fmt.Errorf("the second ADD: status %d: %s%s", r.Exit, r.Out, r.Stderr)
		}
		if r.Exit != 0 {
			return b.must("DEL")
		}
		if err := b.healthy(); err != nil {
			return fmt.Errorf("the second ADD said it succeeded: %w", err)
		}
	}
	return b.must("DEL")
}

// healthy waits until CHECK is content: a supervisor restarts a driver that died.
func (b *box) healthy() error {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := b.must("CHECK")
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// strike runs the verb with its fault, and notes what came of it.
func (b *box) strike(o *outcome, usual time.Duration) (*result, error) {
	var r *result
	var err error
	if o.Fault != nil {
		r, err = b.traced(o.Verb, o.Fault)
	} else {
		r, err = b.timed(o, usual)
	}
	if err != nil {
		return r, err
	}
	if r.report != nil {
		o.Hit = r.report.Hit
	}
	msg, said := r.Error()
	switch {
	case r.Exit == 0:
		o.Did = "succeeded"
	case said:
		o.Did, o.Said = "failed", msg
	case r.Exit == 128+int(unix.SIGKILL) || r.Exit == 128+int(unix.SIGTERM):
		o.Did = "was killed"
	default:
		o.Did, o.Said = "crashed", fmt.Sprintf("status %d: %.200s%.400s", r.Exit, r.Out, r.Stderr)
	}
	return r, nil
}

// timed sends a signal by the clock.
func (b *box) timed(o *outcome, usual time.Duration) (*result, error) {
	return b.run(o.Verb, b.prepare(o.Verb), func(pid int) {
		time.Sleep(time.Duration(o.Moment * float64(usual))) // the moment to be tested, not a wait
		target := pid
		if o.Group {
			target = -pid
		}
		if syscall.Kill(target, unix.SignalNum(o.Signal)) == nil && !zombie(pid) {
			o.Hit = &inject.Hit{Pid: pid, Call: "with the record being " + recordState()}
		}
	})
}

func zombie(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Contains(string(stat), ") Z ")
}

var stateOf = regexp.MustCompile(`"state":"(\w+)"`)

// recordState says how far ADD got, for the report.
func recordState() string {
	for _, dir := range []string{"/run/ambi", lab.RuntimeDir + "/ambi"} {
		files, _ := filepath.Glob(dir + "/*.json")
		for _, f := range files {
			text, _ := os.ReadFile(f)
			if m := stateOf.FindSubmatch(text); m != nil {
				return string(m[1])
			}
		}
	}
	return "absent"
}

var errNoOutcome = errors.New("the machine ended without an outcome")
