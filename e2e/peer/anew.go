package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// serveBrief says a line and closes: TIME_WAIT (tcp(7)) is on the server's side, and the client's
// port is free at once.
func serveBrief(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintf(conn, "you are %s\n", conn.RemoteAddr())
		conn.Close()
	}
}

// anewPatience is less than the 60 s of TIME_WAIT, by which what is lost until then would come late.
const anewPatience = 50 * time.Second

// anew connects to such a server again and again from the same port.
func anew(args []string) error {
	count, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	local, err := localAddr("tcp", ":"+args[1])
	if err != nil {
		return err
	}
	dialer := net.Dialer{Timeout: anewPatience, LocalAddr: local, Control: reuse}
	for i := range count {
		conn, err := dialer.Dial("tcp", args[0])
		for errors.Is(err, unix.EADDRINUSE) { // the last acknowledgement is still on its way
			conn, err = dialer.Dial("tcp", args[0])
		}
		if err != nil {
			return fmt.Errorf("connection %d from port %s: %w", i+1, args[1], err)
		}
		_, err = io.Copy(io.Discard, conn)
		conn.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func reuse(_, _ string, raw syscall.RawConn) (err error) {
	controlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	return errors.Join(err, controlErr)
}
