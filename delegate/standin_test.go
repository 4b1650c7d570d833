package delegate

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/ambi-cni/ambi/inside"
)

func TestStandInLooksLikeTheContainer(t *testing.T) {
	before := links(t)
	result := oneAddress()
	result.IPs = append(result.IPs,
		&types100.IPConfig{Interface: types100.Int(1), Address: cidr(t, "fd00:1::2/64")},
		&types100.IPConfig{Address: cidr(t, "10.9.9.9/32")},                             // of no interface in particular
		&types100.IPConfig{Interface: types100.Int(7), Address: cidr(t, "10.9.9.8/32")}, // of one that is not there
		&types100.IPConfig{Interface: types100.Int(0), Address: cidr(t, "10.1.2.1/24")}, // of the host's bridge
		&types100.IPConfig{Interface: types100.Int(1), Address: cidr(t, "10.1.2.3/24")}) // twice
	for _, name := range []string{"eth0", "peer0", "a.b-c_d"} {
		result.Interfaces[1].Name = name
		stand, err := newStandIn(name, result)
		require.NoError(t, err)
		require.NoError(t, ns.WithNetNSPath(stand.path, func(ns.NetNS) error {
			l, err := netlink.LinkByName(name)
			require.NoError(t, err)
			require.Equal(t, "02:de:1e:9a:7e:01", l.Attrs().HardwareAddr.String())
			addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			require.NoError(t, err)
			var got []string
			for _, a := range addresses {
				got = append(got, a.IPNet.String())
			}
			require.ElementsMatch(t, []string{"10.1.2.3/24", "fd00:1::2/64", "10.9.9.9/32", "10.9.9.8/32"}, got)
			return nil
		}))
		stand.Close()
		require.NoFileExists(t, stand.path)
	}
	require.Equal(t, before, links(t), "the host's links are as they were")
}

func TestStandInWithoutAResult(t *testing.T) {
	for _, result := range []*types100.Result{nil, {}, {Interfaces: []*types100.Interface{nil, {Name: "eth0", Sandbox: "x", Mac: "nonsense"}}, IPs: []*types100.IPConfig{nil}}} {
		stand, err := newStandIn("eth0", result)
		require.NoError(t, err)
		link, err := inside.Link(stand.path, "eth0")
		require.NoError(t, err)
		require.NotNil(t, link)
		stand.Close()
	}
}

func TestHostDeviceGetsNoStandIn(t *testing.T) {
	s := newStage(t)
	s.install("host-device", script{})
	s.install("addresses", script{})
	s.add(`{"type":"host-device","ipam":{"type":"addresses","x":1}}`)
	s.Attachment.NetnsPath = "/nowhere"
	require.NoError(t, s.Del(context.Background(), oneAddress()))
	require.Equal(t, "host-device DEL, addresses DEL", s.verbs())
	for _, c := range s.calls() {
		require.Empty(t, c.Env["CNI_NETNS"])
		require.Contains(t, c.Stdin, `{"type":"host-device","ipam":{"type":"addresses","x":1},`)
	}
}

func TestAddressesOfTheStore(t *testing.T) {
	for _, test := range []struct {
		name   string
		files  map[string]string
		result *types100.Result
		want   []string // addresses in the prevResult of DEL; nil: no prevResult
	}{
		{"the container's own", map[string]string{"10.1.2.3": "c1\r\neth0"}, oneAddress(), []string{"10.1.2.3/24"}},
		{"released already", nil, oneAddress(), []string{"10.1.2.3/24"}},
		{"another container's by now", map[string]string{"10.1.2.3": "c2\r\neth0"}, oneAddress(), []string{}},
		{"another interface's by now", map[string]string{"10.1.2.3": "c1\r\neth1"}, oneAddress(), []string{}},
		{"written by an old host-local", map[string]string{"10.1.2.3": "c1"}, oneAddress(), []string{"10.1.2.3/24"}},
		{"half written", map[string]string{"10.1.2.3": ""}, oneAddress(), []string{"10.1.2.3/24"}},
		{"no result", map[string]string{"10.1.2.3": "c1\r\neth0", "fd00::3": "c1\r\neth0", "10.1.2.4": "c2\r\neth0", "last_reserved_ip.0": "10.1.2.4", "lock": ""},
			nil, []string{"10.1.2.3/32", "fd00::3/128"}},
		{"no result, no address", map[string]string{"10.1.2.4": "c2\r\neth0"}, nil, nil},
		{"no store", nil, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStage(t)
			s.install("a", script{})
			dir := t.TempDir()
			s.add(fmt.Sprintf(`{"type":"a","ipam":{"type":"host-local","dataDir":%q}}`, dir))
			require.NoError(t, os.Mkdir(filepath.Join(dir, "net"), 0o700))
			for name, content := range test.files {
				require.NoError(t, os.WriteFile(filepath.Join(dir, "net", name), []byte(content), 0o600))
			}
			require.NoError(t, s.Del(context.Background(), test.result))
			raw := value([]byte(s.calls()[0].Stdin), "prevResult")
			if test.want == nil {
				require.Nil(t, raw)
				return
			}
			var prev types100.Result
			require.NoError(t, json.Unmarshal(raw, &prev))
			got := []string{}
			for _, ip := range prev.IPs {
				got = append(got, ip.Address.String())
			}
			require.ElementsMatch(t, test.want, got)
		})
	}
}

func cidr(t *testing.T, s string) net.IPNet {
	t.Helper()
	ip, n, err := net.ParseCIDR(s)
	require.NoError(t, err)
	n.IP = ip
	return *n
}

func links(t *testing.T) []string {
	t.Helper()
	all, err := netlink.LinkList()
	require.NoError(t, err)
	var names []string
	for _, l := range all {
		names = append(names, l.Attrs().Name)
	}
	return names
}
