package netns

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
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
//
// In a hub the service is in another namespace, at the other end of the bridge, so there
//
//	ip rule add iif BRIDGE from CONTAINER ipproto X sport P lookup T
//	local CLIENT/32 dev lo

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
	rules   map[sender]*portRanges
	clients map[client]bool
	leaving bool // see LeaveAtOnce
}

// sender is whose replies a rule is about.
type sender struct {
	protocol conf.Protocol
	ip4, ip6 netip.Addr // invalid ones: whoever sends inside
}

// inside says that the services are in the namespace itself.
func (s *SourceRoutes) inside() bool { return s.iif == "lo" }

func (s *SourceRoutes) senderOf(protocol conf.Protocol, t forward.Target) sender {
	if s.inside() {
		return sender{protocol: protocol}
	}
	return sender{protocol, t.Container4, t.Container6}
}

// rangesOf are the ports of a sender; with the lock held.
func (s *SourceRoutes) rangesOf(from sender) *portRanges {
	if s.rules[from] == nil {
		s.rules[from] = &portRanges{}
	}
	return s.rules[from]
}

func newSourceRoutes(link *netlink.Handle, key conf.Key, iif string, p *plan.Interface) *SourceRoutes {
	return &SourceRoutes{
		link: link, iif: iif, plan: p, table: tablesOf(key),
		rules:   make(map[sender]*portRanges),
		clients: make(map[client]bool),
	}
}

// AddPort sends what a published container port answers to the port's table.
// Neighbouring ports share a rule: the kernel walks the rules one by one.
func (s *SourceRoutes) AddPort(protocol conf.Protocol, port uint16, of forward.Target) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := s.senderOf(protocol, of)
	added, gone := s.rangesOf(from).add(port)
	if added == (portRange{}) {
		return nil
	}
	err := s.replaceRules(from, gone, []portRange{added})
	if err != nil {
		s.rules[from].remove(port)
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
func (s *SourceRoutes) RemovePort(protocol conf.Protocol, port uint16, of forward.Target) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		return nil
	}
	from := s.senderOf(protocol, of)
	ranges := s.rangesOf(from)
	added, gone := ranges.remove(port)
	if gone == (portRange{}) {
		return nil
	}
	err := s.replaceRules(from, []portRange{gone}, added)
	if err != nil {
		ranges.add(port)
	}
	if len(ranges.runs) == 0 {
		delete(s.rules, from)
	}
	return err
}

// RemoveSender takes away the rules that are left of a member of a hub.
func (s *SourceRoutes) RemoveSender(of forward.Target) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, protocol := range []conf.Protocol{conf.TCP, conf.UDP} {
		from := s.senderOf(protocol, of)
		if s.rules[from] == nil {
			continue
		}
		err := s.deleteRules(from, s.rules[from].runs)
		if err == nil {
			delete(s.rules, from)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// replaceRules changes rules, the new ones first, so that no port is without one. After
// an error they are as before, as far as the kernel lets us.
func (s *SourceRoutes) replaceRules(from sender, before, after []portRange) error {
	err := s.addRules(from, after)
	if err == nil {
		err = s.deleteRules(from, before)
	}
	if err != nil {
		_ = s.addRules(from, before)
		_ = s.deleteRules(from, after)
	}
	return err
}

func (s *SourceRoutes) addRules(from sender, ranges []portRange) error {
	return s.eachRule(from, ranges, func(r *netlink.Rule) error { return ignoring(s.link.RuleAdd(r), unix.EEXIST) })
}

func (s *SourceRoutes) deleteRules(from sender, ranges []portRange) error {
	return s.eachRule(from, ranges, func(r *netlink.Rule) error { return ignoring(s.link.RuleDel(r), unix.ENOENT) })
}

func (s *SourceRoutes) eachRule(from sender, ranges []portRange, do func(*netlink.Rule) error) error {
	for _, ports := range ranges {
		for _, family := range s.families(from) {
			r := netlink.NewRule()
			r.Family, r.Priority, r.Table = family, rulePriority, s.table.of(from.protocol)
			r.IifName, r.IPProto = s.iif, ipProto(from.protocol)
			r.Sport = netlink.NewRulePortRange(ports.first, ports.last)
			r.Src = from.network(family)
			if err := do(r); err != nil {
				return fmt.Errorf("routing rule for %s ports %d-%d inside the container's namespace: %w", from.protocol, ports.first, ports.last, err)
			}
		}
	}
	return nil
}

// network is the sender's address of a family; nil for whoever sends.
func (f sender) network(family int) *net.IPNet {
	ip := f.ip4
	if family == unix.AF_INET6 {
		ip = f.ip6
	}
	if !ip.IsValid() {
		return nil
	}
	return plan.IPNet(netip.PrefixFrom(ip, ip.BitLen()))
}

func (s *SourceRoutes) families(from sender) (families []int) {
	if from.ip4.IsValid() || s.inside() {
		families = append(families, unix.AF_INET)
	}
	if from.ip6.IsValid() || s.inside() && s.plan.IPv6.Enabled() {
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
	route := &netlink.Route{
		LinkIndex: loopbackIndex, Dst: plan.IPNet(netip.PrefixFrom(c.ip, c.ip.BitLen())),
		Table: s.table.of(c.protocol), Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
	}
	switch {
	case !s.inside():
		return route
	case c.ip.Is4():
		route.Src = s.plan.IPv4.First().AsSlice()
	default:
		route.Src = s.plan.IPv6.First().AsSlice()
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

// CheckRules looks for what brings replies of published ports back.
func (s *SourceRoutes) CheckRules() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		have, err := s.link.RuleList(family)
		if err != nil {
			return fmt.Errorf("routing rules: %w", err)
		}
		for from, ranges := range s.rules {
			if !slices.Contains(s.families(from), family) {
				continue
			}
			for _, ports := range ranges.runs {
				if !slices.ContainsFunc(have, func(r netlink.Rule) bool { return s.isRule(r, family, from, ports) }) {
					errs = append(errs, fmt.Errorf("the routing rule for %s ports %d-%d is missing (%s)", from.protocol, ports.first, ports.last, familyName(family)))
				}
			}
		}
	}
	return errors.Join(errs...)
}

func (s *SourceRoutes) isRule(r netlink.Rule, family int, from sender, ports portRange) bool {
	src := from.network(family)
	return r.Table == s.table.of(from.protocol) && r.IPProto == ipProto(from.protocol) &&
		r.Sport != nil && *r.Sport == *netlink.NewRulePortRange(ports.first, ports.last) &&
		(src == nil || r.Src != nil && r.Src.String() == src.String())
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
