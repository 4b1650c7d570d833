package names

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/record"
)

// source makes the directory of the records of a state folder.
type source struct {
	store    *record.Store
	mu       sync.Mutex
	follower *record.Follower
	now      *directory
}

// directory is as the records are at this moment. Where they cannot be read it is empty:
// nobody is known any more.
func (s *source) directory() *directory {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.follower == nil {
		s.follower = s.store.Follow()
	}
	if s.now != nil && !s.follower.Changed() {
		return s.now
	}
	records, err := s.follower.Records()
	if err != nil {
		s.now = nil
		return newDirectory(nil)
	}
	s.now = newDirectory(membersOf(records))
	return s.now
}

func membersOf(records []*record.Record) (members []member) {
	for _, r := range records {
		if m, ok := memberOf(r); ok {
			members = append(members, m)
		}
	}
	return members
}

// NetworkOf is what tells a record's network with names from all others in the same state
// folder; empty for a record without such a network.
func NetworkOf(r *record.Record) string {
	a, _ := r.Attachment()
	switch {
	case a == nil || a.NetConf == nil || !a.NetConf.Bridge.Names || r.Bridge == "":
		return ""
	case r.Mode == conf.ModeRootless:
		return r.Hub
	}
	return r.Network
}

// memberOf is the member that a record tells of, once ADD has finished and until DEL begins.
func memberOf(r *record.Record) (m member, ok bool) {
	var result types100.Result
	m.network = NetworkOf(r)
	if m.network == "" || r.State != record.Ready || json.Unmarshal(r.Result, &result) != nil {
		return m, false
	}
	a, _ := r.Attachment()
	m.Key, m.names, m.domain = r.Key, Of(a), normal(a.NetConf.DNS.Domain)
	m.only = r.Mode == conf.ModeRootless && a.NetConf.Rootless.DisableDNS
	for _, text := range a.NetConf.DNS.Nameservers {
		if address, err := netip.ParseAddr(text); err == nil {
			m.upstreams = append(m.upstreams, address.Unmap())
		}
	}
	for _, ip := range conf.AddressesOf(&result, r.IfName) {
		address, known := netip.AddrFromSlice(ip.Address.IP)
		if bits, _ := ip.Address.Mask.Size(); known {
			m.addresses = append(m.addresses, netip.PrefixFrom(address.Unmap(), bits))
		}
	}
	return m, true
}

// Of are the names that a container is found by.
func Of(a *conf.Attachment) (names []string) {
	for _, name := range a.Names {
		if name = normal(name); Possible(name) {
			names = append(names, name)
		}
	}
	return names
}

// normal is a name as it is compared.
func normal(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// DNS is that of the result of a network with names: its server, and no other beside it,
// since some resolvers ask all at once and take the first answer. Those of the configuration
// are asked by the server.
func DNS(n *conf.NetConf, servers []netip.Addr) types.DNS {
	dns := *n.DNS.Copy()
	dns.Nameservers = nil
	for _, a := range servers {
		dns.Nameservers = append(dns.Nameservers, a.String())
	}
	if dns.Domain != "" && len(dns.Search) == 0 {
		dns.Search = []string{dns.Domain}
	}
	return n.DNSFor(dns)
}

// Members are the records of those that are in the network, as [NetworkOf] calls it, or are
// coming: not of those that are leaving.
func Members(store *record.Store, network string) (members []*record.Record, err error) {
	records, _, err := store.List()
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		if r.State != record.Leaving && NetworkOf(r) == network {
			members = append(members, r)
		}
	}
	return members, nil
}

// ServersOf are the addresses at which a record's container has its name server: those of
// its gateways.
func ServersOf(r *record.Record) (servers []netip.Addr) {
	var result types100.Result
	if json.Unmarshal(r.Result, &result) != nil {
		return nil
	}
	return Gateways(&result, r.IfName)
}

// Gateways are those of a container's interface in a result.
func Gateways(result *types100.Result, ifName string) (gateways []netip.Addr) {
	for _, ip := range conf.AddressesOf(result, ifName) {
		if a, ok := netip.AddrFromSlice(ip.Gateway); ok && !slices.Contains(gateways, a.Unmap()) {
			gateways = append(gateways, a.Unmap())
		}
	}
	return gateways
}
