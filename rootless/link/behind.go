package link

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// This file has what joins two interfaces of one place that share a network without a bridge
// between them: whoever asks on the one for who is behind the other is answered for him (proxy
// ARP, RFC 1027; proxy neighbour discovery, RFC 4389), and what comes is routed.

// Between has an interface lead to those behind it, and answer on it for those beyond, who
// are behind another one. What is so already is success.
func (p *Place) Between(name string, behind, beyond []netip.Addr) error {
	index, err := p.index(name)
	if err != nil {
		return err
	}
	var b nlsock.Batch
	answerAtOnce(&b, name, index)
	for _, ip := range behind {
		addHostRoute(&b, ip, name, index)
	}
	for _, ip := range beyond {
		answerFor(&b, ip, name, index)
	}
	_, err = b.Send(p.Route)
	return err
}

func (p *Place) index(name string) (int, error) {
	l, err := p.find(0, name)
	if err == nil && l == nil {
		err = fmt.Errorf("there is no interface %s", name)
	}
	if err != nil {
		return 0, err
	}
	return l.Index, nil
}

func addHostRoute(b *nlsock.Batch, to netip.Addr, name string, index int) {
	header := nlsock.RtMsg(nlsock.FamilyOf(to), uint8(to.BitLen()), 0)
	header[atRouteScope] = unix.RT_SCOPE_LINK
	b.Add(fmt.Sprintf("the route to %s over interface %s", to, name), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, header, func(e *nlsock.Encoder) {
		e.Bytes(unix.RTA_DST, to.AsSlice())
		e.Uint32(unix.RTA_OIF, uint32(index))
	})
}

func answerFor(b *nlsock.Batch, ip netip.Addr, name string, index int) {
	header := make([]byte, unix.SizeofNdMsg)
	header[0] = nlsock.FamilyOf(ip)
	binary.NativeEndian.PutUint32(header[4:], uint32(index))
	header[10] = unix.NTF_PROXY
	b.Add(fmt.Sprintf("answering for %s on interface %s", ip, name), unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, header, func(e *nlsock.Encoder) {
		e.Bytes(unix.NDA_DST, ip.AsSlice())
	})
}

// answerAtOnce: a proxy waits up to 0.8 s before it answers, so that the one it stands for is
// faster. Here there is no such one. (The sysctl proxy_delay is not there in a user namespace.)
func answerAtOnce(b *nlsock.Batch, name string, index int) {
	for _, cache := range []struct {
		name   string
		family byte
	}{{"arp_cache", unix.AF_INET}, {"ndisc_cache", unix.AF_INET6}} {
		b.Add("the delay of answers on interface "+name, unix.RTM_SETNEIGHTBL, 0, []byte{cache.family, 0, 0, 0}, func(e *nlsock.Encoder) {
			e.String(ndtaName, cache.name)
			e.Nested(ndtaParms, func(e *nlsock.Encoder) error {
				e.Uint32(ndtpaIfIndex, uint32(index))
				e.Uint64(ndtpaProxyDelay, 0)
				return nil
			})
		})
		if cache.family == unix.AF_INET6 {
			b.MayFail() // a kernel without IPv6
		}
	}
}

// Attributes that golang.org/x/sys lacks (linux/neighbour.h).
const (
	ndtaName        = 1
	ndtaParms       = 6
	ndtpaIfIndex    = 1
	ndtpaProxyDelay = 13
)

// The priorities of what AdmitOnly adds, between those of source routes and of the table main
// (ip-rule(8)).
const (
	admitPriority  = 30000
	refusePriority = 30001
)

// AdmitOnly has the place route nothing that comes in by an interface, which need not be there
// yet, but what is from these addresses.
func (p *Place) AdmitOnly(name string, from []netip.Addr) error {
	var b nlsock.Batch
	families := map[uint8]bool{}
	for _, ip := range from {
		family := nlsock.FamilyOf(ip)
		addRule(&b, name, family, ip, admitPriority, unix.FR_ACT_TO_TBL)
		families[family] = true
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		addRule(&b, name, family, netip.Addr{}, refusePriority, unix.FR_ACT_BLACKHOLE)
		if !families[family] {
			b.MayFail() // a kernel without it
		}
	}
	_, err := b.Send(p.Route)
	return err
}

func addRule(b *nlsock.Batch, name string, family uint8, from netip.Addr, priority uint32, action byte) {
	header := []byte{family, 0, uint8(from.BitLen()), 0, 0, 0, 0, action, 0, 0, 0, 0} // struct fib_rule_hdr
	b.Add("the rule for what comes in by interface "+name, unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, header, func(e *nlsock.Encoder) {
		e.String(unix.FRA_IIFNAME, name)
		e.Uint32(unix.FRA_PRIORITY, priority)
		if from.IsValid() {
			e.Bytes(unix.FRA_SRC, from.AsSlice())
		}
		if action == unix.FR_ACT_TO_TBL {
			e.Uint32(unix.FRA_TABLE, unix.RT_TABLE_MAIN)
		}
	})
}
