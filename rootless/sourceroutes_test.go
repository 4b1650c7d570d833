package rootless

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

func TestTablesOf(t *testing.T) {
	key := func(container, ifName string) conf.Key {
		return conf.Key{Network: "web", ContainerID: container, IfName: ifName}
	}
	require.Equal(t, tablesOf(key("box", "eth0")), tablesOf(key("box", "eth0")), "the key alone decides")
	require.NotEqual(t, tablesOf(key("box", "eth0")), tablesOf(key("other", "eth0")), "not the interface's name")
	seen := make(map[int]string)
	for i := range 20 {
		name := fmt.Sprintf("eth%d", i)
		tables := tablesOf(key("box", name))
		require.Equal(t, tables.tcp, tables.of(conf.TCP))
		require.Equal(t, tables.udp, tables.of(conf.UDP))
		for _, table := range []int{tables.tcp, tables.udp} {
			require.NotContains(t, seen, table, "%s and %s share a table", seen[table], name)
			seen[table] = name
			require.Equal(t, 0x616d, table>>16, "far from the numbers that people use")
		}
	}
	for _, name := range []string{"", "fifteen-letters", "ü"} {
		require.Equal(t, 0x616d, tablesOf(key("box", name)).udp>>16, name)
	}
}
