package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// This file has what a client does that means no good, and how one beside it is served.

// servedAgain is after how long a datagram is sent again.
const servedAgain = 250 * time.Millisecond

// served has one conversation with a server after the other for some time and prints how
// many there were in a second, and how long they took: by TCP, by UDP each from a port of
// its own, or by UDP from one and the same ("talk").
func served(args []string) error {
	length, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	from := netip.Addr{}
	if len(args) > 3 {
		if from, err = netip.ParseAddr(args[3]); err != nil {
			return err
		}
	}
	c := client{how: args[0], at: args[1], from: netip.AddrPortFrom(from, 0)}
	var took []time.Duration
	for began := time.Now(); time.Since(began) < length || len(took) == 0; {
		one := time.Now()
		if err := c.converse(); err != nil {
			return fmt.Errorf("after %d: %w", len(took), err)
		}
		took = append(took, time.Since(one))
	}
	slices.Sort(took)
	ms := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds()*1000, 'f', 1, 64) }
	fmt.Printf("%d in %s, half within %s ms, 99 %% within %s, the longest %s\n", len(took), length, ms(took[len(took)/2]), ms(took[len(took)*99/100]), ms(took[len(took)-1]))
	return nil
}

type client struct {
	how, at string
	from    netip.AddrPort
	talk    net.Conn
}

func (c *client) converse() error {
	dialer := net.Dialer{Timeout: patience}
	network := "udp"
	switch {
	case c.how == "tcp":
		network = "tcp"
		if c.from.Addr().IsValid() {
			dialer.LocalAddr = net.TCPAddrFromAddrPort(c.from)
		}
	case c.from.Addr().IsValid():
		dialer.LocalAddr = net.UDPAddrFromAddrPort(c.from)
	}
	conn := c.talk
	if conn == nil {
		var err error
		if conn, err = dialer.Dial(network, c.at); err != nil {
			return err
		}
	}
	if c.how == "talk" {
		c.talk = conn
	} else {
		defer conn.Close()
	}
	b := make([]byte, 100)
	if network == "tcp" {
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, err := conn.Read(b)
		return err
	}
	for end := time.Now().Add(patience); ; {
		if _, err := conn.Write(b[:1]); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(servedAgain))
		_, err := conn.Read(b)
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// hangup connects and resets at once, as fast as a few threads can, so many times or until
// SIGINT.
func hangup(args []string) error {
	count, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return err
	}
	const threads = 16
	var done atomic.Int64
	var wg sync.WaitGroup
	for range threads {
		wg.Go(func() {
			for count == 0 || done.Add(1) <= count {
				conn, err := net.DialTimeout("tcp", args[1], patience)
				if err == nil {
					_ = conn.(*net.TCPConn).SetLinger(0)
					conn.Close()
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// slowly sends a byte of each of many clients, which never say more at a time, every slowPause.
func slowly(args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var clients []net.Conn
	for range count {
		conn, err := net.DialTimeout("tcp", args[1], patience)
		if err != nil {
			return fmt.Errorf("after %d: %w", len(clients), err)
		}
		defer conn.Close()
		clients = append(clients, conn)
	}
	go func() {
		for {
			for _, conn := range clients {
				_, _ = conn.Write([]byte("G")) // its end is no matter of ours
			}
			time.Sleep(slowPause)
		}
	}()
	awaitInterrupt()
	return nil
}

const slowPause = time.Second

// cling keeps so many connections, of which each says one byte of what it has to say a second, and
// begins one anew that was ended. It prints when all of them have been served, and goes on until
// SIGINT.
func cling(args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	dialer := net.Dialer{Timeout: patience}
	if len(args) > 2 {
		from, err := netip.ParseAddr(args[2])
		if err != nil {
			return err
		}
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	ended := interrupt() // before thousands want the processor
	var served atomic.Int64
	for range count {
		go func() {
			for first := true; ; time.Sleep(time.Second) {
				conn, err := dialer.Dial("tcp", args[1])
				if err != nil {
					continue
				}
				if _, err := conn.Read(make([]byte, 100)); err == nil && first {
					first = false
					if served.Add(1) == int64(count) {
						fmt.Println("all have been served")
					}
				}
				for err == nil {
					time.Sleep(time.Second)
					_, err = conn.Write([]byte("."))
				}
				conn.Close()
			}
		}()
	}
	<-ended
	return nil
}
