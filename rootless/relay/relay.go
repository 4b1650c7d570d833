package relay

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/names"
	"github.com/ambi-cni/ambi/portmap/forward"
)

// Config is what a way out is.
type Config struct {
	Hub    *os.File // network namespace of the hub
	IfName string   // of the tun
	// Kept are the files of a relay before, see Keep, which are taken over; nil: all is made.
	Kept []*os.File
	IPv4 Network
	IPv6 Network // zero: none

	AllowHostLoopback bool
	// From is the address of the host that everything of a family leaves from; invalid: the
	// host's choice.
	From func(ipv6 bool) netip.Addr

	Logger *slog.Logger
}

// Relay is a way out that is open.
type Relay struct {
	config  Config
	inside  *inside
	engine  *forward.Outward
	names   *names.Server // nil: none
	refused refusals
	echoes  echoes
	turns   turns
	pieces  pieces
	begun   chan struct{} // closed when all above are there: packets may have waited in the tun
}

// Start opens a way out: the interface is there when it returns, and has neither addresses
// nor routes.
func Start(c Config) (*Relay, error) {
	r := &Relay{config: c, begun: make(chan struct{}), echoes: newEchoes(), turns: turns{of: make(map[netip.Addr]*queue)}, pieces: pieces{of: make(map[piecesKey]*unfinished)}}
	var err error
	if r.inside, err = enter(&c); err != nil {
		return nil, err
	}
	r.engine, err = forward.NewOutward(forward.OutwardConfig{
		Gate: r, Packets: r.inside.tun, Listeners: r.inside.listeners, Inside: r.inside.socket,
		From: c.From, Logger: c.Logger,
	})
	if err != nil {
		r.inside.close()
		return nil, fmt.Errorf("the way out: %w", err)
	}
	close(r.begun)
	if err := r.serveNames(); err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("the way out: %w", err)
	}
	return r, nil
}

// Drain leaves the interface and the name server's sockets to another. What there is goes on.
func (r *Relay) Drain() {
	if r.names != nil {
		r.names.Close()
	}
	r.engine.Drain()
}

// Connections is how many there are.
func (r *Relay) Connections() int { return r.engine.Connections() }

// Close closes it. The interface goes with it.
func (r *Relay) Close() error {
	if r.names != nil {
		r.names.Close()
	}
	err := r.engine.Close()
	r.inside.close()
	return err
}

// Keep are the interface and the sockets of the name server, for who goes on with them when this
// process has ended: packets and questions wait in them.
func (r *Relay) Keep() []*os.File { return append([]*os.File{r.inside.file}, r.inside.copies...) }

// MemberStats are the counters of one address of a container.
type MemberStats = forward.MemberStats

// Stats are what each container lets out.
func (r *Relay) Stats() []MemberStats { return r.engine.Stats() }

// Forget begins anew for who gets these addresses next.
func (r *Relay) Forget(addresses []netip.Addr) { r.engine.Forget(addresses) }

var _ forward.Gate = (*Relay)(nil)

func (r *Relay) work(p *packet) {
	switch p.protocol {
	case unix.IPPROTO_TCP:
		r.segment(p)
	case unix.IPPROTO_UDP:
		r.datagram(p)
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		r.ping(p)
	default:
		if classOf(p.to) != everybody {
			r.tell(p, noProtocol)
		}
	}
}

// segment is of TCP: the first of a connection, or one of a connection that is no more.
func (r *Relay) segment(p *packet) {
	flags, ok := p.tcpFlags()
	switch {
	case !ok, flags&flagRST != 0:
		return
	case flags&(flagSYN|flagACK|flagFIN) != flagSYN:
		if p.to.IsGlobalUnicast() {
			r.inside.send(p.from, p.reset())
		}
		return
	}
	from, to := p.ends()
	at, why := r.where(to)
	switch why {
	case reached:
		r.engine.Dial(forward.Call{From: from, To: to}, at, p.all)
	case everybody, reserved:
	case noNeighbour:
		r.tell(p, noHost)
	default:
		r.refuse(p, why)
		r.inside.send(p.from, p.reset())
	}
}

func (r *Relay) datagram(p *packet) {
	if len(p.payload) < headerU {
		return
	}
	_, to := p.ends()
	at, why := r.where(to)
	switch why {
	case reached:
		if to.Port() != 0 && r.engine.Open(p.from, to, at) {
			r.engine.Again(p.all)
		}
	case everybody, reserved:
	case noNeighbour:
		r.tell(p, noHost)
	default:
		r.refuse(p, why)
		r.tell(p, noPort)
	}
}

// Answered has the container's connection begin.
func (r *Relay) Answered(_ forward.Call, syn []byte) { r.engine.Again(syn) }

// Failed tells the container what the host was told.
func (r *Relay) Failed(c forward.Call, syn []byte, errno unix.Errno) {
	p := datagram(c.From, c.To)
	if syn != nil {
		p, _ = parse(syn)
	}
	switch errno {
	case unix.ETIMEDOUT, unix.EADDRNOTAVAIL, unix.EAGAIN, unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		// Who asks again may have more luck.
	case unix.ECONNREFUSED, unix.ECONNRESET, unix.ECONNABORTED, unix.EPIPE:
		if syn != nil {
			r.inside.send(p.from, p.reset())
		} else {
			r.tell(&p, noPort)
		}
	case unix.ENETUNREACH:
		r.tell(&p, noRoute)
	case unix.EACCES, unix.EPERM:
		if syn != nil {
			r.tell(&p, prohibited)
		} // a datagram's destination is a broadcast address
	default:
		r.tell(&p, noHost)
	}
}

// tell has a container hear of ICMP why a packet is not delivered.
func (r *Relay) tell(p *packet, why reason) {
	router := r.network(p.to).Gateway
	if !router.IsValid() {
		router = p.to
	}
	said := p.unreachable(router, why)
	if p.protocol != unix.IPPROTO_TCP {
		r.inside.send(p.from, said)
		return
	}
	// connect(2) may not have let go of the socket yet, which is deaf to errors until then
	// (tcp_v4_err in net/ipv4/tcp_ipv4.c) and would ask again after a second.
	from := p.from
	r.engine.Later(func() { r.inside.send(from, said) })
}

// refuse counts and logs that a class of destinations is refused to a container.
func (r *Relay) refuse(p *packet, why class) {
	r.engine.Refuse(p.from)
	if r.refused.first(p.from, why) {
		r.config.Logger.Warn("a container asks for what is closed to it", "container", p.from, "destination", p.to, "is", string(why))
	}
}

// refusals are who was told of what: the log has each once, and no more than it has room for.
type refusals struct{ told map[refusal]bool }

type refusal struct {
	from netip.Addr
	why  class
}

const refusalsMost = 1000

func (r *refusals) first(from netip.Addr, why class) bool {
	key := refusal{from, why}
	if r.told[key] || len(r.told) >= refusalsMost {
		return false
	}
	if r.told == nil {
		r.told = make(map[refusal]bool)
	}
	r.told[key] = true
	return true
}
