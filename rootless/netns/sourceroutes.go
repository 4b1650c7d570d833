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
// from the client's address, and policy routing in the hub brings the
// replies back to it instead of sending them out by the driver. Per published port
//
//	ip rule add iif BRIDGE from CONTAINER ipproto X sport P lookup T
//
// where T holds only the clients of the moment, as the container itself may send from
// a published port to somebody else:
//
//	local CLIENT/32 dev lo
//
// In a private network BRIDGE is the link to the container. Needs Linux 4.17
// (FRA_SPORT_RANGE).

// rulePriority is after the table local (0), before main (32766): that of the first of the
// [Generations].
const rulePriority = 24941

// loopbackIndex is the index of lo in every network namespace.
const loopbackIndex = 1

// tables are the two routing tables of a hub.
type tables struct{ tcp, udp int }

// tablesOf gives each hub tables of its own, far from the numbers that
// people use ("am" in the upper bytes, and what comes before it).
func tablesOf(key conf.Key, generation int) tables {
	h := fnv.New32a()
	h.Write([]byte(key.String()))
	n := 0x616d0000 - generation<<16 + int(h.Sum32()&0x7fff)*2
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

// SourceRoutes are the rules and routes of a hub.
type SourceRoutes struct {
	link       *netlink.Handle
	iif        string // where replies come in
	key        conf.Key
	generation int
	table      tables

	mu      sync.Mutex
	rules   map[sender]*portRanges
	clients map[client]bool
	leaving bool // see LeaveAtOnce
}

// sender is whose replies a rule is about.
type sender struct {
	protocol conf.Protocol
	ip4, ip6 netip.Addr
}

func senderOf(protocol conf.Protocol, t forward.Target) sender {
	return sender{protocol, t.Container4, t.Container6}
}

// rangesOf are the ports of a sender; with the lock held.
func (s *SourceRoutes) rangesOf(from sender) *portRanges {
	if s.rules[from] == nil {
		s.rules[from] = &portRanges{}
	}
	return s.rules[from]
}

func newSourceRoutes(link *netlink.Handle, key conf.Key, generation int, iif string) *SourceRoutes {
	return &SourceRoutes{
		link: link, iif: iif, key: key, generation: generation, table: tablesOf(key, generation),
		rules:   make(map[sender]*portRanges),
		clients: make(map[client]bool),
	}
}

// AddPort sends what a published container port answers to the port's table.
// Neighbouring ports share a rule: the kernel walks the rules one by one.
func (s *SourceRoutes) AddPort(protocol conf.Protocol, port uint16, of forward.Target) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := senderOf(protocol, of)
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

// LeaveAtOnce has RemovePort and RemoveClient do nothing, as the namespace is about to go.
// One by one, ten thousand ports would take seconds, each splitting the rule that it has with
// its neighbours.
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
	from := senderOf(protocol, of)
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
		from := senderOf(protocol, of)
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
		for _, family := range from.families() {
			r := netlink.NewRule()
			r.Family, r.Priority, r.Table = family, rulePriority+s.generation, s.table.of(from.protocol)
			r.IifName, r.IPProto = s.iif, ipProto(from.protocol)
			r.Sport = netlink.NewRulePortRange(ports.first, ports.last)
			r.Src = from.network(family)
			if err := do(r); err != nil {
				return fmt.Errorf("routing rule for %s ports %d-%d in the hub: %w", from.protocol, ports.first, ports.last, err)
			}
		}
	}
	return nil
}

// network is the sender's address of a family.
func (f sender) network(family int) *net.IPNet {
	ip := f.ip4
	if family == unix.AF_INET6 {
		ip = f.ip6
	}
	return plan.IPNet(netip.PrefixFrom(ip, ip.BitLen()))
}

func (f sender) families() (families []int) {
	if f.ip4.IsValid() {
		families = append(families, unix.AF_INET)
	}
	if f.ip6.IsValid() {
		families = append(families, unix.AF_INET6)
	}
	return families
}

// Has says whether the hub itself has an address. What cannot be looked up is not local.
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
		return fmt.Errorf("route to client %s in the hub: %w", ip, err)
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
		return fmt.Errorf("removing the route to client %s in the hub: %w", ip, err)
	}
	return nil
}

// client is an address that a service sees, in one protocol.
type client struct {
	protocol conf.Protocol
	ip       netip.Addr
}

func (s *SourceRoutes) clientRoute(c client) *netlink.Route {
	return &netlink.Route{
		LinkIndex: loopbackIndex, Dst: plan.IPNet(netip.PrefixFrom(c.ip, c.ip.BitLen())),
		Table: s.table.of(c.protocol), Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
	}
}

// Generations is how many processes may have connections in the namespace at a time, each with
// rules and routes of its own.
const Generations = 8

// Generation is which of them this is.
func (s *SourceRoutes) Generation() int { return s.generation }

// TakeBack takes away all rules and routes of a generation that another process has left, whose
// connections have ended with it.
func (s *SourceRoutes) TakeBack(generation int) error {
	left := tablesOf(s.key, generation)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := s.link.RuleList(family)
		if err != nil {
			return fmt.Errorf("routing rules of the hub: %w", err)
		}
		for _, r := range rules {
			if r.Priority != rulePriority+generation {
				continue
			}
			r.Family = family
			if err := ignoring(s.link.RuleDel(&r), unix.ENOENT); err != nil {
				return fmt.Errorf("removing a routing rule of the hub: %w", err)
			}
		}
		for _, table := range []int{left.tcp, left.udp} {
			if err := s.empty(family, table); err != nil {
				return fmt.Errorf("removing routes to clients in the hub: %w", err)
			}
		}
	}
	return nil
}

func (s *SourceRoutes) empty(family, table int) error {
	routes, err := s.link.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if err := ignoring(s.link.RouteDel(&r), unix.ESRCH); err != nil {
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
			if !slices.Contains(from.families(), family) {
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
		r.Src != nil && r.Src.String() == src.String()
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
