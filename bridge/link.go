package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// batch is requests that travel together (rtnetlink(7)).
type batch struct{ nlsock.Batch }

// link is what is asked about a network interface.
type link struct {
	index, master, mtu int
	peer               int // index of a veth's other end, in that one's namespace
	name, kind, alias  string
	mac                net.HardwareAddr
	up                 bool
	hairpin            bool // of a bridge's port
}

const loIndex = 1 // in every namespace (net/core/dev.c, LOOPBACK_IFINDEX)

// Attributes that golang.org/x/sys lacks (linux/if_link.h).
const (
	ifAliasSize        = 256 // with the 0 at the end
	brportMode         = 4   // IFLA_BRPORT_MODE: hairpin
	inet6AddrGenMode   = 8   // IFLA_INET6_ADDR_GEN_MODE
	addrGenNone        = 1   // IN6_ADDR_GEN_MODE_NONE
	inetConf           = 1   // IFLA_INET_CONF
	devconfARPNotify   = 22  // IPV4_DEVCONF_ARP_NOTIFY (linux/ip.h)
	extFilterSkipStats = 8   // RTEXT_FILTER_SKIP_STATS
	brMultiBoolopt     = 46  // IFLA_BR_MULTI_BOOLOPT: struct br_boolopt_multi (linux/if_bridge.h)
	noLinkLocalLearn   = 1   // 1 << BR_BOOLOPT_NO_LL_LEARN (Linux 5.0)
)

func (b *batch) getLink(name string) {
	b.Add("looking for interface "+name, unix.RTM_GETLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, 0, 0, 0), func(e *nlsock.Encoder) {
		e.String(unix.IFLA_IFNAME, name)
		e.Uint32(unix.IFLA_EXT_MASK, extFilterSkipStats)
	})
}

// findLink returns nil when there is no interface of that name.
func findLink(c *nlsock.Socket, name string) (*link, error) {
	var b batch
	b.getLink(name)
	answers, err := b.Send(c)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, nil
	case err != nil:
		return nil, err
	case len(answers) == 0:
		return nil, fmt.Errorf("looking for interface %s: no answer", name)
	}
	return parseLink(answers[0].Data)
}

// portsOf are the interfaces that hang on a bridge.
func portsOf(c *nlsock.Socket, bridge *link) ([]*link, error) {
	return listLinks(c, "listing the ports of bridge "+bridge.name, func(e *nlsock.Encoder) {
		e.Uint32(unix.IFLA_MASTER, uint32(bridge.index))
		e.Uint32(unix.IFLA_EXT_MASK, extFilterSkipStats)
	}, func(l *link) bool { return l.master == bridge.index })
}

// listLinks lets the kernel choose where it can (the filters of Linux 4.6), and looks
// at what came itself.
func listLinks(c *nlsock.Socket, about string, filter func(*nlsock.Encoder), keep func(*link) bool) ([]*link, error) {
	entries, err := c.Dump(about, unix.RTM_GETLINK, nlsock.IfInfoMsg(unix.AF_UNSPEC, 0, 0, 0), filter)
	if err != nil {
		return nil, err
	}
	var links []*link
	for _, e := range entries {
		l, err := parseLink(e)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", about, err)
		}
		if keep(l) {
			links = append(links, l)
		}
	}
	return links, nil
}

func parseLink(data []byte) (*link, error) {
	if len(data) < unix.SizeofIfInfomsg {
		return nil, errors.New("the kernel's answer about an interface is too short")
	}
	l := &link{
		index: int(int32(binary.NativeEndian.Uint32(data[4:]))),
		up:    binary.NativeEndian.Uint32(data[8:])&unix.IFF_UP != 0,
	}
	d, err := netlink.NewAttributeDecoder(data[unix.SizeofIfInfomsg:])
	if err != nil {
		return nil, err
	}
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_IFNAME:
			l.name = d.String()
		case unix.IFLA_IFALIAS:
			l.alias = d.String()
		case unix.IFLA_ADDRESS:
			l.mac = d.Bytes()
		case unix.IFLA_MTU:
			l.mtu = int(d.Uint32())
		case unix.IFLA_MASTER:
			l.master = int(d.Uint32())
		case unix.IFLA_LINK:
			l.peer = int(d.Uint32())
		case unix.IFLA_LINKINFO:
			d.Nested(l.parseInfo)
		}
	}
	return l, d.Err()
}

func (l *link) parseInfo(d *netlink.AttributeDecoder) error {
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_INFO_KIND:
			l.kind = d.String()
		case unix.IFLA_INFO_SLAVE_DATA:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if d.Type() == brportMode {
						l.hairpin = d.Uint8() != 0
					}
				}
				return nil
			})
		}
	}
	return nil
}

// newBridge makes a bridge. With a MAC address of its own it keeps that when ports
// come and go, and udev does not give it another one.
func (b *batch) newBridge(name string, mac net.HardwareAddr) {
	b.Add("making bridge "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nlsock.IfInfoMsg(unix.AF_UNSPEC, 0, 0, 0), func(e *nlsock.Encoder) {
		e.String(unix.IFLA_IFNAME, name)
		e.Bytes(unix.IFLA_ADDRESS, mac)
		e.Nested(unix.IFLA_LINKINFO, func(e *nlsock.Encoder) error {
			e.Bytes(unix.IFLA_INFO_KIND, []byte("bridge"))
			return nil
		})
	})
}

// setMTU gives a bridge an MTU that it keeps: one that it is made with goes back to 1500
// with its last port (net/bridge/br_if.c, br_mtu_auto_adjust).
func (b *batch) setMTU(name string, mtu int) {
	b.Add("setting the MTU of bridge "+name, unix.RTM_NEWLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, 0, 0, 0), func(e *nlsock.Encoder) {
		e.String(unix.IFLA_IFNAME, name)
		e.Uint32(unix.IFLA_MTU, uint32(mtu))
	})
}

// learnFromPassed has a bridge learn MAC addresses only from what it passes on. What is
// for bridges themselves, such as 01:80:c2:00:00:0e of LLDP, comes by no firewall
// (net/bridge/br_input.c, br_handle_frame), and a container that sends it from another's
// address would get that one's packets.
func (b *batch) learnFromPassed(name string) {
	b.Add("configuring bridge "+name, unix.RTM_NEWLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, 0, 0, 0), func(e *nlsock.Encoder) {
		e.String(unix.IFLA_IFNAME, name)
		e.Nested(unix.IFLA_LINKINFO, func(e *nlsock.Encoder) error {
			e.Bytes(unix.IFLA_INFO_KIND, []byte("bridge"))
			e.Nested(unix.IFLA_INFO_DATA, func(e *nlsock.Encoder) error {
				value, mask := uint32(noLinkLocalLearn), uint32(noLinkLocalLearn)
				e.Bytes(brMultiBoolopt, binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, value), mask))
				return nil
			})
			return nil
		})
	})
}

// hasDriver is an error that wraps EOPNOTSUPP where the kernel cannot make interfaces of
// a kind. It is asked for one that it makes for nobody: the MAC address 0 is refused by
// the driver (br_validate, veth_validate).
func hasDriver(c *nlsock.Socket, kind string) error {
	var b batch
	b.Add("asking the kernel for the driver "+kind, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nlsock.IfInfoMsg(unix.AF_UNSPEC, 0, 0, 0), func(e *nlsock.Encoder) {
		e.Bytes(unix.IFLA_ADDRESS, make([]byte, 6))
		e.Nested(unix.IFLA_LINKINFO, func(e *nlsock.Encoder) error {
			e.Bytes(unix.IFLA_INFO_KIND, []byte(kind))
			return nil
		})
	})
	if _, err := b.Send(c); !errors.Is(err, unix.EADDRNOTAVAIL) {
		return err
	}
	return nil
}

// newIFB makes the interface that a container's own traffic is led through to be
// slowed down.
func (b *batch) newIFB(name string, mtu int, mac net.HardwareAddr) {
	b.Add("making interface "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nlsock.IfInfoMsg(unix.AF_UNSPEC, 0, unix.IFF_UP, unix.IFF_UP), func(e *nlsock.Encoder) {
		e.String(unix.IFLA_IFNAME, name)
		e.Bytes(unix.IFLA_ADDRESS, mac)
		e.Uint32(unix.IFLA_MTU, uint32(mtu))
		e.Uint32(unix.IFLA_TXQLEN, 0)
		e.Nested(unix.IFLA_LINKINFO, func(e *nlsock.Encoder) error {
			e.Bytes(unix.IFLA_INFO_KIND, []byte("ifb"))
			return nil
		})
	})
}

// setAlias writes the mark by which a link is known as ours.
func (b *batch) setAlias(name, alias string) {
	b.Add("marking interface "+name, unix.RTM_SETLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, 0, 0, 0), func(e *nlsock.Encoder) {
		e.String(unix.IFLA_IFNAME, name)
		e.Bytes(unix.IFLA_IFALIAS, []byte(alias))
	})
}

// containerUp sets the container's interface up and has it tell its neighbours its
// address when that appears, since the address may have had another owner.
func (b *batch) containerUp(name string, index int) {
	b.Add("setting interface "+name+" of the container up", unix.RTM_SETLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, index, unix.IFF_UP, unix.IFF_UP), func(e *nlsock.Encoder) {
		e.Nested(unix.IFLA_AF_SPEC, func(e *nlsock.Encoder) error {
			e.Nested(unix.AF_INET, func(e *nlsock.Encoder) error {
				e.Nested(inetConf, func(e *nlsock.Encoder) error {
					e.Uint32(devconfARPNotify, 1)
					return nil
				})
				return nil
			})
			return nil
		})
	})
}

// portUp sets a bridge's port up: with hairpin, so that a container reaches its own
// published ports. It needs no address of its own.
func (b *batch) portUp(name string) {
	b.Add("setting interface "+name+" up", unix.RTM_NEWLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, 0, unix.IFF_UP, unix.IFF_UP), func(e *nlsock.Encoder) {
		e.String(unix.IFLA_IFNAME, name)
		e.Nested(unix.IFLA_LINKINFO, func(e *nlsock.Encoder) error {
			e.Bytes(unix.IFLA_INFO_SLAVE_KIND, []byte("bridge"))
			e.Nested(unix.IFLA_INFO_SLAVE_DATA, func(e *nlsock.Encoder) error {
				e.Uint8(brportMode, 1)
				return nil
			})
			return nil
		})
	})
}

func (b *batch) noIPv6Address(name string) {
	b.Add("configuring interface "+name, unix.RTM_SETLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, 0, 0, 0), func(e *nlsock.Encoder) {
		e.String(unix.IFLA_IFNAME, name)
		e.Nested(unix.IFLA_AF_SPEC, func(e *nlsock.Encoder) error {
			e.Nested(unix.AF_INET6, func(e *nlsock.Encoder) error {
				e.Uint8(inet6AddrGenMode, addrGenNone)
				return nil
			})
			return nil
		})
	})
}

// setGroup puts an interface into a group, and deleteGroup removes all interfaces of one
// (rtnl_group_dellink, Linux 4.1).
func (b *batch) setGroup(name string, index int, group uint32) {
	b.Add("choosing interface "+name+" for removal", unix.RTM_SETLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, index, 0, 0), func(e *nlsock.Encoder) {
		e.Uint32(unix.IFLA_GROUP, group)
	})
}

func (b *batch) deleteGroup(about string, group uint32) {
	b.Add("removing interface "+about, unix.RTM_DELLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, 0, 0, 0), func(e *nlsock.Encoder) {
		e.Uint32(unix.IFLA_GROUP, group)
	})
}

// linkAddress is an address of an interface.
type linkAddress struct {
	index  int
	prefix netip.Prefix
}

// listAddresses are the addresses of one interface, or of all with index 0.
func listAddresses(c *nlsock.Socket, index int) ([]linkAddress, error) {
	const about = "listing the host's addresses"
	header := nlsock.IfAddrMsg(netip.Prefix{}, 0, index) // the kernel heeds index since Linux 4.20, with strict checking
	header[3] = 0
	entries, err := c.Dump(about, unix.RTM_GETADDR, header, nil)
	if err != nil {
		return nil, err
	}
	var addrs []linkAddress
	for _, data := range entries {
		a, err := parseAddress(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", about, err)
		}
		if a.prefix.IsValid() && (index == 0 || a.index == index) {
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

// hasAddress says whether an interface has an address, without a list of all that it
// has: by the local route of one of IPv4, which comes and goes with it; the kernel sets
// that of IPv6 a little later, but can be asked for the address itself.
func hasAddress(s *nlsock.Socket, index int, ip netip.Addr) (bool, error) {
	if ip.Is4() {
		r, err := lookUp(s, ip)
		return r != nil && r.kind == unix.RTN_LOCAL && r.out == index, err
	}
	var b batch
	b.Add("looking for address "+ip.String(), unix.RTM_GETADDR, 0, nlsock.IfAddrMsg(netip.PrefixFrom(ip, 0), 0, index), func(e *nlsock.Encoder) {
		e.Bytes(unix.IFA_ADDRESS, ip.AsSlice())
	})
	_, err := b.Send(s)
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return false, nil
	}
	return err == nil, err
}

func parseAddress(data []byte) (linkAddress, error) {
	if len(data) < unix.SizeofIfAddrmsg {
		return linkAddress{}, errors.New("the kernel's answer about an address is too short")
	}
	a := linkAddress{index: int(binary.NativeEndian.Uint32(data[4:]))}
	d, err := netlink.NewAttributeDecoder(data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return a, err
	}
	for d.Next() {
		// IFA_LOCAL comes last in IPv4 and does not come in IPv6; of a point-to-point link
		// IFA_ADDRESS is the other end.
		if d.Type() == unix.IFA_LOCAL || d.Type() == unix.IFA_ADDRESS && !a.prefix.IsValid() {
			if ip, ok := netip.AddrFromSlice(d.Bytes()); ok {
				a.prefix = netip.PrefixFrom(ip, int(data[1]))
			}
		}
	}
	return a, d.Err()
}
