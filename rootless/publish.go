package rootless

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
)

// rootlessport publishes ports by portmap/forward.
type rootlessport struct {
	forwarder *forward.Forwarder

	mu      sync.Mutex
	sockets []socketInfo
}

var _ publisher = (*rootlessport)(nil)

func newRootlessport(s *supervisor) (*rootlessport, error) {
	p := s.inside.plan
	f, err := forward.New(forward.Config{
		Namespace:  s.inside,
		Container4: p.IPv4.first(), Gateway4: p.IPv4.Gateway, Subnet4: p.IPv4.subnet(),
		Container6: p.IPv6.first(), Gateway6: p.IPv6.Gateway, Subnet6: p.IPv6.subnet(),
		SourceIP: s.config.SourceIP, Logger: s.log,
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
		r.sockets = append(r.sockets, socketInfo{s.Mapping, s.Family})
	}
	return nil
}

func (r *rootlessport) remove(m conf.PortMapping) error {
	if err := r.forwarder.Remove(m); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sockets = slices.DeleteFunc(r.sockets, func(s socketInfo) bool { return s.Mapping == m })
	return nil
}

func (r *rootlessport) restored() error            { return nil } // nothing of it crosses the tap
func (r *rootlessport) stats() []forward.PortStats { return r.forwarder.Stats() }
func (r *rootlessport) close() error               { return r.forwarder.Close() }

// check looks for every port among the sockets of this process.
func (r *rootlessport) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sockets) == 0 {
		return nil
	}
	bound, err := boundSockets()
	if err != nil {
		return fmt.Errorf("published ports: %w", err)
	}
	var errs []error
	for _, s := range r.sockets {
		if !bound[s.local()] {
			errs = append(errs, fmt.Errorf("port %s is not bound to %s any more", s.Mapping, s.local().address))
		}
	}
	return errors.Join(errs...)
}

// slirpPublisher publishes ports by the API of slirp4netns.
type slirpPublisher struct {
	api slirpAPI

	mu    sync.Mutex
	ports []conf.PortMapping
}

var _ publisher = (*slirpPublisher)(nil)

func newSlirpPublisher(c *supervisorConfig) *slirpPublisher {
	return &slirpPublisher{api: slirpAPI{path: c.Driver.APISocket, guest: c.Plan.IPv4.first()}}
}

func (p *slirpPublisher) add(m conf.PortMapping, probes []forward.Socket) error {
	// The caller's bound sockets only prove that the port is free.
	for _, s := range probes {
		s.File.Close()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.publish(m); err != nil {
		return err
	}
	p.ports = append(p.ports, m)
	return nil
}

// publish asks slirp4netns, which says that it failed and not why. Binding the
// port ourselves tells.
func (p *slirpPublisher) publish(m conf.PortMapping) error {
	err := p.api.add(m)
	if err == nil {
		return nil
	}
	sockets, reason := forward.Listen([]conf.PortMapping{forIPv4(m)})
	closeSockets(sockets)
	if reason != nil {
		return reason
	}
	return err
}

// forIPv4 is the part of a mapping that slirp4netns publishes.
func forIPv4(m conf.PortMapping) conf.PortMapping {
	if !m.HostIP.IsValid() {
		m.HostIP = netip.IPv4Unspecified()
	}
	return m
}

func (p *slirpPublisher) remove(m conf.PortMapping) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.api.remove(m); err != nil {
		return err
	}
	for i, have := range p.ports {
		if have == m {
			p.ports = append(p.ports[:i:i], p.ports[i+1:]...)
			break
		}
	}
	return nil
}

func (p *slirpPublisher) restored() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, m := range p.ports {
		errs = append(errs, p.publish(m))
	}
	return errors.Join(errs...)
}

func (p *slirpPublisher) check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.api.check(p.ports)
}

func (p *slirpPublisher) stats() []forward.PortStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := make([]forward.PortStats, len(p.ports))
	for i, m := range p.ports {
		stats[i].Mapping = m
	}
	return stats
}

func (p *slirpPublisher) close() error { return nil } // the ports go with slirp4netns
