package bridge

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// This file has what all messages of rtnetlink(7) are made of.

// batch is requests that travel together. An error in making one is kept until they
// are sent.
type batch struct {
	requests []request
	err      error
}

func (b *batch) add(about string, kind, flags uint16, header []byte, attributes func(*encoder)) {
	r, err := newRequest(about, kind, flags|unix.NLM_F_ACK, header, attributes)
	if b.err == nil {
		b.err = err
	}
	b.requests = append(b.requests, r)
}

// mayFail says that the last request of the batch is a nicety.
func (b *batch) mayFail() { b.requests[len(b.requests)-1].mayFail = true }

func (b *batch) send(s *Socket) ([]answer, error) {
	if b.err != nil {
		return nil, b.err
	}
	return s.do(b.requests)
}

// ifinfomsg is the header of link messages (rtnetlink(7)). change says which of the
// flags are meant.
func ifinfomsg(family uint8, index int, flags, change uint32) []byte {
	b := make([]byte, 0, unix.SizeofIfInfomsg)
	b = append(b, family, 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

// ifaddrmsg is the header of address messages.
func ifaddrmsg(p netip.Prefix, flags uint8, index int) []byte {
	bits := 0
	if p.IsValid() {
		bits = p.Bits()
	}
	b := []byte{familyOf(p.Addr()), uint8(bits), flags, unix.RT_SCOPE_UNIVERSE}
	if p.Addr().IsLinkLocalUnicast() {
		b[3] = unix.RT_SCOPE_LINK
	}
	return binary.NativeEndian.AppendUint32(b, uint32(index))
}

// rtmsg is the header of route messages.
func rtmsg(family, bits uint8, flags uint32) []byte {
	b := []byte{family, bits, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}
	return binary.NativeEndian.AppendUint32(b, flags)
}

func familyOf(a netip.Addr) uint8 {
	switch {
	case !a.IsValid():
		return unix.AF_UNSPEC
	case a.Is4():
		return unix.AF_INET
	}
	return unix.AF_INET6
}
