package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// listener is a socket of the host that waits for connections or datagrams.
type listener struct {
	slot
	v6only bool
	inode  uint32
}

// hostSocketsFree is an error of code [conf.ErrPortInUse] when a socket of this
// network namespace waits on one of the ports: a translation would take its
// traffic away without a word.
//
// It asks the kernel for its listening sockets (sock_diag) rather than trying to
// bind. That costs the same for one port and for a thousand, does not disturb a
// service that starts just now, and does not mistake an outgoing connection whose
// local port happens to be the same for a listener. A socket that is bound
// between this question and the transaction goes unnoticed, as with any probe.
//
// The sockets that the container's own engine holds on its ports are no obstacle,
// see [reservations]; it returns their inodes.
func hostSocketsFree(p Published, fs []forward) (reserved []uint32, err error) {
	engine := newReservations(p.Owner, p.Reserved)
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
		wanted := map[uint16][]slot{}
		for _, f := range fs {
			if f.proto == proto {
				wanted[f.port] = append(wanted[f.port], f.slot)
			}
		}
		if len(wanted) == 0 {
			continue
		}
		if err := listenersExclude(proto, wanted, engine); err != nil {
			return nil, err
		}
	}
	return engine.met, nil
}

func listenersExclude(proto uint8, wanted map[uint16][]slot, engine *reservations) error {
	for _, f := range families() {
		var taken error
		err := listeners(f, proto, func(l listener) bool {
			for _, s := range wanted[l.port] {
				if l.excludes(s) && !engine.hold(l.inode) {
					taken = boundByHost(s, l)
				}
			}
			return taken == nil
		})
		if taken != nil {
			return taken
		}
		// A kernel without sock_diag for this protocol (ENOENT), above all for
		// SCTP, is asked port by port.
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
			err = bindAll(f, wanted)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// excludes says whether bind(2) would refuse the slot beside this socket.
func (l listener) excludes(s slot) bool {
	if familyOf(l.host) == familyOf(s.host) {
		return l.wide() || s.wide() || l.host == s.host
	}
	// A socket on :: also takes IPv4 unless it says otherwise.
	return l.host == netip.IPv6Unspecified() && !l.v6only
}

// The request and answer of sock_diag for internet sockets
// (linux/inet_diag.h, struct inet_diag_req_v2 and inet_diag_msg).
const (
	sockDiagByFamily = 20
	diagRequestSize  = 56
	diagAnswerSize   = 72
	diagSKV6Only     = 11 // INET_DIAG_SKV6ONLY
	stateUnconnected = 7  // TCP_CLOSE: what an unconnected UDP socket is in
	stateListen      = 10 // TCP_LISTEN
)

// listeners hands the sockets of a family and protocol that wait on a port to
// each.
func listeners(f family, proto uint8, each func(listener) bool) error {
	s, err := dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	defer s.close()
	state := stateListen
	if proto == unix.IPPROTO_UDP {
		state = stateUnconnected
	}
	request := make([]byte, diagRequestSize)
	request[0], request[1] = byte(f), proto // NFPROTO_ and AF_ numbers agree
	binary.NativeEndian.PutUint32(request[4:], 1<<state)
	return s.dump(message{sockDiagByFamily, 0, request}, func(data []byte) bool {
		l, ok := parseListener(f, proto, data)
		return !ok || each(l)
	})
}

func parseListener(f family, proto uint8, data []byte) (listener, bool) {
	if len(data) < diagAnswerSize || data[0] != byte(f) {
		return listener{}, false
	}
	// family, state, timer, retrans: 4 bytes; then the source port, the
	// destination port and the two addresses.
	host, ok := netip.AddrFromSlice(data[8 : 8+f.addrType().Bytes])
	v6only := findAttr(data[diagAnswerSize:], diagSKV6Only)
	return listener{
		slot:   slot{proto, host.Unmap(), binary.BigEndian.Uint16(data[4:])},
		v6only: len(v6only) == 1 && v6only[0] == 1,
		inode:  binary.NativeEndian.Uint32(data[68:]),
	}, ok
}

func boundByHost(s slot, l listener) error {
	by := "bound by a socket of the host"
	if l.host != s.host {
		by += " on " + netip.AddrPortFrom(l.host, l.port).String()
	}
	if who := processOf(l.inode); who != "" {
		by += ", " + who
	}
	return conf.Mendf(conf.Errorf(conf.ErrPortInUse, "host port %s is in use: %s", s, by), "choose another port, publish on one free address with hostIP, or stop that process")
}

// bindAll binds and closes a socket for each port.
func bindAll(f family, wanted map[uint16][]slot) error {
	for _, slots := range wanted {
		for _, s := range slots {
			if familyOf(s.host) != f {
				continue
			}
			if err := bindOnce(s); err != nil {
				return err
			}
		}
	}
	return nil
}

func bindOnce(s slot) error {
	kind := unix.SOCK_STREAM
	if s.proto == unix.IPPROTO_UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(int(familyOf(s.host)), kind|unix.SOCK_CLOEXEC, int(s.proto))
	if err != nil {
		return nil // the host has no sockets of this protocol: SCTP, mostly
	}
	defer func() { _ = unix.Close(fd) }()
	// A listener excludes us all the same; a connection in TIME_WAIT does not.
	if s.proto != unix.IPPROTO_UDP {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	err = unix.Bind(fd, sockaddr(s))
	if errors.Is(err, unix.EADDRINUSE) {
		return conf.Mendf(conf.Errorf(conf.ErrPortInUse, "host port %s is in use: bound by a socket of the host", s), "choose another port or host address, or stop that process")
	}
	return nil // an address that the host does not have yet is nobody's
}

func sockaddr(s slot) unix.Sockaddr {
	if s.host.Is4() {
		return &unix.SockaddrInet4{Port: int(s.port), Addr: s.host.As4()}
	}
	return &unix.SockaddrInet6{Port: int(s.port), Addr: s.host.As16()}
}

// processOf names the process that has a socket, "sshd (pid 812)"; empty when
// /proc does not tell. It reads every process's descriptors, which only an error
// costs.
func processOf(inode uint32) string {
	if inode == 0 {
		return ""
	}
	for _, pid := range processes() {
		dir := "/proc/" + pid
		if slices.Contains(socketsOf(dir), inode) {
			return describeProcess(dir, pid)
		}
	}
	return ""
}

// processes are the pids of all.
func processes() []string {
	entries, _ := os.ReadDir("/proc")
	var pids []string
	for _, e := range entries {
		if e.Name()[0] >= '0' && e.Name()[0] <= '9' {
			pids = append(pids, e.Name())
		}
	}
	return pids
}

// socketsOf are the inodes of the sockets of a process, none when it has ended.
func socketsOf(dir string) []uint32 {
	fds, _ := os.ReadDir(dir + "/fd")
	var inodes []uint32
	for _, fd := range fds {
		target, _ := os.Readlink(dir + "/fd/" + fd.Name())
		var inode uint32
		if _, err := fmt.Sscanf(target, "socket:[%d]", &inode); err == nil {
			inodes = append(inodes, inode)
		}
	}
	return inodes
}

func describeProcess(dir, pid string) string {
	name, err := os.ReadFile(dir + "/comm")
	if err != nil || len(name) < 2 {
		return "pid " + pid
	}
	return fmt.Sprintf("%s (pid %s)", name[:len(name)-1], pid)
}
