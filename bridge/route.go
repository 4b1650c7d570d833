package bridge

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// route is a unicast route of the main table, or what a look-up found.
type route struct {
	dst     netip.Prefix
	gateway netip.Addr
	out     int // index; 0 of a route with several ways
	kind    uint8
}

// outside is an address of each family that nobody has (RFC 5737, RFC 3849, RFC 9637), so
// that the route to it is the way to the Internet; not one of own networks, which were made
// of these for an example or a test.
func outside(family uint8, own ...netip.Prefix) netip.Addr {
	candidates := []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("3fff::1")}
	if family == unix.AF_INET {
		candidates = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")}
	}
	for _, address := range candidates {
		if !slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Contains(address) }) {
			return address
		}
	}
	return candidates[0]
}

const rtmFibMatch = 0x2000 // RTM_F_FIB_MATCH: the route itself and not what became of it (Linux 4.13)

// lookUp is the route that the kernel takes to an address; nil when there is none.
// It costs the same whatever is in the tables.
func lookUp(c *nlsock.Socket, to netip.Addr) (*route, error) {
	var b batch
	b.Add("looking for the route to "+to.String(), unix.RTM_GETROUTE, 0, func() []byte {
		h := nlsock.RtMsg(nlsock.FamilyOf(to), uint8(to.BitLen()), rtmFibMatch)
		h[4], h[5], h[7] = 0, 0, 0
		return h
	}(), func(e *nlsock.Encoder) { e.Bytes(unix.RTA_DST, to.AsSlice()) })
	answers, err := b.Send(c)
	switch {
	case slices.ContainsFunc(noRoute, func(e unix.Errno) bool { return errors.Is(err, e) }):
		return nil, nil
	case err != nil:
		return nil, err
	case len(answers) == 0:
		return nil, nil
	}
	return parseRoute(answers[0].Data)
}

// noRoute is how the kernel says that it has no route, and how each type of route
// says that nothing goes there (ip-route(8): unreachable, prohibit, blackhole), and
// that it lacks the address family.
var noRoute = []unix.Errno{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.ESRCH, unix.ENOENT, unix.ENODEV, unix.EAFNOSUPPORT, unix.EOPNOTSUPP}

// listRoutes are the unicast routes of the host's main table, of both families.
func listRoutes(c *nlsock.Socket) ([]route, error) {
	const about = "listing the host's routes"
	var routes []route
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		header := nlsock.RtMsg(family, 0, 0)
		header[5], header[6], header[7] = 0, 0, 0
		entries, err := c.Dump(about, unix.RTM_GETROUTE, header, nil)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.ENOENT) {
			continue // a kernel without the family, or a namespace that has never had a route of it
		}
		if err != nil {
			return nil, err
		}
		for _, data := range entries {
			r, err := parseRoute(data)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", about, err)
			}
			if r.kind == unix.RTN_UNICAST && data[4] == unix.RT_TABLE_MAIN {
				routes = append(routes, *r)
			}
		}
	}
	return routes, nil
}

func parseRoute(data []byte) (*route, error) {
	if len(data) < unix.SizeofRtMsg {
		return nil, errors.New("the kernel's answer about a route is too short")
	}
	zero := netip.IPv4Unspecified()
	if data[0] == unix.AF_INET6 {
		zero = netip.IPv6Unspecified()
	}
	r := &route{dst: netip.PrefixFrom(zero, int(data[1])), kind: data[7]}
	d, err := netlink.NewAttributeDecoder(data[unix.SizeofRtMsg:])
	if err != nil {
		return nil, err
	}
	for d.Next() {
		switch d.Type() {
		case unix.RTA_DST:
			if ip, ok := netip.AddrFromSlice(d.Bytes()); ok {
				r.dst = netip.PrefixFrom(ip, int(data[1]))
			}
		case unix.RTA_GATEWAY:
			r.gateway, _ = netip.AddrFromSlice(d.Bytes())
		case unix.RTA_OIF:
			r.out = int(d.Uint32())
		}
	}
	return r, d.Err()
}

// defaultMetric is that of a route which has to win over one that is there: IPv6
// routes have 1024 unless they say otherwise, and a second one of the same metric would
// share the traffic. In IPv4 the route added last wins.
func defaultMetric(gateway netip.Addr, wins bool) uint32 {
	if gateway.Is6() && wins {
		return 512
	}
	return 0
}

// addDefaultRoute adds the route to everywhere. With wins it goes before those that
// are there.
func (b *batch) addDefaultRoute(gateway netip.Addr, index int, wins, unpaced bool) {
	flags := uint16(unix.NLM_F_CREATE)
	if !wins {
		flags |= unix.NLM_F_EXCL
	}
	b.Add("setting the default route over "+gateway.String(), unix.RTM_NEWROUTE, flags, nlsock.RtMsg(nlsock.FamilyOf(gateway), 0, 0), func(e *nlsock.Encoder) {
		e.Bytes(unix.RTA_GATEWAY, gateway.AsSlice())
		e.Uint32(unix.RTA_OIF, uint32(index))
		if metric := defaultMetric(gateway, wins); metric > 0 {
			e.Uint32(unix.RTA_PRIORITY, metric)
		}
		if unpaced {
			nlsock.Unpaced(e)
		}
	})
}

// leadsElsewhere says that a look-up found a default route, and not that one. A more
// special route is the container's own business, and may well lead the same way.
func (r *route) leadsElsewhere(gateway netip.Addr, index int) bool {
	return r.dst.Bits() == 0 && (r.gateway != gateway || r.out != index)
}
