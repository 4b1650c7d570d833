package forward

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file ends TIME_WAIT inside the namespace. The end of a connection that
// closes first keeps its 4-tuple for 60 s (tcp(7)); when the client closes first,
// that is our socket inside. Clients without an address of their own to keep, all
// those of the host's loopback, share the gateway's 28,000 ports, so that five
// hundred short connections a second would use them up, and the kernel's search
// for a free one gets slow long before. TIME_WAIT guards against segments that are
// still on their way; between two sockets of one kernel there are none.

// destroyRequest is a netlink message SOCK_DESTROY with struct inet_diag_req_v2
// (linux/inet_diag.h). Needs Linux 4.5 with CONFIG_INET_DIAG_DESTROY, and
// CAP_NET_ADMIN over the namespace; without, TIME_WAIT takes its time.
type destroyRequest struct {
	header   unix.NlMsghdr
	family   uint8
	protocol uint8
	_        [2]uint8
	states   uint32
	ports    [4]byte // source and destination, in network byte order
	source   address // here IPv4 is in the first four bytes
	dest     address
	iface    uint32
	cookie   [2]uint32
}

const (
	sockDestroy = 21 // linux/sock_diag.h
	anyCookie   = ^uint32(0)
	anyState    = ^uint32(0)
	tcpClosed   = 7 // TCP_CLOSE of net/tcp_states.h: what TIME_WAIT looks like from the socket
)

// endTimeWait is called with a connection that is closed in both directions, ours
// to the service first.
func (w *worker) endTimeWait(c *conn) {
	fd := c.sides[service].fd
	if w.diag == noDescriptor && !w.openDiag() {
		return
	}
	var local sockaddr
	if state, _ := sysTCPInfo(fd); state != tcpClosed || sysLocalName(fd, &local) != 0 {
		return // still waits for an acknowledgement: not ours to cut off
	}
	r := newDestroyRequest(&local, c.target.container, c.port.mapping.ContainerPort)
	sysSend(w.diag, unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r)))
}

func newDestroyRequest(local *sockaddr, container netip.Addr, port uint16) destroyRequest {
	r := destroyRequest{
		header: unix.NlMsghdr{Type: sockDestroy, Flags: unix.NLM_F_REQUEST, Len: uint32(unsafe.Sizeof(destroyRequest{}))},
		family: uint8(local.raw.Family), protocol: unix.IPPROTO_TCP, states: anyState,
		cookie: [2]uint32{anyCookie, anyCookie},
	}
	binary.BigEndian.PutUint16(r.ports[0:], local.port())
	binary.BigEndian.PutUint16(r.ports[2:], port)
	copy(r.source[:], local.ip().AsSlice())
	copy(r.dest[:], container.AsSlice())
	return r
}

// openDiag opens the socket that the requests go through. The kernel answers
// failures only, and drops them when nobody reads.
func (w *worker) openDiag() bool {
	if w.noDiag {
		return false
	}
	fd, errno := w.sockets.socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if errno == 0 {
		w.diag = fd
		return true
	}
	if !exhausted(errno) {
		w.noDiag = true
		w.forwarder.config.Logger.Debug("TIME_WAIT inside the namespace cannot be ended", "error", errno)
	}
	return false
}
