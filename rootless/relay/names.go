package relay

import (
	"fmt"
	"net"
	"net/netip"
	"os"

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
	if len(c.Kept) > 1 {
		i.servers = c.Kept[1:]
	} else if i.servers, err = names.Listen(at, "", unix.Socket); err != nil {
		return err
	}
	for _, f := range i.servers { // the server takes them over
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		i.copies = append(i.copies, os.NewFile(uintptr(fd), f.Name()))
	}
	return nil
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
