package rootless

import (
	"net/netip"
	"slices"

	"github.com/ambi-cni/ambi/conf"
)

// plan is the interface as it shall be: what the supervisor configures, keeps
// over restarts of the driver, and CHECK compares with.
type plan struct {
	IfName string `json:"ifName"`
	MTU    int    `json:"mtu"`
	MAC    string `json:"mac,omitempty"` // empty: the kernel's choice, kept from then on
	IPv4   family `json:"ipv4"`
	IPv6   family `json:"ipv6"` // zero without IPv6
}

// family is one address family of the interface.
type family struct {
	Addresses []netip.Prefix `json:"addresses,omitempty"` // the first is where ports go
	Asked     bool           `json:"asked,omitempty"`     // the container asked for them
	Movable   bool           `json:"movable,omitempty"`   // the network is nobody's choice, another would do
	Gateway   netip.Addr     `json:"gateway"`
	DNS       netip.Addr     `json:"dns"` // invalid when there is none
}

func (f family) enabled() bool { return len(f.Addresses) > 0 }

// first is the address that published ports are forwarded to; invalid without one.
func (f family) first() netip.Addr {
	if !f.enabled() {
		return netip.Addr{}
	}
	return f.Addresses[0].Addr()
}

// subnet is the network of the family; invalid without one.
func (f family) subnet() netip.Prefix {
	if !f.enabled() {
		return netip.Prefix{}
	}
	return f.Addresses[0].Masked()
}

// next is the default address after addr, in a network that another interface of
// the namespace is in as well.
func (f *family) next() bool {
	const last = 127 // hostNumber goes no further, and a /25 has no more
	b := f.first().AsSlice()
	if b[len(b)-1]&last == last {
		return false
	}
	f.Addresses = []netip.Prefix{netip.PrefixFrom(f.first().Next(), f.subnet().Bits())}
	return true
}

// move is the next network of the same size, in which no other interface of the
// namespace is. Every second one is tried: 10.0.3.0/24 is LXC's on many hosts. A host
// with a network of that kind is not reached over its addresses.
func (f *family) move(inUse func(netip.Prefix) bool) bool {
	network := f.subnet()
	for inUse(network) {
		b := network.Addr().As4()
		if b[2] += 2; b[2] < 2 {
			return false
		}
		network = netip.PrefixFrom(netip.AddrFrom4(b), network.Bits())
	}
	moved := newFamily(network, !f.DNS.IsValid())
	moved.Movable = true
	*f = moved
	return true
}

// The host numbers that slirp4netns gives out in its network (slirp4netns(1),
// --cidr), and its fixed IPv6 network.
const (
	gatewayNumber = 2
	dnsNumber     = 3
	guestNumber   = 100
)

var ipv6Network = netip.MustParsePrefix("fd00::/64")

// newPlan works out addresses from the configuration and from what the container
// asked for. Errors have code 7 and name the address.
func newPlan(a *conf.Attachment) (*plan, error) {
	r := &a.NetConf.Rootless
	p := &plan{IfName: a.IfName, MTU: r.MTU, MAC: a.MAC}
	p.IPv4 = newFamily(r.CIDR, r.DisableDNS)
	if r.EnableIPv6 {
		p.IPv6 = newFamily(ipv6Network, r.DisableDNS)
	}
	for _, family := range []*family{&p.IPv4, &p.IPv6} {
		if err := family.use(a.IPs); err != nil {
			return nil, err
		}
	}
	for _, ip := range a.IPs {
		if ip.Addr().Is6() && !r.EnableIPv6 {
			return nil, conf.Invalid("ips", ip, "the container has no IPv6: it needs rootless.enableIPv6, an MTU of at least 1280, and a slirp4netns and a kernel that have it")
		}
	}
	return p, nil
}

func newFamily(network netip.Prefix, disableDNS bool) family {
	f := family{
		Addresses: []netip.Prefix{netip.PrefixFrom(hostNumber(network, guestNumber), network.Bits())},
		Gateway:   hostNumber(network, gatewayNumber),
	}
	if !disableDNS {
		f.DNS = hostNumber(network, dnsNumber)
	}
	return f
}

// hostNumber is the n-th address of the network, n below 128.
func hostNumber(network netip.Prefix, n byte) netip.Addr {
	b := network.Masked().Addr().AsSlice()
	b[len(b)-1] += n
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// use replaces the default address by those of this family that the container
// asked for.
func (f *family) use(asked []netip.Prefix) error {
	if !f.enabled() {
		return nil
	}
	network := f.subnet()
	var addresses []netip.Prefix
	for _, ip := range asked {
		if ip.Addr().Is4() != network.Addr().Is4() {
			continue
		}
		address := netip.PrefixFrom(ip.Addr(), network.Bits())
		if err := f.usable(ip, network, addresses); err != nil {
			return err
		}
		addresses = append(addresses, address)
	}
	if len(addresses) > 0 {
		f.Addresses, f.Asked = addresses, true
	}
	return nil
}

func (f *family) usable(ip, network netip.Prefix, before []netip.Prefix) error {
	addr := ip.Addr()
	switch {
	case !network.Contains(addr):
		return conf.Invalid("ips", ip, "it is not in the container's network "+network.String()+" (key rootless.cidr)")
	case !ip.IsSingleIP() && ip.Bits() != network.Bits():
		return conf.Invalid("ips", ip, "the prefix length of the container's network is that of "+network.String())
	case addr == f.Gateway, addr == hostNumber(network, dnsNumber):
		return conf.Invalid("ips", ip, "slirp4netns has taken it: .2 is the gateway and .3 the name server of "+network.String())
	case addr == network.Addr(), addr.Is4() && addr == broadcast(network):
		return conf.Invalid("ips", ip, "it is the network or broadcast address of "+network.String())
	case slices.Contains(before, netip.PrefixFrom(addr, network.Bits())):
		return conf.Invalid("ips", ip, "it is there twice")
	}
	return nil
}

func broadcast(network netip.Prefix) netip.Addr {
	b := network.Masked().Addr().As4()
	for bit := network.Bits(); bit < 32; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	return netip.AddrFrom4(b)
}
