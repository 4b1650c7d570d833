package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Announce tells who is at the other end of an interface that it leads to IPv6 addresses, by an
// unsolicited neighbour advertisement from each (RFC 4861, section 7.2.6). libslirp has to be
// told: from the answer to a question it takes down the sender's address and not the one that
// it asked for (ndp_input in libslirp's ip6_icmp.c), and a proxy answers from its own.
//
// raw is a socket of AF_INET6 and IPPROTO_RAW of the place (raw(7)). One of AF_PACKET would do, but
// has the process that ends with it wait for a grace period of RCU (packet_release).
func (p *Place) Announce(raw int, name string, addrs []netip.Addr) error {
	l, err := p.find(0, name)
	if err != nil || l == nil || l.MAC == "" { // one without is no way for frames that somebody has to take
		return err
	}
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	to := &unix.SockaddrInet6{Addr: everybody.As16(), ZoneId: uint32(l.Index)}
	for _, ip := range addrs {
		if !ip.Is6() {
			continue
		}
		if err := sendPatiently(raw, advertisement(mac, ip), to); err != nil {
			return fmt.Errorf("announcing %s on interface %s: %w", ip, name, err)
		}
	}
	return nil
}

// sendPatiently tries again where the kernel has no room for the receiver, even one that is
// many, in its table of neighbours (EINVAL of ip6_finish_output2 in Linux' ip6_output.c). The
// table is one for all network namespaces, so that any container can fill it for a while;
// what nobody answers for leaves it after three seconds.
func sendPatiently(raw int, packet []byte, to unix.Sockaddr) error {
	const pause = 50 * time.Millisecond
	for patience := 10 * time.Second; ; patience -= pause {
		if err := unix.Sendto(raw, packet, 0, to); !errors.Is(err, unix.EINVAL) || patience <= 0 {
			return err
		}
		time.Sleep(pause)
	}
}

// everybody is all nodes of a link (RFC 4291, section 2.7.1).
var everybody = netip.MustParseAddr("ff02::1")

// advertisement is the packet.
func advertisement(mac net.HardwareAddr, ip netip.Addr) []byte {
	const (
		override = 0x20 // of what was known before
		hopLimit = 255  // has come from no further than the link
	)
	icmp := []byte{136, 0, 0, 0, override, 0, 0, 0}
	icmp = append(icmp, ip.AsSlice()...)
	icmp = append(append(icmp, 2, 1), mac...) // target link-layer address, in units of 8 bytes
	addresses := append(ip.AsSlice(), everybody.AsSlice()...)
	binary.BigEndian.PutUint16(icmp[2:], checksum(addresses, icmp))

	header := []byte{0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, hopLimit}
	return append(append(header, addresses...), icmp...)
}

// checksum is that of ICMPv6 (RFC 4443, section 2.3), of a message of an even length.
func checksum(addresses, icmp []byte) uint16 {
	sum := uint32(len(icmp)) + unix.IPPROTO_ICMPV6
	for _, part := range [][]byte{addresses, icmp} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
