package nat

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// hostInterface is the interface that the host reaches the container by, the bridge or
// the veth: that of the route to the container. Empty when there is none, or when the
// route has a gateway: an interface of the wider network is not the attachment's. That it cannot be found out is an error: the ports would work
// from everywhere but from the container itself and the host's 127.0.0.1.
func hostInterface(p Published) (string, error) {
	for _, f := range families() {
		ip := p.target(f)
		if !ip.IsValid() {
			continue
		}
		name, err := directLink(ip)
		if err != nil {
			return "", conf.Errorf(conf.ErrNetwork, "looking for the host's interface towards container address %s: %v", ip, err)
		}
		if name != "" {
			return name, nil
		}
	}
	return "", nil
}

// directLink is the interface of the route to an address, without a gateway; empty
// when there is none.
func directLink(ip netip.Addr) (string, error) {
	routes, err := netlink.RouteGet(net.IP(ip.AsSlice()))
	if err != nil && !slices.ContainsFunc(noRoute, func(e unix.Errno) bool { return errors.Is(err, e) }) {
		return "", err
	}
	if len(routes) == 0 || routes[0].Gw != nil || routes[0].Type != unix.RTN_UNICAST {
		return "", nil
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	var gone netlink.LinkNotFoundError
	switch {
	case errors.As(err, &gone):
		return "", nil
	case err != nil:
		return "", err
	case link.Attrs().Flags&net.FlagLoopback != 0:
		return "", nil
	}
	return link.Attrs().Name, nil
}

// noRoute is how the kernel says that it has no route, and how each type of route
// says that nothing goes there (ip-route(8): unreachable, prohibit, blackhole), and
// that it lacks the address family.
var noRoute = []unix.Errno{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.ESRCH, unix.ENOENT, unix.ENODEV, unix.EAFNOSUPPORT, unix.EOPNOTSUPP}

// needsLocalnet says whether a mapping shall be reached over 127.0.0.1. Without
// SNAT it cannot: the container would answer to itself.
func (in intent) needsLocalnet() bool {
	return in.SNAT && in.hostIf != "" && slices.ContainsFunc(in.forwards, func(f forward) bool {
		return f.family() == ipv4 && (f.wide() || f.host.IsLoopback())
	})
}

func localnetPath(hostIf string) string {
	return filepath.Join("/proc/sys/net/ipv4/conf", hostIf, "route_localnet")
}

// allowLocalnet has the host's interface accept answers to 127.0.0.1.
func allowLocalnet(in intent) error {
	if !in.needsLocalnet() {
		return nil
	}
	path := localnetPath(in.hostIf)
	// Reading first lets this work where /proc/sys is read-only and the host has
	// set it already.
	if now, err := os.ReadFile(path); err == nil && len(now) > 0 && now[0] == '1' {
		return nil
	}
	if err := os.WriteFile(path, []byte("1"), 0o644); err != nil {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "publishing ports over 127.0.0.1: %v", err), "set net.ipv4.conf.%s.route_localnet=1 on the host, or portmap.snat to false", in.hostIf)
	}
	return nil
}

func checkLocalnet(in intent) error {
	if !in.needsLocalnet() {
		return nil
	}
	now, err := os.ReadFile(localnetPath(in.hostIf))
	if err != nil {
		return fmt.Errorf("reading route_localnet: %w", err)
	}
	if len(now) == 0 || now[0] != '1' {
		return fmt.Errorf("net.ipv4.conf.%s.route_localnet is not 1, so published ports do not answer over 127.0.0.1", in.hostIf)
	}
	return nil
}

// localnetIsOurs says whether route_localnet of the interface is on and ours to take
// back: on a bridge of a built-in network nobody else sets it. On any
// other, the previous value cannot be told apart from ours.
func localnetIsOurs(hostIf string) bool {
	if !strings.HasPrefix(hostIf, conf.BridgePrefix) {
		return false
	}
	now, err := os.ReadFile(localnetPath(hostIf))
	return err == nil && len(now) > 0 && now[0] == '1'
}

// forbidLocalnet takes back what allowLocalnet did for the last owner on the
// interface, and returns what undoes that. While it is on, containers that are left
// on the bridge would reach the host's services on 127.0.0.1 (CVE-2020-8558) as soon
// as the guard is gone.
func forbidLocalnet(hostIf string) (undo func()) {
	if !localnetIsOurs(hostIf) || os.WriteFile(localnetPath(hostIf), []byte("0"), 0o644) != nil {
		return func() {}
	}
	return func() { _ = os.WriteFile(localnetPath(hostIf), []byte("1"), 0o644) }
}

// forbidLocalnets is forbidLocalnet for every bridge of a built-in network, unless
// somebody publishes by nftables, whose guard is for all interfaces.
func forbidLocalnets() (undo func()) {
	var undone []func()
	if others, _, err := ownersBut(conf.Key{}, ""); err == nil && others {
		return func() {}
	}
	bridges, _ := filepath.Glob(localnetPath(conf.BridgePrefix + "*"))
	for _, path := range bridges {
		undone = append(undone, forbidLocalnet(filepath.Base(filepath.Dir(path))))
	}
	return func() {
		for _, undo := range undone {
			undo()
		}
	}
}
