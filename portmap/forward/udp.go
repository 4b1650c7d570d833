package forward

import (
	"time"

	"golang.org/x/sys/unix"
)

// udpPort is a UDP socket of the host and the flows of its clients.
type udpPort struct {
	ticket  ticket
	fd      int32
	watched bool
	family  int
	port    *port
	target  *target
	flows   map[flowKey]*flow
	out     *Outward // for flows that leave
	leaving exit     // where those go

	stalledUntil time.Time // see waitForRoom
}

var _ entrance = (*udpPort)(nil)

// flowKey tells flows apart: one client may use several addresses of the host, and
// expects each answer from the one it used.
type flowKey struct {
	client sockaddr
	local  localAddr
}

func newUDPPort(p *port, t *target, family int, fd int32) *udpPort {
	return &udpPort{fd: fd, family: family, port: p, target: t, flows: make(map[flowKey]*flow)}
}

func (u *udpPort) descriptor() int32 { return u.fd }

func (u *udpPort) serve(w *worker) unix.Errno {
	if w.datagram == nil {
		w.datagram = newDatagrams()
	}
	u.ticket = w.seat(u)
	u.watched = true
	return w.watch(u.fd, u.ticket, 0, level)
}

func (u *udpPort) close(w *worker) {
	for _, f := range u.flows {
		f.close(w)
	}
	if u.watched {
		w.unwatch(u.fd)
		w.leave(u.ticket)
		u.watched = false
	}
	if u.fd >= 0 {
		sysClose(u.fd)
		u.fd = -1
	}
}

func (u *udpPort) resume(*worker) {}

// ready forwards one batch of datagrams; epoll tells again when there are more.
func (u *udpPort) ready(w *worker, _ int, _ uint32) {
	d := w.datagram
	n, errno := d.receive(u.fd)
	if errno != 0 {
		return
	}
	for i := 0; i < n; {
		key := d.key(i)
		end := i + 1
		for end < n && d.key(end) == key {
			end++
		}
		if f := u.flow(w, key); f != nil {
			f.toService(w, i, end)
		} else {
			u.port.dropped.Add(uint64(end - i))
		}
		i = end
	}
}

const (
	// roomWait is how long a burst of replies waits for the network to take them:
	// 125 kB at 1 Gbit/s.
	roomWait = time.Millisecond
	// roomPause is how long nobody waits again after that was not enough, as the
	// worker has others to serve.
	roomPause = 100 * time.Millisecond
)

// waitForRoom waits a moment while the socket's send buffer is full; false when
// the datagram shall be dropped instead.
func (u *udpPort) waitForRoom() bool {
	if time.Now().Before(u.stalledUntil) {
		return false
	}
	if sysWaitWritable(u.fd, roomWait) {
		return true
	}
	u.stalledUntil = time.Now().Add(roomPause)
	return false
}

// flow finds the client's flow or opens one; nil when there can be none.
func (u *udpPort) flow(w *worker, key flowKey) *flow {
	if f := u.flows[key]; f != nil {
		return f
	}
	if !w.makeRoom() || u.out != nil && !u.out.admitsFlow(w, key.client.ip()) {
		return nil
	}
	f, errno := u.openFlow(w, key)
	if errno != 0 {
		w.forwarder.config.Logger.Debug("no flow for a UDP client", "port", u.port.mapping, "client", key.client.ip(), "error", errno)
		return nil
	}
	return f
}

// makeRoom keeps the table of flows bounded. When it is full, the flow that has
// waited longest for its first reply gives way, or else the one whose only exchange
// was first: otherwise a hundred look-ups a second would fill it. When all are
// conversations, the new one is turned away: a flood of made-up clients does not end
// real ones.
func (w *worker) makeRoom() bool {
	if w.forwarder.flows.Load() < int64(w.forwarder.config.MaxFlows) {
		return true
	}
	return w.evict()
}

func (w *worker) evict() bool {
	if oldest := w.flows[unreplied].head; oldest != nil {
		oldest.port.dropped.Add(1)
		oldest.close(w)
		return true
	}
	if oldest := w.flows[replied].head; oldest != nil {
		oldest.close(w) // and nothing is lost
		return true
	}
	return false
}
