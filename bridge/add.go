package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/nlsock"
)

// placement is a container's place in the network.
type placement struct {
	conf.Key
	port      // its interface on the host
	addresses []netip.Prefix
	gateways  []netip.Prefix // of each address
	mtu       int
}

// Add gives the container an interface on the network's bridge. What an Add that
// failed has made, Del takes away.
func (n *Network) Add(ctx context.Context, c *Container, a *conf.Attachment) (*types100.Result, error) {
	s, lock, err := n.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := n.open(ctx, s); err != nil {
		return nil, err
	}
	p := placement{Key: a.Key, gateways: s.gateways(), mtu: s.bridge.mtu, port: port{name: portName(a.Key)}}
	if p.addresses, err = n.takeAddresses(ctx, a, s); err != nil {
		return nil, err
	}
	for _, prefix := range p.addresses {
		p.ips = append(p.ips, prefix.Addr())
	}
	if p.mac, err = n.macFor(a, s, p.addresses[0].Addr()); err != nil {
		return nil, err
	}
	if err := n.makePair(c, p, s); err != nil {
		return nil, err
	}
	// Before anything comes through.
	if err := n.admit(s, p.port); err != nil {
		return nil, err
	}
	hostEnd, err := n.hostEnd(p)
	if err != nil {
		return nil, err
	}
	if err := n.limitBandwidth(a, hostEnd); err != nil {
		return nil, err
	}
	index, err := c.start(a.IfName)
	if err != nil {
		return nil, err
	}
	if err := n.configure(c, p, index); err != nil {
		return nil, err
	}
	routes, err := n.defaultRoutes(c, p, index)
	if err != nil {
		return nil, err
	}
	return n.result(c, a, s, p, routes), nil
}

// takeAddresses takes an address of each subnet: the one that was asked for, if one
// was.
func (n *Network) takeAddresses(ctx context.Context, a *conf.Attachment, s state) ([]netip.Prefix, error) {
	asked, err := n.asked(a, s)
	if err != nil {
		return nil, err
	}
	store, err := openAddresses(ctx, n.Dir, n.Name)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	var all []netip.Prefix
	for i, subnet := range s.subnets {
		p, err := store.take(a.Key, subnet, i, asked[i])
		if err != nil {
			return nil, errors.Join(err, store.release(a.Key, addrsOf(all)))
		}
		all = append(all, p)
	}
	return all, nil
}

// asked are the addresses that were asked for, by subnet; invalid ones stand for any.
func (n *Network) asked(a *conf.Attachment, s state) ([]netip.Addr, error) {
	asked := make([]netip.Addr, len(s.subnets))
	for _, p := range a.IPs {
		i := slices.IndexFunc(s.subnets, func(subnet netip.Prefix) bool { return subnet.Contains(p.Addr()) })
		switch {
		case i < 0:
			return nil, conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: address %s was asked for, but the network has %v", n.Name, p.Addr(), s.subnets), "ask for one of these, or set bridge.subnet or bridge.subnet6")
		case asked[i].IsValid() && asked[i] != p.Addr():
			return nil, conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: addresses %s and %s were both asked for, but an interface has one address of %s", n.Name, asked[i], p.Addr(), s.subnets[i]), "ask for one")
		}
		asked[i] = p.Addr()
	}
	return asked, nil
}

func addrsOf(prefixes []netip.Prefix) []netip.Addr {
	var all []netip.Addr
	for _, p := range prefixes {
		all = append(all, p.Addr())
	}
	return all
}

// macFor is the one that was asked for, else made from the address. Two of one MAC address
// on a bridge would get each other's packets.
func (n *Network) macFor(a *conf.Attachment, s state, ip netip.Addr) (net.HardwareAddr, error) {
	if a.MAC == "" {
		return macOf(ip), nil
	}
	mac, err := net.ParseMAC(a.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, conf.Invalid("mac", a.MAC, "it is a MAC address of one interface, such as 02:00:00:00:00:01")
	}
	owner, err := n.ownerOfMAC(a.Key, s, mac, ip)
	if err == nil && owner != "" {
		err = conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: MAC address %s was asked for and belongs to %s", n.Name, mac, owner), "ask for another one, or for none")
	}
	return mac, err
}

// ownerOfMAC is who on the bridge has a MAC address, or will have it with his address;
// empty when it is nobody but who has this address.
func (n *Network) ownerOfMAC(k conf.Key, s state, mac net.HardwareAddr, ip netip.Addr) (string, error) {
	if bytes.Equal(mac, s.bridge.mac) {
		return "bridge " + s.bridge.name, nil
	}
	if of := netip.AddrFrom4([4]byte(mac[2:])); of != ip && s.subnets[0].Contains(of) && bytes.Equal(mac, macOf(of)) {
		return "whoever has address " + of.String(), nil
	}
	keys, err := n.Host.keys(newTables().macs)
	for _, key := range keys {
		name := strings.TrimRight(string(key[:unix.IFNAMSIZ]), "\x00")
		if name == portName(k) || !bytes.HasPrefix(key[unix.IFNAMSIZ:], mac) {
			continue
		}
		l, err := findLink(n.Host.Route, name)
		if err != nil || l != nil && l.master == s.bridge.index {
			return "the container of interface " + name, err
		}
	}
	return "", err
}

// makePair makes the two ends, the one on the host marked, on the bridge, and down.
func (n *Network) makePair(c *Container, p placement, s state) error {
	var b batch
	b.NewVeth(nlsock.Veth{
		Host: p.name, Container: p.IfName, HostMAC: hostMAC(p.Key), ContainerMAC: p.mac,
		MTU: p.mtu, Master: s.bridge.index, Namespace: int(c.Namespace.Fd()), OneQueue: n.EndsHere,
	})
	b.setAlias(p.name, portAlias(p.Key))
	b.noIPv6Address(p.name)
	b.MayFail() // a kernel without IPv6
	_, err := b.Send(n.Host.Route)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		if err2 := n.Free(c, p.Key); err2 != nil {
			return err2
		}
	case errors.Is(err, unix.EXFULL):
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: bridge %s has as many interfaces as a bridge can (%v)", n.Name, s.bridge.name, err), "use a second network")
	}
	return n.makeError("veth", err)
}

// Free says whether neither end of the attachment's pair is there yet. Who does not
// ask before Add takes away, with the Del that follows an error, the interface of an
// earlier Add.
func (n *Network) Free(c *Container, k conf.Key) error {
	l, err := findLink(c.Route, k.IfName)
	if err != nil {
		return fmt.Errorf("the container's namespace %s: %w", c.Path, err)
	}
	if l != nil {
		return conf.Mendf(conf.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME %q: the container has an interface of that name already", k.IfName), "choose another name, or run DEL for it first")
	}
	if l, err = findLink(n.Host.Route, portName(k)); err != nil {
		return fmt.Errorf("network %q: %w", n.Name, err)
	}
	if l != nil {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: container %s has an interface on the host already (%s), of an earlier ADD", n.Name, k.ContainerID, l.name), "run DEL for it first, or remove it: ip link delete %s", l.name)
	}
	return nil
}

// admit lets the container send from its own addresses, and has the firewall know the
// network.
func (n *Network) admit(s state, p port) error {
	t := newTables()
	network := t.ofNetwork(s.bridge.name, n.Config.Isolate)
	if err := n.Host.addElements(t, append(network, t.ofPort(p)...)); err != nil {
		return err
	}
	if !n.Config.Isolate {
		return nil
	}
	// The network may have been open before.
	open, err := n.Host.present([]element{{t.open, ifname(s.bridge.name)}})
	if err != nil || len(open) == 0 {
		return err
	}
	return n.Host.removeElements(open)
}

// hostEnd reads the interface on the host, which must be the one just made.
func (n *Network) hostEnd(p placement) (*link, error) {
	l, err := findLink(n.Host.Route, p.name)
	if err == nil && l == nil {
		err = fmt.Errorf("network %q: interface %s is gone as soon as it was made", n.Name, p.name)
	}
	return l, err
}

// start sets lo up and says which index the container's interface has.
func (c *Container) start(ifName string) (int, error) {
	var b batch
	b.LinkUp("lo", loIndex)
	b.getLink(ifName)
	answers, err := b.Send(c.Route)
	if err != nil {
		return 0, fmt.Errorf("the container's namespace %s: %w", c.Path, err)
	}
	if len(answers) == 0 {
		return 0, fmt.Errorf("the container's namespace %s: interface %s is gone as soon as it was made", c.Path, ifName)
	}
	l, err := parseLink(answers[0].Data)
	if err != nil {
		return 0, err
	}
	return l.index, nil
}

// configure gives the container's interface its addresses and sets both ends up. The
// link-local address, too, is set here: the kernel's own would be of no use for a
// second.
//
// A link that has just got its carrier sends nothing until the kernel has got round to
// it in the background, which on a busy host takes long enough to lose the first packet
// and with it a second. To ask for the link has it done at once (rtnl_getlink, Linux 6.8).
func (n *Network) configure(c *Container, p placement, index int) error {
	var b batch
	for _, prefix := range p.addresses {
		if prefix.Addr().Is6() {
			if err := c.wantIPv6(p.IfName); err != nil {
				return err
			}
			b.AddAddress(netip.PrefixFrom(linkLocal(p.mac), 64), p.IfName, index)
		}
		b.AddAddress(prefix, p.IfName, index)
	}
	b.containerUp(p.IfName, index)
	if _, err := b.Send(c.Route); err != nil {
		return fmt.Errorf("the container's namespace %s: %w", c.Path, err)
	}
	var host batch
	host.portUp(p.name)
	host.getLink(p.name)
	host.getLink(n.bridgeName())
	if _, err := host.Send(n.Host.Route); err != nil {
		return fmt.Errorf("network %q: %w", n.Name, err)
	}
	_, err := findLink(c.Route, p.IfName)
	return err
}

// wantIPv6 has the interface take IPv6 addresses, and keep them while it is down, as
// those of IPv4 are kept.
func (c *Container) wantIPv6(ifName string) error {
	for _, s := range []struct{ name, value string }{{"disable_ipv6", "0"}, {"keep_addr_on_down", "1"}} {
		if err := set(c.Sysctl, "ipv6/conf/"+ifName+"/"+s.name, s.value); err != nil {
			return fmt.Errorf("the container's namespace %s: %w", c.Path, err)
		}
	}
	return nil
}

// defaultRoutes sets those that the container gets over this network, and returns
// their gateways.
func (n *Network) defaultRoutes(c *Container, p placement, index int) ([]netip.Addr, error) {
	if wanted := n.Config.DefaultRoute; wanted != nil && !*wanted {
		return nil, nil
	}
	var b batch
	var gateways []netip.Addr
	for _, gateway := range p.gateways {
		r, err := lookUp(c.Route, outside(nlsock.FamilyOf(gateway.Addr()), p.gateways...))
		if err != nil {
			return nil, fmt.Errorf("the container's namespace %s: %w", c.Path, err)
		}
		if r != nil && n.Config.DefaultRoute == nil {
			continue // another network has it
		}
		b.addDefaultRoute(gateway.Addr(), index, r != nil, n.EndsHere)
		gateways = append(gateways, gateway.Addr())
	}
	if _, err := b.Send(c.Route); err != nil {
		return nil, fmt.Errorf("the container's namespace %s: %w", c.Path, err)
	}
	return gateways, nil
}

// result is what the plugins bridge and bandwidth would say.
func (n *Network) result(c *Container, a *conf.Attachment, s state, p placement, gateways []netip.Addr) *types100.Result {
	r := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: s.bridge.name, Mac: s.bridge.mac.String()},
			{Name: p.name, Mac: hostMAC(p.Key).String(), Mtu: p.mtu},
			{Name: p.IfName, Mac: p.mac.String(), Mtu: p.mtu, Sandbox: c.Path},
		},
	}
	if a.Bandwidth.EgressRate > 0 {
		r.Interfaces = append(r.Interfaces, &types100.Interface{Name: ifbName(a.Key), Mac: ifbMAC(a.Key).String()})
	}
	for i, address := range p.addresses {
		r.IPs = append(r.IPs, &types100.IPConfig{Interface: types100.Int(2), Address: *ipNet(address), Gateway: p.gateways[i].Addr().AsSlice()})
	}
	for _, g := range gateways {
		r.Routes = append(r.Routes, &types.Route{Dst: *everywhere(g)})
	}
	return r
}

func everywhere(gateway netip.Addr) *net.IPNet {
	zero := netip.IPv4Unspecified()
	if gateway.Is6() {
		zero = netip.IPv6Unspecified()
	}
	return ipNet(netip.PrefixFrom(zero, 0))
}
