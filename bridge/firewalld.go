package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
)

// firewalld accepts what is forwarded for the networks of its zone "trusted" (the
// plugin firewall asks the same of it, for each container). It is asked over D-Bus,
// once for each network; where it does not run, that is one question to the bus, and
// none where there is no bus.
const firewalldZone = "trusted"

// openFirewalld puts the network into the zone, if firewalld runs.
func (n *Network) openFirewalld(s state) error {
	return n.firewalld(s.subnets, "addSource", func(err error) error {
		if err != nil && !strings.Contains(err.Error(), "ZONE_ALREADY_SET") {
			return fmt.Errorf("network %q: asking firewalld to trust %v: %w; see firewall-cmd --state, and journalctl -u firewalld", n.Name, s.subnets, err)
		}
		return nil
	})
}

// closeFirewalld takes out what the bridge's addresses say that was put in.
func (n *Network) closeFirewalld(bridge *link) error {
	if bridge == nil || n.Host.DBus == "" {
		return nil
	}
	addrs, err := listAddresses(n.Host.Route, bridge.index)
	if err != nil {
		return err
	}
	subnets := append(subnetsOf(addrs, netip.Addr.Is4), subnetsOf(addrs, netip.Addr.Is6)...)
	// It may have been reloaded, and so have forgotten the network already.
	return n.firewalld(subnets, "removeSource", func(error) error { return nil })
}

// firewalld calls a method of firewalld's zones for each subnet.
func (n *Network) firewalld(subnets []netip.Prefix, method string, judge func(error) error) error {
	if n.Host.DBus == "" {
		return nil
	}
	if _, err := os.Stat(n.Host.DBus); err != nil {
		return nil
	}
	const patience = 10 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	bus, err := dialBus(ctx, n.Host.DBus)
	if err != nil {
		n.Log.Debug("the system bus does not answer, so firewalld is taken not to run", "error", err)
		return nil
	}
	defer bus.Close()
	for _, p := range subnets {
		err := bus.call("org.fedoraproject.FirewallD1", "/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1.zone", method, firewalldZone, p.String())
		if errors.Is(err, errNoService) {
			return nil
		}
		if err := judge(err); err != nil {
			return err
		}
	}
	return nil
}

// WatchFirewalld calls loaded once, and again each time firewalld, on the system bus at the
// path busPath, says that it has loaded its rules anew ("firewall-cmd --reload" forgets
// what it was asked for meanwhile) or comes to the bus. It returns with an error of loaded
// or of the bus, and without one when ctx is done.
func WatchFirewalld(ctx context.Context, busPath string, loaded func() error) error {
	b, err := dialBus(ctx, busPath)
	if err != nil {
		return fmt.Errorf("the system bus: %w", err)
	}
	defer b.Close()
	defer context.AfterFunc(ctx, func() { b.Close() })()
	const name = "org.freedesktop.DBus"
	for _, rule := range []string{
		"type='signal',sender='org.fedoraproject.FirewallD1',interface='org.fedoraproject.FirewallD1',member='Reloaded'",
		"type='signal',sender='" + name + "',member='NameOwnerChanged',arg0='org.fedoraproject.FirewallD1'",
	} {
		if err := b.call(name, "/org/freedesktop/DBus", name, "AddMatch", rule); err != nil {
			return fmt.Errorf("the system bus: %w", err)
		}
	}
	for {
		if err := loaded(); err != nil {
			return err
		}
		if err := b.awaitSignal("Reloaded", "NameOwnerChanged"); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("the system bus: %w", err)
		}
	}
}
