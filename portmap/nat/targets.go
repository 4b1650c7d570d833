package nat

import (
	"errors"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// Targets are those of the addresses in a result that ports may lead to. To the others
// they would lead into the host instead of the container, past what its services on
// 127.0.0.1 rely on: its own addresses, and those of nobody, which the kernel takes
// for its own. That none is left of some is an error.
func Targets(ips []netip.Addr) (targets, refused []netip.Addr, err error) {
	for _, ip := range ips {
		ours, err := ofHost(ip)
		if err != nil {
			return nil, nil, err
		}
		if ours {
			refused = append(refused, ip)
		} else {
			targets = append(targets, ip)
		}
	}
	if len(targets) == 0 && len(refused) > 0 {
		return nil, refused, conf.Mendf(conf.Errorf(conf.ErrNetwork, "publishing ports: the address %s that a plugin before gave the container is this host's own, or nobody's", refused[0]), "mend its ipam")
	}
	return targets, refused, nil
}

// ofHost says whether packets to the address go to this host, or to no single one.
func ofHost(ip netip.Addr) (bool, error) {
	if ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() {
		return true, nil
	}
	routes, err := netlink.RouteGet(net.IP(ip.AsSlice()))
	switch {
	case slices.ContainsFunc(noRoute, func(e unix.Errno) bool { return errors.Is(err, e) }):
		return false, nil
	case err != nil:
		return false, conf.Errorf(conf.ErrNetwork, "looking whether container address %s is this host's: %v", ip, err)
	}
	return len(routes) > 0 && routes[0].Type != unix.RTN_UNICAST, nil
}
