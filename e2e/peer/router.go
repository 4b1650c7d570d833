package main

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// advertise is the command router: messages of a default router that lives for half an hour.
func advertise(name string) error {
	const (
		routerAdvertisement, ownHops, lifetime = 134, 64, 1800 // seconds
		hops                                   = 255           // with less it is from elsewhere
		every                                  = 100 * time.Millisecond
	)
	i, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	for option, value := range map[int]int{unix.IPV6_MULTICAST_HOPS: hops, unix.IPV6_MULTICAST_IF: i.Index} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, option, value); err != nil {
			return err
		}
	}
	message := []byte{routerAdvertisement, 0, 0, 0, ownHops, 0, lifetime >> 8, lifetime & 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
	all := &unix.SockaddrInet6{ZoneId: uint32(i.Index), Addr: [16]byte{0: 0xff, 1: 2, 15: 1}}
	for ; ; time.Sleep(every) {
		_ = unix.Sendto(fd, message, 0, all) // there may be no address to send it from yet
	}
}
