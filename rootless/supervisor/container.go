package supervisor

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/netns"
)

// container is a tenant that is one container with one interface.
type container struct {
	config Container
	log    *slog.Logger
	file   *os.File // its namespace
	driver *driver.Command
	watch  watch
	inside *netns.Namespace // nil before it is entered
	ports  publisher        // nil before it publishes
}

var _ tenant = (*container)(nil)

func (c *container) String() string { return c.config.Key.String() }

// prepare enters the namespace, which must not have such an interface, and makes the
// plan final.
func (c *container) prepare(command *driver.Command) error {
	c.driver = command
	var err error
	if c.watch, err = newWatch(c.config.Netns); err != nil {
		return err
	}
	if c.inside, err = netns.Open(c.file, c.config.Key, &c.config.Plan); err != nil {
		return err
	}
	if err := c.inside.Absent(c.config.Plan.IfName); err != nil {
		return err
	}
	if err := c.inside.ChooseAddresses(); err != nil {
		return err
	}
	command.Move(c.config.Plan.IPv4.Network())
	return nil
}

// meanwhile cleans, and publishes where that is rootlessport's part. A client that is
// this early finds no container yet, and ADD has not returned.
func (c *container) meanwhile() error {
	// A killed supervisor of this attachment may have left rules for other ports.
	if err := c.inside.RemoveAll(); err != nil {
		return fmt.Errorf("cleaning the routing rules inside the namespace: %w", err)
	}
	if c.driver.APISocket != "" {
		return nil // the driver publishes
	}
	r, err := newRootlessport(c)
	if err != nil {
		return err
	}
	c.ports = r
	return r.addAll(c.inherited())
}

// inherited are the sockets of the published ports, bound by the one who started
// this process.
func (c *container) inherited() []forward.Socket {
	sockets := make([]forward.Socket, len(c.config.Sockets))
	for i, info := range c.config.Sockets {
		sockets[i] = forward.Socket{Mapping: info.Mapping, Family: info.Family, File: os.NewFile(uintptr(socketFD+i), info.Mapping.String())}
	}
	c.config.Sockets = nil // only the start needs it
	return sockets
}

func (c *container) configure() error { return c.inside.Configure() }

func (c *container) publish() error {
	publisher := c.driver.Publisher(c.config.Plan.IPv4.First())
	if publisher == nil {
		return nil // rootlessport does
	}
	c.ports = &byDriver{kind: driver.Of(c.driver.Driver), driver: publisher}
	for _, m := range c.config.Ports {
		if err := c.ports.add(m, nil); err != nil {
			return err
		}
	}
	return nil
}

func (c *container) restored() error { return c.ports.restored() }

func (c *container) gone() bool { return c.watch.gone() }

func (c *container) deleted() bool { return c.inside.Deleted() }

func (c *container) serve(r request, files []*os.File) (reply, error) {
	return reply{}, c.servePort(r, files)
}

func (c *container) servePort(r request, files []*os.File) error {
	if r.Op == opRemovePort {
		defer closeAll(files)
		if r.Port == nil {
			return conf.Errorf(types.ErrDecodingFailure, "control request %s: no port", r.Op)
		}
		return c.ports.remove(*r.Port)
	}
	if r.Port == nil || len(r.Families) != len(files) {
		closeAll(files)
		return conf.Errorf(types.ErrDecodingFailure, "control request %s: no port, or not one family for each socket", r.Op)
	}
	sockets := make([]forward.Socket, len(files))
	for i, f := range files {
		sockets[i] = forward.Socket{Mapping: *r.Port, Family: r.Families[i], File: f}
	}
	return c.ports.add(*r.Port, sockets)
}

// check is CHECK from the inside: the interface and the ports.
func (c *container) check(r request) []error {
	return []error{c.inside.Check(r.MAC), c.ports.check()}
}

func (c *container) status(_ request, s *Status) {
	s.MAC, s.Ports = c.config.Plan.MAC, c.ports.stats()
	if link, err := c.inside.Link(); err == nil {
		s.Interface = StatsOf(link)
	}
}

func (c *container) leave() bool {
	if c.inside != nil {
		c.inside.LeaveAtOnce()
	}
	if c.ports != nil {
		if err := c.ports.close(); err != nil {
			c.log.Warn("closing ports", "error", err)
		}
	}
	if c.inside == nil {
		return false // what a killed supervisor left may be there
	}
	err := c.inside.RemoveAll()
	if err != nil {
		c.log.Warn("removing the routing rules inside the namespace, DEL will try again", "error", err)
	}
	return err == nil
}

// forget removes the record.
func (c *container) forget() {
	store, err := record.OpenExisting(c.config.StateDir)
	if err != nil {
		c.log.Warn("removing the record", "error", err)
		return
	}
	now, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	unlock, err := store.Lock(now, c.config.Key)
	if err != nil {
		return // DEL or GC holds it and does the rest
	}
	defer unlock()
	if err := store.Remove(c.config.Key); err != nil {
		c.log.Warn("removing the record", "error", err)
	}
}
