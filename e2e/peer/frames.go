package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// attempt is one try to reach a port of an address that the kernel would not send to.
type attempt struct {
	name     string
	protocol byte
	from     uint16 // port
	to       netip.Addr
	send     func(a *attempt) error
	answered bool
}

// firstPort is the source port of the first attempt; the others follow.
const firstPort = 40000

// frames tries to reach a port of addresses by an interface, with frames made by hand
// (UDP, and TCP's first), and with UDP sockets bound to it. It prints which answered.
// The first address has to: when it has for a few times, the others have had their
// chance.
func frames(args []string) error {
	link, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(args[1], 10, 16)
	if err != nil {
		return err
	}
	p, err := newProber(link, uint16(port))
	if err != nil {
		return err
	}
	var attempts []*attempt
	for _, text := range args[2:] {
		to, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		attempts = append(attempts,
			&attempt{name: "udp frame to " + text, protocol: unix.IPPROTO_UDP, to: to, send: p.sendFrame},
			&attempt{name: "tcp frame to " + text, protocol: unix.IPPROTO_TCP, to: to, send: p.sendFrame},
			&attempt{name: "udp socket to " + text, protocol: unix.IPPROTO_UDP, to: to, send: p.sendBound})
	}
	return p.try(attempts)
}

// prober sends frames by an interface, and sees all that it receives.
type prober struct {
	link   *net.Interface
	own    map[bool]netip.Addr // by Is4
	port   uint16              // of all that is tried
	packet int                 // packet(7) socket
	router net.HardwareAddr    // to whom frames are sent
}

func newProber(link *net.Interface, port uint16) (*prober, error) {
	p := &prober{link: link, port: port, own: make(map[bool]netip.Addr), router: everybody}
	if text := os.Getenv("ROUTER"); text != "" {
		var err error
		if p.router, err = net.ParseMAC(text); err != nil {
			return nil, err
		}
	}
	addrs, err := link.Addrs()
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && !prefix.Addr().IsLinkLocalUnicast() {
			p.own[prefix.Addr().Is4()] = prefix.Addr()
		}
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	// One of a protocol would hear every interface until it is bound to this one.
	if p.packet, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); err != nil {
		return nil, err
	}
	wait := unix.NsecToTimeval((100 * time.Millisecond).Nanoseconds())
	return p, errors.Join(
		unix.SetsockoptTimeval(p.packet, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.Bind(p.packet, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}))
}

func (p *prober) try(attempts []*attempt) error {
	for i, a := range attempts {
		a.from = firstPort + uint16(i)
		if err := a.send(a); err != nil {
			fmt.Printf("%s: %v\n", a.name, err)
		}
	}
	const rounds = 5
	control, answers := attempts[0], 0
	for deadline := time.Now().Add(2 * patience); answers < rounds; {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: no answer", control.name)
		}
		if control.answered {
			answers++
			control.answered = false
			if err := p.sendFrame(control); err != nil {
				return err
			}
		}
		if !p.receive(attempts) {
			_ = p.sendFrame(control) // lost, perhaps
		}
	}
	control.answered = true
	for _, a := range attempts {
		if a.answered {
			fmt.Println(a.name, "answered")
		}
	}
	return nil
}

// sendBound sends by the kernel, which takes any destination that the interface leads to.
func (p *prober) sendBound(a *attempt) error {
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(p.port), Addr: a.to.As16()})
	var from unix.Sockaddr = &unix.SockaddrInet6{Port: int(a.from)}
	if a.to.Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(p.port), Addr: a.to.As4()}
		from = &unix.SockaddrInet4{Port: int(a.from)}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	// Left open, so that the kernel does not refuse the answer.
	return errors.Join(unix.BindToDevice(fd, p.link.Name), unix.Bind(fd, from), unix.Sendto(fd, []byte("who am I?"), 0, to))
}

func (p *prober) sendFrame(a *attempt) error {
	_, err := unix.Write(p.packet, p.frame(a))
	return err
}

const ethernetHeader = 14

// frame is an Ethernet frame to everybody, which the driver takes, or to the MAC address
// in the variable ROUTER, since a router takes what is for it alone.
func (p *prober) frame(a *attempt) []byte {
	b := append(slices.Clone(p.router), p.link.HardwareAddr...)
	body := p.body(a)
	from := p.own[a.to.Is4()]
	if !a.to.Is4() {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(body)), a.protocol, 64)
		b = append(b, from.AsSlice()...)
		return append(append(b, a.to.AsSlice()...), body...)
	}
	b = append(b, 0x08, 0x00)
	header := []byte{0x45, 0, 0, byte(20 + len(body)), 0, byte(a.from), 0, 0, 64, a.protocol, 0, 0}
	header = append(append(header, from.AsSlice()...), a.to.AsSlice()...)
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(append(b, header...), body...)
}

// body is a UDP datagram, or a segment that opens a TCP connection.
func (p *prober) body(a *attempt) []byte {
	b := binary.BigEndian.AppendUint16(nil, a.from)
	b = binary.BigEndian.AppendUint16(b, p.port)
	at := 16
	if a.protocol == unix.IPPROTO_UDP {
		at = 6
		b = append(b, 0, 16, 0, 0)
		b = append(b, "who am I"...)
	} else {
		b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0) // SYN
	}
	pseudo := append(p.own[a.to.Is4()].AsSlice(), a.to.AsSlice()...)
	pseudo = append(pseudo, 0, byte(len(b)), 0, a.protocol)
	binary.BigEndian.PutUint16(b[at:], checksum(append(pseudo, b...)))
	return b
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// receive takes the next frame, and says whether one came.
func (p *prober) receive(attempts []*attempt) bool {
	b := make([]byte, 2048)
	n, err := unix.Read(p.packet, b)
	if err != nil {
		return false
	}
	protocol, body, ok := payload(b[:n])
	if !ok || len(body) < 8 || binary.BigEndian.Uint16(body) != p.port {
		return true
	}
	for _, a := range attempts {
		const synAck = 0x12
		answers := protocol == unix.IPPROTO_UDP || (len(body) > 13 && body[13]&synAck == synAck)
		if protocol == a.protocol && binary.BigEndian.Uint16(body[2:]) == a.from && answers {
			a.answered = true
		}
	}
	return true
}

// payload is what an IP packet without extensions carries.
func payload(frame []byte) (protocol byte, body []byte, ok bool) {
	if len(frame) < ethernetHeader+40 {
		return 0, nil, false
	}
	packet := frame[ethernetHeader:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		return packet[9], packet[min(int(packet[0]&15)*4, len(packet)):], true
	case unix.ETH_P_IPV6:
		return packet[6], packet[40:], true
	}
	return 0, nil, false
}
