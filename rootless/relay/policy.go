package relay

import (
	"net/netip"
)

// class is a kind of destination, for which one of these holds: it is reached, refused, or
// not heard of.
type class string

const (
	reached     class = ""
	loopback    class = "the host's loopback"
	linkLocal   class = "link-local"
	everybody   class = "multicast or broadcast"
	reserved    class = "reserved"
	noGateway   class = "the gateway"
	noNeighbour class = "the driver's own network"
)

// metadata is where clouds tell a machine what it is. It is link-local, and reached
// as from the host and by the other drivers: what runs without root has no more from it than
// the user who started it.
var metadata = netip.MustParseAddr("169.254.169.254")

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")   // RFC 1122; Linux takes it for this host
	futureUse   = netip.MustParsePrefix("240.0.0.0/4") // RFC 1112, with the broadcast address
	compatible  = netip.MustParsePrefix("::/96")       // RFC 4291, section 2.5.5.1; with :: and ::1
	mapped      = netip.MustParsePrefix("::ffff:0:0/96")
)

// Network is one address family of the way out.
type Network struct {
	Network netip.Prefix
	Gateway netip.Addr // leads to the host's loopback, where that is open
	DNS     netip.Addr // of the name server, which is in the hub (names.go); invalid: none
}

// where says where a destination really is.
func (r *Relay) where(to netip.AddrPort) (netip.AddrPort, class) {
	a := to.Addr()
	n := r.network(a)
	switch {
	case n.Gateway.IsValid() && a == n.Gateway:
		if !r.config.AllowHostLoopback {
			return to, noGateway
		}
		return netip.AddrPortFrom(loopbackOf(a), to.Port()), reached
	case n.Network.IsValid() && n.Network.Contains(a):
		return to, noNeighbour
	}
	return to, classOf(a)
}

// network is that of an address's family.
func (r *Relay) network(a netip.Addr) *Network {
	if a.Is6() {
		return &r.config.IPv6
	}
	return &r.config.IPv4
}

func loopbackOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// classOf is what kind of destination an address is by itself.
func classOf(a netip.Addr) class {
	switch {
	case a == metadata:
		return reached
	case a.IsLoopback(), thisNetwork.Contains(a), compatible.Contains(a), mapped.Contains(a):
		return loopback
	case a.IsMulticast():
		return everybody
	case futureUse.Contains(a):
		return reserved
	case a.IsLinkLocalUnicast():
		return linkLocal
	}
	return reached
}
