package relay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// inside is what there is in the hub: the tun, listeners, raw sockets, and a thread that
// makes more.
type inside struct {
	tun       int // the descriptor of file
	file      *os.File
	copies    []*os.File // of servers
	listeners []int      // IPv4's, and IPv6's where there is any
	servers   []*os.File // sockets of the name server
	raw       [2]int     // by family; -1
	calls     chan func()
}

// What marks a packet that is for a socket of ours, and the table that has it stay here.
// "am" is in the upper bytes.
const (
	mark         = 0x616d0001
	table        = 0x616e0000
	rulePriority = 24940 // before those of published ports
)

// queueMost is how many packets may wait in the tun: as many connections as may be under way
// begin at a time without the loss of a SYN, which costs each a second.
const queueMost = 4096

// enter makes all of it. The thread that does stays in the hub.
func enter(c *Config) (*inside, error) {
	i := &inside{tun: -1, raw: [2]int{-1, -1}, calls: make(chan func())}
	made := make(chan error)
	go i.live(c, made)
	if err := <-made; err != nil {
		i.close()
		return nil, err
	}
	return i, nil
}

func (i *inside) live(c *Config, made chan<- error) {
	runtime.LockOSThread() // never unlocked
	if unix.Gettid() == unix.Getpid() {
		// Not the first thread: /proc/PID/ns/net shows its namespace for the whole process.
		moved := make(chan struct{})
		go func() { i.live(c, made); close(moved) }()
		<-moved
		runtime.UnlockOSThread()
		return
	}
	err := unix.Setns(int(c.Hub.Fd()), unix.CLONE_NEWNET)
	if err != nil {
		err = fmt.Errorf("entering the hub: %w", err)
	} else {
		err = i.make(c)
	}
	made <- err
	if err != nil {
		return
	}
	for call := range i.calls {
		call()
	}
}

func (i *inside) make(c *Config) error {
	for _, step := range []struct {
		what string
		do   func(*Config) error
	}{
		{"interface " + c.IfName, i.makeTun},
		{"listening sockets", i.listen},
		{"raw sockets", i.openRaw},
		{"sysctls", i.forwardAll},
		{"routes", i.route},
		{"firewall rules", i.filter},
		{"name server", i.serveNames},
	} {
		if err := step.do(c); err != nil {
			return fmt.Errorf("the way out, %s: %w", step.what, err)
		}
	}
	return nil
}

func (i *inside) close() {
	close(i.calls)
	for _, f := range append(i.servers, i.copies...) {
		f.Close()
	}
	if i.file != nil {
		i.file.Close()
	}
	for _, fd := range i.raw {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// socket is socket(2) in the hub.
func (i *inside) socket(domain, typ, proto int) (fd int, err error) {
	done := make(chan struct{})
	i.calls <- func() { fd, err = unix.Socket(domain, typ, proto); close(done) }
	<-done
	return fd, err
}

// send sends a packet to a container. One that is too long goes in pieces, which the kernel
// does not make of what has a header.
func (i *inside) send(to netip.Addr, p []byte) {
	if err := i.sendWhole(to, p); errors.Is(err, unix.EMSGSIZE) {
		for _, piece := range fragments(p) {
			_ = i.sendWhole(to, piece)
		}
	}
}

func (i *inside) sendWhole(to netip.Addr, p []byte) error {
	if to.Is4() {
		return unix.Sendto(i.raw[0], p, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: to.As4()})
	}
	if i.raw[1] < 0 {
		return unix.EAFNOSUPPORT
	}
	return unix.Sendto(i.raw[1], p, unix.MSG_DONTWAIT, &unix.SockaddrInet6{Addr: to.As16()})
}

func (i *inside) makeTun(c *Config) error {
	if len(c.Kept) > 0 {
		defer c.Kept[0].Close()
		fd, err := unix.FcntlInt(c.Kept[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return i.hold(fd)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	if err := i.hold(fd); err != nil {
		return err
	}
	request, err := unix.NewIfreq(c.IfName)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	// A packet that is longer than the containers' links take comes in one piece: the hub's
	// firewall has put it together.
	link, err := netlink.LinkByName(c.IfName)
	if err == nil {
		err = errors.Join(netlink.LinkSetMTU(link, packetMost), netlink.LinkSetTxQLen(link, queueMost))
	}
	if err != nil {
		return fmt.Errorf("MTU and queue: %w", err)
	}
	return i.trustSources(c)
}

// hold has a descriptor of the tun, which still blocks: of one that does not Go's poller would
// be told of each packet.
func (i *inside) hold(fd int) error {
	i.tun, i.file = fd, os.NewFile(uintptr(fd), "tun")
	return unix.SetNonblock(fd, true)
}

// trustSources: a first packet comes out of the tun with the address of a container, which
// is not where the route to that leads (ip-sysctl, rp_filter). What the others are checked
// for stays.
func (i *inside) trustSources(c *Config) error {
	const folder = "/proc/sys/net/ipv4/conf/"
	all, err := os.ReadFile(folder + "all/rp_filter")
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		value := strings.TrimSpace(string(all))
		if e.Name() == "all" || e.Name() == c.IfName {
			value = "0"
		} else if own, err := os.ReadFile(folder + e.Name() + "/rp_filter"); err == nil {
			value = max(value, strings.TrimSpace(string(own)))
		}
		if err := os.WriteFile(folder+e.Name()+"/rp_filter", []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// forwardAll has the kernel not look for the socket of a packet before it is routed
// (ip-sysctl, tcp_early_demux; it is IPv6's, too). It finds what a connection before had of the
// same ports, in TIME_WAIT for a minute, and what is somebody's is not forwarded but dropped
// (ip_forward in net/ipv4/ip_forward.c): no SYN would come by the tun. Of one that does, tproxy
// replaces such a socket.
func (i *inside) forwardAll(*Config) error {
	return os.WriteFile("/proc/sys/net/ipv4/tcp_early_demux", []byte("0"), 0)
}

// listen binds the sockets to the hub's loopback: nobody reaches them there by himself.
func (i *inside) listen(c *Config) error {
	four, err := bind(unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err != nil {
		return err
	}
	i.listeners = append(i.listeners, four)
	if !c.IPv6.Gateway.IsValid() {
		return nil
	}
	six, err := bind(unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, &unix.SockaddrInet6{Addr: netip.IPv6Loopback().As16()})
	if err != nil {
		return err
	}
	i.listeners = append(i.listeners, six)
	return nil
}

func bind(family, level, transparent int, at unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for _, o := range [][3]int{
		{level, transparent, 1}, {unix.SOL_TCP, unix.TCP_NODELAY, 1},
		// Who has gone without a word is noticed after four minutes.
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.SOL_TCP, unix.TCP_KEEPIDLE, 120}, {unix.SOL_TCP, unix.TCP_KEEPINTVL, 30}, {unix.SOL_TCP, unix.TCP_KEEPCNT, 4},
	} {
		if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	if err := unix.Bind(fd, at); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func portOf(fd int) (uint16, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port), nil
	case *unix.SockaddrInet6:
		return uint16(a.Port), nil
	}
	return 0, unix.EAFNOSUPPORT
}

// openRaw opens what whole packets are sent by.
func (i *inside) openRaw(c *Config) (err error) {
	const typ = unix.SOCK_RAW | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	if i.raw[0], err = unix.Socket(unix.AF_INET, typ, unix.IPPROTO_RAW); err != nil || !c.IPv6.Gateway.IsValid() {
		return err
	}
	i.raw[1], err = unix.Socket(unix.AF_INET6, typ, unix.IPPROTO_RAW)
	return err
}

// route has what is marked stay in the hub:
//
//	ip rule add fwmark MARK lookup TABLE
//	ip route add local default dev lo table TABLE
func (i *inside) route(c *Config) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		family int
		on     bool
		bits   int
	}{{unix.AF_INET, true, 32}, {unix.AF_INET6, c.IPv6.Gateway.IsValid(), 128}} {
		if !f.on {
			continue
		}
		everywhere := &net.IPNet{IP: make(net.IP, f.bits/8), Mask: net.CIDRMask(0, f.bits)}
		err := netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: everywhere, Table: table, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Family: f.family})
		if err != nil {
			return fmt.Errorf("local default: %w", err)
		}
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table, rule.Priority = f.family, mark, table, rulePriority
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("rule: %w", err)
		}
	}
	return nil
}

// filter sets the rules, which "nft list ruleset" shows as
//
//	table inet ambi_relay {
//		chain prerouting { type filter hook prerouting priority raw
//			iifname TUN meta nfproto ipv4 tcp flags & (fin|syn|rst|ack) == syn notrack tproxy ip to 127.0.0.1:PORT meta mark set MARK accept
//			iifname TUN meta nfproto ipv6 …                                             tproxy ip6 to [::1]:PORT …
//			tcp flags & (fin|syn|rst|ack) != syn socket transparent 1 notrack meta mark set MARK accept
//			fib daddr oifname != TUN accept
//			meta nfproto ipv4 update @from4 { ip saddr limit rate over 50000/second burst 4096 packets } drop
//			meta nfproto ipv6 update @from6 { ip6 saddr limit … } drop
//			notrack
//		}
//		chain output { type filter hook output priority raw
//			fib saddr type != local notrack
//		}
//	}
func (i *inside) filter(c *Config) error {
	n, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: "ambi_relay", Family: nftables.TableFamilyINet}
	// A supervisor that was killed may have left it, with listeners that are gone.
	n.AddTable(t)
	n.DelTable(t)
	n.AddTable(t)
	pre := n.AddChain(&nftables.Chain{Table: t, Name: "prerouting", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	out := n.AddChain(&nftables.Chain{Table: t, Name: "output", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRaw})
	add := func(chain *nftables.Chain, parts ...[]expr.Any) {
		rule := &nftables.Rule{Table: t, Chain: chain}
		for _, p := range parts {
			rule.Exprs = append(rule.Exprs, p...)
		}
		n.AddRule(rule)
	}
	for k, fd := range i.listeners {
		port, err := portOf(fd)
		if err != nil {
			return err
		}
		add(pre, comes(c.IfName), isTCP(expr.CmpOpEq), firstSegment(expr.CmpOpEq), lead(k == 1, port), untracked, marked, accept)
	}
	add(pre, isTCP(expr.CmpOpEq), firstSegment(expr.CmpOpNeq), transparentSocket, untracked, marked, accept)
	add(pre, isTCP(expr.CmpOpNeq), transparentSocket, untracked, marked, accept)
	add(pre, leavesBy(expr.CmpOpNeq, c.IfName), accept)
	for _, six := range []bool{false, true} {
		s, limit := limited(t, six)
		if err := n.AddSet(s, nil); err != nil {
			return err
		}
		add(pre, limit)
	}
	add(pre, untracked)
	add(out, fromElsewhere, untracked)
	return nftError(n.Flush())
}

func nftError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "the kernel has no nftables for the driver relay: %v", err), "load its modules: modprobe nf_tables nft_tproxy nft_socket nft_fib_inet nft_ct")
	}
	return err
}

const register = 1

var (
	accept    = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	untracked = []expr.Any{&expr.Notrack{}}
	marked    = []expr.Any{
		&expr.Immediate{Register: register, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: register, SourceRegister: true},
	}
	transparentSocket = []expr.Any{
		&expr.Socket{Key: expr.SocketKeyTransparent, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{1}},
	}
	fromElsewhere = []expr.Any{
		&expr.Fib{Register: register, ResultADDRTYPE: true, FlagSADDR: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
)

func ifName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func comes(by string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: ifName(by)},
	}
}

// leavesBy looks the destination up in the routing tables.
func leavesBy(op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: register, ResultOIFNAME: true, FlagDADDR: true},
		&expr.Cmp{Op: op, Register: register, Data: ifName(name)},
	}
}

func isTCP(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: op, Register: register, Data: []byte{unix.IPPROTO_TCP}},
	}
}

// firstSegment is a SYN and nothing else of what matters, of what is TCP.
func firstSegment(op expr.CmpOp) []expr.Any {
	const offset = 13
	return []expr.Any{
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 1},
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 1, Mask: []byte{flagFIN | flagSYN | flagRST | flagACK}, Xor: []byte{0}},
		&expr.Cmp{Op: op, Register: register, Data: []byte{flagSYN}},
	}
}

// What a container may send into the tun, packets a second and at a time: more than anybody
// needs, and less than keeps the others out.
const (
	packetRate  = 50_000
	packetBurst = queueMost
)

// limited drops what a container sends beyond that, of one address family.
func limited(t *nftables.Table, six bool) (*nftables.Set, []expr.Any) {
	family, offset, length := byte(unix.NFPROTO_IPV4), uint32(12), uint32(4)
	s := &nftables.Set{Table: t, Name: "from4", KeyType: nftables.TypeIPAddr, Dynamic: true, HasTimeout: true, Timeout: time.Minute, Size: 4096}
	if six {
		family, offset, length = unix.NFPROTO_IPV6, 8, 16
		s.Name, s.KeyType, s.ID = "from6", nftables.TypeIP6Addr, 1
	}
	return s, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{family}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Dynset{SrcRegKey: register, SetName: s.Name, SetID: s.ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{
			&expr.Limit{Type: expr.LimitTypePkts, Rate: packetRate, Unit: expr.LimitTimeSecond, Burst: packetBurst, Over: true},
		}},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// lead hands a packet to the listener of its family.
func lead(six bool, port uint16) []expr.Any {
	family, at := byte(unix.NFPROTO_IPV4), netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if six {
		family, at = unix.NFPROTO_IPV6, netip.IPv6Loopback()
	}
	const portRegister = 2
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{family}},
		&expr.Immediate{Register: register, Data: at.AsSlice()},
		&expr.Immediate{Register: portRegister, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.TProxy{Family: family, TableFamily: unix.NFPROTO_INET, RegAddr: register, RegPort: portRegister},
	}
}
