package driver

import (
	"net/netip"
	"os"
	"slices"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// The host numbers that slirp4netns gives out in its network (slirp4netns(1),
// --cidr), and its fixed IPv6 network. The other drivers are told to do so as well.
const (
	gatewayNumber = 2
	dnsNumber     = 3
	guestNumber   = 100
)

var ipv6Network = netip.MustParsePrefix("fd00::/64")

// LinkLocalGateway is the gateway's address on the link itself (LINKLOCAL_ADDR in
// libslirp's ip6.h), for who has no address of the IPv6 network.
var LinkLocalGateway = netip.MustParseAddr("fe80::2")

func (p *program) Plan(a *conf.Attachment) (*plan.Interface, error) {
	return planFor(a, slirp4netns{}.Name(), p.Features["enable-ipv6"], p.Features["cidr"])
}

// planFor is the plan of a driver that has IPv6, or not, and other networks than the usual.
func planFor(a *conf.Attachment, name string, hasIPv6, hasNetworks bool) (*plan.Interface, error) {
	r := &a.NetConf.Rootless
	ipv6, err := ipv6Usable(r, hasIPv6)
	if err != nil {
		return nil, err
	}
	i := &plan.Interface{IfName: a.IfName, MTU: r.MTU, MAC: a.MAC, IPv4: subnet(r.CIDR, r.DisableDNS)}
	if ipv6 {
		i.IPv6 = subnet(ipv6Network, r.DisableDNS)
	}
	for _, s := range []*plan.Subnet{&i.IPv4, &i.IPv6} {
		if err := use(s, a.IPs, name); err != nil {
			return nil, err
		}
	}
	for _, ip := range a.IPs {
		if ip.Addr().Is6() && !ipv6 {
			return nil, conf.Invalid("ips", ip, "the container has no IPv6: it needs rootless.enableIPv6, an MTU of at least 1280, and a "+name+" and a kernel that have it")
		}
	}
	i.IPv4.Movable = !i.IPv4.Asked && r.CIDR == defaultCIDR && hasNetworks
	return i, nil
}

// ipv6Usable says whether the container gets IPv6: wanted, and known to the program and
// to the kernel (ipv6.disable=1 takes it out for every namespace).
func ipv6Usable(r *conf.Rootless, has bool) (bool, error) {
	const path = "/proc/sys/net/ipv6"
	if !r.EnableIPv6 || !has {
		return false, nil
	}
	_, err := os.Stat(path)
	if err != nil && r.EnableIPv6Set {
		return false, conf.Mendf(conf.Unsupported("rootless.enableIPv6", true, "this kernel has no IPv6 ("+path+" is missing)"), "boot it without ipv6.disable=1")
	}
	return err == nil, nil
}

func subnet(network netip.Prefix, disableDNS bool) plan.Subnet {
	s := plan.Subnet{
		Addresses: []netip.Prefix{netip.PrefixFrom(hostNumber(network, guestNumber), network.Bits())},
		Gateway:   hostNumber(network, gatewayNumber),
	}
	if !disableDNS {
		s.DNS = hostNumber(network, dnsNumber)
	}
	return s
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
func use(s *plan.Subnet, asked []netip.Prefix, driver string) error {
	if !s.Enabled() {
		return nil
	}
	network := s.Network()
	var addresses []netip.Prefix
	for _, ip := range asked {
		if ip.Addr().Is4() != network.Addr().Is4() {
			continue
		}
		address := netip.PrefixFrom(ip.Addr(), network.Bits())
		if err := usable(ip, network, addresses, driver); err != nil {
			return err
		}
		addresses = append(addresses, address)
	}
	if len(addresses) > 0 {
		s.Addresses, s.Asked = addresses, true
	}
	return nil
}

func usable(ip, network netip.Prefix, before []netip.Prefix, driver string) error {
	addr := ip.Addr()
	switch {
	case !network.Contains(addr):
		return conf.Invalid("ips", ip, "it is not in the container's network "+network.String()+" (key rootless.cidr)")
	case !ip.IsSingleIP() && ip.Bits() != network.Bits():
		return conf.Invalid("ips", ip, "the prefix length of the container's network is that of "+network.String())
	case addr == hostNumber(network, gatewayNumber), addr == hostNumber(network, dnsNumber):
		return conf.Invalid("ips", ip, driver+" has taken it: .2 is the gateway and .3 the name server of "+network.String())
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
