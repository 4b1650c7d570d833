package bridge

import (
	"net/netip"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// addFails adds a container and returns the error, which must leave nothing behind.
func (l *lab) addFails(t testing.TB, m *member) *types.Error {
	t.Helper()
	before := l.state(t)
	err := l.add(t, m)
	require.Error(t, err)
	require.Equal(t, before, l.state(t))
	var e *types.Error
	require.ErrorAs(t, err, &e, "a text for people has a code")
	return e
}

func TestSubnetIsMadeFromTheName(t *testing.T) {
	l := newLab(t)
	n := l.network("web")
	first := pool(firstChoice("web"))
	a := l.join(t, n, "a")
	require.True(t, first.Contains(netip.MustParseAddr(a.ip(4))))
	l.join(t, n, "b")
	require.Contains(t, l.run(t, "ip", "-4", "address", "show", "ambi-web"), gatewayOf(first).String())
	require.Equal(t, "ambi-c5bcbd2dc9", BridgeName(conf.Bridge{}, "a-network-with-a-long-name"))
}

// Where the subnet of the name is in use, the next free one is taken, and kept.
func TestTheNextFreeSubnet(t *testing.T) {
	l := newLab(t)
	first := firstChoice("web")
	l.run(t, "ip", "address", "add", gatewayOf(pool(first)).String(), "dev", "eth0")
	l.run(t, "ip", "route", "add", netip.PrefixFrom(pool(first+1).Addr(), 28).String(), "via", "198.51.100.2")
	l.join(t, l.network("other", withSubnets(pool(first+2).String(), "")), "x")
	n := l.network("web")
	a := l.join(t, n, "a")
	require.True(t, pool(first+3).Contains(netip.MustParseAddr(a.ip(4))), a.ip(4))
	// It stays with the bridge when another one becomes free.
	l.run(t, "ip", "address", "del", gatewayOf(pool(first)).String(), "dev", "eth0")
	b := l.join(t, n, "b")
	require.True(t, pool(first+3).Contains(netip.MustParseAddr(b.ip(4))), b.ip(4))
}

// A VPN that has all of 10.0.0.0/8, or everything in two halves, does not keep
// networks from being made.
func TestSubnetBesideAVPN(t *testing.T) {
	l := newLab(t)
	for _, dst := range []string{"10.0.0.0/8", "0.0.0.0/1", "128.0.0.0/1"} {
		l.run(t, "ip", "route", "add", dst, "via", "198.51.100.2")
	}
	a := l.join(t, l.network("web"), "a")
	require.True(t, pool(firstChoice("web")).Contains(netip.MustParseAddr(a.ip(4))))
	l.join(t, l.network("given", withSubnets("10.88.7.0/24", "")), "b")
}

func TestSubnetsInUse(t *testing.T) {
	l := newLab(t)
	l.join(t, l.network("one", withSubnets("10.88.1.0/24", "fd88:1::/64")), "a")
	l.run(t, "ip", "route", "add", "10.77.1.128/25", "via", "198.51.100.2")
	for _, c := range []struct{ name, v4, v6, want string }{
		{"two networks of one subnet", "10.88.1.0/24", "", `network "two": its subnet 10.88.1.0/24 is already used by bridge ambi-one of network "one", which has the address 10.88.1.1/24; give the network another one with the key bridge.subnet`},
		{"one inside the other", "10.88.0.0/16", "", `bridge ambi-one of network "one"`},
		{"the same in IPv6", "10.88.2.0/24", "fd88:1::/48", `its subnet fd88:1::/48 is already used by bridge ambi-one of network "one", which has the address fd88:1::1/64; give the network another one with the key bridge.subnet6`},
		{"the host's own", "198.51.100.0/25", "", "interface eth0, which has the address 198.51.100.1/24"},
		{"a route", "10.77.1.0/24", "", "the host's route to 10.77.1.128/25 by interface eth0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := l.addFails(t, newMember(t, l.network("two", withSubnets(c.v4, c.v6)), "b"))
			require.Contains(t, err.Error(), c.want)
		})
	}
}

func TestBridgesOfOthers(t *testing.T) {
	l := newLab(t)
	l.run(t, "ip", "link", "add", "cni0", "type", "bridge")
	l.join(t, l.network("one", withSubnets("10.88.1.0/24", ""), named("br-one")), "a")
	for name, c := range map[string]struct{ bridge, want string }{
		"of another program": {"cni0", `network "two": bridge cni0 is there and was not made by ambi; give the network another bridge with the key bridge.name`},
		"of another network": {"br-one", `network "two": bridge br-one belongs to network "one"; give the network another bridge`},
		"no bridge":          {"eth0", `network "two": interface eth0 is there and is no bridge but of type "veth"`},
	} {
		t.Run(name, func(t *testing.T) {
			err := l.addFails(t, newMember(t, l.network("two", withSubnets("10.88.2.0/24", ""), named(c.bridge)), "b"))
			require.Contains(t, err.Error(), c.want)
		})
	}
}

func named(name string) func(*conf.Bridge) { return func(b *conf.Bridge) { b.Name = name } }

// The subnet of a network may change when nobody has an address of it.
func TestSubnetChanged(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.1.0/24", ""), func(b *conf.Bridge) { b.Keep = true })
	a := l.join(t, n, "a")
	moved := l.network("web", withSubnets("10.88.2.0/24", ""), func(b *conf.Bridge) { b.Keep = true })
	err := l.addFails(t, newMember(t, moved, "b"))
	require.Contains(t, err.Error(), `network "web": the configuration says bridge.subnet 10.88.2.0/24, but bridge ambi-web has 10.88.1.1/24 and 1 interfaces of containers on it; remove these containers first, or put 10.88.1.0/24 back`)
	// IPv6 may come to a network that has containers.
	n.Config.Subnet6 = netip.MustParsePrefix("fd88:1::/64")
	require.Equal(t, "fd88:1::2", l.join(t, n, "c").ip(6))
	l.del(t, a, a.result)
	l.del(t, &member{network: n, request: &conf.Attachment{Key: conf.Key{Network: "web", ContainerID: "c", IfName: "eth0"}}}, nil)
	b := l.join(t, moved, "b")
	require.Equal(t, "10.88.2.2", b.ip(4))
	require.NotContains(t, l.run(t, "ip", "address", "show", "ambi-web"), "10.88.1.1")
}

func TestKeep(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.1.0/24", ""), func(b *conf.Bridge) { b.Keep = true })
	a := l.join(t, n, "a")
	l.del(t, a, a.result)
	require.Contains(t, l.run(t, "ip", "link", "show", "ambi-web"), "mtu 1400", "also without a container it is as it was made")
	n.Config.Keep = false
	l.del(t, a, a.result)
	require.NotContains(t, l.run(t, "ip", "link"), "ambi-web")
}

// A bridge that an older ambi made by the plugin bridge has no mark, but a name that
// nobody else uses: it is taken over.
func TestBridgeOfAnOlderVersion(t *testing.T) {
	l := newLab(t)
	l.run(t, "sh", "-ec", "ip link add ambi-web type bridge; ip address add 10.89.77.1/24 dev ambi-web; ip link set ambi-web up")
	a := l.join(t, l.network("web"), "a")
	require.Equal(t, "10.89.77.2", a.ip(4))
	require.Contains(t, l.run(t, "ip", "link", "show", "ambi-web"), "alias ambi web")
}
