package netns

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/portmap/forward"
)

// TestMain has the tests make namespaces, whoever runs them.
func TestMain(m *testing.M) { os.Exit(unit.RunTests(m)) }

func TestTablesOf(t *testing.T) {
	key := func(container, ifName string) conf.Key {
		return conf.Key{Network: "web", ContainerID: container, IfName: ifName}
	}
	require.Equal(t, tablesOf(key("box", "eth0"), 0), tablesOf(key("box", "eth0"), 0), "the key alone decides")
	require.NotEqual(t, tablesOf(key("box", "eth0"), 0), tablesOf(key("other", "eth0"), 0), "not the interface's name")
	seen := make(map[int]string)
	for i := range 20 {
		name := fmt.Sprintf("eth%d", i)
		tables := tablesOf(key("box", name), 0)
		require.Equal(t, tables.tcp, tables.of(conf.TCP))
		require.Equal(t, tables.udp, tables.of(conf.UDP))
		for _, table := range []int{tables.tcp, tables.udp} {
			require.NotContains(t, seen, table, "%s and %s share a table", seen[table], name)
			seen[table] = name
			require.Equal(t, 0x616d, table>>16, "far from the numbers that people use")
		}
	}
	for _, name := range []string{"", "fifteen-letters", "ü"} {
		require.Equal(t, 0x616d, tablesOf(key("box", name), 0).udp>>16, name)
	}
}

// A rule that the kernel refused is not taken for one that is there, nor one that could
// not be deleted for one that is gone: the next call tries again.
func TestPortsAndRulesStayInStep(t *testing.T) {
	n, err := unit.NewNetns()
	require.NoError(t, err)
	defer n.Close()
	runtime.LockOSThread() // for good: the thread goes with the test
	require.NoError(t, n.Enter())
	// The empty handle has a socket of its own for each request.
	in := newSourceRoutes(&netlink.Handle{}, conf.Key{}, 0, "lo")
	of := forward.Target{Container4: netip.MustParseAddr("10.0.2.100"), Container6: netip.MustParseAddr("fd00::64")}
	rules := func() (ports []string) {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			have, err := in.link.RuleList(family)
			require.NoError(t, err)
			for _, r := range have {
				if r.Priority == rulePriority {
					ports = append(ports, fmt.Sprintf("%s %d-%d", familyName(family), r.Sport.Start, r.Sport.End))
				}
			}
		}
		return ports
	}
	refused := func(do func(conf.Protocol, uint16, forward.Target) error, port uint16) {
		t.Helper()
		var limit unix.Rlimit
		require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}))
		err := do(conf.TCP, port, of)
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
		require.ErrorIs(t, err, unix.EMFILE)
	}
	refused(in.AddPort, 80)
	require.NoError(t, in.AddPort(conf.TCP, 80, of))
	require.Equal(t, []string{"IPv4 80-80", "IPv6 80-80"}, rules())
	refused(in.AddPort, 81)
	require.NoError(t, in.AddPort(conf.TCP, 81, of))
	require.Equal(t, []string{"IPv4 80-81", "IPv6 80-81"}, rules())
	refused(in.RemovePort, 80)
	require.Equal(t, []string{"IPv4 80-81", "IPv6 80-81"}, rules())
	require.NoError(t, in.RemovePort(conf.TCP, 80, of))
	require.Equal(t, []string{"IPv4 81-81", "IPv6 81-81"}, rules())
	refused(in.RemovePort, 81)
	require.NoError(t, in.RemovePort(conf.TCP, 81, of))
	require.Empty(t, rules())
}
