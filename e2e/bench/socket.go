package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socket is a blocking descriptor. The load program uses no poller, so that what it
// measures is the forwarder and not the runtime of its own language.
type socket int

// patience bounds every wait of a socket.
const patience = 5 * time.Second

// connect makes a connected socket of the kind (SOCK_STREAM, SOCK_DGRAM).
func connect(kind int, to netip.AddrPort) (socket, error) {
	family, name := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, name = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	s := socket(fd)
	s.setPatience(patience)
	if kind == unix.SOCK_STREAM {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	for {
		switch err = unix.Connect(fd, name); {
		case err == nil, errors.Is(err, unix.EISCONN):
			return s, nil
		case errors.Is(err, unix.EINTR):
		default:
			s.close()
			return -1, fmt.Errorf("connect: %w", err)
		}
	}
}

// blocking takes over a connection of package net, and closes it: the poller of the
// runtime would be woken by everything that comes, as long as it is registered there.
func blocking(c interface {
	File() (*os.File, error)
	Close() error
}) (socket, error) {
	defer c.Close()
	f, err := c.File()
	if err != nil {
		return -1, err
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0) // Fd makes it blocking
	return socket(fd), err
}

func (s socket) setPatience(d time.Duration) {
	t := unix.NsecToTimeval(d.Nanoseconds())
	_ = unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t)
	_ = unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &t)
}

func (s socket) close() { unix.Close(int(s)) }

// again runs call until no signal interrupts it.
func again(what string, call func() (int, error)) (int, error) {
	for {
		n, err := call()
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return 0, fmt.Errorf("%s: %w", what, os.ErrDeadlineExceeded)
		default:
			return 0, fmt.Errorf("%s: %w", what, err)
		}
	}
}

func (s socket) read(b []byte) (int, error) {
	return again("read", func() (int, error) { return unix.Read(int(s), b) })
}

func (s socket) write(b []byte) (int, error) {
	return again("write", func() (int, error) { return unix.Write(int(s), b) })
}

// spareProcessors is how many goroutines of a program may be in one of the calls below
// at a time.
const spareProcessors = 4

// keepProcessors allows for them.
func keepProcessors() { runtime.GOMAXPROCS(runtime.NumCPU() + spareProcessors) }

// tell and hear are write and read for who waits for an answer again and again. They
// keep the runtime's processor (keepProcessors) while they wait: it would be handed to
// another thread after 20 µs, which wakes two threads for every slow answer, on the
// processor that the forwarder needs. The socket has a time-out (setPatience): only then
// does the runtime's signal end the call, when a collection waits for it (signal(7)).
func (s socket) tell(b []byte) (int, error) {
	return again("write", func() (int, error) {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(s), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		return int(n), orNil(errno)
	})
}

func (s socket) hear(b []byte) (int, error) {
	return again("read", func() (int, error) {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(s), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		return int(n), orNil(errno)
	})
}

// readFull fills b, or fails.
func (s socket) readFull(b []byte) error { return fill(b, s.read) }

// hearFull is readFull by hear.
func (s socket) hearFull(b []byte) error { return fill(b, s.hear) }

func fill(b []byte, read func([]byte) (int, error)) error {
	for len(b) > 0 {
		n, err := read(b)
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("read: the other side closed the connection")
		}
		b = b[n:]
	}
	return nil
}

// receive and answer are recvfrom(2) and sendto(2) without any allocation; the name
// is kept as the kernel wrote it. They wait like tell and hear.
func (s socket) receive(b []byte, name *unix.RawSockaddrAny) (int, error) {
	return again("recvfrom", func() (int, error) {
		size := uint32(unsafe.Sizeof(*name))
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(s), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0,
			uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&size)))
		return int(n), orNil(errno)
	})
}

func (s socket) answer(b []byte, name *unix.RawSockaddrAny) (int, error) {
	size := unsafe.Sizeof(unix.RawSockaddrInet4{})
	if name.Addr.Family == unix.AF_INET6 {
		size = unsafe.Sizeof(unix.RawSockaddrInet6{})
	}
	return again("sendto", func() (int, error) {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0,
			uintptr(unsafe.Pointer(name)), size)
		return int(n), orNil(errno)
	})
}

func orNil(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// addressOf reads a name as the kernel wrote it.
func addressOf(name *unix.RawSockaddrAny) netip.Addr {
	if name.Addr.Family == unix.AF_INET6 {
		return netip.AddrFrom16((*unix.RawSockaddrInet6)(unsafe.Pointer(name)).Addr).Unmap()
	}
	return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr)
}
