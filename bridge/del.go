package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// Del takes the container off the network, and the bridge with the last one. It needs
// neither the container's namespace nor, with a nil result, any record of Add: what is
// the attachment's is known by its key. It does nothing where nothing is, and goes on
// after an error.
func (n *Network) Del(ctx context.Context, k conf.Key, result *types100.Result) error {
	links, err := n.linksOf(k)
	if err != nil {
		return fmt.Errorf("network %q: %w", n.Name, err)
	}
	if last, err := n.delLast(ctx, k, result, links); last {
		return err
	}
	// The interface first: nothing may come through once its address can be another's.
	if err := n.removeLinks(links); err != nil {
		return err
	}
	return errors.Join(n.dismiss(k, result, nil), n.releaseAddresses(ctx, k, result), n.leave(ctx))
}

// delLast is Del of a container that has the bridge for itself; last is false, and
// nothing done, where it has not. What is sure to go is removed together: the kernel
// waits for as long for each message that removes interfaces.
func (n *Network) delLast(ctx context.Context, k conf.Key, result *types100.Result, links []*link) (last bool, err error) {
	if len(links) == 0 {
		return false, nil
	}
	err = n.withoutPorts(ctx, links, func(bridge *link) error {
		if bridge == nil {
			return nil
		}
		last = true
		return n.removeBridge(ctx, bridge, append(links, bridge), func(ofNetwork []element) error {
			return errors.Join(n.dismiss(k, result, ofNetwork), n.releaseAddresses(ctx, k, result))
		})
	})
	return last, err
}

// linksOf are the attachment's interfaces on the host. The container's end goes with
// them.
func (n *Network) linksOf(k conf.Key) (links []*link, err error) {
	for _, name := range []string{portName(k), ifbName(k)} {
		l, err := findLink(n.Host.Route, name)
		if err != nil {
			return nil, err
		}
		if l != nil && owns(k, l) {
			links = append(links, l)
		}
	}
	return links, nil
}

// removeLinks removes interfaces, several of them by one message: of a group that they
// are put in for it. It has a number that nobody else chooses.
func (n *Network) removeLinks(links []*link) error {
	if n.Host.RemoveLinks != nil && len(links) > 0 {
		indexes := make([]int, len(links))
		for i, l := range links {
			indexes[i] = l.index
		}
		if n.Host.RemoveLinks(indexes) == nil {
			return nil
		}
	}
	var b batch
	switch len(links) {
	case 0:
	case 1:
		b.DeleteLink(links[0].name, links[0].index)
	default:
		group := rand.Uint32() | 1<<31
		for _, l := range links {
			b.setGroup(l.name, l.index, group)
		}
		b.deleteGroup(links[0].name, group)
	}
	if _, err := b.Send(n.Host.Route); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("network %q: %w", n.Name, err)
	}
	return nil
}

// Abandon removes the container's end of the pair where the side of the bridge has gone as
// a whole, and took the other end along or is about to. It is known by what Add has said.
func Abandon(c *Container, k conf.Key, result *types100.Result) error {
	mac, _ := placeIn(result, k.IfName)
	if mac == nil {
		return nil
	}
	l, err := findLink(c.Route, k.IfName)
	if err != nil || l == nil || l.kind != "veth" || l.mac.String() != mac.String() {
		return err
	}
	var b batch
	b.DeleteLink(k.IfName, l.index)
	if _, err := b.Send(c.Route); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("the container's namespace %s: %w", c.Path, err)
	}
	return nil
}

// owns says whether a link is the attachment's: it bears its mark, or none yet, because
// Add was killed before it wrote one, and the MAC address that Add makes it with. A name
// alone says nothing.
func owns(k conf.Key, l *link) bool {
	if l.alias != "" {
		return l.alias == portAlias(k)
	}
	return l.kind == "veth" && bytes.Equal(l.mac, hostMAC(k)) || l.kind == "ifb" && bytes.Equal(l.mac, ifbMAC(k))
}

// DelUnmarked removes the container's interface if an ambi before this one had the plugin
// bridge make it, which left no mark: the other end hangs on the network's bridge, and the
// address is written down as this attachment's. Del, which comes next, lets that go.
func (n *Network) DelUnmarked(ctx context.Context, c *Container, k conf.Key) error {
	inner, err := findLink(c.Route, k.IfName)
	if err != nil || inner == nil {
		return err
	}
	ports, err := n.ports()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(ports, func(l *link) bool {
		return l.kind == "veth" && l.alias == "" && l.index == inner.peer && l.peer == inner.index
	})
	if i < 0 {
		return nil
	}
	if known, err := n.knowsAddressOf(ctx, c, inner, k); err != nil || !known {
		return err
	}
	var b batch
	b.DeleteLink(ports[i].name, ports[i].index)
	_, err = b.Send(n.Host.Route)
	return err
}

// knowsAddressOf says whether an interface has an address that is written down as the
// attachment's.
func (n *Network) knowsAddressOf(ctx context.Context, c *Container, l *link, k conf.Key) (known bool, err error) {
	store, err := openAddresses(ctx, n.Dir, n.Name)
	if err != nil {
		return false, err
	}
	defer store.Close()
	ips, err := store.of(k)
	for _, ip := range ips {
		if known, err = hasAddress(c.Route, l.index, ip); known || err != nil {
			return known, err
		}
	}
	return false, err
}

// dismiss takes back what admit has set, and more elements, which are there.
func (n *Network) dismiss(k conf.Key, result *types100.Result, more []element) error {
	t := newTables()
	name := portName(k)
	if mac, ips := placeIn(result, k.IfName); mac != nil {
		var x transaction
		x.remove(append(t.ofPort(port{name, mac, ips}), more...))
		if err := x.commit(n.Host.Filter); !errors.Is(err, unix.ENOENT) {
			return firewallError("removing rules of the built-in network", err)
		}
	}
	found, err := n.Host.elementsOfPort(t, name)
	if err != nil {
		return err
	}
	return n.Host.removeElements(append(found, more...))
}

// placeIn is the MAC address of the container's interface in a result, and its
// addresses.
func placeIn(result *types100.Result, ifName string) (mac net.HardwareAddr, ips []netip.Addr) {
	i := conf.InterfaceOf(result, ifName)
	if i == nil {
		return nil, nil
	}
	mac, _ = net.ParseMAC(i.Mac)
	for _, ip := range conf.AddressesOf(result, ifName) {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			ips = append(ips, addr.Unmap())
		}
	}
	return mac, ips
}

// releaseAddresses lets the attachment's addresses go: those of the result, else all
// that the store has under its name.
func (n *Network) releaseAddresses(ctx context.Context, k conf.Key, result *types100.Result) error {
	store, err := openAddresses(ctx, n.Dir, n.Name)
	if err != nil {
		return err
	}
	defer store.Close()
	_, ips := placeIn(result, k.IfName)
	if len(ips) == 0 {
		ips, err = store.of(k)
	}
	return errors.Join(err, store.release(k, ips))
}
