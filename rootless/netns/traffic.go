package netns

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Traffic is what a member of a shared network has sent and got by the driver.
type Traffic struct {
	BytesOut, BytesIn uint64 // with the headers of IP
	Flows             uint64 // begun
}

// The sets of countTraffic.
const (
	sent  = "sent"
	got   = "got"
	begun = "begun"
)

// countTraffic counts what has come past all rules that may refuse it:
//
//	chain traffic { type filter hook forward priority 10
//		meta nfproto ipv4 oifname "tap0" add @sent4 { ip saddr counter }
//		meta nfproto ipv4 iifname "tap0" add @got4 { ip daddr counter }
//		meta nfproto ipv4 oifname "tap0" ct state new ct status & confirmed == 0 add @begun4 { ip saddr counter }
//		…                                                             6 the same
//	}
func (f *flowRules) countTraffic() error {
	c := f.base("traffic", nftables.ChainTypeFilter, nftables.ChainHookForward, 10)
	out, in := meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, f.way), meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, f.way)
	first := append(connection(expr.CtKeySTATE, expr.CmpOpNeq, expr.CtStateBitNEW), connection(expr.CtKeySTATUS, expr.CmpOpEq, confirmed)...)
	for _, family := range flowFamilies {
		for _, l := range []struct {
			name   string
			match  [][]expr.Any
			offset uint32 // of the member's address
		}{
			{sent, [][]expr.Any{out}, family.source},
			{got, [][]expr.Any{in}, family.source + family.length},
			{begun, [][]expr.Any{out, first}, family.source},
		} {
			s := &nftables.Set{Table: f.table, Name: l.name + family.suffix, KeyType: family.kind, Dynamic: true, Size: 1<<16 - 1}
			if err := f.AddSet(s, nil); err != nil {
				return err
			}
			parts := append([][]expr.Any{meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{family.nfproto})}, l.match...)
			member := &expr.Payload{DestRegister: register0, Base: expr.PayloadBaseNetworkHeader, Offset: l.offset, Len: family.length}
			f.rule(c, append(parts, []expr.Any{member}, addTo(s, &expr.Counter{}))...)
		}
	}
	return nil
}

// Traffic is that of all addresses of members; nil where nobody counts.
func (n *Namespace) Traffic() (map[netip.Addr]Traffic, error) {
	all, counts := map[netip.Addr]Traffic{}, false
	c, err := n.firewall()
	if err == nil {
		defer func() { _ = c.CloseLasting() }()
		counts, err = eachCounted(c, []string{sent, got, begun}, func(s *nftables.Set, e nftables.SetElement, member netip.Addr) {
			if e.Counter == nil {
				return
			}
			t := all[member]
			switch s.Name[:len(s.Name)-1] {
			case sent:
				t.BytesOut = e.Counter.Bytes
			case got:
				t.BytesIn = e.Counter.Bytes
			case begun:
				t.Flows = e.Counter.Packets
			}
			all[member] = t
		})
	}
	if err != nil {
		return nil, fmt.Errorf("reading the traffic of the hub: %w", err)
	}
	if !counts {
		return nil, nil
	}
	return all, nil
}
