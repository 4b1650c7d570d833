package forward_test

import (
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/portmap/forward"
)

// report answers with the address that the service saw, and waits for the end.
func report(c *net.TCPConn) {
	_, _ = io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).IP.String())
	_, _ = io.Copy(io.Discard, c)
}

func TestSourceAddress(t *testing.T) {
	for _, source := range []conf.SourceIP{conf.SourcePreserve, conf.SourceGateway} {
		for _, protocol := range []conf.Protocol{conf.TCP, conf.UDP} {
			t.Run(string(source)+"/"+string(protocol), func(t *testing.T) {
				l := newLab(t, func(c *forward.Config) { c.SourceIP = source })
				l.serveReport(protocol, "[::]:80")
				l.publish(mapping(protocol, 8080, 80))
				for _, c := range []struct {
					name     string
					from     *unit.Netns
					to, want netip.Addr
				}{
					{"loopback v4", l.host, loopbackFour, gatewayFour},
					{"loopback v6", l.host, loopbackSix, gatewaySix},
					{"same host v4", l.host, hostFour, hostFour},
					{"same host v6", l.host, hostSix, hostSix},
					{"other namespace v4", l.client, hostFour, clientFour},
					{"other namespace v6", l.client, hostSix, clientSix},
				} {
					want := c.want
					if source == conf.SourceGateway {
						want = gatewayFour
						if c.to.Is6() {
							want = gatewaySix
						}
					}
					require.Equal(t, want.String(), l.seen(protocol, c.from, c.to, 8080), c.name)
				}
			})
		}
	}
}

// Where one family's default route leads elsewhere, clients of the other keep their address.
func TestSourceAddressOfOneFamily(t *testing.T) {
	for _, protocol := range []conf.Protocol{conf.TCP, conf.UDP} {
		t.Run(string(protocol), func(t *testing.T) {
			l := newLab(t, func(c *forward.Config) { c.Away6 = true })
			l.serveReport(protocol, "[::]:80")
			l.publish(mapping(protocol, 8080, 80))
			require.Equal(t, clientFour.String(), l.seen(protocol, l.client, hostFour, 8080))
			require.Equal(t, gatewaySix.String(), l.seen(protocol, l.client, hostSix, 8080))
		})
	}
}

// serveReport runs a service that reports the client's address.
func (l *lab) serveReport(protocol conf.Protocol, at string) {
	if protocol == conf.TCP {
		l.serveTCP(at, report)
		return
	}
	l.serveUDP(at, func(from netip.AddrPort, _ []byte) []byte { return []byte(from.Addr().String()) })
}

// seen is what the reporting service says about a client.
func (l *lab) seen(protocol conf.Protocol, from *unit.Netns, to netip.Addr, port uint16) string {
	l.t.Helper()
	c := l.dial(from, string(protocol), to, port)
	defer c.Close()
	return l.told(protocol, c)
}

// told is the service's report. The first datagram of all may be lost, while IPv6 of a
// link begins.
func (l *lab) told(protocol conf.Protocol, c net.Conn) (report string) {
	l.t.Helper()
	buffer := make([]byte, 100)
	if protocol == conf.TCP {
		n, err := c.Read(buffer)
		require.NoError(l.t, err)
		return string(buffer[:n])
	}
	l.eventually("an answer comes", func() bool {
		_, err := c.Write([]byte("?"))
		require.NoError(l.t, err)
		require.NoError(l.t, c.SetReadDeadline(time.Now().Add(time.Second)))
		n, err := c.Read(buffer)
		report = string(buffer[:n])
		return err == nil
	})
	return report
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// A client of a family that the container does not have comes from the gateway.
func TestOtherFamilyComesFromTheGateway(t *testing.T) {
	for _, protocol := range []conf.Protocol{conf.TCP, conf.UDP} {
		t.Run(string(protocol), func(t *testing.T) {
			l := newLab(t, func(c *forward.Config) {
				c.Container6, c.Gateway6, c.Subnet6 = netip.Addr{}, netip.Addr{}, netip.Prefix{}
			})
			l.serveReport(protocol, "[::]:80")
			l.publish(mapping(protocol, 8080, 80))
			require.Equal(t, clientFour.String(), l.seen(protocol, l.client, hostFour, 8080))
			require.Equal(t, gatewayFour.String(), l.seen(protocol, l.client, hostSix, 8080))
			require.EqualValues(t, 1, l.stats().GatewayFallbacks)
		})
	}
	l := newLab(t, func(c *forward.Config) {
		c.Container4, c.Gateway4, c.Subnet4 = netip.Addr{}, netip.Addr{}, netip.Prefix{}
	})
	l.serveReport(conf.TCP, "[::]:80")
	l.publish(mapping(conf.TCP, 8080, 80))
	require.Equal(t, clientSix.String(), l.seen(conf.TCP, l.client, hostSix, 8080))
	require.Equal(t, gatewaySix.String(), l.seen(conf.TCP, l.client, hostFour, 8080))
}

// A client whose address belongs to the container's network inside is somebody
// else there.
func TestClientOfTheContainersSubnetComesFromTheGateway(t *testing.T) {
	for _, protocol := range []conf.Protocol{conf.TCP, conf.UDP} {
		l := newLab(t, func(c *forward.Config) { c.Subnet4 = netip.MustParsePrefix("192.0.2.0/24") })
		l.serveReport(protocol, "[::]:80")
		l.publish(mapping(protocol, 8080, 80))
		require.Equal(t, gatewayFour.String(), l.seen(protocol, l.client, hostFour, 8080))
	}
}

// One client port may be connected to two ports of the container, and to one port
// through two host ports; the second of the latter is the same 4-tuple inside.
func TestOneClientPortThroughSeveralHostPorts(t *testing.T) {
	for _, protocol := range []conf.Protocol{conf.TCP, conf.UDP} {
		t.Run(string(protocol), func(t *testing.T) {
			l := newLab(t)
			l.serveReport(protocol, "[::]:80")
			l.serveReport(protocol, "[::]:81")
			l.publish(mapping(protocol, 8080, 80), mapping(protocol, 8081, 81), mapping(protocol, 8082, 80))
			require.Equal(t, clientFour.String(), l.seenFrom(protocol, from(40000), to(8080)))
			require.Equal(t, clientFour.String(), l.seenFrom(protocol, from(40000), to(8081)))
			require.Equal(t, clientFour.String(), l.seenFrom(protocol, from(40000), to(8082)), "from another port")
			stats := l.forwarder.Stats()
			require.Equal(t, []uint64{0, 0, 1}, []uint64{stats[0].PortFallbacks, stats[1].PortFallbacks, stats[2].PortFallbacks})
			require.Zero(t, stats[2].GatewayFallbacks)
		})
	}
}

// A client keeps its address where its port cannot be had inside: the service listens
// on that one itself, or the client has it for another address of the host.
func TestClientDoesNotLoseItsAddressByItsPort(t *testing.T) {
	for _, protocol := range []conf.Protocol{conf.TCP, conf.UDP} {
		t.Run(string(protocol), func(t *testing.T) {
			l := newLab(t)
			l.serveReport(protocol, "[::]:80")
			l.publish(mapping(protocol, 8080, 80))
			require.Equal(t, clientFour.String(), l.seenFrom(protocol, from(80), to(8080)), "the service's own port")
			require.Equal(t, clientFour.String(), l.seenFrom(protocol, from(1023), to(8080)), "a privileged port")
			require.Equal(t, clientFour.String(), l.seenFrom(protocol, from(40000), to(8080)))
			require.Equal(t, clientFour.String(), l.seenFrom(protocol, from(40000), netip.AddrPortFrom(hostSecond, 8080)), "another address of the host")
			s := l.stats()
			require.EqualValues(t, 4, s.Total)
			require.EqualValues(t, 2, s.PortFallbacks)
			require.Zero(t, s.GatewayFallbacks)
		})
	}
}

// Clients have their own ports inside, and may have every one that the kernel would
// choose from. Others still get in.
func TestClientsDoNotUseUpThePortsInside(t *testing.T) {
	l := newLab(t)
	l.in(l.container, func() {
		require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40009"), 0))
	})
	l.serveReport(conf.TCP, "[::]:80")
	l.publish(mapping(conf.TCP, 8080, 80))
	for port := range uint16(10) {
		require.Equal(t, clientFour.String(), l.seenFrom(conf.TCP, from(40000+port), to(8080)))
	}
	require.Equal(t, gatewayFour.String(), l.seen(conf.TCP, l.host, loopbackFour, 8080))
	require.Equal(t, clientFour.String(), l.seenFrom(conf.TCP, from(40000), netip.AddrPortFrom(hostSecond, 8080)))
}

// Nobody outside has these addresses, and the service would take some of them for its
// own machine's.
func TestAddressesThatNobodyHasComeFromTheGateway(t *testing.T) {
	own, ownSix := addr("198.51.100.9"), addr("2001:db8:9::9")
	for _, protocol := range []conf.Protocol{conf.TCP, conf.UDP} {
		t.Run(string(protocol), func(t *testing.T) {
			l := newLab(t)
			ip(t, l.container, "addr add 198.51.100.9/32 dev lo")
			ip(t, l.container, "addr add 2001:db8:9::9/128 dev lo nodad")
			l.serveReport(protocol, "[::]:80")
			l.publish(mapping(protocol, 8080, 80))
			for client, want := range map[netip.Addr]netip.Addr{
				addr("0.1.2.3"): gatewayFour, addr("240.0.0.1"): gatewayFour, own: gatewayFour,
				addr("::127.0.0.1"): gatewaySix, addr("::1.2.3.4"): gatewaySix, ownSix: gatewaySix,
				addr("198.51.100.10"): addr("198.51.100.10"), addr("2001:db8:9::10"): addr("2001:db8:9::10"),
			} {
				to, via, flags := hostFour, clientFour, ""
				if client.Is6() {
					to, via, flags = hostSix, clientSix, " nodad"
				}
				prefix := netip.PrefixFrom(client, client.BitLen()).String()
				ip(t, l.client, "addr add "+prefix+" dev lo"+flags)
				ip(t, l.host, "route add "+prefix+" via "+via.String())
				require.Equal(t, want.String(), l.seenFrom(protocol, netip.AddrPortFrom(client, 0), netip.AddrPortFrom(to, 8080)), client.String())
			}
		})
	}
}

// from is a port of the client, and to one of the host.
func from(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, port) }
func to(port uint16) netip.AddrPort   { return netip.AddrPortFrom(hostFour, port) }

// seenFrom asks from an address of the client and keeps the connection open.
func (l *lab) seenFrom(protocol conf.Protocol, from, to netip.AddrPort) string {
	l.t.Helper()
	var (
		c   net.Conn
		err error
	)
	l.in(l.client, func() { c, err = dialFrom(protocol, from, to) })
	require.NoError(l.t, err)
	l.t.Cleanup(func() { c.Close() })
	return l.told(protocol, c)
}

// What the container itself sends from a published TCP port leaves by the tap, also
// while the port has clients.
func TestContainersOwnConnectionsAreNotCaptured(t *testing.T) {
	l := newLab(t)
	l.serveTCP("[::]:80", echo)
	l.publish(mapping(conf.TCP, 8080, 80))
	client := l.dial(l.client, "tcp", hostFour, 8080)
	require.NoError(t, echoed(client))
	outside := l.listener(l.client, netip.AddrPortFrom(elsewhere, 123).String())
	var (
		own net.Conn
		err error
	)
	l.in(l.container, func() { own, err = dialFrom(conf.TCP, from(80), netip.AddrPortFrom(elsewhere, 123)) })
	require.NoError(t, err)
	defer own.Close()
	arrived, err := outside.Accept()
	require.NoError(t, err)
	defer arrived.Close()
	require.Equal(t, netip.AddrPortFrom(containerFour, 80).String(), arrived.RemoteAddr().String())
	require.NoError(t, echoed(client))
}
