package forward

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// flow is one UDP client's conversation: a socket inside the namespace, connected
// to the service and bound to the client's address or the gateway's.
type flow struct {
	ticket  ticket
	place   links[*flow]
	since   time.Duration // of the last datagram, to within 1/32 of the time-out
	udp     *udpPort
	port    *port // whose counters it has
	key     flowKey
	fd      int32
	unequal [2]bool // by way: datagrams go one by one
	origin  origin
	stage   stage
	queued  bool
	closed  bool
}

func (f *flow) links() *links[*flow] { return &f.place }

// stage is how far a flow has come. Most of the world's are done with one exchange, as
// a look-up's, and who makes up addresses mostly gets no further.
type stage int8

const (
	unreplied  stage = iota
	replied          // the service has answered
	conversing       // and the client has gone on
)

// flowLists has a worker's flows by their stage, longest unused first.
type flowLists [conversing + 1]list[*flow]

func (f *flow) list(w *worker) (*list[*flow], time.Duration) {
	return &w.flows[f.stage], w.forwarder.config.flowTimeout(f.stage)
}

func (c *Config) flowTimeout(s stage) time.Duration {
	if s == unreplied {
		return c.UnrepliedTimeout
	}
	return c.RepliedTimeout
}

// touch starts the time-out anew. A flow that was touched a moment ago keeps its
// place, so that a busy one costs nothing.
func (f *flow) touch(w *worker) {
	l, timeout := f.list(w)
	if w.now-f.since > timeout/32 {
		l.remove(f)
		f.since = w.now
		l.push(f)
	}
}

// advance moves a flow to the next stage.
func (f *flow) advance(w *worker) {
	w.flows[f.stage].remove(f)
	f.stage++
	f.since = w.now
	w.flows[f.stage].push(f)
	if f.stage == conversing {
		w.brief.Add(-1)
	}
}

// openFlow makes the client's flow.
func (u *udpPort) openFlow(w *worker, key flowKey) (*flow, unix.Errno) {
	f := &flow{udp: u, port: u.port, key: key, since: w.now}
	reach := f.reach
	if u.out != nil {
		f.port, reach = &u.out.member(key.client.ip()).port, f.leave
	}
	if errno := reach(w); errno != 0 {
		return nil, errno
	}
	f.ticket = w.seat(f)
	if errno := w.watch(f.fd, f.ticket, 0, unix.EPOLLIN|unix.EPOLLET); errno != 0 {
		w.leave(f.ticket)
		f.hangUp()
		return nil, errno
	}
	u.flows[key] = f
	if u.out == nil {
		w.flowsOf[key.guest()]++
	}
	w.flows[unreplied].push(f)
	w.brief.Add(1)
	w.forwarder.flows.Add(1)
	f.port.active.Add(1)
	f.port.total.Add(1)
	return f, 0
}

// reach connects a socket inside from the first origin that can be had.
func (f *flow) reach(w *worker) (errno unix.Errno) {
	t := f.udp.target
	for _, f.origin = range t.origins(f.key.client.ip()) {
		if errno = f.dialClaimed(w); errno == 0 && t.preserve {
			f.udp.port.came(f.origin)
		}
		if errno == 0 || exhausted(errno) {
			return errno
		}
	}
	return errno
}

// dialClaimed is dial for a pair of addresses that no other flow has.
func (f *flow) dialClaimed(w *worker) unix.Errno {
	if f.origin != itself {
		return f.dial(w)
	}
	routes := f.udp.port.routes
	if !routes.claim(f.pair()) {
		return unix.EADDRINUSE
	}
	errno := f.dial(w)
	if errno != 0 {
		routes.disclaim(f.pair())
	}
	return errno
}

func (f *flow) pair() pair {
	return pair{address(f.key.client.ip().As16()), f.key.client.port(), f.udp.target.container, f.udp.port.mapping.ContainerPort}
}

// source is the address that the service sees.
func (f *flow) source() netip.Addr {
	from := f.udp.target.from(f.origin, &f.key.client)
	return from.ip()
}

// dial makes the socket inside. The route for the replies must be there before
// the first datagram is sent.
func (f *flow) dial(w *worker) (errno unix.Errno) {
	t, routes := f.udp.target, f.udp.port.routes
	if f.fd, errno = w.socketOrEvict(t); errno != 0 {
		return errno
	}
	from := t.from(f.origin, &f.key.client)
	if errno = t.connectDatagram(f.fd, &from, f.udp.port.mapping.ContainerPort); errno == 0 {
		err := routes.addClient(conf.UDP, from.ip(), f.origin)
		if err == nil {
			return 0
		}
		w.forwarder.config.Logger.Debug("no route to a UDP client", "client", from.ip(), "error", err)
		errno = unix.ENETUNREACH
	}
	sysClose(f.fd)
	return errno
}

// socketOrEvict makes a UDP socket inside. Without a descriptor left, a flow gives its
// own.
func (w *worker) socketOrEvict(t *target) (int32, unix.Errno) {
	fd, errno := w.socket(t, unix.SOCK_DGRAM)
	if exhausted(errno) && w.evict() {
		fd, errno = w.socket(t, unix.SOCK_DGRAM)
	}
	return fd, errno
}

// connectDatagram binds a UDP socket inside to an address that the container does
// not have, and connects it.
func (t *target) connectDatagram(fd int32, from *sockaddr, port uint16) unix.Errno {
	if errno := t.makeTransparent(fd); errno != 0 {
		return errno
	}
	if from.port() != 0 {
		// A client may send from one port to several ports of the container.
		sysSetInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	sysSetInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, datagramBuffer)
	if errno := sysBind(fd, from); errno != 0 {
		return errno
	}
	to := newSockaddr(t.container, port)
	return sysConnect(fd, &to)
}

// hangUp gives back what dial and reach took.
func (f *flow) hangUp() {
	sysClose(f.fd)
	if f.udp.out != nil {
		return
	}
	routes := f.udp.port.routes
	routes.removeClient(conf.UDP, f.source(), 0)
	if f.origin == itself {
		routes.disclaim(f.pair())
	}
}

func (f *flow) close(w *worker) {
	l, _ := f.list(w)
	l.remove(f)
	w.leave(f.ticket)
	f.closed = true
	if f.stage != conversing {
		w.brief.Add(-1)
	}
	f.hangUp()
	delete(f.udp.flows, f.key)
	if client := f.key.guest(); f.udp.out == nil {
		if w.flowsOf[client]--; w.flowsOf[client] == 0 {
			delete(w.flowsOf, client)
		}
	}
	w.forwarder.flows.Add(-1)
	f.port.active.Add(-1)
}

// toService sends the received datagrams [i, end) on.
func (f *flow) toService(w *worker, i, end int) {
	f.account(w, up, w.datagram.send(&destination{fd: f.fd, unequal: &f.unequal[up]}, i, end))
	if f.stage == replied {
		f.advance(w)
	} else {
		f.touch(w)
	}
}

func (f *flow) account(w *worker, d int, s sent) {
	p := f.port
	p.bytes[d].Add(uint64(s.bytes))
	w.pace.moved += s.bytes
	if s.lost > 0 {
		p.dropped.Add(uint64(s.lost))
	}
	if s.refused != 0 {
		f.notReached(s.refused)
	}
}

// ready sends a batch of the service's replies to the client.
func (f *flow) ready(w *worker, _ int, _ uint32) {
	d := w.datagram
	n, errno := d.receive(f.fd)
	switch {
	case errno == unix.EAGAIN:
		return
	case errno != 0:
		f.notReached(errno) // ICMP: nobody listens there
		f.again(w)          // datagrams may be behind the error
		return
	}
	f.account(w, down, d.send(&destination{f.udp.fd, &f.key, f.udp.family, &f.unequal[down], f.udp.waitForRoom}, 0, n))
	if f.stage == unreplied {
		f.advance(w)
	} else {
		f.touch(w)
	}
	if n == datagramBatch {
		f.again(w)
	}
}

// notReached is for an error that ICMP has told a socket inside of.
func (f *flow) notReached(errno unix.Errno) {
	f.port.refused.Add(1)
	if f.udp.out != nil {
		f.udp.out.notReached(f, errno)
	}
}

func (f *flow) again(w *worker) {
	if !f.queued {
		f.queued = true
		w.again(f)
	}
}

func (f *flow) resume(w *worker) {
	f.queued = false
	if !f.closed {
		f.ready(w, 0, 0)
	}
}
