package relay

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/names"
)

// This file has the name server. Its addresses are the hub's own, so that the kernel answers
// for them: pings, ports that nobody listens on, and that who asks is who he says.

// serveNames makes its sockets, with addresses on the hub's loopback interface.
func (i *inside) serveNames(c *Config) error {
	var at []netip.Addr
	for _, n := range []Network{c.IPv4, c.IPv6} {
		if n.DNS.IsValid() {
			at = append(at, n.DNS)
		}
	}
	if len(at) == 0 {
		return nil
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, a := range at {
		own := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrReplace(lo, own); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	i.servers, err = names.Listen(at, "", unix.Socket)
	return err
}

// serveNames answers on them from here, the host, whose name servers are asked.
func (r *Relay) serveNames() error {
	if len(r.inside.servers) == 0 {
		return nil
	}
	r.names = names.NewForwarder(names.ResolvConf)
	err := r.names.Serve(r.inside.servers)
	r.inside.servers = nil
	return err
}
