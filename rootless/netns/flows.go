package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// The members of a hub share its driver, which keeps a socket of the host for each flow and
// looks at all of them for each packet. So a member has a share of them, and no other's; and
// the table of connection tracking, whose size is bounded as well, is shared likewise. As
// "nft list ruleset" shows it, tap0 being the driver's interface:
//
//	table inet ambi_hub {
//		map first { type ipv4_addr : inet_service }            ports of a share, by the last bits of the source
//		map last  { type ipv4_addr : inet_service }
//		set flows4   { type ipv4_addr . inet_proto; flags dynamic }   each element counts
//		set pace4    { type ipv4_addr; flags dynamic }
//		set many4    { type ipv4_addr; flags dynamic }
//		set slow4    { type ipv4_addr; flags dynamic }
//		set refused4 { type ipv4_addr; flags dynamic }                how often
//		…                                                             6 the same
//
//		chain forward { type filter hook forward priority -1; oifname != "tap0" accept; goto new }
//		chain input { type filter hook input priority -1; iifname { "lo", "tap0" } accept; goto new }
//		chain new {
//			ct state != new accept
//			ct status confirmed accept             not the first packet of it
//			meta nfproto ipv4 goto new4
//			meta nfproto ipv6 goto new6
//		}
//		chain new4 {
//			add @pace4 { ip saddr limit rate over 1000/second burst 1000 packets } goto late4
//			meta l4proto tcp add @flows4 { ip saddr . meta l4proto ct count over 1280 } goto refuse4
//			meta l4proto udp add @flows4 { ip saddr . meta l4proto ct count over 4096 } goto refuse4
//			meta l4proto != { tcp, udp } add @flows4 { ip saddr . meta l4proto ct count over 256 } goto refuse4
//			add @many4 { ip saddr ct count over 512 } goto slow4
//		}
//		chain slow4 { add @slow4 { ip saddr limit rate over 200/second burst 500 packets } goto late4 }
//		chain late4 { add @refused4 { ip saddr counter }; drop }        the client tries again
//		chain refuse4 {
//			add @refused4 { ip saddr counter }
//			meta l4proto tcp reject with tcp reset
//			reject with icmpx admin-prohibited
//		}
//		chain postrouting { type nat hook postrouting priority 99
//			oifname != "tap0" accept
//			meta l4proto != udp masquerade
//			meta nfproto ipv4 masquerade to :ip saddr & 0.0.0.31 map @first - ip saddr & 0.0.0.31 map @last
//			meta nfproto ipv6 masquerade to :…
//		}
//	}
//
// TCP: what is counted is what the driver has, more or less: less when the driver is late, since
// a connection that is closed is not counted any more, though the driver has not heard of it.
// Its own bound of files holds for these (rootless/supervisor/files.go). UDP: the driver has a socket for
// each source port, and keeps it for longer than connection tracking knows of it (240 s after
// the last datagram, that 30 s); so it is the ports that bound the sockets, and the count
// bounds the table.
//
// The pace is what the driver keeps up with: its interface has room for a thousand packets,
// and what is lost there may be anybody's. The more flows it has the slower it is. The pace is
// also what the kernel can count: in a thousandth of a second or so it forgets but a few of the
// flows that came to nothing (nf_conncount).
const (
	mostTCP   = 1280
	mostUDP   = 4096
	mostOther = 256 // such as ping

	firstPort = 1024
	udpPorts  = 2000 // of a member; 32 shares of it are there
	shares    = 32

	flowsPerSecond = 1000
	flowsAtOnce    = 1000
	many           = 512 // flows, of who has so many:
	slowly         = 200 // a second
	slowlyAtOnce   = 500
)

// flowFamily is what differs between the families.
type flowFamily struct {
	suffix         string
	nfproto        byte
	source, length uint32 // of the source address, in the header
	kind           nftables.SetDatatype
}

var flowFamilies = []flowFamily{
	{"4", unix.NFPROTO_IPV4, 12, 4, nftables.TypeIPAddr},
	{"6", unix.NFPROTO_IPV6, 8, 16, nftables.TypeIP6Addr},
}

const hubTable = "ambi_hub"

// WayOut masquerades what leaves by the driver's interface, and bounds the flows of each
// member of a shared network. A kernel that cannot count them (nft_connlimit) gets only the
// former: then the driver's own bound holds, for all members together.
//
// With traffic, what each member sends and gets by it is counted, too.
func (n *Namespace) WayOut(traffic bool) error {
	err := n.shareFlows(true, traffic)
	if err != nil {
		err = n.shareFlows(false, false)
	}
	if err != nil {
		return NoFirewall(fmt.Errorf("masquerading in the hub: %w", err))
	}
	return nil
}

// NoFirewall says what is missing where an error comes of a kernel without nftables.
func NoFirewall(err error) error {
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "the kernel has no nftables, by which a shared network forwards and masquerades: %v", err), "load its modules: modprobe nf_tables nft_masq nft_ct")
	}
	return err
}

// table is a new one, in place of that which another process may have left.
func (n *Namespace) table(c *nftables.Conn, t *nftables.Table) *nftables.Table {
	if n.again {
		c.AddTable(t)
		c.DelTable(t)
	}
	return c.AddTable(t)
}

func (n *Namespace) shareFlows(count, traffic bool) error {
	t, err := newTransaction()
	if err != nil {
		return err
	}
	f := &flowRules{Conn: t.Conn, way: ifName(n.plan.IfName), table: n.table(t.Conn, &nftables.Table{Name: hubTable, Family: nftables.TableFamilyINet})}
	if err := f.masquerade(); err != nil {
		return err
	}
	if count {
		if err := f.count(); err != nil {
			return err
		}
	}
	if traffic {
		if err := f.countTraffic(); err != nil {
			return err
		}
	}
	return t.commit(n.file)
}

// BePatient has the kernel ask for the MAC address of a driver that is busy for a minute:
// after three questions without an answer, three seconds, no member would have a route to
// anywhere. Best effort, since /proc/sys may be read-only.
func (n *Namespace) BePatient() {
	for _, family := range []string{"ipv4", "ipv6"} {
		for _, setting := range []string{"ucast_solicit", "mcast_solicit"} {
			_ = n.SetSysctl(family+"/neigh/"+n.plan.IfName+"/"+setting, "60")
		}
	}
}

// flowRules is the table while it is written.
type flowRules struct {
	*nftables.Conn
	table *nftables.Table
	way   []byte // name of the driver's interface
}

func ifName(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

func (f *flowRules) base(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
	return f.AddChain(&nftables.Chain{Table: f.table, Name: name, Type: kind, Hooknum: hook, Priority: &priority})
}

func (f *flowRules) chain(name string) *nftables.Chain {
	return f.AddChain(&nftables.Chain{Table: f.table, Name: name})
}

func (f *flowRules) rule(c *nftables.Chain, parts ...[]expr.Any) {
	r := &nftables.Rule{Table: f.table, Chain: c}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	f.AddRule(r)
}

// masquerade comes before the rules of bridge and plugins, whose masquerading is the same
// but for the ports: the first one counts.
func (f *flowRules) masquerade() error {
	first, last, err := f.shares()
	if err != nil {
		return err
	}
	c := f.base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource-1)
	f.rule(c, meta(expr.MetaKeyOIFNAME, expr.CmpOpNeq, f.way), accept)
	f.rule(c, meta(expr.MetaKeyL4PROTO, expr.CmpOpNeq, []byte{unix.IPPROTO_UDP}), []expr.Any{&expr.Masq{}})
	for _, family := range flowFamilies {
		lowBits := []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: family.source + family.length - 4, Len: 4},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: share(shares - 1), Xor: make([]byte, 4)},
		}
		f.rule(c, meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{family.nfproto}), lowBits, []expr.Any{
			&expr.Lookup{SourceRegister: 1, DestRegister: 2, IsDestRegSet: true, SetName: first.Name, SetID: first.ID},
			&expr.Lookup{SourceRegister: 1, DestRegister: 3, IsDestRegSet: true, SetName: last.Name, SetID: last.ID},
			&expr.Masq{ToPorts: true, RegProtoMin: 2, RegProtoMax: 3},
		})
	}
	return nil
}

// share is the key of one of the shares of ports.
func share(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func (f *flowRules) shares() (first, last *nftables.Set, err error) {
	of := func(name string, offset int) (*nftables.Set, error) {
		s := &nftables.Set{Table: f.table, Name: name, IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeInetService}
		var all []nftables.SetElement
		for n := range shares {
			all = append(all, nftables.SetElement{Key: share(uint32(n)), Val: binaryutil.BigEndian.PutUint16(uint16(firstPort + n*udpPorts + offset))})
		}
		return s, f.AddSet(s, all)
	}
	if first, err = of("first", 0); err == nil {
		last, err = of("last", udpPorts-1)
	}
	return first, last, err
}

// count has new flows counted, by who begins them.
func (f *flowRules) count() error {
	fresh := f.chain("new")
	for _, family := range flowFamilies {
		if err := f.countFamily(family); err != nil {
			return err
		}
	}
	f.rule(fresh, connection(expr.CtKeySTATE, expr.CmpOpEq, expr.CtStateBitNEW), accept)
	f.rule(fresh, connection(expr.CtKeySTATUS, expr.CmpOpNeq, confirmed), accept)
	for _, family := range flowFamilies {
		f.rule(fresh, meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{family.nfproto}), goTo("new"+family.suffix))
	}
	// What is sent to the hub itself takes up room in the table, too.
	const priority = nftables.ChainPriority(-1)
	forward, input := f.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, priority), f.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, priority)
	f.rule(forward, meta(expr.MetaKeyOIFNAME, expr.CmpOpNeq, f.way), accept)
	for _, from := range [][]byte{ifName("lo"), f.way} {
		f.rule(input, meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, from), accept)
	}
	f.rule(forward, goTo(fresh.Name))
	f.rule(input, goTo(fresh.Name))
	return nil
}

func (f *flowRules) countFamily(family flowFamily) error {
	refuse, late, fresh := f.chain("refuse"+family.suffix), f.chain("late"+family.suffix), f.chain("new"+family.suffix)
	flow, err := nftables.ConcatSetType(family.kind, nftables.TypeInetProto)
	if err != nil {
		return err
	}
	set := func(s *nftables.Set, name string) *nftables.Set {
		s.Table, s.Name, s.Dynamic, s.Size = f.table, name+family.suffix, true, 1<<16-1
		if err == nil {
			err = f.AddSet(s, nil)
		}
		return s
	}
	flows := set(&nftables.Set{KeyType: flow, Concatenation: true}, "flows")
	pace := set(&nftables.Set{KeyType: family.kind}, "pace")
	having := set(&nftables.Set{KeyType: family.kind}, "many")
	slower := set(&nftables.Set{KeyType: family.kind}, "slow")
	refused := set(&nftables.Set{KeyType: family.kind}, "refused")
	if err != nil {
		return err
	}
	key := family.key()
	f.rule(fresh, key, addTo(pace, &expr.Limit{Rate: flowsPerSecond, Unit: expr.LimitTimeSecond, Burst: flowsAtOnce, Over: true}), goTo(late.Name))
	for _, l := range []struct {
		of   []expr.Any
		most uint32
	}{
		{protocol(expr.CmpOpEq, unix.IPPROTO_TCP), mostTCP},
		{protocol(expr.CmpOpEq, unix.IPPROTO_UDP), mostUDP},
		{append(protocol(expr.CmpOpNeq, unix.IPPROTO_TCP), protocol(expr.CmpOpNeq, unix.IPPROTO_UDP)...), mostOther},
	} {
		f.rule(fresh, l.of, key, addTo(flows, &expr.Connlimit{Count: l.most, Flags: expr.NFT_CONNLIMIT_F_INV}), goTo(refuse.Name))
	}
	slow := f.chain("slow" + family.suffix)
	f.rule(slow, key, addTo(slower, &expr.Limit{Rate: slowly, Unit: expr.LimitTimeSecond, Burst: slowlyAtOnce, Over: true}), goTo(late.Name))
	f.rule(fresh, key, addTo(having, &expr.Connlimit{Count: many, Flags: expr.NFT_CONNLIMIT_F_INV}), goTo(slow.Name))
	f.rule(late, key, addTo(refused, &expr.Counter{}), drop)
	f.rule(refuse, key, addTo(refused, &expr.Counter{}))
	f.rule(refuse, protocol(expr.CmpOpEq, unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	f.rule(refuse, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
	return nil
}

const register0 = unix.NFT_REG32_00

// key loads the source address, and the protocol behind it, of which a set may take only the
// former.
func (family flowFamily) key() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: register0, Base: expr.PayloadBaseNetworkHeader, Offset: family.source, Len: family.length},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register0 + family.length/4},
	}
}

// addTo adds what key has loaded to a set; the rule goes on when the expression matches.
func addTo(s *nftables.Set, with expr.Any) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: register0, SetName: s.Name, SetID: s.ID, Operation: unix.NFT_DYNSET_OP_ADD, Exprs: []expr.Any{with}}}
}

func meta(key expr.MetaKey, op expr.CmpOp, value []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: value}}
}

// confirmed is IPS_CONFIRMED of linux/netfilter/nf_conntrack_common.h.
const confirmed = 1 << 3

// connection compares one bit with 0.
func connection(key expr.CtKey, op expr.CmpOp, bit uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bit), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)},
	}
}

func protocol(op expr.CmpOp, number byte) []expr.Any {
	return meta(expr.MetaKeyL4PROTO, op, []byte{number})
}

var (
	accept = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop   = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
)

func goTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

// firewall is a socket for nftables, to be closed. Who uses it need not be on the thread inside,
// which has other things to do: the kernel takes its time for a transaction.
func (n *Namespace) firewall() (c *nftables.Conn, err error) {
	n.Do(func() { c, err = nftables.New(nftables.AsLasting()) })
	return c, err
}

// FlowsRefused is how many flows of each source were refused because it has as many as it
// may; nil where nobody counts.
func (n *Namespace) FlowsRefused() (map[netip.Addr]uint64, error) {
	all, counts := map[netip.Addr]uint64{}, false
	c, err := n.firewall()
	if err == nil {
		defer func() { _ = c.CloseLasting() }()
		counts, err = eachCounted(c, []string{"refused"}, func(_ *nftables.Set, e nftables.SetElement, source netip.Addr) {
			if e.Counter != nil {
				all[source] = e.Counter.Packets
			}
		})
	}
	if err != nil {
		return nil, fmt.Errorf("reading the refused flows of the hub: %w", err)
	}
	if !counts {
		return nil, nil
	}
	return all, nil
}

// eachCounted calls f for the elements of sets that are there, and their source addresses. It
// says whether there is any.
func eachCounted(c *nftables.Conn, names []string, f func(*nftables.Set, nftables.SetElement, netip.Addr)) (counts bool, err error) {
	for _, family := range flowFamilies {
		for _, name := range names {
			set := &nftables.Set{Table: &nftables.Table{Name: hubTable, Family: nftables.TableFamilyINet}, Name: name + family.suffix, KeyType: family.kind}
			// The elements come with an error that hides the kernel's.
			if _, err := c.GetSetByName(set.Table, set.Name); errors.Is(err, unix.ENOENT) {
				continue // a kernel that does not count, or a driver that does itself
			}
			elements, err := c.GetSetElements(set)
			if err != nil {
				return false, err
			}
			counts = true
			for _, e := range elements {
				if source, ok := netip.AddrFromSlice(e.Key[:min(int(family.length), len(e.Key))]); ok {
					f(set, e, source)
				}
			}
		}
	}
	return counts, nil
}

// ForgetFlows begins anew for who gets these addresses next.
func (n *Namespace) ForgetFlows(of []netip.Addr) error {
	c, err := n.firewall()
	if err == nil {
		defer func() { _ = c.CloseLasting() }()
		err = forgetFlows(c, of)
	}
	if err != nil {
		return fmt.Errorf("forgetting the flows of a member: %w", err)
	}
	return nil
}

func forgetFlows(c *nftables.Conn, of []netip.Addr) error {
	var errs []error
	_, err := eachCounted(c, []string{"flows", "many", "refused", sent, got, begun}, func(s *nftables.Set, e nftables.SetElement, source netip.Addr) {
		if slices.Contains(of, source) {
			errs = append(errs, c.SetDeleteElements(s, []nftables.SetElement{{Key: e.Key}}))
		}
	})
	if err = errors.Join(append(errs, err)...); err != nil {
		return err
	}
	if err := c.Flush(); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil // the kernel itself may take away who has no flow any more
}
