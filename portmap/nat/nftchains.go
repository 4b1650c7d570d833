package nat

import (
	"fmt"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// layoutMessages make the table as it should be, whatever of it is there
// already: sets and chains are kept with their elements, rules are replaced.
func layoutMessages() ([]message, error) {
	table := attrs(nil).text(unix.NFTA_TABLE_NAME, tableName)
	msgs := []message{nftMessage(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, table)}
	for i, d := range setDefs() {
		m, err := d.message(uint32(i + 1))
		if err != nil {
			return nil, err
		}
		msgs = append(msgs, m)
	}
	chains := chainDefs()
	for _, c := range chains {
		msgs = append(msgs, c.message())
	}
	msgs = append(msgs, nftMessage(unix.NFT_MSG_DELRULE, 0, attrs(nil).text(unix.NFTA_RULE_TABLE, tableName)))
	for _, c := range chains {
		for _, r := range c.rules {
			m, err := r.message(c.name)
			if err != nil {
				return nil, err
			}
			msgs = append(msgs, m)
		}
	}
	return msgs, nil
}

// chainDef is a chain with its rules; a base chain when it has a kind.
type chainDef struct {
	name, kind     string
	hook, priority int32
	rules          []rule
}

type rule []expr.Any

func (c chainDef) message() message {
	a := attrs(nil).text(unix.NFTA_CHAIN_TABLE, tableName).text(unix.NFTA_CHAIN_NAME, c.name)
	if c.kind != "" {
		hook := attrs(nil).number(unix.NFTA_HOOK_HOOKNUM, uint32(c.hook)).number(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))
		a = a.nest(unix.NFTA_CHAIN_HOOK, hook).text(unix.NFTA_CHAIN_TYPE, c.kind)
	}
	return nftMessage(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, a)
}

func (r rule) message(chain string) (message, error) {
	var list attrs
	for _, e := range r {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			return message{}, fmt.Errorf("rule of chain %s: %w", chain, err)
		}
		list = list.nest(unix.NFTA_LIST_ELEM, b)
	}
	a := attrs(nil).text(unix.NFTA_RULE_TABLE, tableName).text(unix.NFTA_RULE_CHAIN, chain).nest(unix.NFTA_RULE_EXPRESSIONS, list)
	return nftMessage(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, a), nil
}

// The priorities of NAT and of what comes before connection tracking
// (linux/netfilter_ipv4.h, enum nf_ip_hook_priorities).
const (
	priorityRaw    = -300
	priorityDstNAT = -100
	prioritySrcNAT = 100
)

func chainDefs() []chainDef {
	toPorts := rule{
		&expr.Fib{Register: reg(0), FlagDADDR: true, ResultADDRTYPE: true},
		equal(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
		jump("ports"),
	}
	toMasquerade := rule{
		&expr.Ct{Register: reg(0), Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: binaryutil.NativeEndian.PutUint32(statusDNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: make([]byte, 4)},
		jump("masquerading"),
	}
	var ports, masquerade []rule
	for _, f := range families() {
		ports = append(ports, f.hostedRule(), f.portsRule())
		masquerade = append(masquerade, f.masqueradeRules()...)
	}
	// Regular chains first: a rule can only jump to a chain that exists.
	return []chainDef{
		{name: "ports", rules: ports},
		{name: "masquerading", rules: masquerade},
		{"prerouting", "nat", unix.NF_INET_PRE_ROUTING, priorityDstNAT, []rule{toPorts}},
		{"output", "nat", unix.NF_INET_LOCAL_OUT, priorityDstNAT, []rule{toPorts}},
		{"postrouting", "nat", unix.NF_INET_POST_ROUTING, prioritySrcNAT, []rule{toMasquerade}},
		{"guard", "filter", unix.NF_INET_PRE_ROUTING, priorityRaw, []rule{guardRule()}},
	}
}

// statusDNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const statusDNAT = 1 << 5

// reg is the n-th 32-bit register.
func reg(n uint32) uint32 { return unix.NFT_REG32_00 + n }

// words is how many registers an address takes.
func (f family) words() uint32 { return f.addrType().Bytes / 4 }

func equal(value []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: value}
}

func jump(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain} }

func (f family) only() rule {
	return rule{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg(0)}, equal([]byte{byte(f)})}
}

// address loads the source or destination address of the packet.
func (f family) address(destination bool, register uint32) expr.Any {
	offset := uint32(8) // of the source address, RFC 8200 section 3
	if f == ipv4 {
		offset = 12 // RFC 791, section 3.1
	}
	if destination {
		offset += f.addrType().Bytes
	}
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrType().Bytes}
}

// protoPort loads the protocol and the destination port, which tcp, udp and sctp
// have in the same place.
func protoPort(register uint32) rule {
	return rule{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Payload{DestRegister: register + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// translate looks the key in register 0 up and sends the connection there.
func (f family) translate(set string) rule {
	return rule{
		&expr.Lookup{SourceRegister: reg(0), DestRegister: reg(0), IsDestRegSet: true, SetName: set},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f), RegAddrMin: reg(0), RegProtoMin: reg(f.words()), Specified: true},
	}
}

func join(parts ...rule) rule {
	var all rule
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func (f family) hostedRule() rule {
	return join(f.only(), rule{f.address(true, reg(0))}, protoPort(reg(f.words())), f.translate(f.hostedMap()))
}

func (f family) portsRule() rule {
	return join(f.only(), protoPort(reg(0)), f.translate(f.portsMap()))
}

func member(set string) rule {
	return rule{&expr.Lookup{SourceRegister: reg(0), SetName: set}, &expr.Masq{}}
}

func notLoopbackInterface() rule {
	return rule{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: ifnameBytes("lo")},
	}
}

// loopback4 matches a first byte of 127 of the address at this offset.
func loopback4(offset uint32) rule {
	return rule{&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 1}, equal([]byte{127})}
}

func (f family) masqueradeRules() []rule {
	w := f.words()
	src, dst := f.address(false, reg(0)), f.address(true, reg(0))
	itself := join(f.only(), rule{src, f.address(true, reg(w))}, member(f.snatSet()))
	// The destination is routed by the interface of its set element, so a packet
	// that came in by it leaves where it came from.
	sameBridge := join(f.only(), rule{dst, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg(w)}}, member(f.hairpinSet()))
	if f == ipv6 {
		return []rule{itself, sameBridge}
	}
	overLoopback := join(f.only(), loopback4(12), rule{dst, f.address(true, reg(w))}, member(f.snatSet()))
	return []rule{itself, overLoopback, sameBridge}
}

// guardRule drops packets from the wire to the host's loopback addresses, which
// route_localnet lets in.
func guardRule() rule {
	return join(ipv4.only(), notLoopbackInterface(), loopback4(16), rule{&expr.Verdict{Kind: expr.VerdictDrop}})
}
