package driver

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// This file is what a driver has of the host, which changes: a network goes and another one
// comes, as a notebook is carried about.

// resolvConf has the host's name servers (resolv.conf(5)).
const resolvConf = "/etc/resolv.conf"

// Version is that of a file; zero when there is none.
type Version struct {
	inode   uint64
	size    int64
	changed unix.Timespec
}

// Resolver is the version of the host's resolv.conf: another one may make a difference to
// OfHost. It costs little to ask.
func (c *Command) Resolver() Version {
	var st unix.Stat_t
	if unix.Stat(resolvConf, &st) != nil {
		return Version{}
	}
	return Version{st.Ino, st.Size, st.Ctim}
}

// outbound are the addresses that connections go out from at the moment; empty: any.
func (c *Command) outbound() (v4, v6 string, err error) {
	if v4, err = outboundAddress("rootless.outboundAddr", c.Outbound4, netip.Addr.Is4); err != nil {
		return "", "", err
	}
	v6, err = outboundAddress("rootless.outboundAddr6", c.Outbound6, netip.Addr.Is6)
	return v4, v6, err
}

// OfHost is what the driver would have of the host for good if it were started now: when
// it is not what it was at its start, another driver has to take its place.
func (c *Command) OfHost() string {
	v4, v6, err := c.outbound()
	if err != nil {
		v4 = err.Error()
	}
	return v4 + " " + v6 + " " + Of(c.Driver).ofHost(c)
}

// Reach is where the host gets by IPv6.
type Reach struct {
	Everywhere bool
	Only       []netip.Prefix // else
}

// anywhere is an address of the global unicast ones (RFC 4291, section 2.5.4), of which nobody is asked
// anything.
var anywhere = unix.SockaddrInet6{Addr: netip.MustParseAddr("2000::1").As16(), Port: 9}

// mostReached is how many networks are told apart: who has routes to more gets everywhere.
const mostReached = 64

// ReachByIPv6 is where what leaves gets at the moment.
func (c *Command) ReachByIPv6() Reach {
	_, from, _ := c.outbound()
	if getsAnywhere(from) {
		return Reach{Everywhere: true}
	}
	var r Reach
	of := &netlink.Route{Type: unix.RTN_UNICAST}
	err := netlink.RouteListFilteredIter(unix.AF_INET6, of, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE, func(route netlink.Route) bool {
		if p, ok := reached(&route); ok {
			r.Only = append(r.Only, p)
		}
		return len(r.Only) <= mostReached
	})
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) || len(r.Only) > mostReached {
		return Reach{Everywhere: true}
	}
	slices.SortFunc(r.Only, netip.Prefix.Compare)
	return r
}

// Equal says that both are the same.
func (r Reach) Equal(other Reach) bool {
	return r.Everywhere == other.Everywhere && slices.Equal(r.Only, other.Only)
}

// reached is the network that a route leads to, beside this host and its links.
func reached(route *netlink.Route) (netip.Prefix, bool) {
	if route.Dst == nil {
		return netip.Prefix{}, false
	}
	bits, _ := route.Dst.Mask.Size()
	address, ok := netip.AddrFromSlice(route.Dst.IP)
	if !ok || !address.Is6() || !address.IsGlobalUnicast() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(address, bits), true
}

// getsAnywhere asks the kernel, which also knows of rules and source addresses (udp(7): connect
// sends nothing). There may be a way from one address only; empty: any.
func getsAnywhere(from string) bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return !errors.Is(err, unix.EAFNOSUPPORT)
	}
	defer unix.Close(fd)
	if address, err := netip.ParseAddr(from); err == nil {
		_ = unix.Bind(fd, &unix.SockaddrInet6{Addr: address.As16()})
	}
	return unix.Connect(fd, &anywhere) == nil
}

// TellsConnections says that a container hears by ICMPv6 why a connection cannot be made.
// slirp4netns says so from an address that is not routed (RouteErrors in rootless/netns), and to nobody who
// is masqueraded.
func (c *Command) TellsConnections(private bool) bool {
	return c.Driver == relay{}.Name() || c.Driver == slirp4netns{}.Name() && private
}

// Same says that a container that asks for the other can do with this one.
func (c *Command) Same(other *Command) bool {
	return c.Path == other.Path && slices.Equal(c.Args, other.Args) && c.Outbound4 == other.Outbound4 && c.Outbound6 == other.Outbound6
}

// FollowsHost says that OfHost can change.
func (c *Command) FollowsHost() bool {
	return c.Outbound4+c.Outbound6 != "" || Of(c.Driver).ofHost(c) != ""
}
