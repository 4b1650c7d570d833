package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// portsEach is how many ports a container of the full host publishes.
const portsEach = 10

// host is a host of its own in the world, with one container and one client.
type host struct{ name string }

func (h host) make() error {
	in := func(netns string, argv ...string) []string {
		return append([]string{"ip", "-n", netns}, argv...)
	}
	box, far := h.name+"-box", h.name+"-far"
	list := [][]string{
		{"ip", "netns", "add", h.name}, {"ip", "netns", "add", box}, {"ip", "netns", "add", far},
		in(h.name, "link", "add", "box0", "type", "veth", "peer", "name", "eth0", "netns", box),
		in(h.name, "link", "add", "far0", "type", "veth", "peer", "name", "eth0", "netns", far),
		in(h.name, "addr", "add", "10.88.0.1/16", "dev", "box0"), in(h.name, "addr", "add", "192.0.2.1/24", "dev", "far0"),
		in(box, "addr", "add", "10.88.0.2/16", "dev", "eth0"), in(far, "addr", "add", "192.0.2.2/24", "dev", "eth0"),
		{"ip", "netns", "exec", h.name, "sysctl", "-qw", "net.ipv4.ip_forward=1"},
	}
	for _, link := range [][2]string{{h.name, "lo"}, {h.name, "box0"}, {h.name, "far0"}, {box, "lo"}, {box, "eth0"}, {far, "lo"}, {far, "eth0"}} {
		list = append(list, in(link[0], "link", "set", link[1], "up"))
	}
	return steps(append(list, in(box, "route", "add", "default", "via", "10.88.0.1")))
}

// plugin is one call of a plugin that publishes ports, chained after one that gave
// the container its address.
func (h host) plugin(command string, program []string, kind, containerID, address string, ports []portMapping) *exec.Cmd {
	netns := "/run/netns/" + h.name + "-box"
	conf := netConf{
		"cniVersion": "1.0.0", "name": "cost", "type": kind, "capabilities": map[string]bool{"portMappings": true},
		"runtimeConfig": netConf{"portMappings": ports},
		"prevResult": netConf{
			"cniVersion": "1.0.0", "interfaces": []netConf{{"name": "eth0", "sandbox": netns}},
			"ips": []netConf{{"address": address + "/16", "gateway": "10.88.0.1", "interface": 0}},
		},
	}
	if kind == "ambi" {
		conf["stateDir"] = stage + "/state-" + h.name
	}
	argv := append([]string{"netns", "exec", h.name}, program...)
	return verb(exec.Command("ip", argv...), command, containerID, netns, conf)
}

func (h host) ambi(command, containerID, address string, ports []portMapping) *exec.Cmd {
	return h.plugin(command, []string{stage + "/bin/ambi"}, "ambi", containerID, address, ports)
}

// fullHost compares a host that has many ports published with one that has none.
func (p *costPlan) fullHost() error {
	full, empty := host{"full"}, host{"empty"}
	for _, h := range []host{full, empty} {
		if err := h.make(); err != nil {
			return err
		}
	}
	if err := p.seedHost(full); err != nil {
		return err
	}
	return p.compareHosts(full, empty)
}

// seedHost publishes ports of many containers by as many calls of ambi.
func (p *costPlan) seedHost(h host) error {
	begin := time.Now()
	for n := range p.seed {
		if n%100 == 0 {
			fmt.Fprintf(os.Stderr, "cost: full host: %d of %d containers after %s\n", n, p.seed, time.Since(begin).Round(time.Second))
		}
		address := fmt.Sprintf("10.88.%d.%d", 1+n/200, 1+n%200)
		if err := call(h.ambi("ADD", fmt.Sprintf("seed%d", n), address, mappings(10000+n*portsEach, portsEach))); err != nil {
			return err
		}
	}
	return nil
}

func (p *costPlan) compareHosts(full, empty host) error {
	present := fmt.Sprintf("%d containers × %d ports there", p.seed, portsEach)
	add := p.compare(comparison{Key: "one_more_add", Title: "ADD of one more container, 10 ports", Section: onFullHost, Subject: present, Other: "none is there", Unit: "ms", Target: 1.2})
	del := p.compare(comparison{Key: "one_more_del", Title: "DEL of it", Section: onFullHost, Subject: present, Other: "none is there", Unit: "ms", Target: 1.2})
	oneMore := func(h host, command string) func() (float64, error) {
		return func() (float64, error) {
			return milliseconds(h.ambi(command, "more", "10.88.0.2", mappings(9000, portsEach)))
		}
	}
	for range p.times {
		if err := inTurns(add, oneMore(full, "ADD"), oneMore(empty, "ADD")); err != nil {
			return err
		}
		if err := inTurns(del, oneMore(full, "DEL"), oneMore(empty, "DEL")); err != nil {
			return err
		}
	}
	return p.firstPackets(full, empty)
}

// publishedPort is the one that the first packets go through.
const publishedPort = 9100

func (p *costPlan) firstPackets(full, empty host) error {
	c := p.compare(comparison{
		Key: "first_packet", Title: "first UDP packet of a flow and its answer", Section: onFullHost,
		Subject: fmt.Sprintf("%d ports are published", p.seed*portsEach+1), Other: "1 port is", Unit: "µs", Target: 1.1,
	})
	for _, h := range []host{full, empty} {
		stop, err := h.serve()
		if err != nil {
			return err
		}
		defer stop()
	}
	for range 2 * p.times {
		if err := inTurns(c, full.firstPacket, empty.firstPacket); err != nil {
			return err
		}
	}
	return nil
}

// serve starts a server in the container and publishes it.
func (h host) serve() (func(), error) {
	server, err := start(exec.Command("ip", "netns", "exec", h.name+"-box", stage+"/bench", "serve", "-listen", fmt.Sprintf(":%d", servicePort)))
	if err != nil {
		return nil, err
	}
	err = call(h.ambi("ADD", "server", "10.88.0.2", []portMapping{{publishedPort, servicePort, "udp"}}))
	if err == nil {
		err = until("the published server", server, func() bool { _, err := h.firstPacket(); return err == nil })
	}
	if err != nil {
		server.kill()
		return nil, err
	}
	return server.kill, nil
}

func (h host) firstPacket() (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", h.name+"-far", stage+"/bench", "load", "first", "-number", "300",
		"-to", fmt.Sprintf("192.0.2.1:%d", publishedPort))
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("first packets on host %s: %w: %s", h.name, err, strings.TrimSpace(said.String()))
	}
	var found figures
	err = json.Unmarshal(out, &found)
	return found["p50_us"], err
}

// processes counts the programs that publishing starts, by strace(1).
func (p *costPlan) processes() error {
	h := host{"counted"}
	if err := h.make(); err != nil {
		return err
	}
	for _, n := range []int{1, 1000} {
		c := p.compare(comparison{
			Key: fmt.Sprintf("processes_%d", n), Title: fmt.Sprintf("programs started by ADD and DEL, ports: %d", n), Section: onProcesses,
			Subject: "ambi", Other: "portmap, iptables", Unit: "programs", None: true,
		})
		count, err := h.countPrograms(stage+"/bin/ambi", "ambi", n)
		if err != nil {
			return err
		}
		c.A.add(count, nil)
		if n == 1 { // with more it takes long, and starts more
			count, err = h.countPrograms(stage+"/tools/portmap", "portmap", n)
			c.B.add(count, err)
		}
	}
	return nil
}

func (h host) countPrograms(program, kind string, ports int) (float64, error) {
	count := 0
	for _, command := range []string{"ADD", "DEL"} {
		n, err := programs(h.plugin(command, []string{program}, kind, "counted", "10.88.0.2", mappings(10000, ports)))
		if err != nil {
			return 0, err
		}
		count += n - 2 // ip and the plugin itself
	}
	return float64(count), nil
}

// programs is how many programs run in a call, itself among them.
func programs(cmd *exec.Cmd) (int, error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return 0, err
	}
	trace := stage + "/trace"
	cmd.Args = append([]string{"strace", "-f", "-qq", "-e", "trace=execve", "-o", trace, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = strace
	if err := call(cmd); err != nil {
		return 0, err
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		return 0, err
	}
	count := 0
	for l := range strings.Lines(string(text)) {
		// What another thread's line cut in two is resumed.
		if (strings.Contains(l, "execve(") || strings.Contains(l, "execve resumed")) && strings.HasSuffix(l, "= 0\n") {
			count++
		}
	}
	return count, nil
}
