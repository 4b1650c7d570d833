// Command peer is the other end in the end-to-end tests and the demo: servers
// that say whom they saw, and clients that print what they were told.
//
//	peer tcp ADDR         serve TCP: one line "you are ADDR", then echo
//	peer udp ADDR         serve UDP: answers every datagram with "you are ADDR"
//	peer http ADDR        serve HTTP: "hello ADDR"
//	peer dns ADDR IP      serve DNS: every name is at IP; prints each that it is asked
//	peer liar ADDR IP LIE serve DNS so; before each answer come some that it was not asked for
//	peer ask tcp|udp ADDR print the answer of such a server
//	peer askfrom tcp|udp LOCAL ADDR…  the same, from an address or port of one's
//	                      own, ":4000", and of all at the same time
//	peer get URL          print the answer of an HTTP server
//	peer lookup DNS NAME  print the address of a name
//	peer questions DNS NAME RATE TIME [FILE]  ask for the address of a name so many times a
//	                      second, each time once, and until there is the file; prints what
//	                      was lost, and the longest wait
//	peer pester DNS NAME  ask so as fast as it goes, until SIGINT
//	peer ping ADDR [SIZE] ask for an ICMP echo of so many bytes until one comes (needs root)
//	peer hold tcp|udp ADDR  bind and do nothing
//	peer pause            do nothing, until SIGTERM or SIGINT
//	peer brief ADDR       serve TCP: one line, and be the first to close
//	peer anew ADDR PORT COUNT  be a client of it so many times, always from this port
//	peer crowd tcp|udp COUNT ADDR  be so many clients at once, which want nothing, until SIGINT
//	peer reserve HOW NETWORK ADDR CMD…  bind, run CMD, and end with it, as engines
//	                      that keep a container's port from others: HOW is child (it
//	                      goes to a child that sleeps), self, serve (it is no
//	                      reservation: somebody waits there for clients), or activated
//	                      (the same by a child, as of systemd.socket(5))
//	peer frames INTERFACE PORT ADDR…  which addresses answer to frames made by hand and to
//	                      sockets bound to the interface; the first one has to
//	peer forge INTERFACE MAC ADDR…  claim another's MAC address and addresses, and the
//	                      gateway's, with all kinds of frames made by hand, until SIGINT
//	peer heard INTERFACE [on]  which of these frames an interface receives, in a few
//	                      rounds or until SIGINT
//	peer trespass PID     print by which ways another process can be looked into or taken
//	                      over: its files in /proc, memory, descriptors, ptrace
//	peer within PID FILE [run]  have another process make system calls, as a debugger can, and
//	                      print which it may: to open the file, to do what ours have no
//	                      business with, and to run a program in its place (amd64)
//	peer caught FILE CMD…  run CMD, and stop the first process that a program forks without executing
//	                      another and that has entered a network namespace; its number is in
//	                      FILE, until that is removed (amd64)
//	peer burst tcp|udp COUNT ADDR  COUNT flows, from a port of its own each, as fast as it
//	                      goes; prints how long they took
//	peer flood tcp|udp|rst ADDR [COUNT [PREFIX]]  first segments, datagrams, or resets of ever
//	                      new flows, as fast as it goes, so many or until SIGINT; port 0: to
//	                      ever new ports; with a prefix from ever new addresses (needs root)
//	peer hangup COUNT ADDR  connect and reset at once, so many times; 0: until SIGINT
//	peer slowly COUNT ADDR  be so many clients of TCP at once, each of which now and then sends a
//	                      byte, until SIGINT
//	peer cling COUNT ADDR [FROM]  so many connections that say a byte a second, and begin anew when
//	                      they are ended, until SIGINT; prints when all have been served
//	peer served tcp|udp|talk ADDR TIME [FROM]  one conversation after the other; prints how many
//	                      and how long they took. talk is by UDP from one port
//	peer scan IP FIRST LAST  try TCP ports; prints how many are open, refused, silent
//	peer rate ADDR TIME   print how many connections a second a TCP server answers
//	peer manners ADDR     serve what the next one looks for, at this port and the two after it
//	peer behave ADDR BYTES KNOWN…  is the way there as no way would be: big data both ways with a
//	                      checksum, half-close, resets, refusal, many datagrams under way;
//	                      what is known not to be so is no failure
//	peer unreachable ADDR  print the error of a connection
//	peer beset PATH FILE  connect to a socket without end, and say half of what it expects
//	peer deaths FLAGS     kill what ambi leaves running, at random, while clients connect,
//	                      transfer and resolve; print what became of them (-help)
//	peer control PATH OP  print what a supervisor's control socket answers to an
//	                      operation, or to a whole request in JSON
//	peer router INTERFACE  advertise a router there (RFC 4861), again and again until SIGINT
//	peer unlisten PID PORT  shut down a listening socket of another process
//	peer json             print standard input if it is one JSON document
//	peer without nftables CMD…  run CMD as on a kernel without nf_tables; userns: as where
//	                      user namespaces are forbidden; rights: as where they give none
//	peer snapshot FILE [IGNORED…]   remember the machine, without what is in these
//	                      files and folders
//	peer unchanged SECONDS FILE [IGNORED…]  fail, and show what is different, unless
//	                      the machine is as remembered, now or within that time
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/snapshot"
)

// patience bounds every conversation. It only ends what hangs: a machine may be slow.
const patience = time.Minute

// again is after how long a datagram is sent again, which may have been lost.
const again = 10 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	type command struct {
		args int
		run  func(args []string) error
	}
	commands := map[string]command{
		"tcp":         {1, func(a []string) error { return serveTCP(a[0]) }},
		"udp":         {1, func(a []string) error { return serveUDP(a[0], greet) }},
		"http":        {1, func(a []string) error { return serveHTTP(a[0]) }},
		"dns":         {2, func(a []string) error { return serveDNS(a[0], a[1]) }},
		"ask":         {2, func(a []string) error { return ask(a[0], "", a[1:]) }},
		"get":         {1, func(a []string) error { return get(a[0]) }},
		"lookup":      {2, func(a []string) error { return lookup(a[0], a[1]) }},
		"control":     {2, func(a []string) error { return control(a[0], a[1]) }},
		"beset":       {2, func(a []string) error { return beset(a[0], a[1]) }},
		"router":      {1, func(a []string) error { return advertise(a[0]) }},
		"unlisten":    {2, func(a []string) error { return unlisten(a[0], a[1]) }},
		"json":        {0, func([]string) error { return oneDocument() }},
		"pause":       {0, func([]string) error { pause(); return nil }},
		"hold":        {2, func(a []string) error { return hold(a[0], a[1]) }},
		"manners":     {1, func(a []string) error { return serveManners(a[0]) }},
		"unreachable": {1, func(a []string) error { return unreachable(a[0]) }},
		"crowd":       {3, func(a []string) error { return crowd(a[0], a[1], a[2]) }},
		"hangup":      {2, hangup},
		"slowly":      {2, slowly},
		"brief":       {1, func(a []string) error { return serveBrief(a[0]) }},
		"anew":        {3, anew},
		"rate":        {2, rate},
		"scan":        {3, scan},
		"pester":      {2, pester},
		"liar":        {3, liar},
	}
	variadic := map[string]command{
		"within":    {2, tryWithin},
		"caught":    {2, caught},
		"snapshot":  {1, func(a []string) error { return snapshot.Options{Ignore: a[1:]}.Take().Save(a[0]) }},
		"unchanged": {2, unchanged},
		"without":   {2, without},
		"questions": {4, questions},
		"reserve":   {4, reserve},
		"ping":      {1, ping},
		"askfrom":   {3, func(a []string) error { return ask(a[0], a[1], a[2:]) }},
		"frames":    {3, frames},
		"trespass":  {1, trespass},
		"burst":     {3, burst},
		"behave":    {2, behave},
		"forge":     {2, forge},
		"heard":     {1, heard},
		"deaths":    {1, killAll},
		"flood":     {2, flood},
		"served":    {3, served},
		"cling":     {2, cling},
	}
	if len(args) == 0 {
		return errors.New("no command; see its source")
	}
	if c, ok := variadic[args[0]]; ok && len(args)-1 >= c.args {
		return c.run(args[1:])
	}
	c, ok := commands[args[0]]
	if !ok || len(args)-1 != c.args {
		return fmt.Errorf("bad command %q", args)
	}
	return c.run(args[1:])
}

func unchanged(args []string) error {
	seconds, err := strconv.ParseFloat(args[0], 64)
	if err != nil {
		return err
	}
	o := snapshot.Options{Settled: time.Duration(seconds * float64(time.Second)), Ignore: args[2:]}
	return o.Unchanged(args[1])
}

func serveTCP(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			fmt.Fprintf(conn, "you are %s\n", conn.RemoteAddr())
			// By a buffer: splice(2) would take two files more for each of thousands that are idle.
			_, _ = io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}, make([]byte, 4<<10))
		}()
	}
}

func greet(_ []byte, from netip.AddrPort) []byte {
	return fmt.Appendf(nil, "you are %s\n", netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
}

func serveUDP(addr string, answer func(datagram []byte, from netip.AddrPort) []byte) error {
	local, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp", local)
	if err != nil {
		return err
	}
	b := make([]byte, 65535)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return err
		}
		if out := answer(b[:n], from); out != nil {
			_, _ = conn.WriteToUDPAddrPort(out, from)
		}
	}
}

func serveHTTP(addr string) error {
	return http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s\n", r.RemoteAddr)
	}))
}

// serveDNS answers every question of type A with one address (RFC 1035).
func serveDNS(addr, ip string) error {
	a, err := netip.ParseAddr(ip)
	if err != nil || !a.Is4() {
		return fmt.Errorf("%q is no IPv4 address", ip)
	}
	return serveUDP(addr, func(q []byte, _ netip.AddrPort) []byte { return dnsAnswer(q, a) })
}

func dnsAnswer(q []byte, a netip.Addr) []byte {
	const header = 12
	end := header
	name := ""
	for end < len(q) && q[end] != 0 {
		next := end + int(q[end]) + 1
		name += string(q[end+1:min(next, len(q))]) + "."
		end = next
	}
	fmt.Println(name)
	end += 1 + 4 // root label, type, class
	if end > len(q) {
		return nil
	}
	out := append([]byte{}, q[:end]...)
	out[2], out[3] = 0x81, 0x80 // response, recursion available
	answers := uint16(0)
	if binary.BigEndian.Uint16(q[end-4:]) == 1 { // A
		answers = 1
		out = append(out, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
		out = append(out, a.AsSlice()...)
	}
	copy(out[4:12], []byte{0, 1, byte(answers >> 8), byte(answers), 0, 0, 0, 0})
	return out
}

func ask(network, local string, addrs []string) error {
	from, err := localAddr(network, local)
	if err != nil {
		return err
	}
	dialer := net.Dialer{Timeout: patience, LocalAddr: from}
	if len(addrs) > 1 {
		dialer.Control = sharePort
	}
	for _, addr := range addrs {
		conn, err := dialer.Dial(network, addr)
		if err != nil {
			return err
		}
		defer conn.Close() // after the last one
		if err := printAnswer(conn, network); err != nil {
			return err
		}
	}
	return nil
}

// sharePort lets several connections have one local port.
func sharePort(_, _ string, raw syscall.RawConn) (err error) {
	controlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(err, controlErr)
}

func printAnswer(conn net.Conn, network string) error {
	b := make([]byte, 512)
	n, err := answer(conn, network == "udp", b)
	fmt.Print(string(b[:n]))
	return err
}

// answer reads what the server says; of UDP servers it asks until they do.
func answer(conn net.Conn, ask bool, b []byte) (n int, err error) {
	wait := patience
	if ask {
		wait = again
	}
	for end := time.Now().Add(patience); ; {
		if ask {
			if _, err := conn.Write([]byte("who am I?")); err != nil {
				return 0, err
			}
		}
		if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return 0, err
		}
		n, err = conn.Read(b)
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
			return n, err
		}
	}
}

// localAddr is nil, for any, when text is empty.
func localAddr(network, text string) (net.Addr, error) {
	switch {
	case text == "":
		return nil, nil
	case network == "udp":
		return net.ResolveUDPAddr(network, text)
	}
	return net.ResolveTCPAddr(network, text)
}

func get(url string) error {
	client := http.Client{Timeout: patience}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func lookup(server, name string) error {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", server)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ips, err := r.LookupNetIP(ctx, "ip4", name)
	if err != nil {
		return err
	}
	for _, ip := range ips {
		fmt.Println(ip)
	}
	return nil
}

func control(path, op string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	request := fmt.Sprintf("{\"op\":%q}", op)
	if json.Valid([]byte(op)) {
		request = op
	}
	// It may hang up on us, at once.
	_, _ = fmt.Fprintln(conn, request)
	_, _ = io.Copy(os.Stdout, conn)
	return nil
}

// beset connects to a socket again and again, says nothing, half a request or very much, and
// keeps the connections, until it is ended. When there were many it makes a file.
func beset(path, file string) error {
	const many, kept = 2000, 4000
	said := []string{"", `{"op":"sta`, strings.Repeat("x", 100000)}
	held := make([]net.Conn, kept)
	for i := 0; ; i++ {
		if i == many {
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				return err
			}
		}
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err != nil {
			continue // as many wait as may
		}
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(conn, said[i%len(said)]) // it may hang up
		if old := held[i%kept]; old != nil {
			old.Close()
		}
		held[i%kept] = conn
	}
}

// unlisten shuts down the sockets of another process that listen on a TCP port
// (pidfd_getfd(2)).
func unlisten(process, port string) error {
	pid, err := strconv.Atoi(process)
	if err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	found := errors.New("it has no such socket")
	for fd := range 1024 {
		socket, err := unix.PidfdGetfd(pidfd, fd, 0)
		if err != nil {
			continue
		}
		if listens, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && listens == 1 && portOf(socket) == port {
			found = unix.Shutdown(socket, unix.SHUT_RDWR)
		}
		unix.Close(socket)
	}
	return found
}

func portOf(socket int) string {
	name, _ := unix.Getsockname(socket)
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return strconv.Itoa(name.Port)
	case *unix.SockaddrInet6:
		return strconv.Itoa(name.Port)
	}
	return ""
}

func oneDocument() error {
	b, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	if !json.Valid(b) {
		return fmt.Errorf("not one JSON document: %q", b)
	}
	_, err = os.Stdout.Write(append(b, '\n'))
	return err
}

func hold(network, addr string) error {
	held, err := bind(network, addr)
	if err != nil {
		return err
	}
	awaitInterrupt()
	return held.Close()
}

func awaitInterrupt() { <-interrupt() }

func interrupt() <-chan os.Signal {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt)
	return ended
}

// pause is for the first process of a pod, to which a signal means nothing unless it asks.
func pause() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt, syscall.SIGTERM)
	<-ended
}

func crowd(network, count, addr string) error {
	clients, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	for range clients {
		conn, err := net.DialTimeout(network, addr, patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("here I am\n")); err != nil {
			return err
		}
	}
	awaitInterrupt()
	return nil
}

// reserve has the child sleep for ever, as nerdctl does: whoever started us ends it.
// By itself it binds as Apptainer does, without a look at what happens there.
func reserve(args []string) error {
	how, network, addr, argv := args[0], args[1], args[2], args[3:]
	var bound io.Closer
	var err error
	switch how {
	case "self":
		err = bindAside(network, addr)
	case "inherited":
		bound, err = net.FileListener(os.NewFile(3, "socket"))
	default:
		bound, err = bind(network, addr)
	}
	if err != nil {
		return err
	}
	if bound != nil {
		defer bound.Close()
		if how == "child" {
			if err := leaveToSleep(bound); err != nil {
				return err
			}
		}
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	if how == "activated" {
		held, err := bound.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			return err
		}
		cmd = exec.Command("/proc/self/exe", append([]string{"reserve", "inherited", network, addr}, argv...)...)
		cmd.ExtraFiles = []*os.File{held}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func leaveToSleep(bound io.Closer) error {
	held, err := bound.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return err
	}
	defer held.Close()
	sleep := exec.Command("sleep", "infinity")
	sleep.ExtraFiles = []*os.File{held}
	return sleep.Start()
}

func bindAside(network, addr string) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	kind := unix.SOCK_STREAM
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil || kind == unix.SOCK_DGRAM {
		return err
	}
	return unix.Listen(fd, 1)
}

func bind(network, addr string) (io.Closer, error) {
	if network == "udp" {
		return net.ListenPacket(network, addr)
	}
	return net.Listen(network, addr)
}
