package bridge

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/nlsock"
)

// A second network does not take the default route over, unless it is told to.
func TestDefaultRoute(t *testing.T) {
	yes, no := true, false
	for name, c := range map[string]struct {
		wanted *bool
		routes int
		via    string
	}{"unset": {nil, 0, "10.88.1.1"}, "true": {&yes, 2, "10.88.2.1"}, "false": {&no, 0, "10.88.1.1"}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			one := l.network("one", withSubnets("10.88.1.0/24", "fd88:1::/64"))
			two := l.network("two", withSubnets("10.88.2.0/24", "fd88:2::/64"), func(b *conf.Bridge) { b.DefaultRoute = c.wanted })
			a := l.join(t, one, "a")
			b := &member{space: a.space, network: two, request: &conf.Attachment{Key: conf.Key{Network: "two", ContainerID: "a", IfName: "eth1"}}}
			require.NoError(t, l.add(t, b))
			require.Len(t, a.result.Routes, 2)
			require.Len(t, b.result.Routes, c.routes)
			require.Contains(t, a.run(t, "ip", "route", "get", "192.0.2.1"), "via "+c.via)
			require.Contains(t, a.run(t, "ip", "-6", "route", "get", "2001:db8::1"), "via fd88:"+c.via[6:7]+"::1")
			require.NoError(t, l.check(t, b))
			// The first one's routes come back with the second's end.
			l.del(t, b, b.result)
			require.NoError(t, l.check(t, a))
		})
	}
}

// A network of addresses for examples, by which the way out is looked for, is no way out.
func TestDefaultRouteOfExamples(t *testing.T) {
	l := newLab(t)
	a := l.join(t, l.network("web", withSubnets("192.0.2.0/24", "2001:db8::/64")), "a")
	require.Len(t, a.result.Routes, 2)
	require.NoError(t, l.check(t, a))
	a.run(t, "ip", "-6", "route", "del", "default")
	require.ErrorContains(t, l.check(t, a), "the container has no default route over 2001:db8::1")
}

// A container whose root has a VPN has its own idea of the way out.
func TestCheckLetsAVPNBe(t *testing.T) {
	l := newLab(t)
	a := l.join(t, l.network("web", withSubnets("10.88.1.0/24", "")), "a")
	a.run(t, "sh", "-ec", "ip route add 0.0.0.0/1 via 10.88.1.7; ip route add 128.0.0.0/1 via 10.88.1.7")
	require.NoError(t, l.check(t, a))
}

// CHECK names everything that is not as ADD said.
func TestCheckNames(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.5.0/24", "fd88::/64"))
	for name, c := range map[string]struct {
		where       string
		break_, why string
	}{
		"address":     {"container", "ip address del IP/24 dev eth0", "the container's interface eth0 does not have address IP"},
		"address6":    {"container", "ip address del IP6/64 dev eth0", "does not have address IP6"},
		"down":        {"container", "ip link set eth0 down", "the container's interface eth0 is down"},
		"mac":         {"container", "ip link set eth0 address 02:00:00:00:00:09", "has the MAC address 02:00:00:00:00:09 and not"},
		"mtu":         {"container", "ip link set eth0 mtu 1280", "has the MTU 1280 and not 1400"},
		"route":       {"container", "ip route del default", "the container has no default route over 10.88.5.1"},
		"other route": {"container", "ip route replace default via 10.88.5.200", "the container's default route is not over 10.88.5.1, eth0"},
		"gone":        {"container", "ip link del eth0", "the container has no interface eth0, interface PORT is missing on the host"},
		"port":        {"host", "ip link set PORT nomaster", "interface PORT is not on bridge ambi-web"},
		"hairpin":     {"host", "ip link set PORT type bridge_slave hairpin off", "interface PORT is not in hairpin mode"},
		"port down":   {"host", "ip link set PORT down", "interface PORT is down"},
		"mark":        {"host", "ip link set PORT alias mine", `interface PORT is marked "mine" and not as this container's`},
		"element":     {"host", "nft delete element bridge ambi_bridge ips '{ \"PORT\" . IP }'", "an element of set ips of nftables table ambi_bridge is missing"},
		"store":       {"host", "rm DIR/web/IP", "address IP is not written down as the container's"},
	} {
		t.Run(name, func(t *testing.T) {
			a := l.join(t, n, strings.ReplaceAll(name, " ", "-"))
			fill := strings.NewReplacer("PORT", portName(a.request.Key), "IP6", a.ip(6), "IP", a.ip(4), "DIR", l.dir)
			where := a.space
			if c.where == "host" {
				where = l.space
			}
			where.run(t, "sh", "-ec", fill.Replace(c.break_))
			err := l.check(t, a)
			require.Error(t, err)
			for part := range strings.SplitSeq(fill.Replace(c.why), ", ") {
				require.ErrorContains(t, err, part)
			}
			l.del(t, a, a.result)
			if name == "mark" { // what is not marked as ours stays
				l.run(t, "ip", "link", "del", portName(a.request.Key))
			}
		})
	}
	a := l.join(t, n, "last")
	l.run(t, "sh", "-ec", "echo 0 >/proc/sys/net/ipv4/ip_forward; ip address del 10.88.5.1/24 dev ambi-web")
	require.ErrorContains(t, l.check(t, a), "net.ipv4.ip_forward is 0")
	require.ErrorContains(t, l.check(t, a), "bridge ambi-web has no gateway address for "+a.ip(4))
}

// ADD twice: the second one is an error that names the first one's interface.
func TestAddTwice(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.5.0/24", ""))
	a := l.join(t, n, "a")
	again := func(m *member) (err error) {
		l.on(t, n, func() {
			c, err2 := OpenContainer("/test", m.File())
			require.NoError(t, err2)
			defer c.Close()
			err = n.Free(c, m.request.Key)
			_, err2 = n.Add(patience(t), c, m.request)
			require.Equal(t, err, err2)
		})
		return err
	}
	require.ErrorContains(t, again(a), `CNI_IFNAME "eth0": the container has an interface of that name already`)
	require.ErrorContains(t, again(newMember(t, n, "a")), "container a has an interface on the host already ("+portName(a.request.Key)+"), of an earlier ADD")
}

// DEL knows what is the attachment's when the namespace is gone and when the record is
// lost; GC knows what is nobody's.
func TestWhatIsLeft(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.5.0/24", "fd88::/64"))
	before := l.state(t)
	limited := func(a *conf.Attachment) { a.Bandwidth = conf.Bandwidth{EgressRate: 8e6, EgressBurst: 8e5} }
	lost, kept := l.join(t, n, "lost", limited), l.join(t, n, "kept")
	gone := newMember(t, n, "gone")
	require.NoError(t, l.add(t, gone))
	gone.Close() // the kernel takes the pair away in its own time
	l.run(t, "ip", "link", "set", portName(kept.request.Key), "alias", "ambi web kept eth0")
	l.on(t, n, func() {
		holders, err := n.Holders(patience(t))
		require.NoError(t, err)
		require.ElementsMatch(t, []conf.Key{lost.request.Key, kept.request.Key, gone.request.Key}, holders)
	})
	l.del(t, gone, nil)
	l.del(t, lost, nil)
	require.NoError(t, l.check(t, kept))
	// An ADD that was killed before it marked its interface, an interface that vanished
	// with all but its elements, and one that the host put there, as a container of the
	// plugin bridge has it.
	l.run(t, "sh", "-ec", "ip link add veth0000000000 address 02:00:00:00:00:99 type veth peer name x; ip link set veth0000000000 master ambi-web")
	l.run(t, "sh", "-ec", "ip link add veth00000000 address 02:00:00:00:00:99 type veth peer name y; ip link set veth00000000 master ambi-web")
	l.run(t, "nft", `add element bridge ambi_bridge ports { "vethffffffffff" }; add element bridge ambi_bridge ips { "vethffffffffff" . 10.88.5.200 }`)
	l.on(t, n, func() { require.NoError(t, n.Collect(patience(t))) })
	require.NotContains(t, l.state(t), "veth0000000000")
	require.NotContains(t, l.state(t), "vethffffffffff")
	require.Contains(t, l.state(t), "veth00000000@y")
	l.run(t, "ip", "link", "delete", "y")
	require.NoError(t, l.check(t, kept))
	l.del(t, kept, nil)
	require.Equal(t, before, l.state(t))
	l.on(t, n, func() { require.NoError(t, n.Collect(patience(t))) })
	require.Equal(t, before, l.state(t))
}

// An interface that has a name of ours but not our mark is not touched.
func TestDelTouchesNothingElse(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.5.0/24", ""))
	k := conf.Key{Network: "web", ContainerID: "a", IfName: "eth0"}
	l.run(t, "sh", "-ec", "ip link add br0 type bridge; ip link add "+portName(k)+" type veth peer name x; ip link set "+portName(k)+" master br0; ip link add ambi-web type bridge; ip link set ambi-web alias theirs")
	before := l.state(t)
	l.del(t, &member{network: n, request: &conf.Attachment{Key: k}}, nil)
	l.on(t, n, func() { require.NoError(t, n.Collect(patience(t))) })
	require.Equal(t, before, l.state(t))
}

// Many at once: every address once, nothing left.
func TestManyAtOnce(t *testing.T) {
	l := newLab(t)
	before := l.state(t)
	const networks, each = 3, 12
	var members []*member
	for i := range networks {
		for j := range each {
			members = append(members, newMember(t, l.network("net"+string(rune('a'+i))), "c"+string(rune('a'+j))))
		}
	}
	all := func(f func(*member)) {
		var wg sync.WaitGroup
		for _, m := range members {
			wg.Go(func() { f(m) })
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	for range 2 {
		all(func(m *member) {
			if err := l.add(t, m); err != nil {
				t.Error(err)
			}
		})
		seen := map[string]bool{}
		for _, m := range members {
			require.NoError(t, l.check(t, m))
			require.False(t, seen[m.ip(4)], m.ip(4))
			seen[m.ip(4)] = true
		}
		all(func(m *member) { l.del(t, m, m.result) })
		require.Equal(t, before, l.state(t))
	}
}

// Two networks may have state folders, and so locks, of their own on one host: who removes
// the tables with the last of his does not take away what the other has just put in.
func TestTablesOfTwoStateFolders(t *testing.T) {
	l := newLab(t)
	open := func() Host {
		filter, err := nlsock.Open(unix.NETLINK_NETFILTER, l.File())
		require.NoError(t, err)
		t.Cleanup(func() { filter.Close() })
		return Host{Filter: filter}
	}
	one, other := open(), open()
	tables := newTables()
	network := []element{{tables.networks, ifname("ambi-one")}}
	var done atomic.Bool
	var removing sync.WaitGroup
	removing.Go(func() {
		for !done.Load() {
			assert.NoError(t, other.removeTables(newTables()))
		}
	})
	defer removing.Wait()
	defer done.Store(true)
	for range 100 {
		require.NoError(t, one.addElements(tables, network))
		there, err := one.present(network)
		require.NoError(t, err)
		require.Len(t, there, 1, "an element was removed with the tables")
		require.NoError(t, one.removeElements(network))
	}
}

// No thread needs to be in the namespace of the bridge: the sockets say which it is.
func TestHostElsewhere(t *testing.T) {
	l, elsewhere := newLab(t), newSpace(t)
	n := l.network("web", withSubnets("10.88.5.0/24", "fd88::/64"))
	m := newMember(t, n, "a")
	before := l.state(t)
	elsewhere.do(t, func() {
		route, err := nlsock.Open(0, l.File())
		require.NoError(t, err)
		filter, err := nlsock.Open(12, l.File())
		require.NoError(t, err)
		n.Host = Host{Route: route, Filter: filter, Sysctl: inside{l.File()}}
		defer n.Host.Close()
		c, err := OpenContainer("/test/"+m.request.ContainerID, m.File())
		require.NoError(t, err)
		defer c.Close()
		m.result, err = n.Add(patience(t), c, m.request)
		require.NoError(t, err)
		require.NoError(t, n.Check(patience(t), c, m.request, m.result, m.result))
		require.Equal(t, "lo", strings.TrimSpace(elsewhereLinks(t)))
		require.NotEmpty(t, connect(t, m.space, serve(t, l.client, "tcp", "[fd99::2]:0")))
		require.NoError(t, n.Del(patience(t), m.request.Key, nil))
	})
	require.Equal(t, before, l.state(t))
}
