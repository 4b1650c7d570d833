package forward

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockaddr is an IPv4 or IPv6 socket address as the kernel has it, so that the hot
// path neither converts nor allocates. Unused bytes are zero: two values of the
// same address are equal.
type sockaddr struct {
	raw    unix.RawSockaddrInet6 // or a RawSockaddrInet4 in its first bytes
	length uint32
}

const sizeofSockaddr = unix.SizeofSockaddrInet6

func newSockaddr(ip netip.Addr, port uint16) sockaddr {
	var s sockaddr
	if ip.Is4() {
		four := s.four()
		four.Family, four.Addr, s.length = unix.AF_INET, ip.As4(), unix.SizeofSockaddrInet4
	} else {
		s.raw.Family, s.raw.Addr, s.length = unix.AF_INET6, ip.As16(), unix.SizeofSockaddrInet6
	}
	s.setPort(port)
	return s
}

// received completes an address that the kernel has filled in over another one.
func (s *sockaddr) received(length uint32) {
	s.length = length
	if length == unix.SizeofSockaddrInet4 {
		clear((*[sizeofSockaddr]byte)(unsafe.Pointer(&s.raw))[length:])
	}
}

func (s *sockaddr) four() *unix.RawSockaddrInet4 {
	return (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw))
}

// ip is the address without its zone.
func (s *sockaddr) ip() netip.Addr {
	if s.raw.Family == unix.AF_INET {
		return netip.AddrFrom4(s.four().Addr)
	}
	return netip.AddrFrom16(s.raw.Addr).Unmap()
}

// The port lies at the same place in both families, in network byte order.
func (s *sockaddr) portBytes() *[2]byte { return (*[2]byte)(unsafe.Pointer(&s.raw.Port)) }

func (s *sockaddr) port() uint16 {
	p := s.portBytes()
	return uint16(p[0])<<8 | uint16(p[1])
}

func (s *sockaddr) setPort(port uint16) {
	*s.portBytes() = [2]byte{byte(port >> 8), byte(port)}
}

// address is an IP address, IPv4 in its mapped form, without the pointer that a
// netip.Addr has: tables of thousands are invisible to the garbage collector.
type address [16]byte
