package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The way out: what containers send to another host, and are sent by it, behind each
// driver in turns, and beside them without any namespace.

// outAddress is the server's, on the neighbour.
const outAddress = "192.0.2.2"

// way is one way out.
type way struct {
	name, about string
	programs    []string
	mtus        []int
	// up makes a container behind it and returns what a command inside begins with.
	up func(mtu int, undo *stopper) (runner []string, err error)
	to string // where the server is; empty: outAddress
}

var bothMTUs = []int{1500, 65520}

func ways() []way {
	return []way{
		{name: "ambi, relay", about: "rootless.driver relay, a shared network", programs: []string{"ambi"}, mtus: bothMTUs, up: ambiOut("relay")},
		{name: "ambi, slirp4netns", about: "rootless.driver slirp4netns, a shared network", programs: []string{"ambi", "slirp4netns"}, mtus: bothMTUs, up: ambiOut("slirp4netns")},
		{name: "slirp4netns", about: "by itself, --configure, sandbox and seccomp", programs: []string{"slirp4netns"}, mtus: bothMTUs, up: slirpOut},
		{name: "pasta", about: "--config-net", programs: []string{"passt", "pasta"}, mtus: bothMTUs, up: pastaOut},
		{name: "RootlessKit, slirp4netns", about: "--net=slirp4netns", programs: []string{"rootlesskit", "slirp4netns"}, mtus: bothMTUs, up: rootlesskitOut("slirp4netns")},
		{name: "RootlessKit, pasta", about: "--net=pasta", programs: []string{"rootlesskit", "passt", "pasta"}, mtus: bothMTUs, up: rootlesskitOut("pasta")},
		{name: "none", about: "the client on the host", mtus: bothMTUs, up: func(int, *stopper) ([]string, error) { return nil, nil }},
	}
}

// outRows are those of forwarders in other words.
func outRows() []row {
	rows := costlyRows()
	for i := range rows {
		rows[i].title = strings.NewReplacer(" up", " out", " down", " in").Replace(rows[i].title)
	}
	return rows
}

// costlyRows are those of loads, and the processor time, user and system, of all that forwards
// for them.
func costlyRows() []row {
	costs := map[string]row{
		"tcp_up":         {key: "tcp_up_cpu", title: "processor time of it per GiB", unit: "s", figure: "cpu_per_gib"},
		"tcp_down":       {key: "tcp_down_cpu", title: "processor time of it per GiB", unit: "s", figure: "cpu_per_gib"},
		"connections_1":  {key: "connections_1_cpu", title: "processor time per 1000 of them", unit: "s", figure: "cpu_per_1000"},
		"connections_16": {key: "connections_16_cpu", title: "processor time per 1000 of them", unit: "s", figure: "cpu_per_1000"},
		"udp_rr":         {key: "udp_rr_cpu", title: "processor time per 1000 of them", unit: "s", figure: "cpu_per_1000"},
	}
	var all []row
	for _, r := range loadRows() {
		all = append(all, r)
		if c, ok := costs[r.key]; ok {
			c.kind, c.args, c.lower, c.scale, c.repeat = r.kind, r.args, true, 1, r.repeat
			all = append(all, c)
		}
	}
	return all
}

func runOut(args []string) error {
	return runWays("run-out", args, ways(), paper{"out", "The way out: what containers send and are sent"}, serveFor)
}

// paper is a report's file and title.
type paper struct{ name, title string }

// serveFor starts the server on the neighbour.
func serveFor(undo *stopper) error {
	server, err := start(exec.Command("ip", "netns", "exec", neighbour, stage+"/bench", "serve", "-listen", fmt.Sprintf(":%d", servicePort)))
	if err == nil {
		undo.add(server.kill)
	}
	return err
}

// runWays measures ways in turns.
func runWays(command string, args []string, chosen []way, about paper, prepare func(*stopper) error) error {
	flags := flag.NewFlagSet(command, flag.ExitOnError)
	quick := flags.Bool("quick", false, "one short round, to see that everything works")
	only := flags.String("only", "", "comma-separated `names` of ways (parts of names will do)")
	keys := flags.String("rows", "", "comma-separated `keys` of rows, the same way")
	mtus := flags.String("mtus", "", "comma-separated `MTUs` of those that are measured")
	rounds := flags.Int("rounds", 5, "rounds; every way has its turn in each")
	window := window{warm: 250 * time.Millisecond, length: 700 * time.Millisecond}
	flags.DurationVar(&window.length, "time", window.length, "how long to measure a bulk transfer; the other rows half as long")
	flags.DurationVar(&window.warm, "warm", window.warm, "how long to go before, the same way")
	out := flags.String("out", "docs/bench", "`folder` for out.md and out.svg; empty for none")
	data := flags.String("data", "reports", "`folder` for out.json, every single figure; empty for none")
	_ = flags.Parse(args)
	if *quick {
		*rounds, window.warm, window.length = 1, 100*time.Millisecond, 300*time.Millisecond
	}
	p := plan{rounds: *rounds, window: window, rows: outRows(), holds: []row{outHold()}}
	if *only != "" {
		chosen = matching(chosen, *only, func(w way) string { return w.name })
	}
	if *keys != "" {
		p.rows = matching(p.rows, *keys, func(r row) string { return r.key })
		p.holds = matching(p.holds, *keys, func(r row) string { return r.key })
	}
	return inWorld(func() error {
		undo := stopper{}
		defer undo.stop()
		if err := prepare(&undo); err != nil {
			return err
		}
		return p.runWays(chosen, *mtus, about, *out, *data)
	})
}

func (p *plan) runWays(chosen []way, mtus string, about paper, out, data string) error {
	r := &report{
		Title: about.title, Machine: thisMachine(), Rounds: p.rounds, Subject: chosen[0].name, Limit: openFiles(),
		Window: fmt.Sprintf("%s after %s", p.window.length, p.window.warm),
	}
	for _, w := range chosen {
		r.Columns = append(r.Columns, &column{Name: w.name, About: w.about})
	}
	for _, mtu := range bothMTUs {
		if mtus != "" && !strings.Contains(","+mtus+",", fmt.Sprintf(",%d,", mtu)) {
			continue
		}
		s := &section{Key: fmt.Sprint(mtu), Title: fmt.Sprintf("MTU %d", mtu)}
		r.Sections = append(r.Sections, s)
		for round := range p.rounds {
			for n := range chosen {
				w := &chosen[(n+round)%len(chosen)]
				fmt.Fprintf(os.Stderr, "MTU %d, round %d of %d: %s\n", mtu, round+1, p.rounds, w.name)
				if err := p.turnOut(s, w, mtu); err != nil {
					fmt.Fprintf(os.Stderr, "  %s: %v\n", w.name, err)
					for _, row := range p.rows {
						s.line(row).cell(w.name).add(0, err)
					}
				}
			}
		}
	}
	pub := r.publication()
	pub.name, pub.title, pub.extract = about.name, about.title, nil
	return pub.publish(out, data)
}

func (p *plan) turnOut(s *section, w *way, mtu int) error {
	undo := stopper{}
	defer undo.stop()
	runner, err := w.up(mtu, &undo)
	if err != nil {
		return err
	}
	c := client{key: s.Key, address: cmp.Or(w.to, outAddress), runner: runner}
	i := &instance{forwarder: &forwarder{name: w.name, programs: w.programs}, port: servicePort}
	err = until(w.name+" leads out", nil, func() bool {
		_, err := c.measure(i, window{0, 100 * time.Millisecond}, "conn")
		return err == nil
	})
	if err != nil {
		return err
	}
	time.Sleep(300 * time.Millisecond)
	if len(w.programs) > 0 && w.to == "" {
		m, err := i.memory()
		s.line(idleRow()).cell(w.name).add(m.Resident, err)
		for _, row := range p.holds {
			p.holdOut(s.line(row).cell(w.name), i, c, row)
		}
	}
	p.loads(s, i, c)
	return nil
}

// outHold is as many connections as every way out has for one container.
func outHold() row {
	return row{key: "memory_connections", title: "resident memory, 1,000 idle TCP connections", unit: "MB", lower: true, kind: "hold", number: 1000}
}

// holdOut measures memory while connections are there, before anything else was.
func (p *plan) holdOut(in *cell, i *instance, c client, row row) {
	var m memory
	var memoryErr error
	_, err := c.held(i, row.kind, row.number, func() { m, memoryErr = i.memory() })
	in.add(m.Resident, cmp.Or(err, memoryErr))
}

// ambiOut is one ADD of ambi as the user.
func ambiOut(driver string) func(int, *stopper) ([]string, error) {
	return func(mtu int, undo *stopper) ([]string, error) {
		c, err := newContainer()
		if err != nil {
			return nil, err
		}
		undo.add(c.stop)
		conf := ambiConf("out", netConf{"rootless": netConf{"network": "shared", "driver": driver, "mtu": mtu}})
		run := func(command string) error {
			return call(verb(asUser(exec.Command(stage+"/bin/ambi")), command, "out", c.netns(), conf))
		}
		undo.add(func() { _ = run("DEL") })
		return enterAs(c.PID), run("ADD")
	}
}

// enterAs is what a command in the namespaces of a container's process begins with.
func enterAs(pid int) []string {
	return []string{"nsenter", "--user", "--net", "--preserve-credentials", "-t", fmt.Sprint(pid)}
}

func slirpOut(mtu int, undo *stopper) ([]string, error) {
	c, err := newContainer()
	if err != nil {
		return nil, err
	}
	undo.add(c.stop)
	s, err := startSlirp(c, fmt.Sprintf("--mtu=%d", mtu))
	if err != nil {
		return nil, err
	}
	undo.add(s.leave)
	return enterAs(c.PID), nil
}

func pastaOut(mtu int, undo *stopper) ([]string, error) {
	c, err := newContainer()
	if err != nil {
		return nil, err
	}
	undo.add(c.stop)
	p, err := start(asUser(exec.Command("pasta", "--foreground", "--quiet", "--config-net", "--no-map-gw", "-m", fmt.Sprint(mtu),
		"-t", "none", "-u", "none", "-T", "none", "-U", "none", fmt.Sprint(c.PID))))
	if err != nil {
		return nil, err
	}
	undo.add(p.stop)
	return enterAs(c.PID), nil
}

// rootlesskitOut has RootlessKit run something that sleeps, in whose namespaces the load is
// run.
func rootlesskitOut(network string) func(int, *stopper) ([]string, error) {
	return func(mtu int, undo *stopper) ([]string, error) {
		dir, err := userFolder(undo)
		if err != nil {
			return nil, err
		}
		p, err := start(asUser(exec.Command(stage+"/tools/rootlesskit", "--state-dir="+dir+"/state", "--net="+network, fmt.Sprintf("--mtu=%d", mtu),
			"--disable-host-loopback", "--copy-up=/etc", "sleep", "infinity")))
		if err != nil {
			return nil, err
		}
		undo.add(p.stop)
		var child int
		err = until("RootlessKit's child is there", p, func() bool {
			b, err := os.ReadFile(dir + "/state/child_pid")
			if err == nil {
				child, err = strconv.Atoi(strings.TrimSpace(string(b)))
			}
			return err == nil
		})
		return enterAs(child), err
	}
}

// processorTime is what all processes that run one of the programs have used, in seconds.
func processorTime(programs []string) (sum float64) {
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range links {
		program, err := os.Readlink(link)
		if err != nil || !isOneOf(filepath.Base(program), programs) {
			continue
		}
		b, err := os.ReadFile(filepath.Dir(link) + "/stat")
		if err != nil {
			continue
		}
		// proc_pid_stat(5): utime and stime are the 14th and 15th field, in 1/100 s.
		_, rest, _ := strings.Cut(string(b), ") ")
		fields := strings.Fields(rest)
		for _, f := range fields[11:13] {
			ticks, _ := strconv.ParseFloat(f, 64)
			sum += ticks / 100
		}
	}
	return sum
}

// spent adds to figures what the programs have used for them.
func spent(found figures, w window, seconds float64) {
	all := (w.warm + w.length).Seconds()
	if rate, ok := found["gbit_s"]; ok {
		found["cpu_per_gib"] = seconds / (rate * 1e9 / 8 * all / (1 << 30))
	}
	if rate, ok := found["per_s"]; ok {
		found["cpu_per_1000"] = seconds / (rate * all / 1000)
	}
}

// measureCost is measure with the processor time of the instance's programs.
func (c client) measureCost(i *instance, w window, kind string, args ...string) (figures, error) {
	before := processorTime(i.programs)
	found, err := c.measure(i, w, kind, args...)
	if err == nil && len(i.programs) > 0 {
		seconds := processorTime(i.programs) - before
		if isOneOf("bench", i.programs) {
			seconds += found["load_s"] // which has ended
		}
		spent(found, w, seconds)
	}
	return found, err
}
