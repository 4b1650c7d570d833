package delegate

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

func TestDefault(t *testing.T) {
	for _, test := range []struct {
		name, network string
		bridge        conf.Bridge
		want          string
	}{
		{"plain", "web", conf.Bridge{},
			`{"type":"bridge","capabilities":{"ips":true,"mac":true},"bridge":"ambi-web","isGateway":true,"ipMasq":true,"hairpinMode":true,` +
				`"ipam":{"type":"host-local","dataDir":"/run/x","ranges":[[{"subnet":"10.89.75.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`},
		{"long name", "a-network-of-many-words", conf.Bridge{},
			`{"type":"bridge","capabilities":{"ips":true,"mac":true},"bridge":"ambi-c03a625bac","isGateway":true,"ipMasq":true,"hairpinMode":true,` +
				`"ipam":{"type":"host-local","dataDir":"/run/x","ranges":[[{"subnet":"10.89.192.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`},
		{"keys", "web", conf.Bridge{Name: "br7", Subnet: netip.MustParsePrefix("192.168.7.0/24"), Subnet6: netip.MustParsePrefix("fd00:7::/64")},
			`{"type":"bridge","capabilities":{"ips":true,"mac":true},"bridge":"br7","isGateway":true,"ipMasq":true,"hairpinMode":true,` +
				`"ipam":{"type":"host-local","dataDir":"/run/x","ranges":[[{"subnet":"192.168.7.0/24"}],[{"subnet":"fd00:7::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("PATH", t.TempDir()) // without nft
			chain, err := Default(test.bridge, test.network, "/run/x", nil)
			require.NoError(t, err)
			require.Len(t, chain, 1)
			require.Equal(t, "bridge", chain[0].Type)
			require.True(t, chain[0].Capabilities["ips"])
			require.Equal(t, test.want, string(chain[0].Raw))
		})
	}
}

func TestDefaultMakesNoSecondDefaultRoute(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	both := conf.Bridge{Subnet6: netip.MustParsePrefix("fd00:7::/64")}
	for want, routed := range map[string][]string{
		`"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]`: nil,
		`"routes":[{"dst":"::/0"}]`:                     {"0.0.0.0/0"},
		`"routes":[]`:                                   {"::/0", "0.0.0.0/0"},
	} {
		var there []netip.Prefix
		for _, dst := range routed {
			there = append(there, netip.MustParsePrefix(dst))
		}
		chain, err := Default(both, "web", "/run/x", nil, there...)
		require.NoError(t, err)
		require.Contains(t, string(chain[0].Raw), want)
	}
}

func TestDefaultHasFirewallWhereItWorks(t *testing.T) {
	plugins, programs := t.TempDir(), t.TempDir()
	t.Setenv("PATH", programs)
	length := func() int {
		chain, err := Default(conf.Bridge{}, "web", "/run/x", []string{"", plugins})
		require.NoError(t, err)
		return len(chain)
	}
	require.Equal(t, 1, length())
	for i, program := range []string{filepath.Join(plugins, "firewall"), filepath.Join(programs, "iptables"), filepath.Join(programs, "ip6tables")} {
		require.NoError(t, os.WriteFile(program, nil, 0o700))
		require.Equal(t, []int{1, 1, 2}[i], length())
	}
}

func TestDefaultMasqueradesByNftablesWhereItCan(t *testing.T) {
	programs := t.TempDir()
	t.Setenv("PATH", programs)
	require.NoError(t, os.WriteFile(filepath.Join(programs, "nft"), []byte("#!/bin/sh\n"), 0o700))
	chain, err := Default(conf.Bridge{}, "web", "/run/x", nil)
	require.NoError(t, err)
	require.Contains(t, string(chain[0].Raw), `"ipMasq":true,"ipMasqBackend":"nftables"`)
}

func TestBridgeNameFits(t *testing.T) {
	for network, want := range map[string]string{"1234567890": "ambi-1234567890", "12345678901": "ambi-254aa248ac"} {
		require.Equal(t, want, BridgeName(conf.Bridge{}, network))
		require.LessOrEqual(t, len(want), 15)
	}
}
