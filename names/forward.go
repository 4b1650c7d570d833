package names

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// The pace of questions to others. A resolver waits five seconds as a rule
// (resolv.conf(5), timeout), and has to have an answer before that.
const (
	nextAfter  = time.Second             // the next server is asked beside those that were
	giveUp     = 4500 * time.Millisecond // the question has failed
	probeEvery = 5 * time.Second         // a server that gave no answer is asked, beside another
	pace       = 100 * time.Millisecond
)

// The most questions that wait for an answer at a time.
const (
	maxOfClient = 256
	maxOfAll    = 4096
)

// forwarder asks others by UDP. A server that does not answer in time has the next one asked
// beside it, and is no longer the first to be asked until it answers.
type forwarder struct {
	port uint16 // of the servers

	mu       sync.Mutex
	servers  map[netip.Addr]*upstream
	waiting  map[*question]struct{}
	ofClient map[netip.Addr]int
	ticking  bool
	closed   bool
}

// question is one that others are asked.
type question struct {
	msg     []byte // as the client has sent it
	end     int    // of the question in it
	client  netip.Addr
	answer  func(msg []byte) // is called once, with the client's ID; nil: nobody knows
	servers []*upstream      // in the order in which they are asked
	asked   int              // how often one was
	on      []place          // where answers may come
	refusal []byte           // the answer of one that does not want to
	since   time.Time
	nextAt  time.Time
}

// place is where an answer is waited for.
type place struct {
	*line
	id uint16
}

func newForwarder() *forwarder {
	const domain = 53
	return &forwarder{port: domain, servers: map[netip.Addr]*upstream{}, waiting: map[*question]struct{}{}, ofClient: map[netip.Addr]int{}}
}

// ask asks the servers; false says that the client asks too much at a time.
func (f *forwarder) ask(q *question, servers []netip.Addr) bool {
	f.mu.Lock()
	if f.closed || len(f.waiting) >= maxOfAll || f.ofClient[q.client] >= maxOfClient {
		f.mu.Unlock()
		return false
	}
	probe := f.order(q, servers)
	f.begin(q)
	if probe != nil {
		f.begin(probe)
	}
	if !f.ticking {
		f.ticking = true
		go f.tick()
	}
	f.mu.Unlock()
	f.askNext(q)
	if probe != nil {
		f.askNext(probe)
	}
	return true
}

func (f *forwarder) begin(q *question) {
	q.since = time.Now()
	q.nextAt = q.since.Add(nextAfter)
	f.waiting[q] = struct{}{}
	f.ofClient[q.client]++
}

// order puts servers that answer before those that do not. One of the latter is asked
// now and then, whether it does again.
func (f *forwarder) order(q *question, servers []netip.Addr) (probe *question) {
	now := time.Now()
	var mute []*upstream
	for _, a := range servers {
		u := f.servers[a]
		if u == nil {
			u = &upstream{forwarder: f, address: netip.AddrPortFrom(a, f.port)}
			f.servers[a] = u
		}
		u.used = now
		if u.mute {
			mute = append(mute, u)
		} else {
			q.servers = append(q.servers, u)
		}
	}
	if len(q.servers) > 0 {
		for _, u := range mute {
			if now.Sub(u.probed) > probeEvery {
				u.probed = now
				probe = &question{msg: slices.Clone(q.msg), end: q.end, answer: func([]byte) {}, servers: []*upstream{u}}
				break
			}
		}
	}
	q.servers = append(q.servers, mute...)
	return probe
}

// askNext asks the next server that can be sent to. After all of them each is asked again,
// for a message may be lost.
func (f *forwarder) askNext(q *question) {
	for range q.servers {
		f.mu.Lock()
		if _, waits := f.waiting[q]; !waits {
			f.mu.Unlock()
			return
		}
		u := q.servers[q.asked%len(q.servers)]
		q.asked++
		f.mu.Unlock()
		if u.send(q) == nil {
			return
		}
	}
	f.mu.Lock()
	hopeless := len(q.on) == 0
	f.mu.Unlock()
	if hopeless {
		f.finish(q, nil)
	}
}

// finish ends a question, with its answer or without one.
func (f *forwarder) finish(q *question, msg []byte) {
	f.mu.Lock()
	if _, waits := f.waiting[q]; !waits {
		f.mu.Unlock()
		return
	}
	delete(f.waiting, q)
	if f.ofClient[q.client]--; f.ofClient[q.client] == 0 {
		delete(f.ofClient, q.client)
	}
	for _, p := range q.on {
		p.forget(p.id)
	}
	q.on = nil
	if msg == nil {
		msg = q.refusal
	}
	f.mu.Unlock()
	if msg != nil {
		binary.BigEndian.PutUint16(msg, binary.BigEndian.Uint16(q.msg))
	}
	q.answer(msg)
}

// received takes what came in for a question. It is the caller's again afterwards.
func (f *forwarder) received(q *question, at place, msg []byte) {
	switch codeOf(msg) {
	case dnsmessage.RCodeServerFailure, dnsmessage.RCodeNotImplemented, dnsmessage.RCodeRefused:
	default:
		f.finish(q, msg)
		return
	}
	// Another one may know.
	f.mu.Lock()
	q.refusal = slices.Clone(msg)
	f.mu.Unlock()
	f.lost(q, at)
}

// lost is a question to which no answer will come from there any more.
func (f *forwarder) lost(q *question, at place) {
	f.mu.Lock()
	at.forget(at.id)
	q.on = slices.DeleteFunc(q.on, func(p place) bool { return p == at })
	alone, more := len(q.on) == 0, q.asked < len(q.servers)
	f.mu.Unlock()
	switch {
	case more:
		f.askNext(q)
	case alone:
		f.finish(q, nil)
	}
}

// tick lives as long as questions wait or sockets are open.
func (f *forwarder) tick() {
	t := time.NewTicker(pace)
	defer t.Stop()
	for now := range t.C {
		again, over, idle := f.due(now)
		for _, q := range over {
			f.finish(q, nil)
		}
		for _, q := range again {
			f.askNext(q)
		}
		if idle {
			return
		}
	}
}

// due are the questions that have waited long enough.
func (f *forwarder) due(now time.Time) (again, over []*question, idle bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for q := range f.waiting {
		switch {
		case now.Sub(q.since) > giveUp:
			over = append(over, q)
		case now.After(q.nextAt):
			q.nextAt = now.Add(nextAfter)
			again = append(again, q)
		default:
			continue
		}
		for _, p := range q.on {
			if now.Sub(q.since) > nextAfter {
				p.upstream.silent(now)
			}
		}
	}
	for a, u := range f.servers {
		u.closeIdle(now)
		if len(u.lines) == 0 && now.Sub(u.used) > forgetAfter {
			delete(f.servers, a)
		}
	}
	f.ticking = len(f.waiting) > 0 || len(f.servers) > 0
	return again, over, !f.ticking
}

func (f *forwarder) close() {
	f.mu.Lock()
	f.closed = true
	var left []*question
	for q := range f.waiting {
		left = append(left, q)
	}
	for _, u := range f.servers {
		for _, l := range u.lines {
			l.conn.Close()
		}
	}
	f.mu.Unlock()
	for _, q := range left {
		f.finish(q, nil)
	}
}
