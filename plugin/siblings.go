package plugin

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/nat"
	"github.com/ambi-cni/ambi/record"
)

// siblings are the records of the container's other attachments that publish ports.
func (n *rootNetwork) siblings(key conf.Key) (all []*record.Record) {
	keys, err := n.store.Siblings(key)
	if err != nil {
		n.log.Warn("looking for other attachments of the container", "attachment", key, "error", err)
	}
	for _, sibling := range keys {
		if r, err := n.store.Load(sibling); err == nil && r.Published != nil {
			all = append(all, r)
		}
	}
	return all
}

// servable are the mappings without those that cannot be published to these addresses
// and need not be, since a sibling publishes them: a network without addresses, or
// with those of one family, beside one that has them.
func (n *rootNetwork) servable(key conf.Key, ports []conf.PortMapping, ips []netip.Addr) []conf.PortMapping {
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

// claim has a new attachment publish what siblings do, if the container's default
// route leads over it and not over them: what the container answers to clients leaves
// by that route. The siblings' locks are taken in the order of their names, and
// nobody may hold one when this is called. The ADD is complete, so a failure is told
// and is not an error.
func (v *verbs) claim(ctx context.Context, store *record.Store, r *record.Record) {
	siblings := (&rootNetwork{store: store, log: v.log}).siblings(r.Key)
	siblings = slices.DeleteFunc(siblings, func(s *record.Record) bool {
		_, clash := conf.FirstClash(r.Ports, s.Ports)
		return !clash || s.Published.Backend != r.Published.Backend
	})
	if len(siblings) == 0 || r.Netns.WayOut() != r.IfName {
		return
	}
	if err := v.claimFrom(context.WithoutCancel(ctx), store, r, siblings); err != nil {
		v.log.Warn("publishing on the attachment with the default route; \"ambi restore\" publishes what is missing", "attachment", r.Key, "error", err)
	}
}

func (v *verbs) claimFrom(ctx context.Context, store *record.Store, r *record.Record, siblings []*record.Record) error {
	all := append([]*record.Record{r}, siblings...)
	inOrder := slices.Clone(all)
	slices.SortFunc(inOrder, func(a, b *record.Record) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	lockCtx, cancel := lockContext(ctx)
	defer cancel()
	for _, locked := range inOrder {
		unlock, err := store.Lock(lockCtx, locked.Key)
		if err != nil {
			return err
		}
		defer unlock()
	}
	backend, err := nat.Open(r.Published.Backend)
	if err != nil {
		return err
	}
	var wanted []nat.Published
	for i, old := range all {
		now, err := store.Load(old.Key)
		if err != nil || now.State != record.Ready || now.Published == nil {
			continue // it went meanwhile
		}
		wanted = append(wanted, published(now))
		if i > 0 {
			if err := backend.Del(ctx, published(now)); err != nil {
				return err
			}
		}
	}
	_, err = backend.Restore(ctx, wanted)
	return err
}
