package forward

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// target is where the forwarder delivers to in one address family of the
// container, and which clients may be seen there.
type target struct {
	family    int
	container netip.Addr
	gateway   netip.Addr
	subnet    netip.Prefix
	preserve  bool
}

// targetFor is the container's side for clients of an address family: the same
// family where the container has it, the other one where it does not.
func (c *Target) targetFor(family int) *target {
	preserve := c.SourceIP != conf.SourceGateway
	four := target{unix.AF_INET, c.Container4, c.Gateway4, c.Subnet4, preserve && !c.Away4}
	six := target{unix.AF_INET6, c.Container6, c.Gateway6, c.Subnet6, preserve && !c.Away6}
	if family == unix.AF_INET && c.Container4.IsValid() || !c.Container6.IsValid() {
		return &four
	}
	return &six
}

// origin is what the service sees of a client.
type origin int8

const (
	itself    origin = iota // its address and port
	otherPort               // its address, from a port that the kernel chooses
	byGateway               // the gateway's address
)

var origins = [...]origin{itself, otherPort, byGateway}

// origins are what to try for a client, one after the other. A client chooses its
// port, and would so choose to be seen as the gateway if one that cannot be had inside
// cost it its address: one that the service listens on, or the same one for two
// addresses of the host.
func (t *target) origins(client netip.Addr) []origin {
	if t.preserves(client) {
		return origins[:]
	}
	return origins[byGateway:]
}

// from is the address that a socket inside is bound to; without a port the kernel
// chooses one.
func (t *target) from(o origin, client *sockaddr) sockaddr {
	switch o {
	case itself:
		return newSockaddr(client.ip(), client.port())
	case otherPort:
		return newSockaddr(client.ip(), 0)
	}
	return newSockaddr(t.gateway, 0)
}

// nobody are addresses, beside those of Go's IsGlobalUnicast, that nobody has outside
// of this machine: this network (RFC 1122), the reserved ones with the broadcast
// address, and IPv6's for an IPv4 address, 127.0.0.1 as well (RFC 4291, 2.5.5).
var nobody = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("::ffff:0:0/96"),
}

// preserves says whether the service may see this client's own address, as far as it
// is not one of the container's ([Namespace.Has]).
func (t *target) preserves(client netip.Addr) bool {
	switch {
	case !t.preserve, client.Is4() != t.container.Is4():
		return false
	case !client.IsGlobalUnicast():
		// Loopback: the service would take the client for a local one
		// (CVE-2021-20199). Link-local, multicast, unspecified: not routable inside.
		return false
	case slices.ContainsFunc(nobody, func(n netip.Prefix) bool { return n.Contains(client) }):
		return false
	case client == t.container, client == t.gateway, t.subnet.IsValid() && t.subnet.Contains(client):
		// An address of the container's own network is somebody else inside.
		return false
	}
	return true
}

// transparency is the option that lets a socket bind an address that the
// namespace does not have (ip(7), IP_TRANSPARENT); it needs CAP_NET_ADMIN or
// CAP_NET_RAW over the namespace.
func (t *target) transparency() (level, name int) {
	if t.family == unix.AF_INET6 {
		return unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	return unix.SOL_IP, unix.IP_TRANSPARENT
}

func (t *target) makeTransparent(fd int32) unix.Errno {
	level, name := t.transparency()
	return sysSetInt(fd, level, name, 1)
}
