package names

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/ambi-cni/ambi/conf"
)

// member is a container in a network with names.
type member struct {
	conf.Key
	network   string // what tells the network from all others, of its name or not
	names     []string
	addresses []netip.Prefix
	domain    string       // of the network; may be empty
	upstreams []netip.Addr // who is asked for what is not of the network; none: the host's
	only      bool         // nobody is
}

// directory is who has which name.
type directory struct {
	networks map[string]*network
	askers   map[netip.Addr]map[string]*asker // by the network, too: two may have one subnet
}

// network is what its members may know.
type network struct {
	name      string // as it is in the configuration
	entries   map[string]*entry
	above     map[string]bool // names that have others below them
	addresses map[netip.Addr][]string
	subnets   []netip.Prefix
}

// entry is a name, of one container or more.
type entry struct {
	v4, v6 turns
}

// turns are addresses, of which another one is the first each time.
type turns struct {
	all  []netip.Addr
	next atomic.Uint32
}

func (t *turns) take() []netip.Addr {
	n := len(t.all)
	if n < 2 {
		return t.all
	}
	first := int(t.next.Add(1) % uint32(n))
	return append(append(make([]netip.Addr, 0, n), t.all[first:]...), t.all[:first]...)
}

// asker is a container that may ask, with all networks that it is in, the one over which
// it asks first.
type asker struct {
	*member
	networks []*network
}

func newDirectory(members []member) *directory {
	d := &directory{networks: map[string]*network{}, askers: map[netip.Addr]map[string]*asker{}}
	of := map[string][]*network{} // of a container
	for i := range members {
		n := d.add(&members[i])
		if id := members[i].ContainerID; !slices.Contains(of[id], n) {
			of[id] = append(of[id], n)
		}
	}
	for i := range members {
		m := &members[i]
		own := d.networks[m.network]
		a := &asker{m, []*network{own}}
		for _, other := range of[m.ContainerID] {
			if other != own {
				a.networks = append(a.networks, other)
			}
		}
		for _, p := range m.addresses {
			if d.askers[p.Addr()] == nil {
				d.askers[p.Addr()] = map[string]*asker{}
			}
			d.askers[p.Addr()][m.network] = a
		}
	}
	return d
}

// add puts a member into its network.
func (d *directory) add(m *member) *network {
	n := d.networks[m.network]
	if n == nil {
		n = &network{name: strings.ToLower(m.Network), entries: map[string]*entry{}, above: map[string]bool{}, addresses: map[netip.Addr][]string{}}
		d.networks[m.network] = n
	}
	for _, p := range m.addresses {
		n.addresses[p.Addr()] = m.names
		if !slices.Contains(n.subnets, p.Masked()) {
			n.subnets = append(n.subnets, p.Masked())
		}
	}
	for _, name := range m.names {
		n.call(name, m.addresses)
	}
	return n
}

// call gives addresses a name.
func (n *network) call(name string, addresses []netip.Prefix) {
	e := n.entries[name]
	if e == nil {
		e = &entry{}
		e.v4.next.Store(rand.Uint32()) //nolint:gosec // where to begin
		e.v6.next.Store(rand.Uint32()) //nolint:gosec // where to begin
		n.entries[name] = e
	}
	for _, p := range addresses {
		t := &e.v6
		if p.Addr().Is4() {
			t = &e.v4
		}
		if !slices.Contains(t.all, p.Addr()) {
			t.all = append(t.all, p.Addr())
		}
	}
	for _, rest, ok := strings.Cut(name, "."); ok; _, rest, ok = strings.Cut(rest, ".") {
		n.above[rest] = true
	}
}

// answer is what a member gets for a question; own says that it is of the networks' own
// names, and nobody else is asked.
func (a *asker) answer(asked []byte, kind dnsmessage.Type) (r reply, own bool) {
	for _, n := range a.networks {
		if e := n.entries[string(asked)]; e != nil { // without a copy
			return e.answer(kind), true
		}
	}
	name := string(asked)
	if address, whole, ok := addressOf(name); ok {
		return a.answerReverse(address, whole, kind)
	}
	if r, own := a.answerBelow(name, kind); own {
		return r, true
	}
	switch {
	case name == "" || strings.Contains(name, "."):
		return reply{}, false
	case kind == typeDS || kind == typeDNSKEY:
		return reply{}, false // of a top-level domain: who validates asks so
	case a.isAbove(name):
		return reply{}, true
	}
	return reply{code: dnsmessage.RCodeNameError}, true
}

// answerBelow is about NAME.NETWORK, and NAME.DOMAIN.
func (a *asker) answerBelow(name string, kind dnsmessage.Type) (r reply, own bool) {
	suffixes := []string{a.domain}
	for _, n := range a.networks {
		suffixes = append(suffixes, n.name)
	}
	for i, suffix := range suffixes {
		n := a.networks[max(0, i-1)]
		first, ok := strings.CutSuffix(name, "."+suffix)
		switch {
		case suffix == "":
		case name == suffix:
			return reply{}, true
		case !ok:
		case n.entries[first] != nil:
			return n.entries[first].answer(kind), true
		case n.above[first]:
			return reply{}, true
		default:
			own = true
		}
	}
	return reply{code: dnsmessage.RCodeNameError}, own
}

func (a *asker) isAbove(name string) bool {
	return slices.ContainsFunc(a.networks, func(n *network) bool { return n.above[name] })
}

func (e *entry) answer(kind dnsmessage.Type) (r reply) {
	if kind == dnsmessage.TypeA || kind == dnsmessage.TypeALL {
		r.addresses = e.v4.take()
	}
	if kind == dnsmessage.TypeAAAA || kind == dnsmessage.TypeALL {
		r.addresses = append(r.addresses[:len(r.addresses):len(r.addresses)], e.v6.take()...)
	}
	return r
}

// answerReverse is about the name of an address. Those of the networks' subnets are their
// own, also where nobody has them.
func (a *asker) answerReverse(address netip.Addr, whole bool, kind dnsmessage.Type) (r reply, own bool) {
	for _, n := range a.networks {
		names := n.addresses[address]
		switch {
		case !whole || !slices.ContainsFunc(n.subnets, func(p netip.Prefix) bool { return p.Contains(address) }):
		case len(names) == 0:
			return reply{code: dnsmessage.RCodeNameError}, true
		case kind == dnsmessage.TypePTR || kind == dnsmessage.TypeALL:
			return reply{names: names}, true
		default:
			return reply{}, true
		}
	}
	return reply{}, false
}

// The domains of the names of addresses (RFC 1035, section 3.5; RFC 3596, section 2.5).
const (
	reverse4 = ".in-addr.arpa"
	reverse6 = ".ip6.arpa"
)

// addressOf reads the name of an address; whole says that it is one, and not of a part.
func addressOf(name string) (a netip.Addr, whole, ok bool) {
	if text, ok := strings.CutSuffix(name, reverse4); ok {
		labels := strings.Split(text, ".")
		slices.Reverse(labels)
		a, err := netip.ParseAddr(strings.Join(labels, "."))
		return a, err == nil, true
	}
	text, ok := strings.CutSuffix(name, reverse6)
	if !ok {
		return a, false, false
	}
	const nibbles = 32
	var b strings.Builder
	labels := strings.Split(text, ".")
	slices.Reverse(labels)
	for i, label := range labels {
		if len(label) != 1 {
			return a, false, true
		}
		b.WriteString(label)
		if i%4 == 3 && i < nibbles-1 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil && len(labels) == nibbles, true
}

// Possible says whether a name can be one in DNS: labels of 1 to 63 bytes, at most 253 in
// all (RFC 1035, section 2.3.4). Which bytes is left to who gave it.
func Possible(name string) bool {
	const longest, longestLabel = 253, 63
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > longestLabel {
			return false
		}
	}
	return len(name) <= longest
}
