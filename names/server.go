package names

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"

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

// directory is who has which name now; nil for a server without names of its own.
func (s *Server) directory() *directory {
	if s.source == nil {
		return nil
	}
	return s.source.directory()
}

// answer is the answer to a query that we know; without one somebody else is to be asked
// on behalf of the asker, if there is one. By UDP limit is 0.
func (s *Server) answer(d *directory, q *query, to, msg []byte, client netip.Addr, limit int) (a *asker, answer []byte) {
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
	if d == nil {
		return &asker{member: &member{}}, nil
	}
	if a = d.askers[client][s.network]; a == nil {
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
	a, answer := s.answer(s.directory(), &q, nil, msg, client, maxMessage)
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
