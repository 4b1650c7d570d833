package supervisor

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// localAddress is where a socket of a published port is bound.
type localAddress struct {
	protocol conf.Protocol
	address  netip.AddrPort
}

// boundSockets is where the listening and datagram sockets of this process are
// bound, as the kernel says: what CHECK can rely on.
func boundSockets() (map[localAddress]bool, error) {
	folder, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("open descriptors: %w", err)
	}
	defer folder.Close()
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("open descriptors: %w", err)
	}
	bound := make(map[localAddress]bool)
	for _, name := range names {
		if fd, err := strconv.Atoi(name); err == nil {
			if at, ok := boundAt(fd); ok {
				bound[at] = true
			}
		}
	}
	return bound, nil
}

// boundAt is where a descriptor is bound; false for a connection and for what is
// no socket at all.
func boundAt(fd int) (at localAddress, ok bool) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return at, false
	}
	at.protocol = conf.UDP
	if kind == unix.SOCK_STREAM {
		at.protocol = conf.TCP
		if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens == 0 {
			return at, false
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return at, false
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		at.address = netip.AddrPortFrom(netip.AddrFrom4(name.Addr), uint16(name.Port))
	case *unix.SockaddrInet6:
		at.address = netip.AddrPortFrom(netip.AddrFrom16(name.Addr), uint16(name.Port))
	default:
		return at, false
	}
	return at, true
}
