package forward_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/portmap/forward"
)

// lab is three network namespaces: a host with a container behind the forwarder,
// and a client that reaches the host over a veth pair. The other end of the
// container's tap0 is in the client's namespace too, in place of slirp4netns.
type lab struct {
	t                       *testing.T
	host, client, container *unit.Netns
	namespace               *namespace
	forwarder               *forward.Forwarder
}

// The addresses of a lab.
var (
	hostFour      = netip.MustParseAddr("192.0.2.1")
	hostSix       = netip.MustParseAddr("2001:db8:1::1")
	hostSecond    = netip.MustParseAddr("192.0.2.3")
	clientFour    = netip.MustParseAddr("192.0.2.2")
	clientSix     = netip.MustParseAddr("2001:db8:1::2")
	containerFour = netip.MustParseAddr("10.0.2.100")
	containerSix  = netip.MustParseAddr("fd00::100")
	gatewayFour   = netip.MustParseAddr("10.0.2.2")
	gatewaySix    = netip.MustParseAddr("fd00::2")
	elsewhere     = netip.MustParseAddr("203.0.113.7") // on the other side of tap0
	loopbackFour  = netip.MustParseAddr("127.0.0.1")
	loopbackSix   = netip.IPv6Loopback()
)

// deadline only ends what hangs.
const deadline = 3 * time.Minute

// beside has the tests that run beside others, by name.
var beside sync.Map

// newLab makes a lab for a test that runs beside others: most of the time is waiting
// for the kernel to make and unmake namespaces.
func newLab(t *testing.T, change ...func(*forward.Config)) *lab {
	t.Helper()
	if _, is := beside.LoadOrStore(t.Name(), true); !is {
		t.Parallel()
	}
	return newLabAlone(t, change...)
}

// newLabAlone is newLab for a test that counts what the whole process has, or takes a
// port again that was just given back: a program of another test has a copy of all
// descriptors between fork and exec.
func newLabAlone(t *testing.T, change ...func(*forward.Config)) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, as it makes network namespaces")
	}
	l := &lab{t: t, host: newNetns(t), client: newNetns(t), container: newNetns(t)}
	l.furnish()
	var err error
	l.namespace, err = enterNamespace(l.container.Path(), containerFour, containerSix)
	require.NoError(t, err)
	t.Cleanup(l.namespace.close)
	config := forward.Config{
		Namespace: l.namespace,
		Target: forward.Target{
			Container4: containerFour, Gateway4: gatewayFour, Subnet4: netip.MustParsePrefix("10.0.2.0/24"),
			Container6: containerSix, Gateway6: gatewaySix, Subnet6: netip.MustParsePrefix("fd00::/64"),
		},
	}
	for _, c := range change {
		c(&config)
	}
	l.forwarder, err = forward.New(config)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, l.forwarder.Close())
		ports, clients := l.namespace.has()
		require.Zero(t, ports, "routing rules left")
		require.Zero(t, clients, "client routes left")
	})
	return l
}

func newNetns(t *testing.T) *unit.Netns {
	t.Helper()
	n, err := unit.NewNetns()
	require.NoError(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

func (l *lab) furnish() {
	ipBatch(l.t, l.host, `link set lo up
link add eth0 type veth peer name eth0 netns `+l.client.Path()+`
addr add 192.0.2.1/24 dev eth0
addr add 192.0.2.3/24 dev eth0
addr add 2001:db8:1::1/64 dev eth0 nodad
link set eth0 up
`)
	ipBatch(l.t, l.container, `link set lo up
link add tap0 type veth peer name tap0 netns `+l.client.Path()+`
addr add 10.0.2.100/24 dev tap0
addr add fd00::100/64 dev tap0 nodad
link set tap0 up
`)
	ipBatch(l.t, l.client, `link set lo up
addr add 192.0.2.2/24 dev eth0
addr add 2001:db8:1::2/64 dev eth0 nodad
link set eth0 up
addr add 10.0.2.2/24 dev tap0
addr add 203.0.113.7/32 dev lo
link set tap0 up
`)
	ipBatch(l.t, l.container, `route add 0.0.0.0/0 via 10.0.2.2
route add ::/0 via fd00::2
`)
	// A neighbour that does not answer within three seconds is unreachable, by default.
	for _, n := range []*unit.Netns{l.host, l.client, l.container} {
		l.in(n, func() {
			limits, err := filepath.Glob("/proc/sys/net/ipv[46]/neigh/[et]*0/mcast_solicit")
			require.NoError(l.t, err)
			require.NotEmpty(l.t, limits)
			for _, limit := range limits {
				require.NoError(l.t, os.WriteFile(limit, []byte("100"), 0))
			}
		})
	}
	// Until the kernel has said that a link is up, in its own time, what is sent is lost;
	// and until it has made its own route to an IPv6 address, nobody is reached there.
	for n, own := range map[*unit.Netns]netip.Addr{l.host: hostSix, l.client: clientSix, l.container: containerSix} {
		l.eventually("the links are up", func() bool {
			down := run(l.t, n, "", "ip", "-brief", "link", "show", "type", "veth")
			return !strings.Contains(down, "DOWN") && !strings.Contains(down, "UNKNOWN")
		})
		l.eventually("IPv6 has begun", func() bool {
			routes := run(l.t, n, "", "ip", "-6", "route", "show", "table", "local")
			return strings.Contains(routes, "local ::1 ") && strings.Contains(routes, "local "+own.String()+" ")
		})
	}
}

// run runs a program in a namespace, and returns what it printed.
func run(t *testing.T, n *unit.Netns, stdin string, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var (
		out []byte
		err error
	)
	require.NoError(t, n.Do(func() { out, err = cmd.CombinedOutput() }))
	require.NoError(t, err, "%q: %s: %s", argv, stdin, out)
	return string(out)
}

// ip runs one command of ip in a namespace, ipBatch several.
func ip(t *testing.T, n *unit.Netns, line string) {
	t.Helper()
	run(t, n, "", append([]string{"ip"}, strings.Fields(line)...)...)
}

func ipBatch(t *testing.T, n *unit.Netns, lines string) {
	t.Helper()
	run(t, n, lines, "ip", "-batch", "-")
}

// in runs f on a thread of its own inside a namespace; sockets that f makes belong
// to it.
func (l *lab) in(n *unit.Netns, f func()) {
	l.t.Helper()
	require.NoError(l.t, n.Do(f))
}

func (l *lab) listen(mappings ...conf.PortMapping) (sockets []forward.Socket, err error) {
	l.in(l.host, func() { sockets, err = forward.Listen(mappings) })
	return sockets, err
}

// publish adds mappings such as "8080:80/tcp" or "192.0.2.1:53:5353/udp".
func (l *lab) publish(mappings ...conf.PortMapping) {
	l.t.Helper()
	sockets, err := l.listen(mappings...)
	require.NoError(l.t, err)
	require.NoError(l.t, l.forwarder.Add(sockets))
}

func mapping(protocol conf.Protocol, hostPort, containerPort uint16) conf.PortMapping {
	return conf.PortMapping{HostPort: hostPort, ContainerPort: containerPort, Protocol: protocol}
}

// listener is a TCP listener in a namespace until the test ends.
func (l *lab) listener(n *unit.Netns, at string) net.Listener {
	l.t.Helper()
	var (
		listener net.Listener
		err      error
	)
	config := net.ListenConfig{Control: reusePort}
	config.SetMultipathTCP(false)
	l.in(n, func() { listener, err = config.Listen(context.Background(), "tcp", at) })
	require.NoError(l.t, err)
	l.t.Cleanup(func() { listener.Close() })
	return listener
}

// serveTCP runs a service in the container until the test ends.
func (l *lab) serveTCP(at string, serve func(*net.TCPConn)) {
	l.t.Helper()
	listener := l.listener(l.container, at)
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c.(*net.TCPConn)) }()
		}
	}()
}

// serveUDP answers each datagram in the container until the test ends.
func (l *lab) serveUDP(at string, answer func(from netip.AddrPort, datagram []byte) []byte) {
	l.t.Helper()
	conn := l.packet(l.container, at)
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			if reply := answer(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), bytes.Clone(buffer[:n])); reply != nil {
				_, _ = conn.WriteToUDPAddrPort(reply, from)
			}
		}
	}()
}

// packet is an unconnected UDP socket in a namespace.
func (l *lab) packet(n *unit.Netns, at string) *net.UDPConn {
	l.t.Helper()
	var (
		conn *net.UDPConn
		err  error
	)
	l.in(n, func() { conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at))) })
	require.NoError(l.t, err)
	l.t.Cleanup(func() { conn.Close() })
	return conn
}

// dial connects from a namespace, with a deadline on everything.
func (l *lab) dial(n *unit.Netns, network string, to netip.Addr, port uint16) net.Conn {
	l.t.Helper()
	c, err := l.tryDial(n, network, to, port)
	require.NoError(l.t, err)
	return c
}

func (l *lab) tryDial(n *unit.Netns, network string, to netip.Addr, port uint16) (c net.Conn, err error) {
	dialer := net.Dialer{Timeout: deadline}
	dialer.SetMultipathTCP(false)
	l.in(n, func() { c, err = dialer.Dial(network, netip.AddrPortFrom(to, port).String()) })
	if err == nil {
		l.t.Cleanup(func() { c.Close() })
		err = c.SetDeadline(time.Now().Add(deadline))
	}
	return c, err
}

// eventually waits for a condition.
func (l *lab) eventually(what string, condition func() bool) {
	l.t.Helper()
	require.Eventually(l.t, condition, deadline, 5*time.Millisecond, what)
}

// stats are the counters of the only port.
func (l *lab) stats() forward.PortStats {
	l.t.Helper()
	stats := l.forwarder.Stats()
	require.Len(l.t, stats, 1)
	return stats[0]
}

// reusePort lets others have the same port, among them what the container dials from
// the port that it serves on.
func reusePort(_, _ string, raw syscall.RawConn) (err error) {
	controlErr := raw.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	})
	return errors.Join(err, controlErr)
}

// dialFrom connects from a given address or port, which other connections may have as
// well.
func dialFrom(protocol conf.Protocol, from, to netip.AddrPort) (net.Conn, error) {
	dialer := net.Dialer{Timeout: deadline, Control: reusePort}
	dialer.SetMultipathTCP(false)
	if protocol == conf.TCP {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(from)
	} else {
		dialer.LocalAddr = net.UDPAddrFromAddrPort(from)
	}
	c, err := dialer.Dial(string(protocol), to.String())
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(deadline))
}
