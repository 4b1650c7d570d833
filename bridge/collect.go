package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/flock"
)

// Known says whether the network has ever been on this host, or on one whose state folder
// this was: it has a folder of addresses, or its bridge.
func (n *Network) Known() (bool, error) {
	if _, err := os.Stat(filepath.Join(n.Dir, n.Name)); err == nil {
		return true, nil
	}
	l, err := findLink(n.Host.Route, n.bridgeName())
	if err != nil {
		return false, fmt.Errorf("network %q: %w", n.Name, err)
	}
	return l != nil && n.mine(l) == nil, nil
}

// Holders are the attachments that have something of the network: an address, or an
// interface on its bridge.
func (n *Network) Holders(ctx context.Context) ([]conf.Key, error) {
	store, err := openAddresses(ctx, n.Dir, n.Name)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	holders, err := store.holders(n.Name)
	ports, err2 := n.ports()
	for _, l := range ports {
		if k, ok := keyOf(l); ok && k.Network == n.Name && !slices.Contains(holders, k) {
			holders = append(holders, k)
		}
	}
	return holders, errors.Join(err, err2)
}

// ports are the interfaces on the network's bridge.
func (n *Network) ports() ([]*link, error) {
	bridge, err := findLink(n.Host.Route, n.bridgeName())
	if err != nil || bridge == nil || n.mine(bridge) != nil {
		return nil, err
	}
	return portsOf(n.Host.Route, bridge)
}

// Collect takes away what no attachment explains: interfaces that an Add left unmarked,
// elements of the firewall's sets, the bridge. The caller has called Del for every
// holder that is not valid, and keeps others from adding containers meanwhile.
func (n *Network) Collect(ctx context.Context) error {
	lock, err := n.lock(ctx, flock.Exclusive)
	if err != nil {
		return err
	}
	err = errors.Join(n.collectUnmarked(), n.collectElements())
	lock.Close()
	return errors.Join(err, n.leave(ctx))
}

// collectUnmarked removes interfaces of an Add that was killed before it marked them. The
// host may have put interfaces of its own on the bridge, and an ambi before this one has
// left those of the plugin bridge on it, in which containers live.
func (n *Network) collectUnmarked() error {
	ports, err := n.ports()
	errs := []error{err}
	for _, l := range ports {
		if l.alias != "" || !isPort(l) {
			continue
		}
		var b batch
		b.DeleteLink(l.name, l.index)
		if _, err := b.Send(n.Host.Route); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// collectElements removes what the sets have of interfaces that are gone. Each network
// looks after all: an interface's name does not say whose it was.
func (n *Network) collectElements() error {
	t := newTables()
	names, err := n.Host.keys(t.ports)
	errs := []error{err}
	for _, key := range names {
		name := strings.TrimRight(string(key), "\x00")
		if l, err := findLink(n.Host.Route, name); err != nil || l != nil {
			errs = append(errs, err)
			continue
		}
		found, err := n.Host.elementsOfPort(t, name)
		errs = append(errs, err, n.Host.removeElements(found))
	}
	return errors.Join(errs...)
}

// Attached is an attachment as its record has it.
type Attached struct {
	conf.Key
	Result *types100.Result
}

// Restore puts back what a reload of the host's firewall took away: the tables, and
// what they and iptables have of the network and of its containers. A network
// without a bridge has nothing to put back.
func (n *Network) Restore(ctx context.Context, attached []Attached) error {
	s, lock, err := n.there(ctx)
	if err != nil || lock == nil {
		return err
	}
	defer lock.Close()
	t := newTables()
	elements := t.ofNetwork(s.bridge.name, n.Config.Isolate)
	for _, a := range attached {
		if mac, ips := placeIn(a.Result, a.IfName); mac != nil {
			elements = append(elements, t.ofPort(port{portName(a.Key), mac, ips})...)
		}
	}
	return errors.Join(n.Host.makeTables(t, elements), n.open(ctx, s), n.openFirewalld(s))
}

// there is the network if it has a bridge, and a lock that keeps it.
func (n *Network) there(ctx context.Context) (state, *os.File, error) {
	lock, err := n.lock(ctx, flock.Shared)
	if err != nil {
		return state{}, nil, err
	}
	s, _, err := n.look()
	if err != nil || s.bridge == nil {
		lock.Close()
		return s, nil, err
	}
	return s, lock, nil
}
