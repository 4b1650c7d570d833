package names

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Who would forge an answer has to know the port of the socket and the ID of the question
// (RFC 5452): both are drawn, and a socket is used for a while only.
const (
	maxLines    = 4                // sockets to one server
	lineOf      = 512              // questions, and it is used no more
	lineFor     = 10 * time.Second // after its last question it is closed
	forgetAfter = 10 * time.Minute // what is known of a server that nobody asks
)

// upstream is a server that is asked. The forwarder's lock guards it.
type upstream struct {
	forwarder *forwarder
	address   netip.AddrPort
	lines     []*line
	mute      bool      // it has not answered in time, and another may be asked first
	answered  time.Time // last
	probed    time.Time
	used      time.Time
}

// line is a socket to a server.
type line struct {
	upstream *upstream
	conn     *net.UDPConn
	waiting  map[uint16]*question
	asked    int
	last     time.Time
}

// silent notes that a question had no answer in time.
func (u *upstream) silent(now time.Time) {
	if !u.mute && now.Sub(u.answered) > nextAfter {
		u.mute, u.probed = true, now
	}
}

// send asks this server. An error is that nothing can be sent to it.
func (u *upstream) send(q *question) error {
	l, err := u.line()
	if err != nil {
		return err
	}
	id, ok := l.expect(q)
	if !ok {
		return net.ErrClosed
	}
	msg := slices.Clone(q.msg)
	binary.BigEndian.PutUint16(msg, id)
	for range 2 { // an ICMP error about an earlier one may be told now
		if _, err = l.conn.Write(msg); err == nil || !errors.Is(err, unix.ECONNREFUSED) {
			break
		}
	}
	if err != nil {
		f := u.forwarder
		f.mu.Lock()
		l.forget(id)
		q.on = slices.DeleteFunc(q.on, func(p place) bool { return p == place{l, id} })
		f.mu.Unlock()
	}
	return err
}

// line is one of the sockets to the server.
func (u *upstream) line() (*line, error) {
	f := u.forwarder
	f.mu.Lock()
	var fit []*line
	for _, l := range u.lines {
		if l.asked < lineOf {
			fit = append(fit, l)
		}
	}
	if n := rand.IntN(maxLines); n < len(fit) { //nolint:gosec // seeded by the kernel, ChaCha8
		f.mu.Unlock()
		return fit[n], nil
	}
	f.mu.Unlock()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(u.address))
	if err != nil {
		if len(fit) > 0 {
			return fit[0], nil // no descriptors, say
		}
		return nil, err
	}
	l := &line{upstream: u, conn: conn, waiting: map[uint16]*question{}, last: time.Now()}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	u.lines = append(u.lines, l)
	go l.read()
	return l, nil
}

// expect draws an ID for a question, by which its answer is known.
func (l *line) expect(q *question) (id uint16, ok bool) {
	f := l.upstream.forwarder
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, waits := f.waiting[q]; !waits || f.closed {
		return 0, false
	}
	for ok = true; ok; _, ok = l.waiting[id] {
		id = uint16(rand.Uint32()) //nolint:gosec // seeded by the kernel, ChaCha8
	}
	l.waiting[id] = q
	l.asked++
	l.last = time.Now()
	q.on = append(q.on, place{l, id})
	return id, true
}

// forget is about a question that is over.
func (l *line) forget(id uint16) { delete(l.waiting, id) }

// read takes the answers until the socket is closed.
func (l *line) read() {
	buf := make([]byte, maxStream)
	for {
		n, err := l.conn.Read(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			l.refused() // by ICMP
		default:
			l.take(buf[:n])
		}
	}
}

func (l *line) take(msg []byte) {
	if len(msg) < headerSize {
		return
	}
	id := binary.BigEndian.Uint16(msg)
	f := l.upstream.forwarder
	f.mu.Lock()
	q := l.waiting[id]
	if q == nil || !answers(msg, id, q.msg[headerSize:q.end]) {
		f.mu.Unlock()
		return // not what we have asked: the answer may still come
	}
	l.upstream.mute, l.upstream.answered = false, time.Now()
	f.mu.Unlock()
	f.received(q, place{l, id}, msg)
}

// refused is about all questions that wait here.
func (l *line) refused() {
	f := l.upstream.forwarder
	f.mu.Lock()
	all := make(map[uint16]*question, len(l.waiting))
	for id, q := range l.waiting {
		all[id] = q
	}
	f.mu.Unlock()
	for id, q := range all {
		f.lost(q, place{l, id})
	}
}

// closeIdle closes the sockets that were in use for long enough.
func (u *upstream) closeIdle(now time.Time) {
	u.lines = slices.DeleteFunc(u.lines, func(l *line) bool {
		idle := len(l.waiting) == 0 && (l.asked >= lineOf || now.Sub(l.last) > lineFor)
		if idle {
			l.conn.Close()
		}
		return idle
	})
}
