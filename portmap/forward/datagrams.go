package forward

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// datagramBatch is how many datagrams one system call moves.
	datagramBatch = 32
	// datagramMost is room for any datagram (65507 bytes over IPv4, 65527 over IPv6).
	datagramMost = 64 << 10
)

// datagrams is the room that all UDP flows of a worker share. The kernel's
// structures point into it, and it is as large in memory as the largest
// datagrams that came.
type datagrams struct {
	in       [datagramBatch]mmsghdr
	vectors  [datagramBatch]unix.Iovec
	names    [datagramBatch]sockaddr
	controls [datagramBatch]control
	buffers  []byte
	used     int // of in by the last receive
	out      outgoing
}

// localAddr is the address of the host that a client sent to; the interface only
// where the address is meaningless without (IPv6 link-local).
type localAddr struct {
	ip        address // IPv4 in the first four bytes
	iface     uint32
	available bool
}

// control is room for one control message with a packet's local address
// (IP_PKTINFO in ip(7), IPV6_PKTINFO in ipv6(7)).
type control struct {
	header unix.Cmsghdr
	info   [20]byte // struct in6_pktinfo; struct in_pktinfo takes 12
	_      [4]byte
}

func newDatagrams() *datagrams {
	d := &datagrams{buffers: make([]byte, datagramBatch*datagramMost), used: datagramBatch}
	for i := range d.in {
		h := &d.in[i].header
		h.Iov, h.Name, h.Control = &d.vectors[i], (*byte)(unsafe.Pointer(&d.names[i].raw)), (*byte)(unsafe.Pointer(&d.controls[i]))
		h.SetIovlen(1)
		d.vectors[i].Base = &d.buffers[i*datagramMost]
		d.vectors[i].SetLen(datagramMost)
	}
	return d
}

// receive takes a batch of datagrams from a socket.
func (d *datagrams) receive(fd int32) (int, unix.Errno) {
	for i := range d.in[:d.used] {
		h := &d.in[i].header
		h.Namelen = sizeofSockaddr
		h.SetControllen(int(unsafe.Sizeof(control{})))
	}
	n, errno := sysReceiveMany(fd, d.in[:])
	d.used = max(n, 0)
	return d.used, errno
}

func (d *datagrams) bytes(i int) int { return int(d.in[i].length) }

// data is a received datagram, until the next receive.
func (d *datagrams) data(i int) []byte { return d.buffers[i*datagramMost:][:d.bytes(i)] }

// key is the client and the local address of a received datagram.
func (d *datagrams) key(i int) flowKey {
	d.names[i].received(d.in[i].header.Namelen)
	return flowKey{client: d.names[i], local: d.local(i)}
}

func (d *datagrams) local(i int) (l localAddr) {
	c := &d.controls[i]
	if d.in[i].header.Controllen == 0 {
		return l
	}
	switch {
	case c.header.Level == unix.SOL_IP && c.header.Type == unix.IP_PKTINFO:
		info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&c.info))
		// Spec_dst is our address also for a datagram that was sent to all.
		copy(l.ip[:], info.Spec_dst[:])
		l.available = true
	case c.header.Level == unix.SOL_IPV6 && c.header.Type == unix.IPV6_PKTINFO:
		info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&c.info))
		if info.Addr[0] == 0xff {
			return l // multicast: the answer comes from what the kernel chooses
		}
		l.ip, l.available = info.Addr, true
		if l.ip[0] == 0xfe && l.ip[1]&0xc0 == 0x80 {
			l.iface = info.Ifindex
		}
	}
	return l
}
