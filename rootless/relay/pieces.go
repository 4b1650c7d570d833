package relay

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// This file puts fragments together. The hub's firewall does so as well, but a packet that it passes
// on leaves it in the pieces that it came in (net/ipv4/ip_output.c, frag_max_size).

// fragment is a piece of a packet.
type fragment struct {
	piecesKey
	at   int // of the payload, in bytes
	more bool
	data []byte
}

type piecesKey struct {
	from, to netip.Addr
	protocol byte
	id       uint32
}

// parseFragment reads a packet that is a fragment; false for all others.
func parseFragment(b []byte) (fragment, bool) {
	switch {
	case len(b) >= header4 && b[0]>>4 == 4:
		header, total, place := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:])), binary.BigEndian.Uint16(b[6:])
		if header < header4 || total < header || total > len(b) || place&0x3fff == 0 {
			return fragment{}, false
		}
		return fragment{
			piecesKey{netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9], uint32(binary.BigEndian.Uint16(b[4:]))},
			int(place&0x1fff) * 8, place&0x2000 != 0, b[header:total],
		}, true
	case len(b) >= header6+8 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_FRAGMENT:
		total, f := header6+int(binary.BigEndian.Uint16(b[4:])), b[header6:]
		if total < header6+8 || total > len(b) {
			return fragment{}, false
		}
		place := binary.BigEndian.Uint16(f[2:])
		return fragment{
			piecesKey{netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), f[0], binary.BigEndian.Uint32(f[4:])},
			int(place &^ 7), place&1 != 0, b[header6+8 : total],
		}, true
	}
	return fragment{}, false
}

// pieces are packets of which not all has come yet.
type pieces struct{ of map[piecesKey]*unfinished }

type unfinished struct {
	parts []fragment
	size  int // of what has come
	whole int // -1: not known yet
	since time.Time
}

const (
	unfinishedMost    = 64 // of all containers, each up to 64 KiB
	unfinishedOwnMost = 8  // of one
	unfinishedKept    = 5 * time.Second
)

// add takes a fragment if there is room for its packet, and returns that when it is complete.
func (s *pieces) add(f fragment) (packet []byte, roomy bool) {
	u := s.of[f.piecesKey]
	if u == nil {
		if !s.room(f.from) {
			return nil, false
		}
		u = &unfinished{whole: -1, since: time.Now()}
		s.of[f.piecesKey] = u
	}
	end := f.at + len(f.data)
	if !f.more {
		u.whole = end
	}
	f.data = append([]byte(nil), f.data...)
	u.parts, u.size = append(u.parts, f), u.size+len(f.data)
	const header, longest = header6, 65535
	switch {
	case end > longest-header, u.size > longest, f.more && len(f.data)%8 != 0, len(f.data) == 0:
		delete(s.of, f.piecesKey)
		return nil, true
	case u.whole < 0 || u.size < u.whole:
		return nil, true
	}
	delete(s.of, f.piecesKey)
	return u.join(f.piecesKey), true
}

// join is nil where parts do not fit: nobody sends what overlaps (RFC 5722).
func (u *unfinished) join(k piecesKey) []byte {
	if u.size != u.whole {
		return nil
	}
	b := makePacket(k.from, k.to, k.protocol, u.whole)
	payload, filled := b[len(b)-u.whole:], make([]bool, u.whole/8+1)
	for _, p := range u.parts {
		if p.at+len(p.data) > u.whole {
			return nil
		}
		for i := p.at / 8; i < (p.at+len(p.data)+7)/8; i++ {
			if filled[i] {
				return nil
			}
			filled[i] = true
		}
		copy(payload[p.at:], p.data)
	}
	if k.from.Is4() {
		// What is written into the tun has to be right.
		binary.BigEndian.PutUint16(b[10:], checksum(0, b[:header4]))
	}
	return b
}

// room makes room for one more of a container. Where all places are taken the oldest of who has
// most gives way, unless the container would then have as many.
func (s *pieces) room(from netip.Addr) bool {
	own := map[netip.Addr]int{}
	for k, u := range s.of {
		if time.Since(u.since) > unfinishedKept {
			delete(s.of, k)
		} else {
			own[k.from]++
		}
	}
	if own[from] >= unfinishedOwnMost {
		return false
	}
	if len(s.of) < unfinishedMost {
		return true
	}
	who, most := mostOf(own)
	if most <= own[from]+1 {
		return false
	}
	var oldest piecesKey
	for k, u := range s.of {
		if k.from == who && (s.of[oldest] == nil || u.since.Before(s.of[oldest].since)) {
			oldest = k
		}
	}
	delete(s.of, oldest)
	return true
}
