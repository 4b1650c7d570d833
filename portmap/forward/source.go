package forward

import (
	"net/netip"

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
func (c *Config) targetFor(family int) *target {
	four := target{unix.AF_INET, c.Container4, c.Gateway4, c.Subnet4, c.SourceIP == conf.SourcePreserve}
	six := target{unix.AF_INET6, c.Container6, c.Gateway6, c.Subnet6, c.SourceIP == conf.SourcePreserve}
	if family == unix.AF_INET && c.Container4.IsValid() || !c.Container6.IsValid() {
		return &four
	}
	return &six
}

// preserves says whether the service may see this client's own address.
func (t *target) preserves(client netip.Addr) bool {
	switch {
	case !t.preserve, client.Is4() != t.container.Is4():
		return false
	case !client.IsGlobalUnicast():
		// Loopback: the service would take the client for a local one
		// (CVE-2021-20199). Link-local, multicast, unspecified: not routable inside.
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
