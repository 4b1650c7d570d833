package conf_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

func TestFirstClash(t *testing.T) {
	at := func(protocol conf.Protocol, port uint16, hostIP string) []conf.PortMapping {
		m := conf.PortMapping{HostPort: port, ContainerPort: 80, Protocol: protocol}
		if hostIP != "" {
			m.HostIP = netip.MustParseAddr(hostIP)
		}
		return []conf.PortMapping{m}
	}
	for _, tt := range []struct {
		ours, theirs string
		clash        bool
	}{
		{"", "", true},
		{"", "192.0.2.1", true},
		{"", "::1", true},
		{"0.0.0.0", "192.0.2.1", true},
		{"0.0.0.0", "0.0.0.0", true},
		{"::", "2001:db8::1", true},
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"0.0.0.0", "2001:db8::1", false},
		{"192.0.2.1", "::", false},
		{"0.0.0.0", "::", false},
	} {
		for _, pair := range [][2]string{{tt.ours, tt.theirs}, {tt.theirs, tt.ours}} {
			ours := at(conf.TCP, 8080, pair[0])
			m, clash := conf.FirstClash(ours, at(conf.TCP, 8080, pair[1]))
			require.Equal(t, tt.clash, clash, "%q and %q", pair[0], pair[1])
			if clash {
				require.Equal(t, ours[0], m)
			}
			_, clash = conf.FirstClash(ours, at(conf.UDP, 8080, pair[1]))
			require.False(t, clash)
			_, clash = conf.FirstClash(ours, at(conf.TCP, 8081, pair[1]))
			require.False(t, clash)
		}
	}
}
