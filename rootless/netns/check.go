package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/rootless/plan"
)

// Check compares the interface with the plan and changes nothing. It names all
// that is wrong. Addresses and routes beyond the plan are the container's own. The MAC
// address is that of the plan unless another one is expected by now.
func (n *Namespace) Check(mac string) error {
	link, err := n.Link()
	if err != nil {
		return fmt.Errorf("interface %s is not in the namespace", n.plan.IfName)
	}
	errs := []error{n.checkLink(link, mac)}
	for _, f := range []plan.Subnet{n.plan.IPv4, n.plan.IPv6} {
		if f.Enabled() {
			errs = append(errs, n.checkAddresses(link, f), n.checkDefaultRoute(link, f))
		}
	}
	errs = append(errs, n.CheckRules())
	return errors.Join(errs...)
}

func (n *Namespace) checkLink(link netlink.Link, want string) error {
	var errs []error
	attrs := link.Attrs()
	if attrs.Flags&net.FlagUp == 0 {
		errs = append(errs, fmt.Errorf("interface %s is down", n.plan.IfName))
	}
	if want == "" {
		want = n.plan.MAC
	}
	if mac := attrs.HardwareAddr.String(); !strings.EqualFold(mac, want) {
		errs = append(errs, fmt.Errorf("interface %s has MAC address %s and not %s", n.plan.IfName, mac, want))
	}
	if attrs.MTU != n.plan.MTU {
		errs = append(errs, fmt.Errorf("interface %s has MTU %d and not %d", n.plan.IfName, attrs.MTU, n.plan.MTU))
	}
	return errors.Join(errs...)
}

func (n *Namespace) checkAddresses(link netlink.Link, f plan.Subnet) error {
	have, err := n.link.AddrList(link, netlinkFamily(f.Gateway))
	if err != nil {
		return fmt.Errorf("addresses of interface %s: %w", n.plan.IfName, err)
	}
	var errs []error
	for _, want := range f.Addresses {
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IPNet.String() == want.String() }) {
			errs = append(errs, fmt.Errorf("interface %s lacks address %s", n.plan.IfName, want))
		}
	}
	return errors.Join(errs...)
}

func (n *Namespace) checkDefaultRoute(link netlink.Link, f plan.Subnet) error {
	found := false
	filter := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: f.Gateway.AsSlice()} // Dst nil: the default
	const what = netlink.RT_FILTER_OIF | netlink.RT_FILTER_GW | netlink.RT_FILTER_DST
	// One at a time: the container may have millions.
	err := n.link.RouteListFilteredIter(netlinkFamily(f.Gateway), filter, what, func(netlink.Route) bool {
		found = true
		return false
	})
	if err != nil {
		return fmt.Errorf("routes of interface %s: %w", n.plan.IfName, err)
	}
	if found {
		return nil
	}
	return fmt.Errorf("the default route by %s is missing", f.Gateway)
}

func netlinkFamily(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
