package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The built-in network beside the plugins that make the same, and beside the limit: ip(8)
// with nothing but the links, addresses and routes.

// maker attaches the container box, and takes it off again.
type maker struct {
	name     string
	add, del func() []*exec.Cmd
	host     string // network namespace that the programs start in; empty: the world's
}

// byCnitool is a network of cnitool's with so many published ports.
func byCnitool(name, network string, ports int) maker {
	one := func(verb string) func() []*exec.Cmd {
		return func() []*exec.Cmd { return []*exec.Cmd{cnitool(verb, network, ports)} }
	}
	return maker{name: name, add: one("add"), del: one("del")}
}

// byItself is one call of ambi for a network of cnitool's.
func byItself(network string) maker {
	one := func(command string) func() []*exec.Cmd {
		return func() []*exec.Cmd {
			return []*exec.Cmd{verb(exec.Command(stage+"/bin/ambi"), command, "itself", box, ambiConf(network, builtInConf(network)))}
		}
	}
	return maker{name: "ambi", add: one("ADD"), del: one("DEL")}
}

// byIP is the least that can be done by programs: the same interfaces on the same
// bridge, and no firewall, no book of addresses, no record.
func byIP(bridge, prefix string) maker {
	batch := func(netns []string, lines ...string) *exec.Cmd {
		cmd := exec.Command("ip", append(netns, "-batch", "-")...)
		cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
		return cmd
	}
	return maker{name: "ip -batch", add: func() []*exec.Cmd {
		return []*exec.Cmd{
			batch(nil,
				"link add limit address 02:00:00:00:00:01 mtu 1500 master "+bridge+" type veth peer name eth0 address 02:00:00:00:00:02 mtu 1500 netns box",
				"link set limit alias limit", "link set limit up type bridge_slave hairpin on"),
			batch([]string{"-n", "box"},
				"link set lo up", "address add "+prefix+".200/24 brd + dev eth0", "link set eth0 up", "route add default via "+prefix+".1 dev eth0"),
		}
	}, del: func() []*exec.Cmd { return []*exec.Cmd{exec.Command("ip", "link", "delete", "limit")} }}
}

// sample is what a call took, in milliseconds.
type sample struct{ wall, processor float64 }

// spend runs programs one after the other. Their processor time is also that of the
// programs which they started and waited for.
func (m maker) spend(cmds []*exec.Cmd) (s sample, err error) {
	err = m.there(func() error {
		begin := time.Now()
		for _, cmd := range cmds {
			if err := call(cmd); err != nil {
				return err
			}
			used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			s.processor += float64(used.Nanoseconds()) / 1e6
		}
		s.wall = float64(time.Since(begin).Nanoseconds()) / 1e6
		return nil
	})
	return s, err
}

func (m maker) programs(cmds []*exec.Cmd) (count int, err error) {
	err = m.there(func() error {
		for _, cmd := range cmds {
			n, err := programs(cmd)
			if err != nil {
				return err
			}
			count += n
		}
		return nil
	})
	return count, err
}

func (m maker) there(f func() error) error {
	if m.host == "" {
		return f()
	}
	return inNetns(m.host, f)
}

// addSamples enters one figure of each side with its processor time.
func (c *comparison) addSamples(a, b sample) {
	c.add(a.wall, b.wall)
	c.Use.ProcessorA.add(a.processor, nil)
	c.Use.ProcessorB.add(b.processor, nil)
}

// side is one comparison of two makers, ADD and DEL.
type side struct {
	key, title       string
	a, b             maker
	add, del, margin float64 // targets: ratios, and a difference in ms for ADD
}

func (p *costPlan) builtIn() error {
	if err := p.makeBox(); err != nil {
		return err
	}
	if err := writeBuiltIn(); err != nil {
		return err
	}
	// With a container that stays, the bridge stays.
	for _, argv := range [][]string{{"ip", "netns", "add", "mate"}, {"ip", "netns", "exec", "mate", "ip", "link", "set", "lo", "up"}} {
		if err := step(argv...); err != nil {
			return err
		}
	}
	mate := cnitool("add", "builtin", 0)
	mate.Args[len(mate.Args)-1] = "/run/netns/mate"
	if err := call(mate); err != nil {
		return err
	}
	plain, port := byCnitool("ambi", "builtin", 0), byCnitool("ambi", "builtin", 1)
	plugins := byCnitool("bridge + host-local + firewall", "plugins", 0)
	for _, s := range []side{
		{"builtin", "no ports", plain, plugins, 0.35, 0.6, 0},
		{"builtin_port", "1 port", port, byCnitool("bridge + host-local + portmap, iptables", "portmapped", 1), 0.30, 0.6, 0},
		{"builtin_limit", "no ports, without cnitool", byItself("builtin"), byIP("builtin", builtInNets["builtin"]), 0, 0, 5},
		{"builtin_only", "the only container, which the bridge comes and goes with", byCnitool("ambi", "alone", 0), plugins, 0, 0.6, 0},
	} {
		if err := p.sides(p.times, s); err != nil {
			return err
		}
	}
	return p.crowd()
}

// builtInNets are the first three bytes of the networks' subnets. The bridges have
// their names.
var builtInNets = map[string]string{"builtin": "10.76.1", "alone": "10.76.2", "plugins": "10.76.3", "portmapped": "10.76.4"}

func builtInConf(name string) netConf {
	return netConf{"bridge": netConf{"name": name, "subnet": builtInNets[name] + ".0/24"}}
}

func writeBuiltIn() error {
	for name, prefix := range builtInNets {
		plugins := []netConf{ambiConf(name, builtInConf(name))}
		bridge := netConf{
			"type": "bridge", "bridge": name, "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
			"ipam": netConf{"type": "host-local", "subnet": prefix + ".0/24"},
		}
		switch name {
		case "plugins":
			plugins = []netConf{bridge, {"type": "firewall"}}
		case "portmapped":
			plugins = []netConf{bridge, withPorts(netConf{"type": "portmap", "backend": "iptables", "snat": true})}
		}
		if err := writeConflist(stage+"/networks", name, plugins); err != nil {
			return err
		}
	}
	return nil
}

// sides makes the comparison. The first time does not count: it makes what stays.
func (p *costPlan) sides(times int, s side) error {
	enter := func(key, verb string, target, margin float64) *comparison {
		return p.compare(comparison{Key: s.key + key, Title: verb + ": " + s.title, Section: builtInNetwork, Subject: s.a.name, Other: s.b.name, Unit: "ms", Target: target, Margin: margin, Use: &use{}})
	}
	add, del := enter("_add", "ADD", s.add, s.margin), enter("_del", "DEL", s.del, 0)
	for n := range times + 1 {
		var adds, dels [2]sample
		for i := range 2 {
			i = (i + n) % 2 // nobody is always first
			m := []maker{s.a, s.b}[i]
			var err error
			if adds[i], err = m.spend(m.add()); err != nil {
				return err
			}
			if dels[i], err = m.spend(m.del()); err != nil {
				return err
			}
		}
		if n > 0 {
			add.addSamples(adds[0], adds[1])
			del.addSamples(dels[0], dels[1])
		}
	}
	return countPrograms(s, add.Use, del.Use)
}

func countPrograms(s side, add, del *use) (err error) {
	for _, count := range []struct {
		m    maker
		cmds func() []*exec.Cmd
		into *int
	}{{s.a, s.a.add, &add.ProgramsA}, {s.a, s.a.del, &del.ProgramsA}, {s.b, s.b.add, &add.ProgramsB}, {s.b, s.b.del, &del.ProgramsB}} {
		if *count.into, err = count.m.programs(count.cmds()); err != nil {
			return err
		}
	}
	return nil
}

// crowdSize is the number of the container whose ADD is compared with that of number 2.
const crowdSize = 1000

// crowd compares two hosts that have one built-in network each: on the bridge of one
// there is a crowd, on that of the other one container.
func (p *costPlan) crowd() error {
	size := min(crowdSize, p.seed)
	for name, members := range map[string]int{"crowded": size - 1, "lone": 1} {
		if err := seedBridge(name, members); err != nil {
			return err
		}
	}
	one := func(name, host string) maker {
		verb := func(command string) func() []*exec.Cmd {
			return func() []*exec.Cmd { return []*exec.Cmd{builtInVerb(command, host, "more", "box", "eth0")} }
		}
		return maker{name, verb("ADD"), verb("DEL"), host}
	}
	return p.sides(2*p.times, side{
		key: "crowd", title: "one more container on a bridge, without cnitool",
		a: one(fmt.Sprintf("number %d", size), "crowded"), b: one("number 2", "lone"), add: 1.2,
	})
}

// seedBridge makes a host and puts containers on its bridge. They are interfaces of one
// namespace, since a namespace takes longer than its interface, and say nothing by
// themselves: what a thousand new interfaces with IPv6 tell each other lasts longer than
// the measurement.
func seedBridge(name string, members int) error {
	inside := name + "-members"
	if err := steps([][]string{{"ip", "netns", "add", name}, {"ip", "-n", name, "link", "set", "lo", "up"}, {"ip", "netns", "add", inside},
		{"ip", "netns", "exec", inside, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"}}); err != nil {
		return err
	}
	return inNetns(name, func() error {
		begin := time.Now()
		for n := range members {
			if n%100 == 99 {
				fmt.Fprintf(os.Stderr, "cost: built-in: %d of %d containers after %s\n", n+1, members, time.Since(begin).Round(time.Second))
			}
			if err := call(builtInVerb("ADD", name, fmt.Sprintf("seed%d", n), inside, fmt.Sprintf("eth%d", n))); err != nil {
				return err
			}
		}
		return nil
	})
}

// builtInVerb is a call of ambi for the built-in network of a host.
func builtInVerb(command, host, containerID, netns, ifName string) *exec.Cmd {
	conf := ambiConf("crowd", netConf{"stateDir": stage + "/state-" + host, "bridge": netConf{"subnet": "10.75.0.0/16"}})
	cmd := verb(exec.Command(stage+"/bin/ambi"), command, containerID, "/run/netns/"+netns, conf)
	cmd.Env = append(cmd.Env, "CNI_IFNAME="+ifName)
	return cmd
}

// inNetns has programs that f starts begin in a network namespace.
func inNetns(name string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // which ends with this goroutine
		netns, err := os.Open("/run/netns/" + name)
		if err == nil {
			defer netns.Close()
			err = unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
