package names

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// Listen makes the sockets of a server: UDP and TCP on port 53 of each address, for what
// comes by one interface only. make is socket(2) in the namespace of that interface.
func Listen(addresses []netip.Addr, device string, socket func(domain, kind, protocol int) (int, error)) (files []*os.File, err error) {
	for _, a := range addresses {
		for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
			f, err := listen(a, kind, device, socket)
			if err != nil {
				for _, f := range files {
					f.Close()
				}
				return nil, err
			}
			files = append(files, f)
		}
	}
	return files, nil
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
	receiveBuffer = 1 << 20 // some seconds of questions: the server may have ended, and its twin begin
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
	for _, f := range files {
		kind, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil {
			return err
		}
		if kind == unix.SOCK_DGRAM {
			runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1) // it may keep one for itself
			go func() {
				defer func() { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) - 1) }()
				s.ServePackets(f)
			}()
			continue
		}
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return err
		}
		go s.ServeStreams(l.(*net.TCPListener))
	}
	return nil
}
