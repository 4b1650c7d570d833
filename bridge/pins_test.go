package bridge

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// frame is an Ethernet frame; fields that are empty are the sender's own.
type frame struct {
	to, from net.HardwareAddr
	kind     uint16
	payload  []byte
}

func (f frame) bytes() []byte {
	b := append(append([]byte{}, f.to...), f.from...)
	return append(append(b, byte(f.kind>>8), byte(f.kind)), f.payload...)
}

// wire sends frames out of a container's eth0 and counts which of them its neighbour
// receives.
type wire struct {
	out, in int
	index   int
}

func packetSocket(t testing.TB, s *space) (fd, index int) {
	t.Helper()
	s.do(t, func() {
		link, err := net.InterfaceByName("eth0")
		require.NoError(t, err)
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.ETH_P_ALL<<8)
		require.NoError(t, err)
		require.NoError(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL << 8, Ifindex: link.Index}))
		index = link.Index
	})
	t.Cleanup(func() { unix.Close(fd) })
	return fd, index
}

func newWire(t testing.TB, from, to *space) *wire {
	t.Helper()
	w := &wire{}
	w.out, w.index = packetSocket(t, from)
	w.in, _ = packetSocket(t, to)
	require.NoError(t, unix.SetsockoptTimeval(w.in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}))
	return w
}

// passes says whether a frame arrives. An honest frame is sent after it: when that has
// arrived and the other one has not, the bridge has dropped it.
func (w *wire) passes(t testing.TB, f, honest frame, nonce byte) bool {
	t.Helper()
	mark := []byte{0xa5, 0x5a, nonce}
	f.payload = append(append([]byte{}, f.payload...), append(mark, 1)...)
	honest.payload = append(append([]byte{}, honest.payload...), append(mark, 2)...)
	for _, x := range []frame{f, honest} {
		require.NoError(t, unix.Sendto(w.out, x.bytes(), 0, &unix.SockaddrLinklayer{Ifindex: w.index, Halen: 6}))
	}
	passed := false
	b := make([]byte, 2048)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		n, err := unix.Read(w.in, b)
		require.NoError(t, err, "the honest frame did not arrive")
		if n < 4 || string(b[n-4:n-1]) != string(mark) {
			continue
		}
		if b[n-1] == 2 {
			return passed
		}
		passed = true
	}
	t.Fatal("the honest frame did not arrive")
	return false
}

func arp(op byte, sha net.HardwareAddr, spa string, tpa string) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, op}
	b = append(append(b, sha...), netip.MustParseAddr(spa).AsSlice()...)
	return append(append(b, make([]byte, 6)...), netip.MustParseAddr(tpa).AsSlice()...)
}

func ipv4(source, destination string) []byte {
	b := []byte{0x45, 0, 0, 24, 0, 0, 0, 0, 64, 253, 0, 0}
	b = append(append(b, netip.MustParseAddr(source).AsSlice()...), netip.MustParseAddr(destination).AsSlice()...)
	// A bridge whose packets go by the firewall looks at the checksum (RFC 1071).
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = ^(sum&0xffff + sum>>16)
	b[10], b[11] = byte(sum>>8), byte(sum)
	return b
}

func ipv6(source, destination string, next byte, payload []byte) []byte {
	b := []byte{0x60, 0, 0, 0, 0, byte(len(payload) + 4), next, 255}
	b = append(append(b, netip.MustParseAddr(source).AsSlice()...), netip.MustParseAddr(destination).AsSlice()...)
	return append(b, payload...)
}

func icmp6(kind byte, target string) []byte {
	return append([]byte{kind, 0, 0, 0, 0x20, 0, 0, 0}, netip.MustParseAddr(target).AsSlice()...)
}

// A container's root may send what frames it likes: those with another's address or
// MAC address go nowhere, whatever protocol says so, and its own still do.
func TestOthersAddressesCannotBeTaken(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.5.0/24", "fd88::/64"))
	mallory := l.join(t, n, "mallory")
	victim := l.join(t, n, "victim")
	own, ip4, ip6 := net.HardwareAddr{0x0a, 0x58, 10, 88, 5, 2}, "10.88.5.2", "fd88::2"
	other, other4, other6 := net.HardwareAddr{0x0a, 0x58, 10, 88, 5, 3}, "10.88.5.3", "fd88::3"
	ll := linkLocal(own).String()
	require.Equal(t, []string{ip4, ip6, other4}, []string{mallory.ip(4), mallory.ip(6), victim.ip(4)})
	broadcast := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	honest := frame{broadcast, own, unix.ETH_P_IP, ipv4(ip4, "10.88.5.255")}
	tagged := append([]byte{0, 0, 8, 0}, ipv4(other4, "10.88.5.255")...)
	const all = "ff02::1"
	w := newWire(t, mallory.space, victim.space)
	for i, c := range []struct {
		name   string
		passes bool
		frame
	}{
		{"own address", true, frame{broadcast, own, unix.ETH_P_IP, ipv4(ip4, "10.88.5.255")}},
		{"another's address", false, frame{broadcast, own, unix.ETH_P_IP, ipv4(other4, "10.88.5.255")}},
		{"the gateway's address", false, frame{broadcast, own, unix.ETH_P_IP, ipv4("10.88.5.1", "10.88.5.255")}},
		{"an address of the Internet", false, frame{broadcast, own, unix.ETH_P_IP, ipv4("192.0.2.77", "10.88.5.255")}},
		{"another's MAC address", false, frame{broadcast, other, unix.ETH_P_IP, ipv4(ip4, "10.88.5.255")}},
		{"another's address under a priority tag", false, frame{broadcast, own, unix.ETH_P_8021Q, tagged}},
		{"own gratuitous ARP", true, frame{broadcast, own, unix.ETH_P_ARP, arp(1, own, ip4, ip4)}},
		{"another's gratuitous ARP", false, frame{broadcast, own, unix.ETH_P_ARP, arp(1, own, other4, other4)}},
		{"the gateway's ARP answer", false, frame{broadcast, own, unix.ETH_P_ARP, arp(2, own, "10.88.5.1", other4)}},
		{"ARP with another's MAC address inside", false, frame{broadcast, own, unix.ETH_P_ARP, arp(2, other, ip4, other4)}},
		{"ARP probe for the own address", true, frame{broadcast, own, unix.ETH_P_ARP, arp(1, own, "0.0.0.0", ip4)}},
		{"ARP probe for another's address", false, frame{broadcast, own, unix.ETH_P_ARP, arp(1, own, "0.0.0.0", other4)}},
		{"ARP of another layout", false, frame{broadcast, own, unix.ETH_P_ARP, append([]byte{0, 6}, arp(2, own, ip4, other4)[2:]...)}},
		{"own IPv6 address", true, frame{broadcast, own, unix.ETH_P_IPV6, ipv6(ip6, all, 59, nil)}},
		{"own link-local address", true, frame{broadcast, own, unix.ETH_P_IPV6, ipv6(ll, all, 59, nil)}},
		{"another's IPv6 address", false, frame{broadcast, own, unix.ETH_P_IPV6, ipv6(other6, all, 59, nil)}},
		{"another's link-local address", false, frame{broadcast, own, unix.ETH_P_IPV6, ipv6(linkLocal(other).String(), all, 59, nil)}},
		{"no IPv6 address", false, frame{broadcast, own, unix.ETH_P_IPV6, ipv6("::", all, 59, nil)}},
		{"own neighbour advertisement", true, frame{broadcast, own, unix.ETH_P_IPV6, ipv6(ip6, all, 58, icmp6(136, ip6))}},
		{"another's neighbour advertisement", false, frame{broadcast, own, unix.ETH_P_IPV6, ipv6(ip6, all, 58, icmp6(136, other6))}},
		{"neighbour solicitation", true, frame{broadcast, own, unix.ETH_P_IPV6, ipv6(ip6, all, 58, icmp6(135, other6))}},
		{"duplicate address detection of the own address", true, frame{broadcast, own, unix.ETH_P_IPV6, ipv6("::", all, 58, icmp6(135, ip6))}},
		{"duplicate address detection of another's", false, frame{broadcast, own, unix.ETH_P_IPV6, ipv6("::", all, 58, icmp6(135, other6))}},
		{"router advertisement", false, frame{broadcast, own, unix.ETH_P_IPV6, ipv6(ll, all, 58, icmp6(134, "::"))}},
		{"redirect", false, frame{broadcast, own, unix.ETH_P_IPV6, ipv6(ll, all, 58, icmp6(137, other6))}},
		{"router solicitation without an address", true, frame{broadcast, own, unix.ETH_P_IPV6, ipv6("::", all, 58, icmp6(133, "::"))}},
		{"another protocol", true, frame{broadcast, own, 0x88b5, make([]byte, 46)}},
	} {
		require.Equal(t, c.passes, w.passes(t, c.frame, honest, byte(i)), c.name)
	}
}

// The container's own MAC address and addresses, where they were asked for, are pinned
// as well.
func TestPinsFollowWhatWasAskedFor(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.5.0/24", ""))
	a := l.join(t, n, "a", func(a *conf.Attachment) {
		a.MAC, a.IPs = "02:00:00:00:00:07", []netip.Prefix{netip.MustParsePrefix("10.88.5.77/32")}
	})
	b := l.join(t, n, "b")
	require.Equal(t, "10.88.5.77", a.ip(4))
	require.Equal(t, "02:00:00:00:00:07", a.result.Interfaces[2].Mac)
	require.True(t, reaches(t, a.space, b.space, b.ip(4)))
	require.True(t, reaches(t, b.space, a.space, a.ip(4)))
}
