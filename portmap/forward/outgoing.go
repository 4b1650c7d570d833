package forward

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file sends a batch of datagrams. Those of one length that follow each other
// go as one message that the kernel cuts (UDP_SEGMENT, udp(7), Linux 4.18) where they
// are received or, if the network card cannot do it, before they reach it: together
// they take the way through the network stack once.

// segmentsMost is how many bytes the datagrams of one message may have: IPv4's most.
const segmentsMost = 65507

// outgoing is the room that one sendmmsg(2) needs.
type outgoing struct {
	messages [datagramBatch]mmsghdr
	counts   [datagramBatch]int // of datagrams in each message
	vectors  [datagramBatch]unix.Iovec
	controls [datagramBatch]outControl
	local    control // of all messages
}

// outControl is room for the local address and the length of the segments.
type outControl struct {
	local   control
	segment segmentControl
}

// segmentControl is a control message UDP_SEGMENT.
type segmentControl struct {
	header unix.Cmsghdr
	length uint16
	_      [6]byte
}

// destination is where a batch goes and by which socket.
type destination struct {
	fd      int32
	client  *flowKey // nil where the socket is connected
	family  int      // of the socket, where there is a client
	unequal *bool    // the network there cannot cut, as far as is known
	// room waits for the socket to take more, false when it has not.
	room func() bool
}

// sent is what became of a batch.
type sent struct {
	bytes, lost int
	refused     unix.Errno // what ICMP said of an earlier one
}

// send sends the received datagrams [i, end) on. An error of a connected socket is
// an earlier datagram's (udp(7)): what met it is tried once more.
func (d *datagrams) send(to *destination, i, end int) (s sent) {
	retried := false
	for m, most := 0, d.arrange(to, i, end); m < most; {
		n, errno := sysSendMany(to.fd, d.out.messages[m:most])
		switch {
		case errno == 0 && n > 0:
			for range n {
				s.bytes += d.sum(i, i+d.out.counts[m])
				i += d.out.counts[m]
				m++
			}
			retried = false
			continue
		case d.out.counts[m] > 1 && cannotCut(errno):
			*to.unequal = true
			m, most = 0, d.arrange(to, i, end)
			continue
		case errno == unix.EAGAIN && to.room != nil && to.room():
			continue
		case errno == unix.ECONNREFUSED, errno == unix.EHOSTUNREACH, errno == unix.ENETUNREACH:
			s.refused = errno
			if !retried {
				retried = true
				continue
			}
		}
		s.lost += d.out.counts[m]
		i += d.out.counts[m]
		m++
	}
	return s
}

// cannotCut: the device cannot even leave the checksums to the kernel (EIO), a
// segment is longer than a packet may be (EINVAL, since Linux 6.10 EMSGSIZE), or the
// kernel is older. One by one, such datagrams leave in fragments.
func cannotCut(errno unix.Errno) bool {
	return errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE || errno == unix.EOPNOTSUPP
}

func (d *datagrams) sum(i, end int) (bytes int) {
	for ; i < end; i++ {
		bytes += d.bytes(i)
	}
	return bytes
}

// arrange makes the messages that take the datagrams [i, end) to a destination.
func (d *datagrams) arrange(to *destination, i, end int) (messages int) {
	o := &d.out
	local := 0
	if to.client != nil {
		local = o.local.set(to.family, &to.client.local)
	}
	for ; i < end; messages++ {
		count := 1
		if !*to.unequal {
			count = d.alike(i, end)
		}
		for k := i; k < i+count; k++ {
			o.vectors[k].Base = d.vectors[k].Base
			o.vectors[k].SetLen(d.bytes(k))
		}
		h := &o.messages[messages].header
		*h = unix.Msghdr{Iov: &o.vectors[i]}
		h.SetIovlen(count)
		if to.client != nil {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&to.client.client.raw)), to.client.client.length
		}
		o.setControl(messages, local, count, d.bytes(i))
		o.counts[messages] = count
		i += count
	}
	return messages
}

// alike is how many datagrams from the i-th on can go as one message: all have the
// first one's length, but the last may be shorter.
func (d *datagrams) alike(i, end int) int {
	length := d.bytes(i)
	k := i + 1
	for sum := length; length > 0 && k < end; k++ {
		next := d.bytes(k)
		sum += next
		if next > length || next == 0 || sum > segmentsMost {
			break
		}
		if next < length {
			return k + 1 - i
		}
	}
	return k - i
}

// setControl writes a message's control messages: local bytes of the address that it
// leaves from, and the length of the segments where there are several.
func (o *outgoing) setControl(message, local, count, length int) {
	h, c := &o.messages[message].header, &o.controls[message]
	size := local
	if local > 0 {
		c.local = o.local
	}
	if count > 1 {
		s := (*segmentControl)(unsafe.Add(unsafe.Pointer(c), local))
		*s = segmentControl{length: uint16(length)}
		s.header.Level, s.header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		s.header.SetLen(unix.CmsgLen(2))
		size += unix.CmsgSpace(2)
	}
	if size > 0 {
		h.Control = (*byte)(unsafe.Pointer(c))
		h.SetControllen(size)
	}
}

// set writes the control message that makes a datagram leave from an address.
func (c *control) set(family int, l *localAddr) (size int) {
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
