package nat

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/ambi-cni/ambi/conf"
)

// The iptables side, as iptables-save shows it; each owner has two chains named
// by its tag:
//
//	*raw  (IPv4 only)
//	-A PREROUTING -j AMBI-GUARD
//	-A AMBI-GUARD -d 127.0.0.0/8 ! -i lo -j DROP
//	*nat
//	-A PREROUTING -m addrtype --dst-type LOCAL -j AMBI-DNAT
//	-A OUTPUT -m addrtype --dst-type LOCAL -j AMBI-DNAT
//	-A POSTROUTING -m conntrack --ctstate DNAT -j AMBI-MASQ
//	-A AMBI-DNAT -m comment --comment "network/container/eth0" -j AMBI-D-tag
//	-A AMBI-MASQ -j AMBI-M-tag
//	-A AMBI-D-tag -d 192.0.2.1/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.88.0.2:80
//	-A AMBI-M-tag -s 127.0.0.0/8 -d 10.88.0.2/32 -j MASQUERADE
//	-A AMBI-M-tag -s 10.88.0.0/24 -d 10.88.0.2/32 -j MASQUERADE
//
// POSTROUTING cannot match the interface a packet came in by, so hairpin is told
// by the subnet of the host's interface rather than by the interface itself.
const (
	dnatChain  = "AMBI-DNAT"
	masqChain  = "AMBI-MASQ"
	guardChain = "AMBI-GUARD"
	dnatPrefix = "AMBI-D-"
	masqPrefix = "AMBI-M-"
)

// base is a chain of ours that all owners share, and the rules that lead to it.
type base struct {
	table, chain string
	hooks        []hook
	rules        []string
}

// hook is a rule of a built-in chain; command is -A or -I.
type hook struct{ command, chain, match string }

func bases(f family) []base {
	local := "-m addrtype --dst-type LOCAL"
	all := []base{
		{"nat", dnatChain, []hook{{"-A", "PREROUTING", local}, {"-A", "OUTPUT", local}}, nil},
		// First, because the bridge plugin's rules accept what stays in its subnet.
		{"nat", masqChain, []hook{{"-I", "POSTROUTING", "-m conntrack --ctstate DNAT"}}, nil},
	}
	if f == ipv4 {
		all = append(all, base{"raw", guardChain, []hook{{"-I", "PREROUTING", ""}}, []string{"! -i lo -d 127.0.0.0/8 -j DROP"}})
	}
	return all
}

func (h hook) rule(target string) string {
	return strings.Join(strings.Fields(h.chain+" "+h.match+" -j "+target), " ")
}

// ruleset is what iptables-save says of our chains.
type ruleset struct {
	family   family
	chains   map[string]bool
	jumps    map[string]int       // "PREROUTING AMBI-DNAT": how many rules of a chain jump to another
	owners   map[string]string    // tag to the owner's name
	forwards map[string][]forward // by tag
	masq     map[string][]string  // by tag: "source destination"
	guards   int
	lock     *os.File // held by us, to be held by what we run; nil: none
}

func readRuleset(ctx context.Context, f family) (ruleset, error) {
	argv := []string{f.iptables() + "-save"}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0])
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return ruleset{}, iptError(argv, errOut.Bytes(), err)
	}
	return parseRuleset(f, out.String()), nil
}

func parseRuleset(f family, saved string) ruleset {
	r := ruleset{
		family: f, chains: map[string]bool{}, jumps: map[string]int{}, owners: map[string]string{},
		forwards: map[string][]forward{}, masq: map[string][]string{},
	}
	for line := range strings.Lines(saved) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case strings.HasPrefix(words[0], ":AMBI-"):
			r.chains[words[0][1:]] = true
		case words[0] == "-A" && strings.Contains(line, "AMBI-"):
			r.parseRule(words)
		}
	}
	return r
}

// parseRule reads one rule: its options are pairs of a word and its value.
func (r *ruleset) parseRule(words []string) {
	options := map[string]string{}
	for i := 2; i+1 < len(words); i++ {
		if strings.HasPrefix(words[i], "-") {
			options[words[i]] = strings.Trim(words[i+1], `"`)
		}
	}
	chain, target := words[1], options["-j"]
	switch {
	case chain == guardChain:
		r.guards++
	case strings.HasPrefix(chain, dnatPrefix):
		if f, ok := r.parseForward(options); ok {
			t := chain[len(dnatPrefix):]
			r.forwards[t] = append(r.forwards[t], f)
		}
	case strings.HasPrefix(chain, masqPrefix):
		t := chain[len(masqPrefix):]
		r.masq[t] = append(r.masq[t], options["-s"]+" "+options["-d"])
	case strings.HasPrefix(target, "AMBI-"):
		r.jumps[chain+" "+target]++
		if t, ok := strings.CutPrefix(target, dnatPrefix); ok {
			r.owners[t] = options["--comment"]
		}
	}
}

func (r *ruleset) parseForward(options map[string]string) (forward, bool) {
	f := forward{slot: slot{host: r.family.unspecified()}}
	f.proto, _ = protocolNumber(conf.Protocol(options["-p"]))
	port, err := strconv.ParseUint(options["--dport"], 10, 16)
	if err != nil {
		return forward{}, false
	}
	f.port = uint16(port)
	if d, err := netip.ParsePrefix(options["-d"]); err == nil {
		f.host = d.Addr()
	}
	f.to, err = netip.ParseAddrPort(options["--to-destination"])
	return f, err == nil
}

// has says whether an owner has chains or a jump to one.
func (r ruleset) has(t string) bool {
	_, jumped := r.owners[t]
	return jumped || r.chains[dnatPrefix+t] || r.chains[masqPrefix+t]
}

// refuses is the error of the first port that another owner has.
func (r ruleset) refuses(in intent) error {
	type portOf struct {
		proto uint8
		port  uint16
	}
	wanted := map[portOf][]forward{}
	for _, f := range in.forwards {
		if f.family() == r.family {
			wanted[portOf{f.proto, f.port}] = append(wanted[portOf{f.proto, f.port}], f)
		}
	}
	for t, fs := range r.forwards {
		for _, rival := range fs {
			for _, f := range wanted[portOf{rival.proto, rival.port}] {
				if t == tag(in.Owner) || (f.slot == rival.slot && siblings(in.Owner, r.owners[t])) {
					continue
				}
				if f.wide() || rival.wide() || f.host == rival.host {
					return inUse(rival.slot, r.owners[t])
				}
			}
		}
	}
	return nil
}

// unowned are the mappings of p that nobody has in this ruleset.
func (r ruleset) unowned(p Published) []forward {
	var free []forward
	for _, f := range r.own(intent{forwards: p.known()}) {
		if r.refuses(intent{forwards: []forward{f}}) == nil {
			free = append(free, f)
		}
	}
	return free
}

// missing names what is not there.
func (r ruleset) missing(in intent) []string {
	want := r.own(in)
	if len(want) == 0 {
		return nil
	}
	var missing []string
	for _, b := range bases(r.family) {
		for _, h := range b.hooks {
			if r.jumps[h.chain+" "+b.chain] == 0 {
				missing = append(missing, fmt.Sprintf("%s: the jump from %s to %s is missing", r.family.iptables(), h.chain, b.chain))
			}
		}
	}
	if r.family == ipv4 && r.guards == 0 {
		missing = append(missing, fmt.Sprintf("iptables: the rule of chain %s of table raw is missing", guardChain))
	}
	t := tag(in.Owner)
	for _, jump := range []string{dnatChain + " " + dnatPrefix + t, masqChain + " " + masqPrefix + t} {
		if r.jumps[jump] == 0 {
			from, to, _ := strings.Cut(jump, " ")
			missing = append(missing, fmt.Sprintf("%s: the jump from %s to %s is missing", r.family.iptables(), from, to))
		}
	}
	for _, f := range want {
		if !slices.Contains(r.forwards[t], f) {
			missing = append(missing, "host port "+f.String()+" is missing")
		}
	}
	for _, pair := range r.masquerades(in) {
		if !slices.Contains(r.masq[t], pair) {
			missing = append(missing, fmt.Sprintf("%s: the masquerading of %q is missing", r.family.iptables(), pair))
		}
	}
	return missing
}

// own are the mappings in the ruleset's family.
func (r ruleset) own(in intent) []forward {
	var fs []forward
	for _, f := range in.forwards {
		if f.family() == r.family {
			fs = append(fs, f)
		}
	}
	return fs
}

// notOfSiblings are the mappings but those that a sibling of the owner
// publishes.
func (r ruleset) notOfSiblings(in intent) []forward {
	return slices.DeleteFunc(r.own(in), func(f forward) bool {
		for t, fs := range r.forwards {
			if siblings(in.Owner, r.owners[t]) && slices.ContainsFunc(fs, func(o forward) bool { return o.slot == f.slot }) {
				return true
			}
		}
		return false
	})
}

// masquerades are the pairs of source and destination whose connections are
// masqueraded.
func (r ruleset) masquerades(in intent) []string {
	ip := in.target(r.family)
	if !in.SNAT || !ip.IsValid() {
		return nil
	}
	to := " " + netip.PrefixFrom(ip, ip.BitLen()).String()
	pairs := []string{subnetOf(in.hostIf, ip).String() + to}
	if r.family == ipv4 {
		pairs = append(pairs, "127.0.0.0/8"+to)
	}
	return pairs
}

// subnetOf is the subnet that the host's interface shares with the container; the
// container's address alone when there is none.
func subnetOf(hostIf string, ip netip.Addr) netip.Prefix {
	alone := netip.PrefixFrom(ip, ip.BitLen())
	link, err := netlink.LinkByName(hostIf)
	if err != nil {
		return alone
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return alone
	}
	for _, a := range addrs {
		if a.IPNet != nil && a.IPNet.Contains(net.IP(ip.AsSlice())) {
			ones, _ := a.IPNet.Mask.Size()
			return netip.PrefixFrom(ip, ones).Masked()
		}
	}
	return alone
}
