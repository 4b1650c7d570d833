package forward_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/portmap/forward"
)

// echo answers what it reads, and its end with its own.
func echo(c *net.TCPConn) {
	buffer := make([]byte, 4<<10)
	for {
		n, err := c.Read(buffer)
		if err != nil {
			return
		}
		if _, err := c.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func TestServiceMayAnswerAfterTheClientHasEnded(t *testing.T) {
	l := newLab(t)
	l.serveTCP(":80", func(c *net.TCPConn) {
		request, _ := io.ReadAll(c)
		_, _ = c.Write(append([]byte("got "), request...))
	})
	l.publish(mapping(conf.TCP, 8080, 80))
	c := l.dial(l.client, "tcp", hostFour, 8080).(*net.TCPConn)
	_, err := c.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "got hello", string(answer))
}

func TestClientMaySendAfterTheServiceHasEnded(t *testing.T) {
	l := newLab(t)
	received := make(chan string, 1)
	l.serveTCP(":80", func(c *net.TCPConn) {
		_, _ = c.Write([]byte("welcome"))
		_ = c.CloseWrite()
		all, _ := io.ReadAll(c)
		received <- string(all)
	})
	l.publish(mapping(conf.TCP, 8080, 80))
	c := l.dial(l.client, "tcp", hostFour, 8080)
	greeting, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "welcome", string(greeting))
	_, err = c.Write([]byte("late"))
	require.NoError(t, err)
	c.Close()
	require.Equal(t, "late", <-received)
}

func TestResetOfTheClientReachesTheService(t *testing.T) {
	l := newLab(t)
	result := make(chan error, 1)
	l.serveTCP(":80", func(c *net.TCPConn) {
		_, _ = c.Write([]byte("x"))
		_, err := io.Copy(io.Discard, c)
		result <- err
	})
	l.publish(mapping(conf.TCP, 8080, 80))
	c := l.dial(l.client, "tcp", hostFour, 8080).(*net.TCPConn)
	_, err := io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, c.SetLinger(0))
	c.Close()
	require.ErrorIs(t, <-result, syscall.ECONNRESET)
	l.eventually("nothing is open", func() bool { return l.stats().Active == 0 })
}

func TestResetOfTheServiceReachesTheClient(t *testing.T) {
	l := newLab(t)
	l.serveTCP(":80", func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0)
	})
	l.publish(mapping(conf.TCP, 8080, 80))
	c := l.dial(l.client, "tcp", hostFour, 8080)
	_, err := c.Write([]byte("x"))
	require.NoError(t, err)
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

// A server that answers without reading the whole request resets the connection
// when it closes. The answer must come through before the reset.
func TestEarlyAnswerOfAServiceThatResets(t *testing.T) {
	l := newLab(t)
	l.serveTCP(":80", func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_, _ = c.Write([]byte("413 too large"))
	})
	l.publish(mapping(conf.TCP, 8080, 80))
	for range 50 {
		c := l.dial(l.client, "tcp", hostFour, 8080)
		_, _ = c.Write(make([]byte, 256<<10))
		answer := make([]byte, len("413 too large"))
		_, err := io.ReadFull(c, answer)
		require.NoError(t, err)
		require.Equal(t, "413 too large", string(answer))
		c.Close()
	}
}

func TestRefusedConnectionIsReset(t *testing.T) {
	l := newLab(t)
	l.publish(mapping(conf.TCP, 8080, 80))
	l.requireReset(l.client, hostFour)
	l.eventually("the refusal is counted", func() bool { s := l.stats(); return s.Refused == 1 && s.Active == 0 })
}

func TestServiceOnTheContainersLoopbackIsNotReached(t *testing.T) {
	l := newLab(t)
	l.serveTCP("127.0.0.1:80", report)
	l.serveTCP("[::1]:80", report)
	l.publish(mapping(conf.TCP, 8080, 80))
	l.requireReset(l.host, loopbackFour)
	l.requireReset(l.host, loopbackSix)
	l.requireReset(l.client, hostFour)
}

// requireReset connects and gets nothing but a reset, maybe at once.
func (l *lab) requireReset(from *unit.Netns, to netip.Addr) {
	l.t.Helper()
	c, err := l.tryDial(from, "tcp", to, 8080)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	require.ErrorIs(l.t, err, syscall.ECONNRESET)
}

func TestUnansweredConnectionTimesOut(t *testing.T) {
	l := newLab(t, func(c *forward.Config) { c.ConnectTimeout = 200 * time.Millisecond })
	l.fullBacklog(80)
	l.publish(mapping(conf.TCP, 8080, 80))
	l.requireReset(l.client, hostFour)
	require.EqualValues(t, 1, l.stats().Refused)
}

// fullBacklog listens in the container, accepts nobody, and has no room for more:
// the kernel does not answer then (listen(2)).
func (l *lab) fullBacklog(port int) {
	l.t.Helper()
	l.in(l.container, func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(l.t, err)
		l.t.Cleanup(func() { unix.Close(fd) })
		require.NoError(l.t, unix.Bind(fd, &unix.SockaddrInet4{Port: port}))
		require.NoError(l.t, unix.Listen(fd, 0))
	})
	l.dial(l.container, "tcp", containerFour, uint16(port))
}

func TestClientThatVanishesIsForgotten(t *testing.T) {
	l := newLab(t)
	started := make(chan struct{})
	l.serveTCP(":80", func(c *net.TCPConn) {
		close(started)
		buffer := make([]byte, 64<<10)
		for {
			if _, err := c.Write(buffer); err != nil {
				return
			}
		}
	})
	l.publish(mapping(conf.TCP, 8080, 80))
	c := l.dial(l.client, "tcp", hostFour, 8080)
	<-started
	_, err := io.ReadFull(c, make([]byte, 1<<20))
	require.NoError(t, err)
	c.Close() // with data unread, and more to come: resets
	l.eventually("the connection is gone", func() bool { return l.stats().Active == 0 })
}

// A service that limits its clients in time closes. A client that does not, or that
// does not read the rest, does not keep descriptors in its place.
func TestClientThatStaysAfterItsServiceIsForgotten(t *testing.T) {
	for name, serve := range map[string]func(*net.TCPConn){
		"closed": func(c *net.TCPConn) { _, _ = c.Write([]byte("bye")) },
		"reset, its last bytes unread": func(c *net.TCPConn) {
			fillFor(c, time.Second)
			_ = c.SetLinger(0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			// Longer than the kernel's patience with what nobody has open any more, as it is
			// by default.
			l := newLab(t, func(c *forward.Config) { c.GoneTimeout = 3 * time.Second })
			l.in(l.container, func() {
				require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/tcp_fin_timeout", []byte("1"), 0))
			})
			l.serveTCP(":80", serve)
			l.publish(mapping(conf.TCP, 8080, 80))
			l.dialNarrow(8080)
			l.eventually("there is a connection", func() bool { return l.stats().Total == 1 })
			l.eventually("nothing is open", func() bool { return l.stats().Active == 0 })
		})
	}
}

// A service that has ended its own direction only, and a client that is slow to send,
// are both there: nobody is forgotten.
func TestHalfClosedConnectionStays(t *testing.T) {
	l := newLab(t, func(c *forward.Config) { c.GoneTimeout = time.Second })
	received := make(chan string, 1)
	l.in(l.container, func() {
		require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/tcp_fin_timeout", []byte("1"), 0))
	})
	l.serveTCP(":80", func(c *net.TCPConn) {
		_ = c.CloseWrite()
		all, _ := io.ReadAll(c)
		received <- string(all)
	})
	l.publish(mapping(conf.TCP, 8080, 80))
	c := l.dial(l.client, "tcp", hostFour, 8080)
	_, err := io.ReadAll(c)
	require.NoError(t, err)
	time.Sleep(4 * time.Second) // several times what was waited for
	_, err = c.Write([]byte("late"))
	require.NoError(t, err)
	c.Close()
	require.Equal(t, "late", <-received)
}

// fillFor writes what the connection takes, until it takes nothing for a while.
func fillFor(c net.Conn, while time.Duration) {
	buffer := make([]byte, 60<<10)
	for {
		_ = c.SetWriteDeadline(time.Now().Add(while))
		if _, err := c.Write(buffer); err != nil {
			return
		}
	}
}

// pattern is reproducible data that repeats after no round number of bytes.
func pattern() io.Reader { return rand.NewChaCha8([32]byte{1}) }

func bulkSize() int64 {
	if testing.Short() || raceEnabled {
		return 64 << 20
	}
	return 256 << 20
}

func TestBulkArrivesIntact(t *testing.T) {
	for name, pipes := range map[string]int{"spliced": 0, "copied": -1} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, func(c *forward.Config) { c.MaxPipes = pipes })
			size := bulkSize()
			sum := make(chan []byte, 1)
			l.serveTCP(":80", func(c *net.TCPConn) {
				done := make(chan struct{})
				go func() { sum <- checksum(c); close(done) }()
				_, _ = io.CopyN(c, pattern(), size)
				_ = c.CloseWrite()
				<-done
			})
			l.publish(mapping(conf.TCP, 8080, 80))
			c := l.dial(l.client, "tcp", hostFour, 8080).(*net.TCPConn)
			require.NoError(t, c.SetDeadline(time.Now().Add(5*time.Minute)))
			go func() { _, _ = io.CopyN(c, pattern(), size); _ = c.CloseWrite() }()
			want := checksum(io.LimitReader(pattern(), size))
			require.Equal(t, want, checksum(c), "down")
			require.Equal(t, want, <-sum, "up")
			l.eventually("all is counted", func() bool {
				s := l.stats()
				return s.BytesIn == uint64(size) && s.BytesOut == uint64(size) && s.Active == 0
			})
		})
	}
}

func checksum(r io.Reader) []byte {
	h := sha256.New()
	_, _ = io.Copy(h, r)
	return h.Sum(nil)
}

func TestSlowReaderGetsEverything(t *testing.T) {
	for name, pipes := range map[string]int{"spliced": 0, "copied": -1} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, func(c *forward.Config) { c.MaxPipes = pipes })
			const size = 16 << 20
			l.serveTCP(":80", func(c *net.TCPConn) { _, _ = io.CopyN(c, pattern(), size) })
			l.publish(mapping(conf.TCP, 8080, 80))
			c := l.dial(l.client, "tcp", hostFour, 8080).(*net.TCPConn)
			require.NoError(t, c.SetReadBuffer(8<<10))
			var got bytes.Buffer
			for i := 0; ; i++ {
				if i%64 == 0 {
					time.Sleep(time.Millisecond) // lets the buffers fill
				}
				_, err := io.CopyN(&got, c, 16<<10)
				if errors.Is(err, io.EOF) {
					break
				}
				require.NoError(t, err)
			}
			require.Equal(t, checksum(io.LimitReader(pattern(), size)), checksum(&got))
		})
	}
}

// More directions stand still with data than there are pipes: all get through, and
// the pool stays within its bound.
func TestManyBulkFlowsShareFewPipes(t *testing.T) {
	const flows, pipes, size = 64, 4, 4 << 20
	l := newLabAlone(t, func(c *forward.Config) { c.MaxPipes = pipes })
	l.serveTCP(":80", func(c *net.TCPConn) { _, _ = io.CopyN(c, pattern(), size) })
	l.publish(mapping(conf.TCP, 8080, 80))
	before := openPipes(t)
	conns := make([]net.Conn, flows)
	for i := range conns {
		conns[i] = l.dial(l.client, "tcp", hostFour, 8080)
		require.NoError(t, conns[i].(*net.TCPConn).SetReadBuffer(32<<10))
	}
	want := checksum(io.LimitReader(pattern(), size))
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			if !bytes.Equal(want, checksum(c)) {
				t.Error("data differs")
			}
		})
	}
	require.LessOrEqual(t, openPipes(t)-before, 2*pipes)
	wg.Wait()
	require.LessOrEqual(t, openPipes(t)-before, 2*pipes)
	l.eventually("unused pipes are given back", func() bool { return openPipes(t) <= before })
}

// openPipes counts this process's pipe descriptors.
func openPipes(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, e := range entries {
		if target, _ := os.Readlink("/proc/self/fd/" + e.Name()); len(target) > 5 && target[:5] == "pipe:" {
			n++
		}
	}
	return n
}

// As many bulk flows as there may be leave the user's other programs their pipes:
// after 64 MiB of one user the kernel makes only small ones (pipe(7)).
func TestPipesOfManyBulkFlowsAreAPartOfTheUsersBudget(t *testing.T) {
	const flows = 64
	l := newLabAlone(t)
	l.serveTCP(":80", func(c *net.TCPConn) {
		buffer := make([]byte, 256<<10)
		for {
			if _, err := c.Write(buffer); err != nil {
				return
			}
		}
	})
	l.publish(mapping(conf.TCP, 8080, 80))
	before := pipeRoom(t)
	for range flows {
		c := l.dial(l.client, "tcp", hostFour, 8080)
		// Some is read, for the flow to become a bulk one, and then none: what is under
		// way stays in the pipe.
		_, err := io.CopyN(io.Discard, c, 2<<20)
		require.NoError(t, err)
	}
	l.eventually("pipes are in use", func() bool { return pipeRoom(t) > before })
	require.LessOrEqual(t, pipeRoom(t)-before, 16<<20)
}

// pipeRoom is what this process's pipes have room for, in bytes.
func pipeRoom(t *testing.T) (room int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	seen := make(map[string]bool)
	for _, e := range entries {
		target, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if !strings.HasPrefix(target, "pipe:") || seen[target] {
			continue
		}
		seen[target] = true
		fd, err := strconv.Atoi(e.Name())
		require.NoError(t, err)
		if size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0); err == nil {
			room += size
		}
	}
	return room
}

func TestShortConnectionsLeaveNothing(t *testing.T) {
	l := newLabAlone(t)
	l.serveTCP(":80", echo)
	l.publish(mapping(conf.TCP, 8080, 80))
	total := 20000
	if testing.Short() || raceEnabled {
		total = 2000
	}
	l.shortConnections(100) // workers and spare sockets are there from now on
	before := openDescriptors(t)
	l.shortConnections(total)
	l.eventually("all are closed", func() bool { return l.stats().Active == 0 })
	s := l.stats()
	require.EqualValues(t, total+100, s.Total)
	require.Zero(t, s.Refused+s.Dropped)
	l.eventually("no descriptor is left over", func() bool { return openDescriptors(t) <= before+2 })
}

// The client closes first, so that our sockets inside would wait for 60 s.
func TestShortConnectionsLeaveNoTimeWait(t *testing.T) {
	l := newLab(t)
	l.serveTCP("[::]:80", echo)
	l.publish(mapping(conf.TCP, 8080, 80))
	for range 20 {
		for _, to := range []netip.Addr{loopbackFour, loopbackSix, hostFour, hostSix} {
			c := l.dial(l.host, "tcp", to, 8080)
			require.NoError(t, echoed(c))
			c.Close()
		}
	}
	l.eventually("all are closed", func() bool { return l.stats().Active == 0 })
	require.Zero(t, l.timeWaits())
}

// timeWaits counts TCP sockets in TIME_WAIT in the container (proc_net_tcp:
// state 06).
func (l *lab) timeWaits() (n int) {
	l.t.Helper()
	l.in(l.container, func() {
		for _, table := range []string{"tcp", "tcp6"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + table)
			require.NoError(l.t, err)
			for line := range strings.Lines(string(text)) {
				if fields := strings.Fields(line); len(fields) > 3 && fields[3] == "06" {
					n++
				}
			}
		}
	})
	return n
}

// shortConnections makes connections over the host's loopback, eight at a time.
func (l *lab) shortConnections(total int) {
	l.t.Helper()
	const clients = 8
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			l.in(l.host, func() {
				for k := i; k < total; k += clients {
					if err := oneByteEchoed(loopbackFour, 8080); err != nil {
						l.t.Error(err)
						return
					}
				}
			})
		})
	}
	wg.Wait()
}

// oneByteEchoed uses a blocking socket: on a locked thread, waiting in Go's poller
// would cost two changes of threads each time.
func oneByteEchoed(to netip.Addr, port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(deadline.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: to.As4()}); err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		return err
	}
	n, err := readAgain(fd, make([]byte, 1))
	if err == nil && n != 1 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}
