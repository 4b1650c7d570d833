package bridge

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// A container gets an interface, addresses and a way out, and leaves nothing behind.
func TestAddAndDel(t *testing.T) {
	l := newLab(t)
	before := l.state(t)
	n := l.network("web", withSubnets("10.88.5.0/24", "fd88::/64"))
	a := l.join(t, n, "a")
	b := l.join(t, n, "b")
	for _, family := range []int{4, 6} {
		require.Equal(t, a.ip(family), connect(t, a.space, serve(t, b.space, "tcp", net.JoinHostPort(b.ip(family), "0"))), "between containers the address stays")
		require.True(t, reaches(t, l.space, b.space, b.ip(family)), "the host reaches a container")
	}
	require.Equal(t, "198.51.100.1", connect(t, a.space, serve(t, l.client, "tcp", "198.51.100.2:0")))
	require.Equal(t, "fd99::1", connect(t, a.space, serve(t, l.client, "tcp", "[fd99::2]:0")))
	l.del(t, a, a.result)
	l.del(t, a, a.result)
	l.del(t, b, nil)
	require.Equal(t, before, l.state(t))
}
