package nat

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// family is an address family as netfilter and sockets number it.
type family uint8

const (
	ipv4 family = unix.NFPROTO_IPV4
	ipv6 family = unix.NFPROTO_IPV6
)

func families() [2]family { return [2]family{ipv4, ipv6} }

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

func (f family) String() string {
	if f == ipv4 {
		return "IPv4"
	}
	return "IPv6"
}

// unspecified is 0.0.0.0 or ::.
func (f family) unspecified() netip.Addr {
	if f == ipv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// slot is the host's side of a port in one family: what can be published once.
type slot struct {
	proto uint8 // IPPROTO_TCP, …
	host  netip.Addr
	port  uint16
}

// wide says whether the slot is the port on every address of its family; its
// host is then 0.0.0.0 or ::.
func (s slot) wide() bool { return s.host.IsUnspecified() }

// String is the slot as people write it: 127.0.0.1:53/udp.
func (s slot) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(s.host, s.port), protocolName(s.proto))
}

// forward is one port mapping in one family.
type forward struct {
	slot
	to netip.AddrPort
}

func (f forward) family() family { return familyOf(f.host) }

func (f forward) String() string { return fmt.Sprintf("%s to %s", f.slot, f.to) }

func protocolNumber(p conf.Protocol) (uint8, bool) {
	switch p {
	case conf.TCP:
		return unix.IPPROTO_TCP, true
	case conf.UDP:
		return unix.IPPROTO_UDP, true
	case conf.SCTP:
		return unix.IPPROTO_SCTP, true
	}
	return 0, false
}

func protocolName(n uint8) string {
	switch n {
	case unix.IPPROTO_TCP:
		return string(conf.TCP)
	case unix.IPPROTO_UDP:
		return string(conf.UDP)
	case unix.IPPROTO_SCTP:
		return string(conf.SCTP)
	}
	return fmt.Sprintf("protocol %d", n)
}

// target is the container's first address of a family; invalid when it has none.
func (p Published) target(f family) netip.Addr {
	for _, ip := range p.IPs {
		if ip = ip.Unmap(); ip.IsValid() && familyOf(ip) == f {
			return ip.WithZone("")
		}
	}
	return netip.Addr{}
}

// forwards resolves the port mappings: one of every address becomes one per
// family that the container has. A mapping that cannot be served is an error of
// code 2 or 7; none is dropped silently.
func (p Published) forwards() ([]forward, error) {
	all := make([]forward, 0, len(p.Ports))
	for _, m := range p.Ports {
		n := len(all)
		if err := validHostIP(m); err != nil {
			return nil, err
		}
		proto, ok := protocolNumber(m.Protocol)
		if !ok || m.HostPort == 0 || m.ContainerPort == 0 {
			return nil, conf.Invalid("runtimeConfig.portMappings", m, "ports are 1 to 65535, protocols tcp, udp and sctp")
		}
		for _, f := range families() {
			to := p.target(f)
			if !to.IsValid() || (m.HostIP.IsValid() && familyOf(m.HostIP) != f) {
				continue
			}
			host := f.unspecified()
			if m.HostIP.IsValid() {
				host = m.HostIP
			}
			all = append(all, forward{slot{proto, host, m.HostPort}, netip.AddrPortFrom(to, m.ContainerPort)})
		}
		if len(all) == n {
			return nil, p.noTarget(m)
		}
	}
	return all, nil
}

// known is forwards for Del: what it can tell of an incomplete p, no errors.
func (p Published) known() []forward {
	var all []forward
	for _, m := range p.Ports {
		one := Published{IPs: p.IPs, Ports: []conf.PortMapping{m}}
		if fs, err := one.forwards(); err == nil {
			all = append(all, fs...)
		}
	}
	return all
}

func (p Published) noTarget(m conf.PortMapping) error {
	if !m.HostIP.IsValid() {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "publishing %s: the container has no address", m), "give its interface one, with the ipam key of a delegate")
	}
	return conf.Mendf(conf.Invalid("runtimeConfig.portMappings.hostIP", m.HostIP, fmt.Sprintf("the container has no %s address to publish %s to", familyOf(m.HostIP), m)), "give it one, or use a host address of its own family")
}

func validHostIP(m conf.PortMapping) error {
	const key = "runtimeConfig.portMappings.hostIP"
	ip := m.HostIP
	switch {
	case !ip.IsValid():
		return nil
	case ip == netip.IPv6Loopback():
		// The kernel drops a translated packet whose source is ::1 and has no
		// route_localnet for IPv6.
		return conf.Mendf(conf.Unsupported(key, ip, "the kernel cannot translate connections to ::1"), "publish on 127.0.0.1, or on another IPv6 address of the host")
	case ip.Zone() != "":
		return conf.Mendf(conf.Unsupported(key, ip, "as root a zone cannot be told apart"), "leave %%zone away, or use a global address of that interface")
	case ip.IsMulticast():
		return conf.Invalid(key, ip, "it is an address of the host, not a multicast one")
	}
	return nil
}
