package forward

import (
	"errors"
	"net/netip"
	"time"

	"github.com/ambi-cni/ambi/conf"
)

// address is an IP address, IPv4 in its mapped form, without the pointer that a
// netip.Addr has: tables of thousands are invisible to the garbage collector.
type address [16]byte

// pair is the two ends of a UDP flow inside the namespace that may be taken: a
// client that sends from one port to two host ports of the same service would
// have two sockets of the same addresses, and its answers would be mixed up.
type pair struct {
	client       address
	clientPort   uint16
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

// source is an address that a service sees, in one protocol.
type source struct {
	protocol conf.Protocol
	ip       address
}

// sourceUse counts who needs the route to a source.
type sourceUse struct {
	flows int
	since time.Duration // that flows is 0
}

// sourceKept is how long the route to a TCP client stays after its last connection:
// one that connects again and again needs it made once.
const sourceKept = time.Second

// errOwnAddress: the service would take such a client for the container itself, and
// routing cannot tell its replies from what stays inside.
var errOwnAddress = errors.New("it is an address of the container")

// addClient is called with the source address of each flow and connection. The lock
// is held during the system calls, as a second one of the same client must not send
// before the route is there.
func (r *routes) addClient(protocol conf.Protocol, client netip.Addr, o origin) error {
	key := source{protocol, client.As16()}
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
		use = &sourceUse{}
		r.clients[key] = use
	}
	use.flows++
	return nil
}

// removeClient ends a use. What a container sends by itself to a client that has no
// flow any more must leave by the tap, so UDP's route goes at once.
func (r *routes) removeClient(protocol conf.Protocol, client netip.Addr, now time.Duration) {
	key := source{protocol, client.As16()}
	r.mu.Lock()
	defer r.mu.Unlock()
	use := r.clients[key]
	use.flows--
	switch {
	case use.flows > 0:
	case protocol == conf.TCP:
		use.since = now
		if len(r.idle) == 0 {
			r.idleUntil.Store(int64(now + sourceKept))
		}
		r.idle = append(r.idle, idleSource{key, now})
	default:
		r.drop(key)
	}
}

// drop is called with the lock held.
func (r *routes) drop(key source) {
	delete(r.clients, key)
	r.note(r.namespace.RemoveClient(key.protocol, netip.AddrFrom16(key.ip).Unmap()))
}

// idleSource is a source that nobody needed from a time on; it may be needed again.
type idleSource struct {
	source
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
	r.dropIdle(now - sourceKept)
}

// dropIdle takes away what is idle since a time or longer; with the lock held.
func (r *routes) dropIdle(until time.Duration) {
	for len(r.idle) > 0 && r.idle[0].since <= until {
		first := r.idle[0]
		r.idle = r.idle[1:]
		if use := r.clients[first.source]; use != nil && use.flows == 0 && use.since == first.since {
			r.drop(first.source)
		}
	}
	if len(r.idle) == 0 {
		r.idle = nil
		r.idleUntil.Store(0)
		return
	}
	r.idleUntil.Store(int64(r.idle[0].since + sourceKept))
}

// close takes away what is left when no worker is.
func (r *routes) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropIdle(1<<63 - 1)
	return r.err
}
