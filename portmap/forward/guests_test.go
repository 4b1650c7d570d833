package forward

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func key(ip string) address { return guestKey(netip.MustParseAddr(ip).As16()) }

func TestWhoseConnectionsCountTogether(t *testing.T) {
	require.Equal(t, key("2001:db8::1"), key("2001:db8::ffff:2"), "one /64")
	require.NotEqual(t, key("2001:db8::1"), key("2001:db8:0:1::1"))
	require.NotEqual(t, key("fe80::1"), key("fe80::2"), "neighbours")
	require.Equal(t, key("127.0.0.1"), key("127.9.9.9"), "one host")
	require.NotEqual(t, key("192.0.2.1"), key("192.0.2.2"))
	require.Equal(t, key("192.0.2.1"), key("::ffff:192.0.2.1"))
}

func TestWhoHasMost(t *testing.T) {
	var s guests
	a, b := s.enter(key("192.0.2.1")), s.enter(key("192.0.2.2"))
	require.Nil(t, s.above(a), "both have one")
	require.Same(t, a, s.enter(key("192.0.2.1")))
	require.Nil(t, s.above(b), "two, and a first one: not clearly more")
	s.enter(a.key)
	require.Same(t, a, s.above(b))
	require.Nil(t, s.above(a))
	for range 2 {
		s.leave(a)
	}
	require.Nil(t, s.above(b))
	for range 3 * largeTables {
		s.enter(b.key)
	}
	require.Same(t, b, s.above(a))
	for range 3*largeTables + 1 {
		s.leave(b)
	}
	require.Nil(t, s.above(a))
	s.leave(a)
	require.Empty(t, s.known, "nobody is remembered")
	require.Empty(t, s.ranks)
}

func TestWhoWaitsWithLessThanOthers(t *testing.T) {
	var s guests
	one, other := key("192.0.2.1"), key("192.0.2.2")
	require.False(t, s.lesser(nil, false))
	require.False(t, s.lesser(map[address]int{one: 9}, false), "alone")
	require.False(t, s.lesser(map[address]int{one: 9, other: 9}, false))
	require.False(t, s.lesser(map[address]int{one: 9, other: 4}, false), "not clearly less")
	require.True(t, s.lesser(map[address]int{one: 9, other: 3}, false))
	s.enter(one)
	require.False(t, s.lesser(map[address]int{one: 9}, false), "alone")
	require.False(t, s.lesser(map[address]int{other: 1}, false))
	for range 4 {
		s.enter(one)
	}
	require.True(t, s.lesser(map[address]int{other: 1}, false), "somebody has five")

	// Whoever has all does not keep out who has none and wants as much.
	require.False(t, s.lesser(map[address]int{other: 9}, false))
	require.True(t, s.lesser(map[address]int{other: 9}, true), "nobody has had a turn for long")
	require.False(t, s.lesser(map[address]int{one: 9}, true), "who has all waits for it")
}

// Who says something is not asked to go before those who do not; where all do, it is who has been
// silent for longest.
func TestTheIdlestGivesWay(t *testing.T) {
	var s guests
	g := s.enter(key("192.0.2.1"))
	stays := make([]stay, 3)
	for i := range stays {
		stays[i] = stay{guest: g, since: time.Duration(10 + i), asked: time.Duration(10 + i)}
		s.stay(&stays[i])
	}
	stays[0].since = 100 // says something, and the others do not
	require.Same(t, &stays[1], s.idlest(g))
	stays[0].since, stays[2].since = 300, 200
	require.Same(t, &stays[2], s.idlest(g))
	require.Same(t, &stays[0], s.idlest(g))
	require.Nil(t, s.idlest(g), "those that were taken are not taken again")
}
