package rootless

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/hub"
	"github.com/ambi-cni/ambi/rootless/plan"
	"github.com/ambi-cni/ambi/rootless/supervisor"
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

func TestResult(t *testing.T) {
	a := attachment(t, "")
	var p plan.Interface
	require.NoError(t, json.Unmarshal([]byte(`{"mtu":65520,"mac":"02:00:00:00:00:01",
		"ipv4":{"addresses":["10.0.2.7/24"],"gateway":"10.0.2.2","dns":"10.0.2.3"},
		"ipv6":{"addresses":["fd00::7/64","fd00::8/64"],"gateway":"fd00::2","dns":"fd00::3"}}`), &p))
	b, err := json.Marshal(result(a, &p))
	require.NoError(t, err)
	require.JSONEq(t, `{"cniVersion":"1.1.0",
		"interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","mtu":65520,"sandbox":"/run/netns/box"}],
		"ips":[{"interface":0,"address":"10.0.2.7/24","gateway":"10.0.2.2"},
			{"interface":0,"address":"fd00::7/64","gateway":"fd00::2"},{"interface":0,"address":"fd00::8/64","gateway":"fd00::2"}],
		"routes":[{"dst":"0.0.0.0/0","gw":"10.0.2.2"},{"dst":"::/0","gw":"fd00::2"}],
		"dns":{"nameservers":["10.0.2.3","fd00::3"]}}`, string(b))
}

func TestResultDNS(t *testing.T) {
	for _, tt := range []struct{ name, members, want string }{
		{"the driver's", ``, "{[10.0.2.3 fd00::3]  [] []}"},
		{"nobody's", `"rootless":{"disableDNS":true}`, "{[]  [] []}"},
		{"the network's", `"dns":{"nameservers":["192.0.2.1"],"domain":"d","search":["s"]}`, "{[192.0.2.1] d [s] []}"},
		{"the runtime's", `"dns":{"nameservers":["192.0.2.1"],"search":["s"]},"runtimeConfig":{"dns":{"servers":["192.0.2.2"]}}`, "{[192.0.2.2]  [s] []}"},
		{"a search list beside the driver's", `"runtimeConfig":{"dns":{"searches":["s"],"options":["o"]}}`, "{[10.0.2.3 fd00::3]  [s] [o]}"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := attachment(t, tt.members)
			p := plan.Interface{
				IPv4: plan.Subnet{DNS: netip.MustParseAddr("10.0.2.3")},
				IPv6: plan.Subnet{DNS: netip.MustParseAddr("fd00::3")},
			}
			if a.NetConf.Rootless.DisableDNS {
				p = plan.Interface{}
			}
			require.Equal(t, tt.want, fmt.Sprint(dns(a, &p)))
		})
	}
}

func TestUnsupported(t *testing.T) {
	const port = `{"hostPort":8080,"containerPort":80,`
	for _, tt := range []struct {
		name, members string
		texts         []string // none: it is supported
	}{
		{"nothing", ``, nil},
		{"udp", `"runtimeConfig":{"portMappings":[` + port + `"protocol":"udp"}]}`, nil},
		{"sctp", `"runtimeConfig":{"portMappings":[` + port + `"protocol":"sctp"}]}`, []string{"sctp", "run as root"}},
		{"sctp that is not published", `"runtimeConfig":{"portMappings":[{"hostPort":0,"containerPort":80,"protocol":"sctp"}]}`, nil},
		{"IPv6", `"runtimeConfig":{"portMappings":[` + port + `"hostIP":"::1"}]}`, nil},
		{"IPv6 by slirp4netns", `"rootless":{"portHandler":"slirp4netns"},"runtimeConfig":{"portMappings":[` + port + `"hostIP":"::1"}]}`,
			[]string{"::1", "IPv4 only", "rootlessport"}},
		{"bandwidth", `"rootless":{"network":"private"},"runtimeConfig":{"bandwidth":{"ingressRate":1}}`, []string{"runtimeConfig.bandwidth", "ingressRate", "shared"}},
		{"bandwidth of a shared network", `"runtimeConfig":{"bandwidth":{"ingressRate":1}}`, nil},
		{"no bandwidth", `"runtimeConfig":{"bandwidth":{}}`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := attachment(t, tt.members)
			err := unsupported(a, a.Ports...)
			if tt.texts == nil {
				require.NoError(t, err)
				return
			}
			unit.RequireError(t, err, types.ErrUnsupportedField, tt.texts...)
		})
	}
}

// A family whose default route leads elsewhere is no matter of the other one.
func TestTargetOf(t *testing.T) {
	four, six := types.Route{Dst: *plan.Everywhere(netip.MustParseAddr("10.1.0.1"))}, types.Route{Dst: *plan.Everywhere(netip.MustParseAddr("fd00::1"))}
	for name, x := range map[string]struct {
		routes       []*types.Route
		away4, away6 bool
	}{
		"both": {[]*types.Route{&four, &six}, false, false},
		"IPv4": {[]*types.Route{&four}, false, true},
		"IPv6": {[]*types.Route{&six}, true, false},
		"none": {nil, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := attachment(t, "")
			target := targetOf(a, &types100.Result{
				Interfaces: []*types100.Interface{{Name: "eth0", Sandbox: "/run/netns/c"}},
				IPs: []*types100.IPConfig{
					{Interface: types100.Int(0), Address: *plan.IPNet(netip.MustParsePrefix("10.1.0.2/24")), Gateway: net.IP{10, 1, 0, 1}},
					{Interface: types100.Int(0), Address: *plan.IPNet(netip.MustParsePrefix("fd00::2/64")), Gateway: net.ParseIP("fd00::1")},
				},
				Routes: x.routes,
			}, nil)
			require.Equal(t, "10.1.0.2", target.Container4.String())
			require.Equal(t, "fd00::2", target.Container6.String())
			require.Equal(t, x.away4, target.Away4)
			require.Equal(t, x.away6, target.Away6)
			require.NotEqual(t, conf.SourceGateway, target.SourceIP)
		})
	}
}

// TestMute: a supervisor has ended only when nobody listens.
func TestMute(t *testing.T) {
	unit.RequireError(t, mute(os.NewSyscallError("connect", unix.ECONNREFUSED)), conf.ErrNetwork, "its supervisor has ended: connect: connection refused")
	beset := fmt.Errorf("%w: %w", supervisor.ErrBeset, os.NewSyscallError("read", unix.ECONNRESET))
	unit.RequireError(t, mute(beset), types.ErrTryAgainLater, "its supervisor is there, but it hangs up, since other programs keep its control socket busy: read: connection reset by peer")
	unit.RequireError(t, mute(os.NewSyscallError("connect", os.ErrDeadlineExceeded)), types.ErrTryAgainLater, "its supervisor is there and does not answer in time")
}

// TestUnlinkAsksOnce: the end of a hub does not wait twice for a supervisor that does not answer.
// One of an older ambi answers that it does not know the request.
func TestUnlinkAsksOnce(t *testing.T) {
	for answer, asked := range map[string][]string{
		`{}`: {"unlink"},
		`{"error":{"code":6,"msg":"control request \"unlink\" is not known"}}`: {"unlink", "open"},
	} {
		store, err := record.Open(t.TempDir())
		require.NoError(t, err)
		h := hub.Hub{Store: store, Name: "web.1"}
		require.NoError(t, os.Mkdir(h.Dir(), 0o700))
		ops := answerAll(t, h, answer)
		require.Error(t, unlink(h, "veth0"))
		for _, op := range asked {
			require.Equal(t, op, <-ops)
		}
		require.Empty(t, ops)
	}
}

// answerAll answers all requests the same, and returns what they were.
func answerAll(t *testing.T, h hub.Hub, answer string) <-chan string {
	f, err := controlOfHub(h).Listen()
	require.NoError(t, err)
	l, err := net.FileListener(f)
	require.NoError(t, err)
	f.Close()
	t.Cleanup(func() { l.Close() })
	ops := make(chan string, 100)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var r struct{ Op string }
			if json.NewDecoder(conn).Decode(&r) == nil {
				ops <- r.Op
				fmt.Fprintln(conn, answer)
			}
			conn.Close()
		}
	}()
	return ops
}

// TestAlive: who was in a hub that has died does not live on in the next one of that name.
func TestAlive(t *testing.T) {
	store, err := record.Open(t.TempDir())
	require.NoError(t, err)
	h := hub.Hub{Store: store, Name: "web.1"}
	alive := func(p *record.Process) bool { return Alive(store, &record.Record{Hub: h.Name, Supervisor: p}) }
	first, before, later := &record.Process{PID: 7, StartTime: 70}, &record.Process{PID: 8, StartTime: 60}, &record.Process{PID: 9, StartTime: 80}
	require.False(t, alive(first), "no folder")
	require.NoError(t, os.Mkdir(h.Dir(), 0o700))
	answerAll(t, h, `{}`)
	require.False(t, alive(first), "it is being started")
	require.NoError(t, h.Save(&hub.State{Supervisor: *first}))
	require.True(t, alive(first))
	require.True(t, alive(later), "written down by an older ambi after a restart")
	require.False(t, alive(before))
	require.False(t, alive(nil))
	require.NoError(t, os.Remove(h.Path("hub.json")))
	require.NoError(t, os.Mkdir(h.Path("hub.json"), 0o700))
	require.True(t, alive(first), "that it cannot be read is no proof")
}
