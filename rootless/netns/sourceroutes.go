package netns

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"sync"

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

// SourceRoutes are the rules and routes of one attachment.
type SourceRoutes struct {
	link  *netlink.Handle
	iif   string // where replies come in: lo when the service itself is in the namespace
	plan  *plan.Interface
	table tables

	mu      sync.Mutex
	rules   map[conf.Protocol]*portRanges
	clients map[client]bool
	leaving bool // see LeaveAtOnce
}

func newSourceRoutes(link *netlink.Handle, key conf.Key, iif string, p *plan.Interface) *SourceRoutes {
	return &SourceRoutes{
		link: link, iif: iif, plan: p, table: tablesOf(key),
		rules:   map[conf.Protocol]*portRanges{conf.TCP: {}, conf.UDP: {}},
		clients: make(map[client]bool),
	}
}

// AddPort sends what a published container port answers to the port's table.
// Neighbouring ports share a rule: the kernel walks the rules one by one.
func (s *SourceRoutes) AddPort(protocol conf.Protocol, port uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	added, gone := s.rules[protocol].add(port)
	if added == (portRange{}) {
		return nil
	}
	err := s.replaceRules(protocol, gone, []portRange{added})
	if err != nil {
		s.rules[protocol].remove(port)
	}
	return err
}

// LeaveAtOnce has RemovePort and RemoveClient do nothing, as RemoveAll is about to take
// everything away. One by one, ten thousand ports would take seconds,
// each splitting the rule that it has with its neighbours.
func (s *SourceRoutes) LeaveAtOnce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = true
}

// RemovePort is the reverse of AddPort.
func (s *SourceRoutes) RemovePort(protocol conf.Protocol, port uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		return nil
	}
	added, gone := s.rules[protocol].remove(port)
	if gone == (portRange{}) {
		return nil
	}
	err := s.replaceRules(protocol, []portRange{gone}, added)
	if err != nil {
		s.rules[protocol].add(port)
	}
	return err
}

// replaceRules changes rules, the new ones first, so that no port is without one. After
// an error they are as before, as far as the kernel lets us.
func (s *SourceRoutes) replaceRules(protocol conf.Protocol, before, after []portRange) error {
	err := s.addRules(protocol, after)
	if err == nil {
		err = s.deleteRules(protocol, before)
	}
	if err != nil {
		_ = s.addRules(protocol, before)
		_ = s.deleteRules(protocol, after)
	}
	return err
}

func (s *SourceRoutes) addRules(protocol conf.Protocol, ranges []portRange) error {
	return s.eachRule(protocol, ranges, func(r *netlink.Rule) error { return ignoring(s.link.RuleAdd(r), unix.EEXIST) })
}

func (s *SourceRoutes) deleteRules(protocol conf.Protocol, ranges []portRange) error {
	return s.eachRule(protocol, ranges, func(r *netlink.Rule) error { return ignoring(s.link.RuleDel(r), unix.ENOENT) })
}

func (s *SourceRoutes) eachRule(protocol conf.Protocol, ranges []portRange, do func(*netlink.Rule) error) error {
	for _, ports := range ranges {
		for _, family := range s.families() {
			r := netlink.NewRule()
			r.Family, r.Priority, r.Table = family, rulePriority, s.table.of(protocol)
			r.IifName, r.IPProto = s.iif, ipProto(protocol)
			r.Sport = netlink.NewRulePortRange(ports.first, ports.last)
			if err := do(r); err != nil {
				return fmt.Errorf("routing rule for %s ports %d-%d inside the container's namespace: %w", protocol, ports.first, ports.last, err)
			}
		}
	}
	return nil
}

func (s *SourceRoutes) families() []int {
	families := []int{unix.AF_INET}
	if s.plan.IPv6.Enabled() {
		families = append(families, unix.AF_INET6)
	}
	return families
}

// Has asks the kernel, as the container may change its addresses at any time. What
// cannot be looked up is not local.
func (s *SourceRoutes) Has(ip netip.Addr) bool {
	routes, err := s.link.RouteGet(ip.AsSlice())
	return err == nil && slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Type != unix.RTN_UNICAST })
}

// AddClient brings replies to a client back to rootlessport.
func (s *SourceRoutes) AddClient(protocol conf.Protocol, ip netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := client{protocol, ip}
	if err := s.link.RouteReplace(s.clientRoute(c)); err != nil {
		return fmt.Errorf("route to client %s inside the container's namespace: %w", ip, err)
	}
	s.clients[c] = true
	return nil
}

// RemoveClient is the reverse of AddClient; a route that is gone is success.
func (s *SourceRoutes) RemoveClient(protocol conf.Protocol, ip netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := client{protocol, ip}
	delete(s.clients, c)
	if s.leaving {
		return nil
	}
	if err := s.link.RouteDel(s.clientRoute(c)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("removing the route to client %s inside the container's namespace: %w", ip, err)
	}
	return nil
}

// client is an address that a service sees, in one protocol.
type client struct {
	protocol conf.Protocol
	ip       netip.Addr
}

func (s *SourceRoutes) clientRoute(c client) *netlink.Route {
	src := s.plan.IPv4.First()
	if c.ip.Is6() {
		src = s.plan.IPv6.First()
	}
	route := &netlink.Route{
		LinkIndex: loopbackIndex, Dst: plan.IPNet(netip.PrefixFrom(c.ip, c.ip.BitLen())), Src: src.AsSlice(),
		Table: s.table.of(c.protocol), Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
	}
	if c.protocol == conf.TCP {
		route.Congctl = "reno"
	}
	return route
}

// restore puts the routes in place after the driver came back: the kernel drops
// them with the address they name.
func (s *SourceRoutes) restore() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		if err := s.link.RouteReplace(s.clientRoute(c)); err != nil {
			return err
		}
	}
	return nil
}

// RemoveAll takes away every rule and route of the attachment's tables, whoever put
// them there: also what a killed supervisor left.
func (s *SourceRoutes) RemoveAll() error {
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := s.link.RuleList(family)
		errs = append(errs, err)
		for _, r := range rules {
			if r.Priority == rulePriority && (r.Table == s.table.tcp || r.Table == s.table.udp) {
				r.Family = family
				errs = append(errs, ignoring(s.link.RuleDel(&r), unix.ENOENT))
			}
		}
		for _, table := range []int{s.table.tcp, s.table.udp} {
			errs = append(errs, s.removeRoutes(family, table))
		}
	}
	return errors.Join(errs...)
}

// The container can fill our tables with millions of routes, which are its own business:
// more than rootlessport can have clients are not ours. That many are taken away, some at
// a time, so that it costs neither the host's memory nor DEL its end.
const (
	mostRoutes   = 1 << 17
	routesAtOnce = 1 << 13
)

func (s *SourceRoutes) removeRoutes(family, table int) error {
	for range mostRoutes / routesAtOnce {
		var routes []netlink.Route
		errs := []error{s.link.RouteListFilteredIter(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			routes = append(routes, r)
			return len(routes) < routesAtOnce
		})}
		for _, r := range routes {
			errs = append(errs, ignoring(s.link.RouteDel(&r), unix.ESRCH))
		}
		if err := errors.Join(errs...); err != nil || len(routes) < routesAtOnce {
			return err
		}
	}
	return nil
}

// check looks for what brings replies of published ports back.
func (s *SourceRoutes) check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, family := range s.families() {
		have, err := s.link.RuleList(family)
		if err != nil {
			return fmt.Errorf("routing rules: %w", err)
		}
		for protocol, ranges := range s.rules {
			for _, ports := range ranges.runs {
				if !slices.ContainsFunc(have, func(r netlink.Rule) bool { return s.isRule(r, protocol, ports) }) {
					errs = append(errs, fmt.Errorf("the routing rule for %s ports %d-%d is missing (%s)", protocol, ports.first, ports.last, familyName(family)))
				}
			}
		}
	}
	return errors.Join(errs...)
}

func (s *SourceRoutes) isRule(r netlink.Rule, protocol conf.Protocol, ports portRange) bool {
	return r.Table == s.table.of(protocol) && r.IPProto == ipProto(protocol) &&
		r.Sport != nil && *r.Sport == *netlink.NewRulePortRange(ports.first, ports.last)
}

func familyName(family int) string {
	if family == unix.AF_INET {
		return "IPv4"
	}
	return "IPv6"
}

func ignoring(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}
