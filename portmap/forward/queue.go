package forward

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file looks who waits in a listener's queue. accept(2) takes the first one, whoever that
// is; who the others are the kernel tells by sock_diag(7): connections that nobody has accepted
// are those without an inode.

// queueRequest is a netlink message SOCK_DIAG_BY_FAMILY with struct inet_diag_req_v2
// (linux/inet_diag.h) and a program that lets the sockets of one port pass.
type queueRequest struct {
	header   unix.NlMsghdr
	family   uint8
	protocol uint8
	_        [2]uint8
	states   uint32
	_        [48]byte // struct inet_diag_sockid
	program  unix.NlAttr
	atLeast  comparison
	atMost   comparison
}

// comparison is two struct inet_diag_bc_op: how many bytes to go on by if it is so and if it is
// not, which beyond the end means that the socket does not pass.
type comparison struct {
	code, yes uint8
	no        uint16
	_         uint16
	port      uint16
}

const (
	sockDiagByFamily = 20 // linux/sock_diag.h
	diagBytecode     = 1  // INET_DIAG_REQ_BYTECODE
	diagSourceGE     = 2  // INET_DIAG_BC_S_GE
	diagSourceLE     = 3  // INET_DIAG_BC_S_LE

	// Of net/tcp_states.h.
	tcpEstablished = 1
	tcpCloseWait   = 8
	tcpListen      = 10
)

// diagMessage is struct inet_diag_msg; ports are in network byte order.
type diagMessage struct {
	family, state, timer, retransmits uint8
	sourcePort, destPort              [2]byte
	source, dest                      address // an address of IPv4 is in the first four bytes
	_                                 [3]uint32
	_                                 [4]uint32
	inode                             uint32
}

func newQueueRequest(family uint16, port uint16) queueRequest {
	const one, beyond = uint8(unsafe.Sizeof(comparison{})), 4
	return queueRequest{
		header: unix.NlMsghdr{Type: sockDiagByFamily, Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP, Len: uint32(unsafe.Sizeof(queueRequest{}))},
		family: uint8(family), protocol: unix.IPPROTO_TCP, states: 1<<tcpEstablished | 1<<tcpCloseWait | 1<<tcpListen,
		program: unix.NlAttr{Type: diagBytecode, Len: uint16(unix.SizeofNlAttr + 2*one)},
		atLeast: comparison{code: diagSourceGE, yes: one, no: uint16(2*one + beyond), port: port},
		atMost:  comparison{code: diagSourceLE, yes: one, no: uint16(one + beyond), port: port},
	}
}

// queue is who waits at a listener.
type queue struct {
	local   sockaddr
	guests  map[address]int // with how many connections
	listens bool            // the listener itself was seen
}

// look asks the kernel who waits; false when it is not to be seen, as in a kernel without
// sock_diag for TCP, or when the listener is of another namespace.
func (q *queue) look(diag, listener int32, buffer []byte) bool {
	if diag == noDescriptor || sysLocalName(listener, &q.local) != 0 {
		return false
	}
	q.guests = make(map[address]int)
	r := newQueueRequest(q.local.raw.Family, q.local.port())
	if _, errno := sysSend(diag, unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r))); errno != 0 {
		return false
	}
	for {
		n, errno := sysRead(diag, buffer)
		if errno != 0 || n <= 0 {
			return false
		}
		if done, ok := q.take(buffer[:n]); done {
			return ok && q.listens
		}
	}
}

// take reads messages, until the last one or an error.
func (q *queue) take(b []byte) (done, ok bool) {
	const header = unix.SizeofNlMsghdr
	for len(b) >= header {
		length := int(binary.NativeEndian.Uint32(b))
		if length < header || length > len(b) {
			return true, false
		}
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, true
		case unix.NLMSG_ERROR:
			return true, false
		case sockDiagByFamily:
			if length < header+int(unsafe.Sizeof(diagMessage{})) {
				return true, false
			}
			q.see((*diagMessage)(unsafe.Pointer(&b[header])))
		}
		b = b[min(len(b), (length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return false, false
}

func (q *queue) see(m *diagMessage) {
	here := q.local.ip()
	switch local := m.address(m.source); {
	case m.state == tcpListen:
		q.listens = q.listens || local == address(here.As16()) || here.IsUnspecified()
	case m.inode == 0 && (here.IsUnspecified() || local == address(here.As16())):
		q.guests[guestKey(m.address(m.dest))]++
	}
}

// address is one of the message's, IPv4 in its mapped form.
func (m *diagMessage) address(a address) address {
	if m.family == unix.AF_INET {
		return address{10: 0xff, 11: 0xff, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
	}
	return a
}

// openQueueDiag makes the socket that is asked through. Workers are inside, and who waits is on
// the host's side: only who is not locked to a thread is there.
func openQueueDiag() int32 {
	opened := make(chan int32)
	go func() {
		fd, errno := sysSocket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
		if errno != 0 {
			fd = noDescriptor
		}
		opened <- fd
	}()
	return <-opened
}

// sysQueue is how many connections wait at a listener, and how many can (tcp(7), TCP_INFO,
// where a listener has them in place of others).
func sysQueue(fd int32) (length, most int) {
	var info unix.TCPInfo
	size := uint32(unsafe.Offsetof(info.Sacked) + unsafe.Sizeof(info.Sacked))
	unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_TCP, unix.TCP_INFO, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return int(info.Unacked), int(info.Sacked)
}
