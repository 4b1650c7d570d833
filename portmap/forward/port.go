package forward

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// port is one published mapping.
type port struct {
	counters
	mapping   conf.PortMapping
	target    Target
	worker    *worker // has the listeners
	sockets   []Socket
	entrances []entrance
	routes    *routes
	users     atomic.Int32 // the mapping itself and its connections
	goesOn    bool         // elsewhere, when its listeners close
}

// entrance is a listening descriptor of a port: a TCP listener or a UDP socket.
type entrance interface {
	handler
	descriptor() int32
	// serve starts watching.
	serve(w *worker) unix.Errno
}

// open takes descriptors of its own of the port's sockets, whose files belong to
// Go's poller, and installs the routing rule.
func (p *port) open(f *Forwarder) error {
	for _, s := range p.sockets {
		fd, err := duplicate(s)
		if err == nil && fd >= f.budget.never {
			sysClose(fd)
			err = tooManyPorts(s.Mapping)
		}
		if err != nil {
			p.closeUnwatched()
			return err
		}
		p.entrances = append(p.entrances, p.newEntrance(s.Family, fd))
	}
	p.sockets = nil
	p.users.Store(1)
	if err := p.routes.addPort(p.end()); err != nil {
		p.closeUnwatched()
		return err
	}
	return nil
}

// end is where the port leads.
func (p *port) end() containerPort {
	return containerPort{p.mapping.Protocol, p.mapping.ContainerPort, p.target}
}

func (p *port) newEntrance(family int, fd int32) entrance {
	target := p.target.targetFor(family)
	if p.mapping.Protocol == conf.UDP {
		return newUDPPort(p, target, family, fd)
	}
	l := &listener{fd: fd, port: p, target: target, pacing: unpace(fd)}
	if forBoth(family, fd) {
		l.expect(p.target.targetFor(unix.AF_INET), target)
	}
	return l
}

// forBoth says whether a listener takes clients of both address families.
func forBoth(family int, fd int32) bool {
	if family != unix.AF_INET6 {
		return false
	}
	only, err := unix.GetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_V6ONLY)
	return err == nil && only == 0
}

func (p *port) closeUnwatched() {
	for _, e := range p.entrances {
		e.close(p.worker)
	}
	p.entrances = nil
}

func duplicate(s Socket) (fd int32, err error) {
	raw, err := s.File.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("listening socket: %w", err)
	}
	var dup int
	controlErr := raw.Control(func(original uintptr) {
		dup, err = unix.FcntlInt(original, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return
		}
		if err = unix.SetNonblock(dup, true); err != nil {
			unix.Close(dup)
		}
	})
	if controlErr != nil {
		err = controlErr
	}
	if err != nil {
		return -1, fmt.Errorf("taking over the listening socket: %w", err)
	}
	s.File.Close() // now, as thousands of ports would need twice as many descriptors
	return int32(dup), nil
}

// release is called by each user of the port when it ends. Replies of the service
// need the routing rule until the last one has.
func (p *port) release() {
	if p.users.Add(-1) == 0 {
		p.routes.removePort(p.end())
	}
}
