package forward

import (
	"math"
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

	newcomers      []newcomer // in the order in which they came
	newcomersBytes int
	queued         bool
}

// newcomer is a datagram of a client that has no flow yet. To open one takes a hundred times
// as long as to read a datagram, so while more come than a batch has they wait here, and
// those of flows that are there do not: who makes up clients without end would keep them
// waiting in the host's socket, which would overflow.
type newcomer struct {
	key  flowKey
	data []byte
}

// What may wait of a port; what comes beyond that is dropped.
const (
	newcomersMost      = 1024
	newcomersBytesMost = 1 << 20
	// batchesEachTurn are read before a flow is opened for who waits.
	batchesEachTurn = 8
)

var _ entrance = (*udpPort)(nil)

// flowKey tells flows apart: one client may use several addresses of the host, and
// expects each answer from the one it used.
type flowKey struct {
	client sockaddr
	local  localAddr
}

// guest is whose flow it is, see guestKey.
func (k *flowKey) guest() address { return guestKey(k.client.ip().As16()) }

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

// resume opens the flow of the newcomer who has waited longest.
func (u *udpPort) resume(w *worker) {
	u.queued = false
	if u.fd < 0 || len(u.newcomers) == 0 {
		return // closed meanwhile
	}
	key := u.newcomers[0].key
	f := u.flow(w, key)
	waiting := u.newcomers[:0]
	for _, n := range u.newcomers {
		if n.key != key {
			waiting = append(waiting, n)
			continue
		}
		u.newcomersBytes -= len(n.data)
		u.welcome(w, f, n.data)
	}
	clear(u.newcomers[len(waiting):])
	u.newcomers = waiting
	u.again(w)
}

func (u *udpPort) again(w *worker) {
	if !u.queued && len(u.newcomers) > 0 {
		u.queued = true
		w.again(u)
	}
}

// welcome sends a datagram that has waited on.
func (u *udpPort) welcome(w *worker, f *flow, data []byte) {
	if f == nil {
		u.port.dropped.Add(1)
		return
	}
	switch n, errno := sysSend(f.fd, data); errno {
	case 0:
		f.account(w, up, sent{bytes: n})
	case unix.EAGAIN:
		f.account(w, up, sent{lost: 1})
	default:
		f.account(w, up, sent{lost: 1, refused: errno})
	}
}

// ready forwards what has come, batch by batch; epoll tells again when there is more.
func (u *udpPort) ready(w *worker, _ int, _ uint32) {
	for range batchesEachTurn {
		if !u.forward(w) {
			break
		}
	}
	u.again(w)
}

// forward forwards one batch, and says whether there is more.
func (u *udpPort) forward(w *worker) (more bool) {
	d := w.datagram
	n, errno := d.receive(u.fd)
	if errno != 0 {
		return false
	}
	crowded := n == datagramBatch || len(u.newcomers) > 0
	for i := 0; i < n; {
		key := d.key(i)
		end := i + 1
		for end < n && d.key(end) == key {
			end++
		}
		f := u.flows[key]
		if f == nil && crowded {
			u.haveWait(d, key, i, end)
		} else if f = u.flow(w, key); f != nil {
			f.toService(w, i, end)
		} else {
			u.port.dropped.Add(uint64(end - i))
		}
		i = end
	}
	return n == datagramBatch
}

// haveWait keeps the received datagrams [i, end) until there is time to open a flow.
func (u *udpPort) haveWait(d *datagrams, key flowKey, i, end int) {
	for ; i < end; i++ {
		data := d.data(i)
		if len(u.newcomers) >= newcomersMost || u.newcomersBytes+len(data) > newcomersBytesMost {
			u.port.dropped.Add(uint64(end - i))
			return
		}
		u.newcomers = append(u.newcomers, newcomer{key, append([]byte(nil), data...)})
		u.newcomersBytes += len(data)
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
	if !w.makeRoom(u, key) || u.out != nil && !u.out.admitsFlow(w, key.client.ip()) {
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
// conversations, somebody who has more than a share of them has one less; when nobody has,
// the one that has rested longest, if that is long. Else the new one is turned away: a flood of
// made-up clients does not end real ones that are in use.
func (w *worker) makeRoom(u *udpPort, key flowKey) bool {
	if w.forwarder.flows.Load() < int64(w.forwarder.config.MaxFlows) {
		return true
	}
	if w.evict() {
		if w.forwarder.flows.Load() > int64(w.forwarder.config.MaxFlows) {
			w.evict()
		}
		return true
	}
	return u.out == nil && (w.evictElsewhere(key.guest()) || w.takeFromLargest(u.port, key.guest()) || w.takeIdle())
}

// evictElsewhere has another worker do so, which has flows that may end, for a client that has no more
// than its share here: the table is one of all of them. Until it does the table has one too many, and
// one that has become a conversation meanwhile stays.
func (w *worker) evictElsewhere(client address) bool {
	const tooMany = 64
	most := w.forwarder.config.MaxFlows
	if w.flowsOf[client] > share(most) || w.forwarder.flows.Load() >= int64(most+tooMany) {
		return false
	}
	for _, other := range *w.forwarder.workers.Load() {
		if other == w || other.brief.Load() <= 0 {
			continue
		}
		other.brief.Add(-1) // so that so many are asked for, and no more
		return other.post(func(o *worker) {
			o.brief.Add(1)
			o.evict()
		})
	}
	return false
}

// takeIdle ends the conversation that has waited longest, if it has for as long as a flow waits for a
// first answer: or else two datagrams for each of many addresses would keep everybody out for as
// long as a conversation may rest.
func (w *worker) takeIdle() bool {
	oldest := w.flows[conversing].head
	if oldest == nil || oldest.udp.out != nil || w.now-oldest.since < w.forwarder.config.UnrepliedTimeout {
		return false
	}
	oldest.giveWay(w)
	return true
}

func (w *worker) evict() bool {
	if oldest := w.flows[unreplied].head; oldest != nil {
		oldest.port.dropped.Add(1)
		oldest.giveWay(w)
		return true
	}
	if oldest := w.flows[replied].head; oldest != nil {
		oldest.giveWay(w) // and nothing is lost
		return true
	}
	return false
}

// flowShares is how many there are who may have a share of the flows, whatever others want: a
// client of all that it has with one worker, and a port, by which members of a network have theirs.
const flowShares = 4

func share(most int) int { return max(1, most/flowShares) }

// takeFromLargest ends a conversation of another client that has more than its share; or of
// another port that has, and more than the one who comes, unless that is a client that has its share.
// It takes the first of those that were not used for longest, since the list of all may be long.
func (w *worker) takeFromLargest(p *port, client address) bool {
	const looks = 256
	part := share(w.forwarder.config.MaxFlows)
	portMost := int64(math.MaxInt64)
	if w.flowsOf[client] <= part {
		portMost = max(int64(part), p.active.Load())
	}
	f := w.flows[conversing].head
	for range looks {
		if f == nil {
			return false
		}
		of := f.key.guest()
		if f.udp.out == nil && (of != client && w.flowsOf[of] > part || f.port != p && f.port.active.Load() > portMost) {
			f.giveWay(w)
			return true
		}
		f = f.place.next
	}
	return false
}

func (f *flow) giveWay(w *worker) {
	f.port.flowsGaveWay.Add(1)
	f.close(w)
}
