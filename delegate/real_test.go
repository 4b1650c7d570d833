package delegate

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
)

// editions are the folders of real plugins: two that speak 1.1.0, and Debian's, which
// stop at 1.0.0.
func editions() map[string]string {
	newest := os.Getenv("AMBI_TEST_PLUGINS")
	if newest == "" {
		newest, _ = filepath.Abs("../.tools/bin")
	}
	return map[string]string{"1.10.0": filepath.Join(newest, "1.10.0"), "1.9.1": newest, "Debian": "/usr/lib/cni"}
}

// forEachEdition runs a test on a host of its own with each edition there is.
func forEachEdition(t *testing.T, test func(t *testing.T, plugins string, host *unit.Netns)) {
	for name, dir := range editions() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, plugin := range []string{"bridge", "host-local", "firewall", "tuning", "ptp"} {
				if _, err := os.Stat(filepath.Join(dir, plugin)); err != nil {
					t.Skipf("no CNI plugins in %s (%v): set AMBI_TEST_PLUGINS, or install containernetworking-plugins", dir, err)
				}
			}
			for _, program := range []string{"ip", "nft", "iptables-save", "ip6tables-save"} {
				if _, err := exec.LookPath(program); err != nil {
					t.Skipf("this test needs %s", program)
				}
			}
			test(t, dir, onHost(t))
		})
	}
}

// real is a host's plugins and an IPAM folder.
type real struct {
	t       *testing.T
	plugins string
	ipam    string
	tuning  string
	chain   []conf.Delegate
	cache   string
}

func newReal(t *testing.T, plugins string, delegates ...string) *real {
	r := &real{t: t, plugins: plugins, ipam: t.TempDir(), tuning: t.TempDir(), cache: t.TempDir()}
	for _, raw := range delegates {
		raw = strings.NewReplacer("IPAM", r.ipam, "TUNING", r.tuning).Replace(raw)
		d, err := conf.ParseDelegate("delegates", json.RawMessage(raw))
		require.NoError(t, err)
		r.chain = append(r.chain, d)
	}
	return r
}

// of is the same host for a part of the test.
func (r *real) of(t *testing.T) *real {
	part := *r
	part.t = t
	return &part
}

// container is a chain for one container with a namespace of its own.
func (r *real) container(id string) *Chain {
	return &Chain{
		Delegates: r.chain,
		Attachment: &conf.Attachment{
			Key:       conf.Key{Network: "web", ContainerID: id, IfName: "eth0"},
			NetnsPath: newNetns(r.t),
			Path:      []string{r.plugins},
			NetConf:   &conf.NetConf{Name: "web", CNIVersion: "1.1.0", Type: "ambi", Raw: json.RawMessage(`{}`)},
		},
		CacheDir: r.cache,
	}
}

// warmUp brings up and down what stays with a network, such as the bridge and the
// shared chains of the firewall, and returns the snapshot without attachments.
func (r *real) warmUp() string {
	c := r.container("first")
	require.NoError(r.t, c.Del(context.Background(), add(r.t, c)))
	return r.snapshot()
}

var (
	passing  = regexp.MustCompile(`\[\d+:\d+\]|counter packets \d+ bytes \d+| linkdown| tentative`)
	comments = regexp.MustCompile(`(?m)^#.*\n`)
)

// snapshot is all that an attachment may leave on the host, as text.
func (r *real) snapshot() string {
	var all strings.Builder
	for _, command := range [][]string{
		{"ip", "-br", "link"}, {"ip", "-o", "addr", "show", "scope", "global"}, {"ip", "route", "show", "table", "all", "type", "unicast"},
		{"nft", "list", "ruleset"}, {"iptables-save"}, {"ip6tables-save"},
	} {
		out := run(r.t, command[0], command[1:]...)
		if strings.Contains(strings.Join(command, " "), "-br") {
			out = firstColumn(out)
		}
		fmt.Fprintf(&all, "== %s\n%s", command, passing.ReplaceAllString(comments.ReplaceAllString(out, ""), ""))
	}
	for _, dir := range []string{r.ipam, r.tuning} {
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() && !strings.HasPrefix(d.Name(), "last_reserved_ip") {
				fmt.Fprintf(&all, "== file %s\n", path)
			}
			return nil
		})
	}
	return all.String()
}

func firstColumn(lines string) string {
	var names strings.Builder
	for line := range strings.Lines(lines) {
		names.WriteString(strings.Fields(line)[0] + "\n")
	}
	return names.String()
}

const (
	bridgeRaw = `{"type":"bridge","bridge":"br-web","isGateway":true,"ipMasq":true,"hairpinMode":true,
		"ipam":{"type":"host-local","dataDir":"IPAM","ranges":[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd77::/64"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`
	ptpRaw      = `{"type":"ptp","ipMasq":true,"ipam":{"type":"host-local","dataDir":"IPAM","ranges":[[{"subnet":"10.78.0.0/24"}]]}}`
	firewallRaw = `{"type":"firewall"}`
	tuningRaw   = `{"type":"tuning","mtu":1400,"dataDir":"TUNING","sysctl":{"net.ipv4.conf.eth0.log_martians":"1"}}`
)

func TestRealPluginsLeaveNothing(t *testing.T) {
	t.Parallel()
	chains := map[string][]string{"bridge": {bridgeRaw, firewallRaw, tuningRaw}, "ptp": {ptpRaw, firewallRaw}}
	states := map[string]func(t *testing.T, c *Chain, result *types100.Result) *types100.Result{
		"as it should be": func(_ *testing.T, _ *Chain, r *types100.Result) *types100.Result { return r },
		"CNI_NETNS empty": func(_ *testing.T, c *Chain, r *types100.Result) *types100.Result {
			c.Attachment.NetnsPath = ""
			return r
		},
		"path missing": func(_ *testing.T, c *Chain, r *types100.Result) *types100.Result {
			c.Attachment.NetnsPath = "/nowhere"
			return r
		},
		"another namespace": func(t *testing.T, c *Chain, r *types100.Result) *types100.Result {
			c.Attachment.NetnsPath, c.NetnsGone = newNetns(t), true
			return r
		},
		"interface deleted": func(t *testing.T, c *Chain, r *types100.Result) *types100.Result { deleteLink(t, c); return r },
		"result not known":  func(_ *testing.T, _ *Chain, _ *types100.Result) *types100.Result { return nil },
		"nothing but the ID": func(_ *testing.T, c *Chain, _ *types100.Result) *types100.Result {
			c.Attachment.NetnsPath = ""
			return nil
		},
	}
	for kind, raws := range chains {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			forEachEdition(t, func(t *testing.T, plugins string, host *unit.Netns) {
				r := newReal(t, plugins, raws...)
				before := r.warmUp()
				for state, change := range states { // one after the other, on one host
					t.Run(state, func(t *testing.T) {
						onSameHost(t, host)
						r := r.of(t)
						c := r.container("c1")
						result := add(t, c)
						require.NotEqual(t, before, r.snapshot())
						require.NoError(t, c.Check(context.Background(), result))
						netns := c.Attachment.NetnsPath
						result = change(t, c, result)
						require.NoError(t, c.Del(context.Background(), result))
						if state != "as it should be" && state != "result not known" {
							// What the kernel does when the real namespace goes.
							require.NoError(t, deleteIfThere(netns, "eth0"))
						}
						require.Equal(t, before, r.snapshot())
						require.NoError(t, c.Del(context.Background(), result), "again")
						require.Equal(t, before, r.snapshot())
					})
				}
			})
		})
	}
}

func deleteLink(t *testing.T, c *Chain) {
	t.Helper()
	require.NoError(t, deleteIfThere(c.Attachment.NetnsPath, c.Attachment.IfName))
}

func deleteIfThere(netns, name string) error {
	return ns.WithNetNSPath(netns, func(ns.NetNS) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return nil
		}
		return netlink.LinkDel(l)
	})
}

func TestRealAddThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	forEachEdition(t, func(t *testing.T, plugins string, _ *unit.Netns) {
		r := newReal(t, plugins, bridgeRaw, firewallRaw, `{"type":"tuning","sysctl":{"net.ipv4.conf.no_such_link.forwarding":"1"}}`)
		broken := r.chain
		r.chain = broken[:2]
		before := r.warmUp()
		r.chain = broken
		_, err := r.container("c1").Add(context.Background(), nil)
		require.ErrorContains(t, err, "tuning: ")
		require.Equal(t, before, r.snapshot())
	})
}

// TestRealAddThatIsKilledLeavesNothing kills ADD at moments spread over the time
// that it takes, with nobody left who knows its result.
func TestRealAddThatIsKilledLeavesNothing(t *testing.T) {
	t.Parallel()
	for part, name := range []string{"even moments", "odd moments"} { // side by side
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			forEachEdition(t, func(t *testing.T, plugins string, _ *unit.Netns) { killAdds(t, plugins, part) })
		})
	}
}

// killAdds kills ADD at every second moment. After an odd one the namespace is gone.
func killAdds(t *testing.T, plugins string, first int) {
	const moments = 16
	r := newReal(t, plugins, bridgeRaw, firewallRaw)
	before := r.warmUp()
	c := r.container("whole")
	start := time.Now()
	cmd, _ := startAdd(t, c)
	require.NoError(t, cmd.Wait())
	whole := time.Since(start)
	require.NoError(t, c.Del(context.Background(), nil))
	for i := first; i < moments; i += 2 {
		c := r.container(fmt.Sprintf("c%d", i))
		netns := c.Attachment.NetnsPath
		cmd, ended := startAdd(t, c)
		time.Sleep(whole * time.Duration(i) / moments)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		ended() // as the plugin waits, by the same lock
		if i%2 == 1 {
			require.NoError(t, deleteIfThere(netns, "eth0"))
			c.Attachment.NetnsPath = ""
		}
		require.NoError(t, c.Del(context.Background(), nil))
		require.Equal(t, before, r.snapshot(), "moment %d of %d", i, moments)
	}
}

// TestRealInterfaceWithoutItsAddress has the interface plugin killed when it has got
// an address and not yet used it.
func TestRealInterfaceWithoutItsAddress(t *testing.T) {
	t.Parallel()
	for kind, raw := range map[string]string{"bridge": bridgeRaw, "ptp": ptpRaw} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			forEachEdition(t, func(t *testing.T, plugins string, _ *unit.Netns) {
				deadly := t.TempDir()
				script := fmt.Sprintf("#!/bin/sh\n%s/host-local; status=$?\n[ $CNI_COMMAND != ADD ] || kill -9 $PPID\nexit $status\n", plugins)
				require.NoError(t, os.WriteFile(filepath.Join(deadly, "host-local"), []byte(script), 0o755))
				r := newReal(t, plugins, raw, firewallRaw)
				before := r.warmUp()
				for _, undo := range []bool{true, false} {
					c := r.container("c1")
					c.Attachment.Path = []string{deadly, plugins}
					var err error
					if undo {
						_, err = c.Add(context.Background(), nil)
					} else {
						_, _, err = c.call(context.Background(), c.Delegates[0], request{verb: "ADD", netns: c.Attachment.NetnsPath}, "")
						require.NotEqual(t, before, r.snapshot())
					}
					require.ErrorContains(t, err, "signal: killed")
					if !undo {
						require.NoError(t, c.Del(context.Background(), nil))
					}
					require.Equal(t, before, r.snapshot(), "undone by ADD: %t", undo)
				}
			})
		})
	}
}

func TestRealDelOfALateContainerSparesTheNewOwnerOfItsAddress(t *testing.T) {
	t.Parallel()
	forEachEdition(t, func(t *testing.T, plugins string, _ *unit.Netns) {
		r := newReal(t, plugins, strings.Replace(bridgeRaw, `[[{"subnet":"10.77.0.0/24"}],[{"subnet":"fd77::/64"}]]`, `[[{"subnet":"10.77.0.0/30"}]]`, 1), firewallRaw)
		r.warmUp()
		late := r.container("c1")
		result := add(t, late)
		require.NoError(t, late.Del(context.Background(), result))
		owner := r.container("c2")
		own := add(t, owner)
		require.Equal(t, result.IPs[0].Address.String(), own.IPs[0].Address.String(), "a subnet of one address")
		before := r.snapshot()
		late.Attachment.NetnsPath = ""
		require.NoError(t, late.Del(context.Background(), result))
		require.Equal(t, before, r.snapshot())
		require.NoError(t, owner.Check(context.Background(), own))
	})
}
