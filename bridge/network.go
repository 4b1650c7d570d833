package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/nlsock"
)

// Network is one built-in network on one host.
type Network struct {
	Name   string
	Config conf.Bridge
	Host   Host
	// Dir has a folder for each network, as host-local lays it out, and locks.
	Dir string
	Log *slog.Logger
	// EndsHere says that whatever leaves the network ends on this machine, at a driver or a
	// forwarder: see nlsock.Unpaced.
	EndsHere bool
}

// state is a network as it is on the host.
type state struct {
	bridge  *link
	subnets []netip.Prefix // IPv4 first; the second is IPv6, if there is one
}

// gateways are the addresses that the bridge has.
func (s state) gateways() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range s.subnets {
		all = append(all, gatewayOf(p))
	}
	return all
}

func (n *Network) bridgeName() string { return BridgeName(n.Config, n.Name) }

// enter is called by who adds a container: it makes the bridge when it is not there,
// and returns a lock that keeps it there until it is closed.
func (n *Network) enter(ctx context.Context) (state, *os.File, error) {
	lock, err := n.lock(ctx, flock.Shared)
	if err != nil {
		return state{}, nil, err
	}
	s, complete, err := n.look()
	if err == nil && complete {
		return s, lock, nil
	}
	lock.Close()
	if err != nil {
		return state{}, nil, err
	}
	if lock, err = n.lock(ctx, flock.Exclusive); err != nil {
		return state{}, nil, err
	}
	if s, err = n.make(ctx); err != nil {
		return state{}, nil, errors.Join(err, lock.Close())
	}
	return s, lock, nil
}

// lock is shared by who adds containers, and exclusive for who makes or removes the
// bridge.
func (n *Network) lock(ctx context.Context, how flock.How) (*os.File, error) {
	if err := os.MkdirAll(n.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("network %q: %w", n.Name, err)
	}
	f, err := lockFile(ctx, filepath.Join(n.Dir, "."+n.Name+".lock"), how)
	if err != nil {
		return nil, fmt.Errorf("network %q: %w", n.Name, err)
	}
	return f, nil
}

// look reads what there is of the network; complete says that nothing needs to be
// made. A bridge of that name that is somebody else's is an error.
func (n *Network) look() (s state, complete bool, err error) {
	name := n.bridgeName()
	if s.bridge, err = findLink(n.Host.Route, name); err != nil || s.bridge == nil {
		return s, false, err
	}
	if err := n.mine(s.bridge); err != nil {
		return s, false, err
	}
	addrs, err := listAddresses(n.Host.Route, s.bridge.index)
	if err != nil {
		return s, false, err
	}
	// A bridge that ambi once had the plugin bridge make has no mark.
	complete = s.bridge.up && s.bridge.alias != ""
	for _, want := range []struct {
		key    string
		subnet netip.Prefix
		is     func(netip.Addr) bool
		needed bool
	}{
		{"bridge.subnet", n.Config.Subnet, netip.Addr.Is4, true},
		{"bridge.subnet6", n.Config.Subnet6, netip.Addr.Is6, n.Config.Subnet6.IsValid()},
	} {
		has := subnetsOf(addrs, want.is)
		switch {
		case !want.needed:
		case len(has) == 0:
			complete = false
		case !want.subnet.IsValid():
			s.subnets = append(s.subnets, has[0])
		case slices.Contains(has, want.subnet):
			s.subnets = append(s.subnets, want.subnet)
		default:
			complete = false
			if err := n.mayMove(s.bridge, has, want.subnet, want.key); err != nil {
				return s, false, err
			}
		}
	}
	return s, complete && n.forwards(s), nil
}

// subnetsOf are the networks of which a bridge has the gateway's address.
func subnetsOf(addrs []linkAddress, is func(netip.Addr) bool) []netip.Prefix {
	var all []netip.Prefix
	for _, a := range addrs {
		if is(a.prefix.Addr()) && !a.prefix.Addr().IsLinkLocalUnicast() && gatewayOf(a.prefix) == a.prefix {
			all = append(all, a.prefix.Masked())
		}
	}
	return all
}

// mine says whose the link with the bridge's name is, unless it is this network's.
func (n *Network) mine(l *link) error {
	const remedy = "give the network another bridge with the key bridge.name"
	if l.kind != "bridge" {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: interface %s is there and is no bridge but of type %q", n.Name, l.name, l.kind), remedy)
	}
	switch other, ok := networkOf(l); {
	case l.alias == bridgeAlias(n.Name):
		return nil
	case ok:
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: bridge %s belongs to network %q", n.Name, l.name, other), "%s", remedy)
	case l.alias == "" && l.name == BridgeName(conf.Bridge{}, n.Name):
		return nil // nobody else names a bridge so
	}
	return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: bridge %s is there and was not made by ambi", n.Name, l.name), "%s, remove it (ip link delete %s), or use it as it is by a delegate: {\"type\": \"bridge\", \"bridge\": %q, …}", remedy, l.name, l.name)
}

// mayMove says whether the bridge may get another subnet: not while containers have
// addresses of the old one.
func (n *Network) mayMove(bridge *link, has []netip.Prefix, wanted netip.Prefix, key string) error {
	ports, err := portsOf(n.Host.Route, bridge)
	if err != nil || len(ports) == 0 {
		return err
	}
	return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: the configuration says %s %s, but bridge %s has %s and %d interfaces of containers on it", n.Name, key, wanted, bridge.name, gatewayOf(has[0]), len(ports)), "remove these containers first, or put %s back", has[0])
}

// make makes the bridge, or what of it is missing. The lock of all networks is held
// meanwhile, so that two of them do not choose one subnet.
func (n *Network) make(ctx context.Context) (state, error) {
	all, err := lockFile(ctx, filepath.Join(n.Dir, ".networks.lock"), flock.Exclusive)
	if err != nil {
		return state{}, fmt.Errorf("network %q: %w", n.Name, err)
	}
	defer all.Close()
	s, complete, err := n.look()
	if err != nil || complete {
		return s, err
	}
	if s.subnets, err = n.subnets(s); err != nil {
		return s, err
	}
	if err := n.makeBridge(&s); err != nil {
		return s, err
	}
	if err := n.forwarding(s); err != nil {
		return s, err
	}
	t := newTables()
	if err := n.Host.makeTables(t, t.ofNetwork(s.bridge.name, n.Config.Isolate)); err != nil {
		return s, err
	}
	n.warnOfOthers(s.bridge.name)
	return s, n.openFirewalld(s)
}

// subnets are those that the bridge is to have: the ones given, else the one it has,
// else one that is free.
func (n *Network) subnets(s state) ([]netip.Prefix, error) {
	used, err := users(n.Host.Route, s.bridge)
	if err != nil {
		return nil, err
	}
	v4, v6 := n.Config.Subnet, n.Config.Subnet6
	switch {
	case v4.IsValid():
		err = free(n.Name, "bridge.subnet", v4, used)
	case len(s.subnets) > 0 && s.subnets[0].Addr().Is4():
		v4 = s.subnets[0]
	default:
		v4, err = choose(n.Name, used)
	}
	if err != nil {
		return nil, err
	}
	if !v6.IsValid() {
		return []netip.Prefix{v4}, nil
	}
	return []netip.Prefix{v4, v6}, free(n.Name, "bridge.subnet6", v6, used)
}

// makeBridge makes the bridge with the gateways' addresses, and takes those away that
// it has of a subnet before.
func (n *Network) makeBridge(s *state) error {
	name := n.bridgeName()
	var b batch
	if s.bridge == nil {
		mtu, err := n.mtu()
		if err != nil {
			return err
		}
		b.newBridge(name, macOf(gatewayOf(s.subnets[0]).Addr()))
		if mtu > 0 {
			b.setMTU(name, mtu)
		}
	}
	b.setAlias(name, bridgeAlias(n.Name))
	b.learnFromPassed(name)
	if _, err := b.Send(n.Host.Route); err != nil {
		return n.makeError("bridge", err)
	}
	bridge, err := findLink(n.Host.Route, name)
	if err != nil || bridge == nil {
		return fmt.Errorf("network %q: bridge %s is gone as soon as it was made: %w", n.Name, name, err)
	}
	s.bridge = bridge
	// Routes of the bridge are ours to say, not a container's.
	if err := set(n.Host.Sysctl, "ipv6/conf/"+name+"/accept_ra", "0"); err != nil {
		return err
	}
	return n.address(s)
}

// makeError is the error of making an interface of a kind.
func (n *Network) makeError(kind string, err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: %v", n.Name, err), "load the kernel module: modprobe %s", kind)
	}
	return fmt.Errorf("network %q: %w", n.Name, err)
}

// address gives the bridge the gateways' addresses and no other gateway's.
func (n *Network) address(s *state) error {
	has, err := listAddresses(n.Host.Route, s.bridge.index)
	if err != nil {
		return err
	}
	var b batch
	wanted := s.gateways()
	for _, a := range has {
		if i := slices.Index(wanted, a.prefix); i >= 0 {
			wanted = slices.Delete(wanted, i, i+1)
		} else if a.prefix == gatewayOf(a.prefix) && n.replaces(s, a.prefix) {
			b.DeleteAddress(a.prefix, s.bridge.name, s.bridge.index)
		}
	}
	for _, p := range wanted {
		b.AddAddress(p, s.bridge.name, s.bridge.index)
	}
	b.LinkUp(s.bridge.name, s.bridge.index)
	if _, err := b.Send(n.Host.Route); err != nil {
		return fmt.Errorf("network %q: %w", n.Name, err)
	}
	return nil
}

// replaces says whether a subnet of the network takes the place of an address that the
// bridge has: there is one of the same family.
func (n *Network) replaces(s *state, p netip.Prefix) bool {
	return !p.Addr().IsLinkLocalUnicast() && slices.ContainsFunc(s.subnets, func(o netip.Prefix) bool { return o.Addr().Is4() == p.Addr().Is4() })
}

// mtu is that of the way to the Internet, so that nothing needs to be cut into pieces;
// 0, the kernel's own choice, where there is none.
func (n *Network) mtu() (int, error) {
	if n.Config.MTU > 0 {
		return n.Config.MTU, nil
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		r, err := lookUp(n.Host.Route, outside(family))
		if err != nil {
			return 0, err
		}
		if r == nil || r.out == 0 || r.out == loIndex {
			continue
		}
		l, err := uplink(n.Host.Route, r.out)
		if err != nil {
			return 0, err
		}
		return l.mtu, nil
	}
	return 0, nil
}

// uplink is the host's interface of that number; one that has gone meanwhile is all zero.
func uplink(c *nlsock.Socket, index int) (*link, error) {
	var b batch
	b.Add("looking for the host's default interface", unix.RTM_GETLINK, 0, nlsock.IfInfoMsg(unix.AF_UNSPEC, index, 0, 0), nil)
	answers, err := b.Send(c)
	if err != nil || len(answers) == 0 {
		return &link{}, err
	}
	return parseLink(answers[0].Data)
}

// forwarding has the host pass packets on between its interfaces.
func (n *Network) forwarding(s state) error {
	if err := n.keepRouter(s); err != nil {
		return fmt.Errorf("network %q: the host's own way by IPv6: %w", n.Name, err)
	}
	for _, name := range forwardingSysctls(s) {
		if err := set(n.Host.Sysctl, name, "1"); err != nil {
			return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: %v", n.Name, err), "without it containers reach nothing beyond the host: set it on the host (sysctl -w)")
		}
	}
	return nil
}

// keepRouter is for a host whose own default route of IPv6 is from router advertisements: when it
// begins to forward, the kernel forgets that and hears no other, unless the interface's accept_ra is 2
// (ip-sysctl, rt6_purge_dflt_routers in net/ipv6/route.c).
func (n *Network) keepRouter(s state) error {
	const heard, always = "1", "2"
	if now, err := n.Host.Sysctl.Read(forwardingByIPv6); len(s.subnets) < 2 || err != nil || now != "0" {
		return nil //nolint:nilerr // a kernel without IPv6 has nothing to lose
	}
	r, err := lookUp(n.Host.Route, outside(unix.AF_INET6))
	if err != nil || r == nil || r.out == 0 || r.out == loIndex {
		return err
	}
	l, err := uplink(n.Host.Route, r.out)
	if err != nil {
		return err
	}
	name := "ipv6/conf/" + l.name + "/accept_ra"
	if now, err := n.Host.Sysctl.Read(name); err != nil || now != heard {
		return nil //nolint:nilerr // gone meanwhile
	}
	return set(n.Host.Sysctl, name, always)
}

// forwards says whether the host does: whoever reads in its sysctls again may end that.
func (n *Network) forwards(s state) bool {
	return !slices.ContainsFunc(forwardingSysctls(s), func(name string) bool {
		now, err := n.Host.Sysctl.Read(name)
		return err == nil && now == "0"
	})
}

const forwardingByIPv6 = "ipv6/conf/all/forwarding"

func forwardingSysctls(s state) []string {
	names := []string{"ipv4/ip_forward"}
	if len(s.subnets) > 1 {
		names = append(names, forwardingByIPv6)
	}
	return names
}

// leave removes the bridge, and what of the host's firewall was opened for it, when no
// container is left on it.
func (n *Network) leave(ctx context.Context) error {
	return n.withoutPorts(ctx, nil, func(bridge *link) error {
		var links []*link
		if bridge != nil {
			links = []*link{bridge}
		}
		return n.removeBridge(ctx, bridge, links, n.Host.removeElements)
	})
}

// withoutPorts calls remove, while no container can be added, if the bridge is to go and
// has no ports but these. One that is gone already has none, and is nil.
func (n *Network) withoutPorts(ctx context.Context, but []*link, remove func(*link) error) error {
	if n.Config.Keep {
		return nil
	}
	// Most often others are there; to see that takes no lock.
	if _, empty, err := n.empty(but); err != nil || !empty {
		return err
	}
	lock, err := n.lock(ctx, flock.Exclusive)
	if err != nil {
		return err
	}
	defer lock.Close()
	bridge, empty, err := n.empty(but)
	if err != nil || !empty {
		return err
	}
	return remove(bridge)
}

// empty is the network's own bridge, if it has no ports but these. One that is not
// marked as ours is let be.
func (n *Network) empty(but []*link) (*link, bool, error) {
	bridge, err := findLink(n.Host.Route, n.bridgeName())
	if err != nil || bridge == nil || n.mine(bridge) != nil {
		return nil, err == nil && bridge == nil, err
	}
	another := func(p *link) bool {
		return p != nil && p.master == bridge.index && !slices.ContainsFunc(but, func(l *link) bool { return l.index == p.index })
	}
	if n.anyHolder(another) {
		return bridge, false, nil
	}
	ports, err := portsOf(n.Host.Route, bridge)
	return bridge, err == nil && !slices.ContainsFunc(ports, another), err
}

// anyHolder says whether the interface of somebody who has an address is as is says.
// It asks for a few, and so tells of a crowd without a list of it, which costs the kernel
// 10 ms for a thousand.
func (n *Network) anyHolder(is func(*link) bool) bool {
	const few = 8
	store := &addresses{dir: filepath.Join(n.Dir, n.Name)}
	ips, _ := store.all() // without them the list of ports says it
	for _, ip := range ips[:min(few, len(ips))] {
		owner, taken := store.owner(ip)
		if !taken {
			continue
		}
		l, err := findLink(n.Host.Route, portName(conf.Key{Network: n.Name, ContainerID: owner.ContainerID, IfName: owner.IfName}))
		if err == nil && is(l) {
			return true
		}
	}
	return false
}

// removeBridge removes the bridge with the links, and has forget do the same with the
// network's elements of the firewall's sets.
func (n *Network) removeBridge(ctx context.Context, bridge *link, links []*link, forget func([]element) error) error {
	all, err := lockFile(ctx, filepath.Join(n.Dir, ".networks.lock"), flock.Exclusive)
	if err != nil {
		return fmt.Errorf("network %q: %w", n.Name, err)
	}
	defer all.Close()
	name := n.bridgeName()
	t := newTables()
	errs := []error{n.shut(ctx, name), n.closeFirewalld(bridge)}
	if err := n.removeLinks(links); err != nil {
		return errors.Join(append(errs, err)...)
	}
	// What is not there must not be asked for: taking back a transaction costs the kernel
	// as much waiting as an interface.
	elements, err := n.Host.present(t.ofNetwork(name, false))
	errs = append(errs, err, forget(elements), n.Host.removeTables(t))
	return errors.Join(errs...)
}
