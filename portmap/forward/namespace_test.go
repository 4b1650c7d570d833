package forward_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/portmap/forward"
)

const (
	tcpTable     = 24941
	udpTable     = 24942
	rulePriority = 100
)

// broughtBack is a client that replies are brought back to.
type broughtBack struct {
	protocol conf.Protocol
	ip       netip.Addr
}

// namespace is a container's network namespace as the supervisor has it.
type namespace struct {
	netns      *os.File
	calls      chan func()
	link       *netlink.Handle
	four, six  netip.Addr // of the container, invalid without one
	mu         sync.Mutex
	ports      map[string]bool
	clients    map[broughtBack]bool
	failClient error // what AddClient answers
}

var (
	_ forward.Namespace = (*namespace)(nil)
	_ forward.Enterer   = (*namespace)(nil)
)

func enterNamespace(path string, four, six netip.Addr) (*namespace, error) {
	netns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	n := &namespace{
		netns: netns, calls: make(chan func()), four: four, six: six,
		ports: make(map[string]bool), clients: make(map[broughtBack]bool),
	}
	entered := make(chan error)
	go n.thread(entered)
	if err := <-entered; err != nil {
		return nil, err
	}
	n.do(func() { n.link, err = netlink.NewHandle(unix.NETLINK_ROUTE) })
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (n *namespace) thread(entered chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := n.Enter(); err != nil {
		entered <- err
		return
	}
	entered <- nil
	for call := range n.calls {
		call()
	}
}

func (n *namespace) close() {
	n.link.Close()
	close(n.calls)
	n.netns.Close()
}

func (n *namespace) do(f func()) {
	done := make(chan struct{})
	n.calls <- func() { f(); close(done) }
	<-done
}

// Enter implements forward.Enterer.
func (n *namespace) Enter() error { return unix.Setns(int(n.netns.Fd()), unix.CLONE_NEWNET) }

// Socket implements forward.Namespace.
func (n *namespace) Socket(domain, typ, proto int) (fd int, err error) {
	n.do(func() { fd, err = unix.Socket(domain, typ, proto) })
	return fd, err
}

func (n *namespace) addresses() (all []netip.Addr) {
	for _, ip := range []netip.Addr{n.four, n.six} {
		if ip.IsValid() {
			all = append(all, ip)
		}
	}
	return all
}

func (n *namespace) local(to netip.Prefix, src netip.Addr, table int) *netlink.Route {
	return &netlink.Route{
		LinkIndex: 1, Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())},
		Src: src.AsSlice(), Table: table, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
	}
}

// Has implements forward.Namespace.
func (n *namespace) Has(ip netip.Addr) bool {
	routes, err := n.link.RouteGet(ip.AsSlice())
	return err == nil && routes[0].Type != unix.RTN_UNICAST
}

// AddClient implements forward.Namespace.
func (n *namespace) AddClient(protocol conf.Protocol, client netip.Addr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.failClient != nil {
		return n.failClient
	}
	if n.clients[broughtBack{protocol, client}] {
		return fmt.Errorf("client %s was added twice", client)
	}
	n.clients[broughtBack{protocol, client}] = true
	return n.link.RouteAdd(n.clientRoute(protocol, client))
}

// RemoveClient implements forward.Namespace.
func (n *namespace) RemoveClient(protocol conf.Protocol, client netip.Addr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.clients[broughtBack{protocol, client}] {
		return fmt.Errorf("client %s was removed twice", client)
	}
	delete(n.clients, broughtBack{protocol, client})
	return n.link.RouteDel(n.clientRoute(protocol, client))
}

func (n *namespace) clientRoute(protocol conf.Protocol, client netip.Addr) *netlink.Route {
	src := n.six
	if client.Is4() {
		src = n.four
	}
	to := netip.PrefixFrom(client, client.BitLen())
	if protocol == conf.UDP {
		return n.local(to, src, udpTable)
	}
	route := n.local(to, src, tcpTable)
	route.Congctl = "reno"
	return route
}

// AddPort implements forward.Namespace.
func (n *namespace) AddPort(protocol conf.Protocol, port uint16, _ forward.Target) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if key := fmt.Sprint(protocol, port); n.ports[key] {
		return fmt.Errorf("port %d/%s was added twice", port, protocol)
	} else {
		n.ports[key] = true
	}
	return n.rules(protocol, port, n.link.RuleAdd)
}

// RemovePort implements forward.Namespace.
func (n *namespace) RemovePort(protocol conf.Protocol, port uint16, _ forward.Target) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := fmt.Sprint(protocol, port)
	if !n.ports[key] {
		return fmt.Errorf("port %d/%s was removed twice", port, protocol)
	}
	delete(n.ports, key)
	return n.rules(protocol, port, n.link.RuleDel)
}

func (n *namespace) rules(protocol conf.Protocol, port uint16, do func(*netlink.Rule) error) error {
	for _, ip := range n.addresses() {
		r := netlink.NewRule()
		r.Priority, r.IifName, r.Sport = rulePriority, "lo", netlink.NewRulePortRange(port, port)
		r.Family, r.IPProto, r.Table = unix.AF_INET6, unix.IPPROTO_UDP, udpTable
		if ip.Is4() {
			r.Family = unix.AF_INET
		}
		if protocol == conf.TCP {
			r.IPProto, r.Table = unix.IPPROTO_TCP, tcpTable
		}
		if err := do(r); err != nil {
			return fmt.Errorf("rule for %d/%s: %w", port, protocol, err)
		}
	}
	return nil
}

func (n *namespace) has() (ports, clients int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.ports), len(n.clients)
}
