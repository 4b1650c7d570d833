package driver

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// attachment is one whose plugin entry has these members.
func attachment(t *testing.T, members string) *conf.Attachment {
	t.Helper()
	if members != "" {
		members = "," + members
	}
	n, err := conf.Parse([]byte(`{"cniVersion":"1.1.0","name":"web","type":"ambi"` + members + `}`))
	require.NoError(t, err)
	a, err := conf.NewAttachment(conf.Env{ContainerID: "box", IfName: "eth0", NetnsPath: "/run/netns/box"}, n)
	require.NoError(t, err)
	return a
}

func show(f plan.Subnet) string { return fmt.Sprint(f.Addresses, " ", f.Gateway, " ", f.DNS) }

func TestPlanAddresses(t *testing.T) {
	const noIPv6 = "[] invalid IP invalid IP"
	for _, tt := range []struct{ name, members, ipv4, ipv6 string }{
		{"the defaults", ``, "[10.0.2.100/24] 10.0.2.2 10.0.2.3", "[fd00::64/64] fd00::2 fd00::3"},
		{"another network", `"rootless":{"cidr":"192.168.0.0/16"}`, "[192.168.0.100/16] 192.168.0.2 192.168.0.3", "[fd00::64/64] fd00::2 fd00::3"},
		{"the smallest", `"rootless":{"cidr":"10.0.2.128/25"}`, "[10.0.2.228/25] 10.0.2.130 10.0.2.131", "[fd00::64/64] fd00::2 fd00::3"},
		{"the largest", `"rootless":{"cidr":"128.0.0.0/1"}`, "[128.0.0.100/1] 128.0.0.2 128.0.0.3", "[fd00::64/64] fd00::2 fd00::3"},
		{"without IPv6", `"rootless":{"enableIPv6":false}`, "[10.0.2.100/24] 10.0.2.2 10.0.2.3", noIPv6},
		{"an MTU too small for IPv6", `"rootless":{"mtu":1000}`, "[10.0.2.100/24] 10.0.2.2 10.0.2.3", noIPv6},
		{"without a name server", `"rootless":{"disableDNS":true}`, "[10.0.2.100/24] 10.0.2.2 invalid IP", "[fd00::64/64] fd00::2 invalid IP"},
		{"a static address", `"runtimeConfig":{"ips":["10.0.2.7"]}`, "[10.0.2.7/24] 10.0.2.2 10.0.2.3", "[fd00::64/64] fd00::2 fd00::3"},
		{"with its prefix length", `"runtimeConfig":{"ips":["10.0.2.7/24"]}`, "[10.0.2.7/24] 10.0.2.2 10.0.2.3", "[fd00::64/64] fd00::2 fd00::3"},
		{"several, the first is for ports", `"runtimeConfig":{"ips":["10.0.2.9","10.0.2.7","fd00::9","fd00::7/64"]}`,
			"[10.0.2.9/24 10.0.2.7/24] 10.0.2.2 10.0.2.3", "[fd00::9/64 fd00::7/64] fd00::2 fd00::3"},
		{"IPv6 alone", `"runtimeConfig":{"ips":["fd00::9"]}`, "[10.0.2.100/24] 10.0.2.2 10.0.2.3", "[fd00::9/64] fd00::2 fd00::3"},
		{"the last one", `"runtimeConfig":{"ips":["10.0.2.254"]}`, "[10.0.2.254/24] 10.0.2.2 10.0.2.3", "[fd00::64/64] fd00::2 fd00::3"},
		{"by option", `"args":{"cni":{"ips":["10.9.0.7"],"slirp4netns":["cidr=10.9.0.0/24"]}}`, "[10.9.0.7/24] 10.9.0.2 10.9.0.3", "[fd00::64/64] fd00::2 fd00::3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := driverWithout().Plan(attachment(t, tt.members))
			require.NoError(t, err)
			require.Equal(t, tt.ipv4, show(p.IPv4))
			require.Equal(t, tt.ipv6, show(p.IPv6))
		})
	}
}

func TestPlanInterface(t *testing.T) {
	p, err := driverWithout().Plan(attachment(t, `"rootless":{"mtu":1500},"runtimeConfig":{"mac":"02-00-00-00-00-AA"}`))
	require.NoError(t, err)
	require.Equal(t, "eth0", p.IfName)
	require.Equal(t, 1500, p.MTU)
	require.Equal(t, "02:00:00:00:00:aa", p.MAC, "as netlink shows it, which CHECK compares with")

	b, err := json.Marshal(p)
	require.NoError(t, err)
	var got plan.Interface
	require.NoError(t, json.Unmarshal(b, &got), "it goes to the supervisor as JSON")
	require.Equal(t, *p, got)
}

func TestPlanRefusesAddresses(t *testing.T) {
	for _, tt := range []struct {
		ips   string
		texts []string
	}{
		{`"10.0.3.7"`, []string{"10.0.3.7", "not in the container's network 10.0.2.0/24", "rootless.cidr"}},
		{`"fd01::7"`, []string{"fd01::7", "fd00::/64"}},
		{`"10.0.2.7/16"`, []string{"10.0.2.7/16", "prefix length"}},
		{`"10.0.2.2"`, []string{"10.0.2.2", "gateway"}},
		{`"10.0.2.3"`, []string{"10.0.2.3", "name server"}},
		{`"fd00::2"`, []string{"fd00::2", "gateway"}},
		{`"10.0.2.0"`, []string{"10.0.2.0", "network or broadcast"}},
		{`"10.0.2.255"`, []string{"10.0.2.255", "network or broadcast"}},
		{`"fd00::"`, []string{"fd00::", "network or broadcast"}},
		{`"10.0.2.7","10.0.2.7/24"`, []string{"10.0.2.7", "twice"}},
	} {
		t.Run(tt.ips, func(t *testing.T) {
			_, err := driverWithout().Plan(attachment(t, `"runtimeConfig":{"ips":[`+tt.ips+`]}`))
			unit.RequireError(t, err, types.ErrInvalidNetworkConfig, append(tt.texts, `"ips"`)...)
		})
	}
	_, err := driverWithout().Plan(attachment(t, `"rootless":{"enableIPv6":false},"runtimeConfig":{"ips":["fd00::7"]}`))
	unit.RequireError(t, err, types.ErrInvalidNetworkConfig, "fd00::7", "rootless.enableIPv6")
}
