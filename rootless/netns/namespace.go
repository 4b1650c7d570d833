package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// Namespace is the container's network namespace: one locked thread that lives there
// and creates sockets, and a netlink handle that it made. It is rootlessport's
// forward.Namespace.
type Namespace struct {
	*SourceRoutes
	file  *os.File
	calls chan func()
	link  *netlink.Handle
	plan  *plan.Interface
	index atomic.Int64 // of the interface when it was configured

	folders bool // the thread has folders of its own, in a hub where plugins run
}

// Open starts the thread inside the namespace. It ends with the process: a thread that
// cannot go back to the host's namespace is of no other use.
func Open(file *os.File, key conf.Key, p *plan.Interface) (*Namespace, error) {
	n := &Namespace{file: file, calls: make(chan func()), plan: p}
	entered := make(chan error)
	go n.thread(entered)
	if err := <-entered; err != nil {
		return nil, fmt.Errorf("entering the container's network namespace: %w", err)
	}
	var err error
	n.Do(func() { err = unpin(file) })
	if err != nil {
		return nil, fmt.Errorf("the container's network namespace: %w", err)
	}
	n.Do(func() { n.link, err = netlink.NewHandle(unix.NETLINK_ROUTE) })
	if err != nil {
		return nil, fmt.Errorf("netlink in the container's network namespace: %w", err)
	}
	n.SourceRoutes = newSourceRoutes(n.link, key, "lo", p)
	return n, nil
}

// Make makes the namespace of a hub, which passes on what comes over the bridge, and starts
// the thread inside. The plan is that of the driver's interface.
//
// Without a bridge the hub is one in which plugins run and make what they like.
func Make(key conf.Key, bridge string, p *plan.Interface) (*Namespace, error) {
	n := &Namespace{calls: make(chan func()), plan: p, folders: bridge == ""}
	made := make(chan error)
	go n.thread(made)
	if err := <-made; err != nil {
		return nil, notMade(err)
	}
	var err error
	n.Do(func() { n.link, err = netlink.NewHandle(unix.NETLINK_ROUTE) })
	if err != nil {
		return nil, fmt.Errorf("netlink in the hub: %w", err)
	}
	n.SourceRoutes = newSourceRoutes(n.link, key, bridge, p)
	if err := n.raiseLoopback(nil); err != nil {
		return nil, fmt.Errorf("loopback interface of the hub: %w", err)
	}
	if err := n.wayOut(); err != nil {
		return nil, err
	}
	return n, n.passOn()
}

// notMade says what keeps a hub from having a network namespace.
func notMade(err error) error {
	err = fmt.Errorf("making the network namespace of the hub: %w", err)
	switch {
	case errors.Is(err, unix.ENOSPC):
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "%v", err), "there are as many as may be: raise the sysctl user.max_net_namespaces")
	case errors.Is(err, unix.EPERM):
		// User namespaces of ordinary users are without rights.
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "%v", err), "allow user namespaces to ordinary users (with AppArmor: sysctl kernel.apparmor_restrict_unprivileged_userns=0)")
	}
	return err
}

// passOn has the hub forward, and its interfaces have their addresses at once and from
// nobody else. What a kernel without IPv6 lacks is left out.
func (n *Namespace) passOn() error {
	for _, s := range []struct{ name, value string }{
		{"ipv4/ip_forward", "1"}, {"ipv6/conf/all/forwarding", "1"},
		{"ipv6/conf/default/accept_ra", "0"}, {"ipv6/conf/default/accept_dad", "0"},
	} {
		if err := n.SetSysctl(s.name, s.value); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("setting net.%s to %s in the hub: %w", strings.ReplaceAll(s.name, "/", "."), s.value, err)
		}
	}
	// What goes from member to member needs no entry in a table that is bounded. (Where there
	// is br_netfilter; Linux 5.3 and newer have these for each namespace.)
	for _, family := range []string{"iptables", "ip6tables"} {
		_ = n.SetSysctl("bridge/bridge-nf-call-"+family, "0")
	}
	return nil
}

const sysctls = "/proc/sys/net/" // those of the reading thread's namespace

// Sysctl is a value below /proc/sys/net inside.
func (n *Namespace) Sysctl(name string) (value string, err error) {
	n.Do(func() {
		var b []byte
		b, err = os.ReadFile(sysctls + name)
		value = strings.TrimSpace(string(b))
	})
	return value, err
}

// SetSysctl sets a value below /proc/sys/net inside.
func (n *Namespace) SetSysctl(name, value string) (err error) {
	n.Do(func() { err = os.WriteFile(sysctls+name, []byte(value), 0) })
	return err
}

// File is the namespace itself.
func (n *Namespace) File() *os.File { return n.file }

func (n *Namespace) thread(entered chan<- error) {
	runtime.LockOSThread() // never unlocked
	if unix.Gettid() == unix.Getpid() {
		// Not the first thread: /proc/PID/ns/net shows its namespace for the whole
		// process, to people and to programs that follow it. While this goroutine
		// keeps it locked, another one cannot land on it.
		moved := make(chan struct{})
		go func() { n.thread(entered); close(moved) }()
		<-moved
		return
	}
	if err := n.enterOrMake(); err != nil {
		entered <- err
		return
	}
	entered <- nil
	for call := range n.calls {
		call()
	}
}

// enterOrMake moves the calling thread into the namespace, or into a new one.
func (n *Namespace) enterOrMake() (err error) {
	if n.file != nil {
		return n.Enter()
	}
	kinds := unix.CLONE_NEWNET
	if n.folders {
		kinds |= unix.CLONE_NEWNS
	}
	if err := unix.Unshare(kinds); err != nil {
		return err
	}
	if n.file, err = os.Open("/proc/thread-self/ns/net"); err != nil || !n.folders {
		return err
	}
	return ownFolders()
}

// unpin has the file lead to the calling thread's namespace, which is the same one,
// by a way that keeps no mount busy: the runtime must be able to unmount the path
// that it gave us.
func unpin(file *os.File) error {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	return unix.Dup3(int(own.Fd()), int(file.Fd()), unix.O_CLOEXEC)
}

// Do runs f on the thread inside. What f opens there belongs to the container's
// namespace.
func (n *Namespace) Do(f func()) {
	done := make(chan struct{})
	n.calls <- func() { f(); close(done) }
	<-done
}

// Socket is socket(2) inside the container's namespace.
func (n *Namespace) Socket(domain, typ, proto int) (fd int, err error) {
	n.Do(func() { fd, err = unix.Socket(domain, typ, proto) })
	return fd, err
}

// Enter moves the calling thread inside for good: rootlessport's workers are there,
// and make their sockets themselves. It needs CAP_SYS_ADMIN, so it works until the
// supervisor is ready.
func (n *Namespace) Enter() error { return unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET) }

// Absent says that there is no such interface inside.
func (n *Namespace) Absent(ifName string) error {
	_, err := n.link.LinkByName(ifName)
	if isMissingLink(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for interface %s: %w", ifName, err)
	}
	return conf.Mendf(conf.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME %q: the namespace has an interface of that name already", ifName), "choose another name or remove it first")
}

// ChooseAddresses makes sure that the namespace has no other interface in our
// networks, before ours is there. A default IPv4 network gives way to the next one.
// An IPv6 network is always the same one, so there the next free address is taken. What was asked for stays, and is an error.
func (n *Namespace) ChooseAddresses() error {
	for _, f := range []*plan.Subnet{&n.plan.IPv4, &n.plan.IPv6} {
		if !f.Enabled() {
			continue
		}
		others, err := n.link.AddrList(nil, netlinkFamily(f.Gateway))
		if err != nil {
			return fmt.Errorf("addresses in the namespace: %w", err)
		}
		if err := n.avoid(f, others); err != nil {
			return err
		}
	}
	return nil
}

func (n *Namespace) avoid(f *plan.Subnet, others []netlink.Addr) error {
	taken := func(ip netip.Addr) int {
		return slices.IndexFunc(others, func(a netlink.Addr) bool { return a.IP.Equal(ip.AsSlice()) })
	}
	if f.Movable && !f.Move(func(network netip.Prefix) bool {
		return slices.ContainsFunc(others, func(a netlink.Addr) bool { return overlap(a.IPNet, network) })
	}) {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "every default network is in use in the namespace"), "set rootless.cidr to one that is not")
	}
	for !f.Asked && f.Gateway.Is6() && taken(f.First()) >= 0 {
		if !f.Next() {
			return conf.Mendf(conf.Errorf(conf.ErrNetwork, "every default address of network %s is taken in the namespace", f.Network()), "ask for one with ips")
		}
	}
	for _, own := range f.Addresses {
		if i := taken(own.Addr()); i >= 0 {
			return conf.Mendf(conf.Errorf(types.ErrInvalidNetworkConfig, "address %s is taken by interface %s of the namespace", own.Addr(), n.nameOf(others[i])), "ask for another one with ips, or set rootless.cidr to another network")
		}
	}
	i := slices.IndexFunc(others, func(a netlink.Addr) bool { return f.Gateway.Is4() && sameNetwork(a.IPNet, f.Network()) })
	if i >= 0 {
		return conf.Mendf(conf.Invalid("rootless.cidr", f.Network(), fmt.Sprintf("interface %s of the namespace is in that network already", n.nameOf(others[i]))), "choose another one for this interface")
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

func (n *Namespace) nameOf(a netlink.Addr) string {
	link, err := n.link.LinkByIndex(a.LinkIndex)
	if err != nil {
		return fmt.Sprintf("with index %d", a.LinkIndex)
	}
	return link.Attrs().Name
}

// Link is the driver's interface as it is now.
func (n *Namespace) Link() (netlink.Link, error) { return n.link.LinkByName(n.plan.IfName) }

// LinkByName is any other interface inside.
func (n *Namespace) LinkByName(name string) (netlink.Link, error) { return n.link.LinkByName(name) }

// Deleted says that the interface that was configured last is there no more, under any
// name. It is asked again and again while the container lives, and package netlink would
// leave 64 KiB of garbage each time.
func (n *Namespace) Deleted() bool {
	var request unix.Ifreq // its name is the answer (netdevice(7), SIOCGIFNAME)
	request.SetUint32(uint32(n.index.Load()))
	fd, err := n.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return n.index.Load() != 0 && errors.Is(unix.IoctlIfreq(fd, unix.SIOCGIFNAME, &request), unix.ENODEV)
}

func isMissingLink(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// Configure gives the interface that the driver made its addresses and routes.
// It is called again when the driver was restarted, and brings back the same.
func (n *Namespace) Configure() error {
	link, err := n.Link()
	if err != nil {
		return fmt.Errorf("interface %s of the driver: %w", n.plan.IfName, err)
	}
	n.index.Store(int64(link.Attrs().Index))
	for _, step := range []struct {
		what string
		do   func(netlink.Link) error
	}{
		{"loopback interface", n.raiseLoopback},
		{"MAC address", n.setMAC},
		{"MTU", n.setMTU},
		{"IPv6 settings", n.quietIPv6},
		{"link state", n.link.LinkSetUp},
		{"IPv4 address", func(l netlink.Link) error { return n.address(l, n.plan.IPv4) }},
		{"IPv6 address", func(l netlink.Link) error { return n.address(l, n.plan.IPv6) }},
		{"source address routes", func(netlink.Link) error { return n.restore() }},
	} {
		if err := step.do(link); err != nil {
			return fmt.Errorf("interface %s: setting the %s: %w", n.plan.IfName, step.what, err)
		}
	}
	return nil
}

func (n *Namespace) raiseLoopback(netlink.Link) error {
	lo, err := n.link.LinkByName("lo")
	if err != nil {
		return err
	}
	return n.link.LinkSetUp(lo)
}

// setMTU: an interface without a hardware address is no way for frames that somebody else
// has to take, and its maker has set it.
func (n *Namespace) setMTU(link netlink.Link) error {
	if len(link.Attrs().HardwareAddr) == 0 {
		return nil
	}
	return n.link.LinkSetMTU(link, n.plan.MTU)
}

// setMAC sets the MAC address asked for, or remembers the kernel's choice so that
// a restarted driver gets it again.
func (n *Namespace) setMAC(link netlink.Link) error {
	if n.plan.MAC == "" {
		n.plan.MAC = link.Attrs().HardwareAddr.String()
		return nil
	}
	mac, err := net.ParseMAC(n.plan.MAC)
	if err != nil {
		return err
	}
	return n.link.LinkSetHardwareAddr(link, mac)
}

// quietIPv6 switches IPv6 of the interface on or off as planned, whatever the
// namespace's default is, and turns off what would add a second address (router
// advertisements of the driver) or make the first wait (duplicate address
// detection). Each is best effort: /proc/sys may be read-only, and an address that
// cannot be set then is an error of its own.
func (n *Namespace) quietIPv6(netlink.Link) error {
	settings := map[string]string{"disable_ipv6": "1"}
	if n.plan.IPv6.Enabled() {
		settings = map[string]string{"disable_ipv6": "0", "accept_ra": "0", "autoconf": "0", "accept_dad": "0"}
	}
	n.Do(func() { // /proc/sys/net is that of the thread's namespace
		for setting, value := range settings {
			_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+n.plan.IfName+"/"+setting, []byte(value), 0)
		}
	})
	return nil
}

func (n *Namespace) address(link netlink.Link, f plan.Subnet) error {
	if !f.Enabled() {
		return nil
	}
	for _, prefix := range f.Addresses {
		addr := &netlink.Addr{IPNet: plan.IPNet(prefix)}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := n.link.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("%s: %w", prefix, err)
		}
	}
	return n.defaultRoute(link, f)
}

func (n *Namespace) defaultRoute(link netlink.Link, f plan.Subnet) error {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: plan.Everywhere(f.Gateway), Gw: f.Gateway.AsSlice()}
	err := n.link.RouteAdd(route)
	if errors.Is(err, unix.EEXIST) {
		// The namespace has a default route over another interface, which stays the
		// first choice; ours comes after it.
		route.Priority = 1024 + link.Attrs().Index
		err = n.link.RouteReplace(route)
	}
	if err != nil {
		return fmt.Errorf("default route by %s: %w", f.Gateway, err)
	}
	return nil
}
