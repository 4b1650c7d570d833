package e2e

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// onNeighbour runs a program on the neighbour host and returns what it printed;
// nothing when it failed.
func onNeighbour(argv ...string) string {
	out, err := exec.Command(stage+"/sbin/onneighbour", argv...).Output()
	if err != nil {
		return ""
	}
	return string(out)
}

// publishPorts sends packets to published ports from where clients are.
func publishPorts(t *testing.T, backend string) {
	sh(t, "for box in a b; do ip netns add $box; ip -n $box link set lo up; done; ip addr add 192.0.2.9/24 dev uplink; ip addr add 2001:db8::9/64 dev uplink nodad")
	const delegates = `[{"type":"bridge","bridge":"own0","isGateway":true,"ipMasq":true,"hairpinMode":true,
   "ipam":{"type":"host-local","dataDir":"/run/own","ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd01::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}]`
	config := func(snat bool, ports string) string {
		return rootConfig(delegates, fmt.Sprintf(`"portmap":{"backend":%q,"snat":%t},"runtimeConfig":{"portMappings":[%s]}`, backend, snat, ports))
	}
	add := func(t *testing.T, box, config string) {
		call{verb: "ADD", container: box, netns: "/run/netns/" + box, config: config}.must(t)
	}
	del := func(t *testing.T, box, config string) {
		call{verb: "DEL", container: box, netns: "/run/netns/" + box, config: config}.must(t)
	}
	serve := func(t *testing.T, box string) {
		for _, network := range []string{"tcp", "udp"} {
			start(t, "ip", "netns", "exec", box, "peer", network, ":80")
			eventually(t, "the server", func() bool {
				return exec.Command("ip", "netns", "exec", box, "peer", "ask", network, "127.0.0.1:80").Run() == nil
			})
		}
	}
	serve(t, "a")
	serve(t, "b")
	const every = `{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":8080,"containerPort":80,"protocol":"udp"}`
	add(t, "a", config(true, every))
	del(t, "a", config(true, every))
	before := machine.Take()

	inside := func(box string, argv ...string) string {
		out, err := exec.Command("ip", append([]string{"netns", "exec", box}, argv...)...).Output()
		if err != nil {
			return ""
		}
		return string(out)
	}
	local := func(argv ...string) string {
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if err != nil {
			return ""
		}
		return string(out)
	}

	for _, snat := range []bool{true, false} {
		t.Run(fmt.Sprintf("every address, snat %t", snat), func(t *testing.T) {
			add(t, "a", config(snat, every))
			for _, network := range []string{"tcp", "udp"} {
				for _, host := range []string{"192.0.2.1", "192.0.2.9"} {
					require.Contains(t, onNeighbour("peer", "ask", network, host+":8080"), "you are 192.0.2.2:", "%s %s", network, host)
				}
				for _, host := range []string{"2001:db8::1", "2001:db8::9"} {
					require.Contains(t, onNeighbour("peer", "ask", network, "["+host+"]:8080"), "you are [2001:db8::2]:", "%s %s", network, host)
				}
				require.Contains(t, local("peer", "ask", network, "192.0.2.1:8080"), "you are ", "from the host, %s", network)
				if snat {
					require.Contains(t, local("peer", "ask", network, "127.0.0.1:8080"), "you are ", "over 127.0.0.1, %s", network)
					require.Contains(t, inside("a", "peer", "ask", network, "192.0.2.1:8080"), "you are ", "hairpin, %s", network)
					require.Contains(t, inside("a", "peer", "ask", network, "[2001:db8::1]:8080"), "you are ", "hairpin, IPv6, %s", network)
				}
			}
			del(t, "a", config(snat, every))
			require.Empty(t, onNeighbour("peer", "ask", "tcp", "192.0.2.1:8080"))
			requireSame(t, before)
		})
	}

	t.Run("hostIP", func(t *testing.T) {
		only := config(true, `{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"192.0.2.9"},{"hostPort":8080,"containerPort":80,"protocol":"udp","hostIP":"2001:db8::9"},{"hostPort":8081,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"}`)
		add(t, "a", only)
		require.Contains(t, onNeighbour("peer", "ask", "tcp", "192.0.2.9:8080"), "you are 192.0.2.2:")
		require.Empty(t, onNeighbour("peer", "ask", "tcp", "192.0.2.1:8080"))
		require.Empty(t, local("peer", "ask", "tcp", "127.0.0.1:8080"))
		require.Contains(t, onNeighbour("peer", "ask", "udp", "[2001:db8::9]:8080"), "you are [2001:db8::2]:")
		require.Empty(t, onNeighbour("peer", "ask", "udp", "[2001:db8::1]:8080"))
		sh(t, "conntrack -D -f ipv6 -p udp --orig-dst 2001:db8::1") // of an address that nobody publishes
		require.Contains(t, local("peer", "ask", "tcp", "127.0.0.1:8081"), "you are ")
		require.Empty(t, onNeighbour("peer", "ask", "tcp", "192.0.2.1:8081"))
		// The same port of another address is another container's.
		other := config(true, `{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"192.0.2.1"}`)
		add(t, "b", other)
		require.Contains(t, onNeighbour("peer", "ask", "tcp", "192.0.2.1:8080"), "you are ")
		del(t, "b", other)
		require.Contains(t, onNeighbour("peer", "ask", "tcp", "192.0.2.9:8080"), "you are ")
		del(t, "a", only)
		requireSame(t, before)
	})

	t.Run("a client over UDP switches container", func(t *testing.T) {
		ask := func() string { return onNeighbour("peer", "askfrom", "udp", ":4000", "192.0.2.1:8080") }
		add(t, "a", config(true, every))
		require.Contains(t, ask(), "you are 192.0.2.2:4000")
		del(t, "a", config(true, every))
		require.Empty(t, ask(), "nobody is there") // and the kernel remembers that
		add(t, "b", config(true, every))
		require.Contains(t, ask(), "you are 192.0.2.2:4000")
		del(t, "b", config(true, every))
		requireSame(t, before)
	})

	t.Run("a port in use changes nothing", func(t *testing.T) {
		add(t, "a", config(true, every))
		held := machine.Take()
		code, msg := call{verb: "ADD", container: "b", netns: "/run/netns/b", config: config(true, `{"hostPort":8080,"containerPort":1,"protocol":"tcp","hostIP":"192.0.2.9"}`)}.fails(t)
		require.Equal(t, 101, code, msg)
		require.Contains(t, msg, "published by container a of network own (interface eth0)")
		require.Equal(t, held, machine.Take())
		del(t, "a", config(true, every))
		requireSame(t, before)

		stop := start(t, "peer", "hold", "udp", "0.0.0.0:8080")
		eventually(t, "the socket", func() bool { return local("ss", "-Hlun", "sport = :8080") != "" })
		code, msg = call{verb: "ADD", container: "b", netns: "/run/netns/b", config: config(true, every)}.fails(t)
		require.Equal(t, 101, code, msg)
		require.Regexp(t, `host port .*:8080/udp is in use: bound by a socket of the host, peer \(pid \d+\)`, msg)
		stop()
		requireSame(t, before)
	})

	t.Run("a port in use makes no bridge", func(t *testing.T) {
		stop := start(t, "peer", "hold", "tcp", ":8080")
		defer stop()
		eventually(t, "the socket", func() bool { return local("ss", "-Hltn", "sport = :8080") != "" })
		fresh := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"fresh","type":"ambi","portmap":{"backend":%q},"runtimeConfig":{"portMappings":[%s]}}`, backend, every)
		untouched := machine.Take()
		code, msg := call{verb: "ADD", container: "b", netns: "/run/netns/b", config: fresh}.fails(t)
		require.Equal(t, 101, code, msg)
		require.Contains(t, msg, "peer (pid ")
		require.Equal(t, untouched, machine.Take())
	})
}
