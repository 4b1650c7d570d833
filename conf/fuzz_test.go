package conf_test

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

// FuzzParse: no input makes Parse panic, its errors are CNI errors, and what it
// accepts makes sense.
func FuzzParse(f *testing.F) {
	for _, members := range []string{
		``,
		`"mode":"rootless","rootless":{"cidr":"10.0.2.0/25","mtu":1500,"outboundAddr":"eth0","outboundAddr6":"::1","path":"/bin/x"}`,
		`"bridge":{"name":"br0","subnet":"10.1.0.0/24","subnet6":"fd00::/64"},"portmap":{"backend":"none","snat":false}`,
		`"delegates":[{"type":"bridge","ipam":{}},{"type":"tuning","capabilities":{"mac":true}}]`,
		`"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":2,"protocol":"UDP","hostIP":"fe80::1%e"},{"HostPort":0,"containerPort":1}]}`,
		`"runtimeConfig":{"ips":["10.0.2.9/24","fd00::9"],"mac":"02-00-00-00-00-01","dns":{"Servers":["192.0.2.1"]}}`,
		`"args":{"cni":{"ips":["10.0.2.9"],"mac":"0200.0000.0001","slirp4netns":["cidr=10.3.0.0/16","mtu=1000"]}}`,
		`"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}],"cni.dev/attachments":null,"prevResult":{}`,
		`"mode":null,"unknown":1`,
	} {
		f.Add(entry(members))
	}
	f.Add([]byte("null"))
	f.Add([]byte(`{"name":"web"`))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		n, err := conf.Parse(stdin)
		if err != nil {
			requireOneOfCodes(t, err, types.ErrUnsupportedField, types.ErrDecodingFailure, types.ErrInvalidNetworkConfig)
			return
		}
		requireSane(t, n)
		a, err := conf.NewAttachment(conf.Env{Args: "IP=10.0.2.11;MAC=02:00:00:00:00:11"}, n)
		require.NoError(t, err)
		requireSaneIPs(t, a.IPs)
		requireSaneMAC(t, a.MAC)
		require.NotEmpty(t, a.MAC)
	})
}

func requireOneOfCodes(t *testing.T, err error, codes ...uint) {
	t.Helper()
	var e *types.Error
	require.True(t, errors.As(err, &e), "%v", err)
	require.Contains(t, codes, e.Code, e.Msg)
	require.NotEmpty(t, e.Msg)
}

func requireSane(t *testing.T, n *conf.NetConf) {
	t.Helper()
	require.NotEmpty(t, n.Name)
	require.Contains(t, []conf.Mode{conf.ModeAuto, conf.ModeRoot, conf.ModeRootless}, n.Mode)
	require.Contains(t, []conf.Backend{conf.BackendAuto, conf.BackendNFTables, conf.BackendIPTables, conf.BackendNone}, n.Portmap.Backend)
	require.Contains(t, []string{"debug", "info", "warn", "error"}, n.LogLevel)
	for _, path := range []string{n.StateDir, n.LogFile, n.Rootless.Path} {
		require.True(t, path == "" || path[0] == '/', path)
		require.NotContains(t, path, "\x00")
	}
	for _, d := range n.Delegates {
		require.NotEmpty(t, d.Type)
		require.NotContains(t, d.Type, "/")
	}
	require.LessOrEqual(t, len(n.Bridge.Name), 15)
	requireSaneSubnet(t, n.Bridge.Subnet, 30, false)
	requireSaneSubnet(t, n.Bridge.Subnet6, 126, true)
	requireSaneRootless(t, n.Rootless)
	requireSanePorts(t, n.RuntimeConfig.PortMappings)
	requireSaneIPs(t, n.RuntimeConfig.IPs)
	requireSaneIPs(t, n.Args.IPs)
	requireSaneMAC(t, n.RuntimeConfig.MAC)
	requireSaneMAC(t, n.Args.MAC)
}

func requireSaneSubnet(t *testing.T, p netip.Prefix, longest int, v6 bool) {
	t.Helper()
	if !p.IsValid() {
		return
	}
	require.Equal(t, p.Masked(), p)
	require.Equal(t, v6, p.Addr().Is6() && !p.Addr().Is4In6())
	require.True(t, p.Bits() > 0 && p.Bits() <= longest, p)
	require.False(t, p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsUnspecified(), p)
}

func requireSaneRootless(t *testing.T, r conf.Rootless) {
	t.Helper()
	require.True(t, r.CIDR.IsValid())
	requireSaneSubnet(t, r.CIDR, 25, false)
	least := 68
	if r.EnableIPv6 {
		least = 1280
	}
	require.True(t, r.MTU >= least && r.MTU <= 65521, r.MTU)
	require.Contains(t, []string{conf.DriverAuto, "slirp4netns", "relay", "pasta"}, r.Driver)
	require.Contains(t, []conf.PortHandler{conf.HandlerRootlessport, conf.HandlerSlirp4netns}, r.PortHandler)
	require.Contains(t, []conf.SourceIP{conf.SourcePreserve, conf.SourceGateway}, r.SourceIP)
	require.True(t, r.OutboundAddr6 == "" || r.EnableIPv6)
	requireSaneOutbound(t, r.OutboundAddr, netip.Addr.Is4)
	requireSaneOutbound(t, r.OutboundAddr6, netip.Addr.Is6)
}

// requireSaneOutbound: an address of the family or a possible interface name.
func requireSaneOutbound(t *testing.T, s string, family func(netip.Addr) bool) {
	t.Helper()
	if a, err := netip.ParseAddr(s); err == nil {
		require.True(t, family(a) && a.Zone() == "", s)
		return
	}
	require.LessOrEqual(t, len(s), 15)
	require.NotContains(t, s, "=")
	require.NotContains(t, s, ",")
}

func requireSanePorts(t *testing.T, ports []conf.PortMapping) {
	t.Helper()
	for i, m := range ports {
		require.NotZero(t, m.HostPort)
		require.NotZero(t, m.ContainerPort)
		require.Contains(t, []conf.Protocol{conf.TCP, conf.UDP, conf.SCTP}, m.Protocol)
		require.False(t, m.HostIP.Is4In6() || m.HostIP.IsMulticast(), m)
		require.False(t, slices.ContainsFunc(ports[i+1:], func(other conf.PortMapping) bool { return collide(m, other) }), "%v", ports)
	}
}

// collide says whether two mappings could not both be bound.
func collide(a, b conf.PortMapping) bool {
	if a.HostPort != b.HostPort || a.Protocol != b.Protocol {
		return false
	}
	if !a.HostIP.IsValid() || !b.HostIP.IsValid() || a.HostIP == b.HostIP {
		return true
	}
	return a.HostIP.Is4() == b.HostIP.Is4() && (a.HostIP.IsUnspecified() || b.HostIP.IsUnspecified())
}

func requireSaneIPs(t *testing.T, ips []netip.Prefix) {
	t.Helper()
	for _, ip := range ips {
		a := ip.Addr()
		require.True(t, ip.IsValid() && ip.Bits() > 0, ip)
		require.False(t, a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Is4In6(), ip)
	}
}

// requireSaneMAC: empty, or a unicast address as the kernel's are shown.
func requireSaneMAC(t *testing.T, s string) {
	t.Helper()
	if s == "" {
		return
	}
	mac, err := net.ParseMAC(s)
	require.NoError(t, err)
	require.Len(t, mac, 6)
	require.Zero(t, mac[0]&1, s)
	require.Equal(t, mac.String(), s)
}

// FuzzCNIArgs: the same for the environment variable.
func FuzzCNIArgs(f *testing.F) {
	for _, s := range []string{"", "IP=10.0.2.7/24;MAC=02:00:00:00:00:01", "K8S_POD_NAME=a;IgnoreUnknown=1;X=y", "IP=fe80::1%eth0", "=", ";;=;", "A=a=b", "IP", "MAC=0200.0000.0001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		require.NoError(t, types.LoadArgs(conf.UsableCNIArgs(s), &types.CommonArgs{}), s)
		args, err := conf.ParseCNIArgs(s)
		if err != nil {
			requireOneOfCodes(t, err, types.ErrInvalidEnvironmentVariables)
			return
		}
		requireSaneMAC(t, args.MAC)
		if args.IP.IsValid() {
			requireSaneIPs(t, []netip.Prefix{args.IP})
		}
	})
}

// FuzzEnvironment: whatever an engine has in the variables of a call, an attachment comes of it, with its
// key and each of its names once, and what is wrong is a CNI error.
func FuzzEnvironment(f *testing.F) {
	f.Add("box", "/run/netns/a", "eth0", "IP=10.0.2.7/24;K8S_POD_NAME=a", "web")
	f.Add("", "", "", "", "")
	f.Add("0123456789abcdef", "/proc/1/ns/net", "--help", "K8S_POD_NAME=0123456789ab;IgnoreUnknown=1;=", "/")
	f.Add("\xff\xfe", "\x00", "é", ";MAC=1", "web")
	f.Fuzz(func(t *testing.T, containerID, netns, ifName, args, alias string) {
		n, err := conf.Parse(entry(`"runtimeConfig":{"aliases":{"web":[` + quote(t, alias) + `]}}`))
		if err != nil {
			requireOneOfCodes(t, err, types.ErrInvalidNetworkConfig)
			return
		}
		a, err := conf.NewAttachment(conf.Env{ContainerID: containerID, NetnsPath: netns, IfName: ifName, Args: args}, n)
		if err != nil {
			requireOneOfCodes(t, err, types.ErrInvalidEnvironmentVariables)
		}
		require.NotNil(t, a)
		require.Equal(t, conf.Key{Network: n.Name, ContainerID: containerID, IfName: ifName}, a.Key)
		requireSaneIPs(t, a.IPs)
		requireSaneMAC(t, a.MAC)
		for i, name := range a.Names {
			require.NotEmpty(t, name)
			require.NotContains(t, a.Names[:i], name)
		}
	})
}

// FuzzSlirpOption: the same for one option string of a container, which the
// seed's parser crashed on when it had no "=".
func FuzzSlirpOption(f *testing.F) {
	for _, s := range []string{"", "=", "cidr", "cidr=10.0.2.0/24", "port_handler=rootlesskit", "allow_host_loopback=true", "enable_ipv6=false",
		"outbound_addr=192.0.2.1", "outbound_addr6=eth0", "mtu=1500", "mtu=-1", "nosuch=x", "cidr=10.0.2.0/24=", "outbound_addr=a,b=c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, option string) {
		n, err := conf.Parse(entry(`"args":{"cni":{"slirp4netns":[` + quote(t, option) + `]}}`))
		if err != nil {
			requireOneOfCodes(t, err, types.ErrInvalidNetworkConfig)
			return
		}
		requireSane(t, n)
	})
}

func quote(t *testing.T, s string) string {
	t.Helper()
	b, err := json.Marshal(s)
	require.NoError(t, err)
	return string(b)
}

// FuzzConflist: the same for a conflist that the key delegates names, and for the
// delegates in it.
func FuzzConflist(f *testing.F) {
	for _, s := range []string{
		"", "null", "{}", `{"plugins":null}`, `{"name":"x","plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true}}],"disableCheck":"true"}`,
		`{"plugins":[{"type":"ambi"}]}`, `{"plugins":[{"type":"../x"}]}`, `{"plugins":[{}]}`, `{"plugins":[null]}`, `{"plugins":[{"type":"a","type":"b"}],"disableGC":1}`,
		`{"loadOnlyInlinedPlugins":true,"plugins":[{"type":"bridge","capabilities":null}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := conf.ParseConflist("/etc/cni/net.d/x.conflist", raw)
		if err != nil {
			requireOneOfCodes(t, err, types.ErrDecodingFailure, types.ErrInvalidNetworkConfig)
			return
		}
		n := &conf.NetConf{Name: "web", DelegatesFrom: "/etc/cni/net.d/x.conflist"}
		delegates, err := n.DelegatesOf(l)
		if err != nil {
			requireOneOfCodes(t, err, types.ErrInvalidNetworkConfig, types.ErrDecodingFailure)
			return
		}
		require.Len(t, delegates, len(l.Plugins))
		for _, d := range delegates {
			require.NotEmpty(t, d.Type)
			require.NotContains(t, d.Type, "/")
		}
	})
}

// FuzzPort: the same for a port on the command line; what it accepts is read back
// from the way it is shown.
func FuzzPort(f *testing.F) {
	for _, s := range []string{"", "80", "8080:80", "127.0.0.1:8080:80/tcp", "[::1]:53:53/udp", "*:80->80/tcp", "[fe80::1%eth0]:1:2", ":::", "[]:80", "0:0", "65536", "1:2:3", "80/", "[::ffff:10.0.0.1]:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := conf.ParsePort(s)
		if err != nil {
			requireOneOfCodes(t, err, types.ErrInvalidNetworkConfig, types.ErrUnsupportedField)
			return
		}
		require.NotZero(t, m.HostPort)
		if m.ContainerPort == 0 {
			m.ContainerPort = 1
		}
		again, err := conf.ParsePort(m.String())
		require.NoError(t, err, m.String())
		require.Equal(t, m, again)
	})
}
