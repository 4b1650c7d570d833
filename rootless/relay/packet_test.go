package relay

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var (
	client4, server4 = netip.MustParseAddrPort("10.4.0.2:40000"), netip.MustParseAddrPort("192.0.2.2:80")
	client6, server6 = netip.MustParseAddrPort("[fd00::64]:40000"), netip.MustParseAddrPort("[2001:db8::2]:80")
)

// syn is a first segment, with so many options and data behind its header.
func syn(from, to netip.AddrPort, options, data int) []byte {
	b := makePacket(from.Addr(), to.Addr(), unix.IPPROTO_TCP, headerT+options+data)
	t := b[len(b)-headerT-options-data:]
	binary.BigEndian.PutUint16(t[0:], from.Port())
	binary.BigEndian.PutUint16(t[2:], to.Port())
	binary.BigEndian.PutUint32(t[4:], 1000)
	t[12], t[13] = byte((headerT+options)/4)<<4, flagSYN
	return b
}

// whole says that a packet's lengths and checksums are right.
func whole(t *testing.T, b []byte) packet {
	t.Helper()
	p, ok := parse(b)
	require.True(t, ok)
	require.Len(t, p.all, len(b))
	sum := uint32(0)
	if p.protocol != unix.IPPROTO_ICMP {
		sum = pseudo(p.from, p.to, p.protocol, len(p.payload))
	}
	require.Zero(t, checksum(sum, p.payload))
	return p
}

func TestReset(t *testing.T) {
	for _, ends := range [][2]netip.AddrPort{{client4, server4}, {client6, server6}} {
		p, ok := parse(syn(ends[0], ends[1], 20, 3))
		require.True(t, ok)
		r := whole(t, p.reset())
		from, to := r.ends()
		require.Equal(t, ends[1], from)
		require.Equal(t, ends[0], to)
		flags, ok := r.tcpFlags()
		require.True(t, ok)
		require.Equal(t, byte(flagRST|flagACK), flags)
		// The SYN counts as one.
		require.Equal(t, uint32(1004), binary.BigEndian.Uint32(r.payload[8:]))

		// A segment that acknowledges is answered at the place that it expects.
		p.payload[13] = flagACK
		binary.BigEndian.PutUint32(p.payload[8:], 77)
		r = whole(t, p.reset())
		flags, _ = r.tcpFlags()
		require.Equal(t, byte(flagRST), flags)
		require.Equal(t, uint32(77), binary.BigEndian.Uint32(r.payload[4:]))
	}
}

func TestUnreachable(t *testing.T) {
	for _, ends := range [][2]netip.AddrPort{{client4, server4}, {client6, server6}} {
		p, ok := parse(syn(ends[0], ends[1], 0, 2000))
		require.True(t, ok)
		router := netip.MustParseAddr("10.0.2.2")
		kind, code := byte(3), byte(1)
		if ends[0].Addr().Is6() {
			router, kind, code = netip.MustParseAddr("fd00::2"), 1, 3
		}
		r := whole(t, p.unreachable(router, noHost))
		require.Equal(t, router, r.from)
		require.Equal(t, ends[0].Addr(), r.to)
		require.Equal(t, []byte{kind, code}, r.payload[:2])
		require.LessOrEqual(t, len(r.all), 1280)
		require.Equal(t, p.all[:60], r.payload[8:68])
	}
}

func TestParse(t *testing.T) {
	for name, change := range map[string]func(b []byte) []byte{
		"no version":           func(b []byte) []byte { b[0] = 0x55; return b },
		"short":                func(b []byte) []byte { return b[:19] },
		"shorter than it says": func(b []byte) []byte { return b[:len(b)-1] },
		"header of 16":         func(b []byte) []byte { b[0] = 0x44; return b },
		"header beyond":        func(b []byte) []byte { b[3] = 22; b[0] = 0x46; return b },
		"first fragment":       func(b []byte) []byte { b[6] = 0x20; return b },
		"later fragment":       func(b []byte) []byte { b[7] = 1; return b },
	} {
		_, ok := parse(change(syn(client4, server4, 0, 0)))
		require.False(t, ok, name)
	}
	p, ok := parse(append(syn(client4, server4, 4, 0), "what Ethernet fills up"...))
	require.True(t, ok)
	require.Len(t, p.payload, 24)

	// Options for routers are passed over, fragments are not for us.
	six := syn(client6, server6, 0, 0)
	with := append(append([]byte{}, six[:header6]...), unix.IPPROTO_TCP, 0, 1, 4, 0, 0, 0, 0)
	with[6], with[5] = unix.IPPROTO_HOPOPTS, with[5]+8
	p, ok = parse(append(with, six[header6:]...))
	require.True(t, ok)
	_, ok = p.tcpFlags()
	require.True(t, ok)
	with[6] = unix.IPPROTO_FRAGMENT
	_, ok = parse(append(with, six[header6:]...))
	require.False(t, ok)
}

func TestClasses(t *testing.T) {
	for _, c := range []struct {
		address string
		want    class
	}{
		{"8.8.8.8", reached}, {"10.1.2.3", reached}, {"2001:db8::1", reached}, {"fd00:ec2::254", reached}, {"169.254.169.254", reached},
		{"127.0.0.1", loopback}, {"127.255.0.1", loopback}, {"0.0.0.0", loopback}, {"0.1.2.3", loopback},
		{"::1", loopback}, {"::", loopback}, {"::ffff:127.0.0.1", loopback}, {"::ffff:8.8.8.8", loopback}, {"::127.0.0.1", loopback},
		{"169.254.1.1", linkLocal}, {"fe80::1", linkLocal},
		{"224.0.0.1", everybody}, {"ff02::1", everybody}, {"255.255.255.255", reserved}, {"240.0.0.1", reserved},
	} {
		require.Equal(t, c.want, classOf(netip.MustParseAddr(c.address)), c.address)
	}
}

// FuzzPacket: whatever a container sends is read without harm, and what it is answered is
// well-formed and for nobody else.
func FuzzPacket(f *testing.F) {
	f.Add([]byte{})
	f.Add(syn(client4, server4, 0, 0))
	f.Add(syn(client6, server6, 20, 8))
	f.Add(datagramOf(client4, server4))
	f.Add([]byte{0x60, 0, 0, 0, 0, 0, 0, 64})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parse(b)
		if !ok {
			return
		}
		require.LessOrEqual(t, len(p.all), len(b))
		if _, ok := p.tcpFlags(); ok {
			p.ends()
			require.Equal(t, p.from, whole(t, p.reset()).to)
		}
		if p.from.Is6() == p.to.Is6() {
			require.Equal(t, p.from, whole(t, p.unreachable(p.to, noHost)).to)
		}
		classOf(p.to)
	})
}

func datagramOf(from, to netip.AddrPort) []byte {
	p := datagram(from, to)
	return p.all
}

func TestFragments(t *testing.T) {
	for _, ends := range [][2]netip.AddrPort{{client4, server4}, {client6, server6}} {
		whole, got := makePacket(ends[0].Addr(), ends[1].Addr(), unix.IPPROTO_UDP, 4000), []byte{}
		for i := range 4000 {
			whole[len(whole)-4000+i] = byte(i / 7)
		}
		pieces := fragments(whole)
		require.Len(t, pieces, 4)
		for i, p := range pieces {
			require.LessOrEqual(t, len(p), 1280)
			_, ok := parse(p)
			require.False(t, ok, "it is a fragment")
			header, at, more := 20, int(binary.BigEndian.Uint16(p[6:])&0x1fff)*8, p[6]&0x20 != 0
			if ends[0].Addr().Is6() {
				f := p[40:]
				header, at, more = 48, int(binary.BigEndian.Uint16(f[2:])&^7), f[3]&1 != 0
				require.Equal(t, []byte{unix.IPPROTO_FRAGMENT, unix.IPPROTO_UDP}, []byte{p[6], f[0]})
			}
			require.Equal(t, len(got), at)
			require.Equal(t, i < 3, more)
			got = append(got, p[header:]...)
		}
		require.Equal(t, whole[len(whole)-4000:], got)
	}
}

// together adds fragments in an order and returns what comes of them.
func together(s *pieces, order []int, all [][]byte) (whole []byte) {
	for _, i := range order {
		f, ok := parseFragment(all[i])
		if !ok {
			return nil
		}
		if whole, _ = s.add(f); whole != nil {
			return whole
		}
	}
	return nil
}

func TestPieces(t *testing.T) {
	for _, ends := range [][2]netip.AddrPort{{client4, server4}, {client6, server6}} {
		want := makePacket(ends[0].Addr(), ends[1].Addr(), unix.IPPROTO_UDP, 4001)
		for i := range 4001 {
			want[len(want)-4001+i] = byte(i / 7)
		}
		all := fragments(want)
		s := &pieces{of: make(map[piecesKey]*unfinished)}
		for _, order := range [][]int{{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 3, 0, 2}} {
			got := together(s, order, all)
			p, ok := parse(got)
			require.True(t, ok, order)
			require.Equal(t, want[len(want)-4001:], p.payload)
			require.Equal(t, ends[0].Addr(), p.from)
			require.Empty(t, s.of)
		}
		// One that is missing, and one that comes twice.
		require.Nil(t, together(s, []int{0, 1, 3}, all))
		require.Nil(t, together(s, []int{1}, all))
		// A container that never ends its packets has few of them.
		for id := range 100 {
			f, _ := parseFragment(all[0])
			f.id = uint32(id)
			_, roomy := s.add(f)
			require.Equal(t, len(s.of) < unfinishedOwnMost || id < unfinishedOwnMost, roomy, id)
		}
		require.LessOrEqual(t, len(s.of), unfinishedOwnMost)
	}
}

// member is the address of the n-th container.
func member(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 89, 0, byte(10 + n)}) }

// Containers that have all places for packets in pieces have as many as a late one in the end.
func TestPiecesAreShared(t *testing.T) {
	s := &pieces{of: make(map[piecesKey]*unfinished)}
	begin := func(who, id int) bool {
		_, roomy := s.add(fragment{piecesKey{from: member(who), to: server4.Addr(), id: uint32(id)}, 0, true, make([]byte, 8)})
		return roomy
	}
	const many = unfinishedMost / unfinishedOwnMost
	for who := range many {
		for id := range unfinishedOwnMost {
			require.True(t, begin(who, id))
		}
	}
	for id := range unfinishedOwnMost - 1 {
		require.True(t, begin(many, id), id)
	}
	require.False(t, begin(many, unfinishedOwnMost-1), "as many as the others have by now, all of them")
	require.Len(t, s.of, unfinishedMost)
	own := map[netip.Addr]int{}
	for k := range s.of {
		own[k.from]++
	}
	for who := range many {
		require.GreaterOrEqual(t, own[member(who)], unfinishedOwnMost-1)
	}
}

func TestEchoesAreShared(t *testing.T) {
	s := newEchoes()
	begin := func(who, id int) bool {
		if !s.room(member(who)) {
			return false
		}
		e := &echo{echoKey: echoKey{member(who), server4.Addr(), uint16(id)}, used: time.Unix(int64(id), 0), stop: func() {}}
		s.of[e.echoKey] = e
		s.own[e.from]++
		return true
	}
	const many = echoesMost / echoesOwnMost
	for who := range many {
		for id := range 2 * echoesOwnMost {
			require.True(t, begin(who, id), "its own oldest gives way")
		}
		require.Equal(t, echoesOwnMost, s.own[member(who)])
	}
	for id := range 2 * echoesOwnMost {
		require.True(t, begin(many, id))
	}
	require.Len(t, s.of, echoesMost)
	require.GreaterOrEqual(t, s.own[member(many)], echoesOwnMost-many)
	for who := range many {
		require.GreaterOrEqual(t, s.own[member(who)], echoesOwnMost-many)
	}
}

// A container whose queue is full has no room, and others have.
func TestTurnsHaveBounds(t *testing.T) {
	s := turns{of: make(map[netip.Addr]*queue)}
	for range queueOwnMost {
		require.True(t, s.add(member(0), []byte{1}))
	}
	require.False(t, s.add(member(0), []byte{1}))
	require.True(t, s.add(member(1), []byte{2}))
	for range 2 {
		_, ok := s.next()
		require.True(t, ok)
	}
	require.True(t, s.add(member(0), []byte{1}))
}

// TestPiecesThatOverlap: as long as a whole packet together, and yet none, in any order.
func TestPiecesThatOverlap(t *testing.T) {
	piece := func(at, blocks int, more bool) fragment {
		return fragment{piecesKey{from: client4.Addr(), to: server4.Addr(), protocol: unix.IPPROTO_UDP}, at * 8, more, make([]byte, blocks*8)}
	}
	for _, parts := range [][]fragment{
		{piece(1, 2, true), piece(0, 2, true), piece(4, 1, false)},
		{piece(0, 2, true), piece(1, 2, true), piece(4, 1, false)},
		{piece(4, 1, false), piece(1, 1, true), piece(0, 3, true)},
	} {
		s := &pieces{of: make(map[piecesKey]*unfinished)}
		for _, f := range parts {
			whole, roomy := s.add(f)
			require.Nil(t, whole, parts)
			require.True(t, roomy)
		}
		require.Empty(t, s.of)
	}
}

// FuzzPieces: whatever fragments a container sends, what comes of them is a packet.
func FuzzPieces(f *testing.F) {
	for _, b := range fragments(makePacket(client6.Addr(), server6.Addr(), unix.IPPROTO_UDP, 2000)) {
		f.Add(b, b)
	}
	f.Add(fragments(makePacket(client4.Addr(), server4.Addr(), unix.IPPROTO_UDP, 2000))[1], []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		s := &pieces{of: make(map[piecesKey]*unfinished)}
		for _, one := range [][]byte{a, b, a} {
			if f, ok := parseFragment(one); ok {
				if whole, _ := s.add(f); whole != nil {
					require.LessOrEqual(t, len(whole), 1<<16)
					parse(whole)
				}
			}
		}
	})
}
