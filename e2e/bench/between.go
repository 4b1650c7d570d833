package main

import (
	"fmt"
	"os/exec"
)

// Between containers: two members of a shared network of ambi, and two namespaces on a bridge
// that root has made with ip(8) and nothing else. The processor time is that of the load and
// its server, in which the kernel does the rest.

const betweenNetwork = "10.77.0"

func runBetween(args []string) error {
	programs := []string{"bench"}
	return runWays("run-between", args, []way{
		{name: "ambi", about: "two containers of a user, a shared network", programs: programs, mtus: bothMTUs, up: membersBetween, to: betweenNetwork + ".2"},
		{name: "a bridge of root's", about: "two namespaces, made by ip", programs: programs, mtus: bothMTUs, up: bridgeBetween, to: betweenNetwork + ".2"},
	}, paper{"between", "Between containers of a network"}, func(*stopper) error { return nil })
}

// membersBetween makes two members, a server in the first one.
func membersBetween(mtu int, undo *stopper) ([]string, error) {
	var runner []string
	for n := range 2 {
		c, err := newContainer()
		if err != nil {
			return nil, err
		}
		undo.add(c.stop)
		m := member{c: c, binary: ambiBinary, network: "between", number: 2 + n, more: netConf{"mtu": mtu}}
		undo.add(func() { _ = m.call("DEL") })
		if err := m.call("ADD"); err != nil {
			return nil, err
		}
		if n == 0 {
			p, err := c.serveInside()
			if err != nil {
				return nil, err
			}
			undo.add(p.kill)
		}
		runner = enterAs(c.PID)
	}
	return runner, nil
}

func bridgeBetween(mtu int, undo *stopper) ([]string, error) {
	undo.add(func() {
		// The kernel is in no hurry with what is in a namespace that goes.
		for _, link := range []string{"toleft", "toright", "between"} {
			_ = step("ip", "link", "delete", link)
		}
		for _, netns := range []string{"left", "right"} {
			_ = step("ip", "netns", "delete", netns)
		}
	})
	list := [][]string{{"ip", "link", "add", "between", "type", "bridge"}, {"ip", "link", "set", "between", "mtu", fmt.Sprint(mtu), "up"}}
	for n, netns := range []string{"left", "right"} {
		list = append(list,
			[]string{"ip", "netns", "add", netns},
			[]string{"ip", "link", "add", "to" + netns, "mtu", fmt.Sprint(mtu), "master", "between", "type", "veth", "peer", "name", "eth0", "mtu", fmt.Sprint(mtu), "netns", netns},
			[]string{"ip", "link", "set", "to" + netns, "up"},
			[]string{"ip", "-n", netns, "link", "set", "lo", "up"}, []string{"ip", "-n", netns, "link", "set", "eth0", "up"},
			[]string{"ip", "-n", netns, "address", "add", fmt.Sprintf("%s.%d/24", betweenNetwork, 2+n), "dev", "eth0"})
	}
	if err := steps(list); err != nil {
		return nil, err
	}
	p, err := start(exec.Command("ip", "netns", "exec", "left", stage+"/bench", "serve", "-listen", fmt.Sprintf(":%d", servicePort)))
	if err != nil {
		return nil, err
	}
	undo.add(p.kill)
	return []string{"ip", "netns", "exec", "right"}, nil
}

// ambiBinary is the one that is measured.
const ambiBinary = stage + "/bin/ambi"

// member is a container in a network of the user's.
type member struct {
	c       *container
	binary  string
	network string // its name
	private bool
	number  int           // last byte of its address in a shared network
	ports   []portMapping // none: it publishes none
	more    netConf       // of the key rootless
}

func (m member) call(command string) error { return call(m.verb(command)) }

func (m member) verb(command string) *exec.Cmd {
	runtime := netConf{}
	if len(m.ports) > 0 {
		runtime["portMappings"] = m.ports
	}
	rootless := netConf{}
	for key, value := range m.more {
		rootless[key] = value
	}
	conf := netConf{"rootless": rootless, "runtimeConfig": runtime}
	switch {
	case m.binary != ambiBinary: // it may not know the word, and has no other networks
	case m.private:
		rootless["network"] = "private"
	default:
		rootless["network"] = "shared"
		conf["bridge"] = netConf{"subnet": betweenNetwork + ".0/24"}
		runtime["ips"] = []string{fmt.Sprintf("%s.%d", betweenNetwork, m.number)}
	}
	return verb(asUser(exec.Command(m.binary)), command, fmt.Sprintf("%s%d", m.network, m.number), m.c.netns(), ambiConf(m.network, conf))
}
