package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"time"
)

// servicePort is the container's; every forwarder publishes it, TCP and UDP.
const servicePort = 5000

// forwarder is one of those that are measured against each other.
type forwarder struct {
	name  string
	about string // for the report: the configuration
	// programs are those whose processes are the forwarder.
	programs []string
	// up publishes servicePort of a new container with a server in it as hostPort.
	up func(hostPort int, undo *stopper) (*process, error)
}

func forwarders() []forwarder {
	return []forwarder{
		{name: "ambi", about: "sourceIP preserve (default), slirp4netns as the driver", programs: []string{"ambi"}, up: ambi("preserve")},
		{name: "RootlessKit", about: "--port-driver=builtin --source-ip-transparent (default), --net=slirp4netns", programs: []string{"rootlesskit"}, up: rootlesskit(true)},
		{name: "RootlessKit, no source IP", about: "--port-driver=builtin --source-ip-transparent=false, --net=slirp4netns", programs: []string{"rootlesskit"}, up: rootlesskit(false)},
		{name: "Podman rootlessport", about: "rootlessport with the container's address, slirp4netns as the driver", programs: []string{"rootlessport"}, up: rootlessport},
		{name: "slirp4netns", about: "add_hostfwd, --mtu=65520, sandbox and seccomp; without --disable-host-loopback, which breaks UDP", programs: []string{"slirp4netns"}, up: slirpForward},
		{name: "pasta", about: "-t and -u, --config-net, MTU 65520", programs: []string{"passt"}, up: pasta},
		{name: "none", about: "the server on the host", up: direct},
	}
}

// optional forwarders are measured when asked for by name only.
func optionalForwarders() []forwarder {
	return []forwarder{
		{name: "sourceIP=gateway", about: "ambi without the client's address", programs: []string{"ambi"}, up: ambi("gateway")},
		{name: "shared network", about: "ambi, the container in a shared network", programs: []string{"ambi"}, up: ambiBy(ambiBinary, netConf{"network": "shared"})},
		{name: "private network", about: "ambi, the container in a private network", programs: []string{"ambi"}, up: ambiBy(ambiBinary, netConf{"network": "private"})},
		{name: "another ambi", about: "the binary of -before", programs: []string{beforeName}, up: ambiBy(stage+"/tools/"+beforeName, nil)},
	}
}

// instance is a forwarder that runs.
type instance struct {
	*forwarder
	port int
	undo stopper
}

// nextPort makes every instance's host port a new one, so that no connection of an
// earlier one is in the way. They are below the range of client ports.
var nextPort = 2000

// launch starts a forwarder and waits until it serves.
func (f *forwarder) launch() (*instance, error) {
	i := &instance{forwarder: f, port: nextPort}
	nextPort++
	p, err := f.up(i.port, &i.undo)
	if err == nil {
		err = until(f.name+" serves", p, func() bool {
			s, err := touch(netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", i.port)))
			if err == nil {
				s.close()
			}
			return err == nil
		})
	}
	if err != nil {
		i.stop()
		return nil, err
	}
	time.Sleep(200 * time.Millisecond) // start-up is not what is measured
	return i, nil
}

func (i *instance) stop() { i.undo.stop() }

// memory is what the forwarder's processes hold when it does not fall any more: right
// after their start, programs have pages that they are about to give back.
func (i *instance) memory() (memory, error) {
	if len(i.programs) == 0 {
		return memory{}, errors.New("no process")
	}
	return settled(func() (memory, error) { return memoryOf(i.programs...) })
}

// direct is the server itself on the host.
func direct(hostPort int, undo *stopper) (*process, error) {
	p, err := start(asUser(exec.Command(stage+"/bench", "serve", "-listen", fmt.Sprintf(":%d", hostPort))))
	if err != nil {
		return nil, err
	}
	undo.add(p.kill)
	return p, nil
}

// furnished makes a container with a server.
func furnished(undo *stopper) (*container, error) {
	c, err := newContainer()
	if err != nil {
		return nil, err
	}
	undo.add(c.stop)
	p, err := c.serveInside()
	if err != nil {
		return nil, err
	}
	undo.add(p.kill)
	return c, nil
}

// userFolder makes a folder that the user may write to, for as long as undo says.
func userFolder(undo *stopper) (string, error) {
	dir, err := os.MkdirTemp(stage+"/tmp", "forwarder")
	if err != nil {
		return "", err
	}
	undo.add(func() { _ = os.RemoveAll(dir) })
	return dir, os.Chown(dir, userID, userID)
}
