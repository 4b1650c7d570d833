package forward

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// This file keeps pacing off the connections that never leave the kernel. BBR and
// its like send by a timer for each packet (tcp_bbr(4) wants pacing), which between
// two sockets of one kernel, where nothing is lost and nobody competes, halves the
// throughput. Where such an algorithm is the default, the sockets inside use Reno,
// the only one that every kernel has; the service's own do by the "congctl" of
// their route, see [Namespace]. Clients that are near, be it on the loopback, in
// another namespace or next to this host, have Reno, too; connections to all others
// keep the host's choice.

// unpaced is Reno (net.ipv4.tcp_available_congestion_control).
const unpaced = "reno"

// paces says that an algorithm sends by a timer.
func paces(algorithm string) bool { return strings.HasPrefix(algorithm, "bbr") }

// congestion is the algorithm that a socket has or its connections will have.
func congestion(fd int32) string {
	name, err := unix.GetsockoptString(int(fd), unix.SOL_TCP, unix.TCP_CONGESTION)
	if err != nil {
		return ""
	}
	return name
}

func setCongestion(fd int32, algorithm string) unix.Errno {
	return sysSetString(fd, unix.SOL_TCP, unix.TCP_CONGESTION, algorithm)
}

// unpace has a listener's connections begin without pacing, since it cannot be taken
// off later. It returns what clients elsewhere are to be given back; nothing where
// the host does not pace.
func unpace(listener int32) (forOthers string) {
	algorithm := congestion(listener)
	// What may not be chosen could not be given back.
	if !paces(algorithm) || setCongestion(listener, algorithm) != 0 || setCongestion(listener, unpaced) != 0 {
		return ""
	}
	return algorithm
}

// nearest is the most that the handshake of a client takes who is near: 1 to 5 µs
// between two namespaces of one kernel (41 at the most of 180), as it all happens in
// one go.
const nearest = 50 * time.Microsecond

// near says that there is nothing on the way to the other end that pacing would be for. Of
// the connection's trips the shortest counts, which is mostly its handshake's.
func near(fd int32) bool {
	_, trip := sysTCPInfo(fd)
	return trip > 0 && trip < nearest
}

// probePacing finds out whether new sockets inside would pace.
func (w *worker) probePacing() {
	fd, errno := w.sockets.socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if errno == 0 {
		w.paced = paces(congestion(fd))
		sysClose(fd)
	}
}

// hostPacing is what paces new sockets of the calling thread's namespace, if anything does that
// can be given back to them.
func hostPacing() string {
	fd, errno := sysSocket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return ""
	}
	defer sysClose(fd)
	return unpace(fd)
}
