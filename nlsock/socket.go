package nlsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Socket is a netlink socket (netlink(7)). It works in the network namespace in which
// it was opened, whoever uses it; so it may be opened by one process and handed to
// another. The library that the attributes come from cannot be given a socket, and
// does not tell which of several requests an error is about.
type Socket struct {
	fd  int
	seq uint32
	buf []byte
}

// New takes a socket over from who opened it.
func New(fd int) *Socket {
	// Better answers, where the kernel knows them: what exactly was wrong, errors without
	// the request, and lists of what was asked for only. And an end to waiting, though the
	// kernel answers before it lets go of the request.
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1)
	}
	const patience = 60 // seconds
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience})
	const largest = 1 << 16
	return &Socket{fd: fd, buf: make([]byte, largest)}
}

// Open opens a socket in a namespace, or with nil in that of this thread.
func Open(protocol int, namespace *os.File) (*Socket, error) {
	var fd int
	open := func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		}
		return err
	}
	if namespace != nil {
		inner := open
		open = func() error { return In(namespace, inner) }
	}
	if err := open(); err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return New(fd), nil
}

// In runs f on a thread that enters the namespace, and ends with f.
func In(namespace *os.File, f func() error) error {
	done := make(chan error)
	go in(namespace, f, done)
	return <-done
}

func in(namespace *os.File, f func() error, done chan<- error) {
	runtime.LockOSThread() // and never unlocked
	if unix.Gettid() == unix.Getpid() {
		// Not the process's first thread, whose namespace /proc/PID/ns/net shows. While it is
		// locked, another goroutine cannot land on it.
		other := make(chan error)
		go in(namespace, f, other)
		err := <-other
		runtime.UnlockOSThread()
		done <- err
		return
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
		done <- fmt.Errorf("entering the network namespace: %w", err)
		return
	}
	done <- f()
}

// Close closes the socket.
func (s *Socket) Close() error {
	if s == nil {
		return nil
	}
	return unix.Close(s.fd)
}

// Request is a message for the kernel.
type Request struct {
	About       string // what it does, for errors
	Kind, Flags uint16 // nlmsg_type, nlmsg_flags
	Data        []byte
	MayFail     bool // it is a nicety
	seq         uint32
}

// Answer is a message from the kernel.
type Answer struct {
	Kind, Flags uint16
	Data        []byte
	seq         uint32
}

// NewRequest makes a message of a fixed header, such as struct ifinfomsg, and
// attributes.
func NewRequest(about string, kind, flags uint16, header []byte, attributes func(*Encoder)) (Request, error) {
	e := netlink.NewAttributeEncoder()
	if attributes != nil {
		attributes(e)
	}
	b, err := e.Encode()
	if err != nil {
		return Request{}, fmt.Errorf("%s: %w", about, err)
	}
	return Request{About: about, Kind: kind, Flags: unix.NLM_F_REQUEST | flags, Data: append(header, b...)}, nil
}

// Encoder writes the attributes of a message.
type Encoder = netlink.AttributeEncoder

// send sends requests with one system call. It names its destination each time: then
// the kernel asks for the rights of the sender and not also for those of who opened the
// socket (net/netlink/af_netlink.c, NETLINK_SKB_DST).
func (s *Socket) send(requests []Request) error {
	var b []byte
	for i := range requests {
		r := &requests[i]
		s.seq++
		r.seq = s.seq
		b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+len(r.Data)))
		b = binary.NativeEndian.AppendUint16(b, r.Kind)
		b = binary.NativeEndian.AppendUint16(b, r.Flags)
		b = binary.NativeEndian.AppendUint32(b, r.seq)
		b = append(append(b, 0, 0, 0, 0), r.Data...)
		for len(b)%unix.NLMSG_ALIGNTO != 0 {
			b = append(b, 0)
		}
	}
	return unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// receive reads the next answers.
func (s *Socket) receive() ([]Answer, error) {
	n, err := s.read()
	if err != nil {
		return nil, err
	}
	return parse(s.buf[:n])
}

// parse copies what was received.
func parse(b []byte) (answers []Answer, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return nil, errors.New("the kernel's answer is cut off")
		}
		answers = append(answers, Answer{
			Kind: binary.NativeEndian.Uint16(b[4:]), Flags: binary.NativeEndian.Uint16(b[6:]), seq: binary.NativeEndian.Uint32(b[8:]),
			Data: append([]byte(nil), b[unix.SizeofNlMsghdr:size]...),
		})
		b = b[min(len(b), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return answers, nil
}

func (s *Socket) read() (int, error) {
	for {
		n, from, err := unix.Recvfrom(s.fd, s.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("waiting for the kernel's answer: %w", err)
		}
		if a, ok := from.(*unix.SockaddrNetlink); ok && a.Pid == 0 {
			return n, nil
		}
	}
}

// failed is the error in an answer of type NLMSG_ERROR or NLMSG_DONE; nil when it only
// acknowledges. It has the kernel's own words, where there are some.
func (a Answer) failed() error {
	if len(a.Data) < 4 {
		return nil
	}
	code := int32(binary.NativeEndian.Uint32(a.Data))
	if code >= 0 {
		return nil
	}
	errno := unix.Errno(-code)
	if words := a.words(); words != "" {
		return fmt.Errorf("%w (%s)", errno, words)
	}
	return errno
}

func (a Answer) words() string {
	const header, message = 4 + unix.SizeofNlMsghdr, 1 // NLMSGERR_ATTR_MSG
	if a.Kind != unix.NLMSG_ERROR || a.Flags&unix.NLM_F_ACK_TLVS == 0 || len(a.Data) < header {
		return ""
	}
	d, err := netlink.NewAttributeDecoder(a.Data[header:])
	if err != nil {
		return ""
	}
	for d.Next() {
		if d.Type() == message {
			return d.String()
		}
	}
	return ""
}

// Do has the kernel do requests, in order, and returns what they answered. The kernel
// goes on after one that fails; the first error is returned, and says what it is
// about.
func (s *Socket) Do(requests []Request) (answers []Answer, err error) {
	if len(requests) == 0 {
		return nil, nil
	}
	if err := s.send(requests); err != nil {
		return nil, fmt.Errorf("%s: %w", requests[0].About, err)
	}
	first := requests[0].seq
	for waiting := acknowledged(requests); waiting > 0; {
		got, err2 := s.receive()
		if err2 != nil {
			return nil, fmt.Errorf("%s: %w", requests[0].About, err2)
		}
		for _, a := range got {
			i := int(a.seq - first)
			if i < 0 || i >= len(requests) {
				continue
			}
			if a.Kind != unix.NLMSG_ERROR {
				answers = append(answers, a)
				continue
			}
			failed := a.failed()
			if failed != nil && err == nil && !requests[i].MayFail {
				err = fmt.Errorf("%s: %w", requests[i].About, failed)
			}
			// A transaction that the kernel will not even read: nothing else comes.
			if requests[i].Flags&unix.NLM_F_ACK == 0 {
				return nil, err
			}
			waiting--
		}
	}
	return answers, err
}

// Together has the kernel acknowledge only the last of the requests of a transaction, which are
// done all or not at all. The error of another one comes unasked.
func Together(requests []Request) {
	for i := range requests[:max(0, len(requests)-1)] {
		requests[i].Flags &^= unix.NLM_F_ACK
	}
}

func acknowledged(requests []Request) (n int) {
	for _, r := range requests {
		if r.Flags&unix.NLM_F_ACK != 0 {
			n++
		}
	}
	return n
}

// Dump asks for a list. A list that changed while the kernel wrote it may have gaps
// and is asked for again. Who asks a container's namespace has to expect that its root
// has filled it: that is for [Socket.Each].
func (s *Socket) Dump(about string, kind uint16, header []byte, attributes func(*Encoder)) ([][]byte, error) {
	const tries = 100
	for range tries {
		var entries [][]byte
		whole, err := s.Each(about, kind, header, attributes, func(entry []byte) bool {
			entries = append(entries, entry)
			return true
		})
		if err != nil {
			return nil, err
		}
		if whole {
			return entries, nil
		}
	}
	return nil, fmt.Errorf("%s: the list changed each of %d times it was read", about, tries)
}

// Each asks for a list and calls each for its entries, until that returns false: then the
// kernel is not done, and the socket of no more use. It says whether the list was
// whole: one that changed while the kernel wrote it may have gaps.
func (s *Socket) Each(about string, kind uint16, header []byte, attributes func(*Encoder), each func(entry []byte) bool) (whole bool, err error) {
	r, err := NewRequest(about, kind, unix.NLM_F_DUMP, header, attributes)
	if err != nil {
		return false, err
	}
	requests := []Request{r}
	if err := s.send(requests); err != nil {
		return false, fmt.Errorf("%s: %w", about, err)
	}
	whole = true
	for {
		got, err := s.receive()
		if err != nil {
			return false, fmt.Errorf("%s: %w", about, err)
		}
		for _, a := range got {
			if a.seq != requests[0].seq {
				continue
			}
			whole = whole && a.Flags&unix.NLM_F_DUMP_INTR == 0
			if a.Kind == unix.NLMSG_DONE || a.Kind == unix.NLMSG_ERROR {
				if err := a.failed(); err != nil {
					return false, fmt.Errorf("%s: %w", about, err)
				}
				return whole, nil
			}
			if !each(a.Data) {
				return false, nil
			}
		}
	}
}
