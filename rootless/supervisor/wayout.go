package supervisor

import (
	"net/netip"
	"slices"

	"github.com/ambi-cni/ambi/rootless/driver"
)

// wayOut counts what leaves of a member: by the driver where that counts, else by the rules of
// the hub, or, since a private network has no other member, by the driver's interface. dropped is
// what flowsRefused says.
func (h *hub) wayOut(process driver.Process, of []netip.Addr, dropped *uint64) *WayOut {
	if c, ok := process.(driver.Counter); ok {
		return wayOutOf(c.Stats(), of, h.config.Only != nil)
	}
	if h.counts {
		return nil // it is down
	}
	if h.config.Only != nil {
		link, err := h.inside.Link()
		if err != nil || StatsOf(link) == nil {
			return nil
		}
		s := StatsOf(link)
		return &WayOut{BytesOut: s.TxBytes, BytesIn: s.RxBytes}
	}
	traffic, err := h.inside.Traffic()
	if err != nil || traffic == nil {
		return nil
	}
	w := &WayOut{Total: new(uint64), Dropped: dropped}
	for _, ip := range of {
		t := traffic[ip]
		w.BytesOut += t.BytesOut
		w.BytesIn += t.BytesIn
		*w.Total += t.Flows
	}
	return w
}

// wayOutOf adds up the counters of a member's addresses, or of all.
func wayOutOf(stats []driver.MemberStats, of []netip.Addr, all bool) *WayOut {
	w := &WayOut{Active: new(int64), Total: new(uint64), Refused: new(uint64), Dropped: new(uint64)}
	for _, s := range stats {
		if !all && !slices.Contains(of, s.Address) {
			continue
		}
		w.BytesOut += s.BytesOut
		w.BytesIn += s.BytesIn
		*w.Active += s.Active
		*w.Total += s.Total
		*w.Refused += s.Refused
		*w.Dropped += s.Dropped
	}
	return w
}

// forgetWayOut begins anew for who gets these addresses next.
func (s *supervisor) forgetWayOut(of []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.driver.(driver.Counter); ok {
		c.Forget(of)
	}
}
