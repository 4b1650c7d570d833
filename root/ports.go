package root

import (
	"context"
	"net/netip"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/nat"
	"github.com/ambi-cni/ambi/record"
)

// publishes says whether ambi itself publishes the ports.
func publishes(a *conf.Attachment, delegates []conf.Delegate) bool {
	if len(a.Ports) == 0 || a.NetConf.Portmap.Backend == conf.BackendNone {
		return false
	}
	return !slices.ContainsFunc(delegates, func(d conf.Delegate) bool { return d.Capabilities["portMappings"] })
}

// portsFree returns what is to publish the ports, nil when nothing is, after it
// made sure that it could: a port in use is found before the first delegate runs.
func (n *Network) portsFree(ctx context.Context, a *conf.Attachment, m maker, prev *types100.Result) (nat.Backend, error) {
	if !publishes(a, m.chain.Delegates) {
		return nil, nil
	}
	backend, err := nat.Open(a.NetConf.Portmap.Backend)
	if err != nil {
		return nil, err
	}
	p, err := foreseen(a, m, prev)
	if err != nil {
		return nil, err
	}
	n.unasked = len(p.Ports) < len(a.Ports)
	p.Ports, n.Record.Ports = n.servable(a.Key, p.Ports, p.IPs), n.servable(a.Key, a.Ports, p.IPs)
	if len(n.Record.Ports) == 0 {
		return nil, nil
	}
	return backend, n.free(ctx, backend, p)
}

// free asks whether the ports could be published, and notes the sockets that hold them
// for the container.
func (n *Network) free(ctx context.Context, backend nat.Backend, p nat.Published) (err error) {
	n.reserved, err = backend.Free(ctx, p)
	if conf.HasCode(err, conf.ErrPortInUse) {
		if p.Reserved = n.reservedForSiblings(p.Owner); len(p.Reserved) > 0 {
			n.reserved, err = backend.Free(ctx, p)
		}
	}
	return err
}

// reservedForSiblings are the sockets that held the ports for the container when its
// other attachments were made.
func (n *Network) reservedForSiblings(key conf.Key) (inodes []uint32) {
	for _, r := range n.siblings(key) {
		inodes = append(inodes, r.Published.Reserved...)
	}
	return inodes
}

// foreseen is what is known of the ports to be published before the container has
// addresses. When not even their families are known, the ports of every address
// are left out: they may turn out to be of the other family than those in use.
func foreseen(a *conf.Attachment, m maker, prev *types100.Result) (p nat.Published, err error) {
	p = nat.Published{Owner: a.Key, Ports: a.Ports}
	if len(m.chain.Delegates) == 0 && prev != nil {
		p.IPs, _, err = nat.Targets(containerIPs(prev, a.IfName))
		return p, err
	}
	v4, v6 := m.families()
	if !v4 && !v6 {
		v4, v6 = true, true
		p.Ports = slices.DeleteFunc(slices.Clone(a.Ports), func(m conf.PortMapping) bool { return !m.HostIP.IsValid() })
	}
	if v4 {
		p.IPs = append(p.IPs, netip.IPv4Unspecified())
	}
	if v6 {
		p.IPs = append(p.IPs, netip.IPv6Unspecified())
	}
	return p, nil
}

// families says which addresses the container is going to have, as far as is known.
func (m maker) families() (v4, v6 bool) {
	if m.builtIn != nil {
		return true, m.Config.Subnet6.IsValid()
	}
	return m.chain.Families()
}

func (n *Network) publish(ctx context.Context, a *conf.Attachment, backend nat.Backend, result *types100.Result) error {
	ips, refused, err := nat.Targets(containerIPs(result, a.IfName))
	if err != nil {
		return err
	}
	if len(refused) > 0 {
		n.Log.Warn("addresses of the result that are not the container's", "attachment", a.Key, "addresses", refused)
	}
	if n.Record.Ports = n.servable(a.Key, n.Record.Ports, ips); len(n.Record.Ports) == 0 {
		return nil
	}
	if n.unasked {
		_ = n.free(ctx, backend, nat.Published{Owner: a.Key, IPs: ips, Ports: n.Record.Ports}) // Add says so, or can do more
	}
	n.Record.Published = &record.Published{
		Backend: conf.Backend(backend.Name()), IPs: ips, SNAT: a.NetConf.Portmap.SNAT,
		Reserved: n.reserved,
	}
	if err := n.Store.Save(n.Record); err != nil {
		return err
	}
	// Only with the container's addresses it is known that somebody else has a port
	// when the delegates do not tell their families before.
	err = backend.Add(ctx, Published(n.Record))
	if conf.HasCode(err, conf.ErrPortInUse) {
		n.Evict(ctx)
		err = backend.Add(ctx, Published(n.Record))
	}
	return err
}

// unpublish takes the ports back. What the kernel remembers of them is to be forgotten when the
// interface is gone.
func (n *Network) unpublish(ctx context.Context, a *conf.Attachment) (forget func() error, err error) {
	nothing := func() error { return nil }
	if n.Record != nil {
		if n.Record.Published == nil {
			return nothing, nil
		}
		backend, err := nat.Open(n.Record.Published.Backend)
		if err != nil {
			return nothing, err
		}
		return backend.Unpublish(ctx, Published(n.Record))
	}
	if a.NetConf.Portmap.Backend == conf.BackendNone {
		return nothing, nil
	}
	// No record: whatever the kernel has of this owner. The caller may have lost
	// runtimeConfig, so no ports is no proof that there were none.
	backend, err := nat.Open(a.NetConf.Portmap.Backend)
	if err != nil {
		n.Log.Warn("DEL without a record: looking for published ports", "error", err)
		return nothing, nil
	}
	result := n.lastResult(a)
	p := nat.Published{Owner: a.Key, Ports: a.Ports, SNAT: a.NetConf.Portmap.SNAT}
	if result != nil {
		p.IPs = containerIPs(result, a.IfName)
	}
	return backend.Unpublish(ctx, p)
}

// Published is what a record says is published.
func Published(r *record.Record) nat.Published {
	return nat.Published{Owner: r.Key, IPs: r.Published.IPs, Ports: r.Ports, SNAT: r.Published.SNAT, Reserved: r.Published.Reserved}
}

// containerIPs are the addresses of the container's interface in a result.
func containerIPs(result *types100.Result, ifName string) []netip.Addr {
	var ips []netip.Addr
	for _, ip := range conf.AddressesOf(result, ifName) {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			ips = append(ips, addr.Unmap())
		}
	}
	return ips
}
