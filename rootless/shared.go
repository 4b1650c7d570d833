package rootless

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/bridge"
	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/names"
	"github.com/ambi-cni/ambi/nlsock"
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/hub"
	"github.com/ambi-cni/ambi/rootless/link"
	"github.com/ambi-cni/ambi/rootless/plan"
	"github.com/ambi-cni/ambi/rootless/supervisor"
	"github.com/ambi-cni/ambi/scope"
)

// A shared network is a hub (rootless/hub): a user and network namespace in which there is
// what root has on the host, the built-in network with its bridge, and the driver as the way
// out. This process is of the user who made the hub and the containers' namespaces, and so
// has every right over both (package link); it makes the links between them.

// addShared makes the container a member of the network's hub, which it starts when there is
// none. It saves the record before its first change. After an error, Del cleans up.
func (n *Network) addShared(ctx context.Context, a *conf.Attachment) (*types100.Result, error) {
	wanted, err := n.wantedHub(a)
	if err != nil {
		return nil, err
	}
	ns, err := openNamespace(a.NetnsPath)
	if err != nil {
		return nil, err
	}
	// To enter it takes about as long as to start a hub: both are done at a time.
	enter := sync.OnceValues(func() (*insideContainer, error) { return enterOpened(ns) })
	go func() { _, _ = enter() }() // its error is asked for below
	defer func() {
		if container, err := enter(); err == nil {
			container.close()
		}
	}()
	n.step("open the namespace")
	sockets, err := forward.Listen(a.Ports)
	if err != nil {
		return nil, err
	}
	defer func() { forward.CloseSockets(sockets) }()
	n.step("bind the ports")
	// Up to here nothing has to be undone.
	h, err := hub.Of(n.Store, a.Network)
	if err != nil {
		return nil, err
	}
	n.Record.Hub, n.Record.Bridge = h.Name, wanted.Bridge
	if err := n.Store.Save(n.Record); err != nil {
		return nil, err
	}
	n.step("save the record")
	n.outside = true
	state, lock, err := n.enterHub(ctx, h, a, wanted)
	if err != nil {
		return nil, err
	}
	n.outside = false
	defer lock.Close()
	n.Record.Supervisor = &state.Supervisor
	container, err := enter()
	if err != nil {
		return nil, err
	}
	n.step("enter the namespace")
	return n.join(ctx, h, state, container, a, sockets)
}

// wantedHub is what the hub of the attachment's network has to be.
func (n *Network) wantedHub(a *conf.Attachment) (*hub.State, error) {
	driverSide := *a
	driverSide.IfName, driverSide.IPs, driverSide.MAC = hub.DriverEnd, nil, ""
	if err := unsupportedShared(a); err != nil {
		return nil, err
	}
	command, p, err := n.choose(&driverSide)
	if err != nil {
		return nil, err
	}
	if p.IPv6.Enabled() {
		// The network is left to the members: the driver answers on its link-local address.
		p.IPv6.Addresses = []netip.Prefix{netip.PrefixFrom(p.IPv6.First(), 128)}
		p.IPv6.Gateway = driver.LinkLocalGateway
	}
	subnet := a.NetConf.Bridge.Subnet
	if p.IPv4.Movable && p.IPv4.Move(func(network netip.Prefix) bool { return subnet.IsValid() && subnet.Overlaps(network) }) {
		command.Move(p.IPv4.Network())
	}
	state := &hub.State{Network: a.Network, Driver: *command, Plan: *p}
	if a.NetConf.BuiltIn() {
		state.Bridge = bridge.BridgeName(a.NetConf.Bridge, a.Network)
	}
	return state, nil
}

func unsupportedShared(a *conf.Attachment) error {
	if r := a.NetConf.Rootless; driver.Of(r.Driver).Publishes(r.PortHandler) {
		return conf.Mendf(conf.Unsupported("rootless.portHandler", r.PortHandler, "the ports of a shared network are published by rootlessport"), "set rootless.network to private")
	}
	if !a.NetConf.BuiltIn() {
		return takeable(a.NetConf) // of the rest the delegates say
	}
	return a.Bandwidth.Validate()
}

// takeable says whether the supervisor, which runs the delegates, takes the configuration.
func takeable(c *conf.NetConf) error {
	if len(c.Raw) <= supervisor.LargestConfig {
		return nil
	}
	return conf.Mendf(conf.Errorf(types.ErrInvalidNetworkConfig, "the configuration has %d bytes, and the delegates of a shared network can have %d", len(c.Raw), supervisor.LargestConfig), "make it smaller")
}

// enterHub returns the running hub and a lock that keeps it running.
func (n *Network) enterHub(ctx context.Context, h hub.Hub, a *conf.Attachment, wanted *hub.State) (*hub.State, *os.File, error) {
	lockCtx, cancel := record.LockContext(ctx)
	defer cancel()
	lock, err := h.Lock(lockCtx, flock.Shared)
	if err != nil {
		return nil, nil, err
	}
	state, err := answering(h)
	if err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	if state == nil {
		lock.Close()
		if lock, err = h.Lock(lockCtx, flock.Exclusive); err != nil {
			return nil, nil, err
		}
		n.step("lock the hub")
		if state, err = answering(h); err == nil && state == nil {
			state, err = n.startHub(ctx, h, a, wanted)
			n.step("start the hub")
		}
		if err != nil {
			return nil, nil, errors.Join(err, lock.Close())
		}
		// Others may come along, and nobody ends it: no one could be faster, being a member.
		if err := flock.Try(lock, flock.Shared); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("lock of the hub: %w", err), lock.Close())
		}
	}
	if err := sameOptions(a, state, wanted); err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	return state, lock, nil
}

// answering is the state of a running hub that is not about to leave.
func answering(h hub.Hub) (*hub.State, error) {
	state, err := h.Running()
	if state == nil {
		return nil, err
	}
	if err := Stopped(h, "network "+state.Network); err != nil {
		return nil, err
	}
	return state, nil
}

// Stopped is the error of a hub that cannot answer, as somebody has stopped its supervisor, or
// its keeper, which would start another one.
func Stopped(h hub.Hub, whose string) error {
	p := processOf(h)
	if !p.Stopped() {
		return nil
	}
	return conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "%s: its supervisor (process %d) was stopped by a signal", whose, p.PID), "let it go on: kill -CONT %d", p.PID)
}

// processOf is the supervisor of now, or its keeper. Where nobody has the socket it is the first
// supervisor, which may be leaving; nil where that is not known either.
func processOf(h hub.Hub) *record.Process {
	p, err := h.Present()
	if state := h.State(); err != nil && state != nil {
		return &state.Supervisor
	}
	return p
}

// hasEnded says that a hub whose process was p has ended, or is about to, and waits for it then.
func hasEnded(ctx context.Context, h hub.Hub, p *record.Process) bool {
	return !h.Lives() && (p == nil || p.Stop(ctx) == nil)
}

// sameOptions: the driver is the network's, and its options those of the first member.
func sameOptions(a *conf.Attachment, have, wanted *hub.State) error {
	// The one that "auto" found first serves the later ones as well.
	asked := a.NetConf.Rootless.Driver != conf.DriverAuto || have.Driver.Driver == wanted.Driver.Driver
	if have.Bridge == wanted.Bridge && (!asked || have.Driver.Same(&wanted.Driver)) {
		return nil
	}
	return conf.Mendf(conf.Errorf(types.ErrInvalidNetworkConfig, "network %q is running with other options: its driver is %s %q and bridge %s, and this container asks for %s %q and bridge %s",
		a.Network, have.Driver.Path, have.Driver.Args, have.Bridge, wanted.Driver.Path, wanted.Driver.Args, wanted.Bridge),
		"the options in rootless are those of the whole network: remove its containers first, or set rootless.network to private")
}

// startHub starts the hub of the network, after what may be left of another.
func (n *Network) startHub(ctx context.Context, h hub.Hub, a *conf.Attachment, wanted *hub.State) (*hub.State, error) {
	if err := endSupervisor(ctx, h); err != nil {
		return nil, err
	}
	if err := h.Clear(); err != nil {
		return nil, fmt.Errorf("folder of the hub: %w", err)
	}
	l := &launcher{config: &supervisor.Config{
		Hub:    &supervisor.Hub{Network: a.Network, Name: h.Name, StateDir: n.Store.Dir(), Bridge: wanted.Bridge, Plan: wanted.Plan},
		Driver: wanted.Driver, LogLevel: a.NetConf.LogLevel, Hardening: a.NetConf.Hardening,
	}, way: scope.Find(n.RuntimeDir)}
	if wanted.Private != nil {
		l.config.Hub.Bridge = hub.HostEnd
		l.config.Hub.Only = &supervisor.Only{Key: a.Key, Netns: n.Record.Netns, Plan: *wanted.Private}
	}
	if err := l.open(h); err != nil {
		return nil, err
	}
	defer l.close()
	process, cgroup, err := l.start(ctx)
	if err != nil {
		scope.RemoveCgroup(cgroup)
		return nil, err
	}
	state := *wanted
	state.Supervisor, state.Cgroup = process, cgroup
	return &state, h.Save(&state)
}

func controlOfHub(h hub.Hub) supervisor.Control { return supervisor.Control(h.Path("sock")) }

// mute is the error of a hub that does not answer.
func mute(err error) error {
	if errors.Is(err, supervisor.ErrBeset) {
		return conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "its supervisor is there, but %v", err), "find them (ss -xp shows who is connected to the socket), end them and try again")
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "its supervisor has ended: %v", err), "call DEL and ADD again; the log may say why")
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "its supervisor is there and does not answer in time"), "try again; if it stays so, end that process (kill -9): its keeper starts another")
}

// endSupervisor ends the processes of a hub. A supervisor ends its keeper first; of one that
// had to be killed the keeper starts another, whose turn it is then.
func endSupervisor(ctx context.Context, h hub.Hub) error {
	const tries, pause, patience = 100, 5 * time.Millisecond, time.Minute
	deadline := time.Now().Add(patience)
	for range tries {
		if p := processOf(h); p != nil {
			if err := p.Stop(ctx); err != nil {
				return fmt.Errorf("stopping the supervisor of the hub: %w", err)
			}
		}
		if !h.Lives() || ctx.Err() != nil || time.Now().After(deadline) {
			break
		}
		time.Sleep(pause) // the keeper has not noticed yet that its twin has ended
	}
	if err := record.AwaitEnd(ctx, h.Path("alive")); err != nil {
		return fmt.Errorf("the hub: %w", err)
	}
	if state := h.State(); state != nil {
		scope.RemoveCgroup(state.Cgroup)
	}
	return nil
}

// join connects the container with the hub's bridge and publishes its ports.
func (n *Network) join(ctx context.Context, h hub.Hub, state *hub.State, c *insideContainer, a *conf.Attachment, sockets []forward.Socket) (*types100.Result, error) {
	result, err := n.makeInterface(ctx, h, state, c, a)
	if err != nil {
		return nil, err
	}
	if state.Bridge != "" && a.NetConf.Bridge.Names {
		servers := names.Gateways(result, a.IfName)
		if err := controlOfHub(h).ServeNames(servers); err != nil {
			return nil, fmt.Errorf("the hub: %w", mute(err))
		}
		result.DNS = names.DNS(a.NetConf, servers)
		n.step("name server")
	}
	if err := n.open(ctx, h, state, a, result, sockets); err != nil {
		return nil, err
	}
	if len(result.DNS.Nameservers) == 0 {
		result.DNS = dns(a, nameServers(&state.Plan, result))
	}
	return result, nil
}

// open publishes the ports, and returns when there is a way out.
func (n *Network) open(ctx context.Context, h hub.Hub, state *hub.State, a *conf.Attachment, result *types100.Result, sockets []forward.Socket) error {
	if len(sockets) > 0 {
		if err := controlOfHub(h).Publish(a.Key, targetOf(a, result, state), sockets); err != nil {
			return fmt.Errorf("publishing the ports of %s: %w", a.Key, mute(err))
		}
		n.step("publish the ports")
	}
	if err := controlOfHub(h).Await(ctx); err != nil {
		return fmt.Errorf("the way out of network %q: %w", a.Network, mute(err))
	}
	n.step("wait for the driver")
	return nil
}

// makeInterface makes the link between hub and container.
func (n *Network) makeInterface(ctx context.Context, h hub.Hub, state *hub.State, c *insideContainer, a *conf.Attachment) (*types100.Result, error) {
	if state.Bridge == "" {
		return n.makeByPlugins(h, c, a)
	}
	inside, err := openHub(h)
	if err != nil {
		return nil, err
	}
	defer inside.close()
	network := inside.network(a, state.Bridge)
	if err := network.Free(&c.Container, a.Key); err != nil {
		return nil, err
	}
	result, err := network.Add(ctx, &c.Container, a)
	if err != nil {
		return nil, err
	}
	n.step("built-in network")
	// Should the rest fail since the hub ends, it takes this to find the container's end.
	n.Record.Result, err = json.Marshal(result)
	return result, err
}

// nameServers are the driver's, of the families that the container has.
func nameServers(p *plan.Interface, result *types100.Result) *plan.Interface {
	only := *p
	if !slices.ContainsFunc(result.IPs, func(ip *types100.IPConfig) bool { return ip.Address.IP.To4() == nil }) {
		only.IPv6 = plan.Subnet{}
	}
	return &only
}

// targetOf is where published ports lead. Where the container's default route leads
// elsewhere, a reply to a client's own address would not come back.
func targetOf(a *conf.Attachment, result *types100.Result, state *hub.State) forward.Target {
	t := forward.Target{SourceIP: a.NetConf.Rootless.SourceIP}
	for _, ip := range conf.AddressesOf(result, a.IfName) {
		address, _ := netip.AddrFromSlice(ip.Address.IP)
		gateway, _ := netip.AddrFromSlice(ip.Gateway)
		bits, _ := ip.Address.Mask.Size()
		subnet := netip.PrefixFrom(address.Unmap(), bits).Masked()
		away := !slices.ContainsFunc(result.Routes, func(r *types.Route) bool {
			ones, _ := r.Dst.Mask.Size()
			return ones == 0 && (r.Dst.IP.To4() != nil) == subnet.Addr().Is4()
		})
		if subnet.Addr().Is4() {
			t.Container4, t.Gateway4, t.Subnet4, t.Away4 = address.Unmap(), gateway.Unmap(), subnet, away
		} else {
			t.Container6, t.Gateway6, t.Subnet6, t.Away6 = address, gateway, subnet, away
		}
	}
	if state != nil && state.Second {
		// The IPv6 network of a private network is that of every other one as well.
		t.SourceIP, t.Container6, t.Gateway6, t.Subnet6 = conf.SourceGateway, netip.Addr{}, netip.Addr{}, netip.Prefix{}
	}
	return t
}

// insideHub is what a verb has of a hub's namespace.
type insideHub struct {
	hub    hub.Hub
	place  *link.Place
	filter *os.File
	host   bridge.Host
}

func openHub(h hub.Hub) (*insideHub, error) {
	files, err := controlOfHub(h).Open()
	if err != nil {
		return nil, fmt.Errorf("the hub: %w", mute(err))
	}
	place, err := link.FromFiles(files[1:])
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the hub: %w", err), files[0].Close())
	}
	return &insideHub{hub: h, place: place, filter: files[0], host: bridge.Host{
		Route: place.Route, Filter: nlsock.New(int(files[0].Fd())), Sysctl: place, RemoveLinks: controlOfHub(h).RemoveLinks,
	}}, nil
}

func (i *insideHub) close() {
	i.place.Close()
	i.filter.Close()
}

// network is the built-in network in the hub. Its MTU is the driver's unless it is given.
func (i *insideHub) network(a *conf.Attachment, bridgeName string) *bridge.Network {
	config := a.NetConf.Bridge
	config.Name = bridgeName
	if config.MTU == 0 {
		config.MTU = a.NetConf.Rootless.MTU
	}
	return &bridge.Network{Name: a.Network, Config: config, Host: i.host, Dir: i.hub.Path("ipam"), Log: slog.New(slog.DiscardHandler), EndsHere: true}
}

// insideContainer is what a verb has of the container's namespace.
type insideContainer struct {
	bridge.Container
	namespace *namespace
	place     *link.Place
}

func enterContainer(path string) (*insideContainer, error) {
	ns, err := openNamespace(path)
	if err != nil {
		return nil, err
	}
	return enterOpened(ns)
}

// enterOpened owns the namespace.
func enterOpened(ns *namespace) (*insideContainer, error) {
	c, err := placed(ns)
	if err != nil {
		return nil, record.NetnsError(ns.Path, err.Error(), "run as the user who made the namespace, or as root")
	}
	return c, nil
}

// placed owns the namespace. Its errors are the kernel's.
func placed(ns *namespace) (*insideContainer, error) {
	place, err := link.Enter(ns.file, ns.owner)
	if err != nil {
		ns.Close()
		return nil, err
	}
	return &insideContainer{bridge.Container{Path: ns.Path, Namespace: ns.file, Route: place.Route, Sysctl: place}, ns, place}, nil
}

// lacks makes sure that the container has no interface of that name yet.
func (c *insideContainer) lacks(ifName string) error {
	there, err := c.place.Link(ifName)
	if err != nil {
		return fmt.Errorf("the container's network namespace: %w", err)
	}
	if there != nil {
		return conf.Mendf(conf.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME %q: the container has an interface of that name already", ifName), "choose another name, or run DEL for it first")
	}
	return nil
}

func (c *insideContainer) close() {
	c.place.Close()
	c.namespace.Close()
}

// leave takes the member out of its hub, and ends the hub with the last one.
func (n *Network) leave(ctx context.Context, h hub.Hub, a *conf.Attachment) error {
	state, err := h.Running()
	if err != nil {
		return err
	}
	// Plugins need the hub, which leaves by itself when nobody is in it.
	plugins := state != nil && state.Private == nil && state.Bridge == "" && !n.outside
	if plugins {
		n.mark(record.Adding) // neither ready any more nor leaving yet
	} else {
		n.mark(record.Leaving)
	}
	made, process := n.made(h, a), processOf(h)
	var ended bool
	var endErr error
	if state != nil && !n.outside {
		var unlinkErr error
		if ended, unlinkErr, endErr = n.leaveLast(ctx, h, state, process, a); ended {
			err = unlinkErr
		} else if state.Private == nil {
			if err = n.leaveHub(ctx, h, state, a); err != nil && hasEnded(ctx, h, process) {
				state, err = nil, nil
			}
		}
	}
	n.step("leave the hub")
	if plugins {
		if tryAgainLater(err) {
			return fmt.Errorf("taking %s out of the hub: %w", a.Key, err) // which plugins may not have begun with
		}
		n.mark(record.Leaving)
		if err != nil {
			n.step("the plugins: " + conf.Message(err))
		}
	}
	if !ended && (state == nil || state.Private == nil) {
		ended, endErr = endHub(ctx, h, a.Key, func() {})
	}
	n.step("end the hub")
	switch {
	case endErr == nil && (ended && err != nil || state == nil):
		// The hub has gone with all that was in it. The kernel is in no hurry to take the
		// container's end of a link with it.
		return n.abandon(a, made)
	case err != nil:
		err = fmt.Errorf("taking %s out of the hub: %w", a.Key, err)
	}
	return errors.Join(err, endErr)
}

func tryAgainLater(err error) bool {
	var e *types.Error
	return errors.As(err, &e) && e.Code == types.ErrTryAgainLater
}

// mark writes down how far it is; from record.Leaving on it is nobody for whom the hub has to stay. Where
// that cannot be done, such as on a full disk, the hub ends by itself.
func (n *Network) mark(state record.State) {
	if n.Record == nil {
		return
	}
	n.Record.State = state
	if err := n.Store.Save(n.Record); err != nil {
		n.step("leaving without word: " + err.Error())
	}
}

// delUnrecorded takes out of the hub of the network, if that has one, what it has of an
// attachment without a record.
func (n *Network) delUnrecorded(ctx context.Context, a *conf.Attachment) error {
	h, err := hub.Of(n.Store, a.Network)
	if err != nil || !h.There() {
		return err
	}
	return n.leave(ctx, h, a)
}

// abandon takes the interface out of the container, if that is there.
func (n *Network) abandon(a *conf.Attachment, made *types100.Result) error {
	c, err := n.openRecorded()
	if c == nil {
		return err
	}
	defer c.close()
	return bridge.Abandon(&c.Container, a.Key, made)
}

// leaveLast is leaving for the last member, which ends the hub, and so need not take apart what
// is in it. unlinked is the error of taking its interface out of the container.
func (n *Network) leaveLast(ctx context.Context, h hub.Hub, state *hub.State, process *record.Process, a *conf.Attachment) (ended bool, unlinked, err error) {
	if process.Stopped() {
		if err := process.Continue(); err != nil {
			return false, nil, err
		}
	}
	hostEnd := hub.HostEnd
	if state.Private == nil {
		if state.Bridge == "" || n.recorded() == nil {
			return false, nil, nil // plugins have made it, or nobody says how far ADD has come
		}
		hostEnd = n.hostEnd()
	}
	ended, err = endHub(ctx, h, a.Key, func() { unlinked = unlink(h, hostEnd) })
	return ended, unlinked, err
}

func (n *Network) leaveHub(ctx context.Context, h hub.Hub, state *hub.State, a *conf.Attachment) error {
	// Who ends the hub, being the last, waits for those that are still at work in its folder.
	lockCtx, cancel := record.LockContext(ctx)
	defer cancel()
	lock, err := h.Lock(lockCtx, flock.Shared)
	if err != nil {
		return err
	}
	defer lock.Close()
	addresses := n.addresses()
	if len(addresses) > 0 && !Alive(n.Store, n.Record) {
		addresses = nil // of a hub that has died: they may be another's by now
	}
	if err := controlOfHub(h).Leave(a.Key, addresses); err != nil {
		return mute(err)
	}
	if state.Bridge == "" {
		return n.unmakeByPlugins(h, a)
	}
	inside, err := openHub(h)
	if err != nil {
		return err
	}
	defer inside.close()
	return inside.network(a, state.Bridge).Del(ctx, a.Key, n.recorded())
}

// made is what ADD has made, or was about to; nil when that is not known.
func (n *Network) made(h hub.Hub, a *conf.Attachment) *types100.Result {
	if state := h.State(); state != nil && state.Private != nil {
		return result(a, state.Private)
	}
	return n.recorded()
}

// recorded is what ADD returned; nil when that is not known.
func (n *Network) recorded() *types100.Result {
	if n.Record == nil || n.Record.Result == nil {
		return nil
	}
	var r types100.Result
	if json.Unmarshal(n.Record.Result, &r) != nil {
		return nil
	}
	return &r
}

// endHub ends the hub when nobody but the one that is leaving is in it, and nobody is coming.
// Then it calls before first.
func endHub(ctx context.Context, h hub.Hub, leaving conf.Key, before func()) (ended bool, err error) {
	others := func() (bool, error) {
		members, err := h.Members()
		return slices.ContainsFunc(members, func(r *record.Record) bool { return r.Key != leaving }), err
	}
	if some, err := others(); err != nil || some {
		return false, err // most often, and then it takes no lock
	}
	lockCtx, cancel := record.LockContext(ctx)
	defer cancel()
	lock, err := h.Lock(lockCtx, flock.Exclusive)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	if some, err := others(); err != nil || some {
		return false, err
	}
	before()
	if err := endSupervisor(ctx, h); err != nil {
		return false, err
	}
	if err := h.Remove(); err != nil {
		return true, fmt.Errorf("folder of the hub: %w", err)
	}
	return true, nil
}

// addresses are the container's, of what ADD returned.
func (n *Network) addresses() (all []netip.Addr) {
	if result := n.recorded(); result != nil {
		for _, ip := range conf.AddressesOf(result, n.Record.Key.IfName) {
			address, _ := netip.AddrFromSlice(ip.Address.IP)
			all = append(all, address.Unmap())
		}
	}
	return all
}

// hostEnd is the hub's end of the link to the container, in what ADD returned.
func (n *Network) hostEnd() string {
	if state := n.hub(n.Record.Key).State(); state != nil && state.Private != nil {
		return hub.HostEnd
	}
	result := n.recorded()
	if result == nil {
		return ""
	}
	for _, i := range result.Interfaces {
		if i != nil && i.Sandbox == "" && strings.HasPrefix(i.Name, "veth") {
			return i.Name
		}
	}
	return ""
}

// EndHubs ends the hubs of a network that nobody is in. Nobody else may be at work in the
// folder.
func EndHubs(ctx context.Context, store *record.Store, network string) error {
	hubs, err := hub.List(store)
	errs := []error{err}
	for _, h := range hubs {
		if s := h.State(); s != nil && s.Network == network {
			_, err := endHub(ctx, h, conf.Key{}, func() {})
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// checkShared compares hub and container with what ADD has made.
func (n *Network) checkShared(ctx context.Context, a *conf.Attachment) error {
	h := n.hub(a.Key)
	if err := n.ask(func(c supervisor.Control) error { return mute(c.CheckOf(a.Key)) }); err != nil {
		return err
	}
	container, err := enterContainer(a.NetnsPath)
	if err != nil {
		return err
	}
	defer container.close()
	if n.Record.Bridge == "" {
		return n.checkCarried(container)
	}
	inside, err := openHub(h)
	if err != nil {
		return err
	}
	defer inside.close()
	result, err := previous(a)
	if err != nil {
		return err
	}
	made := n.recorded()
	if result == nil {
		result = made // "ambi inspect" has none
	}
	return inside.network(a, n.Record.Bridge).Check(ctx, &container.Container, a, made, result)
}

// previous is prevResult in the newest form; nil without.
func previous(a *conf.Attachment) (*types100.Result, error) {
	if a.NetConf.PrevResult == nil {
		return nil, nil
	}
	result, err := readResult(a, a.NetConf.PrevResult)
	if err != nil {
		return nil, conf.Errorf(types.ErrDecodingFailure, "key \"prevResult\": %v", err)
	}
	return result, nil
}
