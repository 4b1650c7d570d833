package forward

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// The two sides of a connection, and its two ways: way up reads from the client
// and writes to the service.
const (
	client  = 0
	service = 1

	up   = client
	down = service
)

// conn is a client's connection and ours to the service.
type conn struct {
	ticket   ticket
	place    links[*conn] // in worker.awaiting or Outward.young
	stay     stay
	since    time.Duration
	port     *port
	target   *target // nil for one that leaves, see Outward
	source   address // that the service sees
	sides    [2]side
	ways     [2]way
	awaiting bool // the service has not answered yet
	fresh    bool // has to find a worker of its own yet, see settle
	young    bool // has not lasted long enough for Outward.grow
	queued   bool // will be resumed
	closed   bool
	hungUp   bool // the client has ended first
}

// side is one of the sockets and what is known of it from edge-triggered events.
type side struct {
	fd       int32
	readable bool
	writable bool
	ended    bool // will report end of file or an error: read until it does
	failed   bool // was reset
}

func (c *conn) links() *links[*conn] { return &c.place }

// connect starts the way to the service for an accepted client. The connection
// belongs to this worker from here on.
func (w *worker) connect(a accepted) {
	errno := w.reach(&a)
	if errno != 0 {
		w.refuse(a, errno)
		return
	}
	c := &conn{port: a.port, target: a.target, source: a.source, since: w.now, awaiting: true}
	c.sides[client].fd, c.sides[service].fd = a.outside, a.inside
	c.sides[client].writable = true
	c.stay = stay{conn: c, guest: a.guest, home: w, since: w.now, asked: w.now}
	w.forwarder.guests.stay(&c.stay)
	c.ticket = w.seat(c)
	w.awaiting.push(c)
	for i := range c.sides {
		if errno := w.watch(c.sides[i].fd, c.ticket, i, edge); errno != 0 {
			c.port.dropped.Add(1)
			c.abort(w)
			return
		}
	}
}

// reach connects the socket inside from the first origin that can be had.
func (w *worker) reach(a *accepted) (errno unix.Errno) {
	for i, o := range a.target.origins(a.client.ip()) {
		if i > 0 {
			// A bound socket stays bound.
			sysClose(a.inside)
			if a.inside, errno = w.socket(a.target, unix.SOCK_STREAM); errno != 0 {
				return errno
			}
		}
		if errno = w.reachFrom(a, o); errno == 0 && a.target.preserve {
			a.port.came(o)
		}
		if errno == 0 || exhausted(errno) {
			return errno
		}
	}
	return errno
}

// reachFrom connects from an address; the route for the answers must be there before.
func (w *worker) reachFrom(a *accepted, o origin) unix.Errno {
	from := a.target.from(o, &a.client)
	ip := from.ip()
	if err := a.port.routes.addClient(conf.TCP, ip, o); err != nil {
		w.forwarder.config.Logger.Debug("no route to a TCP client", "client", ip, "error", err)
		return unix.ENETUNREACH
	}
	errno := a.target.connect(a.inside, &from, a.port.mapping.ContainerPort, w)
	if errno != 0 {
		a.port.routes.removeClient(conf.TCP, ip, w.now)
		return errno
	}
	a.source = ip.As16()
	return 0
}

// connect binds a TCP socket inside to an address that the container does not
// have, and starts connecting.
func (t *target) connect(fd int32, from *sockaddr, port uint16, w *worker) unix.Errno {
	if errno := t.makeTransparent(fd); errno != 0 {
		return errno
	}
	if from.port() == 0 {
		// The kernel chooses the port at connect, when it knows the whole 4-tuple
		// (ip(7), IP_BIND_ADDRESS_NO_PORT).
		sysSetInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	} else {
		// A client may be connected to several ports of the container at once.
		sysSetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if errno := sysBind(fd, from); errno != 0 {
		return errno
	}
	sysSetInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1)
	// A service that has closed its socket, and not only its direction, is forgotten by
	// the kernel after a minute (tcp(7), tcp_fin_timeout). Its answer is a reset then.
	sysSetInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	sysSetInt(fd, unix.SOL_TCP, unix.TCP_KEEPIDLE, int32(w.forwarder.config.GoneTimeout/time.Second))
	if w.paced {
		setCongestion(fd, unpaced) // slower without
	}
	to := newSockaddr(t.container, port)
	errno := sysConnect(fd, &to)
	if errno == unix.EADDRNOTAVAIL && from.port() == 0 {
		errno = connectAnywhere(fd, from, &to)
	}
	if errno != unix.EINPROGRESS {
		return errno
	}
	return 0
}

// connectAnywhere is for when the kernel has no port to choose: it passes over every
// one that a socket has been bound to, whatever the address, and each client may have
// bound its own. Most are free for this address nevertheless.
func connectAnywhere(fd int32, from, to *sockaddr) unix.Errno {
	const tries, first = 16, 1024
	sysSetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	at := *from
	for range tries {
		at.setPort(uint16(first + rand.IntN(1<<16-first)))
		if sysBind(fd, &at) == 0 {
			return sysConnect(fd, to)
		}
	}
	return unix.EADDRNOTAVAIL
}

// refuse resets a client that no connection to the service could be started for.
func (w *worker) refuse(a accepted, errno unix.Errno) {
	if exhausted(errno) {
		a.port.dropped.Add(1)
	} else {
		a.port.refused.Add(1)
	}
	w.forwarder.config.Logger.Debug("connection not forwarded", "port", a.port.mapping, "client", a.client.ip(), "error", errno)
	if a.inside >= 0 {
		sysClose(a.inside)
	}
	sysReset(a.outside)
	a.leave(w)
}

// forget ends the account of a connection.
func (w *worker) forget(p *port) {
	w.load.Add(-1)
	p.active.Add(-1)
	p.release()
	w.hurryPaused()
}

// ready is called with new events of one side.
func (c *conn) ready(w *worker, tag int, events uint32) {
	c.sides[tag].happened(events)
	c.stay.happened(w)
	if c.awaiting && !c.answered(w) {
		return
	}
	c.run(w)
}

// happened remembers what events have told.
func (s *side) happened(events uint32) {
	const ended = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	s.readable = s.readable || events&(unix.EPOLLIN|ended) != 0
	s.writable = s.writable || events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0
	s.ended = s.ended || events&ended != 0
	s.failed = s.failed || events&unix.EPOLLERR != 0
}

// answered looks whether the service has accepted or refused. A client that went
// away meanwhile takes the attempt with it.
func (c *conn) answered(w *worker) bool {
	s := &c.sides[service]
	switch {
	case s.failed:
		c.port.refused.Add(1)
		c.abort(w)
		return false
	case c.sides[client].failed:
		c.abort(w)
		return false
	case !s.writable:
		return false
	}
	c.awaiting = false
	w.awaiting.remove(c)
	return true
}

// unanswered ends a connection whose service did not answer in time.
func (c *conn) unanswered(w *worker) {
	c.port.refused.Add(1)
	c.abort(w)
}

func (c *conn) resume(w *worker) {
	c.queued = false
	if !c.closed {
		c.run(w)
	}
}

// close ends a connection in order, after both sides have said that they have no
// more; when the worker stops, before that.
func (c *conn) close(w *worker) {
	if c.hungUp && c.ways[down].done && c.target != nil {
		w.endTimeWait(c)
	}
	c.end(w, sysClose)
}

// abort resets both sides: what happened on one is passed on to the other.
func (c *conn) abort(w *worker) { c.end(w, sysReset) }

func (c *conn) end(w *worker, closeSocket func(int32)) {
	for i := range c.sides {
		closeSocket(c.sides[i].fd)
		c.ways[i].discard(w)
	}
	if c.awaiting {
		w.awaiting.remove(c)
	}
	c.closed = true
	if c.young {
		w.out.young.remove(c)
	}
	if c.stay.guest != nil {
		w.forwarder.guests.end(&c.stay)
	}
	if c.fresh {
		w.fresh.Add(-1)
	}
	if c.target != nil {
		c.port.routes.removeClient(conf.TCP, netip.AddrFrom16(c.source).Unmap(), w.now)
	}
	w.leave(c.ticket)
	w.forget(c.port)
}
