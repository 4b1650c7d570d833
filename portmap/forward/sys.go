package forward

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file has the system calls of the hot path. All are made on non-blocking
// descriptors, so they go by RawSyscall: telling Go's scheduler about a call that
// cannot block costs more than it is worth, and lets it hand the processor on in
// the middle of a large splice(2). A call that does not sleep is not interrupted,
// so there is no EINTR but for the two that wait.

func sysRead(fd int32, p []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), errno
}

// sysWrite is for what is no socket; all of p or nothing.
func sysWrite(fd int32, p []byte) {
	unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
}

// sysPeek is read(2) of what stays in the socket.
func sysPeek(fd int32, p []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// sysDiscard takes what was peeked at out of a TCP socket, without copying it (tcp(7),
// MSG_TRUNC). It takes more than one call where urgent data has come meanwhile; false
// when it is not there.
func sysDiscard(fd int32, p []byte) bool {
	for len(p) > 0 {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
			unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
		if n == 0 || errno != 0 {
			return false
		}
		p = p[n:]
	}
	return true
}

// sysSend is send(2) without SIGPIPE.
func sysSend(fd int32, p []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

func sysSplice(from, to int32, most int) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(most), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int(n), errno
}

func sysAccept(fd int32, from *sockaddr) (int32, unix.Errno) {
	from.length = sizeofSockaddr
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&from.raw)), uintptr(unsafe.Pointer(&from.length)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	from.received(from.length)
	return int32(n), errno
}

func sysSocket(domain, typ, proto int) (int32, unix.Errno) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(domain), uintptr(typ), uintptr(proto))
	return int32(fd), errno
}

func sysBind(fd int32, to *sockaddr) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&to.raw)), uintptr(to.length))
	return errno
}

func sysConnect(fd int32, to *sockaddr) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to.raw)), uintptr(to.length))
	return errno
}

func sysShutdownWrite(fd int32) {
	unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
}

func sysClose(fd int32) {
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

// sysReset closes a TCP socket with a reset instead of a FIN (socket(7), SO_LINGER).
func sysReset(fd int32) {
	linger := unix.Linger{Onoff: 1, Linger: 0}
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
	sysClose(fd)
}

func sysSetInt(fd int32, level, name int, value int32) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
	return errno
}

func sysSetString(fd int32, level, name int, value string) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(unsafe.StringData(value))), uintptr(len(value)), 0)
	return errno
}

// sysTCPInfo is the state of a TCP socket and its shortest round trip of late (tcp(7),
// TCP_INFO); 0 when they are not known.
func sysTCPInfo(fd int32) (state uint8, roundTrip time.Duration) {
	var info unix.TCPInfo
	length := uint32(unsafe.Offsetof(info.Min_rtt) + unsafe.Sizeof(info.Min_rtt))
	unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&length)), 0)
	return info.State, time.Duration(info.Min_rtt) * time.Microsecond
}

// sysError is the error that a socket is in (socket(7), SO_ERROR).
func sysError(fd int32) unix.Errno {
	var value int32
	length := uint32(unsafe.Sizeof(value))
	unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&length)), 0)
	return unix.Errno(value)
}

// sysDropErrors empties a socket's queue of errors (ip(7), IP_RECVERR).
func sysDropErrors(fd int32) {
	for errno := unix.Errno(0); errno == 0; {
		_, _, errno = unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, 0, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT, 0, 0)
	}
}

func sysLocalName(fd int32, name *sockaddr) unix.Errno {
	name.length = sizeofSockaddr
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&name.raw)), uintptr(unsafe.Pointer(&name.length)))
	return errno
}

func sysEpollCtl(epfd int, op int, fd int32, event *unix.EpollEvent) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(event)), 0, 0)
	return errno
}

// sysWaitWritable is ppoll(2) for one descriptor; it sleeps for the given moment
// at most, and says false when that was not enough.
func sysWaitWritable(fd int32, most time.Duration) bool {
	wait := unix.PollFd{Fd: fd, Events: unix.POLLOUT}
	limit := unix.NsecToTimespec(most.Nanoseconds())
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&wait)), 1, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	return errno == unix.EINTR || n == 1 && wait.Revents&unix.POLLOUT != 0
}

// sysEpollWait is the other one that may sleep, for a moment; see poller.wait.
func sysEpollWait(epfd int, events []unix.EpollEvent, milliseconds int) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)),
		uintptr(milliseconds), 0, 0)
	return int(n), errno
}

// sysYield lets whoever waits for this processor have it (sched_yield(2)).
func sysYield() { unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// schedOther and schedBatch are policies of sched(7).
const (
	schedOther = 0
	schedBatch = 3
)

// sysScheduler and sysSetScheduler are about the calling thread.
func sysScheduler() int {
	policy, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, 0, 0, 0)
	if errno != 0 {
		return -1
	}
	return int(policy)
}

func sysSetScheduler(policy int) unix.Errno {
	var priority int32 // struct sched_param: 0 for both policies
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, uintptr(policy), uintptr(unsafe.Pointer(&priority)))
	return errno
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

func sysReceiveMany(fd int32, messages []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(messages))), uintptr(len(messages)),
		unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

func sysSendMany(fd int32, messages []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(messages))), uintptr(len(messages)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

// exhausted says that the process or the kernel has run out of something that
// comes back when connections close.
func exhausted(errno unix.Errno) bool {
	return errno == unix.EMFILE || errno == unix.ENFILE || errno == unix.ENOMEM || errno == unix.ENOBUFS || errno == unix.ENOSPC
}
