package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
	// The interface first: nothing may come through once its address can be another's.
	if err := n.removeLinks(k); err != nil {
		return err
	}
	return errors.Join(n.dismiss(k, result), n.releaseAddresses(ctx, k, result), n.leave(ctx))
}

// removeLinks removes the attachment's interfaces on the host. The container's end
// goes with them.
func (n *Network) removeLinks(k conf.Key) error {
	for _, name := range []string{portName(k), ifbName(k)} {
		l, err := findLink(n.Host.Route, name)
		if err != nil {
			return fmt.Errorf("network %q: %w", n.Name, err)
		}
		if l == nil || !owns(k, l) {
			continue
		}
		var b batch
		b.deleteLink(name, l.index)
		if _, err := b.Send(n.Host.Route); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("network %q: %w", n.Name, err)
		}
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
	b.deleteLink(ports[i].name, ports[i].index)
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

// dismiss takes back what admit has set.
func (n *Network) dismiss(k conf.Key, result *types100.Result) error {
	t := newTables()
	name := portName(k)
	if mac, ips := placeIn(result, k.IfName); mac != nil {
		var x transaction
		x.remove(t.ofPort(port{name, mac, ips}))
		if err := x.commit(n.Host.Filter); !errors.Is(err, unix.ENOENT) {
			return firewallError("removing rules of the built-in network", err)
		}
	}
	found, err := n.Host.elementsOfPort(t, name)
	if err != nil {
		return err
	}
	return n.Host.removeElements(found)
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
