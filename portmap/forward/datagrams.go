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
	in, out       [datagramBatch]mmsghdr
	inVec, outVec [datagramBatch]unix.Iovec
	names         [datagramBatch]sockaddr
	controls      [datagramBatch]control
	sendControl   control
	buffers       []byte
	used          int // of in by the last receive
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
		h.Iov, h.Name, h.Control = &d.inVec[i], (*byte)(unsafe.Pointer(&d.names[i].raw)), (*byte)(unsafe.Pointer(&d.controls[i]))
		h.SetIovlen(1)
		d.out[i].header.Iov = &d.outVec[i]
		d.out[i].header.SetIovlen(1)
		d.inVec[i].Base = &d.buffers[i*datagramMost]
		d.inVec[i].SetLen(datagramMost)
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
		l.ip, l.available = info.Addr, true
		if l.ip[0] == 0xfe && l.ip[1]&0xc0 == 0x80 {
			l.iface = info.Ifindex
		}
	}
	return l
}

// setLocal writes the control message that makes a reply leave from an address.
func (d *datagrams) setLocal(family int, l *localAddr) int {
	c := &d.sendControl
	if !l.available {
		return 0
	}
	if family == unix.AF_INET {
		c.header.Level, c.header.Type = unix.SOL_IP, unix.IP_PKTINFO
		c.header.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&c.info))
		*info = unix.Inet4Pktinfo{Spec_dst: [4]byte(l.ip[:4])}
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	}
	c.header.Level, c.header.Type = unix.SOL_IPV6, unix.IPV6_PKTINFO
	c.header.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&c.info))
	*info = unix.Inet6Pktinfo{Addr: l.ip, Ifindex: l.iface}
	return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
}

// sendConnected sends the received datagrams [i, end) on through a connected
// socket. An error of the socket is an earlier datagram's (udp(7)): the datagram
// is tried once more.
func (d *datagrams) sendConnected(fd int32, i, end int) (bytes, lost int, refused bool) {
	for k := i; k < end; k++ {
		h := &d.out[k].header
		h.Name, h.Namelen, h.Control = nil, 0, nil
		h.SetControllen(0)
		d.outVec[k].Base = d.inVec[k].Base
		d.outVec[k].SetLen(d.bytes(k))
	}
	retried := false
	for i < end {
		n, errno := sysSendMany(fd, d.out[i:end])
		if errno != 0 || n <= 0 {
			refused = refused || errno == unix.ECONNREFUSED
			if errno == unix.ECONNREFUSED && !retried {
				retried = true
				continue
			}
			lost++
			i++
			continue
		}
		bytes += d.sum(i, i+n)
		i += n
		retried = false
	}
	return bytes, lost, refused
}

func (d *datagrams) sum(i, end int) (bytes int) {
	for ; i < end; i++ {
		bytes += d.bytes(i)
	}
	return bytes
}

// sendTo sends the n received datagrams to a client, from the address that it
// used.
func (d *datagrams) sendTo(u *udpPort, to *flowKey, n int) (bytes, lost int) {
	size := d.setLocal(u.family, &to.local)
	for i := range n {
		h := &d.out[i].header
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&to.client.raw)), to.client.length
		h.Control = (*byte)(unsafe.Pointer(&d.sendControl))
		h.SetControllen(size)
		d.outVec[i].Base = d.inVec[i].Base
		d.outVec[i].SetLen(d.bytes(i))
	}
	for i := 0; i < n; {
		sent, errno := sysSendMany(u.fd, d.out[i:n])
		if errno == unix.EAGAIN && u.waitForRoom() {
			continue
		}
		if errno != 0 || sent <= 0 {
			lost++
			i++
			continue
		}
		bytes += d.sum(i, i+sent)
		i += sent
	}
	return bytes, lost
}
