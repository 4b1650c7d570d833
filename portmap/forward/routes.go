package forward

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambi-cni/ambi/conf"
)

// routes counts who needs which rule and route inside the namespace.
type routes struct {
	namespace Namespace

	mu      sync.Mutex
	ports   map[containerPort]int
	clients map[route]*routeUse
	idle    []idleRoute // in the order of their times; some are in use again
	pairs   map[pair]struct{}
	err     error // the first failure to take something back

	idleUntil atomic.Int64 // when idle[0] goes, to be read without the lock; 0 without one
}

type containerPort struct {
	protocol conf.Protocol
	port     uint16
	target   Target
}

func (r *routes) init(n Namespace) {
	r.namespace, r.ports = n, make(map[containerPort]int)
	r.clients, r.pairs = make(map[route]*routeUse), make(map[pair]struct{})
}

func (r *routes) addPort(key containerPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ports[key] == 0 {
		if err := r.namespace.AddPort(key.protocol, key.port, key.target); err != nil {
			return err
		}
	}
	r.ports[key]++
	return nil
}

func (r *routes) removePort(key containerPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ports[key]--
	if r.ports[key] == 0 {
		delete(r.ports, key)
		r.note(r.namespace.RemovePort(key.protocol, key.port, key.target))
	}
}

func (r *routes) note(err error) {
	if r.err == nil {
		r.err = err
	}
}

// pair is the two ends of a UDP flow inside the namespace that may be taken: a
// client that sends from one port to two host ports of the same service would
// have two sockets of the same addresses, and its answers would be mixed up.
type pair struct {
	client       address
	clientPort   uint16
	container    netip.Addr
	containerEnd uint16
}

// claim takes a pair for a flow that keeps the client's address; false when it is
// taken.
func (r *routes) claim(p pair) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, taken := r.pairs[p]; taken {
		return false
	}
	r.pairs[p] = struct{}{}
	return true
}

func (r *routes) disclaim(p pair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pairs, p)
}

// route is the one inside that brings answers to an address, in one protocol, back to us.
type route struct {
	protocol conf.Protocol
	ip       address
}

// routeUse counts the connections or flows that need a route.
type routeUse struct {
	users int
	since time.Duration // that users is 0
}

// routeKept is how long the route to a TCP client stays after its last connection:
// one that connects again and again needs it made once.
const routeKept = time.Second

// errOwnAddress: the service would take such a client for the container itself, and
// routing cannot tell its replies from what stays inside.
var errOwnAddress = errors.New("it is an address of the container")

// addClient is called with the source address of each flow and connection. The lock
// is held during the system calls, as a second one of the same client must not send
// before the route is there.
func (r *routes) addClient(protocol conf.Protocol, client netip.Addr, o origin) error {
	key := route{protocol, client.As16()}
	r.mu.Lock()
	defer r.mu.Unlock()
	use := r.clients[key]
	if use == nil {
		if o != byGateway && r.namespace.Has(client) {
			return errOwnAddress
		}
		if err := r.namespace.AddClient(protocol, client); err != nil {
			return err
		}
		use = &routeUse{}
		r.clients[key] = use
	}
	use.users++
	return nil
}

// removeClient ends a use. What a container sends by itself to a client that has no
// flow any more must leave by the tap, so UDP's route goes at once.
func (r *routes) removeClient(protocol conf.Protocol, client netip.Addr, now time.Duration) {
	key := route{protocol, client.As16()}
	r.mu.Lock()
	defer r.mu.Unlock()
	use := r.clients[key]
	use.users--
	switch {
	case use.users > 0:
	case protocol == conf.TCP:
		use.since = now
		if len(r.idle) == 0 {
			r.idleUntil.Store(int64(now + routeKept))
		}
		r.idle = append(r.idle, idleRoute{key, now})
	default:
		r.drop(key)
	}
}

// drop is called with the lock held.
func (r *routes) drop(key route) {
	delete(r.clients, key)
	r.note(r.namespace.RemoveClient(key.protocol, netip.AddrFrom16(key.ip).Unmap()))
}

// idleRoute is a route that nobody needed from a time on; it may be needed again.
type idleRoute struct {
	route
	since time.Duration
}

// idleEnd is when trim has something to do; false while it has not.
func (r *routes) idleEnd() (time.Duration, bool) {
	end := time.Duration(r.idleUntil.Load())
	return end, end != 0
}

// trim takes away the routes that nobody has needed for a while.
func (r *routes) trim(now time.Duration) {
	if end, ok := r.idleEnd(); !ok || end > now {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropIdle(now - routeKept)
}

// dropIdle takes away what is idle since a time or longer; with the lock held.
func (r *routes) dropIdle(until time.Duration) {
	for len(r.idle) > 0 && r.idle[0].since <= until {
		first := r.idle[0]
		r.idle = r.idle[1:]
		if use := r.clients[first.route]; use != nil && use.users == 0 && use.since == first.since {
			r.drop(first.route)
		}
	}
	if len(r.idle) == 0 {
		r.idle = nil
		r.idleUntil.Store(0)
		return
	}
	r.idleUntil.Store(int64(r.idle[0].since + routeKept))
}

// close takes away what is left when no worker is.
func (r *routes) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropIdle(1<<63 - 1)
	return r.err
}
