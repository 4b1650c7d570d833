package link

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// This file has what hangs on interfaces: how it is listed, what of a list is carried,
// and in what form.

// names are the interfaces that are carried, and lo, by their index: what hangs on others
// is not.
type names map[int]string

var families = []uint8{unix.AF_INET, unix.AF_INET6}

const (
	ruleInvert = 2  // FIB_RULE_INVERT (linux/fib_rules.h)
	rtaNhID    = 30 // RTA_NH_ID (linux/rtnetlink.h)
)

// Places in fixed headers.
const (
	atIndex        = 4 // of addresses, neighbours and traffic control
	atAddressFlags = 2
	atRouteTable   = 4
	atRouteProto   = 5
	atRouteScope   = 6
	atRouteType    = 7
	atFlags        = 8 // of routes and rules
	atNeighState   = 8
	atNeighFlags   = 10
)

func (p *Place) addresses(of names) ([]*message, error) {
	list, err := p.list(ask("listing the addresses", unix.RTM_NEWADDR, nlsock.IfAddrMsg(netip.Prefix{}, 0, 0)))
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(m *message) bool { return !m.asAddress(of) }), nil
}

// asAddress brings a message into the form that is carried, or says that it is not.
// Those of lo that come by themselves are not.
func (m *message) asAddress(of names) bool {
	name, ok := of[int(number(m.Data[atIndex:]))]
	ip := m.address()
	if !ok || ip.Addr().IsLoopback() && name == "lo" && (ip.Bits() == 8 || ip.Bits() == 128) {
		return false
	}
	m.What = fmt.Sprintf("address %s of interface %s", ip, name)
	return true
}

// address is the address with its prefix's length; of a point-to-point link with the
// other end's.
func (m *message) address() netip.Prefix {
	b := m.get(unix.IFA_LOCAL)
	if b == nil {
		b = m.get(unix.IFA_ADDRESS)
	}
	ip, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(ip, int(m.Data[1]))
}

// routes are those that are carried, and the destinations that addresses have in the
// main table.
func (p *Place) routes(of names) (routes []*message, connected map[string]bool, err error) {
	connected = map[string]bool{}
	for _, family := range families {
		list, err := p.list(ask("listing the routes", unix.RTM_NEWROUTE, routeHeader(family)))
		if err != nil {
			return nil, nil, err
		}
		for _, m := range list {
			if m.kernelMade() && m.table() == unix.RT_TABLE_MAIN {
				connected[m.connection()] = true
			}
			if m.asRoute(of) {
				routes = append(routes, m)
			}
		}
	}
	// Those by a gateway can only be made when there is one to it.
	slices.SortStableFunc(routes, func(a, b *message) int { return a.hops() - b.hops() })
	return routes, connected, nil
}

func (m *message) connection() string {
	return fmt.Sprint(m.destination(), " ", m.number(unix.RTA_OIF))
}

// disconnected are the routes that come with an address, and that somebody has removed
// or moved to another table, as the plugin sbr does.
func disconnected(addresses []*message, connected map[string]bool, of names) (list []message) {
	for _, a := range addresses {
		index := number(a.Data[atIndex:])
		m := message{Kind: unix.RTM_NEWROUTE, Data: routeHeader(a.Data[0])}
		net, _ := netip.AddrFromSlice(a.get(unix.IFA_ADDRESS))
		p, err := net.Prefix(int(a.Data[1]))
		if err != nil {
			continue
		}
		m.Data[1], m.Data[atRouteTable], m.Data[atRouteProto], m.Data[atRouteScope], m.Data[atRouteType] = a.Data[1], unix.RT_TABLE_MAIN, unix.RTPROT_KERNEL, unix.RT_SCOPE_NOWHERE, unix.RTN_UNICAST
		m.set(unix.RTA_DST, p.Addr().AsSlice())
		m.set(unix.RTA_OIF, bytesOf(index))
		if m.What = fmt.Sprintf("route %s of interface %s", p, of[int(index)]); !connected[m.connection()] {
			list = append(list, m)
		}
	}
	return list
}

// hops is a rank: routes without a gateway come first.
func (m *message) hops() int {
	if m.get(unix.RTA_GATEWAY) == nil && m.get(unix.RTA_VIA) == nil && m.get(unix.RTA_MULTIPATH) == nil {
		return 0
	}
	return 1
}

func routeHeader(family uint8) []byte {
	h := nlsock.RtMsg(family, 0, 0)
	h[atRouteTable], h[atRouteProto], h[atRouteScope], h[atRouteType] = 0, 0, 0, 0
	return h
}

// asRoute is asAddress of a route. Those of addresses come with them, unless somebody
// moved them to another table.
func (m *message) asRoute(of names) bool {
	table := m.table()
	if m.kernelMade() && (table == unix.RT_TABLE_MAIN || table == unix.RT_TABLE_LOCAL) || number(m.Data[atFlags:])&unix.RTM_F_CLONED != 0 {
		return false
	}
	return m.cleanRoute(of)
}

func (m *message) kernelMade() bool { return m.Data[atRouteProto] == unix.RTPROT_KERNEL }

func (m *message) table() uint32 {
	if t := m.get(unix.RTA_TABLE); t != nil {
		return number(t)
	}
	return uint32(m.Data[atRouteTable])
}

const nexthopSetting = unix.RTNH_F_ONLINK | unix.RTNH_F_PERVASIVE // the others are its state

func (m *message) cleanRoute(of names) bool {
	name, known := "", true
	via := func(index int) {
		n, ok := of[index]
		name, known = n, known && ok
	}
	m.change(func(a attribute) []byte {
		switch {
		case a.is(unix.RTA_CACHEINFO):
			return nil
		case a.is(unix.RTA_OIF):
			via(int(number(a.value)))
		case a.is(unix.RTA_MULTIPATH):
			return eachNexthop(a.value, func(hop []byte) {
				hop[2] &= nexthopSetting
				via(int(number(hop[4:])))
			})
		}
		return a.value
	})
	if m.get(unix.RTA_OIF) != nil || m.get(unix.RTA_MULTIPATH) != nil {
		// What the kernel shows of a next hop object stands for it.
		m.change(func(a attribute) []byte {
			if a.is(rtaNhID) {
				return nil
			}
			return a.value
		})
	}
	put(m.Data[atFlags:], number(m.Data[atFlags:])&nexthopSetting)
	m.What = "route " + m.destination()
	if gateway, ok := netip.AddrFromSlice(m.get(unix.RTA_GATEWAY)); ok {
		m.What += " via " + gateway.String()
	}
	if name != "" {
		m.What += " of interface " + name
	}
	if t := m.table(); t != unix.RT_TABLE_MAIN {
		m.What += fmt.Sprintf(" in table %d", t)
	}
	return known
}

// eachNexthop calls f for each of a multipath route's next hops (struct rtnexthop, and
// what is in it), in a copy.
func eachNexthop(b []byte, f func(hop []byte)) []byte {
	b = append([]byte{}, b...)
	for rest := b; len(rest) >= unix.SizeofRtNexthop; {
		size := int(binary.NativeEndian.Uint16(rest))
		if size < unix.SizeofRtNexthop || size > len(rest) {
			break
		}
		f(rest[:size])
		rest = rest[min(len(rest), align(size)):]
	}
	return b
}

func (m *message) destination() string {
	ip, ok := netip.AddrFromSlice(m.get(unix.RTA_DST))
	if !ok {
		return "default"
	}
	return netip.PrefixFrom(ip, int(m.Data[1])).String()
}

func (p *Place) rules() (rules []*message, err error) {
	for _, family := range families {
		list, err := p.list(ask("listing the routing rules", unix.RTM_NEWRULE, routeHeader(family)))
		if err != nil {
			return nil, err
		}
		rules = append(rules, list...)
	}
	return slices.DeleteFunc(rules, func(m *message) bool { return !m.asRule() }), nil
}

// asRule is asAddress of a routing rule. The three that a namespace begins with are not
// carried.
func (m *message) asRule() bool {
	if protocol := m.get(unix.FRA_PROTOCOL); len(protocol) == 1 && protocol[0] == unix.RTPROT_KERNEL {
		return false
	}
	put(m.Data[atFlags:], number(m.Data[atFlags:])&ruleInvert)
	m.What = fmt.Sprintf("routing rule %d", m.number(unix.FRA_PRIORITY))
	if from, ok := netip.AddrFromSlice(m.get(unix.FRA_SRC)); ok {
		m.What += " from " + netip.PrefixFrom(from, int(m.Data[2])).String()
	}
	m.What += fmt.Sprintf(" for table %d", m.table()) // FRA_TABLE is RTA_TABLE
	return true
}

func (p *Place) neighbours(of names) (neighbours []*message, err error) {
	for _, flags := range []byte{0, unix.NTF_PROXY} {
		header := make([]byte, unix.SizeofNdMsg)
		header[atNeighFlags] = flags
		list, err := p.list(ask("listing the neighbours", unix.RTM_NEWNEIGH, header))
		if err != nil {
			return nil, err
		}
		neighbours = append(neighbours, list...)
	}
	return slices.DeleteFunc(neighbours, func(m *message) bool { return !m.asNeighbour(of) }), nil
}

// asNeighbour is asAddress of a neighbour. What the kernel has learned is not carried.
func (m *message) asNeighbour(of names) bool {
	name, ok := of[int(number(m.Data[atIndex:]))]
	permanent := binary.NativeEndian.Uint16(m.Data[atNeighState:])&unix.NUD_PERMANENT != 0
	proxy := m.Data[atNeighFlags]&unix.NTF_PROXY != 0
	if !ok || !permanent && !proxy {
		return false
	}
	m.change(func(a attribute) []byte {
		if a.is(unix.NDA_CACHEINFO) || a.is(unix.NDA_PROBES) {
			return nil
		}
		return a.value
	})
	ip, _ := netip.AddrFromSlice(m.get(unix.NDA_DST))
	m.What = fmt.Sprintf("neighbour %s of interface %s", ip, name)
	return true
}

// eachIndex calls f with the places in the message that name an interface by its index.
// The message's bytes are new ones then.
func (m *message) eachIndex(f func(b []byte)) {
	m.change(func(a attribute) []byte {
		switch {
		case m.Kind == unix.RTM_NEWROUTE && a.is(unix.RTA_OIF) && len(a.value) >= 4:
			b := slices.Clone(a.value)
			f(b)
			return b
		case m.Kind == unix.RTM_NEWROUTE && a.is(unix.RTA_MULTIPATH):
			return eachNexthop(a.value, func(hop []byte) { f(hop[4:]) })
		}
		return a.value
	})
	switch m.Kind {
	case unix.RTM_NEWADDR, unix.RTM_NEWNEIGH, unix.RTM_NEWQDISC, unix.RTM_NEWTCLASS:
		f(m.Data[atIndex:])
	case unix.RTM_NEWTFILTER:
		f(m.Data[atIndex:])
		eachMirred(m.get(unix.TCA_OPTIONS), f)
	}
}

// move has the message be about other interfaces, or says that one of its is none of
// them.
func (m *message) move(indices map[int]int) bool {
	known := true
	m.eachIndex(func(b []byte) {
		index, ok := indices[int(number(b))]
		put(b, uint32(index))
		known = known && ok
	})
	return known
}

// on says whether it hangs on some of those interfaces, and goes with them.
func (m message) on(indices map[int]int) bool {
	on := false
	m.eachIndex(func(b []byte) {
		_, ok := indices[int(number(b))]
		on = on || ok
	})
	return on
}

// rename has the message use other names of interfaces, where it has names: in rules, and
// in labels of addresses.
func (m *message) rename(names map[string]string) {
	m.change(func(a attribute) []byte {
		named := m.Kind == unix.RTM_NEWRULE && (a.is(unix.FRA_IIFNAME) || a.is(unix.FRA_OIFNAME))
		if m.Kind == unix.RTM_NEWADDR && a.is(unix.IFA_LABEL) {
			return relabel(a.value, names)
		}
		if to, ok := names[text(a.value)]; named && ok {
			return append([]byte(to), 0)
		}
		return a.value
	})
}

// relabel changes the first part of a label, as of eth0:1.
func relabel(label []byte, names map[string]string) []byte {
	for from, to := range names {
		if t := text(label); t == from || len(t) > len(from) && t[:len(from)+1] == from+":" {
			return append([]byte(to+t[len(from):]), 0)
		}
	}
	return label
}
