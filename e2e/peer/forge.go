package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// forgery is a frame that its sender may not send; named so that who hears it can say
// what came through.
type forgery struct {
	name     string
	to, from net.HardwareAddr
	kind     uint16
	payload  []byte
}

// Before and after a name in a frame.
var nameMark, nameEnd = []byte("peer forged <"), []byte(">")

// signature is how much of what follows the payload counts as the packet's, in bytes: a
// bridge may cut off the rest.
const signature = 80

// honest is the name of the frames that have to arrive.
const honest = "nothing"

var (
	everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	// The bridge next door, of link layer discovery (IEEE 802.1Q, table 8-1): no bridge
	// passes on what is sent there, but it may learn the sender's address.
	nearestBridge = net.HardwareAddr{0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e}
)

func (f forgery) frame() []byte {
	b := slices.Concat(f.to, f.from, []byte{byte(f.kind >> 8), byte(f.kind)}, f.payload, nameMark, []byte(f.name), nameEnd)
	return append(b, make([]byte, signature)...)
}

// forge sends, until SIGINT, frames by which an interface claims the addresses of
// another: its MAC address, IPv4 and IPv6 address, and those of the gateway. Honest
// frames are among them.
func forge(args []string) error {
	link, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(args[1])
	if err != nil {
		return err
	}
	p, err := newProber(link, 0)
	if err != nil {
		return err
	}
	var others []netip.Addr
	for _, text := range args[2:] {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		others = append(others, ip)
	}
	all := p.forgeries(mac, others)
	interrupted := interrupt()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		for _, f := range all {
			if _, err := unix.Write(p.packet, f.frame()); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
		select {
		case <-interrupted:
			return nil
		case <-tick.C:
		}
	}
}

// forgeries are all that there are about one other MAC address and some addresses, the
// honest frame being the last.
func (p *prober) forgeries(mac net.HardwareAddr, others []netip.Addr) []forgery {
	own := p.link.HardwareAddr
	own4, own6 := p.own[true], p.own[false]
	var all []forgery
	add := func(name string, from net.HardwareAddr, kind uint16, payload []byte) {
		all = append(all, forgery{name, everybody, from, kind, payload})
	}
	for _, ip := range others {
		if ip.Is4() {
			add("source "+ip.String(), own, unix.ETH_P_IP, header4(ip, own4))
			add("gratuitous ARP of "+ip.String(), own, unix.ETH_P_ARP, arp(1, own, ip, ip))
			add("ARP answer for "+ip.String(), own, unix.ETH_P_ARP, arp(2, own, ip, own4))
			add("ARP probe for "+ip.String(), own, unix.ETH_P_ARP, arp(1, own, netip.IPv4Unspecified(), ip))
			continue
		}
		add("source "+ip.String(), own, unix.ETH_P_IPV6, header6(ip, noNextHeader, nil))
		add("advertisement of "+ip.String(), own, unix.ETH_P_IPV6, header6(own6, icmpv6, neighbour(136, ip, own)))
		add("advertisement by "+ip.String(), own, unix.ETH_P_IPV6, header6(ip, icmpv6, neighbour(136, ip, own)))
		add("solicitation by "+ip.String(), own, unix.ETH_P_IPV6, header6(ip, icmpv6, neighbour(135, own6, own)))
		add("is "+ip.String()+" free", own, unix.ETH_P_IPV6, header6(netip.IPv6Unspecified(), icmpv6, neighbour(135, ip, own)))
		add("hidden advertisement of "+ip.String(), own, unix.ETH_P_IPV6, header6(own6, 0, append([]byte{icmpv6, 0, 1, 4, 0, 0, 0, 0}, neighbour(136, ip, own)...)))
	}
	if own6.IsValid() {
		add("router advertisement", own, unix.ETH_P_IPV6, header6(own6, icmpv6, []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}))
		add("redirect", own, unix.ETH_P_IPV6, header6(own6, icmpv6, neighbour(137, own6, own)))
	}
	add("MAC address", mac, unix.ETH_P_IP, header4(own4, own4))
	add("MAC address in ARP", own, unix.ETH_P_ARP, arp(2, mac, own4, own4))
	all = append(all, forgery{"MAC address to the bridge", nearestBridge, mac, 0x88cc, nil})
	add(honest, own, unix.ETH_P_IP, header4(own4, own4))
	return all
}

const icmpv6, noNextHeader = 58, 59

func arp(op byte, sender net.HardwareAddr, source, target netip.Addr) []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, op}, sender, source.AsSlice(), make([]byte, 6), target.AsSlice())
}

func header4(from, to netip.Addr) []byte {
	const unassigned = 253 // for experiments (RFC 3692)
	b := slices.Concat([]byte{0x45, 0, 0, 20 + signature, 0, 0, 0, 0, 64, unassigned, 0, 0}, from.AsSlice(), to.AsSlice())
	sum := checksum(b)
	b[10], b[11] = byte(sum>>8), byte(sum)
	return b
}

// header6 goes to all nodes of the link.
func header6(from netip.Addr, next byte, payload []byte) []byte {
	const hops = 255
	return slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(payload)) + signature, next, hops}, from.AsSlice(), netip.IPv6LinkLocalAllNodes().AsSlice(), payload)
}

// neighbour is a message of RFC 4861 that says which MAC address an address has, with
// its checksum left out: who is deceived by it is not asked here.
func neighbour(kind byte, target netip.Addr, mac net.HardwareAddr) []byte {
	const override, targetOption = 0x20, 2
	return slices.Concat([]byte{kind, 0, 0, 0, override, 0, 0, 0}, target.AsSlice(), []byte{targetOption, 1}, mac)
}

// heard prints which forgeries an interface receives, each once, in the order of their
// names. Honest ones have to arrive some times; between two of them everything has been
// sent once. With "on" it goes on until SIGINT.
func heard(args []string) error {
	link, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	p, err := newProber(link, 0)
	if err != nil {
		return err
	}
	const rounds = 5
	names := map[string]int{}
	interrupted := interrupt()
	on := slices.Contains(args, "on")
	for deadline := time.Now().Add(5 * patience); on || names[honest] < rounds; {
		select {
		case <-interrupted:
			on = false
		default:
		}
		if !on && names[honest] < rounds && time.Now().After(deadline) {
			return fmt.Errorf("%s: no honest frame arrives", args[0])
		}
		if name, ok := p.forged(); ok {
			names[name]++
		}
	}
	delete(names, honest)
	var all []string
	for name := range names {
		all = append(all, name)
	}
	slices.Sort(all)
	for _, name := range all {
		fmt.Println(name)
	}
	return nil
}

// forged is the name of the next frame, if it is such a one.
func (p *prober) forged() (string, bool) {
	b := make([]byte, 2048)
	n, err := unix.Read(p.packet, b)
	if err != nil {
		return "", false
	}
	_, rest, ok := bytes.Cut(b[:n], nameMark)
	name, _, end := bytes.Cut(rest, nameEnd)
	return string(name), ok && end
}
