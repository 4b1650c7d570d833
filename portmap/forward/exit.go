package forward

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// This file is TCP that leaves: a first SYN is held while its destination is dialled.

// dial is a connection to a destination that the container waits for.
type dial struct {
	ticket   ticket
	call     Call
	member   *member
	out      *Outward
	far      side
	packet   []byte
	since    time.Duration // of the first packet
	renewed  time.Duration // of the last one
	answered bool          // and the packet has been given back
}

const (
	// dialsMost is how many connections may be under way, of all members together.
	dialsMost = 4096
	// dialPatience is how long a dial is kept of which the container says no more. One that
	// still waits says its SYN again after 1 s, 3 s, 7 s and so on (tcp(7), tcp_syn_retries).
	dialPatience = 3 * time.Second
	// answerPatience is how long a connection waits for the container's side of it.
	answerPatience = 10 * time.Second
)

// Dial connects to at for a call, and keeps the packet meanwhile. What becomes of it the
// Gate is told. For the Gate to call. A call that is being dialled, or whose packet got lost, may be made
// again.
func (o *Outward) Dial(c Call, at netip.AddrPort, packet []byte) {
	w := o.worker
	if d := o.dials[c]; d != nil {
		d.renewed = w.now
		d.packet = append(d.packet[:0], packet...) // of another socket, maybe, from the same port
		if d.answered {
			o.gate.Answered(c, d.packet)
		}
		return
	}
	m := o.member(c.From.Addr())
	if !admits(m.dials, len(o.dials), min(dialsMost, o.budget/4), timesUnderWay) || !admits(int(m.active.Load()), o.inUse(), o.budget, timesOpen) {
		m.dropped.Add(1)
		return
	}
	fd, errno := o.start(w, at)
	if errno != 0 {
		m.refused.Add(1)
		o.gate.Failed(c, packet, errno)
		return
	}
	d := &dial{call: c, member: m, out: o, packet: append([]byte(nil), packet...), since: w.now, renewed: w.now}
	d.far.fd = fd
	d.ticket = w.seat(d)
	o.dials[c] = d
	m.dials++
	if errno := w.watch(fd, d.ticket, service, edge); errno != 0 {
		m.dropped.Add(1)
		d.end(w)
		sysReset(fd)
		return
	}
	o.nextSweep = min(o.nextSweep, w.now+sweepInterval)
}

// start makes a socket on the host and starts connecting.
func (o *Outward) start(w *worker, at netip.AddrPort) (int32, unix.Errno) {
	fd, errno := w.socket(&target{family: familyOf(at.Addr())}, unix.SOCK_STREAM)
	if errno != 0 {
		return noDescriptor, errno
	}
	sysSetInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1)
	if o.pacing != "" {
		setCongestion(fd, unpaced)
	}
	to := newSockaddr(at.Addr(), at.Port())
	if errno = o.bindOutward(fd, at.Addr()); errno == 0 {
		errno = sysConnect(fd, &to)
	}
	if errno != 0 && errno != unix.EINPROGRESS {
		sysClose(fd)
		return noDescriptor, withoutSource(errno, &to)
	}
	return fd, 0
}

// withoutSource tells a host that has no address of IPv6 from one that has no port left, of which
// TCP's connect(2) says the same. UDP's says it of the former only.
func withoutSource(errno unix.Errno, to *sockaddr) unix.Errno {
	if errno != unix.EADDRNOTAVAIL || to.raw.Family != unix.AF_INET6 {
		return errno
	}
	fd, failed := sysSocket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if failed != 0 {
		return errno
	}
	defer sysClose(fd)
	if sysConnect(fd, to) == unix.EADDRNOTAVAIL {
		return unix.ENETUNREACH
	}
	return errno
}

func (d *dial) ready(w *worker, _ int, events uint32) {
	d.far.happened(events)
	switch {
	case d.answered:
	case d.far.failed:
		errno := sysError(d.far.fd)
		d.member.refused.Add(1)
		d.end(w)
		sysClose(d.far.fd)
		d.out.gate.Failed(d.call, d.packet, errno)
	case d.far.writable:
		d.answered, d.renewed = true, w.now
		d.out.expected++
		d.out.gate.Answered(d.call, d.packet)
	}
}

func (d *dial) resume(*worker) {}

// close is for a worker that stops.
func (d *dial) close(*worker) { sysClose(d.far.fd) }

// end ends the wait; the socket is somebody else's from now on.
func (d *dial) end(w *worker) {
	delete(d.out.dials, d.call)
	d.member.dials--
	w.leave(d.ticket)
}

// overdue says that the container does not wait any more, as far as can be seen: a next SYN
// would have come by now.
func (d *dial) overdue(now time.Duration) bool {
	if d.answered {
		return now-d.renewed > answerPatience
	}
	return now-d.renewed > dialPatience+(d.renewed-d.since)*5/4
}

func (d *dial) giveUp(w *worker) {
	if d.answered {
		d.out.expected--
	}
	d.end(w)
	sysReset(d.far.fd)
}

// exitListener accepts what the packets that were held have become.
type exitListener struct {
	ticket ticket
	out    *Outward
	fd     int32
	paused bool
}

// acceptsEachTurn is how many connections are accepted before others get their turn.
const acceptsEachTurn = 16

func (l *exitListener) ready(w *worker, _ int, _ uint32) {
	for n := 0; n == 0 || n < acceptsEachTurn && l.out.expected > 0; n++ {
		fd, errno := sysAccept(l.fd, &w.name)
		if exhausted(errno) {
			l.pause(w)
		}
		if errno != 0 {
			return
		}
		l.take(w, fd)
	}
}

// pause stops accepting until the next sweep: a connection that ends leaves descriptors.
func (l *exitListener) pause(w *worker) {
	l.paused = true
	w.rewatch(l.fd, l.ticket, 0, 0)
	w.forwarder.pipes.release()
}

func (l *exitListener) proceed(w *worker) {
	if l.paused {
		l.paused = false
		w.rewatch(l.fd, l.ticket, 0, level)
	}
}

// take joins an accepted connection with the one that was dialled for it.
func (l *exitListener) take(w *worker, fd int32) {
	var local sockaddr
	if sysLocalName(fd, &local) != 0 {
		sysReset(fd)
		return
	}
	d := l.out.dials[Call{w.name.addrPort(), local.addrPort()}]
	if d == nil || !d.answered {
		sysReset(fd) // the far end has gone meanwhile
		return
	}
	l.out.expected--
	l.out.join(w, d, fd)
}

// join makes a connection of its two sides. It stays with this worker until it is seen to
// last (conn.settle).
func (o *Outward) join(w *worker, d *dial, fd int32) {
	m := d.member
	m.active.Add(1)
	m.total.Add(1)
	m.users.Add(1)
	c := &conn{port: &m.port, since: w.now, ticket: d.ticket, fresh: true, young: true}
	o.young.push(c)
	c.sides = [...]side{client: {fd: fd, writable: true}, service: d.far}
	w.load.Add(1)
	w.fresh.Add(1)
	w.seats[d.ticket.seat].handler = c
	delete(o.dials, d.call)
	m.dials--
	if errno := w.watch(fd, c.ticket, client, edge); errno != 0 {
		m.dropped.Add(1)
		c.abort(w)
		return
	}
	c.queue(w)
}

func (l *exitListener) resume(*worker) {}

func (l *exitListener) close(w *worker) {
	w.unwatch(l.fd)
	w.leave(l.ticket)
	sysClose(l.fd)
}

// exit is where the flows of a udpPort go.
type exit struct {
	to        netip.AddrPort // for the container
	at        sockaddr       // really
	idleSince time.Duration  // while it has no flow
	opener    *member
}

// exitKept is how long the socket of a UDP destination outlives its last flow, or waits for
// its first datagram.
const exitKept = 2 * time.Second

// exitsMost is how many UDP destinations there may be at a time, in shares of what flows may be. Who asks
// for one first has it among his, as long as anybody uses it.
const exitsMost = 2

// Open makes the socket that takes the datagrams for a destination, which is at at
// really. False says that there is none, and what came for it is to be dropped. For the
// Gate to call.
func (o *Outward) Open(from netip.Addr, to, at netip.AddrPort) bool {
	w := o.worker
	if o.ports[to] != nil {
		return true
	}
	m := o.member(from)
	if !admits(m.exits, len(o.ports), o.forwarder.config.MaxFlows/exitsMost, timesOpen) {
		m.dropped.Add(1)
		return false
	}
	u := newUDPPort(&m.port, &target{family: familyOf(at.Addr())}, familyOf(to.Addr()), noDescriptor)
	u.out, u.leaving = o, exit{to: to, at: newSockaddr(at.Addr(), at.Port()), idleSince: w.now, opener: m}
	if !o.bindExit(u) || u.serve(w) != 0 {
		m.dropped.Add(1)
		u.close(w)
		return false
	}
	o.ports[to] = u
	m.exits++
	o.nextSweep = min(o.nextSweep, w.now+sweepInterval)
	return true
}

// bindExit makes the socket, which has the destination's address.
func (o *Outward) bindExit(u *udpPort) bool {
	fd, err := o.config.Inside(u.family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	u.fd = int32(fd)
	if !o.forwarder.budget.allows(u.fd) {
		return false
	}
	here := &target{family: u.family}
	here.makeTransparent(u.fd)
	sysSetInt(u.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // beside a published port's client, maybe
	sysSetInt(u.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, datagramBuffer)
	sysSetInt(u.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, datagramBuffer)
	at := newSockaddr(u.leaving.to.Addr(), u.leaving.to.Port())
	return sysBind(u.fd, &at) == 0
}

// admitsFlow says whether a member may have another flow. One that has its share gives up
// its oldest without a reply for it.
func (o *Outward) admitsFlow(w *worker, from netip.Addr) bool {
	m := o.member(from)
	if admits(int(m.active.Load()), o.inUse(), min(o.budget, w.forwarder.config.MaxFlows), timesOpen) {
		return true
	}
	const looks = 256
	for _, stage := range []stage{unreplied, replied} {
		f := w.flows[stage].head
		for range looks {
			if f == nil {
				break
			}
			if f.port == &m.port {
				m.dropped.Add(1)
				f.close(w)
				return true
			}
			f = f.place.next
		}
	}
	m.dropped.Add(1)
	return false
}

// leave connects a flow's socket on the host.
func (f *flow) leave(w *worker) (errno unix.Errno) {
	u := f.udp
	if f.fd, errno = w.socketOrEvict(u.target); errno != 0 {
		return errno
	}
	sysSetInt(f.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, datagramBuffer)
	u.tellErrors(f.fd)
	errno = u.out.bindOutward(f.fd, u.leaving.at.ip())
	told := errno // where an address has gone, who asks again may have more luck
	if errno == 0 {
		errno = sysConnect(f.fd, &u.leaving.at)
		told = heard(errno)
	}
	if errno != 0 {
		sysClose(f.fd)
		f.fd = noDescriptor
		f.port.refused.Add(1)
		u.out.notReached(f, told)
	}
	return errno
}

// heard is what a container is told of what the host itself does not get to, and says at once: of
// ICMP's errors a UDP socket hears of a closed port, and of no other of these (icmp_err_convert in
// net/ipv4/icmp.c, icmpv6_err_convert in net/ipv6/icmp.c).
func heard(errno unix.Errno) unix.Errno {
	switch errno {
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EADDRNOTAVAIL:
		return unix.ECONNREFUSED
	}
	return errno
}

// tellErrors has a socket tell of every ICMP error, not only of a closed port (ip(7),
// IP_RECVERR).
func (u *udpPort) tellErrors(fd int32) {
	if u.target.family == unix.AF_INET6 {
		sysSetInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
		return
	}
	sysSetInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1)
}

// notReached tells the container, and takes what the socket has to say of it.
func (o *Outward) notReached(f *flow, errno unix.Errno) {
	if f.fd >= 0 {
		sysDropErrors(f.fd)
	}
	o.gate.Failed(Call{f.key.client.addrPort(), f.udp.leaving.to}, nil, errno)
}
