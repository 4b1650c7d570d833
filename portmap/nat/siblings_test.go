package nat

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// TestSiblings shows that two attachments of one container may be told to publish
// the same ports: the first does, and the other when the first has gone.
func TestSiblings(t *testing.T) {
	backends(t, func(t *testing.T, backend conf.Backend) {
		l := newLab(t, backend)
		l.web.serve(t, "first", 80)
		l.twin.serve(t, "second", 80)
		before := l.host.rules(t)
		ports := []conf.PortMapping{port(conf.TCP, "", 8080, 80), port(conf.UDP, hostAddr, 8080, 80), port(conf.TCP, "127.0.0.1", 8081, 80)}
		first := publishWeb(ports...)
		second := publish("web", []string{twinAddr, twinAddr6}, append(ports, port(conf.TCP, "", 9090, 80))...)
		second.Owner.Network, second.Owner.IfName = "db", "eth1"
		answers := func(who string) {
			for _, network := range []string{"tcp", "udp"} {
				answer, err := l.client.ask(t, network, hostAddr+":8080")
				require.NoError(t, err)
				require.Equal(t, who+" saw "+clientAddr, answer)
			}
			answer, err := l.host.ask(t, "tcp", "127.0.0.1:8081")
			require.NoError(t, err)
			require.Contains(t, answer, who+" saw ")
		}

		l.add(t, first)
		require.NoError(t, l.free(t, second))
		l.add(t, second)
		answers("first")
		require.NoError(t, l.check(t, first))
		require.NoError(t, l.check(t, second))
		requireCode(t, conf.ErrPortInUse, l.tryAdd(t, publishTwin(ports[0])), "published by container web of network")
		answer, err := l.client.ask(t, "tcp", hostAddr+":9090")
		require.NoError(t, err)
		require.Equal(t, "second saw "+clientAddr, answer)

		// The first goes: the second takes its place.
		l.del(t, first)
		require.NoError(t, l.restore(t, second))
		answers("second")
		require.NoError(t, l.check(t, second))
		l.add(t, first)
		answers("second")
		require.NoError(t, l.check(t, first))
		// All rules are lost, in another order: either will do, but one.
		if backend == conf.BackendNFTables {
			l.host.run(t, "nft", "delete", "table", "inet", tableName)
			require.NoError(t, l.restore(t, first, second))
			answers("first")
			require.NoError(t, l.check(t, first))
			require.NoError(t, l.check(t, second))
		}
		l.del(t, first)
		l.del(t, second)
		require.Equal(t, before, l.host.rules(t))
	})
}
