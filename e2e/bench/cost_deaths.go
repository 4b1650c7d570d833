package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/ambi-cni/ambi/e2e/deaths"
)

// What is killed comes back: how long it takes until all is there and works again for who begins
// then, while clients connect and ask (package deaths), and what the twin costs that does it.

// killsEach is how often each process is killed for each time that a comparison is made.
const killsEach = 3

func (p *costPlan) deaths() error {
	undo := stopper{}
	defer undo.stop()
	shared, err := p.sharedDeaths(&undo)
	if err != nil {
		return err
	}
	if err := p.backWithin(shared); err != nil {
		return err
	}
	root, err := rootDeaths(&undo)
	if err != nil {
		return err
	}
	return p.backWithin(root)
}

// backWithin enters a row for each process that is killed.
func (p *costPlan) backWithin(plan *deaths.Plan) error {
	plan.Rate, plan.Alone, plan.Pause = 33, true, time.Second
	victims := 2
	if plan.Hub != "" {
		victims = 3
	}
	plan.Kills, plan.Seed = killsEach*victims*p.times, uint64(time.Now().UnixNano())
	report, err := deaths.Run(*plan)
	if err != nil {
		return err
	}
	for _, who := range []string{deaths.Supervisor, deaths.Keeper, deaths.Driver, deaths.Server, deaths.Twin} {
		times, ok := report.Back[who]
		if !ok {
			continue
		}
		name := who
		if who == deaths.Server || who == deaths.Twin {
			name = "name server's " + who
		}
		c := p.compare(comparison{
			Key: "back_" + who, Title: "back within, " + name + " killed", Section: onDeaths, Unit: "ms", Limit: 1000,
			Subject: fmt.Sprintf("worst of %d", len(times)), Other: "median",
		})
		c.A.add(inMilliseconds(deaths.Worst(times)), nil)
		c.B.add(inMilliseconds(deaths.Median(times)), nil)
	}
	return nil
}

func inMilliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// keeperCost is what a keeper holds, and what ADD takes with and without one.
func (p *costPlan) keeperCost() error {
	undo := stopper{}
	defer undo.stop()
	c, err := newContainer()
	if err != nil {
		return err
	}
	undo.add(c.stop)
	m := member{c: c, binary: ambiBinary, network: "kept", private: true, ports: []portMapping{{3100, servicePort, "tcp"}}}
	undo.add(func() { _ = m.call("DEL") })
	if err := m.call("ADD"); err != nil {
		return err
	}
	time.Sleep(2 * time.Second) // they give memory back when they have settled
	row := p.compare(comparison{Key: "keeper_memory", Title: "private memory of an idle network", Section: onDeaths, Subject: "keeper", Other: "supervisor", Unit: "MB", Limit: 1.5})
	for _, side := range []struct {
		program string
		cell    *cell
	}{{"ambi-keeper", &row.A}, {"ambi", &row.B}} {
		held, err := settled(func() (memory, error) { return memoryOfName(side.program) })
		side.cell.add(held.Private, err)
	}
	if p.before == "" {
		return nil
	}
	// Of two files one on another kind of file system, or one that was written earlier, is at an
	// advantage.
	sides := []string{stage + "/ambi-now", stage + "/ambi-before"}
	for side, program := range []string{ambiBinary, p.before} {
		if err := step("cp", program, sides[side]); err != nil {
			return err
		}
	}
	add := p.compare(comparison{Key: "add_before", Title: "ADD of a private network with one port", Section: onDeaths, Subject: "ambi", Other: "ambi before", Unit: "ms", Margin: 3, Use: &use{}})
	for n := range p.times + 1 {
		var took [2]sample
		for turn := range 2 {
			side := (n + turn) % 2 // the kernel is still at work for the one before
			if took[side], err = addPrivate(sides[side]); err != nil {
				return err
			}
		}
		if n > 0 { // the programs are in memory
			add.addSamples(took[0], took[1])
		}
	}
	return nil
}

// memoryOfName is that of the processes with a name, of which two may be of one program.
func memoryOfName(name string) (sum memory, err error) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	for _, file := range names {
		if b, readErr := os.ReadFile(file); readErr == nil && string(b) == name+"\n" {
			err = errors.Join(err, sum.add(filepath.Dir(file)))
		}
	}
	return sum, err
}

// addPrivate times ADD of a private network.
func addPrivate(binary string) (sample, error) {
	undo := stopper{}
	defer undo.stop()
	c, err := newContainer()
	if err != nil {
		return sample{}, err
	}
	undo.add(c.stop)
	m := member{c: c, binary: binary, network: "alone", more: netConf{"network": "private"}, private: true, ports: []portMapping{{3000, servicePort, "tcp"}}}
	undo.add(func() { _ = m.call("DEL") })
	return m.spend("ADD")
}

// sharedDeaths is a network of two containers, with a server in one and one outside.
func (p *costPlan) sharedDeaths(undo *stopper) (*deaths.Plan, error) {
	peer := stage + "/tools/peer"
	var members []member
	for n := range 2 {
		c, err := newContainer()
		if err != nil {
			return nil, err
		}
		undo.add(c.stop)
		m := member{c: c, binary: ambiBinary, network: "mortal", number: 2 + n, more: netConf{"driver": "slirp4netns"}}
		if n == 0 {
			m.ports = []portMapping{{3001, servicePort, "tcp"}}
		}
		undo.add(func() { _ = m.call("DEL") })
		if err := m.call("ADD"); err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	for _, cmd := range []*exec.Cmd{
		members[0].c.inside(peer, "tcp", fmt.Sprintf(":%d", servicePort)),
		exec.Command("ip", "netns", "exec", neighbour, peer, "tcp", ":7000"),
	} {
		server, err := start(cmd)
		if err != nil {
			return nil, err
		}
		undo.add(server.stop)
	}
	sockets, err := filepath.Glob(fmt.Sprintf("/run/user/%d/ambi/mortal.*.hub/sock", userID))
	if err != nil || len(sockets) != 1 {
		return nil, fmt.Errorf("control sockets: %v %w", sockets, err)
	}
	outside := "/run/netns/" + neighbour
	published, service := hostAddress+":3001", fmt.Sprintf("%s.2:%d", betweenNetwork, servicePort)
	return &deaths.Plan{
		Hub: sockets[0],
		Connect: []deaths.Way{
			{Netns: outside, Addr: published, By: []string{deaths.Supervisor}},
			{Netns: members[0].c.netns(), Addr: "192.0.2.2:7000", By: []string{deaths.Driver}},
			{Netns: members[1].c.netns(), Addr: service},
		},
		Streams: []deaths.Way{{Netns: members[1].c.netns(), Addr: service}, {Netns: outside, Addr: published, By: []string{deaths.Supervisor}}},
	}, nil
}

// rootDeaths is a network of root's with a name server.
func rootDeaths(undo *stopper) (*deaths.Plan, error) {
	const network = "mortal"
	conf := ambiConf(network, netConf{"mode": "root", "bridge": netConf{"subnet": "10.77.0.0/24", "names": true}})
	for _, name := range []string{"one", "two"} {
		if err := step("ip", "netns", "add", name); err != nil {
			return nil, err
		}
		do := func(command string) error {
			cmd := verb(exec.Command(ambiBinary), command, name, "/run/netns/"+name, conf)
			cmd.Env = append(cmd.Env, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME="+name)
			return call(cmd)
		}
		undo.add(func() { _ = do("DEL"); _ = step("ip", "netns", "del", name) })
		if err := do("ADD"); err != nil {
			return nil, err
		}
	}
	return &deaths.Plan{
		Pair:      "/run/ambi/" + network + ".names/pair.json",
		Questions: []deaths.Question{{Netns: "/run/netns/two", Server: "10.77.0.1:53", Name: "one"}},
	}, nil
}
