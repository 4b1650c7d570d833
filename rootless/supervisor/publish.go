package supervisor

import (
	"encoding/json"
	"errors"
	"slices"
	"sync"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/rootless/driver"
)

// byDriver publishes ports by the driver itself, which does not count.
type byDriver struct {
	kind   driver.Driver
	driver driver.Publisher

	mu      sync.Mutex
	ports   []conf.PortMapping
	changed func(m conf.PortMapping, published bool)
}

// know has it publish a port, in JSON, with the next driver.
func (p *byDriver) know(port []byte) error {
	var m conf.PortMapping
	err := json.Unmarshal(port, &m)
	if err == nil {
		p.ports = append(p.ports, m)
	}
	return err
}

// add: a port that is there was asked for when the supervisor before us was killed before it could
// answer.
func (p *byDriver) add(m conf.PortMapping) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Contains(p.ports, m) {
		return nil
	}
	if err := p.publish(m); err != nil {
		return err
	}
	p.ports = append(p.ports, m)
	p.changed(m, true)
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
	p.changed(m, false)
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
