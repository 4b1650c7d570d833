package bridge

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/nlsock"
)

// Check compares the kernel with the result of ADD, and changes nothing. made is what Add
// has said, which the firewall was told; in result a later plugin may have changed it. The
// error names everything that is not so.
func (n *Network) Check(ctx context.Context, c *Container, a *conf.Attachment, made, result *types100.Result) error {
	if i := conf.InterfaceOf(result, a.IfName); i != nil && i.Sandbox != c.Path {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: the result of ADD is about the namespace %s, and CHECK about %s", n.Name, i.Sandbox, c.Path), "run DEL and ADD again")
	}
	mac, ips := placeIn(result, a.IfName)
	if mac == nil || len(ips) == 0 {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: the result of ADD does not say which interface and addresses the container got", n.Name), "run DEL and ADD again")
	}
	p := placement{Key: a.Key, port: port{portName(a.Key), mac, ips}}
	var wrong []string
	for _, check := range []func() ([]string, error){
		func() ([]string, error) { return n.checkHost(p) },
		func() ([]string, error) { return n.checkContainer(c, p, result) },
		func() ([]string, error) { return n.checkAddresses(ctx, p) },
		func() ([]string, error) { return n.checkFirewall(p, made) },
		func() ([]string, error) { return n.checkBandwidth(a) },
	} {
		found, err := check()
		if err != nil {
			return fmt.Errorf("network %q: %w", n.Name, err)
		}
		wrong = append(wrong, found...)
	}
	if len(wrong) == 0 {
		return nil
	}
	return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: %s", n.Name, strings.Join(wrong, ", ")), "run DEL and ADD again, or ambi restore where only the firewall changed")
}

// Status says why no container can be added. It changes nothing, but that the kernel
// loads modules that it has.
func (n *Network) Status() error {
	for _, kind := range []string{"bridge", "veth"} {
		if err := hasDriver(n.Host.Route, kind); err != nil {
			return n.makeError(kind, err)
		}
	}
	if err := n.Host.hasNFTables(); err != nil {
		return firewallError("", err)
	}
	s, complete, err := n.look()
	if err == nil && !complete {
		_, err = n.subnets(s)
	}
	return err
}

// checkHost looks at the bridge and the container's interface on it.
func (n *Network) checkHost(p placement) (wrong []string, err error) {
	name := n.bridgeName()
	bridge, err := findLink(n.Host.Route, name)
	if err != nil {
		return nil, err
	}
	if bridge == nil {
		return []string{"bridge " + name + " is missing"}, nil
	}
	if err := n.mine(bridge); err != nil {
		return []string{err.Error()}, nil
	}
	wrong = append(wrong, downIf(!bridge.up, "bridge "+name)...)
	addrs, err := listAddresses(n.Host.Route, bridge.index)
	if err != nil {
		return nil, err
	}
	subnets := append(subnetsOf(addrs, netip.Addr.Is4), subnetsOf(addrs, netip.Addr.Is6)...)
	for _, ip := range p.ips {
		if !slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Contains(ip) }) {
			wrong = append(wrong, fmt.Sprintf("bridge %s has no gateway address for %s", name, ip))
		}
	}
	for _, sysctl := range forwardingSysctls(state{subnets: subnets}) {
		if now, err := n.Host.Sysctl.Read(sysctl); err == nil && now == "0" {
			wrong = append(wrong, "net."+strings.ReplaceAll(sysctl, "/", ".")+" is 0")
		}
	}
	port, err := n.checkPort(p, bridge)
	return append(wrong, port...), err
}

func downIf(down bool, what string) []string {
	if down {
		return []string{what + " is down"}
	}
	return nil
}

func (n *Network) checkPort(p placement, bridge *link) (wrong []string, err error) {
	l, err := findLink(n.Host.Route, p.name)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return []string{"interface " + p.name + " is missing on the host"}, nil
	}
	wrong = downIf(!l.up, "interface "+p.name)
	if l.master != bridge.index {
		wrong = append(wrong, fmt.Sprintf("interface %s is not on bridge %s", p.name, bridge.name))
	} else if !l.hairpin {
		wrong = append(wrong, fmt.Sprintf("interface %s is not in hairpin mode", p.name))
	}
	if l.alias != portAlias(p.Key) {
		wrong = append(wrong, fmt.Sprintf("interface %s is marked %q and not as this container's", p.name, l.alias))
	}
	return wrong, nil
}

// checkContainer asks the container's namespace for each thing by itself: lists may
// be as long as the container's root made them.
func (n *Network) checkContainer(c *Container, p placement, result *types100.Result) (wrong []string, err error) {
	l, err := findLink(c.Route, p.IfName)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return []string{"the container has no interface " + p.IfName}, nil
	}
	wrong = downIf(!l.up, "the container's interface "+p.IfName)
	if l.mac.String() != p.mac.String() {
		wrong = append(wrong, fmt.Sprintf("the container's interface %s has the MAC address %s and not %s", p.IfName, l.mac, p.mac))
	}
	// Before version 1.1.0 of the specification a result says no MTU.
	if mtu := conf.InterfaceOf(result, p.IfName).Mtu; mtu > 0 && l.mtu != mtu {
		wrong = append(wrong, fmt.Sprintf("the container's interface %s has the MTU %d and not %d", p.IfName, l.mtu, mtu))
	}
	host, err := findLink(n.Host.Route, p.name)
	if err != nil {
		return nil, err
	}
	if host != nil && host.peer != l.index {
		wrong = append(wrong, fmt.Sprintf("the container's interface %s is not the other end of %s", p.IfName, p.name))
	}
	for _, ip := range p.ips {
		has, err := hasAddress(c.Route, l.index, ip)
		if err != nil {
			return nil, err
		}
		if !has {
			wrong = append(wrong, fmt.Sprintf("the container's interface %s does not have address %s", p.IfName, ip))
		}
	}
	routes, err := checkRoutes(c, l, result)
	return append(wrong, routes...), err
}

// checkRoutes looks whether the default routes that Add set are there.
func checkRoutes(c *Container, l *link, result *types100.Result) (wrong []string, err error) {
	var own []netip.Prefix
	for _, ip := range result.IPs {
		if p, err := netip.ParsePrefix(ip.Address.String()); err == nil {
			own = append(own, p)
		}
	}
	for _, want := range result.Routes {
		gateway, ok := gatewayFor(want.Dst.IP, result)
		if !ok {
			continue
		}
		r, err := lookUp(c.Route, outside(nlsock.FamilyOf(gateway), own...))
		if err != nil {
			return nil, err
		}
		switch {
		case r == nil:
			wrong = append(wrong, fmt.Sprintf("the container has no default route over %s", gateway))
		case r.leadsElsewhere(gateway, l.index):
			wrong = append(wrong, fmt.Sprintf("the container's default route is not over %s, %s", gateway, l.name))
		}
	}
	return wrong, nil
}

func gatewayFor(dst []byte, result *types100.Result) (netip.Addr, bool) {
	to, ok := netip.AddrFromSlice(dst)
	if !ok || !to.Unmap().IsUnspecified() {
		return netip.Addr{}, false
	}
	for _, ip := range result.IPs {
		if gateway, ok := netip.AddrFromSlice(ip.Gateway); ok && gateway.Unmap().Is4() == to.Unmap().Is4() {
			return gateway.Unmap(), true
		}
	}
	return netip.Addr{}, false
}

// checkAddresses looks whether the addresses are still written down as the
// container's.
func (n *Network) checkAddresses(ctx context.Context, p placement) (wrong []string, err error) {
	store, err := openAddresses(ctx, n.Dir, n.Name)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	for _, ip := range p.ips {
		if !store.owns(p.Key, ip) {
			wrong = append(wrong, fmt.Sprintf("address %s is not written down as the container's in %s", ip, store.dir))
		}
	}
	return wrong, nil
}

func (n *Network) checkFirewall(p placement, made *types100.Result) ([]string, error) {
	if mac, ips := placeIn(made, p.IfName); mac != nil {
		if mac.String() != p.mac.String() {
			// Not an error: prevResult has it (specification section 2, "CHECK").
			n.Log.Warn("a plugin behind ambi has changed the container's MAC address, and what does not come from the one that ambi gave it is dropped; ask ambi for that address (runtimeConfig or args.cni, key mac)", "mac", p.mac.String(), "given", mac.String())
		}
		p.mac, p.ips = mac, ips
	}
	t := newTables()
	name := n.bridgeName()
	wrong, err := n.Host.missingRules(t, append(t.ofNetwork(name, n.Config.Isolate), t.ofPort(p.port)...))
	if err != nil {
		return nil, err
	}
	for _, o := range n.needs(name) {
		filters, err := n.Host.filters(stateOf(p.ips), o.chain)
		if err != nil {
			return nil, err
		}
		for _, f := range filters {
			if f.lacks(o) {
				wrong = append(wrong, fmt.Sprintf("%s: chain %s drops, and has no rule for bridge %s", f.command, o.chain, name))
			}
		}
	}
	return wrong, nil
}

// stateOf is a state with the families of addresses.
func stateOf(ips []netip.Addr) (s state) {
	for _, ip := range ips {
		s.subnets = append(s.subnets, netip.PrefixFrom(ip, ip.BitLen()))
	}
	return s
}

func (n *Network) checkBandwidth(a *conf.Attachment) (wrong []string, err error) {
	for _, want := range []struct {
		name        string
		rate, burst uint64
		what        string
	}{
		{portName(a.Key), a.Bandwidth.IngressRate, a.Bandwidth.IngressBurst, "receives"},
		{ifbName(a.Key), a.Bandwidth.EgressRate, a.Bandwidth.EgressBurst, "sends"},
	} {
		if want.rate == 0 {
			continue
		}
		l, err := findLink(n.Host.Route, want.name)
		if err != nil {
			return nil, err
		}
		var has *bucket
		if l != nil {
			if has, err = bucketOf(n.Host.Route, l); err != nil {
				return nil, err
			}
		}
		if has == nil || *has != newBucket(want.rate, want.burst) {
			wrong = append(wrong, fmt.Sprintf("the limit of what the container %s is missing or was changed", want.what))
		}
	}
	return wrong, nil
}
