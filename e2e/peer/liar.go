package main

import (
	"fmt"
	"net"
	"net/netip"
)

// liar serves DNS: every name is at one address. Before each answer it sends others that say
// another one, none of which is an answer to what it was asked.
func liar(args []string) error {
	truth, err := netip.ParseAddr(args[1])
	if err != nil {
		return err
	}
	lie, err := netip.ParseAddr(args[2])
	if err != nil {
		return err
	}
	at, err := net.ResolveUDPAddr("udp", args[0])
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp", at)
	if err != nil {
		return err
	}
	other, err := net.ListenUDP("udp", &net.UDPAddr{IP: at.IP})
	if err != nil {
		return err
	}
	b := make([]byte, 65535)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return err
		}
		const header = 12
		if n <= header+1 {
			continue
		}
		for _, change := range []func(answer []byte){
			func(answer []byte) { answer[header+1] ^= 1 }, // about another name
			func(answer []byte) { answer[0] ^= 1 },        // of another ID
			func(answer []byte) { answer[2] &^= 0x80 },    // a question
		} {
			answer := dnsAnswer(b[:n], lie)
			change(answer)
			_, _ = conn.WriteToUDPAddrPort(answer, from)
		}
		_, _ = other.WriteToUDPAddrPort(dnsAnswer(b[:n], lie), from)
		if _, err := conn.WriteToUDPAddrPort(dnsAnswer(b[:n], truth), from); err != nil {
			fmt.Println(err)
		}
	}
}
