package relay

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

// packet is an IP packet as far as it matters here (RFC 791, RFC 8200).
type packet struct {
	from, to netip.Addr
	protocol byte   // of the payload
	payload  []byte // whole, as far as the packet's lengths say
	all      []byte // without what may follow it
}

// packetMost is the longest packet (drivers/net/tun.c).
const packetMost = 65535

// What a header has to have.
const (
	header4 = 20
	header6 = 40
	headerT = 20 // TCP (RFC 9293)
	headerU = 8  // UDP (RFC 768), ICMP echo (RFC 792, RFC 4443)
)

// parse reads a packet. False is what is malformed, a fragment (the hub's firewall has put
// fragments together, so it is of a packet too long for the tun), or has headers in between
// that nobody needs.
func parse(b []byte) (packet, bool) {
	if len(b) == 0 {
		return packet{}, false
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return packet{}, false
}

func parse4(b []byte) (packet, bool) {
	if len(b) < header4 {
		return packet{}, false
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	const moreOrOffset = 0x3fff
	if header < header4 || total < header || total > len(b) || binary.BigEndian.Uint16(b[6:])&moreOrOffset != 0 {
		return packet{}, false
	}
	return packet{
		from: netip.AddrFrom4([4]byte(b[12:16])), to: netip.AddrFrom4([4]byte(b[16:20])),
		protocol: b[9], payload: b[header:total], all: b[:total],
	}, true
}

func parse6(b []byte) (packet, bool) {
	if len(b) < header6 {
		return packet{}, false
	}
	total := header6 + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return packet{}, false
	}
	p := packet{
		from: netip.AddrFrom16([16]byte(b[8:24])), to: netip.AddrFrom16([16]byte(b[24:40])),
		protocol: b[6], payload: b[header6:total], all: b[:total],
	}
	return p, p.skipOptions()
}

// skipOptions goes over headers that are for routers and destinations (RFC 8200, section 4).
func (p *packet) skipOptions() bool {
	const most = 8
	for range most {
		if p.protocol != unix.IPPROTO_HOPOPTS && p.protocol != unix.IPPROTO_DSTOPTS {
			return p.protocol != unix.IPPROTO_FRAGMENT && p.protocol != unix.IPPROTO_ROUTING
		}
		if len(p.payload) < 8 {
			return false
		}
		length := 8 + int(p.payload[1])*8
		if length > len(p.payload) {
			return false
		}
		p.protocol, p.payload = p.payload[0], p.payload[length:]
	}
	return false
}

// ends are the addresses and ports of TCP or UDP.
func (p *packet) ends() (from, to netip.AddrPort) {
	return netip.AddrPortFrom(p.from, binary.BigEndian.Uint16(p.payload)), netip.AddrPortFrom(p.to, binary.BigEndian.Uint16(p.payload[2:]))
}

// The flags of TCP.
const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	_
	flagACK
)

// tcpFlags are those of a segment; false for what is none.
func (p *packet) tcpFlags() (byte, bool) {
	if p.protocol != unix.IPPROTO_TCP || len(p.payload) < headerT || int(p.payload[12]>>4)*4 < headerT || int(p.payload[12]>>4)*4 > len(p.payload) {
		return 0, false
	}
	return p.payload[13], true
}

// reset is the answer of a port that nobody listens on (RFC 9293, section 3.5.2).
func (p *packet) reset() []byte {
	segment := p.payload
	flags := segment[13]
	b := p.answer(unix.IPPROTO_TCP, headerT)
	t := b[len(b)-headerT:]
	copy(t[0:2], segment[2:4])
	copy(t[2:4], segment[0:2])
	t[12] = headerT / 4 << 4
	if flags&flagACK != 0 {
		copy(t[4:8], segment[8:12])
		t[13] = flagRST
	} else {
		length := uint32(len(segment) - int(segment[12]>>4)*4)
		length += uint32(flags>>1&1) + uint32(flags&1)
		binary.BigEndian.PutUint32(t[8:], binary.BigEndian.Uint32(segment[4:])+length)
		t[13] = flagRST | flagACK
	}
	binary.BigEndian.PutUint16(t[16:], checksum(pseudo(p.to, p.from, unix.IPPROTO_TCP, headerT), t))
	return b
}

// answer is a packet back to who sent p, from whom that was for, with room for so much.
func (p *packet) answer(protocol byte, size int) []byte {
	return makePacket(p.to, p.from, protocol, size)
}

// makePacket is a packet with room for a payload of a size. The kernel completes IPv4's
// checksum and identification (raw(7), IP_HDRINCL).
func makePacket(from, to netip.Addr, protocol byte, size int) []byte {
	const hops = 64
	if from.Is4() {
		b := make([]byte, header4+size)
		b[0], b[8], b[9] = 0x45, hops, protocol
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		copy(b[12:16], from.AsSlice())
		copy(b[16:20], to.AsSlice())
		return b
	}
	b := make([]byte, header6+size)
	b[0], b[6], b[7] = 0x60, protocol, hops
	binary.BigEndian.PutUint16(b[4:], uint16(size))
	copy(b[8:24], from.AsSlice())
	copy(b[24:40], to.AsSlice())
	return b
}

// fragments are the pieces of a packet of makePacket, each no longer than every link takes
// (RFC 791; RFC 8200, section 4.5).
func fragments(b []byte) (pieces [][]byte) {
	const most, unit = 1280, 8
	p, ok := parse(b)
	if !ok {
		return nil
	}
	four, id := p.from.Is4(), rand.Uint32()
	for at := 0; at < len(p.payload); {
		const room = (most - header6 - unit) / unit * unit
		end := min(at+room, len(p.payload))
		more := uint16(0)
		if end < len(p.payload) {
			more = 1
		}
		var piece []byte
		if four {
			piece = makePacket(p.from, p.to, p.protocol, end-at)
			binary.BigEndian.PutUint16(piece[4:], uint16(id))
			binary.BigEndian.PutUint16(piece[6:], more<<13|uint16(at/unit))
		} else {
			piece = makePacket(p.from, p.to, unix.IPPROTO_FRAGMENT, unit+end-at)
			piece[header6] = p.protocol
			binary.BigEndian.PutUint16(piece[header6+2:], uint16(at)|more)
			binary.BigEndian.PutUint32(piece[header6+4:], id)
		}
		copy(piece[len(piece)-(end-at):], p.payload[at:end])
		pieces = append(pieces, piece)
		at = end
	}
	return pieces
}

// reason is why something cannot be reached: a code of ICMP's destination unreachable
// (RFC 792; RFC 4443, section 3.1).
type reason struct{ four, six byte }

var (
	noRoute    = reason{0, 0}
	noHost     = reason{1, 3}
	noProtocol = reason{2, 4} // of IPv6's, "port" is nearest
	noPort     = reason{3, 4}
	prohibited = reason{13, 1}
)

// The types of ICMP messages.
const (
	unreachable4 = 3
	echo4        = 8
	echoReply4   = 0
	unreachable6 = 1
	echo6        = 128
	echoReply6   = 129
)

// quoted is how much of the packet an error has with it: no more than everybody must take
// (RFC 1812, section 4.3.2.3; RFC 4443, section 2.4).
func quoted(all []byte, is4 bool) []byte {
	most := 1280 - header6 - headerU
	if is4 {
		most = 576 - header4 - headerU
	}
	return all[:min(len(all), most)]
}

// unreachable tells who sent p that it cannot be delivered. It comes from a router's
// address.
func (p *packet) unreachable(router netip.Addr, why reason) []byte {
	if p.to.Is6() {
		return p.failure(router, unreachable6, why.six)
	}
	return p.failure(router, unreachable4, why.four)
}

// failure is an error message of ICMP about p.
func (p *packet) failure(router netip.Addr, kind, code byte) []byte {
	quote, protocol := quoted(p.all, p.to.Is4()), byte(unix.IPPROTO_ICMP)
	if p.to.Is6() {
		protocol = unix.IPPROTO_ICMPV6
	}
	b := makePacket(router, p.from, protocol, headerU+len(quote))
	m := b[len(b)-headerU-len(quote):]
	m[0], m[1] = kind, code
	copy(m[headerU:], quote)
	sumICMP(m, router, p.from)
	return b
}

// sumICMP sets the checksum of a message.
func sumICMP(m []byte, from, to netip.Addr) {
	m[2], m[3] = 0, 0
	var sum uint32
	if from.Is6() {
		sum = pseudo(from, to, unix.IPPROTO_ICMPV6, len(m))
	}
	binary.BigEndian.PutUint16(m[2:], checksum(sum, m))
}

// datagram is the beginning of a UDP datagram, as much as an ICMP error has to quote.
func datagram(from, to netip.AddrPort) packet {
	b := makePacket(from.Addr(), to.Addr(), unix.IPPROTO_UDP, headerU)
	u := b[len(b)-headerU:]
	binary.BigEndian.PutUint16(u[0:], from.Port())
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint16(u[4:], headerU)
	return packet{from: from.Addr(), to: to.Addr(), protocol: unix.IPPROTO_UDP, payload: u, all: b}
}

// pseudo is the sum of the header that checksums cover beside their own (RFC 9293, section
// 3.1; RFC 8200, section 8.1).
func pseudo(from, to netip.Addr, protocol byte, length int) uint32 {
	sum := uint32(protocol) + uint32(length>>16) + uint32(length&0xffff)
	for _, a := range [][]byte{from.AsSlice(), to.AsSlice()} {
		sum = add(sum, a)
	}
	return sum
}

func add(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// checksum is that of the Internet (RFC 1071).
func checksum(sum uint32, b []byte) uint16 {
	sum = add(sum, b)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
