package forward

import (
	"time"

	"golang.org/x/sys/unix"
)

// way is one direction of a connection. What was read and could not be written is
// either held in memory, if it is little, or in a pipe; only when there is neither is
// more read.
type way struct {
	held   []byte
	inPipe int
	pipe   pipe
	piped  bool // pipe is ours
	full   int8 // reads in a row that filled their buffer, the first of them a small one
	ended  bool // the reading side has said that it has no more
	done   bool // and the writing side has been told
}

// smallRead is what is read at first, and the most that a connection holds in memory
// while its reader stands still. More is looked at where it is (MSG_PEEK, recv(2)) and
// taken as far as it could be written: thousands of clients may stand still, and a
// service's answers are large.
const smallRead = 4 << 10

// bulkReads in a row that filled their buffer make a direction change to splice(2),
// which has to take a pipe and to ask twice each time.
const bulkReads = 3

// spliceMost is more than a pipe has room for by its size in bytes: it counts
// pages, and one of a socket's may be larger than 4 KiB.
const spliceMost = 1 << 20

// readsEachTurn is how often a direction may read before others get their turn.
const readsEachTurn = 16

// outcome of working on one direction.
type outcome int

const (
	progress outcome = iota // there may be more to do at once
	waiting                 // for an event
	broken                  // the reading side was reset
)

// run moves what can be moved.
func (c *conn) run(w *worker) {
	if c.fresh && !c.queued && c.lasts(w.now) && c.settle(w) {
		return
	}
	failed := c.sides[client].failed || c.sides[service].failed
	outcomes := [2]outcome{c.pump(w, up), c.pump(w, down)}
	switch {
	case outcomes[up] == broken || outcomes[down] == broken:
		c.abort(w)
	case !failed && (c.sides[client].failed || c.sides[service].failed):
		c.queue(w) // the other direction's outcome was of before
	case c.sides[client].failed:
		c.lastWords(w, up, outcomes[up])
	case c.sides[service].failed:
		c.lastWords(w, down, outcomes[down])
	case c.ways[up].done && c.ways[down].done:
		c.close(w)
	case outcomes[up] == progress || outcomes[down] == progress:
		c.queue(w)
	}
}

func (c *conn) queue(w *worker) {
	if !c.queued {
		c.queued = true
		w.again(c)
	}
}

// lastWords is for a connection one side of which was reset. What that side sent
// before is still delivered, as the kernel would have done without us: a server
// often answers and resets because the client has not finished its request. But
// nobody waits for a service that does not read what a dead client sent, and a client
// that does not read what a dead service sent has a time to begin: it would keep our
// descriptors, as many as it likes, from a service that limits its own.
func (c *conn) lastWords(w *worker, d int, o outcome) {
	switch {
	case o == progress:
		c.queue(w)
	case d == down && o == waiting && !c.ways[d].done && !c.sides[client].writable && !c.sides[client].failed:
		sysSetInt(c.sides[client].fd, unix.SOL_TCP, unix.TCP_USER_TIMEOUT, int32(w.forwarder.config.GoneTimeout/time.Millisecond))
	default:
		c.abort(w)
	}
}

// pump works on one direction for a turn.
func (c *conn) pump(w *worker, d int) outcome {
	o := progress
	for reads := 0; reads < readsEachTurn && o == progress; reads++ {
		o = c.step(w, d)
	}
	if t := &c.ways[d]; t.piped && t.inPipe == 0 {
		w.forwarder.pipes.give(t.pipe, w.now)
		t.piped = false
	}
	return o
}

func (c *conn) step(w *worker, d int) outcome {
	t, from, to := &c.ways[d], &c.sides[d], &c.sides[1-d]
	switch {
	case t.done, !to.writable:
		return waiting
	case t.inPipe > 0:
		return c.flushPipe(w, d)
	case len(t.held) > 0:
		return c.flushHeld(w, d)
	case t.ended:
		return c.finish(d)
	case !from.readable:
		return waiting
	case t.full >= bulkReads && t.takePipe(w):
		return c.fillPipe(d)
	case t.full > 0:
		return c.copyPeeked(w, d)
	}
	return c.copySmall(w, d)
}

// finish passes the end of file on. The second one closes both sockets anyway.
func (c *conn) finish(d int) outcome {
	c.ways[d].done = true
	if !c.ways[1-d].done {
		c.hungUp = d == up
		sysShutdownWrite(c.sides[1-d].fd)
	}
	return waiting
}

// copySmall moves a small buffer, and holds what the other side does not take.
func (c *conn) copySmall(w *worker, d int) outcome {
	n, errno := sysRead(c.sides[d].fd, w.buffer[:smallRead])
	if n <= 0 || errno != 0 {
		return c.notRead(d, errno)
	}
	c.didRead(d, n, smallRead)
	written, ok := c.write(w, d, w.buffer[:n])
	if !ok {
		return c.notWritten(d)
	}
	if written < n {
		c.ways[d].held = append([]byte(nil), w.buffer[written:n]...)
	}
	return progress
}

// copyPeeked moves a large buffer, and leaves where it was what the other side does
// not take.
func (c *conn) copyPeeked(w *worker, d int) outcome {
	from := &c.sides[d]
	n, errno := sysPeek(from.fd, w.buffer)
	if n <= 0 || errno != 0 {
		return c.notRead(d, errno)
	}
	written, ok := c.write(w, d, w.buffer[:n])
	if !ok {
		return c.notWritten(d)
	}
	if !sysDiscard(from.fd, w.buffer[:written]) {
		return broken
	}
	if written == n {
		c.didRead(d, n, len(w.buffer))
	}
	return progress
}

// didRead draws conclusions from a read of n bytes into a buffer.
func (c *conn) didRead(d, n, buffer int) {
	t, from := &c.ways[d], &c.sides[d]
	if n == buffer {
		t.full = min(t.full+1, bulkReads)
		return
	}
	if n < smallRead {
		t.full = 0
	} else {
		t.full = 1
	}
	// Less than asked for: the socket is empty, unless its end is still to be read
	// (epoll(7), question 9).
	from.readable = from.ended
}

// write sends what the other side takes; false when it was reset.
func (c *conn) write(w *worker, d int, p []byte) (written int, ok bool) {
	to := &c.sides[1-d]
	written, errno := sysSend(to.fd, p)
	if errno != 0 && errno != unix.EAGAIN {
		return 0, false
	}
	written = max(written, 0)
	to.writable = written == len(p)
	c.port.bytes[d].Add(uint64(written))
	w.pace.moved += written
	return written, true
}

// notRead is what a read without data means.
func (c *conn) notRead(d int, errno unix.Errno) outcome {
	switch errno {
	case 0:
		c.ways[d].ended = true
		return progress
	case unix.EAGAIN:
		c.sides[d].readable = false
		return waiting
	}
	return broken
}

// notWritten: the writing side was reset, so nothing more is to be written to it.
// The event that says so may come later than what it sent before.
func (c *conn) notWritten(d int) outcome {
	to := &c.sides[1-d]
	to.failed, to.writable = true, false
	to.ended, to.readable = true, true
	return waiting
}

// wrote is what a write from memory or a pipe means.
func (c *conn) wrote(w *worker, d, n int, errno unix.Errno) outcome {
	switch {
	case errno == unix.EAGAIN:
		c.sides[1-d].writable = false
		return waiting
	case errno != 0 || n <= 0:
		return c.notWritten(d)
	}
	c.port.bytes[d].Add(uint64(n))
	w.pace.moved += n
	return progress
}

func (c *conn) flushHeld(w *worker, d int) outcome {
	t := &c.ways[d]
	n, errno := sysSend(c.sides[1-d].fd, t.held)
	o := c.wrote(w, d, n, errno)
	if o == progress {
		t.held = t.held[n:]
		if len(t.held) == 0 {
			t.held = nil
		}
	}
	return o
}

// takePipe gets a pipe for a direction that has none.
func (t *way) takePipe(w *worker) bool {
	if !t.piped {
		t.pipe, t.piped = w.forwarder.pipes.take(w.now)
	}
	return t.piped
}

// fillPipe moves from the socket into the empty pipe. Less than asked for says
// nothing here, as the pipe may be full by pages; only EAGAIN does.
func (c *conn) fillPipe(d int) outcome {
	t := &c.ways[d]
	n, errno := sysSplice(c.sides[d].fd, t.pipe.write, spliceMost)
	if n <= 0 || errno != 0 {
		return c.notRead(d, errno)
	}
	if n < bufferSize/4 {
		t.full = 0 // bulk no more
	}
	t.inPipe = n
	return progress
}

func (c *conn) flushPipe(w *worker, d int) outcome {
	t := &c.ways[d]
	n, errno := sysSplice(t.pipe.read, c.sides[1-d].fd, t.inPipe)
	o := c.wrote(w, d, n, errno)
	if o == progress {
		t.inPipe -= n
	}
	return o
}

// discard lets go of what a direction has.
func (t *way) discard(w *worker) {
	t.held = nil
	if t.piped {
		w.forwarder.pipes.drop(t.pipe)
		t.piped = false
	}
}
