package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// flood sends first segments of TCP, datagrams, or resets, each from a made-up port, as fast as
// one thread can: so many of them, or until SIGINT. Port 0 is another one each time, and with
// a prefix each has an address of it that was made up as well.
func flood(args []string) error {
	at, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	count := 0
	if len(args) > 2 {
		if count, err = strconv.Atoi(args[2]); err != nil {
			return err
		}
	}
	next, err := sources(args, at)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW) // with IP_HDRINCL
	if err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Addr: at.Addr().As4()}
	for n := 0; n < count || count == 0; n++ {
		packet := firstOf(args[0], next(n), at)
		if err := unix.Sendto(fd, packet, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
	return nil
}

// sources are where what is sent comes from: the n-th has a pair of address and port that none
// before had, for as long as there are some.
func sources(args []string, at netip.AddrPort) (func(n int) netip.AddrPort, error) {
	const first, ports = 1024, 64000
	if len(args) < 4 {
		local, err := localOf(at)
		return func(n int) netip.AddrPort { return netip.AddrPortFrom(local, uint16(first+n%ports)) }, err
	}
	prefix, err := netip.ParsePrefix(args[3])
	if err != nil {
		return nil, err
	}
	base, size := binary.BigEndian.Uint32(prefix.Masked().Addr().AsSlice()), 1<<(32-prefix.Bits())
	return func(n int) netip.AddrPort {
		address := binary.BigEndian.AppendUint32(nil, base+uint32(n%size))
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(address)), uint16(first+n/size%ports))
	}, nil
}

func localOf(at netip.AddrPort) (netip.Addr, error) {
	c, err := net.Dial("udp", netip.AddrPortFrom(at.Addr(), 9).String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr(), nil
}

// firstOf is a packet with the first segment or datagram of a flow, or a reset without one.
func firstOf(kind string, from, at netip.AddrPort) []byte {
	port := at.Port()
	if port == 0 {
		port = uint16(1 + rand.IntN(65535))
	}
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, port)
	protocol := byte(unix.IPPROTO_TCP)
	if kind == "udp" {
		protocol, b = unix.IPPROTO_UDP, append(b, 0, 9, 0, 0, '?') // no checksum
	} else {
		flags := map[string]byte{"tcp": 1 << 1, "rst": 1 << 2}[kind]
		b = binary.BigEndian.AppendUint32(b, rand.Uint32())
		b = append(b, 0, 0, 0, 0, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
		pseudo := append(from.Addr().AsSlice(), at.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(b[16:], checksum(append(append(pseudo, 0, unix.IPPROTO_TCP, 0, 20), b...)))
	}
	header := []byte{4<<4 | 5, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0} // length and checksum are the kernel's
	return append(append(append(header, from.Addr().AsSlice()...), at.Addr().AsSlice()...), b...)
}

// rate prints how many conversations a second there are with a server.
func rate(args []string) error {
	length, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	count := 0
	began := time.Now()
	for ; time.Since(began) < length || count == 0; count++ {
		if err := converse(args[0]); err != nil {
			return fmt.Errorf("after %d: %w", count, err)
		}
	}
	fmt.Println(int(float64(count) / time.Since(began).Seconds()))
	return nil
}

func converse(address string) error {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, err = c.Read(make([]byte, 100))
	return err
}

// scan tries ports of a host, many at a time, and prints how many were open, refused, and
// silent.
func scan(args []string) error {
	at, err := netip.ParseAddr(args[0])
	if err != nil {
		return err
	}
	least, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	most, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	var open, refused, silent int
	const batch = 512
	for first := least; first <= most; first += batch {
		var fds []unix.PollFd
		for port := first; port < min(first+batch, most+1); port++ {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: at.As4()}); err != nil && !errors.Is(err, unix.EINPROGRESS) {
				unix.Close(fd)
				refused++
				continue
			}
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
		}
		o, r, s := await(fds)
		open, refused, silent = open+o, refused+r, silent+s
	}
	fmt.Println("open", open, "refused", refused, "silent", silent)
	return nil
}

// await waits for connections that were begun.
func await(fds []unix.PollFd) (open, refused, silent int) {
	waiting := len(fds)
	for deadline := time.Now().Add(patience); waiting > 0 && time.Now().Before(deadline); {
		_, _ = unix.Poll(fds, int(again.Milliseconds()))
		for i := range fds {
			if fds[i].Fd < 0 || fds[i].Revents == 0 {
				continue
			}
			if errno, _ := unix.GetsockoptInt(int(fds[i].Fd), unix.SOL_SOCKET, unix.SO_ERROR); errno == 0 {
				open++
			} else {
				refused++
			}
			unix.Close(int(fds[i].Fd))
			fds[i].Fd = -1
			waiting--
		}
	}
	for _, f := range fds {
		if f.Fd >= 0 {
			unix.Close(int(f.Fd))
		}
	}
	return open, refused, waiting
}
