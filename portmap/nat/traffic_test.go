package nat

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// TestTraffic drives packets over every path to a published port.
func TestTraffic(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := newLab(t, backend)
		before := l.host.rules(t)
		l.web.serve(t, "web", 80)
		l.add(t, publishWeb(port(conf.TCP, "", 8080, 80), port(conf.UDP, "", 8080, 80)))
		paths := []struct {
			name string
			from *space
			to   string
			saw  string // the address that the container saw
		}{
			{"client over IPv4", l.client, hostAddr, clientAddr},
			{"client over IPv6", l.client, hostAddr6, clientAddr6},
			{"client, other address of the host", l.client, otherAddr, clientAddr},
			{"host to its own address", l.host, hostAddr, hostAddr},
			{"host to its own IPv6 address", l.host, hostAddr6, hostAddr6},
			{"host over 127.0.0.1", l.host, "127.0.0.1", bridgeAddr},
			{"host over 127.0.0.9", l.host, "127.0.0.9", bridgeAddr},
			{"container to itself", l.web, hostAddr, bridgeAddr},
			{"container to itself over IPv6", l.web, hostAddr6, "fd88::1"},
			{"container to itself by the bridge's address", l.web, bridgeAddr, bridgeAddr},
			{"neighbour on the bridge", l.twin, hostAddr, bridgeAddr},
			{"neighbour on the bridge over IPv6", l.twin, hostAddr6, "fd88::1"},
		}
		for _, p := range paths {
			for _, network := range []string{"tcp", "udp"} {
				t.Run(network+" "+p.name, func(t *testing.T) {
					answer, err := p.from.ask(t, network, net.JoinHostPort(p.to, "8080"))
					require.NoError(t, err)
					require.Equal(t, "web saw "+p.saw, answer)
				})
			}
		}
		l.del(t, publishWeb())
		require.Equal(t, before, l.host.rules(t))
		_, err := l.client.ask(t, "tcp", net.JoinHostPort(hostAddr, "8080"))
		require.ErrorContains(t, err, "refused")
	})
}

// TestHostIP shows that a mapping of one address answers there only.
func TestHostIP(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := newLab(t, backend)
		before := l.host.rules(t)
		l.web.serve(t, "web", 80)
		l.twin.serve(t, "twin", 80)
		l.add(t, publishWeb(port(conf.TCP, otherAddr, 8080, 80), port(conf.UDP, otherAddr6, 8080, 80), port(conf.TCP, "127.0.0.1", 9090, 80)))
		l.add(t, publishTwin(port(conf.TCP, hostAddr, 8080, 80)))
		for _, c := range []struct {
			from                  *space
			network, to, expected string
		}{
			{l.client, "tcp", otherAddr + ":8080", "web saw " + clientAddr},
			{l.client, "tcp", hostAddr + ":8080", "twin saw " + clientAddr},
			{l.client, "udp", "[" + otherAddr6 + "]:8080", "web saw " + clientAddr6},
			{l.client, "udp", "[" + hostAddr6 + "]:8080", ""},
			{l.client, "udp", otherAddr + ":8080", ""},
			{l.client, "tcp", hostAddr + ":9090", ""},
			{l.host, "tcp", "127.0.0.1:9090", "web saw " + bridgeAddr},
			{l.host, "tcp", "127.0.0.2:9090", ""},
			{l.host, "tcp", "127.0.0.1:8080", ""},
			{l.twin, "tcp", bridgeAddr + ":9090", ""},
		} {
			answer, err := c.from.ask(t, c.network, c.to)
			if c.expected == "" {
				require.ErrorContains(t, err, "refused", "%s %s", c.network, c.to)
				continue
			}
			require.NoError(t, err, "%s %s", c.network, c.to)
			require.Equal(t, c.expected, answer)
		}
		l.del(t, publishTwin())
		l.del(t, publishWeb())
		require.Equal(t, before, l.host.rules(t))
	})
}

// TestNoSNAT shows that without SNAT every connection that can work shows the
// client's own address, on the bridge too.
func TestNoSNAT(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := newLab(t, backend)
		l.web.serve(t, "web", 80)
		p := publishWeb(port(conf.TCP, "", 8080, 80), port(conf.UDP, "", 8080, 80))
		p.SNAT = false
		l.add(t, p)
		require.NoError(t, l.check(t, p))
		answer, err := l.client.ask(t, "tcp", hostAddr+":8080")
		require.NoError(t, err)
		require.Equal(t, "web saw "+clientAddr, answer)
		l.host.do(t, func() {
			now, err := os.ReadFile(localnetPath("br0"))
			require.NoError(t, err)
			require.Equal(t, "0\n", string(now), "route_localnet")
		})
		if l.setBridgeNetfilter(t, "1") {
			answer, err = l.twin.ask(t, "tcp", hostAddr+":8080")
			require.NoError(t, err)
			require.Equal(t, "web saw "+twinAddr, answer)
		}
	})
}

// TestBridgeNetfilter is the hairpin with bridged packets going through the
// firewall, as on hosts with Docker or Kubernetes.
func TestBridgeNetfilter(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := newLab(t, backend)
		if !l.setBridgeNetfilter(t, "1") {
			t.Skip("needs br_netfilter")
		}
		l.host.run(t, "ip", "link", "set", "vweb", "type", "bridge_slave", "hairpin", "on")
		l.web.serve(t, "web", 80)
		l.add(t, publishWeb(port(conf.TCP, "", 8080, 80)))
		for _, from := range []*space{l.web, l.twin} {
			for _, to := range []string{hostAddr, hostAddr6} {
				answer, err := from.ask(t, "tcp", net.JoinHostPort(to, "8080"))
				require.NoError(t, err)
				require.Contains(t, answer, "web saw ")
			}
		}
	})
}

// TestGuard shows that the sysctl that lets the host reach containers over
// 127.0.0.1 does not let containers reach the host's loopback (CVE-2020-8558).
func TestGuard(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := newLab(t, backend)
		// A container that routes 127.0.0.1 to the bridge.
		l.web.run(t, "ip", "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local")
		l.web.run(t, "ip", "route", "del", "local", "127.0.0.1", "dev", "lo", "table", "local")
		l.web.run(t, "ip", "route", "add", "127.0.0.1", "via", bridgeAddr, "src", webAddr)
		l.host.sysctl(t, "ipv4/conf/br0/route_localnet", "1")
		service := l.host.listenUDP(t, "0.0.0.0:631")
		// Datagrams keep their order, so the second one says that the first was lost.
		l.web.tell(t, "127.0.0.1:631", "attack")
		require.Equal(t, "attack", hear(t, service), "it works while nothing is published")
		l.add(t, publishTwin(port(conf.TCP, "", 8080, 80)))
		l.web.tell(t, "127.0.0.1:631", "attack")
		l.web.tell(t, bridgeAddr+":631", "ordinary")
		require.Equal(t, "ordinary", hear(t, service))
	})
}

func (s *space) listenUDP(t *testing.T, addr string) (c net.PacketConn) {
	t.Helper()
	s.do(t, func() {
		var err error
		c, err = net.ListenPacket("udp4", addr)
		require.NoError(t, err)
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (s *space) tell(t *testing.T, addr, word string) {
	t.Helper()
	s.do(t, func() {
		c, err := net.Dial("udp4", addr)
		require.NoError(t, err)
		_, err = c.Write([]byte(word))
		require.NoError(t, err)
		_ = c.Close()
	})
}

func hear(t *testing.T, c net.PacketConn) string {
	t.Helper()
	b := make([]byte, 64)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
	n, _, err := c.ReadFrom(b)
	require.NoError(t, err)
	return string(b[:n])
}

// TestUDPSwitch is a client that keeps its socket while the port goes from the
// host to one container and then to another: no answer may come from before.
func TestUDPSwitch(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := newLab(t, backend)
		l.web.serve(t, "web", 53)
		l.twin.serve(t, "twin", 53)
		mapping := port(conf.UDP, "", 5353, 53)
		for _, to := range []string{hostAddr, hostAddr6} {
			var c net.Conn
			l.client.do(t, func() {
				var err error
				c, err = net.Dial("udp", net.JoinHostPort(to, "5353"))
				require.NoError(t, err)
			})
			_, err := converse(c)
			require.ErrorContains(t, err, "refused")
			for _, p := range []Published{publishWeb(mapping), publishTwin(mapping), publishWeb(mapping)} {
				l.add(t, p)
				answer, err := converse(c)
				for errors.Is(err, unix.ECONNREFUSED) { // of the word before
					answer, err = converse(c)
				}
				require.NoError(t, err)
				require.Contains(t, answer, p.Owner.ContainerID+" saw ")
				l.del(t, p)
			}
			require.NoError(t, c.Close())
		}
	})
}

// TestConnectionsForgotten shows that Del leaves no entry of connection tracking
// with the container, and leaves those of others.
func TestConnectionsForgotten(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := newLab(t, backend)
		l.web.serve(t, "web", 80)
		l.twin.serve(t, "twin", 80)
		l.add(t, publishWeb(port(conf.TCP, "", 8080, 80), port(conf.UDP, "", 8080, 80)))
		l.add(t, publishTwin(port(conf.TCP, "", 9090, 80)))
		for _, where := range []string{"8080", "9090"} {
			for _, host := range []string{hostAddr, hostAddr6} {
				_, err := l.client.ask(t, "tcp", net.JoinHostPort(host, where))
				require.NoError(t, err)
			}
		}
		_, err := l.client.ask(t, "udp", hostAddr+":8080")
		require.NoError(t, err)
		require.Equal(t, []string{"8080", "8080", "8080", "9090", "9090"}, l.flows(t))
		l.del(t, publishWeb())
		require.Equal(t, []string{"9090", "9090"}, l.flows(t))
		l.del(t, publishTwin(port(conf.TCP, "", 9090, 80)))
		require.Empty(t, l.flows(t))
	})
}

// flows are the published ports of the translated entries of connection tracking.
func (l *lab) flows(t *testing.T) []string {
	t.Helper()
	var ports []string
	l.host.do(t, func() {
		for _, f := range families() {
			require.NoError(t, eachEntry(f, nil, func(c entry) error {
				if c.answerer != c.dst {
					ports = append(ports, strconv.Itoa(int(c.dst.Port())))
				}
				return nil
			}))
		}
	})
	slices.Sort(ports)
	return ports
}

// TestFlowFilters shows that the kernel sends the entries asked for only.
func TestFlowFilters(t *testing.T) {
	t.Parallel()
	l := newLab(t, conf.BackendNFTables)
	l.web.serve(t, "web", 80)
	l.twin.serve(t, "twin", 80)
	l.add(t, publishWeb(port(conf.TCP, "", 8080, 80), port(conf.UDP, "", 8080, 80)))
	l.add(t, publishTwin(port(conf.TCP, "", 9090, 80)))
	for _, to := range []string{hostAddr + ":8080", hostAddr + ":9090", "[" + hostAddr6 + "]:8080"} {
		_, err := l.client.ask(t, "tcp", to)
		require.NoError(t, err)
	}
	_, err := l.client.ask(t, "udp", hostAddr+":8080")
	require.NoError(t, err)
	for _, tt := range []struct {
		name   string
		family family
		filter attrs
		want   int
	}{
		{"all", ipv4, nil, 3},
		{"udp", ipv4, ofProtocol(unix.IPPROTO_UDP), 1},
		{"udp to a port", ipv4, toPort(unix.IPPROTO_UDP, 8080), 1},
		{"udp from a port", ipv4, fromPort(unix.IPPROTO_UDP, 80), 1},
		{"tcp from a port", ipv4, fromPort(unix.IPPROTO_TCP, 80), 2},
		{"tcp from a port over IPv6", ipv6, fromPort(unix.IPPROTO_TCP, 80), 1},
		{"tcp from another port over IPv6", ipv6, fromPort(unix.IPPROTO_TCP, 81), 0},
		{"udp to another port", ipv4, toPort(unix.IPPROTO_UDP, 9090), 0},
		{"tcp to a port", ipv4, toPort(unix.IPPROTO_TCP, 8080), 1},
		{"sctp to a port", ipv4, toPort(unix.IPPROTO_SCTP, 8080), 0},
		{"tcp to a port over IPv6", ipv6, toPort(unix.IPPROTO_TCP, 8080), 1},
		{"sctp", ipv4, ofProtocol(unix.IPPROTO_SCTP), 0},
		{"web", ipv4, answeredBy(netip.MustParseAddr(webAddr)), 2},
		{"twin", ipv4, answeredBy(netip.MustParseAddr(twinAddr)), 1},
		{"udp over IPv6", ipv6, ofProtocol(unix.IPPROTO_UDP), 0},
		{"tcp over IPv6", ipv6, ofProtocol(unix.IPPROTO_TCP), 1},
	} {
		l.host.do(t, func() {
			got := 0
			require.NoError(t, eachEntry(tt.family, tt.filter, func(entry) error {
				got++
				return nil
			}))
			require.Equal(t, tt.want, got, tt.name)
		})
	}
}

// TestListedByPort shows which lists are asked for: few ports have one each, many have one
// of their protocol.
func TestListedByPort(t *testing.T) {
	mappings := func(proto uint8, ports int) (fs []forward) {
		for n := range ports {
			fs = append(fs, forward{slot: slot{proto, netip.IPv4Unspecified(), uint16(5000 + n)}})
		}
		return fs
	}
	of := func(fs []forward) (filters []attrs, forwards int) {
		for _, l := range byPort(fs, func(f forward) uint16 { return f.port }, toPort) {
			filters, forwards = append(filters, l.filter), forwards+len(l.forwards)
		}
		return filters, forwards
	}
	filters, n := of(mappings(unix.IPPROTO_UDP, 2))
	require.ElementsMatch(t, []attrs{toPort(unix.IPPROTO_UDP, 5000), toPort(unix.IPPROTO_UDP, 5001)}, filters)
	require.Equal(t, 2, n)
	filters, n = of(append(mappings(unix.IPPROTO_UDP, fewPorts+1), mappings(unix.IPPROTO_TCP, 1)...))
	require.ElementsMatch(t, []attrs{ofProtocol(unix.IPPROTO_UDP), toPort(unix.IPPROTO_TCP, 5000)}, filters)
	require.Equal(t, fewPorts+2, n)
	filters, _ = of(nil)
	require.Empty(t, filters)
}
