package conf_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
)

// entry is a plugin entry with these members added to the two that every one has.
func entry(members string) []byte {
	if members != "" {
		members = "," + members
	}
	return []byte(`{"cniVersion":"1.1.0","name":"web","type":"ambi"` + members + `}`)
}

func parse(t *testing.T, members string) *conf.NetConf {
	t.Helper()
	n, err := conf.Parse(entry(members))
	require.NoError(t, err)
	return n
}

func TestParseDefaults(t *testing.T) {
	n := parse(t, "")
	require.Equal(t, "1.1.0", n.CNIVersion)
	require.Equal(t, "web", n.Name)
	require.Equal(t, "ambi", n.Type)
	require.Equal(t, conf.ModeAuto, n.Mode)
	require.Nil(t, n.Delegates)
	require.Equal(t, conf.Bridge{Isolate: true}, n.Bridge)
	require.Equal(t, conf.Portmap{Backend: conf.BackendAuto, SNAT: true}, n.Portmap)
	require.Equal(t, conf.Rootless{
		Network: conf.NetworkShared, Driver: conf.DriverAuto, CIDR: netip.MustParsePrefix("10.0.2.0/24"), MTU: 65520, EnableIPv6: true,
		PortHandler: conf.HandlerRootlessport, SourceIP: conf.SourcePreserve, Sandbox: true, Seccomp: true,
	}, n.Rootless)
	require.Empty(t, n.StateDir)
	require.Equal(t, "info", n.LogLevel)
	require.Empty(t, n.LogFile)
	require.Nil(t, n.PrevResult)
	require.Nil(t, n.ValidAttachments)
	require.Equal(t, entry(""), []byte(n.Raw))
}

func TestParseNullIsAbsent(t *testing.T) {
	want := parse(t, "")
	for _, key := range []string{"mode", "delegates", "bridge", "portmap", "rootless", "stateDir", "logLevel", "logFile",
		"dns", "capabilities", "prevResult", "runtimeConfig", "args", "cni.dev/valid-attachments", "cni.dev/attachments"} {
		got := parse(t, `"`+key+`":null`)
		got.Raw = want.Raw
		require.Equal(t, want, got, key)
	}
	require.Equal(t, want.Rootless, parse(t, `"rootless":{"cidr":null,"mtu":null,"enableIPv6":null}`).Rootless)
}

// Every key, with a value that is not its default, shown by the field it sets.
func TestParseAccepts(t *testing.T) {
	for _, tt := range []struct {
		members string
		got     func(*conf.NetConf) any
		want    string
	}{
		{`"capabilities":{"portMappings":true,"ips":false}`, func(n *conf.NetConf) any { return n.Capabilities }, "map[ips:false portMappings:true]"},
		{`"mode":"root"`, func(n *conf.NetConf) any { return n.Mode }, "root"},
		{`"mode":"rootless"`, func(n *conf.NetConf) any { return n.Mode }, "rootless"},
		{`"delegates":"podman"`, func(n *conf.NetConf) any { return n.DelegatesFrom }, "podman"},
		{`"delegates":"/etc/cni/net.d/87.conflist"`, func(n *conf.NetConf) any { return n.DelegatesFrom }, "/etc/cni/net.d/87.conflist"},
		{`"delegateTimeout":"1m30s"`, func(n *conf.NetConf) any { return n.DelegateTimeout }, "1m30s"},
		{`"delegateTimeout":""`, func(n *conf.NetConf) any { return n.DelegateTimeout }, "0s"},
		{`"mode":"auto"`, func(n *conf.NetConf) any { return n.Mode }, "auto"},
		{`"bridge":{"name":"br0"}`, func(n *conf.NetConf) any { return n.Bridge.Name }, "br0"},
		{`"bridge":{"name":""}`, func(n *conf.NetConf) any { return n.Bridge.Name }, ""},
		{`"bridge":{"name":"fifteen-letters"}`, func(n *conf.NetConf) any { return n.Bridge.Name }, "fifteen-letters"},
		{`"bridge":{"subnet":"10.88.0.0/16"}`, func(n *conf.NetConf) any { return n.Bridge.Subnet }, "10.88.0.0/16"},
		{`"bridge":{"subnet":"10.88.0.0/30"}`, func(n *conf.NetConf) any { return n.Bridge.Subnet }, "10.88.0.0/30"},
		{`"bridge":{"subnet":""}`, func(n *conf.NetConf) any { return n.Bridge.Subnet.IsValid() }, "false"},
		{`"bridge":{"subnet6":"fd00:1::/64"}`, func(n *conf.NetConf) any { return n.Bridge.Subnet6 }, "fd00:1::/64"},
		{`"portmap":{"backend":"nftables"}`, func(n *conf.NetConf) any { return n.Portmap.Backend }, "nftables"},
		{`"portmap":{"backend":"iptables"}`, func(n *conf.NetConf) any { return n.Portmap.Backend }, "iptables"},
		{`"portmap":{"backend":"none"}`, func(n *conf.NetConf) any { return n.Portmap.Backend }, "none"},
		{`"portmap":{"snat":false}`, func(n *conf.NetConf) any { return n.Portmap.SNAT }, "false"},
		{``, func(n *conf.NetConf) any { return n.Rootless.Driver }, "auto"},
		{`"rootless":{"driver":"slirp4netns"}`, func(n *conf.NetConf) any { return n.Rootless.Driver }, "slirp4netns"},
		{`"rootless":{"driver":"pasta"}`, func(n *conf.NetConf) any { return n.Rootless.Driver }, "pasta"},
		{`"rootless":{"cidr":"192.168.128.0/25"}`, func(n *conf.NetConf) any { return n.Rootless.CIDR }, "192.168.128.0/25"},
		{`"rootless":{"cidr":"128.0.0.0/1"}`, func(n *conf.NetConf) any { return n.Rootless.CIDR }, "128.0.0.0/1"},
		{`"rootless":{"mtu":1500}`, func(n *conf.NetConf) any { return n.Rootless.MTU }, "1500"},
		{`"rootless":{"mtu":65521}`, func(n *conf.NetConf) any { return n.Rootless.MTU }, "65521"},
		{`"rootless":{"mtu":1280,"enableIPv6":true}`, func(n *conf.NetConf) any { return n.Rootless.EnableIPv6 }, "true"},
		{`"rootless":{"mtu":88,"enableIPv6":false}`, func(n *conf.NetConf) any { return n.Rootless.MTU }, "88"},
		{`"rootless":{"mtu":1279}`, func(n *conf.NetConf) any { return n.Rootless.EnableIPv6 }, "false"}, // was on by default only
		{`"rootless":{"enableIPv6":true}`, func(n *conf.NetConf) any { return n.Rootless.EnableIPv6Set }, "true"},
		{`"rootless":{"enableIPv6":false}`, func(n *conf.NetConf) any { return n.Rootless.EnableIPv6 }, "false"},
		{`"rootless":{"allowHostLoopback":true}`, func(n *conf.NetConf) any { return n.Rootless.AllowHostLoopback }, "true"},
		{`"rootless":{"outboundAddr":"192.0.2.1"}`, func(n *conf.NetConf) any { return n.Rootless.OutboundAddr }, "192.0.2.1"},
		{`"rootless":{"outboundAddr":"eth0.100"}`, func(n *conf.NetConf) any { return n.Rootless.OutboundAddr }, "eth0.100"},
		{`"rootless":{"outboundAddr6":"2001:db8::1"}`, func(n *conf.NetConf) any { return n.Rootless.OutboundAddr6 }, "2001:db8::1"},
		{`"rootless":{"outboundAddr6":"wlan0"}`, func(n *conf.NetConf) any { return n.Rootless.OutboundAddr6 }, "wlan0"},
		{`"rootless":{"disableDNS":true}`, func(n *conf.NetConf) any { return n.Rootless.DisableDNS }, "true"},
		{`"rootless":{"portHandler":"slirp4netns"}`, func(n *conf.NetConf) any { return n.Rootless.PortHandler }, "slirp4netns"},
		{`"rootless":{"sourceIP":"gateway"}`, func(n *conf.NetConf) any { return n.Rootless.SourceIP }, "gateway"},
		{`"rootless":{"sandbox":false}`, func(n *conf.NetConf) any { return n.Rootless.Sandbox }, "false"},
		{`"rootless":{"seccomp":false}`, func(n *conf.NetConf) any { return n.Rootless.Seccomp }, "false"},
		{`"rootless":{"path":"/opt/bin/slirp4netns"}`, func(n *conf.NetConf) any { return n.Rootless.Path }, "/opt/bin/slirp4netns"},
		{`"rootless":{"path":""}`, func(n *conf.NetConf) any { return n.Rootless.Path }, ""},
		{`"stateDir":"/var/tmp/ambi"`, func(n *conf.NetConf) any { return n.StateDir }, "/var/tmp/ambi"},
		{`"stateDir":""`, func(n *conf.NetConf) any { return n.StateDir }, ""},
		{`"logLevel":"debug"`, func(n *conf.NetConf) any { return n.LogLevel }, "debug"},
		{`"logLevel":"warn"`, func(n *conf.NetConf) any { return n.LogLevel }, "warn"},
		{`"logLevel":"error"`, func(n *conf.NetConf) any { return n.LogLevel }, "error"},
		{`"logFile":"/var/log/ambi"`, func(n *conf.NetConf) any { return n.LogFile }, "/var/log/ambi"},
		{`"dns":{"nameservers":["192.0.2.53"],"domain":"example","search":["a"],"options":["ndots:1"]}`,
			func(n *conf.NetConf) any { return n.DNS }, "{[192.0.2.53] example [a] [ndots:1]}"},
		{`"prevResult":{"cniVersion":"1.1.0","x":12345678901234567890}`,
			func(n *conf.NetConf) any { return string(n.PrevResult) }, `{"cniVersion":"1.1.0","x":12345678901234567890}`},
		{`"runtimeConfig":{"ips":["10.1.2.3/16","fd00::5"]}`, func(n *conf.NetConf) any { return n.RuntimeConfig.IPs }, "[10.1.2.3/16 fd00::5/128]"},
		{`"runtimeConfig":{"mac":"02:42:ac:11:00:02"}`, func(n *conf.NetConf) any { return n.RuntimeConfig.MAC }, "02:42:ac:11:00:02"},
		{`"runtimeConfig":{"mac":"02-42-AC-11-00-02"}`, func(n *conf.NetConf) any { return n.RuntimeConfig.MAC }, "02:42:ac:11:00:02"},
		{`"runtimeConfig":{"mac":""}`, func(n *conf.NetConf) any { return n.RuntimeConfig.MAC }, ""},
		{`"runtimeConfig":{"dns":{"servers":["192.0.2.53"],"searches":["a"],"options":["b"]}}`,
			func(n *conf.NetConf) any { return n.RuntimeConfig.DNS }, "{[192.0.2.53]  [a] [b]}"},
		{`"runtimeConfig":{"dns":{"Servers":["192.0.2.53"],"Searches":null}}`, // containerd's spelling
			func(n *conf.NetConf) any { return n.RuntimeConfig.DNS }, "{[192.0.2.53]  [] []}"},
		{`"bridge":{"mtu":1400}`, func(n *conf.NetConf) any { return n.Bridge.MTU }, "1400"},
		{`"bridge":{"mtu":0,"subnet6":"fd00:1::/64"}`, func(n *conf.NetConf) any { return n.Bridge.MTU }, "0"},
		{`"bridge":{"isolate":false}`, func(n *conf.NetConf) any { return n.Bridge.Isolate }, "false"},
		{`"bridge":{"keep":true}`, func(n *conf.NetConf) any { return n.Bridge.Keep }, "true"},
		{`"bridge":{"defaultRoute":false}`, func(n *conf.NetConf) any { return *n.Bridge.DefaultRoute }, "false"},
		{`"bridge":{"defaultRoute":null}`, func(n *conf.NetConf) any { return n.Bridge.DefaultRoute == nil }, "true"},
		{`"runtimeConfig":{"bandwidth":{"IngressRate":1000,"IngressBurst":8000,"egressRate":2000,"egressBurst":9000}}`, // containerd's spelling
			func(n *conf.NetConf) any { return n.RuntimeConfig.Bandwidth }, "{1000 8000 2000 9000}"},
		{`"runtimeConfig":{"bandwidth":{"ingressRate":1}}`,
			func(n *conf.NetConf) any { return string(n.RuntimeConfig.Raw["bandwidth"]) }, `{"ingressRate":1}`},
		{`"args":{"cni":{"ips":["10.0.2.7"],"mac":"02:00:00:00:00:01","labels":[]},"podman":{"x":1}}`,
			func(n *conf.NetConf) any { return fmt.Sprint(n.Args.IPs, n.Args.MAC) }, "[10.0.2.7/32]02:00:00:00:00:01"},
	} {
		t.Run(tt.members, func(t *testing.T) {
			require.Equal(t, tt.want, fmt.Sprint(tt.got(parse(t, tt.members))))
		})
	}
}

// Keys of the specification and of other programs.
func TestParseToleratesForeignKeys(t *testing.T) {
	for _, members := range []string{
		`"deviceID":"0000:03:02.0","pciBusID":"0000:03:02.0"`, // Multus, from the device plugin
		`"nerdctlID":"ab","nerdctlLabels":{}`, `"masqAll":true`, `"":1`, `"` + strings.Repeat("mode", 1<<18) + `":1`,
		`"ipMasq":true`, `"ipam":{"type":"host-local"}`, `"cniVersions":["1.0.0"]`, `"disableCheck":true`, `"disableGC":true`,
		`"loadOnlyInlinedPlugins":true`, `"plugins":[]`, `"cni.dev/anything":1`, `"example.org/key":{"a":[]}`, `"args":{"other":1}`,
		`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/8"}]],"io.example.thing":1}`,
	} {
		require.NoError(t, parse(t, members).Misspelt(), members)
	}
	for _, key := range []string{"master", "mtu", "vlan", "isGateway", "isDefaultGateway", "hairpinMode", "promiscMode", "macspoofchk",
		"conditionsV4", "markMasqBit", "externalSetMarkChain", "kubernetes", "policy", "subnet", "ips", "mac", "hostPort", "log", "resourceName"} {
		require.NoError(t, parse(t, `"`+key+`":1`).Misspelt(), key)
	}
}

// A key of the entry itself that is nearly one of ours.
func TestMisspeltKeys(t *testing.T) {
	for key, meant := range map[string]string{
		"modee": "mode", "Mode": "mode", "mdoe": "mode", "delegate": "delegates", "delegats": "delegates", "delgate": "delegates",
		"portMap": "portmap", "port_map": "portmap", "prtmap": "portmap", "root-less": "rootless", "rootles": "rootless",
		"log_level": "logLevel", "logfile": "logFile", "statedir": "stateDir", "brigde": "bridge", "capabilites": "capabilities", //nolint:misspell // misspelt on purpose
		"delegateTimout": "delegateTimeout", "DNS": "dns", "arg": "args", "cniVerson": "cniVersion", "runtimeconfig": "runtimeConfig",
	} {
		err := parse(t, `"`+key+`":"x"`).Misspelt()
		unit.RequireError(t, err, types.ErrUnsupportedField, `"`+key+`"`, `"x"`, `is "`+meant+`" meant?`, "the keys of ambi are args, ")
	}
}

// The verbs that undo get what can be read.
func TestParseReadsWhatItCan(t *testing.T) {
	n, err := conf.Parse(entry(`"a":1,"bridge":{"mtuu":1500,"name":"br0","subnet":"nowhere","subnet6":"fd00:1::/64"},"delegates":7,"mode":"rootless",
		"cni.dev/valid-attachments":[{"containerID":"one","ifname":"eth0"},7],"rootless":{"mtu":1},"stateDir":"/run/x"`))
	unit.RequireError(t, err, types.ErrUnsupportedField, `"bridge.mtuu"`)
	require.Equal(t, conf.Bridge{Isolate: true, Name: "br0", Subnet6: netip.MustParsePrefix("fd00:1::/64")}, n.Bridge)
	require.Equal(t, conf.ModeRootless, n.Mode)
	require.Equal(t, "/run/x", n.StateDir)
	require.Nil(t, n.ValidAttachments, "half a list would have GC take down the other half")
	n, err = conf.Parse(entry(`"delegates":[{"type":"ambi"}]`))
	require.Error(t, err)
	require.Empty(t, n.Delegates)
}

func TestParseRefusesUnknownKeys(t *testing.T) {
	for _, tt := range []struct {
		members string
		texts   []string // the key, the value, and one key that there is
	}{
		{`"bridge":{"mtuu":1500}`, []string{`"bridge.mtuu"`, "1500", "subnet6"}},
		{`"portmap":{"masqAll":true}`, []string{`"portmap.masqAll"`, "true", "backend, snat"}},
		{`"rootless":{"mut":1500}`, []string{`"rootless.mut"`, "1500", "mtu"}},
		{`"rootless":{"enable_ipv6":null}`, []string{`"rootless.enable_ipv6"`, "null", "enableIPv6"}},
		{`"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"hostIp6":"::"}]}`,
			[]string{`"runtimeConfig.portMappings[0].hostIp6"`, `"::"`, "hostIP, hostPort"}},
	} {
		t.Run(tt.members, func(t *testing.T) {
			_, err := conf.Parse(entry(tt.members))
			unit.RequireError(t, err, types.ErrUnsupportedField, tt.texts...)
		})
	}
}

func TestParseRefusesValues(t *testing.T) {
	for _, tt := range []struct {
		members string
		texts   []string // the key, the value, what is allowed
	}{
		{`"name":""`, []string{`"name"`, "missing"}},
		{`"name":1`, []string{`"name"`, "1", "text"}},
		{`"cniVersion":1.0`, []string{`"cniVersion"`, "1.0", "text"}},
		{`"capabilities":["ips"]`, []string{`"capabilities"`, `["ips"]`, "object"}},
		{`"capabilities":{"ips":"yes"}`, []string{`"capabilities"`, "true and false"}},
		{`"mode":"sudo"`, []string{`"mode"`, `"sudo"`, "auto, root, rootless"}},
		{`"mode":""`, []string{`"mode"`, `""`, "auto, root, rootless"}},
		{`"mode":true`, []string{`"mode"`, "true", "auto, root, rootless"}},
		{`"delegates":{}`, []string{`"delegates"`, "{}", "array"}},
		{`"delegates":["bridge"]`, []string{`"delegates[0]"`, `"bridge"`, "object"}},
		{`"delegates":[{"type":"bridge"},{}]`, []string{`"delegates[1].type"`, `""`, "file name"}},
		{`"delegates":[{"type":"../bridge"}]`, []string{`"delegates[0].type"`, "../bridge", "without a folder"}},
		{`"delegates":[{"type":7}]`, []string{`"delegates[0].type"`, "7"}},
		{`"delegates":""`, []string{`"delegates"`, `""`, "conflist"}},
		{`"delegates":"net.d/x"`, []string{`"delegates"`, `"net.d/x"`, "absolute path"}},
		{`"delegates":[{"type":"ambi"}]`, []string{`"delegates"`, `"ambi"`, "itself"}},
		{`"delegateTimeout":30`, []string{`"delegateTimeout"`, "30", "30s"}},
		{`"delegateTimeout":"0s"`, []string{`"delegateTimeout"`, `"0s"`}},
		{`"delegateTimeout":"-5s"`, []string{`"delegateTimeout"`, `"-5s"`}},
		{`"bridge":7`, []string{`"bridge"`, "7", "object"}},
		{`"bridge":{"name":"sixteen-letters-"}`, []string{`"bridge.name"`, "sixteen-letters-", "15"}},
		{`"bridge":{"name":"a/b"}`, []string{`"bridge.name"`, "a/b"}},
		{`"bridge":{"name":"a b"}`, []string{`"bridge.name"`, "a b"}},
		{`"bridge":{"name":"a\u000bb"}`, []string{`"bridge.name"`}},
		{`"bridge":{"name":"br%d"}`, []string{`"bridge.name"`, "br%d"}},
		{`"bridge":{"name":".."}`, []string{`"bridge.name"`, ".."}},
		{`"bridge":{"mtu":87}`, []string{`"bridge.mtu"`, "87", "88 to 65535"}},
		{`"bridge":{"mtu":65536}`, []string{`"bridge.mtu"`, "65536", "88 to 65535"}},
		{`"bridge":{"mtu":1279,"subnet6":"fd00:1::/64"}`, []string{`"bridge.mtu"`, "1279", "1280"}},
		{`"bridge":{"subnet":"10.88.0.1/16"}`, []string{`"bridge.subnet"`, "10.88.0.1/16", "IPv4 network"}},
		{`"bridge":{"subnet":"10.88.0.0/31"}`, []string{`"bridge.subnet"`, "10.88.0.0/31", "room"}},
		{`"bridge":{"subnet":"fd00::/64"}`, []string{`"bridge.subnet"`, "fd00::/64", "IPv4 network"}},
		{`"bridge":{"subnet":"0.0.0.0/0"}`, []string{`"bridge.subnet"`, "0.0.0.0/0"}},
		{`"bridge":{"subnet":"224.0.0.0/24"}`, []string{`"bridge.subnet"`, "224.0.0.0/24"}},
		{`"bridge":{"subnet6":"10.0.0.0/8"}`, []string{`"bridge.subnet6"`, "10.0.0.0/8", "IPv6 network"}},
		{`"bridge":{"subnet6":"::ffff:10.0.0.0/104"}`, []string{`"bridge.subnet6"`, "IPv6 network"}},
		{`"bridge":{"subnet6":"fd00::/127"}`, []string{`"bridge.subnet6"`, "fd00::/127"}},
		{`"portmap":{"backend":"ipfw"}`, []string{`"portmap.backend"`, `"ipfw"`, "auto, nftables, iptables, none"}},
		{`"portmap":{"snat":"no"}`, []string{`"portmap.snat"`, `"no"`, "true or false"}},
		{`"rootless":[]`, []string{`"rootless"`, "[]", "object"}},
		{`"rootless":{"driver":"vpnkit"}`, []string{`"rootless.driver"`, `"vpnkit"`, "auto", "slirp4netns", "pasta"}},
		{`"rootless":{"cidr":""}`, []string{`"rootless.cidr"`, `""`, "IPv4 network"}},
		{`"rootless":{"cidr":"10.0.2.0"}`, []string{`"rootless.cidr"`, `"10.0.2.0"`}},
		{`"rootless":{"cidr":"10.0.2.0/26"}`, []string{`"rootless.cidr"`, "10.0.2.0/26", "from 1 to 25"}},
		{`"rootless":{"cidr":"169.254.0.0/16"}`, []string{`"rootless.cidr"`, "169.254.0.0/16", "IPv4 network"}},
		{`"rootless":{"cidr":"10.0.2.1/24"}`, []string{`"rootless.cidr"`, "10.0.2.1/24"}},
		{`"rootless":{"cidr":"0.0.0.0/0"}`, []string{`"rootless.cidr"`, "0.0.0.0/0"}},
		{`"rootless":{"cidr":"127.0.0.0/8"}`, []string{`"rootless.cidr"`, "127.0.0.0/8"}},
		{`"rootless":{"cidr":"fd00::/64"}`, []string{`"rootless.cidr"`, "fd00::/64", "IPv4"}},
		{`"rootless":{"cidr":24}`, []string{`"rootless.cidr"`, "24"}},
		{`"rootless":{"mtu":87}`, []string{`"rootless.mtu"`, "87", "88 to 65521"}},
		{`"rootless":{"mtu":65522}`, []string{`"rootless.mtu"`, "65522", "88 to 65521"}},
		{`"rootless":{"mtu":1279,"enableIPv6":true}`, []string{`"rootless.mtu"`, "1279", "1280 with IPv6"}},
		{`"rootless":{"mtu":"1500"}`, []string{`"rootless.mtu"`, `"1500"`}},
		{`"rootless":{"mtu":1500.5}`, []string{`"rootless.mtu"`, "1500.5"}},
		{`"rootless":{"enableIPv6":1}`, []string{`"rootless.enableIPv6"`, "1", "true or false"}},
		{`"rootless":{"allowHostLoopback":"true"}`, []string{`"rootless.allowHostLoopback"`, `"true"`, "true or false"}},
		{`"rootless":{"outboundAddr":"2001:db8::1"}`, []string{`"rootless.outboundAddr"`, "2001:db8::1", "IPv4 address or an interface name"}},
		{`"rootless":{"outboundAddr":"a name"}`, []string{`"rootless.outboundAddr"`, "a name"}},
		{`"rootless":{"outboundAddr":"eth0,--api"}`, []string{`"rootless.outboundAddr"`, "eth0,--api"}},
		{`"rootless":{"outboundAddr6":"192.0.2.1"}`, []string{`"rootless.outboundAddr6"`, "192.0.2.1", "IPv6 address or an interface name"}},
		{`"rootless":{"outboundAddr6":"fe80::1%eth0"}`, []string{`"rootless.outboundAddr6"`, "fe80::1%eth0"}},
		{`"rootless":{"outboundAddr6":"2001:db8::1","enableIPv6":false}`, []string{`"rootless.outboundAddr6"`, "2001:db8::1", "enableIPv6"}},
		{`"rootless":{"disableDNS":0}`, []string{`"rootless.disableDNS"`, "0"}},
		{`"rootless":{"portHandler":"rootlesskit"}`, []string{`"rootless.portHandler"`, "rootlesskit", "rootlessport, slirp4netns"}},
		{`"rootless":{"sourceIP":"client"}`, []string{`"rootless.sourceIP"`, "client", "preserve, gateway"}},
		{`"rootless":{"sandbox":"on"}`, []string{`"rootless.sandbox"`, `"on"`}},
		{`"rootless":{"seccomp":[]}`, []string{`"rootless.seccomp"`, "[]"}},
		{`"rootless":{"path":"bin/slirp4netns"}`, []string{`"rootless.path"`, "bin/slirp4netns", "absolute path"}},
		{`"stateDir":"ambi"`, []string{`"stateDir"`, `"ambi"`, "absolute path"}},
		{`"stateDir":"/a\u0000b"`, []string{`"stateDir"`, "absolute path"}},
		{`"logLevel":"trace"`, []string{`"logLevel"`, `"trace"`, "debug, info, warn, error"}},
		{`"logFile":"./log"`, []string{`"logFile"`, "./log", "absolute path"}},
		{`"dns":[]`, []string{`"dns"`, "[]", "nameservers"}},
		{`"runtimeConfig":[]`, []string{`"runtimeConfig"`, "[]", "object"}},
		{`"runtimeConfig":{"ips":"10.0.0.1"}`, []string{`"runtimeConfig.ips"`, `"10.0.0.1"`, "array"}},
		{`"runtimeConfig":{"ips":["10.0.0.1","x"]}`, []string{`"runtimeConfig.ips[1]"`, `"x"`, "IPv4 or IPv6"}},
		{`"runtimeConfig":{"ips":["10.0.0.1/33"]}`, []string{`"runtimeConfig.ips[0]"`, "10.0.0.1/33"}},
		{`"runtimeConfig":{"ips":["0.0.0.0"]}`, []string{`"runtimeConfig.ips[0]"`, "0.0.0.0"}},
		{`"runtimeConfig":{"ips":["0.0.0.0/0"]}`, []string{`"runtimeConfig.ips[0]"`, "0.0.0.0/0"}},
		{`"runtimeConfig":{"ips":["127.0.0.1/8"]}`, []string{`"runtimeConfig.ips[0]"`, "127.0.0.1/8"}},
		{`"runtimeConfig":{"ips":["ff02::1/64"]}`, []string{`"runtimeConfig.ips[0]"`, "ff02::1/64"}},
		{`"runtimeConfig":{"ips":["fe80::1%eth0"]}`, []string{`"runtimeConfig.ips[0]"`, "fe80::1%eth0", "zone"}},
		{`"runtimeConfig":{"mac":"02:42:ac:11:00"}`, []string{`"runtimeConfig.mac"`, "02:42:ac:11:00", "six bytes"}},
		{`"runtimeConfig":{"mac":"01:00:5e:00:00:01"}`, []string{`"runtimeConfig.mac"`, "01:00:5e:00:00:01", "not a multicast one"}},
		{`"runtimeConfig":{"mac":"00:00:00:00:00:00"}`, []string{`"runtimeConfig.mac"`, "not all zero"}},
		{`"runtimeConfig":{"mac":"02:42:ac:11:00:02:00:00"}`, []string{`"runtimeConfig.mac"`, "six bytes"}},
		{`"runtimeConfig":{"mac":2}`, []string{`"runtimeConfig.mac"`, "2"}},
		{`"runtimeConfig":{"dns":{"servers":"192.0.2.1"}}`, []string{`"runtimeConfig.dns.servers"`, `"192.0.2.1"`, "array"}},
		{`"args":7`, []string{`"args"`, "7", "object"}},
		{`"args":{"cni":"x"}`, []string{`"args.cni"`, `"x"`, "object"}},
		{`"args":{"cni":{"ips":["nowhere"]}}`, []string{`"args.cni.ips[0]"`, "nowhere"}},
		{`"args":{"cni":{"mac":"nothing"}}`, []string{`"args.cni.mac"`, "nothing"}},
		{`"args":{"cni":{"slirp4netns":"mtu=1500"}}`, []string{`"args.cni.slirp4netns"`, "mtu=1500", "array"}},
		{`"cni.dev/valid-attachments":{}`, []string{`"cni.dev/valid-attachments"`, "{}", "containerID"}},
		{`"cni.dev/attachments":["a"]`, []string{`"cni.dev/attachments"`, "array"}},
	} {
		t.Run(tt.members, func(t *testing.T) {
			_, err := conf.Parse(entry(tt.members))
			unit.RequireError(t, err, types.ErrInvalidNetworkConfig, tt.texts...)
		})
	}
}

func TestParseRefusesGarbage(t *testing.T) {
	for _, stdin := range []string{"", " ", "{", `{"name":"web",}`, "\x00", "ambi", "[]", "null", `"web"`, "1", `{"name":"web"}{}`} {
		_, err := conf.Parse([]byte(stdin))
		unit.RequireError(t, err, types.ErrDecodingFailure, "network configuration is not")
	}
	_, err := conf.Parse([]byte(`{}`))
	unit.RequireError(t, err, types.ErrInvalidNetworkConfig, `"name"`)
}

// A message stays readable, whatever was in the value.
func TestErrorsCutLongValues(t *testing.T) {
	_, err := conf.Parse(entry(`"mode":"` + strings.Repeat("ü", 5000) + `"`))
	unit.RequireError(t, err, types.ErrInvalidNetworkConfig, `"mode"`, "auto, root, rootless")
	require.Less(t, len(err.Error()), 500)
	out, jerr := json.Marshal(err)
	require.NoError(t, jerr)
	require.NotContains(t, string(out), `\ufffd`)
}

func TestParseErrorIsTheSameEveryTime(t *testing.T) {
	stdin := entry(`"a":1,"b":2,"c":3,"logLevel":"x","mode":"x","rootless":{"x":1,"y":2}`)
	_, first := conf.Parse(stdin)
	for range 50 {
		_, err := conf.Parse(stdin)
		require.Equal(t, first.Error(), err.Error())
	}
}

func TestDelegatesAreKeptByteForByte(t *testing.T) {
	raw := []string{
		`{ "type" : "bridge",  "big": 18446744073709551617, "html": "<&>", "u": "\u00e9", "dup":1, "dup":2 }`,
		"{\"type\":\"firewall\",\n\t\"capabilities\":{\"portMappings\":true}}",
	}
	n := parse(t, `"delegates":[`+strings.Join(raw, " , ")+`]`)
	require.Len(t, n.Delegates, 2)
	for i, d := range n.Delegates {
		require.Equal(t, raw[i], string(d.Raw))
	}
	require.Equal(t, "bridge", n.Delegates[0].Type)
	require.True(t, n.Delegates[1].Capabilities["portMappings"])

	n = parse(t, `"delegates":[]`)
	require.NotNil(t, n.Delegates)
	require.Empty(t, n.Delegates)
}

func TestValidAttachments(t *testing.T) {
	one := []types.GCAttachment{{ContainerID: "one", IfName: "eth0"}}
	for _, tt := range []struct {
		members string
		want    []types.GCAttachment
	}{
		{``, nil},
		{`"cni.dev/valid-attachments":null`, nil}, // libcni, from a caller without a list
		{`"cni.dev/valid-attachments":[]`, []types.GCAttachment{}},
		{`"cni.dev/attachments":[]`, []types.GCAttachment{}},
		{`"cni.dev/valid-attachments":[{"containerID":"one","ifname":"eth0"}]`, one},
		{`"cni.dev/attachments":[{"containerID":"one","ifname":"eth0"}]`, one},
		{`"cni.dev/attachments":[],"cni.dev/valid-attachments":[{"containerID":"one","ifname":"eth0"}]`, one},
	} {
		require.Equal(t, tt.want, parse(t, tt.members).ValidAttachments, tt.members)
	}
}

func TestConflist(t *testing.T) {
	n := parse(t, `"delegates":"inner"`)
	l, err := conf.ParseConflist("/etc/cni/net.d/inner.conflist", []byte(`{"cniVersion":"0.4.0","name":"inner","disableCheck":"true","disableGC":true,
		"plugins":[{ "type":"bridge" },{"type":"tuning"}],"example.org/x":1}`))
	require.NoError(t, err)
	require.Equal(t, "inner", l.Name)
	require.False(t, l.OnlyInlined)
	delegates, err := n.DelegatesOf(l)
	require.NoError(t, err)
	require.Len(t, delegates, 2)
	require.Equal(t, `{ "type":"bridge" }`, string(delegates[0].Raw))
	require.True(t, l.DisableCheck)
	require.True(t, l.DisableGC)
}

func TestConflistRefused(t *testing.T) {
	const where = "/etc/cni/net.d/inner.conflist"
	for _, tt := range []struct {
		conflist string
		code     uint
		texts    []string
	}{
		{`{`, types.ErrDecodingFailure, []string{where, "not JSON"}},
		{`[]`, types.ErrInvalidNetworkConfig, []string{where, "object"}},
		{`{"plugins":{}}`, types.ErrInvalidNetworkConfig, []string{where, "plugins"}},
		{`{"disableGC":"perhaps"}`, types.ErrInvalidNetworkConfig, []string{where, "disableGC", "perhaps"}},
		{`{"name":"inner"}`, types.ErrInvalidNetworkConfig, []string{"inner", "no plugins"}},
		{`{"plugins":[{"type":"a/b"}]}`, types.ErrInvalidNetworkConfig, []string{"inner", "a/b"}},
		{`{"plugins":[{"type":"ambi"}]}`, types.ErrInvalidNetworkConfig, []string{"ambi", "itself"}},
	} {
		t.Run(tt.conflist, func(t *testing.T) {
			l, err := conf.ParseConflist(where, []byte(tt.conflist))
			if err == nil {
				_, err = parse(t, `"delegates":"inner"`).DelegatesOf(l)
			}
			unit.RequireError(t, err, tt.code, tt.texts...)
		})
	}
}
