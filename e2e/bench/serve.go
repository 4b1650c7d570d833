package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// serve answers loads until it is killed.
func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	address := flags.String("listen", ":5000", "address and `port` to serve TCP and UDP on")
	_ = flags.Parse(args)
	raiseLimit()
	keepProcessors()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	listener, err := config.Listen(context.Background(), "tcp", *address)
	if err != nil {
		return err
	}
	packets, err := config.ListenPacket(context.Background(), "udp", *address)
	if err != nil {
		return err
	}
	s, err := blocking(packets.(*net.UDPConn))
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- serveDatagrams(s) }()
	go func() { failed <- serveConnections(listener) }()
	return <-failed
}

func serveConnections(l net.Listener) error {
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, unix.ECONNABORTED):
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		default:
			go serveConnection(c.(*net.TCPConn))
		}
	}
}

// serveConnection does what the first byte asks for. Nobody to tell an error but the
// client, who notices.
func serveConnection(c *net.TCPConn) {
	defer c.Close()
	request := make([]byte, pingSize)
	n, err := c.Read(request)
	if err != nil || n == 0 {
		return
	}
	switch request[0] {
	case opTouch:
		if _, err := c.Write(request[:1]); err == nil {
			_, _ = c.Read(request)
		}
		return
	case opAddress:
		_, _ = c.Write([]byte(c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String()))
		return
	}
	s, err := blocking(c)
	if err != nil {
		return
	}
	defer s.close()
	switch request[0] {
	case opPing:
		servePing(s, request, n)
	case opUp:
		if s.readFull(request[n:max(n, headerSize)]) == nil {
			serveUp(s, parseWindow(request))
		}
	case opDown:
		flood(s)
	}
}

func servePing(s socket, message []byte, have int) {
	s.setPatience(patience)
	for {
		if s.hearFull(message[have:]) != nil {
			return
		}
		if _, err := s.tell(message); err != nil {
			return
		}
		have = 0
	}
}

// serveUp counts, tells, and takes what still comes until the client ends it.
func serveUp(s socket, w window) {
	rate, err := w.count(s)
	if err != nil {
		return
	}
	if _, err := s.write(binary.BigEndian.AppendUint64(nil, math.Float64bits(rate))); err != nil {
		return
	}
	buffer := make([]byte, bulkBuffer)
	for {
		if n, err := s.read(buffer); n == 0 || err != nil {
			return
		}
	}
}

// flood writes until the other side has enough.
func flood(s socket) {
	buffer := make([]byte, bulkBuffer)
	for {
		if _, err := s.write(buffer); err != nil {
			return
		}
	}
}

func serveDatagrams(s socket) error {
	_ = unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	s.setPatience(patience)
	buffer := make([]byte, 1<<16)
	var name unix.RawSockaddrAny
	for {
		n, err := s.receive(buffer, &name)
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrDeadlineExceeded) || n == 0 && err == nil {
			continue // an earlier answer came too late for its client, or nobody asks
		}
		if err != nil {
			return err
		}
		reply := buffer[:n]
		if buffer[0] == opAddress {
			reply = []byte(addressOf(&name).String())
		}
		_, _ = s.answer(reply, &name) // a datagram lost is the client's to notice
	}
}
