package nat

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// hostInterface is the interface that the host reaches the container by: the one
// given, else that of the route to the container. Empty when there is none, or
// when the route has a gateway: an interface of the wider network is not the
// attachment's.
func hostInterface(p Published) string {
	if p.HostIf != "" {
		return p.HostIf
	}
	for _, f := range families() {
		ip := p.target(f)
		if !ip.IsValid() {
			continue
		}
		routes, err := netlink.RouteGet(net.IP(ip.AsSlice()))
		if err != nil || len(routes) == 0 || routes[0].Gw != nil || routes[0].Type != unix.RTN_UNICAST {
			continue
		}
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err == nil && link.Attrs().Flags&net.FlagLoopback == 0 {
			return link.Attrs().Name
		}
	}
	return ""
}

// needsLocalnet says whether a mapping can be reached over 127.0.0.1. Without
// SNAT it cannot: the container would answer to itself.
func needsLocalnet(p Published, fs []forward) bool {
	if !p.SNAT {
		return false
	}
	for _, f := range fs {
		if f.family() == ipv4 && (f.wide() || f.host.IsLoopback()) {
			return true
		}
	}
	return false
}

func localnetPath(hostIf string) string {
	return filepath.Join("/proc/sys/net/ipv4/conf", hostIf, "route_localnet")
}

// allowLocalnet has the host's interface accept answers to 127.0.0.1.
func allowLocalnet(p Published, fs []forward, hostIf string) error {
	if hostIf == "" || !needsLocalnet(p, fs) {
		return nil
	}
	path := localnetPath(hostIf)
	// Reading first lets this work where /proc/sys is read-only and the host has
	// set it already.
	if now, err := os.ReadFile(path); err == nil && len(now) > 0 && now[0] == '1' {
		return nil
	}
	if err := os.WriteFile(path, []byte("1"), 0o644); err != nil {
		return conf.Errorf(conf.ErrNetwork, "publishing ports over 127.0.0.1: %v; set net.ipv4.conf.%s.route_localnet=1 on the host, or portmap.snat to false", err, hostIf)
	}
	return nil
}

func checkLocalnet(p Published, fs []forward, hostIf string) error {
	if hostIf == "" || !needsLocalnet(p, fs) {
		return nil
	}
	now, err := os.ReadFile(localnetPath(hostIf))
	if err != nil {
		return fmt.Errorf("reading route_localnet: %w", err)
	}
	if len(now) == 0 || now[0] != '1' {
		return fmt.Errorf("net.ipv4.conf.%s.route_localnet is not 1, so published ports do not answer over 127.0.0.1", hostIf)
	}
	return nil
}

// settle is what both backends do once the rules are there: the sysctl, and the
// conversations that the kernel still sends where the port pointed before.
func settle(p Published, fs, done []forward, hostIf string) error {
	if err := allowLocalnet(p, fs, hostIf); err != nil {
		return err
	}
	return forgetElsewhere(done)
}
