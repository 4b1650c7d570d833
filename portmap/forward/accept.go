package forward

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// listener is a listening TCP socket of the host. It stays open whatever happens
// to single connections.
type listener struct {
	ticket   ticket
	fd       int32
	watched  bool
	port     *port
	target   *target // for clients of the family that the last one had
	other    *target // for those of the other family; nil where there are none, or it is the same
	paused   bool
	resumeAt time.Duration // while paused
	queued   int           // how many waited when that began
	accepts  int           // so far
	pacing   string        // congestion control of clients elsewhere, where it is not the listener's
}

var _ entrance = (*listener)(nil)

// accepted is a client's connection on its way to the worker that relays it, with
// the socket inside that will reach the service.
type accepted struct {
	port    *port
	target  *target
	guest   *guest
	client  sockaddr
	source  address // that the service sees
	outside int32
	inside  int32
}

func (l *listener) descriptor() int32 { return l.fd }

func (l *listener) serve(w *worker) unix.Errno {
	l.ticket = w.seat(l)
	l.watched = true
	return w.watch(l.fd, l.ticket, 0, level)
}

func (l *listener) close(w *worker) {
	if l.watched {
		if !l.port.goesOn {
			w.door.drop(w, l.port)
		}
		w.unwatch(l.fd)
		w.leave(l.ticket)
		w.paused = slices.DeleteFunc(w.paused, func(p *listener) bool { return p == l })
		l.watched = false
	}
	if l.fd >= 0 {
		sysClose(l.fd)
		l.fd = -1
	}
}

func (l *listener) resume(*worker) {}

// targetOf is where a client is led to.
func (l *listener) targetOf(client *sockaddr) *target {
	if l.unexpected(client) {
		return l.other
	}
	return l.target
}

// expect prepares a listener for clients of two families, of the first one to begin with.
func (l *listener) expect(target, other *target) {
	l.target = target
	if other.family != target.family {
		l.other = other
	}
}

// changeFamily is for a client that is not of the family that was expected: IPv4 where a
// socket inside for IPv6 had been made, or the reverse. That socket is kept for later, and
// one of the client's family returned. The next clients are expected to be of this family,
// as those of one port mostly are.
func (l *listener) changeFamily(w *worker, inside int32) (int32, unix.Errno) {
	w.keep(l.target, inside)
	l.target, l.other = l.other, l.target
	return w.spare(l.target)
}

// unexpected says that the client is not of the family the listener is prepared for.
func (l *listener) unexpected(client *sockaddr) bool {
	return l.other != nil && client.ip().Is4() != (l.target.family == unix.AF_INET)
}

// ready accepts one connection; epoll tells again when there are more. The socket
// inside is made first, so that a client waits in the backlog, instead of being
// accepted and dropped, while descriptors are short.
func (l *listener) ready(w *worker, _ int, _ uint32) {
	d := &w.door
	switch {
	case l.paused:
		l.stir(w)
		return
	case d.open(w.now), l.long() && d.look(w, l):
		l.letIn(w)
		return
	case d.held > 0: // they have come before
		if !d.look(w, l) {
			l.pause(w)
		}
		return
	}
	inside, errno := w.spare(l.target)
	if errno != 0 {
		l.full(w, errno)
		return
	}
	outside, errno := sysAccept(l.fd, &w.name)
	if errno != 0 {
		w.keep(l.target, inside)
		l.notAccepted(w, errno)
		return
	}
	l.port.total.Add(1)
	if outside >= w.forwarder.budget.never {
		// UDP flows leave descriptors one by one, and connections need two: their second
		// ones may have used up half of the reserve.
		w.keep(l.target, inside)
		l.lose(w, outside, unix.EMFILE)
		return
	}
	l.welcome(w, outside)
	if l.unexpected(&w.name) {
		if inside, errno = l.changeFamily(w, inside); errno != 0 {
			l.lose(w, outside, errno)
			return
		}
	}
	a := accepted{port: l.port, target: l.target, client: w.name, outside: outside, inside: inside}
	a.enter(w)
	d.served = w.now
	w.hand(a)
}

// long says that many wait. It is asked for a part of all connections.
func (l *listener) long() bool {
	if l.accepts++; l.accepts%queueEvery != 0 {
		return false
	}
	length, _ := sysQueue(l.fd)
	return length > longQueue
}

// welcome chooses how an accepted socket sends.
func (l *listener) welcome(w *worker, outside int32) {
	if l.pacing != "" && !w.name.ip().IsLoopback() && !near(outside) {
		setCongestion(outside, l.pacing)
	}
}

// lose resets a client that there are no descriptors for.
func (l *listener) lose(w *worker, outside int32, errno unix.Errno) {
	l.port.dropped.Add(1)
	sysReset(outside)
	l.full(w, errno)
}

// enter has the worker and the client have a connection more.
func (a *accepted) enter(w *worker) {
	a.guest = w.forwarder.guests.enter(guestKey(a.client.ip().As16()))
	a.port.active.Add(1)
	a.port.users.Add(1)
	w.load.Add(1)
}

// leave ends what enter began.
func (a *accepted) leave(w *worker) {
	w.forwarder.guests.leave(a.guest)
	w.forget(a.port)
}

// hand gives the connection to the worker that has least to do. A single client that
// connects again and again finds its last connection not quite closed; going back and forth
// between two processors would cost it.
func (w *worker) hand(a accepted) {
	w.load.Add(-1)
	to := w.forwarder.least(w, 1)
	to.load.Add(1)
	if to == w || !to.post(func(to *worker) { to.connect(a) }) {
		w.connect(a)
	}
}

// notAccepted: whatever else accept(2) reports is about one connection, which is
// gone (ECONNABORTED, EPROTO, errors of the network).
func (l *listener) notAccepted(w *worker, errno unix.Errno) {
	if exhausted(errno) {
		l.full(w, errno)
	}
}

// full is for when descriptors or memory ran out. They come back when connections close, and
// those who wait have nothing to wait for but that, unless there is one among them who has less
// than others.
func (l *listener) full(w *worker, errno unix.Errno) {
	l.port.acceptPauses.Add(1)
	w.forwarder.config.Logger.Debug("accepting pauses", "port", l.port.mapping, "error", errno)
	w.forwarder.pipes.release()
	if w.door.look(w, l) {
		return // and is called again at once
	}
	l.pause(w)
}

// pause stops accepting for a moment.
func (l *listener) pause(w *worker) {
	l.queued, _ = sysQueue(l.fd)
	l.paused = true
	w.rewatch(l.fd, l.ticket, 0, level|unix.EPOLLET) // which tells of those who come
	l.resumeAt = w.now + w.forwarder.config.AcceptPause
	w.paused = append(w.paused, l)
}

// stir has it be looked who has come meanwhile.
func (l *listener) stir(w *worker) {
	if length, _ := sysQueue(l.fd); length > l.queued {
		l.resumeAt = min(l.resumeAt, max(w.now, w.door.nextLook))
	}
}

// hurryPaused: a connection has closed and left two descriptors.
func (w *worker) hurryPaused() {
	for _, l := range w.paused {
		l.resumeAt = w.now
	}
	w.door.again(w)
}

func (w *worker) resumePaused() {
	w.paused = slices.DeleteFunc(w.paused, func(l *listener) bool {
		if l.resumeAt > w.now {
			return false
		}
		l.paused = false
		w.rewatch(l.fd, l.ticket, 0, level)
		return true
	})
}
