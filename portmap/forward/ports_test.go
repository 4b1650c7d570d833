package forward_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/portmap/forward"
)

func TestPortsComeAndGoAtRunTime(t *testing.T) {
	l := newLabAlone(t)
	l.serveTCP(":80", echo)
	l.serveUDP("[::]:80", echoDatagrams)
	first, second := mapping(conf.TCP, 8080, 80), mapping(conf.TCP, 8081, 80)
	l.publish(first)
	kept := l.dial(l.client, "tcp", hostFour, 8080)
	require.NoError(t, echoed(kept))
	l.publish(second, mapping(conf.UDP, 8080, 80))
	other := l.dial(l.client, "tcp", hostFour, 8081)
	require.NoError(t, echoed(other))

	require.NoError(t, l.forwarder.Remove(first))
	_, err := l.tryDial(l.client, "tcp", hostFour, 8080)
	require.Error(t, err, "the removed port does not listen")
	require.NoError(t, echoed(kept), "its connections go on")
	require.NoError(t, echoed(other))
	require.Len(t, l.forwarder.Stats(), 2)
	require.ErrorIs(t, l.forwarder.Remove(first), os.ErrNotExist)

	l.publish(first)
	require.NoError(t, echoed(l.dial(l.client, "tcp", hostFour, 8080)), "it can come back")
	require.NoError(t, echoed(kept))
}

// The rule for replies stays as long as a connection needs it.
func TestRemovedPortKeepsItsRuleForItsConnections(t *testing.T) {
	l := newLab(t)
	l.serveTCP(":80", echo)
	m := mapping(conf.TCP, 8080, 80)
	l.publish(m)
	c := l.dial(l.client, "tcp", hostFour, 8080)
	require.NoError(t, echoed(c))
	require.NoError(t, l.forwarder.Remove(m))
	ports, _ := l.namespace.has()
	require.Equal(t, 1, ports)
	require.NoError(t, echoed(c))
	c.Close()
	l.eventually("the rule goes with the last connection", func() bool { ports, _ := l.namespace.has(); return ports == 0 })
}

func TestRemovedUDPPortEndsItsFlows(t *testing.T) {
	l := newLabAlone(t)
	l.serveUDP("[::]:53", echoDatagrams)
	m := mapping(conf.UDP, 5353, 53)
	l.publish(m)
	c := l.dial(l.client, "udp", hostFour, 5353)
	_, err := exchange(c, []byte("x"))
	require.NoError(t, err)
	require.NoError(t, l.forwarder.Remove(m))
	ports, clients := l.namespace.has()
	require.Zero(t, ports)
	require.Zero(t, clients)
	l.publish(m)
	_, err = exchange(l.dial(l.client, "udp", hostFour, 5353), []byte("x"))
	require.NoError(t, err)
}

func echoed(c io.ReadWriter) error {
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	answer := make([]byte, 5)
	if _, err := io.ReadFull(c, answer); err != nil {
		return err
	}
	if string(answer) != "hello" {
		return fmt.Errorf("got %q", answer)
	}
	return nil
}

func TestThousandsOfPorts(t *testing.T) {
	ports := 10000 // one descriptor each
	if testing.Short() || raceEnabled {
		ports = 500
	}
	l := newLabAlone(t)
	l.serveTCP(":80", echo)
	l.serveUDP("[::]:80", echoDatagrams)
	var mappings []conf.PortMapping
	for i := range ports {
		m := mapping([]conf.Protocol{conf.TCP, conf.UDP}[i%2], uint16(10000+i), 80)
		m.HostIP = netip.IPv4Unspecified()
		mappings = append(mappings, m)
	}
	descriptors, goroutines := openDescriptors(t), runtime.NumGoroutine()
	l.publish(mappings...)
	require.LessOrEqual(t, openDescriptors(t)-descriptors, ports+20)
	require.LessOrEqual(t, runtime.NumGoroutine()-goroutines, runtime.NumCPU()+4, "no goroutine for each port")
	require.NoError(t, echoed(l.dial(l.client, "tcp", hostFour, 10000)))
	_, err := exchange(l.dial(l.client, "udp", hostFour, uint16(10000+ports-1)), []byte("x"))
	require.NoError(t, err)
	require.Len(t, l.forwarder.Stats(), ports)
}

func TestHostIPIsHonoured(t *testing.T) {
	l := newLab(t)
	l.serveTCP("[::]:80", echo)
	at := func(ip netip.Addr) conf.PortMapping {
		return conf.PortMapping{HostIP: ip, HostPort: 8080, ContainerPort: 80, Protocol: conf.TCP}
	}
	second := addr("127.0.0.2")
	l.publish(at(second), at(hostFour), at(loopbackSix))
	for _, ip := range []netip.Addr{second, hostFour, loopbackSix} {
		require.NoError(t, echoed(l.dial(l.host, "tcp", ip, 8080)))
	}
	for _, ip := range []netip.Addr{loopbackFour, hostSecond, hostSix} {
		_, err := l.tryDial(l.host, "tcp", ip, 8080)
		require.Error(t, err, ip)
	}
}

func TestLinkLocalHostIPWithItsZone(t *testing.T) {
	for _, protocol := range []conf.Protocol{conf.TCP, conf.UDP} {
		l := newLab(t)
		ip(t, l.host, "addr add fe80::1234/64 dev eth0 nodad")
		ip(t, l.client, "addr add fe80::5678/64 dev eth0 nodad")
		l.serveReport(protocol, "[::]:80")
		l.publish(conf.PortMapping{HostIP: addr("fe80::1234%eth0"), HostPort: 8080, ContainerPort: 80, Protocol: protocol})
		// By number: what package net knows of names is of any namespace.
		require.Equal(t, gatewaySix.String(), l.seen(protocol, l.client, addr("fe80::1234").WithZone(l.indexOf(l.client, "eth0")), 8080))
	}
}

// indexOf is the number of an interface of a namespace.
func (l *lab) indexOf(n *unit.Netns, link string) string {
	l.t.Helper()
	var number int
	l.in(n, func() {
		i, err := net.InterfaceByName(link)
		require.NoError(l.t, err)
		number = i.Index
	})
	return strconv.Itoa(number)
}

func TestListenIsAllOrNothing(t *testing.T) {
	l := newLabAlone(t)
	taken, err := l.listen(mapping(conf.TCP, 8081, 80))
	require.NoError(t, err)
	_, err = l.listen(mapping(conf.TCP, 8080, 80), mapping(conf.TCP, 8081, 80))
	requireCode(t, err, conf.ErrPortInUse, "8081/tcp", "ss -Hlnpt 'sport = :8081'")
	for _, s := range taken {
		s.File.Close()
	}
	again, err := l.listen(mapping(conf.TCP, 8080, 80), mapping(conf.TCP, 8081, 80))
	require.NoError(t, err)
	require.Len(t, again, 2, "one descriptor for both address families")
	require.NoError(t, l.forwarder.Add(again))
}

func TestListenErrorsNameTheRemedy(t *testing.T) {
	l := newLab(t)
	_, err := l.listen(mapping(conf.SCTP, 8080, 80))
	requireCode(t, err, types.ErrUnsupportedField, "sctp", "as root")
	missing := conf.PortMapping{HostIP: addr("198.51.100.1"), HostPort: 8080, ContainerPort: 80, Protocol: conf.UDP}
	_, err = l.listen(missing)
	requireCode(t, err, conf.ErrNetwork, "no address 198.51.100.1", "8080/udp")
	missing.HostIP = addr("fe80::1%nosuch0")
	_, err = l.listen(missing)
	requireCode(t, err, conf.ErrNetwork, "fe80::1%nosuch0")
}

func requireCode(t *testing.T, err error, code uint, texts ...string) {
	t.Helper()
	var cniErr *types.Error
	require.ErrorAs(t, err, &cniErr)
	require.Equal(t, code, cniErr.Code)
	for _, text := range texts {
		require.Contains(t, cniErr.Msg, text)
	}
}

func TestConfigIsChecked(t *testing.T) {
	l := newLab(t)
	for name, c := range map[string]forward.Config{
		"no namespace":       {Target: forward.Target{Container4: containerFour, Gateway4: gatewayFour}},
		"loopback container": {Namespace: l.namespace, Target: forward.Target{Container4: loopbackFour, Gateway4: gatewayFour}},
		"no gateway":         {Namespace: l.namespace, Target: forward.Target{Container4: containerFour}},
		"gateway of another": {Namespace: l.namespace, Target: forward.Target{Container4: containerFour, Gateway4: gatewaySix}},
	} {
		_, err := forward.New(c)
		require.Error(t, err, name)
	}
	f, err := forward.New(forward.Config{Namespace: l.namespace})
	require.NoError(t, err)
	require.ErrorContains(t, f.Add(nil), "neither an IPv4 nor an IPv6 address")
	require.NoError(t, f.Close())
}

func TestClosedForwarderTakesNoPorts(t *testing.T) {
	l := newLabAlone(t)
	l.serveTCP(":80", echo)
	l.publish(mapping(conf.TCP, 8080, 80))
	c := l.dial(l.client, "tcp", hostFour, 8080)
	require.NoError(t, echoed(c))
	require.NoError(t, l.forwarder.Close())
	require.Error(t, echoed(c))
	sockets, err := l.listen(mapping(conf.TCP, 8080, 80))
	require.NoError(t, err, "the port is free at once")
	require.ErrorIs(t, l.forwarder.Add(sockets), forward.ErrClosed)
}
