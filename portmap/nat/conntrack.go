package nat

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Conversations outlive rules: the kernel keeps sending an established one where
// it was sent first. So UDP and SCTP conversations with a port are forgotten when
// the port is published, and all conversations with the container, TCP too, when
// it is unpublished.

// entry is one conversation that connection tracking knows: who began it, whom that addressed,
// who answers, and whom that addresses.
type entry struct {
	proto                     uint8
	src, dst, answerer, asker netip.AddrPort
	tuple                     []byte // CTA_TUPLE_ORIG, to delete it by
	id                        []byte
}

// stale are entries that are to be forgotten: which of a mapping, and where they have the host's
// side of it.
type stale struct {
	host  func(entry) netip.AddrPort
	match func(forward, entry) bool
}

var (
	// elsewhere are conversations with a port that go elsewhere than to the container.
	elsewhere = stale{func(e entry) netip.AddrPort { return e.dst }, func(f forward, e entry) bool { return e.answerer != f.to }}
	// forwarded are those that a mapping made.
	forwarded = stale{func(e entry) netip.AddrPort { return e.dst }, func(f forward, e entry) bool { return e.answerer == f.to }}
	// begun are those of a container that answered by UDP what the kernel had forgotten by then,
	// being late or the table full. What the client sends to the port later belongs to
	// such a one, and goes to the container's address.
	begun = stale{func(e entry) netip.AddrPort { return e.asker }, func(f forward, e entry) bool { return e.src == f.to }}
)

// forgetElsewhere deletes the UDP and SCTP conversations with published ports
// that go elsewhere than to the container.
func forgetElsewhere(fs []forward) error {
	for _, l := range byPort(fs, func(f forward) uint16 { return f.port }, toPort) {
		if l.forwards[0].proto == unix.IPPROTO_TCP {
			continue
		}
		if _, err := forget(l.forwards, elsewhere, l.filter); err != nil {
			return err
		}
	}
	return nil
}

// listed are mappings whose entries one list has.
type listed struct {
	forwards []forward
	filter   attrs
}

// fewPorts are as many lists as cost less than one that a host's UDP entries are in, of
// which there may be tens of thousands: for each the kernel goes through its whole table.
const fewPorts = 4

// byPort has for each protocol of mappings a list for each port, or where these are many one
// for all.
func byPort(fs []forward, port func(forward) uint16, filter func(proto uint8, port uint16) attrs) (lists []listed) {
	of := map[uint8]map[uint16][]forward{}
	for _, f := range fs {
		if of[f.proto] == nil {
			of[f.proto] = map[uint16][]forward{}
		}
		of[f.proto][port(f)] = append(of[f.proto][port(f)], f)
	}
	for proto, ports := range of {
		if len(ports) > fewPorts {
			lists = append(lists, listed{slices.Concat(slices.Collect(maps.Values(ports))...), ofProtocol(proto)})
			continue
		}
		for p, some := range ports {
			lists = append(lists, listed{some, filter(proto, p)})
		}
	}
	return lists
}

// forgetForwards deletes the conversations that these mappings made.
func forgetForwards(fs []forward) error {
	byTarget := map[netip.Addr][]forward{}
	for _, f := range fs {
		byTarget[f.to.Addr()] = append(byTarget[f.to.Addr()], f)
	}
	for ip, some := range byTarget {
		lists := []listed{{some, answeredBy(ip)}}
		if ip.Is6() {
			lists = byPort(some, containerPort, fromPort)
		}
		if err := forgetTarget(ip, lists); err != nil {
			return err
		}
	}
	return nil
}

func containerPort(f forward) uint16 { return f.to.Port() }

// forgetTarget forgets what a container's ports were asked, and where that was something by UDP
// what it said by itself.
func forgetTarget(ip netip.Addr, lists []listed) error {
	for _, l := range lists {
		forgotten, err := forget(l.forwards, forwarded, l.filter)
		if err != nil {
			return err
		}
		udp := slices.DeleteFunc(slices.Clone(l.forwards), func(f forward) bool { return f.proto != unix.IPPROTO_UDP })
		if forgotten == 0 || len(udp) == 0 {
			continue
		}
		again := []listed{{udp, begunBy(ip)}}
		if ip.Is6() {
			again = byPort(udp, containerPort, begunAt)
		}
		for _, l := range again {
			if _, err := forget(l.forwards, begun, l.filter); err != nil {
				return err
			}
		}
	}
	return nil
}

// forget lists each family's entries once, whatever the number of mappings, and says how many
// it has deleted.
func forget(fs []forward, which stale, filter attrs) (deleted int, err error) {
	if len(fs) == 0 || nothingRemembered() {
		return 0, nil
	}
	bySlot := make(map[slot]forward, len(fs))
	present := map[family]bool{}
	for _, f := range fs {
		bySlot[f.slot] = f
		present[f.family()] = true
	}
	for _, f := range families() {
		if !present[f] {
			continue
		}
		n, err := forgetFamily(f, filter, bySlot, which)
		if deleted += n; err != nil {
			return deleted, fmt.Errorf("forgetting %s connections of unpublished or republished ports: %w", f, err)
		}
	}
	return deleted, nil
}

// nothingRemembered says whether this network namespace has no entry at all. For a
// list the kernel walks the table of all namespaces, some 10 ms for 262144 buckets;
// the count it has at hand. A kernel that does not tell it is asked for the list.
func nothingRemembered() bool {
	s, err := dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return false
	}
	defer s.close()
	seq, err := s.send(conntrackMessage(ctGetStats, unix.NLM_F_ACK, unix.AF_UNSPEC))
	if err != nil {
		return false
	}
	var count []byte
	err = s.answers(seq, func(_ uint32, data []byte) {
		if len(data) >= headerSize {
			count = append(count, findAttr(data[headerSize:], ctaStatsGlobalEntries)...)
		}
	})
	return err == nil && len(count) == 4 && binary.BigEndian.Uint32(count) == 0
}

// ofProtocol has the kernel (5.8) send the entries of a protocol only: a host may have
// hundreds of thousands. So do toPort, fromPort and answeredBy for what they are named after.
// An older kernel sends all, so the entries are compared all the same.
func ofProtocol(proto uint8) attrs {
	tuple := attrs(nil).nest(ctaTupleProto, attrs(nil).bytes(ctaProtoNum, []byte{proto}))
	return filterBy(ctaFilterOrig, filterProtocol).nest(ctaTupleOrig, tuple)
}

// toPort has the kernel send the entries whose client addressed a port, only.
func toPort(proto uint8, port uint16) attrs {
	var of attrs
	of = of.bytes(ctaProtoNum, []byte{proto}).bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, port))
	return filterBy(ctaFilterOrig, filterProtocol|filterDstPort).nest(ctaTupleOrig, attrs(nil).nest(ctaTupleProto, of))
}

// fromPort has it send those that a port answers.
func fromPort(proto uint8, port uint16) attrs {
	var of attrs
	of = of.bytes(ctaProtoNum, []byte{proto}).bytes(ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, port))
	return filterBy(ctaFilterReply, filterProtocol|filterSrcPort).nest(ctaTupleReply, attrs(nil).nest(ctaTupleProto, of))
}

// begunAt has it send those that began at a port, and begunBy those that an address began.
func begunAt(proto uint8, port uint16) attrs {
	var of attrs
	of = of.bytes(ctaProtoNum, []byte{proto}).bytes(ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, port))
	return filterBy(ctaFilterOrig, filterProtocol|filterSrcPort).nest(ctaTupleOrig, attrs(nil).nest(ctaTupleProto, of))
}

func begunBy(ip netip.Addr) attrs { return ofSource(ctaFilterOrig, ctaTupleOrig, ip) }

// answeredBy is of no use for IPv6: Linux up to 6.18 at least has the comparison of these
// addresses the wrong way round (ctnetlink_filter_match_tuple) and would send all but those.
func answeredBy(ip netip.Addr) attrs {
	return ofSource(ctaFilterReply, ctaTupleReply, ip)
}

func ofSource(which, tuple uint16, ip netip.Addr) attrs {
	return filterBy(which, filterSource).nest(tuple, attrs(nil).nest(ctaTupleIP, attrs(nil).bytes(ctaIPv4Src, ip.AsSlice())))
}

func filterBy(which uint16, flags uint32) attrs {
	// Unlike all other numbers of netfilter, this one has the host's byte order.
	return attrs(nil).nest(ctaFilter, attrs(nil).bytes(which, binary.NativeEndian.AppendUint32(nil, flags)))
}

func (s stale) of(bySlot map[slot]forward, e entry) bool {
	at := s.host(e)
	for _, host := range []netip.Addr{at.Addr(), familyOf(at.Addr()).unspecified()} {
		if f, ok := bySlot[slot{e.proto, host, at.Port()}]; ok && s.match(f, e) {
			return true
		}
	}
	return false
}

// forgetFamily deletes entries while they are listed, since who floods a port makes as many
// as the table has room for.
func forgetFamily(fam family, filter attrs, bySlot map[slot]forward, which stale) (deleted int, err error) {
	s, err := dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	defer s.close()
	local := sync.OnceValues(func() (prefixes, error) { return localAddresses(fam) })
	for range passes {
		d := deletion{socket: s, family: fam}
		err := eachEntry(fam, filter, func(e entry) error {
			if !which.of(bySlot, e) {
				return nil
			}
			l, err := local()
			if err != nil || !l.have(which.host(e).Addr()) {
				return err
			}
			return d.add(e)
		})
		err = errors.Join(err, d.flush())
		if deleted += d.done; err != nil || d.done <= atOnce {
			return deleted, err
		}
	}
	return deleted, nil
}

// passes are how often a list that had many entries is gone through: one that a packet under way
// was to have meanwhile is in the next.
const passes = 3

// atOnce is how many entries the kernel is asked to delete with one message.
const atOnce = 256

// deletion has entries deleted, many at once.
type deletion struct {
	*socket
	family
	waiting []message
	done    int
}

func (d *deletion) add(e entry) error {
	m := conntrackMessage(ctDelete, 0, d.family)
	m.data = attrs(m.data).nest(ctaTupleOrig, e.tuple).bytes(ctaID, e.id)
	d.waiting = append(d.waiting, m)
	if len(d.waiting) < atOnce {
		return nil
	}
	return d.flush()
}

// flush waits until all are gone. One that has ended by itself meanwhile is.
func (d *deletion) flush() error {
	n := len(d.waiting)
	if n == 0 {
		return nil
	}
	d.waiting[n-1].flags |= unix.NLM_F_ACK
	first, err := d.send(d.waiting...)
	if err != nil {
		return err
	}
	d.waiting = d.waiting[:0]
	d.done += n
	return d.acknowledged(first+uint32(n)-1, unix.ENOENT)
}

// eachEntry lists what the kernel remembers. An entry is valid until the next.
func eachEntry(fam family, filter attrs, each func(entry) error) error {
	s, err := dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer s.close()
	var failed error
	m := conntrackMessage(ctGet, 0, fam)
	m.data = append(m.data, filter...)
	err = s.dump(m, func(data []byte) bool {
		if e, ok := parseEntry(data); ok {
			failed = each(e)
		}
		return failed == nil
	})
	// An interrupted list may miss an entry made meanwhile; such an entry was made
	// by the rules that are in force now, so it is not stale. A kernel without
	// connection tracking over netlink (ENOENT, EINVAL) has nothing to forget that
	// we could reach.
	if errors.Is(err, errInterrupted) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		err = nil
	}
	return errors.Join(failed, err)
}

// prefixes are the destinations of routes.
type prefixes map[netip.Prefix]bool

func (p prefixes) have(ip netip.Addr) bool {
	for bits := ip.BitLen(); bits >= 0; bits-- {
		if prefix, err := ip.Prefix(bits); err == nil && p[prefix] {
			return true
		}
	}
	return false
}

// localAddresses are the addresses that packets are translated for: those that "fib
// daddr type local" and iptables' addrtype mean, which ask the table local only.
func localAddresses(fam family) (local prefixes, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout*time.Second)
	defer cancel()
	err = retry(ctx, func() error {
		local = prefixes{}
		return localRoutes(fam, func(p netip.Prefix) { local[p] = true })
	})
	if err != nil {
		return nil, fmt.Errorf("looking for the addresses of this host: %w", err)
	}
	return local, nil
}

// localRoutes asks for one table (Linux 4.20); an older kernel sends all of them,
// so each route is looked at all the same.
func localRoutes(fam family, each func(netip.Prefix)) error {
	s, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer s.close()
	_ = unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	// struct rtmsg of linux/rtnetlink.h: family, length of the destination, length of
	// the source, TOS, table, protocol, scope, type, and four bytes of flags.
	const bits, table, kind = 1, 4, 7
	request := make([]byte, unix.SizeofRtMsg)
	request[0], request[table], request[kind] = byte(fam), unix.RT_TABLE_LOCAL, unix.RTN_LOCAL // NFPROTO_ and AF_ numbers agree
	return s.dump(message{unix.RTM_GETROUTE, 0, request}, func(data []byte) bool {
		if len(data) < unix.SizeofRtMsg || data[table] != unix.RT_TABLE_LOCAL || data[kind] != unix.RTN_LOCAL {
			return true
		}
		if ip, ok := netip.AddrFromSlice(findAttr(data[unix.SizeofRtMsg:], unix.RTA_DST)); ok {
			each(netip.PrefixFrom(ip, int(data[bits])))
		}
		return true
	})
}

// Numbers of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctGet      = 1
	ctDelete   = 2
	ctGetStats = 5

	ctaStatsGlobalEntries = 1

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaID         = 12
	ctaFilter     = 25

	ctaFilterOrig  = 1
	ctaFilterReply = 2
	filterSource   = 1 << 0 // net/netfilter/nf_internals.h, CTA_IP_SRC
	filterProtocol = 1 << 3 // CTA_PROTO_NUM
	filterSrcPort  = 1 << 4 // CTA_PROTO_SRC_PORT, of TCP and UDP
	filterDstPort  = 1 << 5 // CTA_PROTO_DST_PORT, the same

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3
)

func conntrackMessage(op, flags uint16, fam family) message {
	return message{unix.NFNL_SUBSYS_CTNETLINK<<8 | op, flags, genericHeader(uint8(fam), 0)}
}

func parseEntry(data []byte) (entry, bool) {
	if len(data) < headerSize {
		return entry{}, false
	}
	data = data[headerSize:]
	orig, reply := findAttr(data, ctaTupleOrig), findAttr(data, ctaTupleReply)
	proto := findAttr(orig, ctaTupleProto, ctaProtoNum)
	id := findAttr(data, ctaID)
	if len(proto) != 1 || len(id) != 4 {
		return entry{}, false
	}
	e := entry{proto: proto[0], tuple: orig, id: id}
	var ok [4]bool
	e.src, ok[0] = source(orig)
	e.dst, ok[1] = destination(orig)
	e.answerer, ok[2] = source(reply)
	e.asker, ok[3] = destination(reply)
	return e, ok == [4]bool{true, true, true, true}
}

func source(tuple []byte) (netip.AddrPort, bool) {
	return endpoint(tuple, ctaIPv4Src, ctaIPv6Src, ctaProtoSrcPort)
}

func destination(tuple []byte) (netip.AddrPort, bool) {
	return endpoint(tuple, ctaIPv4Dst, ctaIPv6Dst, ctaProtoDstPort)
}

// endpoint reads one end of a tuple; not ok for protocols without ports.
func endpoint(tuple []byte, v4, v6, port uint16) (netip.AddrPort, bool) {
	b := findAttr(tuple, ctaTupleIP, v4)
	if b == nil {
		b = findAttr(tuple, ctaTupleIP, v6)
	}
	addr, ok := netip.AddrFromSlice(b)
	p := findAttr(tuple, ctaTupleProto, port)
	if !ok || len(p) != 2 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(p)), true
}
