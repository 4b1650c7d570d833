package bridge

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/nlsock"
)

// Docker and others set the policy of iptables' chain FORWARD to drop, and what one
// firewall drops no other can accept. There, and only there, each network gets a rule
// for each direction at the end of that chain: what goes to a container has been
// judged by our own chain, and the rules of others before ours hold for it as well.
// ufw and others set that of chain INPUT, and a name server of ours is not asked then: a
// network with names has a rule for each protocol at the beginning of that one, where
// what refuses comes last. Whether that is so is asked of the kernel; a program starts only
// where it is.

var hooks = map[string]int{"FORWARD": hookForward, "INPUT": hookInput}

// filter is the table filter of iptables, of one family.
type filter struct {
	command string // what writes it
	drops   bool   // the policy of the chain
	rules   func() [][]byte
}

// ours is how many rules there are of those that an opening needs. Rules of others may name the
// bridge as well, so it goes by the comment, which some versions of iptables make an
// expression, and some the rule's own.
func (f filter) ours(o opening) (n int) {
	for _, rule := range f.rules() {
		before, after, found := bytes.Cut(rule, append([]byte(o.comment), 0))
		if name := append([]byte(o.bridge), 0); found && (bytes.Contains(before, name) || bytes.Contains(after, name)) {
			n++
		}
	}
	return n
}

// lacks says that the filter drops what an opening is to let through.
func (f filter) lacks(o opening) bool { return f.drops && f.ours(o) < len(o.rules) }

// filters are the tables that there are, with what matters of a chain: of the nf_tables
// variant, of the legacy one, or of both.
func (h Host) filters(s state, chain string) ([]filter, error) {
	if !h.IPTables {
		return nil, nil
	}
	var all []filter
	for _, p := range s.subnets {
		f, err := h.nftFilter(p, chain)
		if err != nil {
			return nil, err
		}
		if f != nil {
			all = append(all, *f)
		}
		if f, err = legacyFilter(p.Addr().Is6(), chain); err != nil {
			return nil, err
		}
		if f != nil {
			all = append(all, *f)
		}
	}
	return all, nil
}

func iptablesCommand(p netip.Prefix) (string, nftables.TableFamily) {
	if p.Addr().Is6() {
		return "ip6tables", nftables.TableFamilyIPv6
	}
	return "iptables", nftables.TableFamilyIPv4
}

func (h Host) nftFilter(p netip.Prefix, chain string) (*filter, error) {
	command, family := iptablesCommand(p)
	table := &nftables.Table{Name: "filter", Family: family}
	var b batch
	b.Add("reading the policy of "+command+"' chain "+chain, nftKind(unix.NFT_MSG_GETCHAIN), 0, nfgenmsg(byte(family), 0), func(e *nlsock.Encoder) {
		e.String(unix.NFTA_CHAIN_TABLE, table.Name)
		e.String(unix.NFTA_CHAIN_NAME, chain)
	})
	answers, err := b.Send(h.Filter)
	switch {
	case errors.Is(err, unix.ENOENT), err == nil && len(answers) == 0:
		return nil, nil
	case err != nil:
		return nil, firewallError("", err)
	}
	return &filter{
		command: variant(command, "-nft"),
		drops:   readBase(answers[0].Data).drops,
		rules: func() [][]byte {
			rules, _ := h.rawRules(table, chain) // iptables itself looks again
			return rules
		},
	}, nil
}

// base is a base chain as far as it matters here.
type base struct {
	table, name           string
	forward, input, drops bool
}

func readBase(data []byte) (b base) {
	attributes := afterHeader(data)
	text := func(to *string) func([]byte) { return func(b []byte) { *to = string(bytes.TrimRight(b, "\x00")) } }
	is := func(to *bool, value uint32) func([]byte) {
		return func(b []byte) { *to = len(b) == 4 && binary.BigEndian.Uint32(b) == value }
	}
	_ = walk(attributes, []uint16{unix.NFTA_CHAIN_TABLE}, text(&b.table))
	_ = walk(attributes, []uint16{unix.NFTA_CHAIN_NAME}, text(&b.name))
	_ = walk(attributes, []uint16{unix.NFTA_CHAIN_POLICY}, is(&b.drops, policyDrop))
	_ = walk(attributes, []uint16{unix.NFTA_CHAIN_HOOK, unix.NFTA_HOOK_HOOKNUM}, is(&b.forward, hookForward))
	_ = walk(attributes, []uint16{unix.NFTA_CHAIN_HOOK, unix.NFTA_HOOK_HOOKNUM}, is(&b.input, hookInput))
	return b
}

const policyDrop = 0 // NF_DROP

// variant is the program for one of iptables' two ways to talk to the kernel, where it
// is installed by its own name.
func variant(command, suffix string) string {
	if _, err := exec.LookPath(command + suffix); err == nil {
		return command + suffix
	}
	return command
}

// opening is what a network needs of one of iptables' chains.
type opening struct {
	chain, what     string
	comment, bridge string // by which its rules are known
	rules           [][]string
}

// openings are a network's, as iptables takes them.
func openings(network, bridge string) []opening {
	text := mark + " network " + network
	comment := []string{"-m", "comment", "--comment", text, "-j", "ACCEPT"}
	asked := func(protocol string) []string {
		return append([]string{"-i", bridge, "-p", protocol, "--dport", "53"}, comment...)
	}
	return []opening{
		{"FORWARD", "what bridge " + bridge + " passes on", text, bridge, [][]string{append([]string{"-i", bridge}, comment...), append([]string{"-o", bridge}, comment...)}},
		{"INPUT", "what the name server at bridge " + bridge + " is asked", text, bridge, [][]string{asked("udp"), asked("tcp")}},
	}
}

// needs are those of openings that the network's packets need.
func (n *Network) needs(bridge string) []opening {
	return slices.DeleteFunc(openings(n.Name, bridge), func(o opening) bool { return o.chain == "INPUT" && !n.Config.Names })
}

// put adds a rule where it belongs, unless it is there.
func (o opening) put(t *iptables.IPTables, rule []string) error {
	if o.chain == "INPUT" {
		return t.InsertUnique("filter", o.chain, 1, rule...)
	}
	return t.AppendUnique("filter", o.chain, rule...)
}

// open adds the network's rules where a policy of drop stands in the way.
func (n *Network) open(ctx context.Context, s state) error {
	for _, o := range n.needs(s.bridge.name) {
		filters, err := n.Host.filters(s, o.chain)
		if err != nil {
			return err
		}
		for _, f := range filters {
			if !f.lacks(o) {
				continue
			}
			if err := n.withIPTables(ctx, f, o.rules, o.put); err != nil {
				return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: the host's firewall drops by the policy of its chain %s, and accepting %s failed: %v", n.Name, o.chain, o.what, err), "install %s, or have the firewall accept it", strings.TrimSuffix(f.command, "-nft"))
			}
		}
	}
	return nil
}

// shut removes the network's rules, whatever the policy is by now.
func (n *Network) shut(ctx context.Context, bridge string) error {
	both := state{subnets: []netip.Prefix{pool(0), netip.MustParsePrefix("fd00::/64")}}
	var errs []error
	for _, o := range openings(n.Name, bridge) {
		filters, err := n.Host.filters(both, o.chain)
		errs = append(errs, err)
		for _, f := range filters {
			if f.ours(o) == 0 {
				continue
			}
			if err := n.withIPTables(ctx, f, o.rules, func(t *iptables.IPTables, rule []string) error {
				return t.DeleteIfExists("filter", o.chain, rule...)
			}); err != nil {
				errs = append(errs, fmt.Errorf("network %q: removing the rules of bridge %s from chain %s: %w", n.Name, bridge, o.chain, err))
			}
		}
	}
	return errors.Join(errs...)
}

// withIPTables does something to each rule while no other ambi changes the chain: go-iptables
// looks first and adds then.
func (n *Network) withIPTables(ctx context.Context, f filter, rules [][]string, do func(*iptables.IPTables, []string) error) error {
	lock, err := lockFile(ctx, filepath.Join(n.Dir, ".iptables.lock"), flock.Exclusive)
	if err != nil {
		return err
	}
	defer lock.Close()
	family := iptables.ProtocolIPv4
	if strings.HasPrefix(f.command, "ip6") {
		family = iptables.ProtocolIPv6
	}
	const wait = 30 // seconds that iptables waits for its own lock
	t, err := iptables.New(iptables.IPFamily(family), iptables.Path(f.command), iptables.Timeout(wait))
	if err != nil {
		return err
	}
	for _, r := range rules {
		if err := do(t, r); err != nil {
			return err
		}
	}
	return nil
}

// warnOfOthers tells of other firewalls that drop what is forwarded, or what is for the host:
// only their owner can let the containers' packets through.
func (n *Network) warnOfOthers(bridge string) {
	for _, family := range []byte{unix.NFPROTO_INET, unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		entries, err := n.Host.Filter.Dump("listing the firewall's chains", nftKind(unix.NFT_MSG_GETCHAIN), nfgenmsg(family, 0), nil)
		if err != nil {
			return
		}
		for _, data := range entries {
			if b := readBase(data); b.forward && b.drops && b.name != "FORWARD" {
				n.Log.Warn("a firewall drops what is forwarded, so containers reach nothing beyond the host unless it accepts them",
					"table", b.table, "chain", b.name, "remedy", fmt.Sprintf("accept iifname %q and oifname %q in that chain", bridge, bridge))
			}
			if b := readBase(data); n.Config.Names && b.input && b.drops && b.name != "INPUT" {
				n.Log.Warn("a firewall drops what is for the host, so containers resolve no names unless it accepts what they ask",
					"table", b.table, "chain", b.name, "remedy", fmt.Sprintf("accept iifname %q udp dport 53 and tcp dport 53 in that chain", bridge))
			}
		}
	}
}
