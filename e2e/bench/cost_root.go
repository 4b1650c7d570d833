package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// conflist is a network that cnitool adds and deletes.
type conflist struct {
	name    string
	subnet  int
	plugins func(bridge netConf) []netConf
}

func withPorts(c netConf) netConf {
	c["capabilities"] = map[string]bool{"portMappings": true}
	return c
}

// The networks of the comparisons; each has a bridge of its own.
var conflists = []conflist{
	{"direct", 1, func(b netConf) []netConf { return []netConf{b, {"type": "firewall"}} }},
	{"delegated", 2, func(b netConf) []netConf {
		return []netConf{{"type": "ambi", "delegates": []netConf{b, {"type": "firewall"}}}}
	}},
	{"ambi", 3, func(b netConf) []netConf { return []netConf{b, withPorts(netConf{"type": "ambi"})} }},
	{"iptables", 4, func(b netConf) []netConf {
		return []netConf{b, withPorts(netConf{"type": "portmap", "backend": "iptables", "snat": true})}
	}},
	{"nftables", 5, func(b netConf) []netConf {
		return []netConf{b, withPorts(netConf{"type": "portmap", "backend": "nftables", "snat": true})}
	}},
}

// writeConflists writes them where cnitool looks.
func writeConflists() error {
	for _, c := range conflists {
		bridge := netConf{
			"type": "bridge", "bridge": fmt.Sprintf("bench%d", c.subnet), "isGateway": true, "ipMasq": true,
			"ipam": netConf{"type": "host-local", "subnet": fmt.Sprintf("10.77.%d.0/24", c.subnet)},
		}
		if err := writeConflist(stage+"/networks", c.name, c.plugins(bridge)); err != nil {
			return err
		}
	}
	return nil
}

func writeConflist(dir, name string, plugins []netConf) error {
	text, err := json.Marshal(netConf{"cniVersion": "1.0.0", "name": name, "plugins": plugins})
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name+".conflist"), text, 0o644))
}

const box = "/run/netns/box"

// cnitool calls it for the container box; ports are published one to one.
func cnitool(verb, network string, ports int) *exec.Cmd {
	cmd := exec.Command(stage+"/tools/cnitool", verb, network, box)
	cmd.Env = append(os.Environ(), "NETCONFPATH="+stage+"/networks", "CNI_PATH="+stage+"/bin:"+stage+"/tools")
	if ports > 0 {
		args, err := json.Marshal(netConf{"portMappings": mappings(10000, ports)})
		if err != nil {
			panic(err) // our own structures
		}
		cmd.Env = append(cmd.Env, "CAP_ARGS="+string(args))
	}
	return cmd
}

func mappings(first, n int) []portMapping {
	list := make([]portMapping, n)
	for i := range list {
		list[i] = portMapping{first + i, first + i, "tcp"}
	}
	return list
}

// life is one container's: how long its begin and its end took.
type life func() (begin, end float64, err error)

// cnitoolLife is one ADD and one DEL of a network with so many ports.
func cnitoolLife(network string, ports int) life {
	return func() (add, del float64, err error) {
		add, err = milliseconds(cnitool("add", network, ports))
		var delErr error
		del, delErr = milliseconds(cnitool("del", network, ports))
		return add, del, errors.Join(err, delErr)
	}
}

// lives compares two of them, begin and end. The first time, which makes bridges and
// chains, does not count.
func lives(times int, begin, end *comparison, a, b life) error {
	for n := range times + 1 {
		beginA, endA, err := a()
		if err != nil {
			return err
		}
		beginB, endB, err := b()
		if err != nil {
			return err
		}
		if n > 0 {
			begin.add(beginA, beginB)
			end.add(endA, endB)
		}
	}
	return nil
}

func (p *costPlan) pair(times int, key, title, subject, other string, target float64, a, b life) error {
	add := p.compare(comparison{Key: key + "_add", Title: "ADD: " + title, Section: asRoot, Subject: subject, Other: other, Unit: "ms", Target: target})
	del := p.compare(comparison{Key: key + "_del", Title: "DEL: " + title, Section: asRoot, Subject: subject, Other: other, Unit: "ms", Target: target})
	return lives(times, add, del, a, b)
}

func (p *costPlan) delegation() error {
	if err := p.makeBox(); err != nil {
		return err
	}
	return p.pair(p.times, "delegates", "bridge and firewall, no ports", "as delegates of ambi", "run by cnitool", 1.10, cnitoolLife("delegated", 0), cnitoolLife("direct", 0))
}

// makeBox makes the conflists and the container, once for all parts that need them.
func (p *costPlan) makeBox() error {
	if p.haveBox {
		return nil
	}
	p.haveBox = true
	if err := writeConflists(); err != nil {
		return err
	}
	return step("ip", "netns", "add", "box")
}

func (p *costPlan) ports() error {
	if err := p.makeBox(); err != nil {
		return err
	}
	for _, c := range []struct {
		times         int
		key, title    string
		subject, peer string
		target        float64
		a, b          life
	}{
		{p.times, "portmap_iptables", "bridge, 1 port", "ambi", "portmap, iptables", 0.75, cnitoolLife("ambi", 1), cnitoolLife("iptables", 1)},
		{p.times, "portmap_nftables", "bridge, 1 port", "ambi", "portmap, nftables", 0.85, cnitoolLife("ambi", 1), cnitoolLife("nftables", 1)},
		{p.times, "ports_100", "bridge and ambi", "100 ports", "1 port", 1.15, cnitoolLife("ambi", 100), cnitoolLife("ambi", 1)},
		{p.times, "ports_1000", "bridge and ambi", "1000 ports", "1 port", 1.5, cnitoolLife("ambi", 1000), cnitoolLife("ambi", 1)},
		{p.slow, "portmap_iptables_100", "bridge, 100 ports", "ambi", "portmap, iptables", 0, cnitoolLife("ambi", 100), cnitoolLife("iptables", 100)},
		{p.slow, "portmap_nftables_100", "bridge, 100 ports", "ambi", "portmap, nftables", 0, cnitoolLife("ambi", 100), cnitoolLife("nftables", 100)},
	} {
		if err := p.pair(c.times, c.key, c.title, c.subject, c.peer, c.target, c.a, c.b); err != nil {
			return err
		}
	}
	return nil
}
