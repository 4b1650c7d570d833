package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/nlsock"
)

// The limits are those of the plugin bandwidth, with its numbers: what the container
// receives waits in a token bucket (tbf) on its interface on the host; what it sends
// is led from there through an interface of type ifb, and waits in the bucket of that.

// Numbers of linux/pkt_sched.h, pkt_cls.h and tc_act/tc_mirred.h.
const (
	sizeofTcMsg     = 20
	tcRoot          = 0xffffffff // TC_H_ROOT
	tcIngress       = 0xfffffff1 // TC_H_INGRESS
	ingressHandle   = 0xffff << 16
	tbfHandle       = 1 << 16
	tcaKind         = 1
	tcaOptions      = 2
	tbfParms        = 1
	tbfRate64       = 4
	u32ClassID      = 1
	u32Selector     = 5
	u32Action       = 7
	u32Terminal     = 1
	actKind         = 1
	actOptions      = 2
	mirredParms     = 2
	actStolen       = 4
	mirredRedirect  = 1
	ticksPerMicro   = 15.625 // of the packet scheduler's clock, since Linux 2.6.31 (/proc/net/psched)
	latencyMicros   = 25000
	microsPerSecond = 1000000
)

// bucket is a token bucket as the kernel has it: bytes and bytes per second.
type bucket struct {
	rate          uint64
	limit, buffer uint32
}

func newBucket(rateBits, burstBits uint64) bucket {
	rate, burst := rateBits/8, uint32(burstBits/8)
	return bucket{
		rate:   rate,
		limit:  uint32(float64(rate)*latencyMicros/microsPerSecond) + burst,
		buffer: uint32(float64(uint32(float64(burst)*microsPerSecond/float64(rate))) * ticksPerMicro),
	}
}

// limitBandwidth sets the limits that were asked for.
func (n *Network) limitBandwidth(a *conf.Attachment, p *link) error {
	var b batch
	if a.Bandwidth.IngressRate > 0 {
		b.addBucket(p, newBucket(a.Bandwidth.IngressRate, a.Bandwidth.IngressBurst))
	}
	if a.Bandwidth.EgressRate > 0 {
		ifb, err := n.makeIFB(a.Key, p.mtu)
		if err != nil {
			return err
		}
		b.addBucket(ifb, newBucket(a.Bandwidth.EgressRate, a.Bandwidth.EgressBurst))
		b.redirect(p, ifb)
	}
	if _, err := b.Send(n.Host.Route); err != nil {
		return fmt.Errorf("limiting the bandwidth: %w", err)
	}
	return nil
}

func (n *Network) makeIFB(k conf.Key, mtu int) (*link, error) {
	var b batch
	b.newIFB(ifbName(k), mtu, ifbMAC(k))
	b.setAlias(ifbName(k), portAlias(k))
	if _, err := b.Send(n.Host.Route); errors.Is(err, unix.EOPNOTSUPP) {
		return nil, conf.Mendf(conf.Errorf(conf.ErrNetwork, "limiting what the container sends: %v", err), "load the kernel module: modprobe ifb")
	} else if err != nil {
		return nil, fmt.Errorf("limiting what the container sends: %w", err)
	}
	ifb, err := findLink(n.Host.Route, ifbName(k))
	if err == nil && ifb == nil {
		err = fmt.Errorf("interface %s is gone as soon as it was made", ifbName(k))
	}
	return ifb, err
}

// tcmsg is the header of traffic control messages.
func tcmsg(index int, handle, parent, info uint32) []byte {
	b := make([]byte, 4, sizeofTcMsg)
	for _, v := range []uint32{uint32(index), handle, parent, info} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

func (b *batch) addBucket(l *link, t bucket) {
	b.Add("limiting the bandwidth of interface "+l.name, unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, tcmsg(l.index, tbfHandle, tcRoot, 0), func(e *nlsock.Encoder) {
		e.String(tcaKind, "tbf")
		e.Nested(tcaOptions, func(e *nlsock.Encoder) error {
			e.Bytes(tbfParms, t.qopt())
			if t.rate > 1<<32-1 {
				e.Uint64(tbfRate64, t.rate)
			}
			return nil
		})
	})
}

// qopt is struct tc_tbf_qopt: two struct tc_ratespec of 12 bytes, the second one of a
// peak rate that is not used, limit, buffer, mtu.
func (t bucket) qopt() []byte {
	const ratespec = 12
	b := make([]byte, 3*ratespec)
	binary.NativeEndian.PutUint32(b[8:], uint32(t.rate))
	binary.NativeEndian.PutUint32(b[2*ratespec:], t.limit)
	binary.NativeEndian.PutUint32(b[2*ratespec+4:], t.buffer)
	return b
}

// redirect leads all that an interface receives out by another one.
func (b *batch) redirect(from, to *link) {
	b.Add("taking in what interface "+from.name+" receives", unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, tcmsg(from.index, ingressHandle, tcIngress, 0), func(e *nlsock.Encoder) {
		e.String(tcaKind, "ingress")
	})
	const first, all = 1 << 16, unix.ETH_P_ALL // priority, protocol in network order
	info := uint32(first | (all<<8|all>>8)&0xffff)
	b.Add("leading what interface "+from.name+" receives through "+to.name, unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL, tcmsg(from.index, 0, ingressHandle, info), func(e *nlsock.Encoder) {
		e.String(tcaKind, "u32")
		e.Nested(tcaOptions, func(e *nlsock.Encoder) error {
			e.Uint32(u32ClassID, tbfHandle|1)
			e.Bytes(u32Selector, everything())
			e.Nested(u32Action, func(e *nlsock.Encoder) error {
				e.Nested(1, func(e *nlsock.Encoder) error { return mirred(e, to.index) })
				return nil
			})
			return nil
		})
	})
}

// everything is struct tc_u32_sel with one key that matches any packet.
func everything() []byte {
	b := make([]byte, 32)
	b[0], b[2] = u32Terminal, 1
	return b
}

// mirred is the action that redirects, with struct tc_mirred.
func mirred(e *nlsock.Encoder, index int) error {
	b := make([]byte, 28)
	binary.NativeEndian.PutUint32(b[8:], actStolen)
	binary.NativeEndian.PutUint32(b[20:], mirredRedirect)
	binary.NativeEndian.PutUint32(b[24:], uint32(index))
	e.String(actKind, "mirred")
	e.Nested(actOptions, func(e *nlsock.Encoder) error {
		e.Bytes(mirredParms, b)
		return nil
	})
	return nil
}

// bucketOf is the token bucket of an interface; nil when it has none.
func bucketOf(c *nlsock.Socket, l *link) (*bucket, error) {
	var b batch
	b.Add("reading the bandwidth limit of interface "+l.name, unix.RTM_GETQDISC, unix.NLM_F_ECHO, tcmsg(l.index, 0, tcRoot, 0), nil) // it answers to nobody else
	answers, err := b.Send(c)
	if errors.Is(err, unix.ENOENT) || err == nil && len(answers) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseBucket(answers[0].Data)
}

func parseBucket(data []byte) (*bucket, error) {
	if len(data) < sizeofTcMsg {
		return nil, errors.New("the kernel's answer about a bandwidth limit is too short")
	}
	d, err := netlink.NewAttributeDecoder(data[sizeofTcMsg:])
	if err != nil {
		return nil, err
	}
	var t *bucket
	for d.Next() {
		switch {
		case d.Type() == tcaKind && d.String() == "tbf":
			t = &bucket{}
		case d.Type() == tcaOptions && t != nil:
			d.Nested(t.parse)
		}
	}
	return t, d.Err()
}

func (t *bucket) parse(d *netlink.AttributeDecoder) error {
	for d.Next() {
		switch b := d.Bytes(); {
		case d.Type() == tbfParms && len(b) >= 36:
			t.rate = max(t.rate, uint64(binary.NativeEndian.Uint32(b[8:])))
			t.limit, t.buffer = binary.NativeEndian.Uint32(b[24:]), binary.NativeEndian.Uint32(b[28:])
		case d.Type() == tbfRate64 && len(b) >= 8:
			t.rate = binary.NativeEndian.Uint64(b)
		}
	}
	return nil
}
