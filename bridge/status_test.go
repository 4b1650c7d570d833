package bridge

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/nlsock"
)

// STATUS says which part of the kernel is missing, and changes nothing to find out.
func TestStatusAsksTheKernel(t *testing.T) {
	l := newLab(t)
	before := l.state(t)
	n := l.network("web")
	l.on(t, n, func() {
		require.NoError(t, n.Status())
		for _, kind := range []string{"bridge", "veth"} {
			require.NoError(t, hasDriver(n.Host.Route, kind))
		}
		err := n.makeError("nosuchkind", hasDriver(n.Host.Route, "nosuchkind"))
		require.ErrorContains(t, err, "asking the kernel for the driver nosuchkind")
		require.Equal(t, "load the kernel module: modprobe nosuchkind", conf.Remedy(err))

		// A socket on which nobody answers for nftables.
		without := *n
		var err2 error
		without.Host.Filter, err2 = nlsock.Open(unix.NETLINK_ROUTE, nil)
		require.NoError(t, err2)
		defer without.Host.Filter.Close()
		err = without.Status()
		require.ErrorContains(t, err, "the kernel has no nftables")
		require.Contains(t, conf.Remedy(err), "modprobe nf_tables")
	})
	require.Equal(t, before, l.state(t))
}
