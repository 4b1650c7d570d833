package nlsock

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// This file has what all messages of rtnetlink(7) are made of.

// Batch is requests that travel together. An error in making one is kept until they
// are sent.
type Batch struct {
	Requests []Request
	err      error
}

// Add adds a request; see [NewRequest]. The kernel acknowledges each.
func (b *Batch) Add(about string, kind, flags uint16, header []byte, attributes func(*Encoder)) {
	r, err := NewRequest(about, kind, flags|unix.NLM_F_ACK, header, attributes)
	if b.err == nil {
		b.err = err
	}
	b.Requests = append(b.Requests, r)
}

// Err is the first error in making a request.
func (b *Batch) Err() error { return b.err }

// MayFail says that the last request of the batch is a nicety.
func (b *Batch) MayFail() { b.Requests[len(b.Requests)-1].MayFail = true }

// Send sends them all, see [Socket.Do].
func (b *Batch) Send(s *Socket) ([]Answer, error) {
	if b.err != nil {
		return nil, b.err
	}
	return s.Do(b.Requests)
}

// IfInfoMsg is the header of link messages (rtnetlink(7)). change says which of the
// flags are meant.
func IfInfoMsg(family uint8, index int, flags, change uint32) []byte {
	b := make([]byte, 0, unix.SizeofIfInfomsg)
	b = append(b, family, 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

// IfAddrMsg is the header of address messages.
func IfAddrMsg(p netip.Prefix, flags uint8, index int) []byte {
	bits := 0
	if p.IsValid() {
		bits = p.Bits()
	}
	b := []byte{FamilyOf(p.Addr()), uint8(bits), flags, unix.RT_SCOPE_UNIVERSE}
	if p.Addr().IsLinkLocalUnicast() {
		b[3] = unix.RT_SCOPE_LINK
	}
	return binary.NativeEndian.AppendUint32(b, uint32(index))
}

// RtMsg is the header of route messages: a unicast route of the main table.
func RtMsg(family, bits uint8, flags uint32) []byte {
	b := []byte{family, bits, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}
	return binary.NativeEndian.AppendUint32(b, flags)
}

// FamilyOf is AF_INET or AF_INET6; AF_UNSPEC of no address.
func FamilyOf(a netip.Addr) uint8 {
	switch {
	case !a.IsValid():
		return unix.AF_UNSPEC
	case a.Is4():
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Unpaced has the connections by a route use Reno ("congctl reno" in ip-route(8), Linux 4.0),
// which every kernel has. On a way that does not leave the machine, BBR as a host's choice
// would pace what is only copied, and halve it.
func Unpaced(e *Encoder) {
	e.Nested(unix.RTA_METRICS, func(e *Encoder) error {
		e.String(unix.RTAX_CC_ALGO, "reno")
		return nil
	})
}
