package plan

import (
	"net"
	"net/netip"
)

// Interface is one interface of a container.
type Interface struct {
	IfName string `json:"ifName"`
	MTU    int    `json:"mtu"`
	MAC    string `json:"mac,omitempty"` // empty: the kernel's choice, kept from then on
	IPv4   Subnet `json:"ipv4"`
	IPv6   Subnet `json:"ipv6"` // zero without IPv6
}

// Own are the interface's addresses.
func (i *Interface) Own() (own []netip.Addr) {
	for _, s := range []Subnet{i.IPv4, i.IPv6} {
		for _, address := range s.Addresses {
			own = append(own, address.Addr())
		}
	}
	return own
}

// Others are the addresses of its networks that the driver has.
func (i *Interface) Others() (others []netip.Addr) {
	for _, s := range []Subnet{i.IPv4, i.IPv6} {
		for _, address := range []netip.Addr{s.Gateway, s.DNS} {
			if s.Enabled() && address.IsValid() {
				others = append(others, address)
			}
		}
	}
	return others
}

// Subnet is what the interface has of one address family.
type Subnet struct {
	Addresses []netip.Prefix `json:"addresses,omitempty"` // the first is where ports go
	Asked     bool           `json:"asked,omitempty"`     // the container asked for them
	Movable   bool           `json:"movable,omitempty"`   // the network, a /24, is nobody's choice: another would do
	Gateway   netip.Addr     `json:"gateway"`
	DNS       netip.Addr     `json:"dns"` // invalid when there is none
}

// Enabled says whether the interface has this address family.
func (s Subnet) Enabled() bool { return len(s.Addresses) > 0 }

// First is the address that published ports are forwarded to; invalid without one.
func (s Subnet) First() netip.Addr {
	if !s.Enabled() {
		return netip.Addr{}
	}
	return s.Addresses[0].Addr()
}

// Network is the network of the addresses; invalid without one.
func (s Subnet) Network() netip.Prefix {
	if !s.Enabled() {
		return netip.Prefix{}
	}
	return s.Addresses[0].Masked()
}

// Next takes the address after the first one, in a network that another interface of
// the namespace is in as well.
func (s *Subnet) Next() bool {
	const last = 127 // a /25 has no more
	b := s.First().AsSlice()
	if b[len(b)-1]&last == last {
		return false
	}
	s.Addresses = []netip.Prefix{netip.PrefixFrom(s.First().Next(), s.Network().Bits())}
	return true
}

// Move takes the next network of the same size, in which no other interface of the
// namespace is. Every second one is tried: 10.0.3.0/24 is LXC's on many hosts. A host
// with a network of that kind is not reached over its addresses.
func (s *Subnet) Move(inUse func(netip.Prefix) bool) bool {
	network := s.Network()
	third := network.Addr().As4()[2]
	for inUse(network) {
		if third += 2; third < 2 {
			return false
		}
		network = netip.PrefixFrom(withThird(network.Addr(), third), network.Bits())
	}
	for i, address := range s.Addresses {
		s.Addresses[i] = netip.PrefixFrom(withThird(address.Addr(), third), address.Bits())
	}
	s.Gateway, s.DNS = withThird(s.Gateway, third), withThird(s.DNS, third)
	return true
}

// withThird is an IPv4 address with another third byte; none stays none.
func withThird(a netip.Addr, third byte) netip.Addr {
	if !a.IsValid() {
		return a
	}
	b := a.As4()
	b[2] = third
	return netip.AddrFrom4(b)
}

// IPNet is the prefix as net has it: an address and the mask of its network.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Everywhere is the default destination of the address family of a.
func Everywhere(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())}
}
