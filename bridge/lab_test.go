package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
)

// space is a network namespace.
type space struct{ *unit.Netns }

func newSpace(t testing.TB) *space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	netns, err := unit.NewNetns()
	require.NoError(t, err)
	t.Cleanup(func() { _ = netns.Close() })
	return &space{netns}
}

// do runs f inside the namespace; a test that fails in f ends.
func (s *space) do(t testing.TB, f func()) {
	t.Helper()
	require.NoError(t, s.Do(f))
	if t.Failed() {
		t.FailNow()
	}
}

// try runs a command inside and returns what it printed.
func (s *space) try(t testing.TB, argv ...string) (string, error) {
	t.Helper()
	var out []byte
	var err error
	s.do(t, func() { out, err = exec.Command(argv[0], argv[1:]...).CombinedOutput() })
	return string(out), err
}

func (s *space) run(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := s.try(t, argv...)
	require.NoError(t, err, "%v: %s", argv, out)
	return out
}

// lab is a host, and a client a wire away from it.
//
//	client 198.51.100.2, fd99::2 -- eth0 198.51.100.1, fd99::1 host
//
// The host's default route leads to the client.
type lab struct {
	*space
	client *space
	dir    string
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{newSpace(t), newSpace(t), t.TempDir()}
	l.do(t, func() {
		require.NoError(t, netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1400}, PeerName: "eth0", PeerNamespace: netlink.NsFd(l.client.Fd()),
		}))
	})
	for _, side := range []struct {
		s      *space
		n, via string
	}{{l.space, "1", "2"}, {l.client, "2", "1"}} {
		side.s.run(t, "sh", "-ec", fmt.Sprintf(`
			ip link set lo up
			ip address add 198.51.100.%[1]s/24 dev eth0
			ip address add fd99::%[1]s/64 dev eth0 nodad
			ip link set eth0 up
			ip route add default via 198.51.100.%[2]s
			ip route add default via fd99::%[2]s`, side.n, side.via))
	}
	return l
}

// network is a built-in network of the lab.
func (l *lab) network(name string, change ...func(*conf.Bridge)) *Network {
	n := &Network{Name: name, Config: conf.Bridge{Isolate: true}, Dir: l.dir, Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&n.Config)
	}
	return n
}

func withSubnets(v4, v6 string) func(*conf.Bridge) {
	return func(b *conf.Bridge) {
		if v4 != "" {
			b.Subnet = netip.MustParsePrefix(v4)
		}
		if v6 != "" {
			b.Subnet6 = netip.MustParsePrefix(v6)
		}
	}
}

// member is a container on a network.
type member struct {
	*space
	network *Network
	request *conf.Attachment
	result  *types100.Result
}

func newMember(t testing.TB, n *Network, id string, change ...func(*conf.Attachment)) *member {
	t.Helper()
	m := &member{space: newSpace(t), network: n, request: &conf.Attachment{Key: conf.Key{Network: n.Name, ContainerID: id, IfName: "eth0"}}}
	for _, c := range change {
		c(m.request)
	}
	return m
}

// on runs f with the network's host side open.
func (l *lab) on(t testing.TB, n *Network, f func()) {
	t.Helper()
	l.do(t, func() {
		h, err := OpenHost()
		require.NoError(t, err)
		defer h.Close()
		n.Host = h
		f()
	})
}

func patience(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// add runs Add, and Del when that fails, as the verb does.
func (l *lab) add(t testing.TB, m *member) (err error) {
	t.Helper()
	l.on(t, m.network, func() {
		c, err2 := OpenContainer("/test/"+m.request.ContainerID, m.File())
		require.NoError(t, err2)
		defer c.Close()
		m.result, err = m.network.Add(patience(t), c, m.request)
		if err != nil {
			require.NoError(t, m.network.Del(patience(t), m.request.Key, nil))
		}
	})
	return err
}

func (l *lab) check(t testing.TB, m *member) (err error) {
	t.Helper()
	l.on(t, m.network, func() {
		c, err2 := OpenContainer("/test/"+m.request.ContainerID, m.File())
		require.NoError(t, err2)
		defer c.Close()
		err = m.network.Check(patience(t), c, m.request, m.result, m.result)
	})
	return err
}

func (l *lab) del(t testing.TB, m *member, result *types100.Result) {
	t.Helper()
	l.on(t, m.network, func() { require.NoError(t, m.network.Del(patience(t), m.request.Key, result)) })
}

// join adds a new container and checks it.
func (l *lab) join(t testing.TB, n *Network, id string, change ...func(*conf.Attachment)) *member {
	t.Helper()
	m := newMember(t, n, id, change...)
	require.NoError(t, l.add(t, m))
	require.NoError(t, l.check(t, m))
	return m
}

// state is all that an attachment may leave behind: interfaces, rules, address files.
func (l *lab) state(t testing.TB) string {
	t.Helper()
	return l.run(t, "sh", "-ec", `ip -o link 2>/dev/null | sed 's/@if[0-9]*//; s/<.*alias/alias/; s/<.*//'; ip -o address 2>/dev/null | grep -v fe80 | awk '{print $2, $4}'; nft list ruleset; ls -R `+l.dir+` | grep -E '^[0-9a-f]+[.:]' || true`)
}

func (m *member) ip(family int) string {
	for _, ip := range m.result.IPs {
		if (ip.Address.IP.To4() != nil) == (family == 4) {
			return ip.Address.IP.String()
		}
	}
	return ""
}

// serve listens inside a namespace and says from which address each client came.
func serve(t testing.TB, in *space, network, address string) string {
	t.Helper()
	var l net.Listener
	in.do(t, func() {
		var err error
		l, err = net.Listen(network, address)
		require.NoError(t, err)
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = c.Write([]byte(host))
			c.Close()
		}
	}()
	return l.Addr().String()
}

// connect says which address a service sees of a client; empty when it is not reached.
func connect(t testing.TB, from *space, address string) (seen string) {
	t.Helper()
	return connectWithin(t, from, address, time.Minute)
}

// unreached says that a service is not reached: what is dropped is never answered.
func unreached(t testing.TB, from *space, address string) bool {
	t.Helper()
	return connectWithin(t, from, address, 300*time.Millisecond) == ""
}

func connectWithin(t testing.TB, from *space, address string, patience time.Duration) (seen string) {
	t.Helper()
	from.do(t, func() {
		c, err := (&net.Dialer{Timeout: patience}).Dial("tcp", address)
		if err != nil {
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		seen = string(b)
	})
	return seen
}

// reaches says whether a namespace reaches an address of another one.
func reaches(t testing.TB, from, to *space, ip string) bool {
	t.Helper()
	return connect(t, from, serve(t, to, "tcp", net.JoinHostPort(ip, "0"))) != ""
}

func cutOff(t testing.TB, from, to *space, ip string) bool {
	t.Helper()
	return unreached(t, from, serve(t, to, "tcp", net.JoinHostPort(ip, "0")))
}

func jsonOf(v any) string {
	b, _ := json.MarshalIndent(v, "", "  ")
	return string(b)
}

func lines(s string) []string {
	return slices.DeleteFunc(strings.Split(s, "\n"), func(l string) bool { return strings.TrimSpace(l) == "" })
}

// sorted makes lists comparable whose order is the kernel's.
func sorted(s string) []string {
	words := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == ',' || r == '{' || r == '}' || r == '=' })
	for i := range words {
		words[i] = strings.TrimSpace(words[i])
	}
	slices.Sort(words)
	return slices.DeleteFunc(words, func(w string) bool { return w == "" })
}

// elsewhereLinks are the interfaces of this thread's namespace.
func elsewhereLinks(t testing.TB) string {
	t.Helper()
	links, err := netlink.LinkList()
	require.NoError(t, err)
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return strings.Join(names, " ")
}
