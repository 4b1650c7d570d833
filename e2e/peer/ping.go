package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// The types of ICMP messages that ask for an echo and bring it, by address family (RFC
// 792, RFC 4443).
const (
	echo4, echoed4 = 8, 0
	echo6, echoed6 = 128, 129
)

// ping sends echo requests until one is answered, with so many bytes in them, or none.
func ping(args []string) error {
	address, size := strings.Trim(args[0], "[]"), 0
	if len(args) > 1 {
		var err error
		if size, err = strconv.Atoi(args[1]); err != nil {
			return err
		}
	}
	network, echo, echoed := "ip4:icmp", byte(echo4), byte(echoed4)
	if strings.Contains(address, ":") {
		network, echo, echoed = "ip6:ipv6-icmp", echo6, echoed6
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	for ctx.Err() == nil {
		if err := pingOnce(conn, echo, echoed, size); err == nil {
			fmt.Println("echo from", address)
			return nil
		}
	}
	return fmt.Errorf("no echo from %s", address)
}

func pingOnce(conn net.Conn, echo, echoed byte, size int) error {
	const id, seq = 0x616d, 1
	message := []byte{echo, 0, 0, 0, id >> 8, id & 0xff, 0, seq}
	message = append(message, make([]byte, size)...)
	if echo == echo4 {
		// The kernel writes that of IPv6.
		sum := checksum(message)
		message[2], message[3] = byte(sum>>8), byte(sum)
	}
	if _, err := conn.Write(message); err != nil {
		time.Sleep(time.Millisecond)
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	answer := make([]byte, 1<<16)
	for {
		n, _, err := conn.(*net.IPConn).ReadFromIP(answer) // without the header of IPv4
		if err != nil {
			return err
		}
		if got := answer[:n]; n >= len(message) && got[0] == echoed && got[4] == id>>8 && got[5] == id&0xff {
			return nil
		}
	}
}
