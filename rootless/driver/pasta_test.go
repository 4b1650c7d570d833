package driver

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
)

const pastaAlways = "--foreground --quiet --no-netns-quit --no-dhcp --no-dhcpv6 --no-ra" +
	" --tcp-ports=none --udp-ports=none --tcp-ns=none --udp-ns=none --mac-addr=9a:55:9a:55:9a:55 "

func TestPastaArguments(t *testing.T) {
	for _, tt := range []struct{ name, members, want string }{
		{"the defaults", ``, "--mtu=65520 --address=10.0.2.100 --gateway=10.0.2.2 --netmask=24 --dns-forward=10.0.2.3" +
			" --address=fd00::64 --gateway=fd00::2 --dns-forward=fd00::3 --no-map-gw"},
		{"another network", `"rootless":{"cidr":"10.9.0.0/16","mtu":1500}`, "--mtu=1500 --address=10.9.0.100 --gateway=10.9.0.2 --netmask=16 --dns-forward=10.9.0.3" +
			" --address=fd00::64 --gateway=fd00::2 --dns-forward=fd00::3 --no-map-gw"},
		{"without IPv6", `"rootless":{"enableIPv6":false}`, "--mtu=65520 --address=10.0.2.100 --gateway=10.0.2.2 --netmask=24 --dns-forward=10.0.2.3 --ipv4-only --no-map-gw"},
		{"without a name server", `"rootless":{"disableDNS":true}`, "--mtu=65520 --address=10.0.2.100 --gateway=10.0.2.2 --netmask=24 --address=fd00::64 --gateway=fd00::2 --no-map-gw"},
		{"the host's loopback", `"rootless":{"enableIPv6":false,"allowHostLoopback":true}`,
			"--mtu=65520 --address=10.0.2.100 --gateway=10.0.2.2 --netmask=24 --dns-forward=10.0.2.3 --ipv4-only"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := (&pastaProgram{}).Command(attachment(t, tt.members).NetConf.Rootless, "eth0")
			require.NoError(t, err)
			require.Equal(t, pastaAlways+tt.want, strings.Join(c.Args, " "))
		})
	}
}

func TestPastaMoves(t *testing.T) {
	for _, members := range []string{``, `"rootless":{"disableDNS":true}`, `"rootless":{"enableIPv6":false}`} {
		c, err := (&pastaProgram{}).Command(attachment(t, members).NetConf.Rootless, "eth0")
		require.NoError(t, err)
		want := strings.ReplaceAll(strings.Join(c.Args, " "), "10.0.2.", "10.0.4.")
		c.Move(netip.MustParsePrefix("10.0.4.0/24"))
		require.Equal(t, want, strings.Join(c.Args, " "))
	}
}

func TestPastaAddressesToGoOutFrom(t *testing.T) {
	c, err := (&pastaProgram{}).Command(attachment(t, `"rootless":{"outboundAddr":"lo","outboundAddr6":"2001:db8::1"}`).NetConf.Rootless, "eth0")
	require.NoError(t, err)
	options, err := pastaOptionsOfHost(c)
	require.NoError(t, err)
	require.Equal(t, "--outbound=127.0.0.1 --outbound=2001:db8::1", strings.Join(options[1:], " "))
}

// The versions are what builds of distributions and of its makers print.
func TestPastaBuildsWithKnownFaults(t *testing.T) {
	for said, old := range map[string]bool{
		"pasta unknown version\nCopyright Red Hat\n":           true,
		"pasta 0.0~git20230309.7c7625d-1\n":                    true,
		"pasta 0.0~git20250503.587980c-2\n":                    true,
		"pasta 0^20250919.g623dbf6-1.fc43.x86_64\n":            true,
		"pasta 2025_09_19.623dbf6\n":                           true,
		"pasta 0^20251210.gd04c480-1.fc44\n":                   false,
		"Can't run AVX2 build\npasta 2026_07_16.090d739\nmore": false,
		"": true,
	} {
		p := &pastaProgram{binary{Version: pastaVersion(said)}}
		require.Equal(t, old, p.warning() != "", said)
		require.NotContains(t, p.warning(), "\n")
	}
}

func TestPastaRefused(t *testing.T) {
	err := explainPasta(conf.Errorf(conf.ErrNetwork, "pasta ended: Couldn't open network namespace /proc/self/fd/0: Permission denied"), func(string) bool { return true })
	unit.RequireError(t, err, conf.ErrNetwork, "Permission denied")
	var e *types.Error
	require.ErrorAs(t, err, &e)
	require.Contains(t, e.Details, "usr.bin.pasta")
	plain := conf.Errorf(conf.ErrNetwork, "pasta ended: Failed to open() /dev/net/tun: No such file or directory")
	require.Equal(t, error(plain), explainPasta(plain, func(string) bool { return true }))
}

func TestChooseDriver(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	old := usualFolders
	usualFolders = nil
	t.Cleanup(func() { usualFolders = old })
	program := func(name, answer string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+answer+"\n"), 0o755))
	}
	choose := func(members string) (string, error) {
		d, _, err := Choose(attachment(t, members).NetConf.Rootless, t.TempDir())
		if err != nil {
			return "", err
		}
		return d.Name(), nil
	}
	name, err := choose(``)
	require.NoError(t, err, "relay needs nothing installed")
	require.Equal(t, "relay", name)
	program("pasta", "echo pasta 2026_01_20")
	name, err = choose(`"rootless":{"driver":"pasta"}`)
	require.NoError(t, err)
	require.Equal(t, "pasta", name)
	program("slirp4netns", "echo too old")
	name, err = choose(``)
	require.NoError(t, err, "one that is too old is none")
	require.Equal(t, "relay", name)
	_, err = choose(`"rootless":{"driver":"slirp4netns"}`)
	unit.RequireError(t, err, conf.ErrPluginNotAvailable, "is too old")
	_, err = choose(`"rootless":{"portHandler":"slirp4netns"}`)
	unit.RequireError(t, err, conf.ErrPluginNotAvailable, "is too old")
	program("slirp4netns", "echo --netns-type=x --ready-fd=x --exit-fd=x --mtu=x")
	name, err = choose(``)
	require.NoError(t, err)
	require.Equal(t, "slirp4netns", name)
}
