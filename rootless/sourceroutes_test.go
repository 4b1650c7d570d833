package rootless

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

func TestTablesOf(t *testing.T) {
	require.Equal(t, tablesOf("eth0"), tablesOf("eth0"), "the name alone decides")
	seen := make(map[int]string)
	for i := range 20 {
		name := fmt.Sprintf("eth%d", i)
		tables := tablesOf(name)
		require.Equal(t, tables.tcp, tables.of(conf.TCP))
		require.Equal(t, tables.udp, tables.of(conf.UDP))
		for _, table := range []int{tables.tcp, tables.udp} {
			require.NotContains(t, seen, table, "%s and %s share a table", seen[table], name)
			seen[table] = name
			require.Equal(t, 0x616d, table>>16, "far from the numbers that people use")
		}
	}
	for _, name := range []string{"", "fifteen-letters", "ü"} {
		require.Equal(t, 0x616d, tablesOf(name).udp>>16, name)
	}
}
