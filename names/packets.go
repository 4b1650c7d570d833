package names

import (
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// packets are sockets of UDP that are read without Go's poller: to be woken by that takes
// as long as an answer does. What has come meanwhile is read, and answered, at once, in turns
// from each of them.
type packets struct {
	fds    []int
	polled []unix.PollFd // the sockets, and what ends the wait
	hurry  bool
	mu     sync.RWMutex // is held to use the descriptors beside servePackets
	closed bool
}

// burst is how many messages are read at once.
const burst = 32

// batch is messages for recvmmsg(2), or for sendmmsg(2).
type batch struct {
	n       int
	headers [burst]header
	vectors [burst]unix.Iovec
	peers   [burst]unix.RawSockaddrInet6 // the longer one
	buffers [burst][maxUDP + 1]byte
}

// header is struct mmsghdr.
type header struct {
	unix.Msghdr
	length uint32
}

func newBatch() *batch {
	b := &batch{}
	for i := range b.headers {
		h := &b.headers[i]
		b.vectors[i].Base = &b.buffers[i][0]
		h.Iov, h.Name = &b.vectors[i], (*byte)(unsafe.Pointer(&b.peers[i]))
		h.SetIovlen(1)
		b.makeRoom(i)
	}
	return b
}

func (b *batch) makeRoom(i int) {
	b.vectors[i].SetLen(len(b.buffers[i]))
	b.headers[i].Namelen = unix.SizeofSockaddrInet6
}

// receive takes the messages that are there.
func (b *batch) receive(fd int) {
	for i := range b.n {
		b.makeRoom(i)
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers)), burst, unix.MSG_DONTWAIT, 0, 0)
	if b.n = int(n); errno != 0 {
		b.n = 0
	}
}

func (b *batch) message(i int) []byte { return b.buffers[i][:b.headers[i].length] }

// client is whose message it is; not valid for one that nobody sent.
func (b *batch) client(i int) netip.Addr { return peerOf(&b.peers[i], b.headers[i].Namelen) }

func peerOf(raw *unix.RawSockaddrInet6, length uint32) netip.Addr {
	switch {
	case length == unix.SizeofSockaddrInet4 && raw.Family == unix.AF_INET:
		return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(raw)).Addr)
	case length == unix.SizeofSockaddrInet6 && raw.Family == unix.AF_INET6:
		return netip.AddrFrom16(raw.Addr).Unmap()
	}
	return netip.Addr{}
}

// add puts an answer into the batch, to where a message of another one came from. It was
// appended to the batch's room, as far as there was enough.
func (b *batch) add(answer []byte, to *batch, i int) {
	b.peers[b.n], b.headers[b.n].Namelen = to.peers[i], to.headers[i].Namelen
	b.vectors[b.n].Base = &answer[0]
	b.vectors[b.n].SetLen(len(answer))
	b.n++
}

func (b *batch) room() []byte { return b.buffers[b.n][:0] }

// send sends all. Who has gone needs no answer, nor who does not take it: nobody waits for
// another. It does not wait, so Go's scheduler need not know.
func (b *batch) send(fd int) {
	for at := 0; at < b.n; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[at])), uintptr(b.n-at), unix.MSG_DONTWAIT, 0, 0)
		if errno != 0 {
			n = 1
		}
		at += int(n)
	}
	b.n = 0
}

// own takes sockets over, out of Go's poller: that would wake a thread for each message.
func own(files []*os.File) (*packets, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	p := &packets{polled: []unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}}}
	for _, f := range files {
		if err == nil {
			var fd int
			if fd, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0); err == nil {
				p.fds = append(p.fds, fd)
				p.polled = append(p.polled, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			}
		}
		f.Close()
	}
	if err != nil {
		p.close()
	}
	return p, err
}

// Close ends the wait.
func (p *packets) Close() error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return nil
	}
	_, err := unix.Write(int(p.polled[0].Fd), []byte{1, 0, 0, 0, 0, 0, 0, 0})
	return err
}

func (p *packets) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, fd := range p.polled {
		unix.Close(int(fd.Fd))
	}
}

func (p *packets) send(fd int, msg []byte, to *unix.RawSockaddrInet6, length uint32) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if !p.closed {
		_, _, _ = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&msg[0])), uintptr(len(msg)), unix.MSG_DONTWAIT,
			uintptr(unsafe.Pointer(to)), uintptr(length))
	}
}

// soonest is how long the next message is waited for in a hurry.
const soonest = 5 * time.Millisecond

// await waits for messages. Where one has just come the next one is near: then Go's scheduler
// is not told of the wait. It would have other threads run meanwhile, and that takes longer
// than an answer. (They have processors enough, see Serve; and the signal by which it stops
// all threads ends the wait.)
func (p *packets) await() {
	call, most := unix.Syscall6, (*unix.Timespec)(nil)
	if p.hurry {
		at := unix.NsecToTimespec(int64(soonest))
		call, most = unix.RawSyscall6, &at
	}
	n, _, errno := call(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p.polled[0])), uintptr(len(p.polled)), uintptr(unsafe.Pointer(most)), 0, 0, 0)
	if p.hurry = errno == 0 && n > 0; !p.hurry {
		for i := range p.polled {
			p.polled[i].Revents = 0
		}
	}
}

// servePackets answers on sockets until Close.
func (s *Server) servePackets(p *packets) {
	defer p.close()
	s.keep(p)
	in, out := newBatch(), newBatch()
	for !s.closed.Load() {
		p.await()
		for _, ready := range p.polled[1:] {
			if ready.Revents != 0 {
				s.serveBatch(p, int(ready.Fd), in, out)
			}
		}
	}
}

func (s *Server) serveBatch(p *packets, fd int, in, out *batch) {
	in.receive(fd)
	if in.n == 0 {
		return
	}
	s.asked.Add(uint64(in.n))
	d := s.directory() // as it is after the last of them was sent
	for i := range in.n {
		s.servePacket(p, fd, d, in, i, out)
	}
	out.send(fd)
}

func (s *Server) servePacket(p *packets, fd int, d *directory, in *batch, i int, out *batch) {
	client := in.client(i)
	if !client.IsValid() {
		return
	}
	var q query
	msg := in.message(i)
	a, answer := s.answer(d, &q, out.room(), msg, client, 0)
	if answer != nil {
		out.add(answer, in, i)
	}
	if answer != nil || a == nil {
		return
	}
	limit, from, length := q.size, in.peers[i], in.headers[i].Namelen
	f := &question{msg: slices.Clone(msg), end: q.end(), client: client}
	clampSize(f.msg, &q)
	f.answer = func(msg []byte) {
		if msg == nil {
			msg = failure(f.msg)
		}
		p.send(fd, truncated(msg, limit), &from, length)
	}
	if !s.forwarder.ask(f, s.servers(a)) {
		f.answer(nil)
	}
}
