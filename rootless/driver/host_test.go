package driver

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// TestReached: networks beyond the host's own links and itself.
func TestReached(t *testing.T) {
	for network, counts := range map[string]bool{
		"2001:db8::/64": true, "fd12::/48": true, "2001:db8::7/128": true,
		"fe80::/64": false, "ff00::/8": false, "::1/128": false, "::/0": false, "192.0.2.0/24": false,
	} {
		_, dst, err := net.ParseCIDR(network)
		require.NoError(t, err)
		got, ok := reached(&netlink.Route{Dst: dst})
		require.Equal(t, counts, ok, network)
		if ok {
			require.Equal(t, netip.MustParsePrefix(network), got)
		}
	}
	_, ok := reached(&netlink.Route{})
	require.False(t, ok, "a default route")
}
