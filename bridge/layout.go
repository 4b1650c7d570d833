package bridge

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What all networks of a host share is two nftables tables, made with the first
// network and removed with the last. No rule is about one network or one container:
// these are elements of sets. As "nft list ruleset" shows them:
//
//	table inet ambi_bridge {
//		set networks { type ifname }              the bridges
//		set same     { type ifname . ifname }     each bridge twice
//		set open     { type ifname }              the bridges of networks with "isolate": false
//
//		chain forward { type filter hook forward priority filter
//			oifname != @networks accept                        not to a container
//			ct state established,related accept
//			ct status dnat accept                              published ports
//			iifname . oifname @same accept                     within a network, where bridged packets come by here
//			iifname @open oifname @open accept
//			drop
//		}
//		chain postrouting { type nat hook postrouting priority srcnat
//			iifname != @networks accept                        not from a container
//			iifname . oifname @same accept
//			ip daddr 224.0.0.0/4 accept
//			ip6 daddr ff00::/8 accept
//			masquerade
//		}
//	}
//	table bridge ambi_bridge {
//		set ports { type ifname }                  the containers' interfaces on the host
//		set macs  { type ifname . ether_addr }     what a container may send from
//		set ips   { type ifname . ipv4_addr }
//		set ips6  { type ifname . ipv6_addr }      with its link-local address
//
//		chain prerouting { type filter hook prerouting priority -300; iifname @ports goto member }
//		chain member {
//			iifname . ether saddr != @macs drop
//			ether type 8021q drop                              a tag of 0 would hide what is inside
//			ether type 8021ad drop
//			ether type arp goto member_arp
//			ether type ip goto member_ip
//			ether type ip6 goto member_ip6
//		}
//		chain member_arp {                                     (RFC 826)
//			iifname . arp saddr ether != @macs drop
//			arp saddr ip 0.0.0.0 iifname . arp daddr ip @ips accept        is my address free?
//			iifname . arp saddr ip @ips accept
//			drop
//		}
//		chain member_ip { iifname . ip saddr != @ips drop }
//		chain member_ip6 {                                     (RFC 4861)
//			icmpv6 type nd-router-advert drop
//			icmpv6 type nd-redirect drop
//			icmpv6 type nd-neighbor-advert iifname . icmpv6 taddr != @ips6 drop
//			ip6 saddr :: icmpv6 type nd-neighbor-solicit iifname . icmpv6 taddr @ips6 accept
//			ip6 saddr :: icmpv6 type mld-listener-report accept            (and -done, mld2, nd-router-solicit)
//			iifname . ip6 saddr != @ips6 drop
//		}
//	}
const tableName = "ambi_bridge"

// tables are the two, with their sets.
type tables struct {
	inet, bridge           *nftables.Table
	networks, same, open   *nftables.Set
	ports, macs, ips, ips6 *nftables.Set
}

func newTables() tables {
	inet := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	bridge := &nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge}
	name := nftables.TypeIFName
	return tables{
		inet: inet, bridge: bridge,
		networks: setOf(inet, "networks", name),
		same:     setOf(inet, "same", name, name),
		open:     setOf(inet, "open", name),
		ports:    setOf(bridge, "ports", name),
		macs:     setOf(bridge, "macs", name, nftables.TypeEtherAddr),
		ips:      setOf(bridge, "ips", name, nftables.TypeIPAddr),
		ips6:     setOf(bridge, "ips6", name, nftables.TypeIP6Addr),
	}
}

func (t tables) sets() []*nftables.Set {
	return []*nftables.Set{t.networks, t.same, t.open, t.ports, t.macs, t.ips, t.ips6}
}

func setOf(t *nftables.Table, name string, key ...nftables.SetDatatype) *nftables.Set {
	s := &nftables.Set{Table: t, Name: name, KeyType: key[0]}
	if len(key) == 1 {
		// A name alone has the host's byte order; without a word about it nft shows it
		// backwards.
		s.KeyByteOrder = binaryutil.NativeEndian
		return s
	}
	s.KeyType = nftables.MustConcatSetType(key...)
	return s
}

// element is a key of a set.
type element struct {
	set *nftables.Set
	key []byte
}

// keyOfSet joins the parts of a key; each is padded to four bytes.
func keyOfSet(parts ...[]byte) []byte {
	var key []byte
	for _, p := range parts {
		key = append(key, p...)
		for len(key)%4 != 0 {
			key = append(key, 0)
		}
	}
	return key
}

// ifname is an interface's name as the type ifname has it.
func ifname(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

// ofNetwork are the elements of a network.
func (t tables) ofNetwork(bridge string, isolate bool) []element {
	n := ifname(bridge)
	all := []element{{t.networks, n}, {t.same, keyOfSet(n, n)}}
	if !isolate {
		all = append(all, element{t.open, n})
	}
	return all
}

// ofPort are the elements of a container's interface.
func (t tables) ofPort(p port) []element {
	n := ifname(p.name)
	all := []element{{t.ports, n}, {t.macs, keyOfSet(n, p.mac)}, {t.ips6, keyOfSet(n, linkLocal(p.mac).AsSlice())}}
	for _, ip := range p.ips {
		if ip.Is4() {
			all = append(all, element{t.ips, keyOfSet(n, ip.AsSlice())})
		} else {
			all = append(all, element{t.ips6, keyOfSet(n, ip.AsSlice())})
		}
	}
	return all
}

// chain is a chain with its rules; a base chain when it has a kind.
type chain struct {
	*nftables.Chain
	rules [][]expr.Any
}

// The priorities of filters and of source NAT (linux/netfilter_ipv4.h, enum
// nf_ip_hook_priorities), and of what comes first on a bridge (linux/netfilter_bridge.h,
// NF_BR_PRI_NAT_DST_BRIDGED).
var (
	priorityFilter = nftables.ChainPriorityRef(0)
	prioritySrcNAT = nftables.ChainPriorityRef(100)
	priorityFirst  = nftables.ChainPriorityRef(-300)
)

// chains are all of both tables, those that others lead to first.
func (t tables) chains() []chain {
	regular := func(name string, rules ...[]expr.Any) chain {
		return chain{&nftables.Chain{Table: t.bridge, Name: name}, rules}
	}
	base := func(table *nftables.Table, name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, rules ...[]expr.Any) chain {
		return chain{&nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: priority}, rules}
	}
	return []chain{
		regular("member_arp", t.memberARP()...),
		regular("member_ip", rule(protocol(unix.ETH_P_IP), in(t.ips, not, iifname, ipSource), drop)),
		regular("member_ip6", t.memberIP6()...),
		regular("member",
			rule(in(t.macs, not, iifname, etherSource), drop),
			rule(etherType(unix.ETH_P_8021Q), drop),
			rule(etherType(unix.ETH_P_8021AD), drop),
			rule(etherType(unix.ETH_P_ARP), goTo("member_arp")),
			rule(etherType(unix.ETH_P_IP), goTo("member_ip")),
			rule(etherType(unix.ETH_P_IPV6), goTo("member_ip6")),
		),
		base(t.bridge, "prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityFirst,
			rule(in(t.ports, is, iifname), goTo("member"))),
		base(t.inet, "forward", nftables.ChainTypeFilter, nftables.ChainHookForward, priorityFilter,
			rule(in(t.networks, not, oifname), accept),
			rule(bits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept),
			rule(bits(expr.CtKeySTATUS, statusDNAT), accept),
			rule(in(t.same, is, iifname, oifname), accept),
			rule(in(t.open, is, iifname), in(t.open, is, oifname), accept),
			rule(drop)),
		base(t.inet, "postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, prioritySrcNAT,
			rule(in(t.networks, not, iifname), accept),
			rule(in(t.same, is, iifname, oifname), accept),
			rule(family(unix.NFPROTO_IPV4), masked(ipDestination, netip.MustParsePrefix("224.0.0.0/4")), accept),
			rule(family(unix.NFPROTO_IPV6), masked(ip6Destination, netip.MustParsePrefix("ff00::/8")), accept),
			rule(masquerade)),
	}
}

func (t tables) memberARP() [][]expr.Any {
	arp := protocol(unix.ETH_P_ARP)
	// Hardware type 1, protocol type IPv4, lengths 6 and 4: any other layout has its
	// addresses elsewhere.
	ethernetIPv4 := compare(arpHeader, is, []byte{0, 1, 8, 0, 6, 4})
	return [][]expr.Any{
		rule(arp, in(t.macs, not, iifname, arpSourceMAC), drop),
		rule(arp, ethernetIPv4, compare(arpSourceIP, is, make([]byte, 4)), in(t.ips, is, iifname, arpTargetIP), accept),
		rule(arp, ethernetIPv4, in(t.ips, is, iifname, arpSourceIP), accept),
		rule(drop),
	}
}

// The types of ICMPv6 messages (RFC 2710, 3810, 4861).
const (
	mldReport         = 131
	mldDone           = 132
	routerSolicit     = 133
	routerAdvert      = 134
	neighbourSolicit  = 135
	neighbourAdvert   = 136
	redirect          = 137
	mld2Report        = 143
	protocolICMPv6    = 58
	statusDNAT        = 1 << 5 // IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h
	lengthOfInterface = unix.IFNAMSIZ
)

func (t tables) memberIP6() [][]expr.Any {
	none := rule(protocol(unix.ETH_P_IPV6), compare(ip6Source, is, make([]byte, 16)))
	rules := [][]expr.Any{
		rule(icmpv6(routerAdvert), drop),
		rule(icmpv6(redirect), drop),
		rule(icmpv6(neighbourAdvert), in(t.ips6, not, iifname, ndTarget), drop),
		rule(none, icmpv6(neighbourSolicit), in(t.ips6, is, iifname, ndTarget), accept),
	}
	for _, kind := range []byte{mldReport, mldDone, mld2Report, routerSolicit} {
		rules = append(rules, rule(none, icmpv6(kind), accept))
	}
	return append(rules, rule(protocol(unix.ETH_P_IPV6), in(t.ips6, not, iifname, ip6Source), drop))
}

// field is a part of a packet: it loads itself into registers from one on, and says
// how many of 32 bits it takes.
type field struct {
	load  func(register uint32) expr.Any
	words uint32
}

func meta(key expr.MetaKey, words uint32) field {
	return field{func(r uint32) expr.Any { return &expr.Meta{Key: key, Register: r} }, words}
}

func payload(base expr.PayloadBase, offset, length uint32) field {
	return field{func(r uint32) expr.Any {
		return &expr.Payload{DestRegister: r, Base: base, Offset: offset, Len: length}
	}, (length + 3) / 4}
}

var (
	iifname        = meta(expr.MetaKeyIIFNAME, lengthOfInterface/4)
	oifname        = meta(expr.MetaKeyOIFNAME, lengthOfInterface/4)
	etherSource    = payload(expr.PayloadBaseLLHeader, 6, 6)
	arpHeader      = payload(expr.PayloadBaseNetworkHeader, 0, 6)
	arpSourceMAC   = payload(expr.PayloadBaseNetworkHeader, 8, 6)
	arpSourceIP    = payload(expr.PayloadBaseNetworkHeader, 14, 4)
	arpTargetIP    = payload(expr.PayloadBaseNetworkHeader, 24, 4)
	ipSource       = payload(expr.PayloadBaseNetworkHeader, 12, 4)
	ipDestination  = payload(expr.PayloadBaseNetworkHeader, 16, 4)
	ip6Source      = payload(expr.PayloadBaseNetworkHeader, 8, 16)
	ip6Destination = payload(expr.PayloadBaseNetworkHeader, 24, 16)
	ndTarget       = payload(expr.PayloadBaseTransportHeader, 8, 16)
)

const (
	is  = false
	not = true
)

func rule(parts ...[]expr.Any) (all []expr.Any) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func register(n uint32) uint32 { return unix.NFT_REG32_00 + n }

// in matches what a set has, or with not what it has not.
func in(s *nftables.Set, invert bool, fields ...field) (all []expr.Any) {
	n := uint32(0)
	for _, f := range fields {
		all = append(all, f.load(register(n)))
		n += f.words
	}
	return append(all, &expr.Lookup{SourceRegister: register(0), SetName: s.Name, Invert: invert})
}

func compare(f field, invert bool, value []byte) []expr.Any {
	op := expr.CmpOpEq
	if invert {
		op = expr.CmpOpNeq
	}
	return []expr.Any{f.load(register(0)), &expr.Cmp{Op: op, Register: register(0), Data: value}}
}

func etherType(kind uint16) []expr.Any {
	return compare(payload(expr.PayloadBaseLLHeader, 12, 2), is, binaryutil.BigEndian.PutUint16(kind))
}

// protocol says again what led to the rule: without it nft shows the rule's fields as
// numbers of bits.
func protocol(kind uint16) []expr.Any {
	return compare(meta(expr.MetaKeyPROTOCOL, 1), is, binaryutil.BigEndian.PutUint16(kind))
}

func family(f byte) []expr.Any { return compare(meta(expr.MetaKeyNFPROTO, 1), is, []byte{f}) }

func icmpv6(kind byte) []expr.Any {
	return rule(
		compare(meta(expr.MetaKeyL4PROTO, 1), is, []byte{protocolICMPv6}),
		compare(payload(expr.PayloadBaseTransportHeader, 0, 1), is, []byte{kind}))
}

// bits matches a connection of which one of the bits is set.
func bits(key expr.CtKey, mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: register(0)},
		&expr.Bitwise{SourceRegister: register(0), DestRegister: register(0), Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register(0), Data: make([]byte, 4)},
	}
}

// masked matches the addresses of a network.
func masked(f field, p netip.Prefix) []expr.Any {
	size := p.Addr().BitLen() / 8
	return []expr.Any{
		f.load(register(0)),
		&expr.Bitwise{SourceRegister: register(0), DestRegister: register(0), Len: uint32(size), Mask: ipNet(p).Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register(0), Data: p.Addr().AsSlice()},
	}
}

var (
	accept     = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop       = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	masquerade = []expr.Any{&expr.Masq{}}
)

func goTo(name string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: name}}
}
