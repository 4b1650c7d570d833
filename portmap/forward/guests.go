package forward

import (
	"math"
	"sync"
	"time"
)

// guests are the clients that have connections of published ports, by address, and who has
// how many. Beside the first worker, which accepts, every worker tells of connections that end.
type guests struct {
	mu    sync.Mutex
	known map[address]*guest
	ranks []list[*guest] // by how many connections they have
	most  int            // that anybody has
}

// guest is one client.
type guest struct {
	key   address
	place links[*guest] // among those with as many connections
	open  int           // those that wait for their turn as well
	stays list[*stay]   // in the order in which they are asked to give way

	held []accepted // those that wait; the first worker's, see door

	// room is how many connections it may have served for as long as the round lasts in which
	// it gave way: what it lost is for others.
	room  int
	round uint32
}

func (g *guest) links() *links[*guest] { return &g.place }

// stay is a connection that can be asked to give way.
type stay struct {
	conn  *conn
	guest *guest // nil for a connection that leaves, see Outward
	home  *worker
	place links[*stay]
	since time.Duration // something happened
	asked time.Duration // and what that was when it was asked last
}

func (s *stay) links() *links[*stay] { return &s.place }

// guestKey is what clients are told apart by: who has an address of IPv6 has a /64 of them,
// unless it is one of the link, where all are of the same; and who has one of 127.0.0.0/8 has
// all of those.
func guestKey(ip address) address {
	switch four := ip.four(); {
	case four && ip[12] == 127:
		return address{10: 0xff, 11: 0xff, 12: 127}
	case !four && (ip[0] != 0xfe || ip[1]&0xc0 != 0x80):
		clear(ip[8:])
	}
	return ip
}

// four says whether the address is one of IPv4 in its mapped form.
func (a *address) four() bool {
	return [12]byte(a[:12]) == [12]byte{10: 0xff, 11: 0xff}
}

// enter has a client have one connection more.
func (s *guests) enter(key address) *guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.known[key]
	if g == nil {
		if s.known == nil {
			s.known = make(map[address]*guest)
		}
		g = &guest{key: key}
		s.known[key] = g
	}
	s.rank(g, g.open+1)
	return g
}

// leave has it have one less.
func (s *guests) leave(g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rank(g, g.open-1)
}

// largeTables is from which rank on what is left of a crowd is let go of.
const largeTables = 64

// rank is called with the lock held.
func (s *guests) rank(g *guest, open int) {
	if g.open > 0 {
		s.ranks[g.open].remove(g)
	}
	g.open = open
	for len(s.ranks) <= open {
		s.ranks = append(s.ranks, list[*guest]{})
	}
	if open > 0 {
		s.ranks[open].push(g)
	} else {
		delete(s.known, g.key)
	}
	s.most = max(s.most, open)
	for s.most > 0 && s.ranks[s.most].head == nil {
		s.most--
	}
	if s.most == 0 && len(s.ranks) > largeTables {
		s.known, s.ranks = nil, nil
	}
}

// stay is called when a connection of a client is on its way to the service.
func (s *guests) stay(t *stay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.guest.stays.push(t)
}

// end is called when it has ended.
func (s *guests) end(t *stay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.place.prev != nil || t.place.next != nil || t.guest.stays.head == t {
		t.guest.stays.remove(t)
	}
	s.rank(t.guest, t.guest.open-1)
}

// touchEvery is how exactly it is known when something happened on a connection.
const touchEvery = 100 * time.Millisecond

// happened is for events of a connection, by its worker. What is asked of all connections is
// asked under the lock, and so is this told, but not often.
func (t *stay) happened(w *worker) {
	if t.guest == nil || w.now-t.since < touchEvery {
		return
	}
	w.forwarder.guests.mu.Lock()
	defer w.forwarder.guests.mu.Unlock()
	t.since = w.now
}

// clearly says that who has most has so much more than another one that it is to give way. Two who
// want the same are never equal from one moment to the next, and with less of a difference they would end each
// other's connections without an end, and get less done than by waiting.
func clearly(most, open int) bool { return most > 2*(open+1) }

// above is who has most, if that is clearly more than g has beside the one that has just come.
func (s *guests) above(g *guest) *guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !clearly(s.most, g.open-1) {
		return nil
	}
	return s.ranks[s.most].head
}

// overServed is who has most, if a client that may have as many with those that wait is served clearly
// less.
func (s *guests) overServed(g *guest) *guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := s.ranks[s.most].head // there is one, since g has some
	if most == g || !clearly(most.served(), g.served()) {
		return nil
	}
	return most
}

// looksMost is how many connections are asked to give way before one has to.
const looksMost = 64

// idlest takes a connection of a client for it to be closed: one on which nothing has happened
// since it was asked last, or else that of those that were asked on which nothing has happened for
// longest. The others are asked again after all of the client's. Nil where it has none that can be.
func (s *guests) idlest(g *guest) *stay {
	s.mu.Lock()
	defer s.mu.Unlock()
	var idlest *stay
	for range looksMost {
		t := g.stays.head
		if t == nil {
			break
		}
		if idlest == nil || t.since < idlest.since {
			idlest = t
		}
		if t.since == t.asked {
			idlest = t
			break
		}
		t.asked = t.since
		g.stays.remove(t)
		g.stays.push(t)
	}
	if idlest != nil {
		g.stays.remove(idlest)
	}
	return idlest
}

// lesser says whether one of those who wait has clearly fewer connections than somebody else, those
// that wait counted, unless nobody has had a turn for long: then what counts is who has some.
func (s *guests) lesser(waiting map[address]int, stuck bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	most, least := s.most, math.MaxInt32
	for key, n := range waiting {
		if stuck {
			n = 0
		}
		if g := s.known[key]; g != nil {
			n += g.open
		}
		most, least = max(most, n), min(least, n)
	}
	return clearly(most, least)
}

// served is how many connections of a client do not wait for their turn.
func (s *guests) served(g *guest) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return g.served()
}

// served is called with the lock of guests held.
func (g *guest) served() int { return g.open - len(g.held) }
