package nat

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
)

// chosen is an empty folder, first in PATH: see useIPTables.
var chosen string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if slices.Contains(os.Args, "--") {
		return m.Run() // a process that a test has started, and kills
	}
	// Namespaces wait for the kernel most of the time. A -parallel of the command line
	// still has precedence.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	var err error
	if chosen, err = os.MkdirTemp("", "nat-chosen-"); err != nil {
		panic(err)
	}
	defer os.Remove(chosen)
	if err := os.Setenv("PATH", chosen+":"+os.Getenv("PATH")); err != nil {
		panic(err)
	}
	return unit.RunTests(m)
}

// patience only ends a wait for what never comes.
const patience = 2 * time.Minute

// space is a host or a container. One for a certain kind of iptables has a mount
// namespace, too.
type space struct {
	net    *unit.Netns
	mounts *os.File
}

func newSpace(t testing.TB) *space {
	t.Helper()
	net, err := unit.NewNetns()
	if os.Geteuid() != 0 {
		t.Skip("needs root: ", err)
	}
	require.NoError(t, err)
	s := &space{net: net}
	t.Cleanup(func() {
		_ = s.net.Close()
		if s.mounts != nil {
			_ = s.mounts.Close()
		}
	})
	s.do(t, func() {
		if programs := programsOf(t); programs != "" {
			s.mounts = chooseIPTables(t, programs)
		}
		lo, err := netlink.LinkByName("lo")
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetUp(lo))
		// Duplicate address detection takes a second for each interface.
		for _, which := range []string{"all", "default"} {
			require.NoError(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/accept_dad", []byte("0"), 0o644))
		}
	})
	return s
}

// chooseIPTables gives the thread a mount namespace where these programs are first in
// PATH. Its /run is its own, since locks there are for one host.
func chooseIPTables(t testing.TB, programs string) (mounts *os.File) {
	t.Helper()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNS))
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	require.NoError(t, unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"))
	require.NoError(t, unix.Mount(programs, chosen, "", unix.MS_BIND, ""))
	mounts, err := os.Open("/proc/thread-self/ns/mnt")
	require.NoError(t, err)
	return mounts
}

// do runs f inside the namespace.
func (s *space) do(t testing.TB, f func()) {
	t.Helper()
	err := s.net.Do(func() {
		if s.mounts != nil {
			require.NoError(t, unix.Unshare(unix.CLONE_FS)) // setns(2) asks for it
			require.NoError(t, unix.Setns(int(s.mounts.Fd()), unix.CLONE_NEWNS))
		}
		f()
	})
	require.NoError(t, err)
	if t.Failed() {
		t.FailNow()
	}
}

func (s *space) run(t testing.TB, argv ...string) string {
	t.Helper()
	var out []byte
	s.do(t, func() {
		var err error
		out, err = exec.Command(argv[0], argv[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", argv, out)
	})
	return string(out)
}

func (s *space) sysctl(t testing.TB, path, value string) {
	t.Helper()
	s.do(t, func() { require.NoError(t, os.WriteFile("/proc/sys/net/"+path, []byte(value), 0o644)) })
}

// rules is all that a firewall may have in the namespace.
func (s *space) rules(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, argv := range [][]string{{"nft", "list", "ruleset"}, {"iptables-save"}, {"ip6tables-save"}} {
		for line := range strings.Lines(s.run(t, argv...)) {
			if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ":") {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// prime has iptables make its built-in tables and chains, which stay once they
// were used, so that rules compares ours only.
func (s *space) prime(t testing.TB) {
	t.Helper()
	for _, command := range []string{"-A", "-D"} {
		for _, chain := range []string{"PREROUTING", "OUTPUT", "POSTROUTING"} {
			s.run(t, "iptables", "-t", "nat", command, chain, "-j", "RETURN")
			s.run(t, "ip6tables", "-t", "nat", command, chain, "-j", "RETURN")
		}
		s.run(t, "iptables", "-t", "raw", command, "PREROUTING", "-j", "RETURN")
	}
}

// lab is a host with a bridge, two containers on it, and a client a wire away.
//
//	client 192.0.2.2, fd99::2 -- eth0 192.0.2.1, 192.0.2.9, fd99::1, fd99::9 host br0 10.88.0.1, fd88::1 -- web 10.88.0.2, fd88::2
//	                                                                                               +-- twin 10.88.0.3, fd88::3
type lab struct {
	host, client, web, twin *space
	backend                 conf.Backend
}

const (
	hostAddr, hostAddr6   = "192.0.2.1", "fd99::1"
	otherAddr, otherAddr6 = "192.0.2.9", "fd99::9"
	clientAddr            = "192.0.2.2"
	clientAddr6           = "fd99::2"
	bridgeAddr            = "10.88.0.1"
	webAddr, webAddr6     = "10.88.0.2", "fd88::2"
	twinAddr, twinAddr6   = "10.88.0.3", "fd88::3"
)

func newLab(t testing.TB, backend conf.Backend) *lab {
	t.Helper()
	l := &lab{newSpace(t), newSpace(t), newSpace(t), newSpace(t), backend}
	l.host.do(t, func() {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		require.NoError(t, netlink.LinkAdd(br))
		for name, peer := range map[string]*space{"eth0": l.client, "vweb": l.web, "vtwin": l.twin} {
			require.NoError(t, netlink.LinkAdd(&netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(peer.net.Fd()),
			}))
		}
		for _, name := range []string{"vweb", "vtwin"} {
			v, err := netlink.LinkByName(name)
			require.NoError(t, err)
			require.NoError(t, netlink.LinkSetMaster(v, br))
			require.NoError(t, netlink.LinkSetUp(v))
		}
		address(t, "br0", bridgeAddr+"/24", "fd88::1/64")
		address(t, "eth0", hostAddr+"/24", otherAddr+"/24", hostAddr6+"/64", otherAddr6+"/64")
	})
	l.host.sysctl(t, "ipv4/ip_forward", "1")
	l.host.sysctl(t, "ipv6/conf/all/forwarding", "1")
	l.setBridgeNetfilter(t, "0")
	l.rememberConnections(t)
	if backend != conf.BackendNFTables {
		l.host.prime(t)
	}
	l.client.endpoint(t, "192.0.2.1", "fd99::1", clientAddr+"/24", clientAddr6+"/64")
	l.web.endpoint(t, bridgeAddr, "fd88::1", webAddr+"/24", webAddr6+"/64")
	l.twin.endpoint(t, bridgeAddr, "fd88::1", twinAddr+"/24", twinAddr6+"/64")
	return l
}

// rememberConnections has the kernel keep what it tracks for longer than a test takes,
// however slow the machine is.
func (l *lab) rememberConnections(t testing.TB) {
	t.Helper()
	for _, what := range []string{"udp_timeout", "udp_timeout_stream", "tcp_timeout_close", "tcp_timeout_time_wait"} {
		l.host.sysctl(t, "netfilter/nf_conntrack_"+what, "3600")
	}
}

// setBridgeNetfilter says whether bridged packets go through the firewall, where
// the kernel can do that.
func (l *lab) setBridgeNetfilter(t testing.TB, value string) bool {
	t.Helper()
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil {
		return false
	}
	l.host.sysctl(t, "bridge/bridge-nf-call-iptables", value)
	l.host.sysctl(t, "bridge/bridge-nf-call-ip6tables", value)
	return true
}

func address(t testing.TB, link string, addrs ...string) {
	t.Helper()
	l, err := netlink.LinkByName(link)
	require.NoError(t, err)
	for _, a := range addrs {
		parsed, err := netlink.ParseAddr(a)
		require.NoError(t, err)
		// No duplicate address detection, which takes a second.
		parsed.Flags |= unix.IFA_F_NODAD
		require.NoError(t, netlink.AddrAdd(l, parsed))
	}
	require.NoError(t, netlink.LinkSetUp(l))
}

func (s *space) endpoint(t testing.TB, gw4, gw6 string, addrs ...string) {
	t.Helper()
	s.do(t, func() {
		address(t, "eth0", addrs...)
		for _, gw := range []string{gw4, gw6} {
			require.NoError(t, netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw)}))
		}
	})
}

// serve answers on a port of the namespace with "name saw client-address", over
// tcp and udp, IPv4 and IPv6, until the test ends.
func (s *space) serve(t testing.TB, name string, port int) {
	t.Helper()
	s.do(t, func() {
		addr := fmt.Sprintf(":%d", port)
		l, err := net.Listen("tcp", addr)
		require.NoError(t, err)
		t.Cleanup(func() { _ = l.Close() })
		go serveTCP(l, name)
		for _, network := range []string{"udp4", "udp6"} {
			c, err := net.ListenPacket(network, addr)
			require.NoError(t, err)
			t.Cleanup(func() { _ = c.Close() })
			go serveUDP(c, name)
		}
	})
}

func sawText(name string, a net.Addr) []byte {
	ap := netip.MustParseAddrPort(a.String())
	return []byte(name + " saw " + ap.Addr().Unmap().String())
}

func serveTCP(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write(sawText(name, c.RemoteAddr()))
		_ = c.Close()
	}
}

// serveUDP has the question behind the answer, which may be late.
func serveUDP(c net.PacketConn, name string) {
	b := make([]byte, 64)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(append(sawText(name, from), b[:n]...), from)
	}
}

// ask says something to an address and returns the answer.
func (s *space) ask(t testing.TB, network, addr string) (answer string, err error) {
	t.Helper()
	s.do(t, func() {
		var c net.Conn
		d := net.Dialer{Timeout: patience}
		if c, err = d.Dial(network, addr); err == nil {
			answer, err = converse(c)
			_ = c.Close()
		}
	})
	return answer, err
}

// asked numbers the questions.
var asked atomic.Int64

// converse sends a word and reads the answer. A datagram may be lost while a
// neighbour is being resolved, so it is repeated; the answer to an earlier one may be
// late, and is passed over.
func converse(c net.Conn) (string, error) {
	question := fmt.Sprintf(" (question %d)", asked.Add(1))
	b := make([]byte, 128)
	for end := time.Now().Add(patience); ; {
		if _, err := c.Write([]byte(question)); err != nil {
			return "", err
		}
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := c.Read(b)
		for ; err == nil; n, err = c.Read(b) {
			answer, isIts := strings.CutSuffix(string(b[:n]), question)
			if _, isStream := c.(*net.TCPConn); isIts || isStream {
				return answer, nil
			}
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
			return "", err
		}
	}
}

// inHost runs f with the backend in the host's namespace.
func (l *lab) inHost(t testing.TB, f func(Backend) error) (err error) {
	t.Helper()
	l.host.do(t, func() {
		var b Backend
		if b, err = Open(l.backend); err == nil {
			err = f(b)
		}
	})
	return err
}

func (l *lab) tryAdd(t testing.TB, p Published) error {
	t.Helper()
	return l.inHost(t, func(b Backend) error { return b.Add(t.Context(), p) })
}

func (l *lab) add(t testing.TB, p Published) {
	t.Helper()
	require.NoError(t, l.tryAdd(t, p))
}

func (l *lab) del(t testing.TB, p Published) {
	t.Helper()
	require.NoError(t, l.inHost(t, func(b Backend) error { return b.Del(t.Context(), p) }))
}

func (l *lab) check(t testing.TB, p Published) error {
	t.Helper()
	return l.inHost(t, func(b Backend) error { return b.Check(t.Context(), p) })
}

func (l *lab) restore(t testing.TB, all ...Published) error {
	t.Helper()
	return l.inHost(t, func(b Backend) error {
		_, err := b.Restore(t.Context(), all)
		return err
	})
}

// restored is restore, telling whose ports were put back.
func (l *lab) restored(t testing.TB, all ...Published) (owners []conf.Key) {
	t.Helper()
	require.NoError(t, l.inHost(t, func(b Backend) (err error) {
		owners, err = b.Restore(t.Context(), all)
		return err
	}))
	return owners
}

func (l *lab) free(t testing.TB, p Published) error {
	t.Helper()
	return l.inHost(t, func(b Backend) error { _, err := b.Free(t.Context(), p); return err })
}

// publishWeb and publishTwin are the publications of the two containers.
func publishWeb(ports ...conf.PortMapping) Published {
	return publish("web", []string{webAddr, webAddr6}, ports...)
}

func publishTwin(ports ...conf.PortMapping) Published {
	return publish("twin", []string{twinAddr, twinAddr6}, ports...)
}

func publish(container string, ips []string, ports ...conf.PortMapping) Published {
	p := Published{Owner: conf.Key{Network: "lab", ContainerID: container, IfName: "eth0"}, Ports: ports, SNAT: true}
	for _, ip := range ips {
		p.IPs = append(p.IPs, netip.MustParseAddr(ip))
	}
	return p
}

func port(proto conf.Protocol, hostIP string, host, container uint16) conf.PortMapping {
	m := conf.PortMapping{HostPort: host, ContainerPort: container, Protocol: proto}
	if hostIP != "" {
		m.HostIP = netip.MustParseAddr(hostIP)
	}
	return m
}

// backends runs a test against each backend, iptables in both its kinds, beside
// each other and other tests.
func backends(t *testing.T, f func(t *testing.T, backend conf.Backend)) {
	t.Helper()
	t.Parallel()
	t.Run("nftables", func(t *testing.T) {
		t.Parallel()
		f(t, conf.BackendNFTables)
	})
	for _, kind := range []string{"nft", "legacy"} {
		t.Run("iptables-"+kind, func(t *testing.T) {
			t.Parallel()
			useIPTables(t, kind)
			f(t, conf.BackendIPTables)
		})
	}
}

// programs has the folder of the programs that a test uses, by its name.
var programs sync.Map

// programsOf is the folder of a test or of the one that it is a part of; empty for one
// that takes the host's own.
func programsOf(t testing.TB) string {
	for name := t.Name(); ; {
		if dir, ok := programs.Load(name); ok {
			return dir.(string)
		}
		end := strings.LastIndexByte(name, '/')
		if end < 0 {
			return ""
		}
		name = name[:end]
	}
}

// useIPTables has the name iptables mean this kind of it in the spaces of the test. The
// environment is that of all tests: each space has the folder at the same place instead.
func useIPTables(t *testing.T, kind string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			program, err := exec.LookPath(name + "-" + kind + suffix)
			if err != nil {
				t.Skip("needs iptables-" + kind)
			}
			require.NoError(t, os.Symlink(program, filepath.Join(dir, name+suffix)))
		}
	}
	programs.Store(t.Name(), dir)
}
