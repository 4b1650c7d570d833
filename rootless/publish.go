package rootless

import (
	"errors"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
)

// rootlessport publishes ports by portmap/forward.
type rootlessport struct{ forwarder *forward.Forwarder }

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
	return &rootlessport{f}, nil
}

func (r *rootlessport) add(_ conf.PortMapping, sockets []forward.Socket) error {
	return r.forwarder.Add(sockets)
}
func (r *rootlessport) remove(m conf.PortMapping) error { return r.forwarder.Remove(m) }
func (r *rootlessport) restored() error                 { return nil } // nothing of it crosses the tap
func (r *rootlessport) stats() []forward.PortStats      { return r.forwarder.Stats() }
func (r *rootlessport) close() error                    { return r.forwarder.Close() }

// check: a listener is open for as long as the forwarder has it.
func (r *rootlessport) check() error { return nil }

// slirpPublisher publishes ports by the API of slirp4netns.
type slirpPublisher struct {
	api   slirpAPI
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
	if err := p.api.add(m); err != nil {
		return err
	}
	p.ports = append(p.ports, m)
	return nil
}

func (p *slirpPublisher) remove(m conf.PortMapping) error {
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
	var errs []error
	for _, m := range p.ports {
		errs = append(errs, p.api.add(m))
	}
	return errors.Join(errs...)
}

func (p *slirpPublisher) check() error { return p.api.check(p.ports) }

func (p *slirpPublisher) stats() []forward.PortStats {
	stats := make([]forward.PortStats, len(p.ports))
	for i, m := range p.ports {
		stats[i].Mapping = m
	}
	return stats
}

func (p *slirpPublisher) close() error { return nil } // the ports go with slirp4netns
