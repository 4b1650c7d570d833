package root

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/nat"
	"github.com/ambi-cni/ambi/record"
)

// siblings are the records of the container's other attachments that publish ports.
func (n *Network) siblings(key conf.Key) (all []*record.Record) {
	for _, sibling := range n.siblingKeys(key) {
		if r, err := n.Store.Load(sibling); err == nil && r.Published != nil {
			all = append(all, r)
		}
	}
	return all
}

func (n *Network) siblingKeys(key conf.Key) []conf.Key {
	keys, err := n.Store.Siblings(key)
	if err != nil {
		n.Log.Warn("looking for other attachments of the container", "attachment", key, "error", err)
	}
	return keys
}

// servable are the mappings without those that cannot be published to these addresses
// and need not be, since a sibling publishes them: a network without addresses, or
// with those of one family, beside one that has them.
func (n *Network) servable(key conf.Key, ports []conf.PortMapping, ips []netip.Addr) []conf.PortMapping {
	if !slices.ContainsFunc(ports, func(m conf.PortMapping) bool { return !leads(m, ips) }) {
		return ports
	}
	siblings := n.siblings(key)
	return slices.DeleteFunc(slices.Clone(ports), func(m conf.PortMapping) bool {
		return !leads(m, ips) && slices.ContainsFunc(siblings, func(s *record.Record) bool {
			return slices.Contains(s.Ports, m) && leads(m, s.Published.IPs)
		})
	})
}

// leads says whether one of the addresses is of a family that the mapping is for.
func leads(m conf.PortMapping, ips []netip.Addr) bool {
	return slices.ContainsFunc(ips, func(ip netip.Addr) bool { return !m.HostIP.IsValid() || m.HostIP.Is4() == ip.Is4() })
}

// Claim has a new attachment publish what siblings do, if the container's default
// route leads over it and not over them: what the container answers to clients leaves
// by that route. The siblings' locks are taken in the order of their names, and
// nobody may hold one when this is called. The ADD is complete, so a failure is told
// and is not an error.
func (n *Network) Claim(ctx context.Context) {
	r := n.Record
	siblings := slices.DeleteFunc(n.siblings(r.Key), func(s *record.Record) bool {
		_, clash := conf.FirstClash(r.Ports, s.Ports)
		return !clash || s.Published.Backend != r.Published.Backend
	})
	if len(siblings) == 0 || r.Netns.WayOut() != r.IfName {
		return
	}
	if err := n.claimFrom(context.WithoutCancel(ctx), siblings); err != nil {
		n.Log.Warn("publishing on the attachment with the default route; \"ambi restore\" publishes what is missing", "attachment", r.Key, "error", err)
	}
}

func (n *Network) claimFrom(ctx context.Context, siblings []*record.Record) error {
	all := append([]*record.Record{n.Record}, siblings...)
	inOrder := slices.Clone(all)
	slices.SortFunc(inOrder, func(a, b *record.Record) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	for _, locked := range inOrder {
		unlock, err := n.Store.Lock(ctx, locked.Key)
		if err != nil {
			return err
		}
		defer unlock()
	}
	backend, err := nat.Open(n.Record.Published.Backend)
	if err != nil {
		return err
	}
	var wanted []nat.Published
	var errs []error
	for i, old := range all {
		now, err := n.Store.Load(old.Key)
		if err != nil || now.State != record.Ready || now.Published == nil {
			continue // it went meanwhile
		}
		wanted = append(wanted, Published(now))
		if i > 0 { // whatever fails, what was taken away comes back
			errs = append(errs, backend.Del(ctx, Published(now)))
		}
	}
	_, err = backend.Restore(ctx, wanted)
	return errors.Join(append(errs, err)...)
}
