package rootless

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// check compares the interface with the plan and changes nothing. It names all
// that is wrong. Addresses and routes beyond the plan are the container's own. The MAC
// address is that of the plan unless another one is expected by now.
func (in *inside) check(mac string) error {
	link, err := in.link.LinkByName(in.plan.IfName)
	if err != nil {
		return fmt.Errorf("interface %s is not in the namespace", in.plan.IfName)
	}
	errs := []error{in.checkLink(link, mac)}
	for _, f := range []plan.Subnet{in.plan.IPv4, in.plan.IPv6} {
		if f.Enabled() {
			errs = append(errs, in.checkAddresses(link, f), in.checkDefaultRoute(link, f))
		}
	}
	errs = append(errs, in.checkRules())
	return errors.Join(errs...)
}

// checkRules looks for what brings replies of published ports back; see
// sourceroutes.go.
func (in *inside) checkRules() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	var errs []error
	for _, family := range in.families() {
		have, err := in.link.RuleList(family)
		if err != nil {
			return fmt.Errorf("routing rules: %w", err)
		}
		for protocol, ranges := range in.rules {
			for _, ports := range ranges.runs {
				if !slices.ContainsFunc(have, func(r netlink.Rule) bool { return in.isRule(r, protocol, ports) }) {
					errs = append(errs, fmt.Errorf("the routing rule for %s ports %d-%d is missing (%s)", protocol, ports.first, ports.last, familyName(family)))
				}
			}
		}
	}
	return errors.Join(errs...)
}

func (in *inside) isRule(r netlink.Rule, protocol conf.Protocol, ports portRange) bool {
	return r.Table == in.table.of(protocol) && r.IPProto == ipProto(protocol) &&
		r.Sport != nil && *r.Sport == *netlink.NewRulePortRange(ports.first, ports.last)
}

func familyName(family int) string {
	if family == unix.AF_INET {
		return "IPv4"
	}
	return "IPv6"
}

func (in *inside) checkLink(link netlink.Link, want string) error {
	var errs []error
	attrs := link.Attrs()
	if attrs.Flags&net.FlagUp == 0 {
		errs = append(errs, fmt.Errorf("interface %s is down", in.plan.IfName))
	}
	if want == "" {
		want = in.plan.MAC
	}
	if mac := attrs.HardwareAddr.String(); !strings.EqualFold(mac, want) {
		errs = append(errs, fmt.Errorf("interface %s has MAC address %s and not %s", in.plan.IfName, mac, want))
	}
	if attrs.MTU != in.plan.MTU {
		errs = append(errs, fmt.Errorf("interface %s has MTU %d and not %d", in.plan.IfName, attrs.MTU, in.plan.MTU))
	}
	return errors.Join(errs...)
}

func (in *inside) checkAddresses(link netlink.Link, f plan.Subnet) error {
	have, err := in.link.AddrList(link, netlinkFamily(f.Gateway))
	if err != nil {
		return fmt.Errorf("addresses of interface %s: %w", in.plan.IfName, err)
	}
	var errs []error
	for _, want := range f.Addresses {
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IPNet.String() == want.String() }) {
			errs = append(errs, fmt.Errorf("interface %s lacks address %s", in.plan.IfName, want))
		}
	}
	return errors.Join(errs...)
}

func (in *inside) checkDefaultRoute(link netlink.Link, f plan.Subnet) error {
	routes, err := in.link.RouteList(link, netlinkFamily(f.Gateway))
	if err != nil {
		return fmt.Errorf("routes of interface %s: %w", in.plan.IfName, err)
	}
	for _, r := range routes {
		ones := 0
		if r.Dst != nil {
			ones, _ = r.Dst.Mask.Size()
		}
		if ones == 0 && r.Gw.Equal(f.Gateway.AsSlice()) {
			return nil
		}
	}
	return fmt.Errorf("the default route by %s is missing", f.Gateway)
}

func netlinkFamily(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
