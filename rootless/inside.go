package rootless

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// inside is the container's network namespace as the supervisor reaches it: one
// locked thread that lives there and creates sockets, and a netlink handle that
// it made. It is rootlessport's forward.Namespace.
type inside struct {
	netns *os.File
	calls chan func()
	link  *netlink.Handle
	plan  *plan.Interface
	table tables

	mu      sync.Mutex
	rules   map[conf.Protocol]*portRanges
	clients map[source]bool
	leaving bool // see leaveAtOnce
}

// enter starts the thread inside the namespace. It ends with the process: a
// thread that cannot go back to the host's namespace is of no other use.
func enter(netns *os.File, key conf.Key, p *plan.Interface) (*inside, error) {
	in := &inside{
		netns: netns, calls: make(chan func()), plan: p, table: tablesOf(key),
		rules:   map[conf.Protocol]*portRanges{conf.TCP: {}, conf.UDP: {}},
		clients: make(map[source]bool),
	}
	entered := make(chan error)
	go in.thread(netns, entered)
	if err := <-entered; err != nil {
		return nil, fmt.Errorf("entering the container's network namespace: %w", err)
	}
	var err error
	in.do(func() { err = unpin(netns) })
	if err != nil {
		return nil, fmt.Errorf("the container's network namespace: %w", err)
	}
	in.do(func() { in.link, err = netlink.NewHandle(unix.NETLINK_ROUTE) })
	if err != nil {
		return nil, fmt.Errorf("netlink in the container's network namespace: %w", err)
	}
	return in, nil
}

func (in *inside) thread(netns *os.File, entered chan<- error) {
	runtime.LockOSThread() // never unlocked
	if unix.Gettid() == unix.Getpid() {
		// Not the first thread: /proc/PID/ns/net shows its namespace for the whole
		// process, to people and to programs that follow it. While this goroutine
		// keeps it locked, another one cannot land on it.
		moved := make(chan struct{})
		go func() { in.thread(netns, entered); close(moved) }()
		<-moved
		return
	}
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		entered <- err
		return
	}
	entered <- nil
	for call := range in.calls {
		call()
	}
}

// unpin has the file lead to the calling thread's namespace, which is the same one,
// by a way that keeps no mount busy: the runtime must be able to unmount the path
// that it gave us.
func unpin(netns *os.File) error {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	return unix.Dup3(int(own.Fd()), int(netns.Fd()), unix.O_CLOEXEC)
}

// do runs f on the thread inside. What f opens there belongs to the container's
// namespace.
func (in *inside) do(f func()) {
	done := make(chan struct{})
	in.calls <- func() { f(); close(done) }
	<-done
}

// Socket is socket(2) inside the container's namespace.
func (in *inside) Socket(domain, typ, proto int) (fd int, err error) {
	in.do(func() { fd, err = unix.Socket(domain, typ, proto) })
	return fd, err
}

// Enter moves the calling thread inside for good: rootlessport's workers are there,
// and make their sockets themselves. It needs CAP_SYS_ADMIN, so it works until the
// supervisor is ready.
func (in *inside) Enter() error { return unix.Setns(int(in.netns.Fd()), unix.CLONE_NEWNET) }

// absent says that there is no such interface inside.
func (in *inside) absent(ifName string) error {
	_, err := in.link.LinkByName(ifName)
	if isMissingLink(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for interface %s: %w", ifName, err)
	}
	return conf.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME %q: the namespace has an interface of that name already; choose another name or remove it first", ifName)
}

// chooseAddresses makes sure that the namespace has no other interface in our
// networks, before ours is there. A default IPv4 network gives way to the next one.
// An IPv6 network is always the same one, so there the next free address is taken. What was asked for stays, and is an error.
func (in *inside) chooseAddresses() error {
	for _, f := range []*plan.Subnet{&in.plan.IPv4, &in.plan.IPv6} {
		if !f.Enabled() {
			continue
		}
		others, err := in.link.AddrList(nil, netlinkFamily(f.Gateway))
		if err != nil {
			return fmt.Errorf("addresses in the namespace: %w", err)
		}
		if err := in.avoid(f, others); err != nil {
			return err
		}
	}
	return nil
}

func (in *inside) avoid(f *plan.Subnet, others []netlink.Addr) error {
	taken := func(ip netip.Addr) int {
		return slices.IndexFunc(others, func(a netlink.Addr) bool { return a.IP.Equal(ip.AsSlice()) })
	}
	if f.Movable && !f.Move(func(n netip.Prefix) bool {
		return slices.ContainsFunc(others, func(a netlink.Addr) bool { return overlap(a.IPNet, n) })
	}) {
		return conf.Errorf(conf.ErrNetwork, "every default network is in use in the namespace; set rootless.cidr to one that is not")
	}
	for !f.Asked && f.Gateway.Is6() && taken(f.First()) >= 0 {
		if !f.Next() {
			return conf.Errorf(conf.ErrNetwork, "every default address of network %s is taken in the namespace; ask for one with ips", f.Network())
		}
	}
	for _, own := range f.Addresses {
		if i := taken(own.Addr()); i >= 0 {
			return conf.Errorf(types.ErrInvalidNetworkConfig, "address %s is taken by interface %s of the namespace; ask for another one with ips, or set rootless.cidr to another network",
				own.Addr(), in.nameOf(others[i]))
		}
	}
	i := slices.IndexFunc(others, func(a netlink.Addr) bool { return f.Gateway.Is4() && sameNetwork(a.IPNet, f.Network()) })
	if i >= 0 {
		return conf.Invalid("rootless.cidr", f.Network(), fmt.Sprintf("interface %s of the namespace is in that network already; choose another one for this interface", in.nameOf(others[i])))
	}
	return nil
}

func overlap(n *net.IPNet, p netip.Prefix) bool {
	return n.Contains(p.Addr().AsSlice()) || p.Contains(netip.AddrFrom4([4]byte(n.IP.To4())))
}

func sameNetwork(n *net.IPNet, p netip.Prefix) bool {
	ones, _ := n.Mask.Size()
	return ones == p.Bits() && p.Contains(netip.AddrFrom4([4]byte(n.IP.To4())))
}

func (in *inside) nameOf(a netlink.Addr) string {
	link, err := in.link.LinkByIndex(a.LinkIndex)
	if err != nil {
		return fmt.Sprintf("with index %d", a.LinkIndex)
	}
	return link.Attrs().Name
}

func isMissingLink(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// configure gives the interface that the driver made its addresses and routes.
// It is called again when the driver was restarted, and brings back the same.
func (in *inside) configure() error {
	link, err := in.link.LinkByName(in.plan.IfName)
	if err != nil {
		return fmt.Errorf("interface %s of the driver: %w", in.plan.IfName, err)
	}
	for _, step := range []struct {
		what string
		do   func(netlink.Link) error
	}{
		{"loopback interface", in.raiseLoopback},
		{"MAC address", in.setMAC},
		{"MTU", func(l netlink.Link) error { return in.link.LinkSetMTU(l, in.plan.MTU) }},
		{"IPv6 settings", in.quietIPv6},
		{"link state", in.link.LinkSetUp},
		{"IPv4 address", func(l netlink.Link) error { return in.address(l, in.plan.IPv4) }},
		{"IPv6 address", func(l netlink.Link) error { return in.address(l, in.plan.IPv6) }},
		{"source address routes", in.restoreRoutes},
	} {
		if err := step.do(link); err != nil {
			return fmt.Errorf("interface %s: setting the %s: %w", in.plan.IfName, step.what, err)
		}
	}
	return nil
}

func (in *inside) raiseLoopback(netlink.Link) error {
	lo, err := in.link.LinkByName("lo")
	if err != nil {
		return err
	}
	return in.link.LinkSetUp(lo)
}

// setMAC sets the MAC address asked for, or remembers the kernel's choice so that
// a restarted driver gets it again.
func (in *inside) setMAC(link netlink.Link) error {
	if in.plan.MAC == "" {
		in.plan.MAC = link.Attrs().HardwareAddr.String()
		return nil
	}
	mac, err := net.ParseMAC(in.plan.MAC)
	if err != nil {
		return err
	}
	return in.link.LinkSetHardwareAddr(link, mac)
}

// quietIPv6 switches IPv6 of the interface on or off as planned, whatever the
// namespace's default is, and turns off what would add a second address (router
// advertisements of the driver) or make the first wait (duplicate address
// detection). Each is best effort: /proc/sys may be read-only, and an address that
// cannot be set then is an error of its own.
func (in *inside) quietIPv6(netlink.Link) error {
	settings := map[string]string{"disable_ipv6": "1"}
	if in.plan.IPv6.Enabled() {
		settings = map[string]string{"disable_ipv6": "0", "accept_ra": "0", "autoconf": "0", "accept_dad": "0"}
	}
	in.do(func() { // /proc/sys/net is that of the thread's namespace
		for setting, value := range settings {
			_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+in.plan.IfName+"/"+setting, []byte(value), 0)
		}
	})
	return nil
}

func (in *inside) address(link netlink.Link, f plan.Subnet) error {
	if !f.Enabled() {
		return nil
	}
	for _, prefix := range f.Addresses {
		addr := &netlink.Addr{IPNet: plan.IPNet(prefix)}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := in.link.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("%s: %w", prefix, err)
		}
	}
	return in.defaultRoute(link, f)
}

func (in *inside) defaultRoute(link netlink.Link, f plan.Subnet) error {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: plan.Everywhere(f.Gateway), Gw: f.Gateway.AsSlice()}
	err := in.link.RouteAdd(route)
	if errors.Is(err, unix.EEXIST) {
		// The namespace has a default route over another interface, which stays the
		// first choice; ours comes after it.
		route.Priority = 1024 + link.Attrs().Index
		err = in.link.RouteReplace(route)
	}
	if err != nil {
		return fmt.Errorf("default route by %s: %w", f.Gateway, err)
	}
	return nil
}
