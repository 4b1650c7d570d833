package netns

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/rootless/plan"
)

// The driver's own address in libslirp's errors of ICMPv6 (LINKLOCAL_ADDR in its ip6.h).
var errorSource = netip.MustParseAddr("fe80::2")

// RouteErrors has the driver's errors of ICMPv6 be from an address that they can be routed
// from: they come from a link-local one, which no router passes on (RFC 4291, section 2.5.6),
// and a container would wait for what cannot be reached. As nft shows it:
//
//	table ip6 ambi_errors {
//		chain prerouting {
//			type filter hook prerouting priority raw
//			iifname "tap0" ip6 saddr fe80::2 ip6 nexthdr icmpv6 icmpv6 type < 128 ip6 saddr set FROM
//		}
//	}
func (n *Namespace) RouteErrors(from netip.Addr) error {
	if err := n.routeErrors(from); err != nil {
		return fmt.Errorf("having errors of ICMPv6 routed in the hub: %w", err)
	}
	return nil
}

// ReachByIPv6 has what is sent by IPv6 to where the host does not get be refused at once, as
// programs of the host learn it from connect(2): a driver may be silent about it, and of the errors
// of ICMPv6 a UDP socket hears only some (icmpv6_err_convert in net/ipv6/icmp.c). Where the
// host gets everywhere, there are no rules. With tcp also connections are refused, for a driver that tells nothing
// of them. As nft shows it:
//
//	table ip6 ambi_reach {
//		chain forward {
//			type filter hook forward priority -2
//			oifname != "tap0" accept
//			ip6 daddr 2001:db8::/64 accept
//			meta l4proto udp reject with icmpv6 port-unreachable
//			meta l4proto tcp reject with tcp reset
//		}
//	}
func (n *Namespace) ReachByIPv6(everywhere bool, only []netip.Prefix, tcp bool) error {
	if everywhere && !n.again && !n.refuses {
		return nil
	}
	n.refuses = true
	t, err := newTransaction()
	if err != nil {
		return err
	}
	table := t.AddTable(&nftables.Table{Name: "ambi_reach", Family: nftables.TableFamilyIPv6})
	t.DelTable(table)
	if !everywhere {
		n.refuseOthers(&flowRules{Conn: t.Conn, table: t.AddTable(table), way: ifName(n.plan.IfName)}, only, tcp)
	}
	if err := t.commit(n.file); err != nil {
		return fmt.Errorf("refusing in the hub what the host does not get to by IPv6: %w", err)
	}
	return nil
}

func (n *Namespace) refuseOthers(f *flowRules, only []netip.Prefix, tcp bool) {
	const destination, portUnreachable, beforeFlows = 24, 4, nftables.ChainPriority(-2)
	forward := f.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, beforeFlows)
	f.rule(forward, meta(expr.MetaKeyOIFNAME, expr.CmpOpNeq, f.way), accept)
	for _, p := range append(n.plan.IPv6.Addresses, only...) { // the driver's own network is always there
		to := plan.IPNet(p.Masked())
		f.rule(forward, []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: destination, Len: 16},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: to.Mask, Xor: make([]byte, 16)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: to.IP},
		}, accept)
	}
	f.rule(forward, protocol(expr.CmpOpEq, unix.IPPROTO_UDP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: portUnreachable}})
	if tcp {
		f.rule(forward, protocol(expr.CmpOpEq, unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	}
}

func (n *Namespace) routeErrors(from netip.Addr) error {
	const (
		nextHeader, source = 6, 8 // in the header of IPv6
		firstThatIsNone    = 128
		checksum           = 40 + 2 // behind that header, that of ICMPv6, which covers the address
	)
	c, err := newTransaction()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Name: "ambi_errors", Family: nftables.TableFamilyIPv6})
	chain := c.AddChain(&nftables.Chain{
		Table: table, Name: "prerouting", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	name := make([]byte, 16) // IFNAMSIZ
	copy(name, n.plan.IfName)
	load := func(base expr.PayloadBase, offset, length uint32) expr.Any {
		return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: length}
	}
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		load(expr.PayloadBaseNetworkHeader, source, 16),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: errorSource.AsSlice()},
		load(expr.PayloadBaseNetworkHeader, nextHeader, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
		load(expr.PayloadBaseTransportHeader, 0, 1),
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: []byte{firstThatIsNone}},
		&expr.Immediate{Register: 1, Data: from.AsSlice()},
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: source, Len: 16,
			CsumType: expr.CsumTypeInet, CsumOffset: checksum,
		},
	}})
	return c.commit(n.file)
}
