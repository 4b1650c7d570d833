package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// window is how many questions may be unanswered since the last answer: fewer than there is room
// for in a socket that nobody reads, so that on a slow machine none is lost for want of it, and
// more than a server has in hand at a time.
const window = 64

// questions asks a name server for the address of a name, so many times a second for so
// long, or until a file is there as well, each question once, and prints what became of them.
func questions(args []string) error {
	rate, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	length, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	conn, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	a := asked{sent: map[uint16]question{}, answer: make(chan struct{}, 1)}
	ended := make(chan error, 1)
	go func() { ended <- a.listen(conn) }()
	began := time.Now()
	for n := 0; time.Since(began) < length || !isThere(args[4:]); n++ {
		time.Sleep(time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(rate))))
		a.await(n)
		a.note(n)
		// The kernel may tell of an earlier one here that nobody was at the port.
		_, _ = conn.Write(questionFor(args[1], uint16(n)))
	}
	_ = conn.SetReadDeadline(time.Now().Add(again))
	a.finish(conn)
	if err := <-ended; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	fmt.Printf("asked %d, failed %d, lost %d, the longest wait %d ms\n", a.answered+a.failed+len(a.sent), a.failed, len(a.sent), a.longest.Milliseconds())
	return nil
}

// isThere says whether the file that is named, if any, is there.
func isThere(file []string) bool {
	if len(file) == 0 {
		return true
	}
	_, err := os.Stat(file[0])
	return err == nil
}

type question struct {
	n  int
	at time.Time
}

// asked is what became of the questions.
type asked struct {
	mu               sync.Mutex
	sent             map[uint16]question // those without an answer
	newest           int                 // of those with one
	answer           chan struct{}
	over             bool // no more are sent
	answered, failed int
	longest          time.Duration // from a question to its answer
}

// await waits while too many are without an answer, for one, or for a moment: all of them may
// be lost.
func (a *asked) await(n int) {
	a.mu.Lock()
	full := n-a.newest > window
	a.mu.Unlock()
	if full {
		select {
		case <-a.answer:
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (a *asked) note(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent[uint16(n)] = question{n, time.Now()}
}

// finish has listen end when there is nothing to wait for any more.
func (a *asked) finish(conn net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over = true; len(a.sent) == 0 {
		conn.Close()
	}
}

func (a *asked) listen(conn net.Conn) error {
	b := make([]byte, 512)
	for {
		n, err := conn.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil || n < 12 {
			continue // by ICMP, of nobody there
		}
		if a.take(b[:n]) {
			return nil
		}
	}
}

func (a *asked) take(msg []byte) (done bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := binary.BigEndian.Uint16(msg)
	if q, ok := a.sent[id]; ok {
		delete(a.sent, id)
		a.longest = max(a.longest, time.Since(q.at))
		a.newest = max(a.newest, q.n)
		select {
		case a.answer <- struct{}{}:
		default:
		}
		if msg[3]&0xf == 0 && binary.BigEndian.Uint16(msg[6:]) > 0 {
			a.answered++
		} else {
			a.failed++
		}
	}
	return a.over && len(a.sent) == 0
}

// questionFor is a question for the IPv4 addresses of a name (RFC 1035, section 4).
func questionFor(name string, id uint16) []byte {
	msg := binary.BigEndian.AppendUint16(nil, id)
	msg = append(msg, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	for label := range strings.SplitSeq(name, ".") {
		msg = append(append(msg, byte(len(label))), label...)
	}
	return append(msg, 0, 0, 1, 0, 1)
}

// pester asks a name server for the address of a name as fast as one thread can, until
// SIGINT, and takes no answers.
func pester(args []string) error {
	at, err := net.ResolveUDPAddr("udp4", args[0])
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: at.Port, Addr: [4]byte(at.IP.To4())}); err != nil {
		return err
	}
	msg := questionFor(args[1], 1)
	vector := unix.Iovec{Base: &msg[0]}
	vector.SetLen(len(msg))
	var all [64]struct {
		unix.Msghdr
		_ uint32
	}
	for i := range all {
		all[i].Iov = &vector
		all[i].SetIovlen(1)
	}
	for {
		_, _, _ = unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&all)), uintptr(len(all)), 0, 0, 0)
	}
}
