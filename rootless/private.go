package rootless

import (
	"context"
	"crypto/rand"
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
	"github.com/ambi-cni/ambi/portmap/forward"
	"github.com/ambi-cni/ambi/rootless/hub"
	"github.com/ambi-cni/ambi/rootless/link"
	"github.com/ambi-cni/ambi/rootless/plan"
	"github.com/ambi-cni/ambi/rootless/supervisor"
)

// A private network is a hub with one member. There is no bridge in it: the container has an
// address of the driver's own network, and the hub routes between the two, answering on each
// side for who is on the other (rootless/link, Between). So nothing is translated, and the
// container finds gateway and name server where the driver has them.

// addPrivate starts a hub for the container. It saves the record before its first change. After
// an error, Del cleans up.
func (n *Network) addPrivate(ctx context.Context, a *conf.Attachment) (*types100.Result, error) {
	h := hub.OfOne(n.Store, a.Key)
	wanted, err := n.wantedPrivate(h, a)
	if err != nil {
		return nil, err
	}
	container, err := enterContainer(a.NetnsPath)
	if err != nil {
		return nil, err
	}
	defer container.close()
	if err := container.accommodate(wanted); err != nil {
		return nil, err
	}
	n.step("enter the namespace")
	sockets, err := bindFor(a, a.Ports...)
	if err != nil {
		return nil, err
	}
	defer func() { forward.CloseSockets(sockets) }()
	n.step("bind the ports")
	// Up to here nothing has to be undone.
	n.Record.Hub = h.Name
	if err := n.Store.Save(n.Record); err != nil {
		return nil, err
	}
	n.step("save the record")
	state, lock, err := n.enterHub(ctx, h, a, wanted)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	n.Record.Supervisor = &state.Supervisor
	if err := n.link(h, state, container); err != nil {
		return nil, err
	}
	made := result(a, state.Private)
	if err := n.open(ctx, h, state, a, made, sockets); err != nil {
		return nil, err
	}
	return made, n.publishByDriver(h, a)
}

// wantedPrivate is what the hub has to be.
func (n *Network) wantedPrivate(h hub.Hub, a *conf.Attachment) (*hub.State, error) {
	command, p, err := n.choose(a)
	if err != nil {
		return nil, err
	}
	command.IfName = hub.DriverEnd
	if publishesItself(a) {
		command.APISocket = h.Path("api") // without ports, too: some may be added
	}
	if p.MAC == "" {
		p.MAC = randomMAC().String()
	}
	return &hub.State{Network: a.Network, Driver: *command, Private: p}, nil
}

func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac)
	mac[0] = mac[0]&^1 | 2 // of one interface, and nobody's by registration
	return mac
}

// driversPlan is the driver's interface, in front of the container's.
func driversPlan(container *plan.Interface) plan.Interface {
	p := plan.Interface{IfName: hub.DriverEnd, MTU: container.MTU, IPv4: container.IPv4, IPv6: container.IPv6}
	p.IPv4.Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.0.8/32")} // the "dummy address" (RFC 7600)
	if p.IPv6.Enabled() {
		p.IPv6.Addresses = []netip.Prefix{netip.MustParsePrefix("fe80::64/128")}
	}
	return p
}

// accommodate makes sure that the container has no interface of that name yet, and no other
// one in our networks, and has the plan give way where it may.
func (c *insideContainer) accommodate(wanted *hub.State) error {
	p := wanted.Private
	if err := c.lacks(p.IfName); err != nil {
		return err
	}
	others, err := c.place.Addresses(0)
	if err != nil {
		return fmt.Errorf("addresses in the namespace: %w", err)
	}
	for _, f := range []*plan.Subnet{&p.IPv4, &p.IPv6} {
		if err := c.avoid(f, others); err != nil {
			return err
		}
	}
	wanted.Driver.Move(p.IPv4.Network())
	wanted.Plan = driversPlan(p)
	return nil
}

// avoid: a default IPv4 network gives way to the next one. An IPv6 network is always the same
// one, so there the next free address is taken. What was asked for stays, and is an error.
func (c *insideContainer) avoid(f *plan.Subnet, others []link.Address) error {
	taken := func(ip netip.Addr) int {
		return slices.IndexFunc(others, func(a link.Address) bool { return a.Addr() == ip })
	}
	if f.Movable && !f.Move(func(network netip.Prefix) bool {
		return slices.ContainsFunc(others, func(a link.Address) bool { return a.Overlaps(network) })
	}) {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "every default network is in use in the namespace"), "set rootless.cidr to one that is not")
	}
	for f.Enabled() && !f.Asked && f.Gateway.Is6() && taken(f.First()) >= 0 {
		if !f.Next() {
			return conf.Mendf(conf.Errorf(conf.ErrNetwork, "every default address of network %s is taken in the namespace", f.Network()), "ask for one with ips")
		}
	}
	for _, own := range f.Addresses {
		if i := taken(own.Addr()); i >= 0 {
			return conf.Mendf(conf.Errorf(types.ErrInvalidNetworkConfig, "address %s is taken by interface %s of the namespace", own.Addr(), c.nameOf(others[i])), "ask for another one with ips, or set rootless.cidr to another network")
		}
	}
	i := slices.IndexFunc(others, func(a link.Address) bool { return f.Gateway.Is4() && a.Masked() == f.Network() })
	if i >= 0 {
		return conf.Mendf(conf.Invalid("rootless.cidr", f.Network(), fmt.Sprintf("interface %s of the namespace is in that network already", c.nameOf(others[i]))), "choose another one for this interface")
	}
	return nil
}

func (c *insideContainer) nameOf(a link.Address) string {
	l, err := c.place.ByIndex(a.Link)
	if err != nil || l == nil {
		return fmt.Sprintf("with index %d", a.Link)
	}
	return l.Name
}

// openPlace opens the namespace of a hub.
func openPlace(h hub.Hub) (*link.Place, error) {
	files, err := controlOfHub(h).Open()
	if err != nil {
		return nil, fmt.Errorf("the hub: %w", mute(err))
	}
	if !h.Private() {
		files[0].Close() // its firewall
		files = files[1:]
	}
	place, err := link.FromFiles(files)
	if err != nil {
		return nil, fmt.Errorf("the hub: %w", err)
	}
	return place, nil
}

// link makes the link between hub and container.
func (n *Network) link(h hub.Hub, state *hub.State, c *insideContainer) error {
	inside, err := openPlace(h)
	if err != nil {
		return err
	}
	defer inside.Close()
	p := state.Private
	if err := makePair(inside, c, p); err != nil {
		return err
	}
	second, err := c.configure(p)
	if err != nil {
		return fmt.Errorf("the container's namespace %s: %w", c.Path, err)
	}
	if second {
		state.Second = true
		if err := h.Save(state); err != nil {
			return err
		}
	}
	n.step("link hub and container")
	return nil
}

func makePair(inside *link.Place, c *insideContainer, p *plan.Interface) error {
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		return conf.Invalid("mac", p.MAC, "it is a MAC address of one interface, such as 02:00:00:00:00:01")
	}
	var b nlsock.Batch
	b.NewVeth(nlsock.Veth{
		Host: hub.HostEnd, Container: p.IfName, HostMAC: randomMAC(), ContainerMAC: mac, MTU: p.MTU, Namespace: int(c.place.Netns.Fd()), OneQueue: true,
	})
	switch _, err := b.Send(inside.Route); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "the hub: %v", err), "load the kernel module: modprobe veth")
	case err != nil:
		return fmt.Errorf("the hub: %w", err)
	}
	end, err := inside.Link(hub.HostEnd)
	if err == nil && end == nil {
		err = fmt.Errorf("interface %s is gone as soon as it was made", hub.HostEnd)
	}
	if err == nil {
		err = up(inside, end)
	}
	if err == nil {
		err = inside.Between(hub.HostEnd, p.Own(), p.Others())
	}
	if err != nil {
		return fmt.Errorf("the hub: %w", err)
	}
	return nil
}

func up(p *link.Place, l *link.Link) error {
	var b nlsock.Batch
	b.LinkUp(l.Name, l.Index)
	_, err := b.Send(p.Route)
	return err
}

// configure gives the container's interface its addresses and routes. It says whether the
// default route is but second to another one.
func (c *insideContainer) configure(p *plan.Interface) (second bool, err error) {
	l, err := c.place.Link(p.IfName)
	if err == nil && l == nil {
		err = fmt.Errorf("interface %s is gone as soon as it was made", p.IfName)
	}
	if err != nil {
		return false, err
	}
	c.settleIPv6(p)
	const loIndex = 1 // in every namespace (net/core/dev.c, LOOPBACK_IFINDEX)
	var b nlsock.Batch
	b.LinkUp("lo", loIndex)
	for _, f := range []plan.Subnet{p.IPv4, p.IPv6} {
		for _, address := range f.Addresses {
			b.AddAddress(address, l.Name, l.Index)
		}
	}
	b.LinkUp(l.Name, l.Index)
	if _, err := b.Send(c.Route); err != nil {
		return false, err
	}
	for _, f := range []plan.Subnet{p.IPv4, p.IPv6} {
		if f.Enabled() {
			later, err := defaultRoute(c.Route, f.Gateway, l.Index)
			if err != nil {
				return false, err
			}
			second = second || later
		}
	}
	// To ask for a link has it send at once, see bridge.
	_, err = c.place.Link(p.IfName)
	return second, err
}

// settleIPv6 switches IPv6 of the interface on or off as planned, whatever the namespace's
// default is, and turns off what would add a second address (router advertisements) or make
// the first wait (duplicate address detection). Addresses stay while the interface is down, as
// those of IPv4 do. Each is best effort: /proc/sys may be read-only, and an address that
// cannot be set then is an error of its own.
func (c *insideContainer) settleIPv6(p *plan.Interface) {
	settings := map[string]string{"disable_ipv6": "1"}
	if p.IPv6.Enabled() {
		settings = map[string]string{"disable_ipv6": "0", "accept_ra": "0", "autoconf": "0", "accept_dad": "0", "keep_addr_on_down": "1"}
	}
	for setting, value := range settings {
		_ = c.place.Write("ipv6/conf/"+p.IfName+"/"+setting, value)
	}
}

// defaultRoute adds the default route. Where the namespace has one over another interface,
// that stays the first choice.
func defaultRoute(s *nlsock.Socket, gateway netip.Addr, index int) (second bool, err error) {
	add := func(flags uint16, metric uint32) error {
		var b nlsock.Batch
		b.Add("setting the default route over "+gateway.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|flags, nlsock.RtMsg(nlsock.FamilyOf(gateway), 0, 0), func(e *nlsock.Encoder) {
			e.Bytes(unix.RTA_GATEWAY, gateway.AsSlice())
			e.Uint32(unix.RTA_OIF, uint32(index))
			if metric > 0 {
				e.Uint32(unix.RTA_PRIORITY, metric)
			}
			nlsock.Unpaced(e)
		})
		_, err := b.Send(s)
		return err
	}
	if err = add(unix.NLM_F_EXCL, 0); errors.Is(err, unix.EEXIST) {
		const behindOthers = 1024 // the metric of IPv6 routes that say none
		return true, add(unix.NLM_F_REPLACE, behindOthers+uint32(index))
	}
	return false, err
}

// publishByDriver publishes the ports where that is the driver's part.
func (n *Network) publishByDriver(h hub.Hub, a *conf.Attachment) error {
	if !publishesItself(a) {
		return nil
	}
	for _, m := range a.Ports {
		if err := controlOfHub(h).PublishByDriver(m); err != nil {
			return fmt.Errorf("publishing the ports of %s: %w", a.Key, mute(err))
		}
	}
	n.step("publish the ports")
	return nil
}

// unlink takes the interface out of the container, with the hub's end of the link: the kernel is
// in no hurry to do it when the hub has gone. The hub does it, so that what the kernel has to do
// then goes on while the hub's processes end; else this process, as in one of an older ambi. One
// that does not answer would hand out no files either.
func unlink(h hub.Hub, hostEnd string) error {
	var said *types.Error
	if err := controlOfHub(h).RemoveLink(hostEnd); !errors.As(err, &said) {
		return err
	}
	inside, err := openPlace(h)
	if err != nil {
		return err
	}
	defer inside.Close()
	if err := inside.Remove(hostEnd); err != nil {
		return fmt.Errorf("the hub: %w", err)
	}
	return nil
}

// checkPrivate compares hub and container with what ADD has made, and names all that is wrong.
func (n *Network) checkPrivate(a *conf.Attachment, state *hub.State) error {
	mac, err := recordedMAC(a)
	if err != nil {
		return err
	}
	var wrong []string
	err = n.ask(func(c supervisor.Control) error { return mute(c.CheckOf(a.Key)) })
	var said *types.Error
	switch {
	case errors.As(err, &said) && said.Code == conf.ErrNetwork:
		wrong = append(wrong, strings.TrimPrefix(said.Msg, fmt.Sprintf("attachment %s: ", a.Key)))
	case err != nil:
		return err
	}
	problems, err := n.lookInside(a, state.Private, mac)
	if err != nil {
		return err
	}
	for _, p := range problems {
		wrong = append(wrong, p.Error())
	}
	if len(wrong) == 0 {
		return nil
	}
	return conf.Mendf(conf.Errorf(conf.ErrNetwork, "attachment %s: %s", a.Key, strings.Join(wrong, "; ")), "call DEL and ADD again")
}

func (n *Network) lookInside(a *conf.Attachment, p *plan.Interface, mac string) ([]error, error) {
	c, err := enterContainer(a.NetnsPath)
	if err != nil {
		return nil, err
	}
	defer c.close()
	inside, err := openPlace(n.hub(a.Key))
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	end, err := inside.Link(hub.HostEnd)
	if err != nil {
		return nil, err
	}
	l, err := c.place.Link(p.IfName)
	switch {
	case err != nil:
		return nil, err
	case end == nil || l == nil || end.Peer != l.Index:
		return []error{fmt.Errorf("interface %s is not in the namespace", p.IfName)}, nil
	}
	return c.differences(l, p, mac), nil
}

// differences of the container's interface from the plan. Addresses and routes beyond it are
// the container's own. The MAC address is that of the plan unless another one is expected by
// now.
func (c *insideContainer) differences(l *link.Link, p *plan.Interface, mac string) (wrong []error) {
	if mac == "" {
		mac = p.MAC
	}
	if l.Flags&unix.IFF_UP == 0 {
		wrong = append(wrong, fmt.Errorf("interface %s is down", l.Name))
	}
	if !strings.EqualFold(l.MAC, mac) {
		wrong = append(wrong, fmt.Errorf("interface %s has MAC address %s and not %s", l.Name, l.MAC, mac))
	}
	if l.MTU != p.MTU {
		wrong = append(wrong, fmt.Errorf("interface %s has MTU %d and not %d", l.Name, l.MTU, p.MTU))
	}
	have, err := c.place.Addresses(l.Index)
	if err != nil {
		wrong = append(wrong, fmt.Errorf("interface %s: %w", l.Name, err))
	}
	for _, f := range []plan.Subnet{p.IPv4, p.IPv6} {
		for _, want := range f.Addresses {
			if !slices.ContainsFunc(have, func(a link.Address) bool { return a.Prefix == want }) {
				wrong = append(wrong, fmt.Errorf("interface %s lacks address %s", l.Name, want))
			}
		}
		if !f.Enabled() {
			continue
		}
		if has, err := c.place.HasDefault(l.Index, f.Gateway); err != nil {
			wrong = append(wrong, fmt.Errorf("interface %s: %w", l.Name, err))
		} else if !has {
			wrong = append(wrong, fmt.Errorf("the default route by %s is missing", f.Gateway))
		}
	}
	return wrong
}
