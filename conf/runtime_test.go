package conf_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
)

func TestCNIArgs(t *testing.T) {
	for _, tt := range []struct{ in, ip, mac string }{
		{"", "invalid Prefix", ""},
		{";;", "invalid Prefix", ""},
		{"IP=10.0.2.7", "10.0.2.7/32", ""},
		{"IP=10.0.2.7/24;MAC=02:00:00:00:00:01", "10.0.2.7/24", "02:00:00:00:00:01"},
		{"IP=fd00::7", "fd00::7/128", ""},
		{"IP=::ffff:10.0.2.7", "10.0.2.7/32", ""},
		{"MAC=02-00-00-00-00-AA", "invalid Prefix", "02:00:00:00:00:aa"},
		{"IP=;MAC=", "invalid Prefix", ""},
		{"K8S_POD_NAME=web;K8S_POD_NAMESPACE=default;K8S_POD_INFRA_CONTAINER_ID=1", "invalid Prefix", ""},
		{"COLOUR=red;IgnoreUnknown=1", "invalid Prefix", ""},
		{"IgnoreUnknown=TRUE;COLOUR=red", "invalid Prefix", ""},
		{"IgnoreUnknown=false;IP=10.0.2.7", "10.0.2.7/32", ""},
	} {
		t.Run(tt.in, func(t *testing.T) {
			got, err := conf.ParseCNIArgs(tt.in)
			require.NoError(t, err)
			require.Equal(t, tt.ip, got.IP.String())
			require.Equal(t, tt.mac, got.MAC)
		})
	}
}

func TestCNIArgsRefused(t *testing.T) {
	for _, tt := range []struct {
		in    string
		texts []string
	}{
		{"IP", []string{`"IP"`, "KEY=VALUE"}},
		{"IP=10.0.2.7;junk", []string{`"junk"`, "KEY=VALUE"}},
		{"IP=10.0.2.300", []string{"IP=10.0.2.300"}},
		{"IP=10.0.2.7,10.0.2.8", []string{"10.0.2.7,10.0.2.8"}},
		{"MAC=red", []string{"MAC=red", "six bytes"}},
		{"MAC=ff:ff:ff:ff:ff:ff", []string{"multicast"}},
		{"IgnoreUnknown=1;A=a=b", []string{`"A=a=b"`, "more than one"}},
		{"COLOUR=red", []string{`"COLOUR=red"`, "IgnoreUnknown=1"}},
		{"COLOUR=red;IgnoreUnknown=0", []string{`"COLOUR=red"`}},
		{"ip=10.0.2.7", []string{`"ip=10.0.2.7"`}},
		{"IgnoreUnknown=perhaps", []string{"IgnoreUnknown=perhaps", "true or false"}},
	} {
		t.Run(tt.in, func(t *testing.T) {
			_, err := conf.ParseCNIArgs(tt.in)
			unit.RequireError(t, err, types.ErrInvalidEnvironmentVariables, append(tt.texts, "CNI_ARGS")...)
		})
	}
}

// TestUsableCNIArgs: what is left is read by the library that delegates use, whose
// own keys are others.
func TestUsableCNIArgs(t *testing.T) {
	for in, want := range map[string]string{
		"":                                   "",
		";;":                                 "",
		"A=a=b":                              "",
		"COLOUR=red;IgnoreUnknown=true":      "COLOUR=red;IgnoreUnknown=true",
		"IgnoreUnknown=1;A=a=b;IP=10.0.2.7":  "IgnoreUnknown=1;IP=10.0.2.7",
		"K8S_POD_NAME=a;IP=;MAC=red;junk;":   "IgnoreUnknown=1;K8S_POD_NAME=a",
		"IgnoreUnknown=0;IP=10.0.2.7":        "IgnoreUnknown=1;IP=10.0.2.7",
		"IgnoreUnknown=perhaps;=;IP=1.2.3.4": "IgnoreUnknown=1;IP=1.2.3.4",
	} {
		got := conf.UsableCNIArgs(in)
		require.Equal(t, want, got, in)
		require.NoError(t, types.LoadArgs(got, &types.CommonArgs{}), in)
	}
}

func TestPrecedence(t *testing.T) {
	const (
		env     = "IP=10.0.2.11;MAC=02:00:00:00:00:11"
		args    = `"args":{"cni":{"ips":["10.0.2.12"],"mac":"02:00:00:00:00:12"}}`
		runtime = `"runtimeConfig":{"ips":["10.0.2.13"],"mac":"02:00:00:00:00:13"}`
	)
	for _, tt := range []struct{ name, env, members, want string }{
		{"nothing", "", ``, "[] "},
		{"CNI_ARGS", env, ``, "[10.0.2.11/32] 02:00:00:00:00:11"},
		{"args over CNI_ARGS", env, args, "[10.0.2.12/32] 02:00:00:00:00:12"},
		{"runtimeConfig over args", env, args + "," + runtime, "[10.0.2.13/32] 02:00:00:00:00:13"},
		{"runtimeConfig over CNI_ARGS", env, runtime, "[10.0.2.13/32] 02:00:00:00:00:13"},
		{"each for itself", "MAC=02:00:00:00:00:11", `"args":{"cni":{"ips":["10.0.2.12"]}}`, "[10.0.2.12/32] 02:00:00:00:00:11"},
		{"empty does not count", env, `"runtimeConfig":{"ips":[],"mac":""},"args":{"cni":{"ips":[],"mac":""}}`, "[10.0.2.11/32] 02:00:00:00:00:11"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err := conf.NewAttachment(conf.Env{Args: tt.env}, parse(t, tt.members))
			require.NoError(t, err)
			require.Equal(t, tt.want, fmt.Sprint(a.IPs, " ", a.MAC))
		})
	}
}

func TestNewAttachment(t *testing.T) {
	n := parse(t, `"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80}]}`)
	a, err := conf.NewAttachment(conf.Env{ContainerID: "box", NetnsPath: "/run/netns/box", IfName: "eth0",
		Args: "K8S_POD_NAME=a", Path: []string{"/opt/cni/bin"}}, n)
	require.NoError(t, err)
	require.Equal(t, "web/box/eth0", a.Key.String())
	require.Equal(t, "/run/netns/box", a.NetnsPath)
	require.Equal(t, "K8S_POD_NAME=a", a.CNIArgs)
	require.Equal(t, []string{"/opt/cni/bin"}, a.Path)
	require.Equal(t, "[*:8080->80/tcp]", fmt.Sprint(a.Ports))

	_, err = conf.NewAttachment(conf.Env{Args: "COLOUR=red"}, n)
	unit.RequireError(t, err, types.ErrInvalidEnvironmentVariables, "COLOUR=red")
}

func TestAliases(t *testing.T) {
	for aliases, want := range map[string]string{
		`["db","primary"]`:                 "[db primary box]", // CONVENTIONS.md
		`{"web":["db"],"other":["other"]}`: "[db box]",         // Podman
		`[]`:                               "[box]",
		`{}`:                               "[box]",
		`null`:                             "[box]",
	} {
		a, err := conf.NewAttachment(conf.Env{ContainerID: "box"}, parse(t, `"runtimeConfig":{"aliases":`+aliases+`}`))
		require.NoError(t, err, aliases)
		require.Equal(t, want, fmt.Sprint(a.Names), aliases)
	}
	_, err := conf.Parse([]byte(`{"cniVersion":"1.1.0","name":"web","type":"ambi","runtimeConfig":{"aliases":"db"}}`))
	unit.RequireError(t, err, types.ErrInvalidNetworkConfig, "an array of names, or an object of such arrays by network")
}

func TestBuiltIn(t *testing.T) {
	for members, want := range map[string]bool{
		``:                                true,
		`"delegates":[]`:                  true,
		`"delegates":null`:                true,
		`"delegates":[{"type":"bridge"}]`: false,
		`"delegates":"inner"`:             false,
	} {
		require.Equal(t, want, parse(t, members).BuiltIn(), members)
	}
}

func TestRawRuntimeConfig(t *testing.T) {
	a, err := conf.NewAttachment(conf.Env{}, parse(t, `"runtimeConfig":{"mac":"02:00:00:00:00:01","ipRanges":[[{"subnet": "10.0.0.0/8"}]],"x":18446744073709551617}`))
	require.NoError(t, err)
	require.Nil(t, a.RawRuntimeConfig(nil))
	require.Nil(t, a.RawRuntimeConfig(map[string]bool{"ips": true, "mac": false}))
	got := a.RawRuntimeConfig(map[string]bool{"ipRanges": true, "x": true, "bandwidth": true})
	require.Len(t, got, 2)
	require.Equal(t, `[[{"subnet": "10.0.0.0/8"}]]`, string(got["ipRanges"]))
	require.Equal(t, "18446744073709551617", string(got["x"]))
}

// slirpOptions are option strings as members of a plugin entry.
func slirpOptions(options ...string) string {
	return fmt.Sprintf(`"args":{"cni":{"slirp4netns":["%s"]}}`, strings.Join(options, `","`))
}

// The option strings of a rootless network, each with the field that it sets.
func TestSlirpOptions(t *testing.T) {
	for _, tt := range []struct {
		option string
		got    func(conf.Rootless) any
		want   string
	}{
		{"cidr=192.168.0.0/16", func(r conf.Rootless) any { return r.CIDR }, "192.168.0.0/16"},
		{"port_handler=slirp4netns", func(r conf.Rootless) any { return r.PortHandler }, "slirp4netns"},
		{"port_handler=rootlesskit", func(r conf.Rootless) any { return r.PortHandler }, "rootlessport"},
		{"port_handler=rootlessport", func(r conf.Rootless) any { return r.PortHandler }, "rootlessport"},
		{"allow_host_loopback=true", func(r conf.Rootless) any { return r.AllowHostLoopback }, "true"},
		{"allow_host_loopback=false", func(r conf.Rootless) any { return r.AllowHostLoopback }, "false"},
		{"enable_ipv6=true", func(r conf.Rootless) any { return r.EnableIPv6 && r.EnableIPv6Set }, "true"},
		{"enable_ipv6=false", func(r conf.Rootless) any { return r.EnableIPv6 }, "false"},
		{"outbound_addr=192.0.2.1", func(r conf.Rootless) any { return r.OutboundAddr }, "192.0.2.1"},
		{"outbound_addr=eth0", func(r conf.Rootless) any { return r.OutboundAddr }, "eth0"},
		{"outbound_addr6=2001:db8::1", func(r conf.Rootless) any { return r.OutboundAddr6 }, "2001:db8::1"},
		{"outbound_addr6=eth0", func(r conf.Rootless) any { return r.OutboundAddr6 }, "eth0"},
		{"mtu=1500", func(r conf.Rootless) any { return r.MTU }, "1500"},
	} {
		t.Run(tt.option, func(t *testing.T) {
			require.Equal(t, tt.want, fmt.Sprint(tt.got(parse(t, slirpOptions(tt.option)).Rootless)))
		})
	}
}

func TestSlirpOptionsOverrideTheNetwork(t *testing.T) {
	n := parse(t, `"rootless":{"cidr":"10.1.0.0/24","mtu":9000,"disableDNS":true},`+slirpOptions("cidr=10.2.0.0/24", "cidr=10.3.0.0/24"))
	require.Equal(t, "10.3.0.0/24", n.Rootless.CIDR.String(), "the last one counts")
	require.Equal(t, 9000, n.Rootless.MTU)
	require.True(t, n.Rootless.DisableDNS)

	// Options are judged together with the keys, whatever their order.
	n = parse(t, `"rootless":{"enableIPv6":false},`+slirpOptions("outbound_addr6=2001:db8::1", "enable_ipv6=true"))
	require.Equal(t, "2001:db8::1", n.Rootless.OutboundAddr6)
}

func TestSlirpOptionsRefused(t *testing.T) {
	for _, tt := range []struct {
		options []string
		texts   []string
	}{
		{[]string{"cidr=fd00::/64"}, []string{"cidr=fd00::/64", "IPv4"}},
		{[]string{"cidr=10.0.2.0/30"}, []string{"cidr=10.0.2.0/30", "1 to 25"}},
		{[]string{"cidr=10.0.2.1/24"}, []string{"cidr=10.0.2.1/24"}},
		{[]string{"cidr="}, []string{"cidr="}},
		{[]string{"port_handler=docker-proxy"}, []string{"port_handler=docker-proxy", "slirp4netns or rootlessport"}},
		{[]string{"allow_host_loopback=yes"}, []string{"allow_host_loopback=yes", "true or false"}},
		{[]string{"allow_host_loopback="}, []string{"true or false"}},
		{[]string{"enable_ipv6=1"}, []string{"enable_ipv6=1", "true or false"}},
		{[]string{"outbound_addr=2001:db8::1"}, []string{"outbound_addr=2001:db8::1", "IPv4"}},
		{[]string{"outbound_addr="}, []string{"outbound_addr="}},
		{[]string{"outbound_addr=a,b"}, []string{"outbound_addr=a,b"}},
		{[]string{"outbound_addr6=192.0.2.1"}, []string{"outbound_addr6=192.0.2.1", "IPv6"}},
		{[]string{"outbound_addr6=2001:db8::1", "enable_ipv6=false"}, []string{"2001:db8::1", "enableIPv6"}},
		{[]string{"mtu=big"}, []string{"mtu=big"}},
		{[]string{"mtu=87"}, []string{"mtu=87", "88 to 65521"}},
		{[]string{"mtu=65522"}, []string{"mtu=65522"}},
		{[]string{"mtu=1000", "enable_ipv6=true"}, []string{"1000", "1280 with IPv6"}},
		{[]string{"nosuch=1"}, []string{"nosuch", "port_handler"}},
		{[]string{"cidr"}, []string{`"cidr"`, "name=value"}},
		{[]string{""}, []string{"name=value"}},
		{[]string{"=1"}, []string{"unknown option"}},
		{[]string{"mtu=1500", "nosuch=1"}, []string{"args.cni.slirp4netns[1]", "nosuch"}},
	} {
		t.Run(strings.Join(tt.options, " "), func(t *testing.T) {
			_, err := conf.Parse(entry(slirpOptions(tt.options...)))
			unit.RequireError(t, err, types.ErrInvalidNetworkConfig, tt.texts...)
		})
	}
}
