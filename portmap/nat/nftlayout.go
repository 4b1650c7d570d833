package nat

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// The nftables side is one table, as "nft list table inet ambi_portmap" shows it
// (the IPv6 twins of sets and rules left out):
//
//	map owners    { ifname : mark . ipv4_addr . ipv6_addr . ifname }   an owner's tag: number of ports, addresses, host interface
//	map ip_ports  { inet_proto . inet_service : ipv4_addr . inet_service }
//	map ip_hosted { ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//	map ip_taken  { inet_proto . inet_service : mark }                 by a mapping of every address (0) or of single ones (1)
//	set ip_snat    { ipv4_addr . ipv4_addr }                            a container's address, twice
//	set ip_hairpin { ipv4_addr . ifname }                               a container's address and its host interface
//
//	chain prerouting  { type nat hook prerouting priority dstnat;  fib daddr type local jump ports }
//	chain output      { type nat hook output priority dstnat;      fib daddr type local jump ports }
//	chain ports {
//		dnat ip to ip daddr . meta l4proto . th dport map @ip_hosted
//		dnat ip to meta l4proto . th dport map @ip_ports
//	}
//	chain postrouting { type nat hook postrouting priority srcnat; ct status dnat jump masquerading }
//	chain masquerading {
//		ip saddr . ip daddr @ip_snat masquerade                         the container to itself
//		ip saddr 127.0.0.0/8 ip daddr . ip daddr @ip_snat masquerade    the host over 127.0.0.1
//		ip daddr . iifname @ip_hairpin masquerade                       another container of the same bridge
//	}
//	chain guard { type filter hook prerouting priority raw; iifname != "lo" ip daddr 127.0.0.0/8 drop }
//
// A packet's cost is that of a handful of look-ups, whatever the number of ports.
const tableName = "ambi_portmap"

const ownersMap = "owners"

// names of the sets of a family.
func (f family) prefix() string {
	if f == ipv4 {
		return "ip_"
	}
	return "ip6_"
}

func (f family) portsMap() string   { return f.prefix() + "ports" }
func (f family) hostedMap() string  { return f.prefix() + "hosted" }
func (f family) takenMap() string   { return f.prefix() + "taken" }
func (f family) snatSet() string    { return f.prefix() + "snat" }
func (f family) hairpinSet() string { return f.prefix() + "hairpin" }

func (f family) addrType() nftables.SetDatatype {
	if f == ipv4 {
		return nftables.TypeIPAddr
	}
	return nftables.TypeIP6Addr
}

// setDef describes a set; a map when it has data.
type setDef struct {
	name      string
	key, data []nftables.SetDatatype
}

func concat(types ...nftables.SetDatatype) []nftables.SetDatatype { return types }

func setDefs() []setDef {
	proto, port, mark, ifname := nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark, nftables.TypeIFName
	defs := []setDef{{ownersMap, concat(ifname), concat(mark, nftables.TypeIPAddr, nftables.TypeIP6Addr, ifname)}}
	for _, f := range families() {
		addr := f.addrType()
		defs = append(defs,
			setDef{f.portsMap(), concat(proto, port), concat(addr, port)},
			setDef{f.hostedMap(), concat(addr, proto, port), concat(addr, port)},
			setDef{f.takenMap(), concat(proto, port), concat(mark)},
			setDef{f.snatSet(), concat(addr, addr), nil},
			setDef{f.hairpinSet(), concat(addr, ifname), nil},
		)
	}
	return defs
}

// portKey is the key of a port in a map of ports; every part of a concatenation
// is padded to four bytes.
func portKey(s slot) []byte {
	return align(binary.BigEndian.AppendUint16([]byte{s.proto, 0, 0, 0}, s.port))
}

// hostedKey is the key of a port of one host address.
func hostedKey(s slot) []byte { return append(s.host.AsSlice(), portKey(s)...) }

// parseSlot is the inverse of both. Of a key of another length, as of a map that somebody else
// has made, nothing is read.
func parseSlot(f family, hosted bool, key []byte) slot {
	host := f.unspecified()
	n := 0
	if hosted {
		n = int(f.addrType().Bytes)
	}
	if len(key) != n+len(portKey(slot{})) {
		return slot{}
	}
	if hosted {
		host, _ = netip.AddrFromSlice(key[:n])
		key = key[n:]
	}
	return slot{key[0], host, binary.BigEndian.Uint16(key[4:])}
}

func addrPortData(a netip.AddrPort) []byte {
	return align(binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port()))
}

func parseAddrPort(f family, data []byte) netip.AddrPort {
	n := int(f.addrType().Bytes)
	if len(data) < n+2 {
		return netip.AddrPort{}
	}
	addr, _ := netip.AddrFromSlice(data[:n])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(data[n:]))
}

// ifnameBytes is a link name or tag as the type ifname has it.
func ifnameBytes(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

// noInterface stands for an interface that is not known; nft cannot read an empty
// name back.
const noInterface = "-"

func parseName(b []byte) string { return strings.TrimRight(string(b), "\x00") }

func (d setDef) message(id uint32) (message, error) {
	key, err := nftables.ConcatSetType(d.key...)
	if err != nil {
		return message{}, fmt.Errorf("key of set %s: %w", d.name, err)
	}
	a := attrs(nil).text(unix.NFTA_SET_TABLE, tableName).text(unix.NFTA_SET_NAME, d.name).
		number(unix.NFTA_SET_ID, id).number(unix.NFTA_SET_KEY_TYPE, key.GetNFTMagic()).number(unix.NFTA_SET_KEY_LEN, key.Bytes)
	if order := d.byteOrder(); order != nil {
		a = a.bytes(unix.NFTA_SET_USERDATA, order)
	}
	if d.data == nil {
		return nftMessage(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, a.number(unix.NFTA_SET_FLAGS, 0)), nil
	}
	data, err := nftables.ConcatSetType(d.data...)
	if err != nil {
		return message{}, fmt.Errorf("data of map %s: %w", d.name, err)
	}
	a = a.number(unix.NFTA_SET_FLAGS, unix.NFT_SET_MAP).
		number(unix.NFTA_SET_DATA_TYPE, data.GetNFTMagic()).number(unix.NFTA_SET_DATA_LEN, data.Bytes)
	return nftMessage(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, a), nil
}

// byteOrder tells nft, which shows and saves wrong values otherwise, that keys and
// data of a single type (all of them names or marks) have the host's byte order:
// type 0 is the key's, 1 the data's, then the length, then 1 for the host's.
func (d setDef) byteOrder() []byte {
	var b []byte
	if len(d.key) == 1 {
		b = binary.NativeEndian.AppendUint32(append(b, 0, 4), 1)
	}
	if len(d.data) == 1 {
		b = binary.NativeEndian.AppendUint32(append(b, 1, 4), 1)
	}
	return b
}
