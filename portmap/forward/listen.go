package forward

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// Socket is one bound host socket of a mapping: TCP ones listen, UDP ones report
// the local address of each datagram (IP_PKTINFO). It is close-on-exec and
// non-blocking.
type Socket struct {
	Mapping conf.PortMapping
	Family  int // unix.AF_INET or unix.AF_INET6, which may be for both (ipv6(7), IPV6_V6ONLY)
	File    *os.File
}

// backlog is cut to net.core.somaxconn by the kernel (listen(2)).
const backlog = 65535

// Listen binds the host sockets of the mappings in the calling process's network
// namespace, all or nothing. A mapping without an address gets the IPv4 and the IPv6
// wildcard, as one socket for TCP and two for UDP; the latter is left out on a host
// that has no IPv6. Errors are *types.Error with the codes [conf.ErrPortInUse],
// [conf.ErrPortPermission], [conf.ErrNetwork], or 2 for sctp.
func Listen(mappings []conf.PortMapping) ([]Socket, error) {
	var sockets []Socket
	for _, m := range mappings {
		bound, err := listenMapping(m)
		if err != nil {
			CloseSockets(sockets)
			return nil, err
		}
		sockets = append(sockets, bound...)
	}
	return sockets, nil
}

// CloseSockets closes all of them.
func CloseSockets(sockets []Socket) {
	for _, s := range sockets {
		s.File.Close()
	}
}

func listenMapping(m conf.PortMapping) ([]Socket, error) {
	if m.Protocol != conf.TCP && m.Protocol != conf.UDP {
		return nil, conf.Mendf(conf.Unsupported("protocol", m.Protocol, fmt.Sprintf("port %s cannot be published without root, as rootlessport forwards tcp and udp only", m)), "start the container as root or leave the mapping out")
	}
	if m.HostIP.IsValid() {
		s, err := listenAddr(m, m.HostIP, ownFamily)
		if err != nil {
			return nil, listenError(m, m.HostIP, err)
		}
		return []Socket{s}, nil
	}
	return listenWildcard(m)
}

// families is the value of IPV6_V6ONLY.
type families int

const (
	bothFamilies families = iota
	ownFamily
)

// listenWildcard takes one descriptor for a TCP port, as there may be thousands, and
// two for a UDP port. Why a single one cannot be had, two attempts tell.
func listenWildcard(m conf.PortMapping) ([]Socket, error) {
	if m.Protocol == conf.TCP {
		if both, err := listenAddr(m, netip.IPv6Unspecified(), bothFamilies); err == nil {
			return []Socket{both}, nil
		}
	}
	four, err := listenAddr(m, netip.IPv4Unspecified(), ownFamily)
	if err != nil {
		return nil, listenError(m, netip.IPv4Unspecified(), err)
	}
	six, err := listenAddr(m, netip.IPv6Unspecified(), ownFamily)
	switch {
	case err == nil:
		return []Socket{four, six}, nil
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EADDRNOTAVAIL):
		return []Socket{four}, nil
	}
	four.File.Close()
	return nil, listenError(m, netip.IPv6Unspecified(), err)
}

func listenAddr(m conf.PortMapping, ip netip.Addr, only families) (Socket, error) {
	family := familyOf(ip)
	fd, err := unix.Socket(family, socketType(m.Protocol)|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Socket{}, err
	}
	// A descriptor that is still blocking here stays out of Go's own poller, which
	// nobody would ask about it.
	file := os.NewFile(uintptr(fd), m.String())
	if err := bindListener(fd, family, m, ip, only); err != nil {
		file.Close()
		return Socket{}, err
	}
	return Socket{Mapping: m, Family: family, File: file}, nil
}

func bindListener(fd, family int, m conf.PortMapping, ip netip.Addr, only families) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	for _, o := range listenerOptions(family, m.Protocol, only) {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return err
		}
	}
	to, err := bindAddress(ip, m.HostPort)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, to); err != nil {
		return err
	}
	if m.Protocol == conf.TCP {
		return unix.Listen(fd, backlog)
	}
	return nil
}

type option struct{ level, name, value int }

// Keepalive finds clients that vanished, after four minutes.
const (
	keepIdleSeconds     = 120
	keepIntervalSeconds = 30
	keepCount           = 4
)

// datagramBuffer is asked for on both sides of a UDP port, so that a burst waits
// instead of being lost; the kernel cuts it to net.core.rmem_max and wmem_max.
const datagramBuffer = 4 << 20

// listenerOptions: what a TCP listener has, its accepted sockets inherit.
func listenerOptions(family int, protocol conf.Protocol, only families) []option {
	var options []option
	if family == unix.AF_INET6 {
		options = append(options, option{unix.SOL_IPV6, unix.IPV6_V6ONLY, int(only)})
	}
	switch {
	case protocol == conf.TCP:
		return append(options,
			option{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}, // over TIME_WAIT of an earlier container
			option{unix.SOL_TCP, unix.TCP_NODELAY, 1},
			option{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			option{unix.SOL_TCP, unix.TCP_KEEPIDLE, keepIdleSeconds},
			option{unix.SOL_TCP, unix.TCP_KEEPINTVL, keepIntervalSeconds},
			option{unix.SOL_TCP, unix.TCP_KEEPCNT, keepCount})
	case family == unix.AF_INET6:
		options = append(options, option{unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1})
	default:
		options = append(options, option{unix.SOL_IP, unix.IP_PKTINFO, 1})
	}
	return append(options,
		option{unix.SOL_SOCKET, unix.SO_RCVBUF, datagramBuffer},
		option{unix.SOL_SOCKET, unix.SO_SNDBUF, datagramBuffer})
}

func bindAddress(ip netip.Addr, port uint16) (unix.Sockaddr, error) {
	if ip.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: ip.As4()}, nil
	}
	zone, err := zoneIndex(ip.Zone())
	if err != nil {
		return nil, err
	}
	return &unix.SockaddrInet6{Port: int(port), ZoneId: zone, Addr: ip.As16()}, nil
}

func zoneIndex(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if link, err := net.InterfaceByName(zone); err == nil {
		return uint32(link.Index), nil
	}
	index, err := strconv.ParseUint(zone, 10, 32)
	if err != nil {
		return 0, unix.ENODEV
	}
	return uint32(index), nil
}

func familyOf(ip netip.Addr) int {
	if ip.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func socketType(protocol conf.Protocol) int {
	if protocol == conf.TCP {
		return unix.SOCK_STREAM
	}
	return unix.SOCK_DGRAM
}

// listenError says what happened to which port and what to do about it.
func listenError(m conf.PortMapping, ip netip.Addr, err error) error {
	at := netip.AddrPortFrom(ip, m.HostPort)
	port := fmt.Sprintf("host port %d/%s on %s", m.HostPort, m.Protocol, at.Addr())
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return conf.Errorf(conf.ErrPortInUse, "%s is in use already: see who has it with \"ss -Hlnp%c 'sport = :%d'\", stop it or choose another host port",
			port, m.Protocol[0], m.HostPort)
	case errors.Is(err, unix.EACCES):
		return conf.Errorf(conf.ErrPortPermission, "%s may not be bound by this user: choose a port from net.ipv4.ip_unprivileged_port_start on, or lower that with \"sysctl -w net.ipv4.ip_unprivileged_port_start=%d\" as root",
			port, m.HostPort)
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL):
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "%s: this host has no address %s", port, at.Addr()), "\"ip -brief address\" lists those it has (a link-local IPv6 address needs its zone, as in fe80::1%%eth0)")
	case errors.Is(err, unix.EAFNOSUPPORT):
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "%s: this host has no IPv6", port), "use an IPv4 hostIP or none")
	case errors.Is(err, unix.EMFILE):
		return tooManyPorts(m)
	}
	return conf.Errorf(conf.ErrNetwork, "%s cannot be bound: %v", port, err)
}

func tooManyPorts(m conf.PortMapping) error {
	return conf.Mendf(conf.Errorf(conf.ErrNetwork, "host port %d/%s: too many open files, as each TCP port takes a descriptor and each UDP port one per address family", m.HostPort, m.Protocol), "raise the hard limit of open files (\"ulimit -Hn\")")
}
