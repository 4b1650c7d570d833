package netns

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/rootless/plan"
)

// Namespace is the network namespace of a hub: one locked thread that lives there
// and creates sockets, and a netlink handle that it made. It is rootlessport's
// forward.Namespace.
type Namespace struct {
	*SourceRoutes
	file  *os.File
	mount *os.File // mount namespace, where that is its own
	calls chan func()
	link  *netlink.Handle
	plan  *plan.Interface

	again   bool // another process has made it
	refuses bool // see ReachByIPv6
	folders bool // the thread has folders of its own, in a hub where plugins run
}

// Make makes the namespace of a hub, which passes on what comes over the bridge, or a private
// network's link, and starts the thread inside, which ends with the process. The plan is that of
// the driver's interface.
//
// Without a bridge the hub is one in which plugins run and make what they like.
func Make(key conf.Key, bridge string, p *plan.Interface) (*Namespace, error) {
	n := &Namespace{calls: make(chan func()), plan: p, folders: bridge == ""}
	if err := n.begin(n.make, key, 0, bridge); err != nil {
		return nil, err
	}
	if err := n.raiseLoopback(); err != nil {
		return nil, fmt.Errorf("loopback interface of the hub: %w", err)
	}
	return n, n.passOn()
}

// Again is the Namespace that another process has made and left as it was: files are those of
// Files. What it had of published ports is taken back, but for the generations that still have
// connections there. This is to be another one.
func Again(key conf.Key, generation int, others []int, bridge string, p *plan.Interface, files []*os.File) (*Namespace, error) {
	n := &Namespace{calls: make(chan func()), plan: p, again: true, folders: len(files) > 1, file: files[0]}
	if n.folders {
		n.mount = files[1]
	}
	if err := n.begin(n.join, key, generation, bridge); err != nil {
		return nil, err
	}
	for g := range Generations {
		if !slices.Contains(others, g) {
			if err := n.TakeBack(g); err != nil {
				return nil, err
			}
		}
	}
	return n, nil
}

// Files are what it takes to come in again: the network namespace, and the mount namespace
// where that is its own.
func (n *Namespace) Files() []*os.File {
	if n.folders {
		return []*os.File{n.file, n.mount}
	}
	return []*os.File{n.file}
}

// begin starts the thread inside, whose way in is enter.
func (n *Namespace) begin(enter func() error, key conf.Key, generation int, bridge string) error {
	inside := make(chan error)
	go n.thread(enter, inside)
	if err := <-inside; err != nil {
		return notMade(err)
	}
	var err error
	n.Do(func() { n.link, err = netlink.NewHandle(unix.NETLINK_ROUTE) })
	if err != nil {
		return fmt.Errorf("netlink in the hub: %w", err)
	}
	n.SourceRoutes = newSourceRoutes(n.link, key, generation, bridge)
	return nil
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
		{"ipv6/conf/default/proxy_ndp", "1"}, // for those whom it is told to, see rootless/link
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

// SetSysctl sets a value below /proc/sys/net inside.
func (n *Namespace) SetSysctl(name, value string) (err error) {
	n.Do(func() { err = os.WriteFile(sysctls+name, []byte(value), 0) })
	return err
}

// File is the namespace itself.
func (n *Namespace) File() *os.File { return n.file }

func (n *Namespace) thread(enter func() error, entered chan<- error) {
	runtime.LockOSThread() // never unlocked
	if unix.Gettid() == unix.Getpid() {
		// Not the first thread: /proc/PID/ns/net shows its namespace for the whole
		// process, to people and to programs that follow it. While this goroutine
		// keeps it locked, another one cannot land on it.
		moved := make(chan struct{})
		go func() { n.thread(enter, entered); close(moved) }()
		<-moved
		return
	}
	if err := enter(); err != nil {
		entered <- err
		return
	}
	entered <- nil
	for call := range n.calls {
		call()
	}
}

// make moves the calling thread into a new namespace.
func (n *Namespace) make() (err error) {
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
	if n.mount, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
		return err
	}
	return ownFolders()
}

// join moves the calling thread into the namespace that is there. Who shares root and working
// directory with other threads may not join a mount namespace (setns(2)).
func (n *Namespace) join() error {
	if err := n.Enter(); err != nil || !n.folders {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	return unix.Setns(int(n.mount.Fd()), unix.CLONE_NEWNS)
}

// Do runs f on the thread inside. What f opens there belongs to the hub's
// namespace.
func (n *Namespace) Do(f func()) {
	done := make(chan struct{})
	n.calls <- func() { f(); close(done) }
	<-done
}

// Socket is socket(2) inside.
func (n *Namespace) Socket(domain, typ, proto int) (fd int, err error) {
	n.Do(func() { fd, err = unix.Socket(domain, typ, proto) })
	return fd, err
}

// Enter moves the calling thread inside for good: rootlessport's workers are there,
// and make their sockets themselves. It needs CAP_SYS_ADMIN.
func (n *Namespace) Enter() error { return unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET) }

// Link is the driver's interface as it is now. It goes soon after a driver that dies.
func (n *Namespace) Link() (netlink.Link, error) {
	l, err := n.link.LinkByName(n.plan.IfName)
	if err != nil {
		return nil, fmt.Errorf("interface %s of the driver: %w", n.plan.IfName, err)
	}
	return l, nil
}

// CheckLink looks whether the driver has its interface open: it stays for a moment without.
func (n *Namespace) CheckLink() error {
	l, err := n.Link()
	if err == nil && l.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
		err = fmt.Errorf("interface %s of the driver: %w", n.plan.IfName, unix.ENODEV)
	}
	return err
}

// LinkByName is any other interface inside.
func (n *Namespace) LinkByName(name string) (netlink.Link, error) { return n.link.LinkByName(name) }

// Linked says whether an end of a link to a member is left.
func (n *Namespace) Linked() (bool, error) {
	links, err := n.link.LinkList()
	return slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Type() == "veth" }), err
}

// Configure gives the interface that the driver made its addresses and routes.
// It is called again when the driver was restarted, and brings back the same.
func (n *Namespace) Configure() error {
	link, err := n.Link()
	if err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		do   func(netlink.Link) error
	}{
		{"MAC address", n.setMAC},
		{"MTU", n.setMTU},
		{"IPv6 settings", n.quietIPv6},
		{"patience", n.bePatient},
		{"link state", n.link.LinkSetUp},
		{"IPv4 address", func(l netlink.Link) error { return n.address(l, n.plan.IPv4) }},
		{"IPv6 address", func(l netlink.Link) error { return n.address(l, n.plan.IPv6) }},
	} {
		if err := step.do(link); err != nil {
			return fmt.Errorf("interface %s: setting the %s: %w", n.plan.IfName, step.what, err)
		}
	}
	return nil
}

// lastResort is the metric of the route that comes after all others.
const lastResort = math.MaxInt32

func (n *Namespace) raiseLoopback() error {
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

// ForgetGateway has the kernel ask for the driver's gateway before it sends to it again: what is
// sent while no driver is there to answer waits, see bePatient, and would be lost.
func (n *Namespace) ForgetGateway() error {
	link, err := n.link.LinkByName(n.plan.IfName)
	if err != nil {
		return ignoringMissing(err)
	}
	neighbours, err := n.link.NeighList(link.Attrs().Index, unix.AF_UNSPEC)
	if err != nil {
		return err
	}
	for i := range neighbours {
		if neighbours[i].State&(unix.NUD_INCOMPLETE|unix.NUD_FAILED) != 0 {
			continue // it is asked for already, and to remove it is an error for who waits
		}
		if err := ignoring(n.link.NeighDel(&neighbours[i]), unix.ENOENT); err != nil {
			return err
		}
	}
	return nil
}

// ignoringMissing: the interface has gone with its driver.
func ignoringMissing(err error) error {
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return nil
	}
	return err
}

// bePatient has packets wait for the driver's gateway (arp(7)) while a driver that has died is
// followed by another, which is asked soon after it is there: for a minute, where the kernel would
// ask once a second, and say after the third time that the host is unreachable. Best effort, too.
func (n *Namespace) bePatient(netlink.Link) error {
	const pause, times = "20", "3000" // milliseconds
	n.Do(func() {
		for _, family := range []string{"ipv4", "ipv6"} {
			folder := sysctls + family + "/neigh/" + n.plan.IfName + "/"
			_ = os.WriteFile(folder+"retrans_time_ms", []byte(pause), 0)
			_ = os.WriteFile(folder+"mcast_solicit", []byte(times), 0)
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

// defaultRoute adds the default route. In a private network the driver's interface has no
// address of the driver's network, so that the gateway needs a route of its own. After it there
// is one that stays when the interface goes, with a driver that has died: what is lost in silence
// is sent again, and an error of ICMP would be the end of whoever connects.
func (n *Namespace) defaultRoute(link netlink.Link, f plan.Subnet) error {
	index := link.Attrs().Index
	routes := []netlink.Route{{LinkIndex: index, Dst: plan.Everywhere(f.Gateway), Gw: f.Gateway.AsSlice()}}
	if !f.Network().Contains(f.Gateway) && !f.Gateway.IsLinkLocalUnicast() {
		to := netip.PrefixFrom(f.Gateway, f.Gateway.BitLen())
		routes = slices.Insert(routes, 0, netlink.Route{LinkIndex: index, Dst: plan.IPNet(to), Scope: netlink.SCOPE_LINK})
	}
	routes = append(routes, netlink.Route{Dst: plan.Everywhere(f.Gateway), Type: unix.RTN_BLACKHOLE, Priority: lastResort})
	for _, route := range routes {
		if err := n.link.RouteReplace(&route); err != nil {
			return fmt.Errorf("route by %s: %w", f.Gateway, err)
		}
	}
	return nil
}
