package link

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestHostile has the container's root do what it can to the link that it was given:
// DEL takes home what is left of it, and never fails.
func TestHostile(t *testing.T) {
	for attack, expect := range map[string]struct {
		check string // what Check says; "": nothing
		home  bool   // the link is at home afterwards
	}{
		"true":                            {"", true},
		"ip link set eth0 down":           {"interface eth0: its state is down and not up", true},
		"ip link set eth0 name mine":      {"interface eth0: its name is mine and not eth0", true},
		"ip link del eth0":                {"interface eth0: it is not in the namespace", false},
		"ip addr flush dev eth0":          {"address 10.1.0.5/24 of interface eth0 is missing", true},
		"ip rule flush; ip -6 rule flush": {"routing rule 500 from 10.1.0.5/32 for table 100 is missing", true},
		"ip link set eth0 netns PID":      {"interface eth0: it is not in the namespace", false},
		// Another one in its place.
		"index=$(ip -o link show eth0 | cut -d: -f1); ip link del eth0; ip link add eth0 index $index type bridge": {"interface eth0: it is not in the namespace", false},
		// More in a list than anybody looks at.
		"i=0; while [ $i -lt 160 ]; do j=0; while [ $j -lt 256 ]; do echo route add 11.0.$i.$j dev eth0 table 100; j=$((j+1)); done; i=$((i+1)); done | ip -batch -": {"", true},
	} {
		t.Run(attack, func(t *testing.T) {
			t.Parallel()
			c := carry(t)
			beside := c.other.inUserNamespaceOf(t)
			c.other.script(t, strings.ReplaceAll(attack, "PID", fmt.Sprint(beside.pid)))
			err := c.Check(c.to)
			if expect.check == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, expect.check)
			}
			require.NoError(t, c.Back(c.to, c.from))
			home, err := c.from.Link("eth0")
			require.NoError(t, err)
			require.Equal(t, expect.home, home != nil, fmt.Sprint(home))
			if home != nil {
				require.Contains(t, c.one.script(t, "ip addr show dev eth0"), "10.1.0.5/24")
			}
			require.NoError(t, c.Back(c.to, c.from)) // once more
		})
	}
}
