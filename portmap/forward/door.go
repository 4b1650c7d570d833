package forward

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// door is how connections are let in while not everybody can be: the first worker's, which
// accepts. A listener's queue is first come, first served, so while one client fills it, and has
// what descriptors there are, the others wait behind it. As long as there are none, that is as it
// should be: the queue is left as it is. When somebody is seen there who has clearly less than another
// one (see clearly), a round begins: all are accepted at once, each client's connections in a row of its
// own, and served in turns; and where there is no room for one more, a connection of who has
// most gives way to those of who has less.
type door struct {
	until    time.Duration // the end of the round
	round    uint32
	pressed  time.Duration // when there was not room for all, or a queue, last
	served   time.Duration // when somebody had a turn last
	nextLook time.Duration
	turns    []*guest // who has connections that wait
	held     int      // and how many these are
	leaving  int      // connections of other workers that have been asked to end
	queued   bool
	retryAt  time.Duration // 0: not
	diag     int32
	opened   bool // diag can be used
}

const (
	// roundTime is how long a round goes on after somebody has come who has less than another one.
	roundTime = 2 * time.Second
	// stuckAfter is how long nobody has a turn before who has some counts, and not who waits.
	stuckAfter = 2 * time.Second
	// longQueue is when it is looked whether those who wait are one client's; every so many
	// connections.
	longQueue, queueEvery = 32, 16
	// lookEvery is how often that may be, at most, and the more seldom the longer it takes, down
	// to lookSeldom: to see thousands takes milliseconds.
	lookEvery, lookShare, lookSeldom = 10 * time.Millisecond, 32, time.Second
	// heldMost is how many wait beside the kernel's own queue.
	heldMost = 4096
	// Of a turn.
	acceptsOfRound, dialsOfRound, goneOfRound = 256, 8, 64
)

func (d *door) open(now time.Duration) bool { return now < d.until }

// begin begins a round, or has it go on.
func (d *door) begin(now time.Duration) {
	if !d.open(now) {
		d.round++
	}
	d.until, d.pressed = now+roundTime, now
}

// look begins a round if one is called for.
func (d *door) look(w *worker, l *listener) bool {
	if w.now < d.nextLook {
		return false
	}
	began := time.Now()
	if !d.opened {
		d.diag = openQueueDiag()
		d.opened = d.diag != noDescriptor
	}
	length, most := sysQueue(l.fd)
	var q queue
	// A full queue takes nobody, who is not to be seen then.
	if length >= most || length > 0 && (!q.look(d.diag, l.fd, w.buffer) || w.forwarder.guests.lesser(q.guests, w.now-d.served > stuckAfter)) {
		d.begin(w.now)
	}
	took := time.Since(began)
	d.nextLook = w.now + took + min(max(lookEvery, lookShare*took), lookSeldom)
	return d.open(w.now)
}

// letIn accepts those who wait.
func (l *listener) letIn(w *worker) {
	d := &w.door
	length, _ := sysQueue(l.fd)
	if length > longQueue {
		d.pressed = w.now
	}
	for range max(1, min(length, acceptsOfRound)) {
		outside, errno := sysAccept(l.fd, &w.name)
		if errno != 0 {
			l.notAccepted(w, errno)
			break
		}
		l.welcome(w, outside)
		l.port.total.Add(1)
		d.take(w, accepted{port: l.port, target: l.targetOf(&w.name), client: w.name, outside: outside, inside: noDescriptor})
		if outside >= w.forwarder.budget.most+(w.forwarder.budget.never-w.forwarder.budget.most)/2 {
			break // those that have come get room first
		}
	}
	d.again(w)
}

// take has an accepted connection wait for its turn, if there is room for it.
func (d *door) take(w *worker, a accepted) {
	budget := &w.forwarder.budget
	a.enter(w)
	g := a.guest
	if w.forwarder.guests.above(g) != nil && w.now-d.pressed < roundTime {
		d.until = w.now + roundTime
	}
	// Each that waits needs a second descriptor.
	full := !budget.allows(a.outside+int32(d.held)) || d.held >= heldMost
	if a.outside >= budget.never || full && !d.makeRoom(w, w.forwarder.guests.above(g)) {
		d.turnAway(w, a)
		return
	}
	if len(g.held) == 0 {
		d.turns = append(d.turns, g)
	}
	g.held = append(g.held, a)
	d.held++
}

// turnAway resets one that has not been served yet.
func (d *door) turnAway(w *worker, a accepted) {
	d.pressed = w.now
	a.port.gaveWay.Add(1)
	sysReset(a.outside)
	a.leave(w)
}

// makeRoom has a connection of who has most end for one of a client that has less; false where
// there is nobody.
func (d *door) makeRoom(w *worker, from *guest) bool {
	d.pressed = w.now
	if from == nil {
		return false
	}
	if n := len(from.held); n > 0 {
		last := from.held[n-1]
		from.held = from.held[:n-1]
		d.unheld(from)
		d.turnAway(w, last)
		return true
	}
	t := w.forwarder.guests.idlest(from)
	if t == nil {
		return false
	}
	room := w.forwarder.guests.served(from)
	if from.round == d.round {
		room = min(room, from.room) // some may not have ended yet
	}
	from.room, from.round = max(room-1, 1), d.round
	d.end(w, t)
	return true
}

// end ends a connection, by the worker that has it.
func (d *door) end(w *worker, t *stay) {
	if t.home == w {
		t.conn.giveWay(w)
		return
	}
	d.leaving++
	t.home.post(func(home *worker) {
		t.conn.giveWay(home)
		w.post(func(w *worker) {
			w.door.leaving--
			w.door.again(w)
		})
	})
}

func (c *conn) giveWay(w *worker) {
	if !c.closed {
		c.port.gaveWay.Add(1)
		c.abort(w)
	}
}

// first takes the connection of a client that has waited longest.
func (d *door) first(g *guest) {
	g.held[0] = accepted{}
	g.held = g.held[1:]
	d.unheld(g)
}

// unheld is called when a client has one less that waits.
func (d *door) unheld(g *guest) {
	d.held--
	if len(g.held) == 0 {
		d.rest(g)
	}
}

// rest is for a client that has none any more.
func (d *door) rest(g *guest) {
	g.held = nil
	i := slices.Index(d.turns, g)
	d.turns = slices.Delete(d.turns, i, i+1)
}

// drop turns away those of a port that is published no longer.
func (d *door) drop(w *worker, p *port) {
	for _, g := range slices.Clone(d.turns) {
		of := func(a accepted) bool { return a.port == p }
		for _, a := range g.held {
			if of(a) {
				d.turnAway(w, a)
				d.held--
			}
		}
		if g.held = slices.DeleteFunc(g.held, of); len(g.held) == 0 {
			d.rest(g)
		}
	}
}

func (d *door) again(w *worker) {
	if !d.queued && d.held > 0 {
		d.queued = true
		w.again(d)
	}
}

// resume serves those who wait, in turns.
func (d *door) resume(w *worker) {
	d.queued, d.retryAt = false, 0
	dials, gone := 0, 0
	for waits := 0; waits < len(d.turns) && dials < dialsOfRound && gone < goneOfRound; {
		g := d.turns[0]
		a := g.held[0]
		d.turns = append(d.turns[1:], g)
		switch {
		case isGone(a.outside): // and nobody need hear of it
			gone++
			d.first(g)
			sysClose(a.outside)
			a.leave(w)
		case d.serve(w, g, a):
			dials++
			waits = 0
		default:
			waits++
		}
	}
	switch {
	case d.held == 0:
		w.hurryPaused()
	case dials < dialsOfRound && gone < goneOfRound: // they wait for others to end
		if dials == 0 && gone == 0 && d.leaving == 0 {
			d.round++ // what there was to give has been given
		}
		d.retryAt = w.now + w.forwarder.config.AcceptPause
	default:
		d.again(w)
	}
}

// isGone says that a client has reset its connection.
func isGone(fd int32) bool {
	state, _ := sysTCPInfo(fd)
	return state == tcpClosed
}

// serve has a connection that waits begin, if it may.
func (d *door) serve(w *worker, g *guest, a accepted) bool {
	if d.open(w.now) && g.round == d.round && w.forwarder.guests.served(g) >= g.room {
		return false
	}
	errno := d.equip(w, &a)
	if exhausted(errno) && d.leaving == 0 && !d.open(w.now) && w.now-d.served > stuckAfter && w.forwarder.guests.overServed(g) != nil {
		d.begin(w.now)
	}
	if exhausted(errno) && d.open(w.now) && d.leaving == 0 {
		from := w.forwarder.guests.above(g)
		if from == nil {
			from = w.forwarder.guests.overServed(g)
		}
		if d.makeRoom(w, from) {
			errno = d.equip(w, &a) // there is room already if that was this worker's
		} else if !w.forwarder.budget.allows(a.outside) {
			d.first(g)
			d.turnAway(w, a)
			return true
		}
	}
	g.held[0].outside = a.outside
	if errno != 0 {
		return false
	}
	d.first(g)
	d.served = w.now
	w.hand(a)
	return true
}

// equip gets a connection a socket inside. One that was accepted into the descriptors that are
// kept for that gives its own back.
func (d *door) equip(w *worker, a *accepted) unix.Errno {
	if !w.forwarder.budget.allows(a.outside) {
		fd, err := unix.FcntlInt(uintptr(a.outside), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return unix.EMFILE
		}
		if !w.forwarder.budget.allows(int32(fd)) {
			unix.Close(fd)
			return unix.EMFILE
		}
		sysClose(a.outside)
		a.outside = int32(fd)
	}
	var errno unix.Errno
	a.inside, errno = w.spare(a.target)
	return errno
}

func (d *door) ready(*worker, int, uint32) {}

// close is for a worker that stops.
func (d *door) close(w *worker) {
	for _, g := range d.turns {
		for _, a := range g.held {
			sysClose(a.outside)
			a.leave(w)
		}
	}
	if d.opened {
		sysClose(d.diag)
	}
}

// expire looks after those who wait again when it is time to.
func (d *door) expire(w *worker) {
	if d.retryAt != 0 && d.retryAt <= w.now {
		d.resume(w)
	}
}
