package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// burst makes flows as fast as one thread can, without a wait for any answer: datagrams
// of new sockets, or connections that are begun and given up.
func burst(args []string) error {
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	at, err := netip.ParseAddrPort(args[2])
	if err != nil {
		return err
	}
	kind := unix.SOCK_DGRAM
	if args[0] == "tcp" {
		kind = unix.SOCK_STREAM
	}
	began, failed := time.Now(), 0
	for range count {
		if err := beginFlow(kind, at); err != nil {
			failed++
		}
	}
	fmt.Printf("%d flows in %s, %d failed\n", count, time.Since(began).Round(time.Millisecond), failed)
	return nil
}

func beginFlow(kind int, at netip.AddrPort) error {
	family, to := unix.AF_INET, unix.Sockaddr(nil)
	if at.Addr().Is6() {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	} else {
		to = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, to)
	if kind == unix.SOCK_DGRAM && err == nil {
		_, err = unix.Write(fd, []byte("who am I?"))
	}
	if errors.Is(err, unix.EINPROGRESS) {
		return nil
	}
	return err
}
