package deaths

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Report is what came of it.
type Report struct {
	Seed    uint64
	Back    map[string][]time.Duration // by who was killed: until all is there and works again
	Clients string
	// Before and After are what the processes have, when nobody wants anything.
	Before, After Holding
}

// Holding is what the processes have together.
type Holding struct {
	Files, PrivateKB int
}

// Run kills, and returns what came of it; an error says what may not be.
func Run(p Plan) (*Report, error) {
	c := &clients{plan: &p}
	r := &Report{Seed: p.Seed, Back: map[string][]time.Duration{}}
	random := p.random()
	there, err := p.all()
	if err != nil {
		return nil, err
	}
	blows := p.blows(there)
	// Whoever began with the network has another history than those that follow.
	for _, victim := range blows {
		if len(victim) == 1 && p.Kills > 0 {
			if _, err := c.strike(victim); err != nil {
				return nil, err
			}
		}
	}
	if r.Before, err = p.holding(); err != nil {
		return nil, err
	}
	c.start()
	for _, argv := range p.Commands {
		if err := c.command(argv, r); err != nil {
			c.fault("%v", err)
			break
		}
	}
	for range p.Kills {
		blow := blows[random.IntN(len(blows))]
		if err := c.round(random, blow, r); err != nil {
			c.fault("killing %v: %v", blow, err)
			break
		}
	}
	c.stop()
	r.Clients = c.String()
	if p.Kills == 0 {
		r.After, err = p.holding()
	} else {
		r.After, err = p.flat(r.Before)
	}
	if err != nil {
		c.fault("%v", err)
	}
	if len(c.faults) > 0 {
		const shown = 10
		if more := len(c.faults) - shown; more > 0 {
			c.faults = append(c.faults[:shown], fmt.Sprintf("and %d more", more))
		}
		return r, errors.New(strings.Join(c.faults, "\n"))
	}
	return r, nil
}

// command runs one among clients.
func (c *clients) command(argv []string, r *Report) error {
	const before = 500 * time.Millisecond
	time.Sleep(before)
	began := time.Now()
	c.mu.Lock()
	c.kills = append(c.kills, kill{[]string{Upgrade}, began})
	c.mu.Unlock()
	said, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%q: %w: %s", argv, err, said)
	}
	if err := c.works(); err != nil {
		return err
	}
	who := strings.Join(argv, " ")
	r.Back[who] = append(r.Back[who], time.Since(began))
	return nil
}

// round strikes once, at some moment.
func (c *clients) round(random *rand.Rand, blow []string, r *Report) error {
	time.Sleep(time.Duration(random.Int64N(int64(c.plan.Pause) + 1)))
	back, err := c.strike(blow)
	if err == nil {
		who := strings.Join(blow, "+")
		r.Back[who] = append(r.Back[who], back)
	}
	return err
}

// strike kills, and returns how long it took until everybody was there again and all worked.
func (c *clients) strike(victims []string) (back time.Duration, err error) {
	there, err := c.plan.all()
	if err != nil {
		return 0, err
	}
	k := kill{victims, time.Now()}
	c.mu.Lock()
	c.kills = append(c.kills, k)
	c.mu.Unlock()
	for _, v := range victims {
		if err := unix.Kill(there[v], unix.SIGKILL); err != nil {
			return 0, fmt.Errorf("killing the %s: %w", v, err)
		}
	}
	for _, v := range victims {
		for lives(there[v]) { // or it would be taken for one that is there
			time.Sleep(100 * time.Microsecond)
		}
	}
	if err := c.works(); err != nil {
		return 0, err
	}
	return time.Since(k.at), nil
}

// works returns when all ways work for somebody who begins now, and everybody is there.
func (c *clients) works() error {
	var probes sync.WaitGroup
	errs := make([]error, len(c.plan.Connect)+len(c.plan.Questions)+1)
	for i, w := range c.plan.Connect {
		probes.Go(func() { errs[i] = until(func() error { return greeted(w) }) })
	}
	for i, q := range c.plan.Questions {
		probes.Go(func() { errs[len(c.plan.Connect)+i] = until(func() error { return answered(q, probeTime) }) })
	}
	probes.Go(func() { _, errs[len(errs)-1] = c.plan.all() })
	probes.Wait()
	return errors.Join(errs...)
}

// probeTime is how long one probe lives, and probePause after what another one begins beside it.
const (
	probeTime  = 10 * time.Second
	probePause = 20 * time.Millisecond
)

// until tries again and again, whatever becomes of the tries before, until one succeeds.
func until(try func() error) error {
	done := make(chan error)
	over := make(chan struct{})
	defer close(over)
	var last error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		go func() {
			err := try()
			select {
			case done <- err:
			case <-over:
			}
		}()
		for pause := time.After(probePause); pause != nil; {
			select {
			case last = <-done:
				if last == nil {
					return nil
				}
			case <-pause:
				pause = nil
			}
		}
	}
	return fmt.Errorf("it does not work again: %w", last)
}

func greeted(w Way) error {
	conn, err := dial(w.Netns, "tcp", w.Addr, probeTime)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(probeTime))
	_, err = conn.Read(make([]byte, 100))
	return err
}

// holding looks at all of them, but for a pasta, which has a store of sockets and pipes.
func (p *Plan) holding() (h Holding, err error) {
	there, err := p.all()
	for _, pid := range there {
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.HasPrefix(string(comm), "pas") {
			continue
		}
		files, readErr := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		err = errors.Join(err, readErr)
		h.Files += len(files)
		h.PrivateKB += private(pid)
	}
	return h, err
}

// private is the memory that a process has for itself, in KiB (proc_pid_smaps(5)).
func private(pid int) (sum int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(b)) {
		var n int
		for _, field := range []string{"Private_Clean:", "Private_Dirty:"} {
			if rest, ok := strings.CutPrefix(line, field); ok {
				_, _ = fmt.Sscan(rest, &n)
				sum += n
			}
		}
	}
	return sum
}

// flat waits until they have no more than before, but for what a runtime keeps for itself.
func (p *Plan) flat(before Holding) (now Holding, err error) {
	const files, memory = 4, 4 << 10 // KiB
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		if now, err = p.holding(); err != nil {
			return now, err
		}
		if now.Files <= before.Files+files && now.PrivateKB <= before.PrivateKB+memory {
			return now, nil
		}
		if time.Now().After(deadline) {
			return now, fmt.Errorf("what the processes have has grown: %+v, and %+v before", now, before)
		}
	}
}

// Worst and Median are of sorted or unsorted times.
func Worst(times []time.Duration) time.Duration { return slices.Max(times) }

// Median is the lower one of two.
func Median(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[(len(sorted)-1)/2]
}

func (c *clients) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%d connections, the longest wait %d ms (%s); %d were cut with who carried them; streams %d MB; %d names, %d asked for twice",
		c.connects, c.waited.Milliseconds(), c.slowest, c.broken, c.bytes>>20, c.names, c.retried)
}

func (r *Report) String() string {
	var b strings.Builder
	var all []time.Duration
	for _, times := range r.Back {
		all = append(all, times...)
	}
	var who []string
	for name := range r.Back {
		who = append(who, name)
	}
	slices.Sort(who)
	for _, name := range who {
		fmt.Fprintf(&b, "%s, %d times: back within %d ms (median), %d ms (worst)\n", name, len(r.Back[name]), Median(r.Back[name]).Milliseconds(), Worst(r.Back[name]).Milliseconds())
	}
	if len(all) > 0 {
		fmt.Fprintf(&b, "all %d: back within %d ms (median), %d ms (worst)\n", len(all), Median(all).Milliseconds(), Worst(all).Milliseconds())
	}
	fmt.Fprintf(&b, "%s\nfiles %d before, %d after; private memory %d KiB before, %d KiB after\n", r.Clients, r.Before.Files, r.After.Files, r.Before.PrivateKB, r.After.PrivateKB)
	return b.String()
}
