package forward_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/portmap/forward"
)

// The test binary plays a supervisor of its own, for tests about what one process
// may use.
const supervisorEnv = "AMBI_FORWARD_TEST_SUPERVISOR"

func TestMain(m *testing.M) {
	if job := os.Getenv(supervisorEnv); job != "" {
		if err := supervise(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	// Clients and services run in this process too, beside workers that hold a P
	// each for a moment.
	runtime.GOMAXPROCS(runtime.NumCPU() + 2)
	// A -parallel of the command line still has precedence.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(unit.RunTests(m))
}

// job is what the supervisor shall do: forward the sockets that it inherits from
// descriptor 4 on, until its standard input ends.
type job struct {
	Netns    string
	NoFile   uint64
	Mappings []conf.PortMapping
	Families []int
}

func supervise(encoded string) error {
	var j job
	if err := json.Unmarshal([]byte(encoded), &j); err != nil {
		return err
	}
	if j.NoFile > 0 {
		limit := unix.Rlimit{Cur: j.NoFile, Max: j.NoFile}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return err
		}
	}
	n, err := enterNamespace(j.Netns, containerFour, containerSix)
	if err != nil {
		return err
	}
	f, err := forward.New(forward.Config{
		Namespace: n, Target: forward.Target{Container4: containerFour, Gateway4: gatewayFour, Container6: containerSix, Gateway6: gatewaySix},
	})
	if err != nil {
		return err
	}
	var sockets []forward.Socket
	for i, m := range j.Mappings {
		sockets = append(sockets, forward.Socket{Mapping: m, Family: j.Families[i], File: os.NewFile(uintptr(4+i), m.String())})
	}
	if err := f.Add(sockets); err != nil {
		return err
	}
	answers := json.NewEncoder(os.NewFile(3, "answers"))
	for {
		if err := answers.Encode(f.Stats()); err != nil {
			return err
		}
		if n, _ := os.Stdin.Read(make([]byte, 1)); n == 0 { // each byte asks for the counters
			return f.Close()
		}
	}
}

// supervisor is such a process.
type supervisor struct {
	pid   int
	stats func() []forward.PortStats
}

func (l *lab) supervise(noFile uint64, mappings ...conf.PortMapping) *supervisor {
	l.t.Helper()
	sockets, err := l.listen(mappings...)
	require.NoError(l.t, err)
	j := job{Netns: l.container.Path(), NoFile: noFile}
	answers, write, err := os.Pipe()
	require.NoError(l.t, err)
	command := exec.Command("/proc/self/exe")
	command.ExtraFiles, command.Stderr = []*os.File{write}, os.Stderr
	for _, s := range sockets {
		j.Mappings, j.Families = append(j.Mappings, s.Mapping), append(j.Families, s.Family)
		command.ExtraFiles = append(command.ExtraFiles, s.File)
	}
	encoded, err := json.Marshal(j)
	require.NoError(l.t, err)
	command.Env = append(os.Environ(), supervisorEnv+"="+string(encoded))
	ask, err := command.StdinPipe()
	require.NoError(l.t, err)
	l.in(l.host, func() { err = command.Start() })
	require.NoError(l.t, err)
	write.Close()
	for _, s := range sockets {
		s.File.Close()
	}
	l.t.Cleanup(func() {
		ask.Close()
		require.NoError(l.t, command.Wait())
		answers.Close()
	})
	decoder := json.NewDecoder(answers)
	s := &supervisor{pid: command.Process.Pid}
	read := func() (stats []forward.PortStats) {
		require.NoError(l.t, decoder.Decode(&stats))
		return stats
	}
	read() // it is ready
	s.stats = func() []forward.PortStats {
		_, err := ask.Write([]byte{'?'})
		require.NoError(l.t, err)
		return read()
	}
	return s
}

// resident is the process's memory in bytes (proc(5), VmRSS).
func (s *supervisor) resident(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kilobytes, err := strconv.Atoi(strings.Fields(rest)[0])
	require.NoError(t, err)
	return kilobytes << 10
}

// Descriptors run out with many connections open: more wait or are refused, and
// are served when those close. The listener stays.
func TestDescriptorExhaustionRecovers(t *testing.T) {
	l := newLab(t)
	l.serveTCP("[::]:80", echo)
	s := l.supervise(64, mapping(conf.TCP, 8080, 80))
	var open []net.Conn
	for range 60 {
		open = append(open, l.dial(l.client, "tcp", hostFour, 8080)) // the backlog takes them all
	}
	l.eventually("accepting pauses", func() bool { return s.stats()[0].AcceptPauses > 0 })
	served := s.stats()[0].Active
	require.Positive(t, served)
	require.Less(t, served, int64(60))
	require.NoError(t, echoed(open[0]), "who is served stays so")
	// Each that closes makes room for one that waits.
	for _, c := range open {
		require.NoError(t, echoed(c))
		c.Close()
	}
	l.eventually("all are closed", func() bool { return s.stats()[0].Active == 0 })
	require.NoError(t, echoed(l.dial(l.client, "tcp", hostFour, 8080)))
	require.EqualValues(t, 61, s.stats()[0].Total)
	require.Zero(t, s.stats()[0].Dropped)
}

// One client has all connections that there can be, and more wait: a second one is served at
// once, one after the other and many at a time. The first one loses as many as the second one
// has, and none of those that it uses; what waits for it does so no longer.
func TestSecondClientIsServedAtTheBound(t *testing.T) {
	l := newLab(t)
	ip(t, l.client, "addr add 192.0.2.4/24 dev eth0")
	second := netip.MustParseAddrPort("192.0.2.4:0")
	l.serveTCP("[::]:80", echo)
	s := l.supervise(256, mapping(conf.TCP, 8080, 80))
	used := l.dial(l.client, "tcp", hostFour, 8080)
	for range 200 {
		l.dial(l.client, "tcp", hostFour, 8080)
	}
	l.eventually("accepting pauses", func() bool { return s.stats()[0].AcceptPauses > 0 })
	before := s.stats()[0]
	require.Zero(t, before.GaveWay, "as long as nobody else wants one")
	began := time.Now()
	l.eventually("one is seen to be used", func() bool { return echoed(used) == nil && time.Since(began) > time.Second })

	const many = 20
	l.in(l.client, func() {
		for range 3 * many {
			c, err := dialFrom(conf.TCP, second, netip.AddrPortFrom(hostFour, 8080))
			require.NoError(t, err)
			require.NoError(t, echoed(c))
			c.Close()
		}
		for range many {
			c, err := dialFrom(conf.TCP, second, netip.AddrPortFrom(hostFour, 8080))
			require.NoError(t, err)
			t.Cleanup(func() { c.Close() })
			require.NoError(t, echoed(c))
			require.NoError(t, echoed(used))
		}
	})
	waited := 201 - before.Active
	after := s.stats()[0]
	require.Positive(t, after.GaveWay)
	// Of those that were served as many as the second client had at a time, and those that take a
	// moment to end.
	require.Less(t, int64(after.GaveWay), waited+2*many)
	require.Zero(t, after.Dropped)
}

// A client that has all there is and keeps it does not keep out one that has nothing and wants more than
// half as much at once.
func TestWhoHasNothingIsServed(t *testing.T) {
	l := newLab(t)
	ip(t, l.client, "addr add 192.0.2.4/24 dev eth0")
	l.serveTCP("[::]:80", echo)
	s := l.supervise(256, mapping(conf.TCP, 8080, 80))
	for range 90 {
		l.dial(l.client, "tcp", hostFour, 8080)
	}
	l.eventually("accepting pauses", func() bool { return s.stats()[0].AcceptPauses > 0 })
	c := l.comers()
	for range 60 {
		c.again(netip.MustParseAddrPort("192.0.2.4:0"), true) // those that are too many are reset
	}
	l.eventually("some of the other one's have a turn", func() bool { return c.staying.Load() > 4 })
}

// Two clients who want more than there is, and the same, get it all, in turns: nobody's
// connection gives way, and no descriptor is left unused.
func TestEqualClientsWait(t *testing.T) {
	l := newLab(t)
	ip(t, l.client, "addr add 192.0.2.4/24 dev eth0")
	l.serveTCP("[::]:80", func(c *net.TCPConn) {
		time.Sleep(20 * time.Millisecond) // as a service that works
		echo(c)
	})
	s := l.supervise(256, mapping(conf.TCP, 8080, 80))
	clients := []netip.AddrPort{netip.AddrPortFrom(clientFour, 0), netip.MustParseAddrPort("192.0.2.4:0")}
	const all, atOnce = 1000, 100
	failed := make(chan error, len(clients)*atOnce)
	var left atomic.Int64 // of both together: one that came to its end before would have less
	left.Store(all)
	for range atOnce {
		for _, from := range clients {
			go l.in(l.client, func() { failed <- request(from, &left) })
		}
	}
	for range cap(failed) {
		require.NoError(t, <-failed)
	}
	stats := s.stats()[0]
	require.Positive(t, stats.AcceptPauses, "there was more than could be served at once")
	require.Zero(t, stats.GaveWay)
	require.Zero(t, stats.Dropped)

	// And those who stay.
	const stay = 44
	var answered atomic.Int64
	for range stay {
		for _, from := range clients {
			c, err := l.dialFrom(from)
			require.NoError(t, err)
			go func() {
				if echoed(c) == nil {
					answered.Add(1)
				}
			}()
		}
	}
	l.eventually("three of four are served", func() bool { return answered.Load() > 2*stay*3/4 })
	require.Zero(t, s.stats()[0].GaveWay)
}

// request makes requests for as long as there are any.
func request(from netip.AddrPort, left *atomic.Int64) error {
	for left.Add(-1) >= 0 {
		c, err := dialFrom(conf.TCP, from, netip.AddrPortFrom(hostFour, 8080))
		if err != nil {
			return err
		}
		err = echoed(c)
		c.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// A client whose connections gave way may have them again when the others have gone, also
// while somebody comes and goes.
func TestWhoGaveWayGetsItBack(t *testing.T) {
	l := newLab(t)
	l.serveTCP("[::]:80", echo)
	s := l.supervise(256, mapping(conf.TCP, 8080, 80))
	for range 100 {
		l.dial(l.client, "tcp", hostFour, 8080)
	}
	l.eventually("accepting pauses", func() bool { return s.stats()[0].AcceptPauses > 0 })
	const others, several = 12, 4
	var theirs []net.Conn
	for i := range others {
		address := fmt.Sprintf("192.0.2.%d", 10+i)
		ip(t, l.client, "addr add "+address+"/24 dev eth0")
		for range several {
			c, err := l.dialFrom(netip.AddrPortFrom(netip.MustParseAddr(address), 0))
			require.NoError(t, err)
			require.NoError(t, echoed(c))
			theirs = append(theirs, c)
		}
	}
	require.Positive(t, s.stats()[0].GaveWay)
	for _, c := range theirs {
		c.Close()
	}
	c := l.comers()
	c.again(netip.MustParseAddrPort("192.0.2.10:0"), false)
	for range 60 {
		c.again(netip.AddrPortFrom(clientFour, 0), true)
	}
	l.eventually("the first one has most of it again", func() bool { return c.staying.Load() > 40 })
}

// comers are clients that come again whatever becomes of them, until the test ends.
type comers struct {
	lab     *lab
	ctx     context.Context //nolint:containedctx // the test's
	all     sync.WaitGroup
	staying atomic.Int64 // that were answered and stay
}

func (l *lab) comers() *comers {
	ctx, stop := context.WithCancel(context.Background())
	c := &comers{lab: l, ctx: ctx}
	l.t.Cleanup(func() { stop(); c.all.Wait() })
	return c
}

// again has one more come; it stays when it was answered, if it is told to.
func (c *comers) again(from netip.AddrPort, stay bool) {
	c.all.Go(func() {
		_ = c.lab.client.Do(func() {
			for c.ctx.Err() == nil {
				if conn, err := dialFrom(conf.TCP, from, netip.AddrPortFrom(hostFour, 8080)); err == nil {
					c.have(conn, stay)
				}
			}
		})
	})
}

func (c *comers) have(conn net.Conn, stay bool) {
	defer conn.Close()
	defer context.AfterFunc(c.ctx, func() { conn.Close() })()
	if echoed(conn) == nil && stay {
		c.staying.Add(1)
		defer c.staying.Add(-1)
		_, _ = conn.Read(make([]byte, 1)) // until it ends
	}
}

// dialFrom connects a client of this address, until the test ends.
func (l *lab) dialFrom(from netip.AddrPort) (c net.Conn, err error) {
	l.t.Helper()
	l.in(l.client, func() { c, err = dialFrom(conf.TCP, from, netip.AddrPortFrom(hostFour, 8080)) })
	if err == nil {
		l.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func TestDescriptorExhaustionByFlowsRecovers(t *testing.T) {
	l := newLab(t)
	l.serveUDP("[::]:53", func(_ netip.AddrPort, d []byte) []byte { return d })
	s := l.supervise(64, mapping(conf.UDP, 5353, 53))
	answered := 0
	for range 100 {
		c := l.dial(l.client, "udp", hostFour, 5353)
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
	}
	l.eventually("descriptors run out", func() bool { return s.stats()[0].Dropped > 0 })
	answered = int(s.stats()[0].Active)
	require.Positive(t, answered)
	require.Less(t, answered, 64)
}

func TestMemoryOfManyIdleConnections(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("the race detector's memory is not ours")
	}
	const connections = 2000
	l := newLab(t)
	l.serveTCP("[::]:80", echo)
	s := l.supervise(0, mapping(conf.TCP, 8080, 80))
	require.NoError(t, echoed(l.dial(l.client, "tcp", hostFour, 8080)))
	before := s.resident(t)
	for range connections {
		require.NoError(t, echoed(l.dial(l.client, "tcp", hostFour, 8080)))
	}
	each := (s.resident(t) - before) / connections
	require.Less(t, each, 3<<10, "bytes of memory for each connection")
}

// A client that does not read, and one whose service does not, cost the process no
// more than others: what cannot go on stays with its sender.
func TestMemoryOfStalledConnections(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("the race detector's memory is not ours")
	}
	for _, direction := range []string{"down", "up"} {
		t.Run(direction, func(t *testing.T) {
			l := newLab(t)
			stop := make(chan struct{})
			t.Cleanup(func() { close(stop) })
			l.serveTCP("[::]:80", func(c *net.TCPConn) {
				_, _ = c.Write([]byte("x"))
				if direction == "down" {
					fill(c)
				}
				<-stop
			})
			s := l.supervise(0, mapping(conf.TCP, 8080, 80))
			stall := func(connections int) (resident int) {
				for range connections {
					c := l.dialNarrow(8080)
					_, err := io.ReadFull(c, make([]byte, 1))
					require.NoError(t, err)
					if direction == "up" {
						go fill(c)
					}
				}
				l.eventually("nothing moves any more", func() bool {
					earlier := s.stats()[0]
					time.Sleep(200 * time.Millisecond)
					return s.stats()[0] == earlier
				})
				return s.resident(t)
			}
			before := stall(100) // these have the pipes, if any, whose memory is the kernel's
			each := (stall(200) - before) / 200
			t.Logf("%d bytes of memory for each", each)
			require.Less(t, each, 8<<10, "bytes of memory for each connection")
		})
	}
}

// fill writes for as long as the connection takes it.
func fill(c net.Conn) {
	buffer := make([]byte, 60<<10)
	for {
		if _, err := c.Write(buffer); err != nil {
			return
		}
	}
}

// dialNarrow connects a client that takes little at once.
func (l *lab) dialNarrow(port uint16) net.Conn {
	l.t.Helper()
	dialer := net.Dialer{Timeout: deadline, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		controlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
		return errors.Join(err, controlErr)
	}}
	dialer.SetMultipathTCP(false)
	var (
		c   net.Conn
		err error
	)
	l.in(l.client, func() { c, err = dialer.Dial("tcp", netip.AddrPortFrom(hostFour, port).String()) })
	require.NoError(l.t, err)
	l.t.Cleanup(func() { c.Close() })
	return c
}
