package root

import (
	"context"
	"fmt"
	"log/slog"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/delegate"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/inside"
	"github.com/ambi-cni/ambi/portmap/nat"
	"github.com/ambi-cni/ambi/record"
)

// Network is the network of one attachment as root: delegates that make the interface,
// then the published ports.
type Network struct {
	Store  *record.Store
	Record *record.Record // of this attachment; nil on DEL without a readable one, for STATUS and GC
	Log    *slog.Logger

	// Step is called at the end of each step of a verb with its name, for a log of
	// what took how long.
	Step func(name string)
	// Evict takes down the dead attachments that have a port which ADD wants.
	Evict func(ctx context.Context)

	// For STATUS and GC, which bring neither a prevResult nor the conflist that the
	// entry is in: the folders in which runtimes look for conflists, and every state
	// folder.
	ConflistDirs, StateDirs []string

	reserved []uint32 // sockets that hold the ports for the container, for the record
	unasked  bool     // before the delegates it was not known of all ports whether they are free
}

// Add runs the delegates in order, then publishes the ports. The record is saved
// before the first change and after each delegate, so that DEL knows the
// addresses also when ADD is killed.
func (n *Network) Add(ctx context.Context, a *conf.Attachment) (*types100.Result, error) {
	defer n.oneAtATime(ctx, a)()
	chain, err := n.chain(a)
	if err != nil {
		return nil, err
	}
	if err := unsupported(a, chain.Delegates); err != nil {
		return nil, err
	}
	result, err := PrevResult(a.NetConf)
	if err != nil {
		return nil, err
	}
	if err := chain.Ready(result); err != nil {
		return nil, err
	}
	n.Step("find the delegates")
	backend, err := n.portsFree(ctx, a, chain, result)
	if err != nil {
		return nil, err
	}
	n.Step("look whether the ports are free")
	n.Record.DisableCheck = chain.DisableCheck
	for _, d := range chain.Delegates {
		n.Record.Delegates = append(n.Record.Delegates, d.Raw)
	}
	if err := n.Store.Save(n.Record); err != nil {
		return nil, err
	}
	n.Step("save the record")
	if len(chain.Delegates) > 0 {
		chain.AfterEach, chain.NetnsInode = n.note, n.Record.Netns.Inode
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
		n.Step("delegates")
	}
	if backend != nil {
		if err := n.publish(ctx, a, backend, result); err != nil {
			return nil, err
		}
		n.Step("publish the ports")
	}
	result.DNS = a.NetConf.DNSFor(result.DNS)
	return result, nil
}

// oneAtATime keeps other ADDs of the built-in chain out of the container's namespace
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

// Check asks the delegates and compares the published ports with the kernel.
func (n *Network) Check(ctx context.Context, a *conf.Attachment) error {
	chain, err := n.chain(a)
	if err != nil {
		return err
	}
	result, err := PrevResult(a.NetConf)
	if err != nil {
		return err
	}
	if err := chain.Check(ctx, result); err != nil {
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

// Del takes back the ports, then the delegates in reverse. The interface plugin,
// and with it the address, is left alone while rules bound to it remain (cni#924).
func (n *Network) Del(ctx context.Context, a *conf.Attachment) error {
	if n.Record != nil && !n.Record.Saved() {
		return nil
	}
	if err := record.AwaitEnd(ctx, n.Store.Path(a.Key, "busy")); err != nil {
		return fmt.Errorf("delegates of a killed ADD: %w", err)
	}
	if err := n.unpublish(ctx, a); err != nil {
		return fmt.Errorf("taking back the ports of %s, the address is not released: %w", a.Key, err)
	}
	n.Step("take back the ports")
	chain, err := n.chain(a)
	if err != nil {
		return err
	}
	if n.Record != nil {
		chain.NetnsGone = n.Record.Netns.Gone()
		chain.NetnsKnown, chain.NetnsInode = !chain.NetnsGone, n.Record.Netns.Inode
	}
	if len(chain.Delegates) == 0 {
		return nil
	}
	result := n.lastResult(a)
	if n.Record == nil && a.NetConf.BuiltIn() && result == nil && !chain.Traces() {
		// A record precedes every change: nothing of ours is here. The entry may be a
		// chained one whose ADD failed, and the interface another plugin's.
		return nil
	}
	err = n.busy(chain, func() error { return chain.Del(ctx, result) })
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

// Status is STATUS: every delegate found, those that know the verb asked, and a firewall
// to publish ports with.
func (n *Network) Status(ctx context.Context, a *conf.Attachment) error {
	chain, err := n.chain(a)
	if err != nil {
		return err
	}
	if a.NetConf.Capabilities["portMappings"] && a.NetConf.Portmap.Backend != conf.BackendNone {
		if _, err := nat.Open(a.NetConf.Portmap.Backend); err != nil {
			return conf.Errorf(conf.ErrPluginNotAvailable, "%v", err)
		}
	}
	return n.aloneOnly(a.NetConf, chain.Status(ctx))
}
