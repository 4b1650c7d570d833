package bridge

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/conf"
)

const tools = "../.tools/bin"

// plugin runs one of the standard plugins on the host.
func (l *lab) plugin(t testing.TB, netns, command, config string) []byte {
	t.Helper()
	var out []byte
	l.do(t, func() {
		var c struct{ Type string }
		require.NoError(t, json.Unmarshal([]byte(config), &c))
		cmd := exec.Command(tools + "/" + c.Type)
		cmd.Stdin = strings.NewReader(config)
		cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID=std", "CNI_IFNAME=eth0", "CNI_NETNS="+netns, "CNI_PATH="+tools)
		var err error
		out, err = cmd.Output()
		require.NoError(t, err, string(out))
	})
	return out
}

// What a container, and the host, look like behind the built-in network, beside the
// plugins bridge, host-local and bandwidth with the same wishes. Every difference is
// meant, and stands here.
func TestBesideTheStandardPlugins(t *testing.T) {
	if _, err := os.Stat(tools + "/bridge"); err != nil {
		t.Skip("needs the standard plugins: make setup")
	}
	l := newLab(t)
	limits := conf.Bandwidth{IngressRate: 8e6, IngressBurst: 8e5, EgressRate: 16e6, EgressBurst: 8e5}
	ours := l.join(t, l.network("ours", withSubnets("10.88.1.0/24", "fd88:1::/64")), "a", func(a *conf.Attachment) { a.Bandwidth = limits })

	std := &member{space: newSpace(t)}
	netns := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), std.Fd())
	config := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "std", "type": "bridge", "bridge": "std0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "hairpinMode": true, "mtu": 1400,
		"ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.88.2.0/24"}], [{"subnet": "fd88:2::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}`, t.TempDir())
	result := l.plugin(t, netns, "ADD", config)
	result = l.plugin(t, netns, "ADD", fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "std", "type": "bandwidth", "prevResult": %s,
		"ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 16000000, "egressBurst": 800000}`, result))
	std.result = &types100.Result{}
	require.NoError(t, json.Unmarshal(result, std.result))

	for _, what := range []struct {
		name, command string
		container     bool
	}{
		{"interface", "ip -d -o link show eth0", true},
		// The plugin has no address of the interface looked for twice, we say so of each.
		{"addresses", "ip -o address show dev eth0 | grep -v fe80 | sed 's/ nodad//'", true},
		{"link-local address", "ip -o -6 address show dev eth0 scope link | sed 's/.*inet6 //; s/scope.*//'", true},
		{"routes", "ip route; ip -6 route", true},
		// The plugin leaves lo to the plugin loopback.
		{"lo", "ip link set lo up; ip -o address show dev lo", true},
		{"sysctls", "cd /proc/sys/net; for f in ipv4/conf/eth0/* ipv6/conf/eth0/*; do echo $f $(cat $f 2>/dev/null); done | grep -v -e stable_secret -e accept_dad", true},
		// Meant: the plugin's bridge learns also from what is for bridges alone.
		{"bridge", "ip -d -o link show BRIDGE | sed 's/.alias.*//; s/no_linklocal_learn [01]//'", false},
		// The plugin leaves the gateway's IPv6 address tentative for a second.
		{"bridge's addresses", "ip -o address show dev BRIDGE | grep -v fe80 | sed 's/ nodad//; s/ tentative//'", false},
		{"bridge's sysctls", "cd /proc/sys/net; for f in ipv4/conf/BRIDGE/* ipv6/conf/BRIDGE/*; do echo $f $(cat $f 2>/dev/null); done | grep -v stable_secret", false},
		// A port needs no IPv6 address of its own.
		{"port", "ip -d -o link show PORT | sed 's/.alias.*//; s/addrgenmode [a-z0-9]*//; s/port_id .* hold_timer/hold_timer/'", false},
		{"limits", "tc qdisc show dev PORT; tc qdisc show dev IFB", false},
		{"ifb", "ip -d -o link show IFB | sed 's/.alias.*//'", false},
	} {
		t.Run(what.name, func(t *testing.T) {
			show := func(m *member) []string {
				names := m.result.Interfaces
				command := strings.NewReplacer("BRIDGE", names[0].Name, "PORT", names[1].Name, "IFB", names[3].Name).Replace(what.command)
				where := l.space
				if what.container {
					where = m.space
				}
				return lines(alike(where.run(t, "sh", "-c", command), m.result))
			}
			require.Empty(t, differing(show(std), show(ours)))
		})
	}
	t.Run("result", func(t *testing.T) {
		theirs := alike(jsonOf(std.result), std.result)
		theirs = strings.ReplaceAll(theirs, netns, "/test/a")
		mine := alike(jsonOf(ours.result), ours.result)
		// The plugin bridge says no MTU, which the specification has since 1.1.0.
		mine = regexp.MustCompile(`\s*"mtu": 1400,`).ReplaceAllString(mine, "")
		require.Empty(t, differing(lines(theirs), lines(mine)))
	})
	for _, family := range []string{"198.51.100.2:0", "[fd99::2]:0"} {
		service := serve(t, l.client, "tcp", family)
		require.Equal(t, connect(t, std.space, service), connect(t, ours.space, service), "masquerading")
	}
	require.True(t, reaches(t, l.client, l.client, "198.51.100.2"))
	// Meant: nobody outside reaches a container past its published ports.
	l.client.run(t, "ip", "route", "add", "10.88.0.0/16", "via", "198.51.100.1")
	require.True(t, reaches(t, l.client, std.space, std.ip(4)))
	require.True(t, cutOff(t, l.client, ours.space, ours.ip(4)))
}

// differing are the words in which two texts differ, line by line.
func differing(theirs, ours []string) (all []string) {
	for i := range max(len(theirs), len(ours)) {
		var a, b string
		if i < len(theirs) {
			a = theirs[i]
		}
		if i < len(ours) {
			b = ours[i]
		}
		if strings.Join(strings.Fields(a), " ") == strings.Join(strings.Fields(b), " ") {
			continue
		}
		x, y := strings.Fields(a), strings.Fields(b)
		for j := range max(len(x), len(y)) {
			if j >= len(x) || j >= len(y) || x[j] != y[j] {
				all = append(all, fmt.Sprintf("line %d: theirs %q, ours %q", i, x[min(j, len(x)):], y[min(j, len(y)):]))
				break
			}
		}
	}
	return all
}

// alike replaces what tells two networks apart: names, indexes, MAC addresses, the
// number of the subnet, and times.
func alike(s string, r *types100.Result) string {
	for i, name := range []string{"BRIDGE", "PORT", "eth0", "IFB"} {
		s = strings.ReplaceAll(s, r.Interfaces[i].Name, name)
		if r.Interfaces[i].Mac != "" {
			s = strings.ReplaceAll(s, r.Interfaces[i].Mac, "MAC")
		}
	}
	for _, re := range []struct{ pattern, with string }{
		{`10\.88\.[12]\.`, "10.88.N."}, {`fd88:[12]::`, "fd88:N::"},
		{`^Error: .*\n`, ""}, {`\\`, ""}, {`\b[0-9]+: `, ""}, {`@if[0-9]+`, ""}, {`link-netnsid [0-9]+`, ""}, {`\b[0-9a-f]{1,2}(:[0-9a-f]{1,2}){5}\b`, "MAC"},
		{`bridge_id \S+ designated_root \S+`, ""}, {`designated_(bridge|root) \S+`, ""}, {`_timer\s+[0-9.]+`, ""}, {`fe80::\S+`, "fe80"}, {`\s+`, " "},
	} {
		s = regexp.MustCompile(`(?m)`+re.pattern).ReplaceAllStringFunc(s, func(m string) string {
			if strings.Contains(m, "\n") {
				return "\n"
			}
			return re.with
		})
	}
	return s
}
