package bridge

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

func open(b *conf.Bridge) { b.Isolate = false }

// publish has a port of the host's addresses lead to a container, as portmap does.
func (l *lab) publish(t testing.TB, port, to4, to6 string) {
	t.Helper()
	l.run(t, "nft", `table inet ports {
		chain prerouting {
			type nat hook prerouting priority dstnat
			ip daddr 198.51.100.1 tcp dport `+port+` dnat ip to `+to4+`
			ip6 daddr fd99::1 tcp dport `+port+` dnat ip6 to `+to6+`
		}
	}`)
}

// Who reaches whom: containers of a network each other; of another one, and whoever is
// outside, published ports only; the host everybody.
func TestWhoReachesWhom(t *testing.T) {
	l := newLab(t)
	red := l.network("red", withSubnets("10.88.1.0/24", "fd88:1::/64"))
	blue := l.network("blue", withSubnets("10.88.2.0/24", "fd88:2::/64"))
	a, b := l.join(t, red, "a"), l.join(t, red, "b")
	c := l.join(t, blue, "c")
	l.client.run(t, "sh", "-ec", "ip route add 10.88.0.0/16 via 198.51.100.1; ip route add fd88::/16 via fd99::1")
	l.publish(t, "8080", c.ip(4)+":80", "["+c.ip(6)+"]:80")
	for _, family := range []int{4, 6} {
		host, client := "198.51.100.1", "198.51.100.2"
		if family == 6 {
			host, client = "fd99::1", "fd99::2"
		}
		cService := serve(t, c.space, "tcp", net.JoinHostPort(c.ip(family), "80"))
		published := net.JoinHostPort(host, "8080")
		require.True(t, reaches(t, a.space, b.space, b.ip(family)), "within a network")
		require.True(t, unreached(t, a.space, cService), "from one network to another")
		require.True(t, unreached(t, l.client, cService), "from outside, past the published ports")
		require.NotEmpty(t, connect(t, l.space, cService), "from the host")
		require.Equal(t, client, connect(t, l.client, published), "from outside over a published port, with the client's address")
		require.NotEmpty(t, connect(t, a.space, published), "from another network over a published port")
		require.NotEmpty(t, connect(t, c.space, serve(t, l.client, "tcp", net.JoinHostPort(client, "0"))), "out")
		require.NotEmpty(t, connect(t, c.space, serve(t, l.space, "tcp", net.JoinHostPort(host, "0"))), "to the host")
	}
}

// Networks that are both open reach each other; one alone does not open the other.
func TestOpenNetworks(t *testing.T) {
	l := newLab(t)
	one := l.network("one", withSubnets("10.88.1.0/24", ""), open)
	two := l.network("two", withSubnets("10.88.2.0/24", ""), open)
	closed := l.network("closed", withSubnets("10.88.3.0/24", ""))
	a, b, c := l.join(t, one, "a"), l.join(t, two, "b"), l.join(t, closed, "c")
	require.True(t, reaches(t, a.space, b.space, b.ip(4)))
	require.True(t, reaches(t, b.space, a.space, a.ip(4)))
	require.True(t, cutOff(t, a.space, c.space, c.ip(4)))
	require.True(t, cutOff(t, c.space, a.space, a.ip(4)))
	// The key is changed while containers live.
	one.Config.Isolate = true
	l.join(t, one, "d")
	require.True(t, cutOff(t, b.space, a.space, a.ip(4)))
	one.Config.Isolate = false
	l.join(t, one, "e")
	require.True(t, reaches(t, b.space, a.space, a.ip(4)))
}

// A container reaches itself over a port that it has published.
func TestHairpin(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.5.0/24", "fd88::/64"))
	a, b := l.join(t, n, "a"), l.join(t, n, "b")
	l.publish(t, "8080", a.ip(4)+":80", "["+a.ip(6)+"]:80")
	l.run(t, "nft", `table inet hairpin {
		chain postrouting {
			type nat hook postrouting priority srcnat
			ct status dnat ip saddr `+a.ip(4)+` ip daddr `+a.ip(4)+` masquerade
			ct status dnat ip6 saddr `+a.ip(6)+` ip6 daddr `+a.ip(6)+` masquerade
			ct status dnat iifname "ambi-web" masquerade
		}
	}`)
	for _, family := range []int{4, 6} {
		serve(t, a.space, "tcp", net.JoinHostPort(a.ip(family), "80"))
		host := map[int]string{4: "198.51.100.1", 6: "fd99::1"}[family]
		require.NotEmpty(t, connect(t, a.space, net.JoinHostPort(host, "8080")), "a container to itself")
		require.NotEmpty(t, connect(t, b.space, net.JoinHostPort(host, "8080")), "a container to its neighbour")
	}
}

// A reload of the host's firewall takes our tables away: CHECK says so, and Restore
// puts them back.
func TestRestore(t *testing.T) {
	l := newLab(t)
	n := l.network("web", withSubnets("10.88.5.0/24", "fd88::/64"))
	a, b := l.join(t, n, "a"), l.join(t, n, "b")
	before := l.state(t)
	l.run(t, "nft", "flush ruleset")
	err := l.check(t, a)
	require.ErrorContains(t, err, "chain forward of nftables table ambi_bridge is missing or was changed")
	require.ErrorContains(t, err, "ambi restore")
	restore := func() {
		l.on(t, n, func() {
			require.NoError(t, n.Restore(patience(t), []Attached{{a.request.Key, a.result}, {b.request.Key, b.result}}))
		})
	}
	restore()
	require.NoError(t, l.check(t, a))
	require.NoError(t, l.check(t, b))
	require.Equal(t, sorted(before), sorted(l.state(t)))
	restore() // it changes nothing where all is there
	require.Equal(t, sorted(before), sorted(l.state(t)))
	// Less than a reload: one rule, one element.
	l.run(t, "nft", "flush chain inet ambi_bridge forward")
	require.ErrorContains(t, l.check(t, a), "chain forward")
	restore()
	l.run(t, "nft", "flush set bridge ambi_bridge ips6")
	require.ErrorContains(t, l.check(t, a), "an element of set ips6")
	restore()
	require.NoError(t, l.check(t, a))
	// A container that comes after a reload brings the tables with it.
	l.run(t, "nft", "flush ruleset")
	l.join(t, n, "c")
	l.del(t, a, a.result)
	l.del(t, b, b.result)
}
