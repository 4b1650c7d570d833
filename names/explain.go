package names

import (
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/ambi-cni/ambi/record"
)

// Found is what a container of a network gets for a name.
type Found struct {
	Addresses []netip.Addr
	Own       bool         // the network answers; else others are asked
	Upstreams []netip.Addr // these; none: the host's
	Nobody    bool         // others are not asked
}

// Resolve is what the container of a record gets for a name, by the records of its state
// folder. ok says that the record is of a container in a network with names.
func Resolve(records []*record.Record, of *record.Record, name string) (found Found, ok bool) {
	m, ok := memberOf(of)
	if !ok || len(m.addresses) == 0 {
		return found, false
	}
	a := newDirectory(membersOf(records)).askers[m.addresses[0].Addr()][m.network]
	if a == nil {
		return found, false
	}
	r, own := a.answer([]byte(normal(name)), dnsmessage.TypeALL)
	return Found{Addresses: r.addresses, Own: own, Upstreams: a.upstreams, Nobody: a.only}, true
}

// Why says why a name is nobody's in a network, by the records, as far as there is anything
// to say: who has it, and what is the matter.
func Why(records []*record.Record, network, name string) (reasons []string) {
	name = normal(name)
	first, _, _ := strings.Cut(name, ".")
	if !Possible(name) {
		return []string{"no name in DNS can be like this: labels have 1 to 63 bytes, and all together at most 253"}
	}
	for _, r := range records {
		a, _ := r.Attachment()
		if a == nil || a.NetConf == nil || !slices.ContainsFunc(Of(a), func(n string) bool { return n == name || n == first }) {
			continue
		}
		who := "container " + r.ContainerID
		switch {
		case NetworkOf(r) == "" && r.Network == network:
			reasons = append(reasons, who+" has it, but its ADD was without bridge.names")
		case NetworkOf(r) == "":
			reasons = append(reasons, who+" has it, in network "+r.Network+", which has no names")
		case r.State != record.Ready:
			reasons = append(reasons, who+" has it, but an ADD or DEL of it has not finished")
		case r.Network != network:
			reasons = append(reasons, who+" has it, in network "+r.Network)
		}
	}
	return reasons
}
