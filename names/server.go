package names

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

// Server answers the containers of one network, and forwards for them.
type Server struct {
	network   string
	source    *source
	host      *hostServers
	forwarder *forwarder

	closed  atomic.Bool
	asked   atomic.Uint64 // queries by UDP so far
	mu      sync.Mutex
	streams map[net.Conn]netip.Addr // of the clients by TCP
	closers []interface{ Close() error }
}

// New is the server of a network, as [NetworkOf] calls it. resolvConf is the file that
// names the host's own servers.
func New(store *record.Store, network, resolvConf string) *Server {
	return &Server{
		network: network, source: &source{store: store}, host: &hostServers{path: resolvConf}, forwarder: newForwarder(),
		streams: map[net.Conn]netip.Addr{},
	}
}

// NewForwarder is a server that has no names of its own, and whom everybody may ask who
// reaches it.
func NewForwarder(resolvConf string) *Server {
	s := New(nil, "", resolvConf)
	s.source = nil
	return s
}

// The bounds of clients by TCP (RFC 7766, section 6.2).
const (
	maxStreamsOf = 16
	maxStreams   = 256
	idleFor      = 10 * time.Second // until the next query begins
	messageFor   = 5 * time.Second  // for a query to come, or an answer to be taken
)

// packets is a socket of UDP that is read without Go's poller: to be woken by that takes
// as long as an answer does.
type packets struct {
	file   *os.File
	mu     sync.RWMutex // is held to use the descriptor
	closed bool
}

func (p *packets) send(msg []byte, to unix.Sockaddr) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if !p.closed {
		_ = unix.Sendto(int(p.file.Fd()), msg, 0, to) // who has gone needs none
	}
}

func (p *packets) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.file.Close()
}

// ServePackets answers on a socket, which it takes over, until Close.
func (s *Server) ServePackets(f *os.File) {
	p := &packets{file: f}
	defer p.close()
	fd := int(f.Fd())
	if unix.SetNonblock(fd, false) != nil {
		return
	}
	s.keep(closer(func() error {
		return unix.Shutdown(fd, unix.SHUT_RDWR) // wakes it, though the socket is not connected
	}))
	in, out := make([]byte, maxUDP+1), make([]byte, 0, maxUDP)
	for !s.closed.Load() {
		n, from := receive(fd, in)
		if n > 0 && from != nil {
			s.servePacket(p, from, in[:n], out)
		}
	}
}

// receive is recvfrom(2), which the library follows with a question about the socket's
// protocol.
func receive(fd int, to []byte) (n int, from unix.Sockaddr) {
	var raw unix.RawSockaddrInet6 // the longer one
	length := uint32(unsafe.Sizeof(raw))
	got, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&to[0])), uintptr(len(to)), 0,
		uintptr(unsafe.Pointer(&raw)), uintptr(unsafe.Pointer(&length)))
	port := func(p *uint16) int { return int(binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:])) }
	switch {
	case errno != 0:
		return 0, nil
	case raw.Family == unix.AF_INET:
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(&raw))
		return int(got), &unix.SockaddrInet4{Port: port(&four.Port), Addr: four.Addr}
	case raw.Family == unix.AF_INET6:
		return int(got), &unix.SockaddrInet6{Port: port(&raw.Port), Addr: raw.Addr, ZoneId: raw.Scope_id}
	}
	return 0, nil
}

func (s *Server) servePacket(p *packets, from unix.Sockaddr, msg, out []byte) {
	s.asked.Add(1)
	client := addressOfClient(from)
	var q query
	a, answer := s.answer(&q, out, msg, client, 0)
	if answer != nil {
		p.send(answer, from)
	}
	if answer != nil || a == nil {
		return
	}
	limit := q.size
	f := &question{msg: slices.Clone(msg), end: q.end(), client: client}
	clampSize(f.msg, &q)
	f.answer = func(msg []byte) {
		if msg == nil {
			msg = failure(f.msg)
		}
		p.send(truncated(msg, limit), from)
	}
	if !s.forwarder.ask(f, s.servers(a)) {
		f.answer(nil)
	}
}

func addressOfClient(from unix.Sockaddr) netip.Addr {
	switch from := from.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(from.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(from.Addr).Unmap()
	}
	return netip.Addr{}
}

// answer is the answer to a query that we know; without one somebody else is to be asked
// on behalf of the asker, if there is one. By UDP limit is 0.
func (s *Server) answer(q *query, to, msg []byte, client netip.Addr, limit int) (a *asker, answer []byte) {
	err := q.parse(msg)
	if limit == 0 {
		limit = q.size
	}
	var why problem
	switch {
	case err == nil:
	case errors.As(err, &why) && why == noQuery:
		return nil, nil
	default:
		return nil, reply{code: dnsmessage.RCode(why), foreign: true}.pack(to, q, limit)
	}
	if s.source == nil {
		return &asker{member: &member{}}, nil
	}
	if a = s.source.directory().askers[client][s.network]; a == nil {
		return nil, reply{code: dnsmessage.RCodeRefused, foreign: true}.pack(to, q, limit)
	}
	r, own := a.answer(q.name, q.kind)
	if !own && a.only {
		r, own = reply{code: dnsmessage.RCodeRefused, foreign: true}, true
	}
	if own {
		return a, r.pack(to, q, limit)
	}
	return a, nil
}

// failure is the answer to a query of which nobody knows the answer.
func failure(msg []byte) []byte {
	var q query
	_ = q.parse(msg) // it was read before
	return reply{code: dnsmessage.RCodeServerFailure, foreign: true}.pack(nil, &q, q.size)
}

// servers are asked for a container.
func (s *Server) servers(a *asker) []netip.Addr {
	if len(a.upstreams) > 0 {
		return a.upstreams
	}
	return s.host.now()
}

// ServeStreams answers connections until the listener is closed.
func (s *Server) ServeStreams(l *net.TCPListener) {
	s.keep(l)
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(pace) // no descriptors, say
			continue
		}
		if s.admit(c) {
			go s.serveStream(c)
		} else {
			c.Close()
		}
	}
}

// admit notes a connection, unless its client has enough of them.
func (s *Server) admit(c net.Conn) bool {
	client := clientOf(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	own := 0
	for _, other := range s.streams {
		if other == client {
			own++
		}
	}
	if own >= maxStreamsOf || len(s.streams) >= maxStreams {
		return false
	}
	s.streams[c] = client
	return true
}

func clientOf(c net.Conn) netip.Addr {
	address, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	return address.Addr().Unmap().WithZone("")
}

func (s *Server) serveStream(c net.Conn) {
	defer func() {
		s.mu.Lock()
		delete(s.streams, c)
		s.mu.Unlock()
		c.Close()
	}()
	for {
		_ = c.SetDeadline(time.Now().Add(idleFor))
		msg, err := readMessage(c, func() error { return c.SetDeadline(time.Now().Add(messageFor)) }, maxStream)
		if err != nil {
			return
		}
		answer := s.answerStream(msg, clientOf(c))
		if answer == nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(messageFor))
		if writeMessage(c, answer) != nil {
			return
		}
	}
}

// answerStream is the answer to a query by TCP; nil for what is none.
func (s *Server) answerStream(msg []byte, client netip.Addr) []byte {
	var q query
	a, answer := s.answer(&q, nil, msg, client, maxMessage)
	if answer != nil || a == nil {
		return answer
	}
	done := make(chan []byte, 1)
	servers := s.servers(a)
	packet := slices.Clone(msg)
	clampSize(packet, &q)
	if !s.forwarder.ask(&question{msg: packet, end: q.end(), client: client, answer: func(msg []byte) {
		done <- slices.Clone(msg)
	}}, servers) {
		return failure(msg)
	}
	answer = <-done
	if answer != nil && isTruncated(answer) {
		answer = askByTCP(msg, q.end(), s.forwarder.at(servers))
	}
	if answer == nil {
		return failure(msg)
	}
	return answer
}

// at are the servers with their port.
func (f *forwarder) at(servers []netip.Addr) (all []netip.AddrPort) {
	for _, a := range servers {
		all = append(all, netip.AddrPortFrom(a, f.port))
	}
	return all
}

type closer func() error

func (c closer) Close() error { return c() }

// keep has Close close c.
func (s *Server) keep(c interface{ Close() error }) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		c.Close()
	}
	s.closers = append(s.closers, c)
}

// Close ends the server.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed.Store(true)
	for _, c := range s.closers {
		c.Close()
	}
	for c := range s.streams {
		c.Close()
	}
	s.mu.Unlock()
	s.forwarder.close()
}
