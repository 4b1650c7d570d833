package plan

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func defaultSubnet() Subnet {
	return Subnet{
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24")},
		Movable:   true, Gateway: netip.MustParseAddr("10.0.2.2"),
	}
}

// A network that is in use gives way, with every address that is in it.
func TestMove(t *testing.T) {
	s := defaultSubnet()
	require.True(t, s.Move(func(n netip.Prefix) bool { return n.Addr().As4()[2] < 5 }))
	require.Equal(t, Subnet{
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.6.100/24")},
		Movable:   true, Gateway: netip.MustParseAddr("10.0.6.2"),
	}, s)
	s = defaultSubnet()
	require.True(t, s.Move(func(netip.Prefix) bool { return false }))
	require.Equal(t, defaultSubnet(), s)
	require.False(t, s.Move(func(netip.Prefix) bool { return true }), "all are in use")
}

func TestNext(t *testing.T) {
	s := Subnet{Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::64/64")}}
	require.True(t, s.Next())
	require.Equal(t, "fd00::65/64", s.Addresses[0].String())
	for range 26 {
		require.True(t, s.Next())
	}
	require.Equal(t, "fd00::7f/64", s.Addresses[0].String())
	require.False(t, s.Next(), "the last one")
}
