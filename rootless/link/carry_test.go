package link

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// script runs lines of a shell inside.
func (c *container) script(t require.TestingT, lines string) string {
	return c.run(t, "sh", "-ec", lines)
}

// made is what plugins may make in a stand-in.
const made = `
ip link add eth0 type veth peer name outer0
ip link set outer0 up
ip link set eth0 address 02:00:00:00:00:05 mtu 1400 txqueuelen 77
ip link property add dev eth0 altname second
ip link set lo up
ip addr add 10.1.0.5/24 brd + dev eth0 label eth0:x
ip addr add 10.1.0.6/24 dev eth0 valid_lft 3600 preferred_lft 1800
ip addr add 10.9.0.1 peer 10.9.0.2/32 dev eth0 scope link
ip addr add 10.8.0.1/24 dev eth0 noprefixroute
ip addr add 10.99.0.1/32 dev lo
ip addr add fd00:1::5/64 dev eth0 nodad
ip link set eth0 up
ip addr add fd00:2::5/64 dev eth0 nodad
ip route add default via 10.1.0.1
ip route add 192.0.2.0/24 via 10.1.0.1 mtu 1300 advmss 1200 metric 7
ip route add 198.51.100.0/24 via 203.0.113.1 dev eth0 onlink src 10.1.0.6
ip route add 10.77.0.0/16 nexthop via 10.1.0.2 weight 2 nexthop via 10.1.0.3
ip route add blackhole 10.66.0.0/16
ip route add 10.55.0.0/24 dev eth0 table 100
ip route add default via 10.55.0.1 dev eth0 table 100
ip -6 route add default via fd00:1::1
ip -6 route add unreachable fd00:66::/64 table 300
ip route del 10.1.0.0/24 dev eth0 proto kernel && ip route add 10.1.0.0/24 dev eth0 proto kernel scope link src 10.1.0.5 table 100 || true
ip rule add from 10.1.0.5 table 100 priority 500
ip -6 rule add iif eth0 lookup 300 priority 600
ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:99 dev eth0 nud permanent
ip neigh add proxy 10.1.0.10 dev eth0
echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_notify
echo 100 > /proc/sys/net/core/somaxconn
tc qdisc add dev eth0 root tbf rate 1mbit burst 5kb limit 10kb
tc qdisc add dev outer0 root handle 1: htb default 10
tc class add dev outer0 parent 1: classid 1:1 htb rate 10mbit
tc class add dev outer0 parent 1:1 classid 1:10 htb rate 2mbit ceil 5mbit prio 2
tc qdisc add dev outer0 parent 1:10 handle 10: pfifo limit 33
tc filter add dev outer0 parent 1: protocol ip prio 3 u32 match ip dst 10.1.0.7/32 flowid 1:1
tc qdisc add dev outer0 clsact
tc filter add dev outer0 ingress protocol all prio 1 u32 match u32 0 0 action mirred egress redirect dev eth0
`

// shown is all that ip and tc show of a namespace.
const shown = `
ip -d addr | sed 's/^[0-9]*: //; s/@if[0-9]*//; s/link-netns.* / /; s/valid_lft [0-9].*sec/timed/'
ip route show table all
ip -6 route show table all
ip rule; ip -6 rule
ip neigh; ip neigh show proxy
tc qdisc show | sed 's/direct_packets_stat [0-9]* //'; tc class show dev outer0; tc filter show dev outer0; tc filter show dev outer0 ingress
cd /proc/sys/net; grep -r . core ipv4 ipv6 2>/dev/null | grep -v 'fastopen_key\|stable_secret' | sort
`

// carried is one container that made was made in and carried to another.
type carried struct {
	*Carried
	one, other *container
	from, to   *Place
	before     string
}

func carry(t *testing.T) *carried {
	c := &carried{one: newContainer(t), other: newContainer(t)}
	c.from, c.to = c.one.enter(t), c.other.enter(t)
	fresh, err := Observe(c.from)
	require.NoError(t, err)
	c.one.script(t, made)
	require.Eventually(t, func() bool {
		return !strings.Contains(c.one.script(t, "ip addr"), "tentative") && strings.Contains(c.one.script(t, "ip -6 route show table local"), "fd00:1::5")
	}, 2*time.Minute, 50*time.Millisecond)
	c.before = c.one.script(t, shown)
	c.Carried, err = Carry(c.from, c.to, fresh, nil)
	require.NoError(t, err)
	text, err := json.Marshal(c.Carried)
	require.NoError(t, err)
	c.Carried = &Carried{}
	require.NoError(t, json.Unmarshal(text, c.Carried))
	return c
}

// TestCarry makes everything in one namespace and finds it in another one, and then in
// the first one again.
func TestCarry(t *testing.T) {
	c := carry(t)
	c.other.soon(t, c.before)
	require.NoError(t, c.Check(c.to))
	require.NoError(t, c.Back(c.to, c.from))
	c.one.soon(t, c.before)
}

// TestCheck has the container's root change things.
func TestCheck(t *testing.T) {
	for change, differences := range map[string][]string{
		"ip link set eth0 mtu 1300; ip link set eth0 txqueuelen 5": {
			"interface eth0: its MTU is 1300 and not 1400", "interface eth0: the length of its queue is 5 and not 77",
		},
		"ip link set outer0 down": {"interface outer0: its state is down and not up", "address fe80::", "neighbour 10.1.0.10 of"},
		"ip route del 192.0.2.0/24; ip route add 192.0.2.0/24 via 10.1.0.1 onlink dev eth0 mtu 1200 metric 7": {"route 192.0.2.0/24 via 10.1.0.1 of interface eth0 is missing, or not as it was"},
		"ip addr del 10.8.0.1/24 dev eth0": {"address 10.8.0.1/24 of interface eth0 is missing, or not as it was"},
		"ip route replace 198.51.100.0/24 via 203.0.113.1 dev eth0 onlink; ip addr del 10.1.0.6/24 dev eth0": { // the address's time could have come
			"route 198.51.100.0/24 via 203.0.113.1 of interface eth0 is missing, or not as it was",
		},
		"ip route flush table 100": {"route default via 10.55.0.1 of interface eth0 in table 100 is missing, or not as it was", "route 10.55.0.0/24 of", "route 10.1.0.0/24 of"},
		"ip rule del priority 500; ip rule add priority 500 from 10.1.0.6 table 100": {"routing rule 500 from 10.1.0.5/32 for table 100 is missing, or not as it was"},
		"ip neigh del 10.1.0.9 dev eth0; ip neigh del proxy 10.1.0.10 dev eth0":      {"neighbour 10.1.0.9 of interface eth0 is missing, or not as it was", "neighbour 10.1.0.10 of interface eth0 is missing, or not as it was"},
		"tc qdisc del dev eth0 root": {"queueing discipline tbf of interface eth0 is missing, or not as it was"},
		"echo 0 >/proc/sys/net/ipv4/conf/eth0/arp_notify; echo 1 >/proc/sys/net/core/somaxconn": {"net.ipv4.conf.eth0.arp_notify is 0 and not 1", "net.core.somaxconn is 1 and not 100"},
	} {
		t.Run(change, func(t *testing.T) {
			t.Parallel()
			c := carry(t)
			c.other.script(t, change)
			err := c.Check(c.to)
			for _, d := range differences {
				require.ErrorContains(t, err, d)
			}
			require.Len(t, strings.Split(err.Error(), "\n"), len(differences), err)
		})
	}
}

// soon waits until a namespace shows something: the kernel works out the state of links
// a little later.
func (c *container) soon(t *testing.T, want string) {
	t.Helper()
	require.EventuallyWithT(t, func(t *assert.CollectT) { assert.Empty(t, different(want, c.script(t, shown))) }, 2*time.Minute, 100*time.Millisecond)
}

// different are the lines that only one of two has.
func different(a, b string) (lines []string) {
	only := func(sign, a, b string) {
		for line := range strings.Lines(a) {
			if !strings.Contains("\n"+b, "\n"+line) {
				lines = append(lines, sign+strings.TrimSpace(line))
			}
		}
	}
	only("-", a, b)
	only("+", b, a)
	return lines
}
