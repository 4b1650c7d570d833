package snapshot

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ambi-cni/ambi/e2e/lab"
)

// insideVariable is set in the machine that the inner test runs in.
const insideVariable = "AMBI_SNAPSHOT_INSIDE"

// patience only ends a wait for what never comes.
const patience = 3 * time.Minute

// leftovers are what a plugin could leave behind, one of each kind: the command
// that makes it, the one that takes it away, and what is shown of it. They run in
// a machine of their own.
var leftovers = map[string]struct{ leave, mend, shown string }{
	"link":          {"ip link add left0 type bridge", "ip link del left0", "left0"},
	"link in use":   {"ip link add left0 type veth peer name left1 && ip link set left1 up && ip link set left0 up", "ip link del left0", "left1"},
	"link settings": {"ip link set lo mtu 1400", "ip link set lo mtu 65536", "mtu 1400"},
	"address":       {"ip addr add 10.9.0.1/32 dev lo", "ip addr del 10.9.0.1/32 dev lo", "10.9.0.1"},
	"address 6":     {"ip addr add fd09::1/128 dev lo", "ip addr del fd09::1/128 dev lo", "fd09::1"},
	"route":         {"ip route add 10.9.9.0/24 dev lo", "ip route del 10.9.9.0/24 dev lo", "10.9.9.0/24"},
	"route of a table": {"ip route add local default dev lo table 7321", "ip route del local default dev lo table 7321",
		"table 7321"},
	"route 6":          {"ip -6 route add fd09::/64 dev lo", "ip -6 route del fd09::/64 dev lo", "fd09::/64"},
	"rule":             {"ip rule add fwmark 9 lookup 99", "ip rule del fwmark 9 lookup 99", "lookup 99"},
	"rule 6":           {"ip -6 rule add fwmark 9 lookup 99", "ip -6 rule del fwmark 9 lookup 99", "lookup 99"},
	"proxy":            {"ip neigh add proxy 10.9.0.7 dev lo", "ip neigh del proxy 10.9.0.7 dev lo", "10.9.0.7"},
	"queue":            {"tc qdisc add dev lo root tbf rate 1mbit burst 10k limit 10k", "tc qdisc del dev lo root", "tbf"},
	"nftables table":   {"nft add table ip left", "nft delete table ip left", "table ip left"},
	"nftables element": {"nft add element ip kept m '{ 17 : 18 }'", "nft delete element ip kept m '{ 17 }'", "17 : "},
	"iptables":         {"iptables-nft -t nat -A OUTPUT -p udp -j RETURN", "iptables-nft -t nat -D OUTPUT -p udp -j RETURN", "meta l4proto udp"},
	"legacy":           {"iptables-legacy -t nat -N LEFT", "iptables-legacy -t nat -X LEFT", "LEFT"},
	"conntrack": {"conntrack -I -p udp -s 10.9.0.1 -d 10.9.0.2 --sport 7 --dport 9 --timeout 600",
		"conntrack -D -p udp --dport 9", "dport=9"},
	"mount":     {"mkdir -p /run/left && mount -t tmpfs tmpfs /run/left", "umount /run/left && rmdir /run/left", "/run/left"},
	"namespace": {"ip netns add left", "ip netns del left", "left"},
	"file":      {"mkdir -p /var/lib/cni/networks/web && echo box >/var/lib/cni/networks/web/10.9.0.2", "rm -r /var/lib/cni/networks", "10.9.0.2"},
	"link file": {"ln -s nowhere /run/left", "rm /run/left", "/run/left"},
}

// TestSees leaves one thing of every kind behind: each is seen, named, and not
// seen any more when it is taken away.
func TestSees(t *testing.T) {
	if os.Getenv(insideVariable) != "" {
		t.Skip("inside a machine")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a machine out of namespaces")
	}
	if _, err := exec.LookPath("conntrack"); err != nil {
		t.Skip("needs conntrack: make setup")
	}
	cmd := lab.Command(os.Args[0], "-test.run=^TestSeesInside$", "-test.v")
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || testing.Verbose() {
		t.Logf("%s", out)
	}
	require.NoError(t, err)
}

// TestSeesInside is the inner half of TestSees.
func TestSeesInside(t *testing.T) {
	if os.Getenv(insideVariable) == "" {
		t.Skip("TestSees runs it, in a machine of its own")
	}
	sh := func(line string) {
		out, err := exec.Command("sh", "-ec", line).CombinedOutput()
		require.NoError(t, err, "%s: %s", line, out)
	}
	sh(`# Namespaces of others, which come and go.
awk '$3 == "nsfs" {print $2}' /proc/self/mounts | xargs -r umount -l || true
for d in /run /tmp /var/lib/cni; do mkdir -p $d; mount -t tmpfs tmpfs $d; done
ip link set lo up
# What the tools themselves make when they are first used.
nft 'add table ip kept; add map ip kept m { type inet_service : inet_service; }'
iptables-nft -t nat -A OUTPUT -p tcp -j RETURN; iptables-nft -t nat -D OUTPUT -p tcp -j RETURN
iptables-legacy -t nat -S >/dev/null; ip netns add first; ip netns del first`)
	for name, l := range leftovers {
		t.Run(name, func(t *testing.T) {
			var o Options
			before := o.Take()
			sh(l.leave)
			difference := o.Difference(before)
			require.Regexp(t, `(?m)^\+ .*`+l.shown, difference)
			sh(l.mend)
			o.Settled = patience
			require.Empty(t, o.Difference(before))
		})
	}
	for shown, argv := range map[string][]string{
		"sleep 7321": {"sleep", "7321"},
		"net:":       {"unshare", "--net", "sleep", "7321"},
		"user:":      {"unshare", "--user", "sleep", "7321"},
	} {
		t.Run(shown, func(t *testing.T) {
			before := Options{}.Take()
			cmd := exec.Command(argv[0], argv[1:]...)
			require.NoError(t, cmd.Start())
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				require.Empty(t, Options{}.Difference(before))
			}()
			require.Eventually(t, func() bool { return strings.Contains(Options{}.Difference(before), "+ "+shown) }, patience, 20*time.Millisecond)
		})
	}
	t.Run("conversations that go by themselves", func(t *testing.T) {
		before := Options{}.Take()
		sh("conntrack -I -p tcp -s 10.9.0.1 -d 10.9.0.2 --sport 7 --dport 9 --state ESTABLISHED --timeout 600")
		defer sh("conntrack -D -p tcp --dport 9")
		require.Equal(t, before, Options{}.Take())
	})
	t.Run("mount below another", func(t *testing.T) {
		sh("mkdir -p /srv/left; mount -t tmpfs below /srv/left; mount -t tmpfs above /srv")
		defer sh("umount /srv; rmdir /srv/left")
		before := Options{}.Take()
		require.NotContains(t, before, "below /srv/left")
		require.Contains(t, before, "above /srv")
		sh("umount /srv; umount /srv/left; mount -t tmpfs above /srv")
		require.Equal(t, before, Options{}.Take())
	})
	t.Run("route that follows an address", func(t *testing.T) {
		sh("ip addr add fd09::2/128 dev lo nodad")
		defer sh("ip addr del fd09::2/128 dev lo")
		require.Eventually(t, func() bool {
			out, err := exec.Command("ip", "-6", "route", "show", "table", "local", "fd09::2").Output()
			return err == nil && len(out) > 0
		}, patience, 10*time.Millisecond)
		before := Options{}.Take()
		sh("ip -6 route del local fd09::2 dev lo table local")
		require.Equal(t, before, Options{}.Take())
	})
	t.Run("sockets", func(t *testing.T) {
		before := Options{}.Take()
		tcp, err := net.Listen("tcp", "127.0.0.1:7321")
		require.NoError(t, err)
		udp, err := net.ListenPacket("udp", "127.0.0.1:7322")
		require.NoError(t, err)
		local, err := net.Listen("unix", "@left")
		require.NoError(t, err)
		difference := Options{}.Difference(before)
		for _, shown := range []string{"127.0.0.1:7321", "127.0.0.1:7322", "@left"} {
			require.Contains(t, difference, shown)
		}
		tcp.Close()
		udp.Close()
		local.Close()
		require.Empty(t, Options{}.Difference(before))
	})
}

// TestDifference shows both sides, under the names of their sections, and repeated
// lines as often as they are repeated.
func TestDifference(t *testing.T) {
	before := Snapshot("# links\nlo\nveth\n# files\n/run/a\n")
	after := Snapshot("# links\nlo\n# files\n/run/a\n/run/a\n# more\nx\n")
	require.Equal(t, "links:\n- veth\nfiles:\n+ /run/a\nmore:\n+ x\n", Diff(before, after))
	require.Empty(t, Diff(before, before))
}

// TestSteady: what changes by itself is no difference.
func TestSteady(t *testing.T) {
	for _, pair := range [][2]string{
		{"counter packets 3 bytes 180", "counter packets 4 bytes 240"},
		{"7: veth0@if3: <BROADCAST,UP> mtu 1500 state UP", "9: veth0@if5: <BROADCAST> mtu 1500 state DOWN"},
		{"# Generated on a Monday", "# Generated on a Tuesday"},
	} {
		require.Equal(t, steady(pair[0]), steady(pair[1]))
	}
	require.NotEmpty(t, steady("tcp LISTEN 0 4096 127.0.0.1:80 0.0.0.0:*"))
	require.Equal(t, conversations("udp 17 29 src=10.0.0.1 dport=53\n"), conversations("tcp 6 7 ESTABLISHED src=10.0.0.1\nudp 17 12 src=10.0.0.1 dport=53\n"))
	require.NotEqual(t, conversations("udp 17 29 src=10.0.0.1 dport=53\n"), conversations("udp 17 29 src=10.0.0.1 dport=54\n"))
	require.Equal(t, steady("b\na"), steady("a\nb\n\n"))
}

// TestUnchanged is the way through a file.
func TestUnchanged(t *testing.T) {
	o := Options{Folders: []string{t.TempDir()}, Ignore: []string{"/nowhere"}}
	file := filepath.Join(t.TempDir(), "before")
	require.NoError(t, o.Take().Save(file))
	require.NoError(t, os.WriteFile(filepath.Join(o.Folders[0], "left"), nil, 0o600))
	err := o.Unchanged(file)
	require.ErrorIs(t, err, ErrChanged)
	require.Contains(t, err.Error(), "/left")
	require.Error(t, o.Unchanged(file+".none"))
}
