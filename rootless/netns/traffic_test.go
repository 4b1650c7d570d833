package netns

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// TestNobodyCounts: nothing is not the same as nobody knows.
func TestNobodyCounts(t *testing.T) {
	n, err := Make(conf.Key{Network: "web"}, "ambi0", &plan.Interface{IfName: "tap0"})
	require.NoError(t, err)
	traffic, err := n.Traffic()
	require.NoError(t, err)
	require.Nil(t, traffic)
	refused, err := n.FlowsRefused()
	require.NoError(t, err)
	require.Nil(t, refused)

	// The driver counts what leaves, and who leaves is forgotten by the rest.
	require.NoError(t, n.WayOut(false))
	traffic, err = n.Traffic()
	require.NoError(t, err)
	require.Nil(t, traffic)
	require.NoError(t, n.ForgetFlows([]netip.Addr{netip.MustParseAddr("10.0.0.2")}))

	require.NoError(t, n.WayOut(true))
	traffic, err = n.Traffic()
	require.NoError(t, err)
	require.NotNil(t, traffic)
	refused, err = n.FlowsRefused()
	require.NoError(t, err)
	require.NotNil(t, refused)
}
