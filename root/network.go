package root

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/bridge"
	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/delegate"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/inside"
	"github.com/ambi-cni/ambi/portmap/nat"
	"github.com/ambi-cni/ambi/record"
)

// Network is the network of one attachment as root: the built-in network or delegates
// make the interface, then the ports are published.
type Network struct {
	Store  *record.Store
	Record *record.Record // of this attachment; nil on DEL without a readable one, for STATUS and GC
	Log    *slog.Logger

	// Step is called at the end of each step of a verb with its name, for a log of
	// what took how long.
	Step func(name string)
	// Evict takes down the dead attachments that have a port which ADD wants.
	Evict func(ctx context.Context)

	reserved []uint32 // sockets that hold the ports for the container, for the record
	unasked  bool     // before the delegates it was not known of all ports whether they are free
}

// Add makes the interface, then publishes the ports. The record is saved before the first
// change and after each delegate, so that DEL knows the addresses also when ADD is
// killed; those of the built-in network it finds without.
func (n *Network) Add(ctx context.Context, a *conf.Attachment) (*types100.Result, error) {
	defer n.oneAtATime(ctx, a)()
	m, err := n.choose(a)
	if err != nil {
		return nil, err
	}
	defer m.close()
	result, err := PrevResult(a.NetConf)
	if err != nil {
		return nil, err
	}
	if err := m.ready(a, result); err != nil {
		return nil, err
	}
	n.Step("look whether the interface can be made")
	backend, err := n.portsFree(ctx, a, m, result)
	if err != nil {
		return nil, err
	}
	n.Step("look whether the ports are free")
	if err := n.recordMaker(m); err != nil {
		return nil, err
	}
	n.Step("save the record")
	if result, err = n.makeInterface(ctx, a, m, result); err != nil {
		return nil, err
	}
	if backend != nil {
		if err := n.publish(ctx, a, backend, result); err != nil {
			return nil, err
		}
		n.Step("publish the ports")
	}
	if m.builtIn != nil && a.NetConf.Bridge.Names {
		result.DNS, err = n.serveNames(ctx, a, result)
		return result, err
	}
	result.DNS = a.NetConf.DNSFor(result.DNS)
	return result, nil
}

// ready says, before anything is changed, why the interface cannot be made.
func (m maker) ready(a *conf.Attachment, prev *types100.Result) error {
	if m.builtIn != nil {
		return m.builtIn.ready(a)
	}
	if err := unsupported(a, m.chain.Delegates); err != nil {
		return err
	}
	return m.chain.Ready(prev)
}

// recordMaker saves what makes the interface.
func (n *Network) recordMaker(m maker) error {
	if m.builtIn != nil {
		n.Record.Bridge = bridge.BridgeName(m.Config, m.Name)
	}
	n.Record.DisableCheck = m.chain.DisableCheck
	for _, d := range m.chain.Delegates {
		n.Record.Delegates = append(n.Record.Delegates, d.Raw)
	}
	return n.Store.Save(n.Record)
}

// makeInterface has the interface made, if another plugin has not.
func (n *Network) makeInterface(ctx context.Context, a *conf.Attachment, m maker, prev *types100.Result) (result *types100.Result, err error) {
	switch {
	case m.builtIn != nil:
		if result, err = m.Add(ctx, m.container, a); err == nil {
			n.Step("built-in network")
		}
		return result, err
	case len(m.chain.Delegates) == 0:
		return prev, nil
	}
	m.chain.AfterEach, m.chain.NetnsInode = n.note, n.Record.Netns.Inode
	if err := n.busy(m.chain, func() (err error) {
		result, err = m.chain.Add(ctx, prev)
		return err
	}); err != nil {
		return nil, err
	}
	n.Step("delegates")
	return result, fillIn(result, a)
}

// oneAtATime keeps other ADDs of built-in networks out of the container's namespace
// until done is called: engines attach the networks of a container side by side, and
// each would see that there is no default route yet and make one. The lock is on the
// namespace itself, so nothing is left of it. The container can take it, too, which
// is no reason to fail: after the wait ADD goes on without.
func (n *Network) oneAtATime(ctx context.Context, a *conf.Attachment) (done func()) {
	if !a.NetConf.BuiltIn() {
		return func() {}
	}
	f, _, err := record.OpenNetns(a.NetnsPath)
	if err != nil {
		return func() {} // the next who opens it has the error
	}
	lockCtx, cancel := record.LockContext(ctx)
	defer cancel()
	if err := flock.Lock(lockCtx, f, flock.Exclusive); err != nil {
		n.Log.Warn("going on beside another ADD in the container's namespace", "attachment", a.Key, "error", err)
	}
	n.Step("lock the namespace")
	return func() { f.Close() }
}

// fillIn adds what a delegate left out of the container's interface: plugins
// before 1.1.0 do not tell the MTU. An interface that is not there is another thing
// than a link, such as a DPDK device or the socket of a virtual machine, and is left as
// it is.
func fillIn(result *types100.Result, a *conf.Attachment) error {
	i := conf.InterfaceOf(result, a.IfName)
	if i == nil || (i.Mtu != 0 && i.Mac != "") {
		return nil
	}
	link, err := inside.Link(a.NetnsPath, a.IfName)
	if err != nil {
		return fmt.Errorf("the interface of the delegates' result: %w",
			record.NetnsError(a.NetnsPath, err.Error(), "it must be one that this user may enter"))
	}
	if link == nil {
		return nil
	}
	i.Mtu, i.Mac = link.Attrs().MTU, link.Attrs().HardwareAddr.String()
	return nil
}

// Check has who made the interface look at it, and compares the published ports with the kernel.
func (n *Network) Check(ctx context.Context, a *conf.Attachment) error {
	m, err := n.choose(a)
	if err != nil {
		return err
	}
	defer m.close()
	result, err := PrevResult(a.NetConf)
	if err != nil {
		return err
	}
	if m.builtIn != nil {
		err = m.check(ctx, a, n.lastResult(a), result)
	} else {
		err = m.chain.Check(ctx, result)
	}
	if err != nil {
		return err
	}
	if err := n.settleNames(ctx, a.Network); err != nil {
		return err
	}
	if n.Record.Published == nil {
		return nil
	}
	backend, err := nat.Open(n.Record.Published.Backend)
	if err != nil {
		return err
	}
	return backend.Check(ctx, Published(n.Record))
}

// Del takes back the ports, then the interface: the delegates in reverse. The interface,
// and with it the address, is left alone while rules bound to it remain (cni#924).
func (n *Network) Del(ctx context.Context, a *conf.Attachment) error {
	if n.Record != nil && !n.Record.Saved() {
		return nil
	}
	if err := n.leaveNames(); err != nil {
		return err
	}
	if err := record.AwaitEnd(ctx, n.Store.Path(a.Key, "busy")); err != nil {
		return fmt.Errorf("delegates of a killed ADD: %w", err)
	}
	forget, err := n.unpublish(ctx, a)
	if err != nil {
		return errors.Join(fmt.Errorf("taking back the ports of %s, the address is not released: %w", a.Key, err), forget())
	}
	n.Step("take back the ports")
	err = n.takeInterface(ctx, a)
	err = errors.Join(err, forget())
	n.Step("forget the ports' conversations")
	return err
}

// takeInterface takes back the interface, by whom it was made.
func (n *Network) takeInterface(ctx context.Context, a *conf.Attachment) error {
	m, err := n.choose(a)
	if err != nil {
		return err
	}
	if m.builtIn != nil {
		defer m.close()
		err := m.del(ctx, n.Record, a, n.lastResult(a))
		n.Step("built-in network")
		return errors.Join(err, n.settleNames(ctx, a.Network))
	}
	return n.delChain(ctx, a, m.chain)
}

func (n *Network) delChain(ctx context.Context, a *conf.Attachment, chain *delegate.Chain) error {
	if n.Record != nil {
		chain.NetnsGone = n.Record.Netns.Gone()
		chain.NetnsKnown, chain.NetnsInode = !chain.NetnsGone, n.Record.Netns.Inode
	}
	if len(chain.Delegates) == 0 {
		return nil
	}
	result := n.lastResult(a)
	err := n.busy(chain, func() error { return chain.Del(ctx, result) })
	n.Step("delegates")
	return err
}

// lastResult is the most that is known of what ADD returned; nil when nothing is.
func (n *Network) lastResult(a *conf.Attachment) *types100.Result {
	if n.Record != nil && n.Record.Result != nil {
		if result, err := delegate.ParseResult(n.Record.Result, types100.ImplementedSpecVersion); err == nil {
			return result
		}
	}
	result, err := PrevResult(a.NetConf)
	if err != nil {
		n.Log.Warn("DEL without a readable prevResult", "error", err)
	}
	return result
}

// Status is STATUS: every delegate found, those that know the verb asked, or the built-in
// network able to take a container; and a firewall to publish ports with.
func (n *Network) Status(ctx context.Context, a *conf.Attachment) error {
	m, err := n.choose(a)
	if err != nil {
		return err
	}
	defer m.close()
	if a.NetConf.Capabilities["portMappings"] && a.NetConf.Portmap.Backend != conf.BackendNone {
		if _, err := nat.Open(a.NetConf.Portmap.Backend); err != nil {
			return notAvailable(err)
		}
	}
	switch {
	case m.cannot != nil:
		return notAvailable(m.cannot)
	case m.builtIn == nil:
		return m.chain.Status(ctx)
	}
	return notAvailable(m.builtIn.Status())
}

// notAvailable is code 50: why ADD could not work.
func notAvailable(err error) error {
	if err == nil {
		return nil
	}
	return types.NewError(conf.ErrPluginNotAvailable, conf.Message(err), conf.Remedy(err))
}
