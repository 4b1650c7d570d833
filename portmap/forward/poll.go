package forward

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// handler is something with descriptors in a worker's epoll instance. Only that
// worker's goroutine calls it.
type handler interface {
	// ready is called with the events (epoll_ctl(2)) of the descriptor that was
	// registered under tag.
	ready(w *worker, tag int, events uint32)
	// resume goes on with what the handler asked for by worker.again.
	resume(w *worker)
	// close releases everything the handler has.
	close(w *worker)
}

// Descriptors of data are edge-triggered, so that a registration never changes:
// the handler remembers what it may read and write. Listeners are
// level-triggered, as accept4(2) is expensive when there is nothing to accept.
const (
	edge  = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET
	level = unix.EPOLLIN
)

// poller is an epoll instance whose events find their handler by its seat. The
// generation of a seat makes events of a closed handler, which may still be in
// the batch that is being worked through, fall on the floor.
type poller struct {
	fd    int
	seats []seat
	free  []uint32

	spinning *atomic.Bool // a worker of the forwarder spins
	credit   int          // see wait
	meek     int          // times to wait without spinning
	pace     pace
}

type seat struct {
	handler    handler
	generation uint32
}

// ticket says which seat of a poller a handler has, and which of those who had it the
// handler is. Every event carries one.
type ticket struct{ seat, generation uint32 }

// tagBits of an event tell the handler's descriptors apart.
const tagBits = 2

func newPoller(spinning *atomic.Bool) (poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return poller{}, fmt.Errorf("epoll instance: %w", err)
	}
	return poller{fd: fd, spinning: spinning}, nil
}

// seat gives a handler a seat; its descriptors are watched afterwards.
func (p *poller) seat(h handler) ticket {
	if len(p.free) == 0 {
		p.seats = append(p.seats, seat{handler: h})
		return ticket{seat: uint32(len(p.seats) - 1)}
	}
	i := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	p.seats[i].handler = h
	return ticket{i, p.seats[i].generation}
}

// leave gives the seat back. The handler's descriptors are gone by then, or
// unwatched.
func (p *poller) leave(t ticket) {
	const generations = 1<<(32-tagBits) - 1
	p.seats[t.seat] = seat{generation: (t.generation + 1) & generations}
	p.free = append(p.free, t.seat)
}

func (p *poller) watch(fd int32, t ticket, tag int, events uint32) unix.Errno {
	return p.control(unix.EPOLL_CTL_ADD, fd, t, tag, events)
}

// rewatch changes the events of a watched descriptor.
func (p *poller) rewatch(fd int32, t ticket, tag int, events uint32) {
	p.control(unix.EPOLL_CTL_MOD, fd, t, tag, events)
}

func (p *poller) control(op int, fd int32, t ticket, tag int, events uint32) unix.Errno {
	event := unix.EpollEvent{Events: events, Fd: int32(t.seat), Pad: int32(t.generation<<tagBits | uint32(tag))}
	return sysEpollCtl(p.fd, op, fd, &event)
}

// unwatch is needed for a descriptor whose file another process may have open as
// well: closing would not take it out of the epoll instance (epoll(7)).
func (p *poller) unwatch(fd int32) {
	sysEpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, &unix.EpollEvent{})
}

// find is the handler of an event, nil when it has been closed meanwhile.
func (p *poller) find(event *unix.EpollEvent) (h handler, tag int) {
	s := &p.seats[event.Fd]
	if uint32(event.Pad)>>tagBits != s.generation {
		return nil, 0
	}
	return s.handler, int(event.Pad & (1<<tagBits - 1))
}

// quietWait is how long a worker waits without telling Go's scheduler. Between two
// events of a busy connection it does not pay to give the processor's P away:
// sysmon would take it after 20 µs, wake a thread for it, and stay awake itself,
// which was an eighth of all time at 8,000 connections a second. A collection that
// wants the world to stop interrupts the wait by its signal. Other goroutines get
// their turn at once in a process that has a P more than workers (GOMAXPROCS).
const quietWait = time.Millisecond

// spinTime is how long a worker asks again and again before it sleeps, as long as that
// pays: to wake a sleeping thread, maybe on a processor that sleeps too, takes a
// virtual machine about 30 µs, which is most of a round trip. In between it yields
// to whoever waits for the processor. One worker of a forwarder at a time does so.
const spinTime = 100 * time.Microsecond

// mostCredit is how many times in a row spinning may be in vain.
const mostCredit = 16

// crowded is how many times in a row nobody spins after somebody else has used the
// processor for longer than spinTime: who yields to others that compute waits for all of
// them, and who sleeps is woken at once.
const crowded = 256

// wait fills events; a negative time-out waits for ever. An interrupted wait
// counts as one without events.
func (p *poller) wait(events []unix.EpollEvent, timeout time.Duration) int {
	if timeout == 0 {
		return p.sleep(events, 0)
	}
	if !p.pace.brief() {
		return p.sleep(events, timeout)
	}
	if p.meek > 0 {
		p.meek--
	} else if p.credit > 0 && p.spinning.CompareAndSwap(false, true) {
		n := p.spin(events)
		p.spinning.Store(false)
		if n > 0 {
			p.credit = min(p.credit+1, mostCredit)
			return n
		}
		p.credit--
	}
	begin := time.Now()
	n := p.sleep(events, timeout)
	if n > 0 && time.Since(begin) < spinTime {
		p.credit = min(p.credit+1, mostCredit) // spinning would have found it
	}
	return n
}

func (p *poller) spin(events []unix.EpollEvent) int {
	begin := time.Now()
	for now := begin; now.Sub(begin) < spinTime; {
		if n, errno := sysEpollWait(p.fd, events, 0); n > 0 && errno == 0 {
			return n
		}
		sysYield()
		before := now
		if now = time.Now(); now.Sub(before) > spinTime {
			p.meek = crowded
		}
	}
	return 0
}

func (p *poller) sleep(events []unix.EpollEvent, timeout time.Duration) int {
	first := timeout
	if timeout < 0 || timeout > quietWait {
		first = quietWait
	}
	n, errno := sysEpollWait(p.fd, events, milliseconds(first))
	if n == 0 && errno == 0 && first != timeout {
		n, errno = p.waitLong(events, timeout)
	}
	if errno != 0 && errno != unix.EINTR {
		// Only programming errors are left (epoll_wait(2): EBADF, EFAULT, EINVAL).
		panic(fmt.Sprintf("epoll_wait: %v", errno))
	}
	return max(n, 0)
}

// waitLong lets other goroutines run meanwhile.
func (p *poller) waitLong(events []unix.EpollEvent, timeout time.Duration) (int, unix.Errno) {
	n, err := unix.EpollWait(p.fd, events, milliseconds(timeout))
	var errno unix.Errno
	errors.As(err, &errno)
	return n, errno
}

// milliseconds rounds up, so that a worker does not spin until a deadline.
func milliseconds(d time.Duration) int {
	if d < 0 {
		return -1
	}
	return int((d + time.Millisecond - 1) / time.Millisecond)
}
