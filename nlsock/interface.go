package nlsock

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// This file has the messages about interfaces and their addresses.

// Veth is a pair: the host's end is here, a port of a bridge unless Master is 0, and the other
// one is made in the container's namespace.
type Veth struct {
	Host, Container       string
	HostMAC, ContainerMAC net.HardwareAddr
	MTU, Master           int
	Namespace             int // descriptor
	// OneQueue is for each end to have one queue and never more. Else it has as many as there are
	// processors, of which the kernel uses one until it is told otherwise, and waits for a grace
	// period of RCU for each end to take the others out of use (veth_init_queues in
	// drivers/net/veth.c).
	OneQueue bool
}

// NewVeth makes it.
func (b *Batch) NewVeth(v Veth) {
	about := fmt.Sprintf("making interface %s in the container, and %s on the host", v.Container, v.Host)
	b.Add(about, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, IfInfoMsg(unix.AF_UNSPEC, 0, 0, 0), func(e *Encoder) {
		e.String(unix.IFLA_IFNAME, v.Host)
		e.Bytes(unix.IFLA_ADDRESS, v.HostMAC)
		e.Uint32(unix.IFLA_MTU, uint32(v.MTU))
		v.queues(e)
		if v.Master > 0 {
			e.Uint32(unix.IFLA_MASTER, uint32(v.Master))
		}
		e.Nested(unix.IFLA_LINKINFO, func(e *Encoder) error {
			e.Bytes(unix.IFLA_INFO_KIND, []byte("veth"))
			e.Nested(unix.IFLA_INFO_DATA, func(e *Encoder) error {
				e.Do(vethInfoPeer, v.peer)
				return nil
			})
			return nil
		})
	})
}

const vethInfoPeer = 1 // VETH_INFO_PEER (linux/veth.h)

func (v Veth) peer() ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	e.String(unix.IFLA_IFNAME, v.Container)
	e.Bytes(unix.IFLA_ADDRESS, v.ContainerMAC)
	e.Uint32(unix.IFLA_MTU, uint32(v.MTU))
	v.queues(e)
	e.Uint32(unix.IFLA_NET_NS_FD, uint32(v.Namespace))
	b, err := e.Encode()
	return append(IfInfoMsg(unix.AF_UNSPEC, 0, 0, 0), b...), err
}

func (v Veth) queues(e *Encoder) {
	if v.OneQueue {
		e.Uint32(unix.IFLA_NUM_TX_QUEUES, 1)
		e.Uint32(unix.IFLA_NUM_RX_QUEUES, 1)
	}
}

// LinkUp sets an interface up.
func (b *Batch) LinkUp(name string, index int) {
	b.Add("setting interface "+name+" up", unix.RTM_SETLINK, 0, IfInfoMsg(unix.AF_UNSPEC, index, unix.IFF_UP, unix.IFF_UP), nil)
}

// DeleteLink removes an interface.
func (b *Batch) DeleteLink(name string, index int) {
	b.Add("removing interface "+name, unix.RTM_DELLINK, 0, IfInfoMsg(unix.AF_UNSPEC, index, 0, 0), nil)
}

// AddAddress puts an address on an interface; one of IPv6 is usable at once, without
// duplicate address detection: who gets it we know.
func (b *Batch) AddAddress(p netip.Prefix, name string, index int) {
	b.addressMessage(fmt.Sprintf("setting address %s on interface %s", p, name), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, p, index)
}

// DeleteAddress removes one.
func (b *Batch) DeleteAddress(p netip.Prefix, name string, index int) {
	b.addressMessage(fmt.Sprintf("removing address %s of interface %s", p, name), unix.RTM_DELADDR, 0, p, index)
}

func (b *Batch) addressMessage(about string, kind, flags uint16, p netip.Prefix, index int) {
	var how uint8
	if p.Addr().Is6() {
		how = unix.IFA_F_NODAD
	}
	b.Add(about, kind, flags, IfAddrMsg(p, how, index), func(e *Encoder) {
		e.Bytes(unix.IFA_LOCAL, p.Addr().AsSlice())
		e.Bytes(unix.IFA_ADDRESS, p.Addr().AsSlice())
		if last := LastAddress(p); p.Addr().Is4() && p.Bits() < 31 {
			e.Bytes(unix.IFA_BROADCAST, last.AsSlice())
		}
	})
}

// LastAddress is the highest address of a network.
func LastAddress(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}
