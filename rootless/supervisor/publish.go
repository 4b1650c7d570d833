package supervisor

import (
	"errors"
	"slices"
	"sync"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/rootless/driver"
)

// publisher publishes host ports; rootlessport does, and the driver itself may.
type publisher interface {
	add(m conf.PortMapping, sockets []forward.Socket) error
	remove(m conf.PortMapping) error
	restored() error // the driver came back
	check() error
	stats() []forward.PortStats
	close() error
}

// rootlessport publishes ports by portmap/forward.
type rootlessport struct {
	forwarder *forward.Forwarder

	mu      sync.Mutex
	sockets []Socket
}

var _ publisher = (*rootlessport)(nil)

func newRootlessport(c *container) (*rootlessport, error) {
	p := &c.config.Plan
	f, err := forward.New(forward.Config{
		Namespace: c.inside, Logger: c.log,
		Target: forward.Target{
			Container4: p.IPv4.First(), Gateway4: p.IPv4.Gateway, Subnet4: p.IPv4.Network(),
			Container6: p.IPv6.First(), Gateway6: p.IPv6.Gateway, Subnet6: p.IPv6.Network(),
			SourceIP: c.config.SourceIP,
		},
	})
	if err != nil {
		return nil, err
	}
	return &rootlessport{forwarder: f}, nil
}

func (r *rootlessport) add(_ conf.PortMapping, sockets []forward.Socket) error {
	return r.addAll(sockets)
}

// addAll publishes the ports of all sockets, or none.
func (r *rootlessport) addAll(sockets []forward.Socket) error {
	if err := r.forwarder.Add(sockets); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range sockets {
		r.sockets = append(r.sockets, Socket{s.Mapping, s.Family})
	}
	return nil
}

func (r *rootlessport) remove(m conf.PortMapping) error {
	if err := r.forwarder.Remove(m); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sockets = slices.DeleteFunc(r.sockets, func(s Socket) bool { return s.Mapping == m })
	return nil
}

func (r *rootlessport) restored() error            { return nil } // nothing of it crosses the tap
func (r *rootlessport) stats() []forward.PortStats { return r.forwarder.Stats() }
func (r *rootlessport) close() error               { return r.forwarder.Close() }

// check looks for every port among the sockets of this process.
func (r *rootlessport) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return checkBound(r.sockets)
}

// byDriver publishes ports by the driver itself, which does not count.
type byDriver struct {
	kind   driver.Driver
	driver driver.Publisher

	mu    sync.Mutex
	ports []conf.PortMapping
}

var _ publisher = (*byDriver)(nil)

func (p *byDriver) add(m conf.PortMapping, probes []forward.Socket) error {
	forward.CloseSockets(probes) // they only prove that the port is free
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.publish(m); err != nil {
		return err
	}
	p.ports = append(p.ports, m)
	return nil
}

// publish asks the driver, which says that it failed and not why. Binding the port
// ourselves tells.
func (p *byDriver) publish(m conf.PortMapping) error {
	err := p.driver.Add(m)
	if err == nil {
		return nil
	}
	part, reason := p.kind.Publishable(m)
	if reason == nil {
		var sockets []forward.Socket
		sockets, reason = forward.Listen([]conf.PortMapping{part})
		forward.CloseSockets(sockets)
	}
	if reason != nil {
		return reason
	}
	return err
}

func (p *byDriver) remove(m conf.PortMapping) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.driver.Remove(m); err != nil {
		return err
	}
	p.ports = slices.DeleteFunc(p.ports, func(have conf.PortMapping) bool { return have == m })
	return nil
}

func (p *byDriver) restored() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, m := range p.ports {
		errs = append(errs, p.publish(m))
	}
	return errors.Join(errs...)
}

func (p *byDriver) check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.driver.Check(p.ports)
}

func (p *byDriver) stats() []forward.PortStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := make([]forward.PortStats, len(p.ports))
	for i, m := range p.ports {
		stats[i].Mapping = m
	}
	return stats
}

func (p *byDriver) close() error { return nil } // the ports go with the driver
