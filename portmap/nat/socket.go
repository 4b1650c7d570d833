package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// socket is a netlink socket of the calling thread's network namespace.
//
// The library github.com/google/nftables has one too, but it cannot ask for a single
// set element, cannot insist on a ruleset generation, and waits for answers that
// a refused batch never sends. What that one is made of, github.com/mdlayher/netlink,
// can send all this. But its Conn keeps a list whole before the first entry is seen (a
// host may have hundreds of thousands of connections, and often one entry is enough);
// it takes away the message at the end of a list, which alone may say that the list was
// interrupted; and as it waits by Go's poller, publishing 1000 ports took a third longer.
type socket struct {
	fd  int
	seq uint32
	buf []byte // one answer; what is read from it is valid until the next
}

// message is one netlink request: data is what follows the netlink header.
type message struct {
	kind  uint16
	flags uint16
	data  []byte
}

// answerTimeout turns a kernel that does not answer into an error: netlink is
// local, answers take microseconds.
const answerTimeout = 10

func dial(protocol int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("netlink socket", err)
	}
	s := &socket{fd: fd, buf: make([]byte, receiveSize)}
	if err := s.configure(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) configure() error {
	const buffer = 32 << 20 // all 65535 ports in both families fit in one batch
	for force, limited := range map[int]int{unix.SO_SNDBUFFORCE: unix.SO_SNDBUF, unix.SO_RCVBUFFORCE: unix.SO_RCVBUF} {
		if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, force, buffer) != nil {
			// In a user namespace net.core.wmem_max holds: some 1400 ports at once.
			_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, limited, buffer)
		}
	}
	// Without it every error carries the refused message back, 64 KiB each.
	_ = unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	tv := unix.Timeval{Sec: answerTimeout}
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	return os.NewSyscallError("bind", unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

func (s *socket) close() { _ = unix.Close(s.fd) }

// send writes the messages as one datagram and returns the number of the first;
// the others follow it.
func (s *socket) send(msgs ...message) (uint32, error) {
	size := 0
	for _, m := range msgs {
		size += unix.NLMSG_HDRLEN + len(m.data) + 3
	}
	first := s.seq + 1
	b := make([]byte, 0, size)
	for _, m := range msgs {
		s.seq++
		b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(m.data)))
		b = binary.NativeEndian.AppendUint16(b, m.kind)
		b = binary.NativeEndian.AppendUint16(b, m.flags|unix.NLM_F_REQUEST)
		b = binary.NativeEndian.AppendUint32(b, s.seq)
		b = binary.NativeEndian.AppendUint32(b, 0) // the kernel knows our port
		b = align(append(b, m.data...))
	}
	err := retryInterrupted(func() error { return unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) })
	return first, os.NewSyscallError("netlink send", err)
}

// receive reads one datagram: one or more messages.
func (s *socket) receive() ([]syscall.NetlinkMessage, error) {
	n := 0
	err := retryInterrupted(func() (err error) {
		n, _, err = unix.Recvfrom(s.fd, s.buf, 0)
		return err
	})
	if errors.Is(err, unix.EAGAIN) {
		return nil, fmt.Errorf("netlink: no answer within %d s", answerTimeout)
	}
	if err != nil {
		return nil, os.NewSyscallError("netlink receive", err)
	}
	return syscall.ParseNetlinkMessage(s.buf[:n])
}

func retryInterrupted(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receiveSize holds the largest datagram of a dump (NLMSG_GOODSIZE, 32 KiB when
// the reader offers it).
const receiveSize = 1 << 16

// answers reads until the request numbered last is acknowledged. It hands data to
// each, and returns the first error that the kernel reports.
func (s *socket) answers(last uint32, each func(seq uint32, data []byte)) error {
	for {
		msgs, err := s.receive()
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if m.Header.Type != unix.NLMSG_ERROR {
				each(m.Header.Seq, m.Data)
				continue
			}
			if err := errorOf(m); err != nil || m.Header.Seq == last {
				return err
			}
		}
	}
}

// acknowledged reads until the request numbered last is, whatever there is of the others, and
// returns the first error but those of what is not there (gone).
func (s *socket) acknowledged(last uint32, gone unix.Errno) (first error) {
	for {
		msgs, err := s.receive()
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if m.Header.Type != unix.NLMSG_ERROR {
				continue
			}
			if err := errorOf(m); err != nil && !errors.Is(err, gone) && first == nil {
				first = err
			}
			if m.Header.Seq == last {
				return first
			}
		}
	}
}

// errorOf is the errno of an NLMSG_ERROR or NLMSG_DONE message; nil for an
// acknowledgement.
func errorOf(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(m.Data)); code < 0 {
		return unix.Errno(-code)
	}
	return nil
}

// errInterrupted is a dump during which the kernel's tables changed: it may have
// gaps and must be repeated.
var errInterrupted = errors.New("netlink: dump interrupted by a change")

// dump asks for a list and hands each entry to each, which returns false to stop
// early; the socket is then of no further use. A list that changed meanwhile is
// errInterrupted, after the end.
func (s *socket) dump(m message, each func(data []byte) bool) error {
	m.flags |= unix.NLM_F_DUMP
	if _, err := s.send(m); err != nil {
		return err
	}
	interrupted := false
	for {
		msgs, err := s.receive()
		if err != nil {
			return err
		}
		for _, m := range msgs {
			interrupted = interrupted || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if err := errorOf(m); err != nil {
					return err
				}
				if interrupted {
					return errInterrupted
				}
				return nil
			}
			if !each(m.Data) {
				return nil
			}
		}
	}
}
