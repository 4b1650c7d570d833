package forward

import (
	"net/netip"
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

// addClient is called with the source address of each flow. The lock is held
// during the system call, as a second flow of the same client must not send before
// the route is there.
func (r *routes) addClient(client netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := address(client.As16())
	if r.clients[key] == 0 {
		if err := r.namespace.AddClient(client); err != nil {
			return err
		}
	}
	r.clients[key]++
	return nil
}

func (r *routes) removeClient(client netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := address(client.As16())
	r.clients[key]--
	if r.clients[key] == 0 {
		delete(r.clients, key)
		r.note(r.namespace.RemoveClient(client))
	}
}
