package rootless

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// This file keeps the client's source address: rootlessport sends to the service
// from the client's address, and policy routing inside the namespace brings the
// replies back to it instead of sending them out by the tap. Per published port
//
//	ip rule add iif lo ipproto X sport P lookup T
//
// where T holds only the clients of the moment, as the container itself may send from
// a published port to somebody else:
//
//	local CLIENT/32 dev lo src CONTAINER
//
// TCP's say "congctl reno": what does not leave the kernel need not be paced, as bbr
// would.
// Without "src" an unconnected UDP socket would answer from the client's own
// address, the default of a local route. Needs Linux 4.17 (FRA_SPORT_RANGE).

// rulePriority is after the table local (0), before main (32766).
const rulePriority = 24941

// loopbackIndex is the index of lo in every network namespace.
const loopbackIndex = 1

// tables are the two routing tables of an attachment.
type tables struct{ tcp, udp int }

// tablesOf gives each attachment tables of its own, far from the numbers that
// people use ("am" in the upper bytes). The key alone decides, so that they can be
// cleaned up without any memory; the interface's name would not do, since an ADD
// that finds the name taken must not clean up after the one who has it.
func tablesOf(key conf.Key) tables {
	h := fnv.New32a()
	h.Write([]byte(key.String()))
	n := 0x616d0000 + int(h.Sum32()&0x7fff)*2
	return tables{tcp: n, udp: n + 1}
}

func (t tables) of(protocol conf.Protocol) int {
	if protocol == conf.TCP {
		return t.tcp
	}
	return t.udp
}

func ipProto(protocol conf.Protocol) int {
	if protocol == conf.TCP {
		return unix.IPPROTO_TCP
	}
	return unix.IPPROTO_UDP
}

// AddPort sends what a published container port answers to the port's table.
// Neighbouring ports share a rule: the kernel walks the rules one by one.
func (in *inside) AddPort(protocol conf.Protocol, port uint16) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	added, gone := in.rules[protocol].add(port)
	if added == (portRange{}) {
		return nil
	}
	err := in.replaceRules(protocol, gone, []portRange{added})
	if err != nil {
		in.rules[protocol].remove(port)
	}
	return err
}

// leaveAtOnce has RemovePort and RemoveClient do nothing, as removeSourceRoutes is
// about to take everything away. One by one, ten thousand ports would take seconds,
// each splitting the rule that it has with its neighbours.
func (in *inside) leaveAtOnce() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.leaving = true
}

// RemovePort is the reverse of AddPort.
func (in *inside) RemovePort(protocol conf.Protocol, port uint16) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.leaving {
		return nil
	}
	added, gone := in.rules[protocol].remove(port)
	if gone == (portRange{}) {
		return nil
	}
	err := in.replaceRules(protocol, []portRange{gone}, added)
	if err != nil {
		in.rules[protocol].add(port)
	}
	return err
}

// replaceRules changes rules, the new ones first, so that no port is without one. After
// an error they are as before, as far as the kernel lets us.
func (in *inside) replaceRules(protocol conf.Protocol, before, after []portRange) error {
	err := in.addRules(protocol, after)
	if err == nil {
		err = in.deleteRules(protocol, before)
	}
	if err != nil {
		_ = in.addRules(protocol, before)
		_ = in.deleteRules(protocol, after)
	}
	return err
}

func (in *inside) addRules(protocol conf.Protocol, ranges []portRange) error {
	return in.eachRule(protocol, ranges, func(r *netlink.Rule) error { return ignoring(in.link.RuleAdd(r), unix.EEXIST) })
}

func (in *inside) deleteRules(protocol conf.Protocol, ranges []portRange) error {
	return in.eachRule(protocol, ranges, func(r *netlink.Rule) error { return ignoring(in.link.RuleDel(r), unix.ENOENT) })
}

func (in *inside) eachRule(protocol conf.Protocol, ranges []portRange, do func(*netlink.Rule) error) error {
	for _, ports := range ranges {
		for _, family := range in.families() {
			r := netlink.NewRule()
			r.Family, r.Priority, r.Table = family, rulePriority, in.table.of(protocol)
			r.IifName, r.IPProto = "lo", ipProto(protocol)
			r.Sport = netlink.NewRulePortRange(ports.first, ports.last)
			if err := do(r); err != nil {
				return fmt.Errorf("routing rule for %s ports %d-%d inside the container's namespace: %w", protocol, ports.first, ports.last, err)
			}
		}
	}
	return nil
}

func (in *inside) families() []int {
	families := []int{unix.AF_INET}
	if in.plan.IPv6.Enabled() {
		families = append(families, unix.AF_INET6)
	}
	return families
}

// Has asks the kernel, as the container may change its addresses at any time. What
// cannot be looked up is not local.
func (in *inside) Has(ip netip.Addr) bool {
	routes, err := in.link.RouteGet(ip.AsSlice())
	return err == nil && slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Type != unix.RTN_UNICAST })
}

// AddClient brings replies to a client back to rootlessport.
func (in *inside) AddClient(protocol conf.Protocol, client netip.Addr) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	key := source{protocol, client}
	if err := in.link.RouteReplace(in.clientRoute(key)); err != nil {
		return fmt.Errorf("route to client %s inside the container's namespace: %w", client, err)
	}
	in.clients[key] = true
	return nil
}

// RemoveClient is the reverse of AddClient; a route that is gone is success.
func (in *inside) RemoveClient(protocol conf.Protocol, client netip.Addr) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.clients, source{protocol, client})
	if in.leaving {
		return nil
	}
	if err := in.link.RouteDel(in.clientRoute(source{protocol, client})); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("removing the route to client %s inside the container's namespace: %w", client, err)
	}
	return nil
}

// source is an address that a service sees, in one protocol.
type source struct {
	protocol conf.Protocol
	ip       netip.Addr
}

func (in *inside) clientRoute(client source) *netlink.Route {
	src := in.plan.IPv4.First()
	if client.ip.Is6() {
		src = in.plan.IPv6.First()
	}
	route := &netlink.Route{
		LinkIndex: loopbackIndex, Dst: plan.IPNet(netip.PrefixFrom(client.ip, client.ip.BitLen())), Src: src.AsSlice(),
		Table: in.table.of(client.protocol), Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
	}
	if client.protocol == conf.TCP {
		route.Congctl = "reno"
	}
	return route
}

// restoreRoutes puts the routes in place after the driver came back: the kernel drops
// them with the address they name.
func (in *inside) restoreRoutes(netlink.Link) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for client := range in.clients {
		if err := in.link.RouteReplace(in.clientRoute(client)); err != nil {
			return err
		}
	}
	return nil
}

// removeSourceRoutes takes away every rule and route of the attachment's tables,
// whoever put them there: also what a killed supervisor left.
func removeSourceRoutes(link *netlink.Handle, t tables) error {
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := link.RuleList(family)
		errs = append(errs, err)
		for _, r := range rules {
			if r.Priority == rulePriority && (r.Table == t.tcp || r.Table == t.udp) {
				r.Family = family
				errs = append(errs, ignoring(link.RuleDel(&r), unix.ENOENT))
			}
		}
		for _, table := range []int{t.tcp, t.udp} {
			routes, err := link.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
			errs = append(errs, err)
			for _, r := range routes {
				errs = append(errs, ignoring(link.RouteDel(&r), unix.ESRCH))
			}
		}
	}
	return errors.Join(errs...)
}

func ignoring(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}
