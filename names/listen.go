package names

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// queues is how many sockets there are for the same address by UDP. Each has a room of its own
// for what waits, and a container always the same one, by its address, so that one that asks as fast as it
// can fills that, and no other: one in eight of the containers is beside it.
const queues = 8

// Listen makes the sockets of a server: UDP and TCP on port 53 of each address, for what
// comes by one interface only. make is socket(2) in the namespace of that interface.
func Listen(addresses []netip.Addr, device string, socket func(domain, kind, protocol int) (int, error)) (files []*os.File, err error) {
	for _, a := range addresses {
		kinds := append(slices.Repeat([]int{unix.SOCK_DGRAM}, queues), unix.SOCK_STREAM)
		for _, kind := range kinds {
			var f *os.File
			if f, err = listen(a, kind, device, socket); err != nil {
				break
			}
			files = append(files, f)
		}
		if err == nil {
			err = spread(files[len(files)-len(kinds)], a)
		}
		if err != nil {
			closeAll(files)
			return nil, err
		}
	}
	return files, nil
}

// spread has the kernel choose the socket by the last bits of who asks (socket(7),
// SO_ATTACH_REUSEPORT_CBPF, Linux 4.5).
func spread(of *os.File, a netip.Addr) error {
	const network = -0x100000 // SKF_NET_OFF: from the header of IP on
	source := network + 12 + 3
	if a.Is6() {
		source = network + 8 + 15
	}
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: uint32(source)},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: queues - 1},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
	err := unix.SetsockoptSockFprog(int(of.Fd()), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	if err != nil {
		return fmt.Errorf("the name server of the network: %s port 53 of %s: %w", "UDP", a, err)
	}
	return nil
}

func listen(a netip.Addr, kind int, device string, socket func(domain, kind, protocol int) (int, error)) (*os.File, error) {
	const port, backlog = 53, 128
	what, family := "UDP", unix.AF_INET
	if kind == unix.SOCK_STREAM {
		what = "TCP"
	}
	var address unix.Sockaddr = &unix.SockaddrInet6{Port: port, Addr: a.As16()}
	if a.Is4() {
		address = &unix.SockaddrInet4{Port: port, Addr: a.As4()}
	} else {
		family = unix.AF_INET6
	}
	fd, err := socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		err = errors.Join(prepare(fd, family, kind, device), unix.Bind(fd, address))
		if err == nil && kind == unix.SOCK_STREAM {
			err = unix.Listen(fd, backlog)
		}
		if err != nil {
			unix.Close(fd)
		}
	}
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, conf.Mendf(conf.Errorf(conf.ErrNetwork, "the name server of the network cannot have %s port 53 of %s: another program has it, on every address perhaps", what, a),
			"see which one it is (ss -lnp sport = 53), and have it listen on its own addresses only (dnsmasq: bind-interfaces), or set bridge.names to false")
	}
	if err != nil {
		return nil, fmt.Errorf("the name server of the network: %s port 53 of %s: %w", what, a, err)
	}
	return os.NewFile(uintptr(fd), "name server "+what), nil
}

// Buffers, in bytes; the kernel takes wmem_max or rmem_max if that is less, and doubles it
// (socket(7)).
const (
	sendBuffer    = 4 << 20
	receiveBuffer = 1 << 20 // for a second or two: the server may have ended, and its twin begin
)

// prepare sets what has to be set before bind(2). The address may not be usable yet, as one
// of IPv6 is not before it is known to be nobody else's.
func prepare(fd, family, kind int, device string) error {
	level, free := unix.SOL_IP, unix.IP_FREEBIND
	if family == unix.AF_INET6 {
		level, free = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	errs := []error{unix.SetsockoptInt(fd, level, free, 1)}
	if kind == unix.SOCK_STREAM {
		// Or connections of a server that was killed keep the port for a minute.
		errs = append(errs, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	}
	if kind == unix.SOCK_DGRAM {
		errs = append(errs, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		// What waits for a container that does not answer ARP is kept for three seconds, as much
		// of it as a socket may send as a rule (arp(7), unres_qlen_bytes): nobody else shall wait.
		errs = append(errs, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer))
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil { // without root
			errs = append(errs, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer))
		}
	}
	if err := unix.BindToDevice(fd, device); err != nil && !errors.Is(err, unix.EPERM) { // without root before Linux 5.7
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Serve answers on sockets of Listen, which it takes over, until Close.
func (s *Server) Serve(files []*os.File) error {
	var datagrams []*os.File
	for _, f := range files {
		kind, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil {
			return err
		}
		if kind == unix.SOCK_DGRAM {
			datagrams = append(datagrams, f)
			continue
		}
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return err
		}
		go s.ServeStreams(l.(*net.TCPListener))
	}
	p, err := own(datagrams)
	if err != nil {
		return fmt.Errorf("the name server of the network: its sockets: %w", err)
	}
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1) // servePackets may keep one for itself
	go func() {
		defer func() { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) - 1) }()
		s.servePackets(p)
	}()
	return nil
}
