package relay

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file has echoes of ICMP, by the sockets that the kernel has for ordinary users
// (icmp(7), net.ipv4.ping_group_range, which is also IPv6's).

// echo is a container's conversation with a host that it pings: a socket of ours there,
// whose kernel makes up an identifier of its own.
type echo struct {
	echoKey
	fd   int
	last []byte // packet, for errors to quote
	used time.Time
	stop func()
}

type echoKey struct {
	from, to netip.Addr
	id       uint16
}

// echoes are those under way. Each has a descriptor; a container that pings everybody
// takes its own away.
type echoes struct {
	of     map[echoKey]*echo
	own    map[netip.Addr]int
	closed bool // to this user, which was logged
	buffer []byte
}

const (
	echoesMost    = 512
	echoesOwnMost = 64
	echoKept      = 10 * time.Second
)

func newEchoes() echoes {
	return echoes{of: make(map[echoKey]*echo), own: make(map[netip.Addr]int), buffer: make([]byte, 64<<10)}
}

// ping is a message of ICMP.
func (r *Relay) ping(p *packet) {
	kind := byte(echo4)
	if p.to.Is6() {
		kind = echo6
	}
	if len(p.payload) < headerU || p.payload[0] != kind || p.payload[1] != 0 {
		return
	}
	at, why := r.where(netip.AddrPortFrom(p.to, 0))
	n := r.network(p.to)
	switch {
	case why == reached:
	case p.to == n.Gateway:
		r.reply(p.from, p.to, p.payload, binary.BigEndian.Uint16(p.payload[4:])) // it is we
		return
	case why == everybody, why == reserved:
		return
	case why == noNeighbour:
		r.tell(p, noHost)
		return
	default:
		r.refuse(p, why)
		r.tell(p, prohibited)
		return
	}
	if e := r.echoFor(p, at.Addr()); e != nil {
		e.last, e.used = append(e.last[:0], p.all...), time.Now()
		r.hops(e, p)
		if err := unix.Sendto(e.fd, p.payload, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil); err != nil {
			r.echoFailed(e, err)
		}
	}
}

// hops has the echo go as far as the container wants it to.
func (r *Relay) hops(e *echo, p *packet) {
	if p.to.Is4() {
		_ = unix.SetsockoptInt(e.fd, unix.SOL_IP, unix.IP_TTL, max(int(p.all[8]), 1))
	} else {
		_ = unix.SetsockoptInt(e.fd, unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, max(int(p.all[7]), 1))
	}
}

// echoFor finds the conversation or begins one; nil where there can be none.
func (r *Relay) echoFor(p *packet, at netip.Addr) *echo {
	key := echoKey{p.from, p.to, binary.BigEndian.Uint16(p.payload[4:])}
	if e := r.echoes.of[key]; e != nil {
		return e
	}
	if !r.echoes.room(p.from) {
		r.engine.Drop(p.from)
		return nil
	}
	fd, err := r.openEcho(at)
	if err != nil {
		if errors.Is(err, unix.EACCES) && !r.echoes.closed {
			r.echoes.closed = true
			r.config.Logger.Warn("echoes of ICMP do not leave: the sysctl net.ipv4.ping_group_range of the host keeps them from this user", "error", err)
		}
		if errno := unix.Errno(0); errors.As(err, &errno) && (errno == unix.ENETUNREACH || errno == unix.EHOSTUNREACH) {
			r.tell(p, noRoute)
		}
		return nil
	}
	e := &echo{echoKey: key, fd: fd}
	stop, ok := r.engine.Watch(fd, func() { r.echoed(e) })
	if !ok {
		return nil
	}
	e.stop = stop
	r.echoes.of[key] = e
	r.echoes.own[key.from]++
	return e
}

// room makes room for another one of a container: its oldest gives way, or where all places are
// taken that of who has most, unless the container would then have as many.
func (s *echoes) room(from netip.Addr) bool {
	if s.own[from] < echoesOwnMost && len(s.of) < echoesMost {
		return true
	}
	whose := from
	if who, most := mostOf(s.own); most > s.own[from]+1 {
		whose = who
	}
	var oldest *echo
	for _, e := range s.of {
		if e.from == whose && (oldest == nil || e.used.Before(oldest.used)) {
			oldest = e
		}
	}
	if oldest == nil {
		return false
	}
	s.end(oldest)
	return true
}

func (s *echoes) end(e *echo) {
	e.stop()
	delete(s.of, e.echoKey)
	if s.own[e.from]--; s.own[e.from] == 0 {
		delete(s.own, e.from)
	}
}

// openEcho makes a socket on the host, of the kind that needs no right.
func (r *Relay) openEcho(at netip.Addr) (int, error) {
	family, protocol, level, tell := unix.AF_INET, unix.IPPROTO_ICMP, unix.SOL_IP, unix.IP_RECVERR
	from := r.config.From(at.Is6())
	if at.Is6() {
		family, protocol, level, tell = unix.AF_INET6, unix.IPPROTO_ICMPV6, unix.SOL_IPV6, unix.IPV6_RECVERR
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, err
	}
	_ = unix.SetsockoptInt(fd, level, tell, 1)
	if from.IsValid() && !at.IsLoopback() {
		err = unix.Bind(fd, sockaddrOf(from))
	}
	if err == nil {
		err = unix.Connect(fd, sockaddrOf(at))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sockaddrOf(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// echoed takes what a socket has: replies and errors.
func (r *Relay) echoed(e *echo) {
	const turn = 16
	for range turn {
		n, err := unix.Read(e.fd, r.echoes.buffer)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			r.echoFailed(e, err)
		case n >= headerU:
			r.reply(e.from, e.to, r.echoes.buffer[:n], e.id)
		}
	}
}

// reply sends an echo back to the container, with the identifier that it knows.
func (r *Relay) reply(from, to netip.Addr, message []byte, id uint16) {
	protocol, kind := byte(unix.IPPROTO_ICMP), byte(echoReply4)
	if to.Is6() {
		protocol, kind = unix.IPPROTO_ICMPV6, echoReply6
	}
	b := makePacket(to, from, protocol, len(message))
	m := b[len(b)-len(message):]
	copy(m, message)
	m[0], m[1] = kind, 0
	binary.BigEndian.PutUint16(m[4:], id)
	sumICMP(m, to, from)
	r.inside.send(from, b)
}

// echoFailed passes on what a router or the host itself has said of an echo.
func (r *Relay) echoFailed(e *echo, err error) {
	p, ok := parse(e.last)
	if !ok {
		return
	}
	told := false
	for {
		said, ok := readError(e.fd)
		if !ok {
			break
		}
		if said.origin == originICMP || said.origin == originICMP6 {
			r.inside.send(p.from, p.failure(said.offender, said.kind, said.code))
			told = true
		}
	}
	if !told && (errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)) {
		r.tell(&p, noHost)
	}
}

// sockError is an error of a socket (struct sock_extended_err of linux/errqueue.h).
type sockError struct {
	origin, kind, code byte
	offender           netip.Addr
}

const (
	originICMP  = 2
	originICMP6 = 3
)

// readError takes the next error of a socket; false without one.
func readError(fd int) (sockError, bool) {
	control := make([]byte, 512)
	_, n, _, _, err := unix.Recvmsg(fd, nil, control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return sockError{}, false
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return sockError{}, true
	}
	const size = 16
	for _, m := range messages {
		if len(m.Data) < size+2 {
			continue
		}
		e := sockError{origin: m.Data[4], kind: m.Data[5], code: m.Data[6]}
		switch from := m.Data[size:]; {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR && len(from) >= unix.SizeofSockaddrInet4:
			e.offender = netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&from[0])).Addr)
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR && len(from) >= unix.SizeofSockaddrInet6:
			e.offender = netip.AddrFrom16((*unix.RawSockaddrInet6)(unsafe.Pointer(&from[0])).Addr)
		default:
			continue
		}
		return e, true
	}
	return sockError{}, true
}

// Tick ends the echoes that nobody waits for any more.
func (r *Relay) Tick() {
	for _, e := range r.echoes.of {
		if time.Since(e.used) > echoKept {
			r.echoes.end(e)
		}
	}
}
