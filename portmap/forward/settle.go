package forward

import (
	"time"

	"golang.org/x/sys/unix"
)

// This file has a connection that leaves find its worker. Most ask for little and end: to
// hand each to another worker costs more than to serve it. Those that go on are shared among
// all.

// lasting is how old a connection is that goes on.
const lasting = 100 * time.Millisecond

// lasts says that a connection is worth to be moved.
func (c *conn) lasts(now time.Duration) bool {
	return c.ways[up].full == bulkReads || c.ways[down].full == bulkReads || now-c.since > lasting
}

// settle moves the connection to the worker that has least to do; false when that is this one.
// Events that are missed meanwhile come again there: a descriptor that is newly watched is told
// of as it is (epoll_ctl(2)).
func (c *conn) settle(w *worker) bool {
	c.fresh = false
	if c.young {
		w.out.grow(c)
	}
	to := w.forwarder.least(w, 0)
	w.fresh.Add(-1)
	if to == w {
		return false
	}
	for i := range c.sides {
		w.unwatch(c.sides[i].fd)
	}
	w.leave(c.ticket)
	w.load.Add(-1)
	to.load.Add(1)
	if !to.post(func(to *worker) { to.adopt(c) }) {
		for i := range c.sides { // all ends
			sysReset(c.sides[i].fd)
			c.ways[i].discard(w)
		}
	}
	return true
}

// adopt goes on with a connection that had another worker.
func (w *worker) adopt(c *conn) {
	c.ticket = w.seat(c)
	for i := range c.sides {
		if errno := w.watch(c.sides[i].fd, c.ticket, i, edge); errno != 0 {
			c.port.dropped.Add(1)
			c.abort(w)
			return
		}
	}
	c.queue(w)
}

// grow is for a connection that lasts: what its socket on the host needs for that, and most
// connections end without. Its way down has the same of the listener.
func (o *Outward) grow(c *conn) {
	c.young = false
	o.young.remove(c)
	fd := c.sides[service].fd
	for _, option := range [...]option{
		{unix.SOL_TCP, unix.TCP_KEEPIDLE, keepIdleSeconds},
		{unix.SOL_TCP, unix.TCP_KEEPINTVL, keepIntervalSeconds},
		{unix.SOL_TCP, unix.TCP_KEEPCNT, keepCount},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	} {
		sysSetInt(fd, option.level, option.name, int32(option.value))
	}
	// A route may have chosen another (ip-route(8), congctl).
	if o.pacing != "" && !near(fd) && congestion(fd) == unpaced {
		setCongestion(fd, o.pacing)
	}
}
