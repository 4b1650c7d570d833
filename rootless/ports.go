package rootless

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/supervisor"
)

// Status asks the supervisor how it is.
func (n *Network) Status() (status *supervisor.Status, err error) {
	err = n.ask(func(c supervisor.Control) error {
		status, err = c.StatusOf(n.Record.Key, n.hostEnd(), n.addresses())
		return err
	})
	return status, err
}

// ask puts a question to the supervisor. An error of its own is a *types.Error.
func (n *Network) ask(question func(supervisor.Control) error) error {
	if !Alive(n.Store, n.Record) {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "attachment %s: its supervisor is not running, so the container has no network", n.Record.Key), "call DEL and ADD again")
	}
	if err := Stopped(n.hub(n.Record.Key), "attachment "+n.Record.Key.String()); err != nil {
		return err
	}
	err := question(controlOfHub(n.hub(n.Record.Key)))
	var e *types.Error
	if err != nil && !errors.As(err, &e) {
		return conf.Errorf(conf.ErrNetwork, "attachment %s: its supervisor does not answer: %v", n.Record.Key, err)
	}
	return err
}

// Supervisor is the process that answers for the attachment; 0 when nobody knows.
func (n *Network) Supervisor() int {
	switch p, err := n.hub(n.Record.Key).Present(); {
	case err == nil:
		return p.PID
	case n.Record.Hub == "" && n.Record.Supervisor.Alive(): // of an older ambi
		return n.Record.Supervisor.PID
	}
	return 0 // that of the record may be another's by now
}

// AddPort publishes one more port of a running attachment. The host's port is bound
// here, in the caller's namespaces and with the caller's rights, and handed over.
// The caller holds the attachment's lock. With an error nothing is published.
func (n *Network) AddPort(m conf.PortMapping) error {
	a, err := n.Record.Attachment()
	if err != nil {
		return err
	}
	if err := unsupported(a, m); err != nil {
		return err
	}
	status, err := n.Status()
	if err != nil {
		return err
	}
	for _, p := range status.Ports {
		if p.Mapping == m {
			return conf.Errorf(conf.ErrPortInUse, "port %s of attachment %s is published already", m, n.Record.Key)
		}
	}
	sockets, err := bindFor(a, m)
	if err != nil {
		return err
	}
	defer forward.CloseSockets(sockets) // the supervisor has descriptors of its own by then
	if err := n.ask(func(c supervisor.Control) error { return n.publish(c, a, m, sockets) }); err != nil {
		return fmt.Errorf("publishing port %s of %s: %w", m, n.Record.Key, err)
	}
	n.Record.Ports = append(n.Record.Ports, m)
	if err := n.Store.Save(n.Record); err != nil {
		return errors.Join(err, n.ask(func(c supervisor.Control) error { return n.withdraw(c, m) }))
	}
	return nil
}

// publish has the supervisor publish a port.
func (n *Network) publish(c supervisor.Control, a *conf.Attachment, m conf.PortMapping, sockets []forward.Socket) error {
	if publishesItself(a) {
		return c.PublishByDriver(m)
	}
	result := n.recorded()
	if result == nil {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "the record of %s does not say which addresses it has", n.Record.Key), "call DEL and ADD again")
	}
	return c.Publish(n.Record.Key, targetOf(a, result, n.hub(a.Key).State()), sockets)
}

// withdraw has it take one back.
func (n *Network) withdraw(c supervisor.Control, m conf.PortMapping) error {
	return c.Withdraw(n.Record.Key, m)
}

// publishesItself says whether the driver does.
func publishesItself(a *conf.Attachment) bool {
	r := a.NetConf.Rootless
	return driver.Of(r.Driver).Publishes(r.PortHandler)
}

// bindFor binds the host's ports. A driver that publishes binds them itself, and cannot say
// why it fails; now we know that it can.
func bindFor(a *conf.Attachment, ports ...conf.PortMapping) ([]forward.Socket, error) {
	if !publishesItself(a) {
		return forward.Listen(ports)
	}
	mine := make([]conf.PortMapping, len(ports))
	for i, m := range ports {
		var err error
		if mine[i], err = driver.Of(a.NetConf.Rootless.Driver).Publishable(m); err != nil {
			return nil, err
		}
	}
	sockets, err := forward.Listen(mine)
	forward.CloseSockets(sockets)
	return nil, err
}

// RemovePort takes a published port of a running attachment back. TCP connections
// that are there go on. The caller holds the attachment's lock. A port that is not
// published is fs.ErrNotExist.
func (n *Network) RemovePort(m conf.PortMapping) error {
	status, err := n.Status()
	if err != nil {
		return err
	}
	live := slices.ContainsFunc(status.Ports, func(p forward.PortStats) bool { return p.Mapping == m })
	if live {
		if err := n.ask(func(c supervisor.Control) error { return n.withdraw(c, m) }); err != nil {
			return fmt.Errorf("taking back port %s of %s: %w", m, n.Record.Key, err)
		}
	}
	at := slices.Index(n.Record.Ports, m)
	if at < 0 {
		if live {
			return nil
		}
		return fmt.Errorf("port %s of %s is not published: %w", m, n.Record.Key, fs.ErrNotExist)
	}
	n.Record.Ports = slices.Delete(n.Record.Ports, at, at+1)
	return n.Store.Save(n.Record)
}
