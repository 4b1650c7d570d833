package forward

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Outward is a [Forwarder] turned round: containers are the clients, and what they connect
// to is reached by sockets on the host. Who knows of packets, and of which destinations
// there are, is its [Gate].
//
// The containers' side is made of transparent sockets (ip(7), IP_TRANSPARENT) in their
// namespace or the hub's: TCP listeners that the Gate's firewall rules lead every
// connection to, and a UDP socket for each destination. What there is no socket for
// arrives as a packet on a descriptor, and is held until the far end has answered
// ([Outward.Dial]), or until there is a socket ([Outward.Open]). Then the Gate sends the
// very packet again.
//
// One worker has packets, listeners, UDP and connections that are young; those that go on are shared
// among all (conn.settle).
type Outward struct {
	forwarder *Forwarder
	config    OutwardConfig
	gate      Gate
	worker    *worker
	packet    []byte
	budget    int // connections and flows of all members together

	// The first worker's.
	dials     map[Call]*dial
	ports     map[netip.AddrPort]*udpPort
	listeners []*exitListener
	nextSweep time.Duration
	watched   int
	expected  int // dials that have answered: so many connections are to be accepted
	later     []delayed
	young     list[*conn] // oldest first, see grow
	pacing    string      // the host's congestion control, where that paces

	mu      sync.Mutex
	members map[netip.Addr]*member
}

// Call is a connection or flow as the container has it.
type Call struct{ From, To netip.AddrPort }

// Gate knows of packets what an Outward does not. Its methods are called by one worker,
// one at a time, and must not block; they may call the methods of the Outward that say so.
type Gate interface {
	// Packet is one that there is no socket for. It is good until it returns.
	Packet(p []byte)

	// Work does some of what Packet was told of, and says whether there is more.
	Work() bool

	// Answered: the destination of a call has accepted, and the listener expects the
	// packet that Dial was given.
	Answered(c Call, packet []byte)

	// Tick is called about once a second while something is watched.
	Tick()

	// Failed: it has not. The packet is the one that Dial was given, nil for a UDP flow.
	Failed(c Call, packet []byte, errno unix.Errno)
}

// OutwardConfig is what an Outward works with.
type OutwardConfig struct {
	Gate Gate

	// Packets is a descriptor that packets are read from and written to, one by one. It is the caller's.
	Packets int

	// Listeners are TCP sockets in the containers' namespace or the hub's, bound and
	// transparent. They become the Outward's.
	Listeners []int

	// Inside is socket(2) there.
	Inside func(domain, typ, proto int) (int, error)

	// From is the address of the host that connections and flows of a family leave from;
	// invalid: the host's choice. It is asked for each of them.
	From func(ipv6 bool) netip.Addr

	Logger *slog.Logger
}

// host is the namespace that sockets for what leaves are made in: the one that every
// thread is in.
type host struct{ Namespace }

func (host) Enter() error                               { return nil }
func (host) Socket(domain, typ, proto int) (int, error) { return unix.Socket(domain, typ, proto) }

// NewOutward starts one.
func NewOutward(c OutwardConfig) (*Outward, error) {
	f, err := New(Config{Namespace: host{}, Logger: c.Logger})
	if err != nil {
		return nil, err
	}
	o := &Outward{
		forwarder: f, config: c, gate: c.Gate, packet: make([]byte, packetMost), budget: int(f.budget.most) / 2,
		dials: make(map[Call]*dial), ports: make(map[netip.AddrPort]*udpPort), members: make(map[netip.Addr]*member),
	}
	if o.worker, err = f.workerAt(0); err != nil {
		return nil, err
	}
	o.worker.do(func(w *worker) { err = o.serve(w) })
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("watching packets and listeners: %w", err)
	}
	return o, nil
}

// serve starts watching.
func (o *Outward) serve(w *worker) error {
	w.out, w.datagram = o, newDatagrams()
	o.pacing = hostPacing()
	for _, fd := range o.config.Listeners {
		if err := unix.Listen(fd, backlog); err != nil {
			return err
		}
		unpace(int32(fd)) // whoever connects is of this kernel
		l := &exitListener{out: o, fd: int32(fd)}
		l.ticket = w.seat(l)
		o.listeners = append(o.listeners, l)
		if errno := w.watch(l.fd, l.ticket, 0, level); errno != 0 {
			return errno
		}
	}
	if errno := w.watch(int32(o.config.Packets), w.seat(&packets{out: o}), 0, level); errno != 0 {
		return errno
	}
	return nil
}

// Drain reads no more packets and lets nobody in, who are another Outward's from now on. What
// there is goes on, and what has begun; where the destination does not answer in a moment, the
// container will ask the other one.
func (o *Outward) Drain() {
	const moment, pause = 200 * time.Millisecond, time.Millisecond
	dials := 0
	look := func(*worker) { dials = len(o.dials) }
	o.worker.do(func(w *worker) {
		w.unwatch(int32(o.config.Packets))
		look(w)
	})
	for deadline := time.Now().Add(moment); dials > 0 && time.Now().Before(deadline); o.worker.do(look) {
		time.Sleep(pause)
	}
	o.worker.do(func(w *worker) {
		for _, l := range o.listeners {
			l.close(w)
		}
		o.listeners = nil
	})
}

// Connections is how many there are.
func (o *Outward) Connections() int { return o.forwarder.Connections() }

// Close ends everything that leaves.
func (o *Outward) Close() error { return o.forwarder.Close() }

// MemberStats are the counters of what one container lets out, since it was seen first.
type MemberStats struct {
	Address netip.Addr `json:"address"`
	Active  int64      `json:"active"` // connections and UDP flows now
	Total   uint64     `json:"total"`  // and in all
	// BytesOut is what the container has sent, BytesIn what it was sent.
	BytesOut uint64 `json:"bytesOut"`
	BytesIn  uint64 `json:"bytesIn"`
	// Refused counts what the destination or the Gate refused, or could not be reached for.
	Refused uint64 `json:"refused"`
	// Dropped counts connections, flows, datagrams and packets of the Gate's for which there was no room.
	Dropped uint64 `json:"dropped"`
}

// Stats reads the counters of every container, by address.
func (o *Outward) Stats() []MemberStats {
	o.mu.Lock()
	defer o.mu.Unlock()
	stats := make([]MemberStats, 0, len(o.members))
	for address, m := range o.members {
		stats = append(stats, MemberStats{
			Address: address, Active: m.active.Load(), Total: m.total.Load(),
			BytesOut: m.bytes[up].Load(), BytesIn: m.bytes[down].Load(), Refused: m.refused.Load(), Dropped: m.dropped.Load(),
		})
	}
	slices.SortFunc(stats, func(a, b MemberStats) int { return a.Address.Compare(b.Address) })
	return stats
}

// Refuse counts what the Gate has refused a container.
func (o *Outward) Refuse(address netip.Addr) { o.member(address).refused.Add(1) }

// Drop counts what the Gate had no room for.
func (o *Outward) Drop(address netip.Addr) { o.member(address).dropped.Add(1) }

// Forget begins anew for who gets these addresses next.
func (o *Outward) Forget(addresses []netip.Addr) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range addresses {
		delete(o.members, a)
	}
}

// member is a container, by its address.
type member struct {
	port  // its counters
	dials int
	exits int // UDP destinations that it was the first to ask for
}

// mostMembers is how many addresses are remembered; of more, those that have nothing open
// are forgotten.
const mostMembers = 4096

func (o *Outward) member(address netip.Addr) *member {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := o.members[address]
	if m == nil {
		if len(o.members) >= mostMembers {
			o.forgetIdle()
		}
		m = &member{}
		m.users.Store(1)
		o.members[address] = m
	}
	return m
}

// forgetIdle is called with the lock held.
func (o *Outward) forgetIdle() {
	for address, m := range o.members {
		if m.active.Load() == 0 && m.dials == 0 && m.exits == 0 {
			delete(o.members, address)
		}
	}
}

// admits says whether a member may have one more of what others have, too: as long as it has no
// more than so many times what would be left for the rest. So one alone gets the greater part
// of all there is, and whoever comes later finds some, however many take what they can.
func admits(own, all, most, times int) bool { return own <= times*(most-all) }

// What a member may have of what is under way, and of what is open and mostly stands still.
const (
	timesUnderWay = 1
	timesOpen     = 8
)

func (o *Outward) inUse() int {
	return int(o.forwarder.flows.Load()) + o.forwarder.Connections()
}

// packets is the handler of what comes as packets.
type packets struct {
	out    *Outward
	queued bool
}

// packetMost is as long as a packet can be.
const packetMost = 64 << 10

// packetsEachTurn is how many are read before they are worked on: to read one takes little.
const packetsEachTurn = 1024

// ready reads packets; epoll tells again when there are more.
func (p *packets) ready(w *worker, _ int, _ uint32) {
	o := p.out
	for range packetsEachTurn {
		n, errno := sysRead(int32(o.config.Packets), o.packet)
		if errno != 0 || n <= 0 {
			break
		}
		o.gate.Packet(o.packet[:n])
	}
	if !p.queued {
		p.resume(w)
	}
}

func (p *packets) resume(w *worker) {
	if p.queued = p.out.gate.Work(); p.queued {
		w.again(p)
	}
}

func (p *packets) close(w *worker) { w.unwatch(int32(p.out.config.Packets)) }

// Again has a packet arrive, as if it had not been read. For the Gate to call.
func (o *Outward) Again(packet []byte) { sysWrite(int32(o.config.Packets), packet) }

// sweepInterval is between two looks at what has waited too long.
const sweepInterval = time.Second

// patience is how long the worker may sleep; never for as long as it likes.
func (o *Outward) patience(now time.Duration) time.Duration {
	switch {
	case len(o.later) > 0:
		return max(o.later[0].at-now, 0)
	case len(o.dials) > 0 || len(o.ports) > 0 || o.watched > 0 || o.young.head != nil:
		return max(o.nextSweep-now, 0)
	}
	return never
}

// delayed is something that is to be done at a time.
type delayed struct {
	at time.Duration
	do func()
}

// moment is what Later means.
const moment = time.Millisecond

// Later has something done in a moment. For the Gate to call.
func (o *Outward) Later(do func()) {
	o.later = append(o.later, delayed{o.worker.now + moment, do})
}

// runLater does what is due.
func (o *Outward) runLater(now time.Duration) {
	for len(o.later) > 0 && o.later[0].at <= now {
		first := o.later[0]
		o.later = o.later[1:]
		first.do()
	}
}

func (o *Outward) sweep(w *worker) {
	o.runLater(w.now)
	if w.now < o.nextSweep {
		return
	}
	o.nextSweep = w.now + sweepInterval
	for _, d := range o.dials {
		if d.overdue(w.now) {
			d.giveUp(w)
		}
	}
	for _, u := range o.ports {
		if len(u.flows) > 0 {
			u.leaving.idleSince = w.now
		} else if w.now-u.leaving.idleSince > exitKept {
			delete(o.ports, u.leaving.to)
			u.leaving.opener.exits--
			u.close(w)
		}
	}
	for _, l := range o.listeners {
		l.proceed(w)
	}
	for c := o.young.head; c != nil && w.now-c.since > lasting; c = o.young.head {
		o.grow(c)
	}
	if o.watched > 0 {
		o.gate.Tick()
	}
}

// watch is a descriptor of the Gate.
type watch struct {
	ticket ticket
	fd     int32
	read   func()
}

// Watch has read called when there is something to read from a non-blocking descriptor, which is the
// Outward's from now on; stop closes it. For the Gate to call. False when it cannot be.
func (o *Outward) Watch(fd int, read func()) (stop func(), ok bool) {
	w := o.worker
	h := &watch{fd: int32(fd), read: read}
	if !o.forwarder.budget.allows(h.fd) {
		sysClose(h.fd)
		return nil, false
	}
	h.ticket = w.seat(h)
	if w.watch(h.fd, h.ticket, 0, level) != 0 {
		w.leave(h.ticket)
		sysClose(h.fd)
		return nil, false
	}
	o.watched++
	o.nextSweep = min(o.nextSweep, w.now+sweepInterval)
	return func() {
		o.watched--
		w.leave(h.ticket)
		sysClose(h.fd)
	}, true
}

func (h *watch) ready(*worker, int, uint32) { h.read() }
func (h *watch) resume(*worker)             {}
func (h *watch) close(*worker)              { sysClose(h.fd) }

// addrPort is for what is not done for each datagram: the hot path of UDP keeps to sockaddr.
func (s *sockaddr) addrPort() netip.AddrPort { return netip.AddrPortFrom(s.ip(), s.port()) }

// bindOutward binds a socket on the host to the address that things leave from, if one was chosen.
func (o *Outward) bindOutward(fd int32, to netip.Addr) unix.Errno {
	from := o.config.From(to.Is6())
	if !from.IsValid() || to.IsLoopback() {
		return 0
	}
	sysSetInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	at := newSockaddr(from, 0)
	return sysBind(fd, &at)
}
