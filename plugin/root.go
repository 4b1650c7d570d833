package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/delegate"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/portmap/nat"
	"github.com/ambi-cni/ambi/record"
)

// rootNetwork runs the delegates and publishes host ports itself.
type rootNetwork struct {
	store  *record.Store
	record *record.Record // nil without a readable one
	log    *verbLog

	evict    func(ctx context.Context) (alive []*record.Record) // see rivals.go
	reserved []uint32                                           // sockets that hold the ports for the container, for the record
}

// Add runs the delegates in order, then publishes the ports. The record is saved
// before the first change and after each delegate, so that DEL knows the
// addresses also when ADD is killed.
func (n *rootNetwork) Add(ctx context.Context, a *conf.Attachment) (*types100.Result, error) {
	chain, err := n.chain(a)
	if err != nil {
		return nil, err
	}
	if err := unsupported(a, chain.Delegates); err != nil {
		return nil, err
	}
	result, err := prevResult(a.NetConf)
	if err != nil {
		return nil, err
	}
	if err := chain.Ready(result); err != nil {
		return nil, err
	}
	n.log.step("find the delegates")
	backend, err := n.portsFree(ctx, a, chain, result)
	if err != nil {
		return nil, err
	}
	n.log.step("look whether the ports are free")
	n.record.DisableCheck = chain.DisableCheck
	for _, d := range chain.Delegates {
		n.record.Delegates = append(n.record.Delegates, d.Raw)
	}
	if err := n.store.Save(n.record); err != nil {
		return nil, err
	}
	n.log.step("save the record")
	if len(chain.Delegates) > 0 {
		chain.AfterEach, chain.NetnsInode = n.note, n.record.Netns.Inode
		err := n.busy(chain, func() (err error) {
			result, err = chain.Add(ctx, result)
			return err
		})
		if err != nil {
			return nil, withRemedy(err, a)
		}
		if err := fillIn(result, a); err != nil {
			return nil, err
		}
		n.log.step("delegates")
	}
	if backend != nil {
		if err := n.publish(ctx, a, backend, result); err != nil {
			return nil, err
		}
		n.log.step("publish the ports")
	}
	result.DNS = a.NetConf.DNSFor(result.DNS)
	return result, nil
}

// unsupported refuses what the runtime asks for and nobody here gives, rather than
// leaving it out.
func unsupported(a *conf.Attachment, delegates []conf.Delegate) error {
	if !a.NetConf.RuntimeConfig.Wants("bandwidth") || slices.ContainsFunc(delegates, func(d conf.Delegate) bool { return d.Capabilities["bandwidth"] }) {
		return nil
	}
	return conf.Unsupported("runtimeConfig.bandwidth", a.NetConf.RuntimeConfig.Raw["bandwidth"],
		"no delegate here limits it; put the plugin bandwidth behind ambi in the conflist, or take the capability bandwidth away from ambi's entry")
}

// withRemedy adds what to do to an error that bridge of the built-in chain leaves
// without.
func withRemedy(err error, a *conf.Attachment) error {
	var e *types.Error
	if !builtIn(a.NetConf) || !errors.As(err, &e) || !strings.Contains(e.Msg, "already has an IP address different from") {
		return err
	}
	remedied := conf.Errorf(types.ErrInvalidNetworkConfig,
		"%s; the bridge has the address of a bridge.subnet of before: when no container is on it any more delete it (ip link del %s), or set the key bridge.name to another one",
		e.Msg, delegate.BridgeName(a.NetConf.Bridge, a.Network))
	remedied.Details = e.Details
	return remedied
}

// busy has the delegates, and what they start, hold the lock BASE.busy while run
// runs them. When we are killed the kernel kills the delegate with us, but not
// what that has started, such as its IPAM plugin; the next verb waits for that.
func (n *rootNetwork) busy(chain *delegate.Chain, run func() error) error {
	path := n.store.Path(chain.Attachment.Key, "busy")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		defer f.Close()
		err = flock.Try(f, flock.Exclusive)
	}
	if err != nil {
		return fmt.Errorf("lock %s of the delegates: %w", path, err)
	}
	defer func() {
		// A delegate may leave a daemon behind, which is not to be waited for.
		_ = flock.Unlock(f)
		os.Remove(path)
	}()
	chain.Inherit = f
	return run()
}

func (n *rootNetwork) note(_ int, result *types100.Result) (err error) {
	if n.record.Result, err = json.Marshal(result); err != nil {
		return err
	}
	return n.store.Save(n.record)
}

// chain is the delegates of the record when there is one, since the caller may
// have edited its configuration; else those of the configuration; else the
// built-in default chain, unless another plugin has made the interface.
func (n *rootNetwork) chain(a *conf.Attachment) (*delegate.Chain, error) {
	chain := &delegate.Chain{Attachment: a, Logger: n.log.With(n.log.about), CacheDir: n.store.Dir(), Timeout: a.NetConf.DelegateTimeout}
	var err error
	switch {
	case n.record != nil && n.record.Saved():
		chain.DisableCheck = n.record.DisableCheck
		for i, raw := range n.record.Delegates {
			d, err := conf.ParseDelegate(fmt.Sprintf("record.delegates[%d]", i), raw)
			if err != nil {
				return nil, err
			}
			chain.Delegates = append(chain.Delegates, d)
		}
	case !builtIn(a.NetConf):
		err = wrap(a.NetConf)
		chain.Delegates, chain.DisableCheck, chain.DisableGC = a.NetConf.Delegates, a.NetConf.DisableCheck, a.NetConf.DisableGC
	case a.NetConf.PrevResult == nil || n.unchained(a):
		chain.Delegates, err = delegate.Default(a.NetConf.Bridge, a.Network, filepath.Join(n.store.Dir(), "ipam"), a.Path, delegate.DefaultRoutes(a.NetnsPath)...)
	}
	return chain, err
}

// builtIn says whether the chain of an entry is the built-in one, if it has any.
func builtIn(n *conf.NetConf) bool { return len(n.Delegates) == 0 && n.DelegatesFrom == "" }

// unchained says, for a DEL or CHECK without a record, that prevResult is our own
// result and not that of a plugin before us: CHECK and DEL always have one.
func (n *rootNetwork) unchained(a *conf.Attachment) bool {
	if n.record != nil {
		return false
	}
	result, err := prevResult(a.NetConf)
	if err != nil || result == nil {
		return true
	}
	bridge := delegate.BridgeName(a.NetConf.Bridge, a.Network)
	return slices.ContainsFunc(result.Interfaces, func(i *types100.Interface) bool { return i.Name == bridge && i.Sandbox == "" })
}

// prevResult is the configuration's prevResult in the newest form; nil without.
func prevResult(n *conf.NetConf) (*types100.Result, error) {
	if n.PrevResult == nil {
		return nil, nil
	}
	return parseResult(n.PrevResult, n.CNIVersion)
}

// parseResult reads a result; one without a cniVersion has that of the
// configuration (cni#895).
func parseResult(raw json.RawMessage, cniVersion string) (*types100.Result, error) {
	result, err := delegate.ParseResult(raw, cniVersion)
	if err != nil {
		return nil, conf.Errorf(types.ErrDecodingFailure, "key \"prevResult\": %v", err)
	}
	return result, nil
}

// fillIn adds what a delegate left out of the container's interface: plugins
// before 1.1.0 do not tell the MTU. An interface that is not there is another thing than a link, such as a DPDK device
// or the socket of a virtual machine, and has none of ours to tell.
func fillIn(result *types100.Result, a *conf.Attachment) error {
	for _, i := range result.Interfaces {
		if i.Name != a.IfName || i.Sandbox == "" || (i.Mtu != 0 && i.Mac != "") {
			continue
		}
		link, err := linkInside(a)
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			continue
		}
		if err != nil {
			return fmt.Errorf("the interface of the delegates' result: %w", err)
		}
		i.Mtu, i.Mac = link.Attrs().MTU, link.Attrs().HardwareAddr.String()
	}
	return nil
}

// linkInside looks up CNI_IFNAME in CNI_NETNS.
func linkInside(a *conf.Attachment) (netlink.Link, error) {
	ns, err := netns.GetFromPath(a.NetnsPath)
	if err != nil {
		return nil, record.NetnsError(a.NetnsPath, err.Error(), "give the path of a network namespace")
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, record.NetnsError(a.NetnsPath, err.Error(), "it must be one that this user may enter")
	}
	defer handle.Close()
	link, err := handle.LinkByName(a.IfName)
	if err != nil {
		return nil, fmt.Errorf("interface %s in %s: %w", a.IfName, a.NetnsPath, err)
	}
	return link, nil
}

// publishes says whether ambi itself publishes the ports.
func publishes(a *conf.Attachment, delegates []conf.Delegate) bool {
	if len(a.Ports) == 0 || a.NetConf.Portmap.Backend == conf.BackendNone {
		return false
	}
	return !slices.ContainsFunc(delegates, func(d conf.Delegate) bool { return d.Capabilities["portMappings"] })
}

// portsFree returns what is to publish the ports, nil when nothing is, after it
// made sure that it could: a port in use is found before the first delegate runs.
func (n *rootNetwork) portsFree(ctx context.Context, a *conf.Attachment, chain *delegate.Chain, prev *types100.Result) (nat.Backend, error) {
	if !publishes(a, chain.Delegates) {
		return nil, nil
	}
	backend, err := nat.Open(a.NetConf.Portmap.Backend)
	if err != nil {
		return nil, err
	}
	p, err := foreseen(a, chain, prev)
	if err != nil {
		return nil, err
	}
	p.Ports, n.record.Ports = n.servable(a.Key, p.Ports, p.IPs), n.servable(a.Key, a.Ports, p.IPs)
	if len(n.record.Ports) == 0 {
		return nil, nil
	}
	n.reserved, err = backend.Free(ctx, p)
	if conf.HasCode(err, conf.ErrPortInUse) {
		if p.Reserved = n.reservedForSiblings(a.Key); len(p.Reserved) > 0 {
			n.reserved, err = backend.Free(ctx, p)
		}
	}
	return backend, err
}

// reservedForSiblings are the sockets that held the ports for the container when its
// other attachments were made.
func (n *rootNetwork) reservedForSiblings(key conf.Key) (inodes []uint32) {
	for _, r := range n.siblings(key) {
		inodes = append(inodes, r.Published.Reserved...)
	}
	return inodes
}

// foreseen is what is known of the ports to be published before the container has
// addresses. When not even their families are known, the ports of every address
// are left out: they may turn out to be of the other family than those in use.
func foreseen(a *conf.Attachment, chain *delegate.Chain, prev *types100.Result) (p nat.Published, err error) {
	p = nat.Published{Owner: a.Key, Ports: a.Ports}
	if len(chain.Delegates) == 0 && prev != nil {
		p.IPs, _, err = nat.Targets(containerIPs(prev, a.IfName))
		return p, err
	}
	v4, v6 := chain.Families()
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

func (n *rootNetwork) publish(ctx context.Context, a *conf.Attachment, backend nat.Backend, result *types100.Result) error {
	ips, refused, err := nat.Targets(containerIPs(result, a.IfName))
	if err != nil {
		return err
	}
	if len(refused) > 0 {
		n.log.Warn("addresses of the result that are not the container's", "attachment", a.Key, "addresses", refused)
	}
	if n.record.Ports = n.servable(a.Key, n.record.Ports, ips); len(n.record.Ports) == 0 {
		return nil
	}
	n.record.Published = &record.Published{
		Backend: conf.Backend(backend.Name()), IPs: ips, SNAT: a.NetConf.Portmap.SNAT,
		Reserved: n.reserved,
	}
	if err := n.store.Save(n.record); err != nil {
		return err
	}
	// Only with the container's addresses it is known that somebody else has a port
	// when the delegates do not tell their families before.
	err = backend.Add(ctx, published(n.record))
	if conf.HasCode(err, conf.ErrPortInUse) {
		n.evict(ctx)
		err = backend.Add(ctx, published(n.record))
	}
	return err
}

func published(r *record.Record) nat.Published {
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

// Check asks the delegates and compares the published ports with the kernel.
func (n *rootNetwork) Check(ctx context.Context, a *conf.Attachment) error {
	chain, err := n.chain(a)
	if err != nil {
		return err
	}
	result, err := prevResult(a.NetConf)
	if err != nil {
		return err
	}
	if err := chain.Check(ctx, result); err != nil {
		return err
	}
	if n.record.Published == nil {
		return nil
	}
	backend, err := nat.Open(n.record.Published.Backend)
	if err != nil {
		return err
	}
	return backend.Check(ctx, published(n.record))
}

// Del takes back the ports, then the delegates in reverse. The interface plugin,
// and with it the address, is left alone while rules bound to it remain (cni#924).
func (n *rootNetwork) Del(ctx context.Context, a *conf.Attachment) error {
	if n.record != nil && !n.record.Saved() {
		return nil
	}
	if err := record.AwaitEnd(ctx, n.store.Path(a.Key, "busy")); err != nil {
		return fmt.Errorf("delegates of a killed ADD: %w", err)
	}
	if err := n.unpublish(ctx, a); err != nil {
		return fmt.Errorf("taking back the ports of %s, the address is not released: %w", a.Key, err)
	}
	n.log.step("take back the ports")
	chain, err := n.chain(a)
	if err != nil {
		return err
	}
	if n.record != nil {
		chain.NetnsGone = n.record.Netns.Gone()
		chain.NetnsKnown, chain.NetnsInode = !chain.NetnsGone, n.record.Netns.Inode
	}
	if len(chain.Delegates) == 0 {
		return nil
	}
	result := n.lastResult(a)
	if n.record == nil && builtIn(a.NetConf) && result == nil && !chain.Traces() {
		// A record precedes every change: nothing of ours is here. The entry may be a
		// chained one whose ADD failed, and the interface another plugin's.
		return nil
	}
	err = n.busy(chain, func() error { return chain.Del(ctx, result) })
	n.log.step("delegates")
	return err
}

// lastResult is the most that is known of what ADD returned; nil when nothing is.
func (n *rootNetwork) lastResult(a *conf.Attachment) *types100.Result {
	if n.record != nil && n.record.Result != nil {
		if result, err := delegate.ParseResult(n.record.Result, types100.ImplementedSpecVersion); err == nil {
			return result
		}
	}
	result, err := prevResult(a.NetConf)
	if err != nil {
		n.log.Warn("DEL without a readable prevResult", "error", err)
	}
	return result
}

func (n *rootNetwork) unpublish(ctx context.Context, a *conf.Attachment) error {
	if n.record != nil {
		if n.record.Published == nil {
			return nil
		}
		backend, err := nat.Open(n.record.Published.Backend)
		if err != nil {
			return err
		}
		return backend.Del(ctx, published(n.record))
	}
	if a.NetConf.Portmap.Backend == conf.BackendNone {
		return nil
	}
	// No record: whatever the kernel has of this owner. The caller may have lost
	// runtimeConfig, so no ports is no proof that there were none.
	backend, err := nat.Open(a.NetConf.Portmap.Backend)
	if err != nil {
		n.log.Warn("DEL without a record: looking for published ports", "error", err)
		return nil
	}
	result := n.lastResult(a)
	p := nat.Published{Owner: a.Key, Ports: a.Ports, SNAT: a.NetConf.Portmap.SNAT}
	if result != nil {
		p.IPs = containerIPs(result, a.IfName)
	}
	return backend.Del(ctx, p)
}

// rootStatus is STATUS as root: every delegate found, those that know the verb asked, and a
// firewall to publish ports with.
func (v *verbs) rootStatus(ctx context.Context, store *record.Store) error {
	a := v.attachment
	chain, err := (&rootNetwork{store: store, log: v.log}).chain(a)
	if err != nil {
		return err
	}
	if a.NetConf.Capabilities["portMappings"] && a.NetConf.Portmap.Backend != conf.BackendNone {
		if _, err := nat.Open(a.NetConf.Portmap.Backend); err != nil {
			return conf.Errorf(conf.ErrPluginNotAvailable, "%v", err)
		}
	}
	return v.aloneOnly(chain.Status(ctx))
}

// collectUnrecorded removes what this network has and no record explains:
// addresses with what is bound to them, published ports. Then it passes GC on to
// the delegates that know it.
func (v *verbs) collectUnrecorded(ctx context.Context) error {
	store, err := record.OpenFirst(v.stateDirs)
	if err != nil {
		return err
	}
	lockCtx, cancel := lockContext(ctx)
	defer cancel()
	unlock, err := store.LockAll(lockCtx)
	if err != nil {
		return err
	}
	defer unlock()
	n := &rootNetwork{store: store, log: v.log}
	if v.netConf.ValidAttachments == nil {
		return n.collectPorts(ctx, v)
	}
	chain, err := n.chain(v.attachment)
	if err != nil {
		return errors.Join(n.collectPorts(ctx, v), err)
	}
	return errors.Join(v.collectAddresses(ctx, store, chain), n.collectPorts(ctx, v), v.aloneOnly(chain.GC(ctx, v.netConf.ValidAttachments)))
}

// collectAddresses takes down the attachments that have an address of the network
// but neither a record nor a place in the list of valid ones.
func (v *verbs) collectAddresses(ctx context.Context, store *record.Store, chain *delegate.Chain) error {
	var errs []error
	for _, holder := range chain.Holders() {
		key := conf.Key{Network: v.netConf.Name, ContainerID: holder.ContainerID, IfName: holder.IfName}
		if _, r, err := v.find(key); err == nil && r == nil && v.stale(key, nil) {
			errs = append(errs, annotated(key, v.collectOne(ctx, store, key, nil)))
		}
	}
	return errors.Join(errs...)
}

func (n *rootNetwork) collectPorts(ctx context.Context, v *verbs) error {
	if v.netConf.Portmap.Backend == conf.BackendNone {
		return nil
	}
	backend, err := nat.Open(v.netConf.Portmap.Backend)
	if err != nil {
		v.log.Warn("GC: looking for published ports", "error", err)
		return nil
	}
	owners, err := backend.Owners(ctx, v.netConf.Name)
	if err != nil {
		return fmt.Errorf("listing the owners of published ports: %w", err)
	}
	var errs []error
	for _, owner := range owners {
		if v.netConf.ValidAttachments != nil && !v.stale(owner, nil) {
			continue // the record is lost, but not the container
		}
		damaged, r, err := v.find(owner)
		if damaged != nil && v.netConf.ValidAttachments == nil {
			continue // that is kept, and its ports with it
		}
		if err == nil && r == nil {
			v.log.Warn("GC: removing ports without a record", "attachment", owner)
			errs = append(errs, backend.Del(ctx, nat.Published{Owner: owner}))
		}
	}
	return errors.Join(errs...)
}
