package nat

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// attrs is a list of netlink attributes being written. With the encoder of
// github.com/mdlayher/netlink, which copies each level of nesting, publishing 1000 ports
// took a tenth longer, for as many lines.
type attrs []byte

func align(b []byte) []byte {
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

func (a attrs) bytes(kind uint16, value []byte) attrs {
	a = binary.NativeEndian.AppendUint16(a, uint16(unix.SizeofNlAttr+len(value)))
	a = binary.NativeEndian.AppendUint16(a, kind)
	return align(append(a, value...))
}

// text is a string attribute, which netfilter wants with a terminating zero.
func (a attrs) text(kind uint16, s string) attrs { return a.bytes(kind, append([]byte(s), 0)) }

// number is a 32-bit attribute; netfilter's are in network byte order.
func (a attrs) number(kind uint16, v uint32) attrs {
	return a.bytes(kind, binary.BigEndian.AppendUint32(nil, v))
}

func (a attrs) nest(kind uint16, inner attrs) attrs { return a.bytes(kind|unix.NLA_F_NESTED, inner) }

// eachAttr walks a list of attributes; a truncated one ends it. The library's decoder,
// which copies too, takes nine times as long.
func eachAttr(b []byte, each func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofNlAttr {
		n := int(binary.NativeEndian.Uint16(b))
		kind := binary.NativeEndian.Uint16(b[2:])
		if n < unix.SizeofNlAttr || n > len(b) {
			return
		}
		each(kind&^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// findAttr follows a path of nested attributes; nil when it is not there.
func findAttr(b []byte, path ...uint16) []byte {
	for _, want := range path {
		var found []byte
		eachAttr(b, func(kind uint16, value []byte) {
			if kind == want && found == nil {
				found = value
			}
		})
		if found == nil {
			return nil
		}
		b = found
	}
	return b
}
