package relay

import "net/netip"

// This file has containers take turns. To begin a connection takes a hundred times as long as to
// read its packet, so that one container that sends without end would keep all others
// waiting in the tun. Each has a short queue of its own, and what does not fit is lost, as
// on any busy link.

const (
	queueOwnMost = 256 // packets of one container that wait
	queuesMost   = 512 // containers that have some
	turnMost     = 4   // packets that are worked on before more is read
)

// turns are the queues of packets by container.
type turns struct {
	of    map[netip.Addr]*queue
	order []*queue // those that have some, who is next first
}

type queue struct {
	from    netip.Addr
	packets [][]byte
}

// add puts a copy of a packet into the queue of who sent it, if there is room.
func (t *turns) add(from netip.Addr, p []byte) bool {
	q := t.of[from]
	if q == nil {
		if len(t.of) >= queuesMost {
			return false
		}
		q = &queue{from: from}
		t.of[from] = q
		t.order = append(t.order, q)
	}
	if len(q.packets) >= queueOwnMost {
		return false
	}
	q.packets = append(q.packets, append([]byte(nil), p...))
	return true
}

// next is the packet whose turn it is.
func (t *turns) next() ([]byte, bool) {
	if len(t.order) == 0 {
		return nil, false
	}
	q := t.order[0]
	t.order = t.order[1:]
	p := q.packets[0]
	if q.packets = q.packets[1:]; len(q.packets) > 0 {
		t.order = append(t.order, q)
	} else {
		delete(t.of, q.from)
	}
	return p, true
}

// Packet is what no socket of the hub is there for.
func (r *Relay) Packet(b []byte) {
	<-r.begun
	if f, ok := parseFragment(b); ok {
		whole, roomy := r.pieces.add(f)
		if !roomy && f.from.IsGlobalUnicast() {
			r.engine.Drop(f.from)
		}
		if b = whole; b == nil {
			return
		}
	}
	if p, ok := parse(b); ok && p.from.IsGlobalUnicast() && !r.turns.add(p.from, p.all) {
		r.engine.Drop(p.from)
	}
}

// mostOf is who has most, and how many; no valid address where nobody has any.
func mostOf(own map[netip.Addr]int) (who netip.Addr, most int) {
	for a, n := range own {
		if n > most || n == most && a.Less(who) {
			who, most = a, n
		}
	}
	return who, most
}

// Work does what has come, and says whether there is more.
func (r *Relay) Work() bool {
	<-r.begun
	for range turnMost {
		b, ok := r.turns.next()
		if !ok {
			return false
		}
		if p, ok := parse(b); ok {
			r.work(&p)
		}
	}
	return len(r.turns.order) > 0
}
