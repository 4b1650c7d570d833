package forward_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/portmap/forward"
)

// echoDatagrams answers each datagram with itself.
func echoDatagrams(_ netip.AddrPort, datagram []byte) []byte { return datagram }

func exchange(c net.Conn, datagram []byte) ([]byte, error) {
	if _, err := c.Write(datagram); err != nil {
		return nil, err
	}
	buffer := make([]byte, 64<<10)
	n, err := c.Read(buffer)
	return buffer[:n], err
}

func TestDatagramsOfEverySizeArriveIntact(t *testing.T) {
	l := newLab(t)
	l.serveUDP("[::]:53", echoDatagrams)
	l.publish(mapping(conf.UDP, 5353, 53))
	for _, to := range []netip.Addr{hostFour, hostSix} {
		c := l.dial(l.client, "udp", to, 5353)
		for _, size := range []int{0, 1, 512, 1200, 1472, 1473, 9000, 65507} {
			datagram := make([]byte, size)
			_, err := io.ReadFull(pattern(), datagram)
			require.NoError(t, err)
			got, err := exchange(c, datagram)
			require.NoError(t, err)
			require.True(t, bytes.Equal(datagram, got), "%d bytes to %s", size, to)
		}
	}
}

// A burst of one client goes through in batches, in order, and nothing is lost.
func TestBurstOfDatagramsIsComplete(t *testing.T) {
	l := newLab(t)
	l.serveUDP("[::]:53", echoDatagrams)
	l.publish(mapping(conf.UDP, 5353, 53))
	c := l.dial(l.client, "udp", hostFour, 5353)
	const burst, rounds = 100, 50
	for round := range rounds {
		for i := range burst {
			_, err := fmt.Fprintf(c, "%d/%d", round, i)
			require.NoError(t, err)
		}
		buffer := make([]byte, 100)
		for i := range burst {
			n, err := c.Read(buffer)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("%d/%d", round, i), string(buffer[:n]))
		}
	}
	require.Zero(t, l.stats().Dropped)
}

// Datagrams keep their borders and their order, however their lengths lie for the
// kernel to cut them: equal ones, a shorter last one, empty ones, and some that are
// longer than the network's packets.
func TestBurstOfMixedLengthsKeepsItsBorders(t *testing.T) {
	l := newLab(t)
	l.serveUDP("[::]:53", echoDatagrams)
	l.publish(mapping(conf.UDP, 5353, 53))
	lengths := map[string][]int{
		"equal":                {1200, 1200, 1200, 1200, 1200, 1200, 1200, 1200},
		"last is shorter":      {1200, 1200, 1200, 7, 1200, 1200, 1199},
		"growing":              {1, 2, 3, 500, 501, 1400, 1472},
		"empty between":        {0, 100, 100, 0, 0, 100, 100, 0},
		"longer than a packet": {3000, 3000, 3000, 3000, 100, 3000, 3000},
		"large together":       {25000, 25000, 25000}, // what a default receive buffer holds
	}
	for _, to := range []netip.Addr{hostFour, hostSix} {
		for name, lengths := range lengths {
			c := l.dial(l.client, "udp", to, 5353)
			for round := range 20 {
				for i, length := range lengths {
					_, err := c.Write(bytes.Repeat([]byte{byte(round + i)}, length))
					require.NoError(t, err)
				}
				buffer := make([]byte, 1<<16)
				for i, length := range lengths {
					n, err := c.Read(buffer)
					require.NoError(t, err, "%s to %s: datagram %d of round %d", name, to, i, round)
					require.True(t, bytes.Equal(bytes.Repeat([]byte{byte(round + i)}, length), buffer[:n]),
						"%s to %s: datagram %d of %d bytes came back with %d", name, to, i, length, n)
				}
			}
		}
	}
	require.Zero(t, l.stats().Dropped)
}

// An answer leaves from the address that the client sent to, also where the host
// would choose another one.
func TestAnswerComesFromTheAddressUsed(t *testing.T) {
	l := newLab(t)
	l.serveUDP("[::]:53", echoDatagrams)
	l.publish(mapping(conf.UDP, 5353, 53))
	// Unconnected, as a connected socket would not even see a wrong answer.
	c := l.packet(l.client, "192.0.2.2:0")
	require.NoError(t, c.SetDeadline(time.Now().Add(deadline)))
	for _, to := range []netip.Addr{hostFour, hostSecond, hostFour} {
		_, err := c.WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(to, 5353))
		require.NoError(t, err)
		_, from, err := c.ReadFromUDPAddrPort(make([]byte, 10))
		require.NoError(t, err)
		require.Equal(t, to, from.Addr().Unmap())
	}
}

// Every host listens to ff02::1, which is no address that an answer could come from.
// The index of eth0 is 2.
func TestAnswerToAMulticastDatagram(t *testing.T) {
	l := newLab(t)
	l.serveUDP("[::]:53", echoDatagrams)
	l.publish(mapping(conf.UDP, 5353, 53))
	c := l.packet(l.client, "[::]:0")
	l.eventually("an answer comes", func() bool {
		_, err := c.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort("[ff02::1%2]:5353"))
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Second)))
		_, _, err = c.ReadFromUDPAddrPort(make([]byte, 10))
		return err == nil
	})
}

func TestThousandsOfUDPClientsGetTheirOwnAnswers(t *testing.T) {
	clients := 4000
	if testing.Short() || raceEnabled {
		clients = 2000
	}
	l := newLab(t)
	l.serveUDP("[::]:53", func(from netip.AddrPort, d []byte) []byte { return fmt.Appendf(nil, "%s %d", d, from.Port()) })
	l.publish(mapping(conf.UDP, 5353, 53))
	// Raw descriptors spare a poller entry each.
	fds := l.rawClients(min(clients, affordableClients(t)))
	for round := range 2 {
		for i, fd := range fds {
			require.NoError(t, unix.Send(fd, fmt.Appendf(nil, "%d.%d", round, i), 0))
			want := fmt.Sprintf("%d.%d %d", round, i, localPort(t, fd))
			buffer := make([]byte, 100)
			n, err := readAgain(fd, buffer)
			require.NoError(t, err)
			require.Equal(t, want, string(buffer[:n]))
		}
	}
	s := l.stats()
	require.EqualValues(t, len(fds), s.Total)
	require.EqualValues(t, len(fds), s.Active)
	require.Zero(t, s.Dropped+s.GatewayFallbacks)
	_, routes := l.namespace.has()
	require.Equal(t, 1, routes, "one route for one client address")
}

// affordableClients leaves descriptors for the other end of each.
func affordableClients(t *testing.T) int {
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	return int(limit.Cur)/2 - 500
}

func (l *lab) rawClients(count int) (fds []int) {
	l.t.Helper()
	l.t.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	l.in(l.client, func() {
		for range count {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			require.NoError(l.t, err)
			fds = append(fds, fd)
			wait := unix.NsecToTimeval(deadline.Nanoseconds())
			require.NoError(l.t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
			require.NoError(l.t, unix.Connect(fd, &unix.SockaddrInet4{Port: 5353, Addr: hostFour.As4()}))
		}
	})
	return fds
}

func localPort(t *testing.T, fd int) int {
	name, err := unix.Getsockname(fd)
	require.NoError(t, err)
	return name.(*unix.SockaddrInet4).Port
}

func TestConcurrentUDPClients(t *testing.T) {
	l := newLab(t)
	l.serveUDP("[::]:53", echoDatagrams)
	l.publish(mapping(conf.UDP, 5353, 53), mapping(conf.UDP, 5354, 53))
	var wg sync.WaitGroup
	for i := range 32 {
		to, port := hostFour, uint16(5353+i%2)
		if i%4 < 2 {
			to = hostSix
		}
		c := l.dial(l.client, "udp", to, port)
		wg.Go(func() {
			for k := range 200 {
				want := fmt.Appendf(nil, "%d/%d", i, k)
				if got, err := exchange(c, want); err != nil || !bytes.Equal(want, got) {
					t.Errorf("sent %s, got %s, %v", want, got, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestFlowsExpire(t *testing.T) {
	l := newLab(t, func(c *forward.Config) {
		c.UnrepliedTimeout, c.RepliedTimeout = 5*time.Second, time.Hour // the answer of the other is far quicker
	})
	l.serveUDP("[::]:53", func(_ netip.AddrPort, d []byte) []byte {
		if string(d) == "answer me" {
			return d
		}
		return nil
	})
	l.publish(mapping(conf.UDP, 5353, 53))
	answered, silent := l.dial(l.client, "udp", hostFour, 5353), l.dial(l.host, "udp", loopbackFour, 5353)
	_, err := exchange(answered, []byte("answer me"))
	require.NoError(t, err)
	_, err = silent.Write([]byte("ignore me"))
	require.NoError(t, err)
	l.eventually("both are there", func() bool { return l.stats().Total == 2 })
	l.eventually("the one without a reply expires", func() bool { return l.stats().Active == 1 })
	_, routes := l.namespace.has()
	require.Equal(t, 1, routes)
	got, err := exchange(answered, []byte("answer me"))
	require.NoError(t, err)
	require.Equal(t, "answer me", string(got))
	require.EqualValues(t, 2, l.stats().Total, "the same flow")
}

func TestRepliedFlowsExpireToo(t *testing.T) {
	l := newLab(t, func(c *forward.Config) { c.RepliedTimeout = 200 * time.Millisecond })
	l.serveUDP("[::]:53", echoDatagrams)
	l.publish(mapping(conf.UDP, 5353, 53))
	c := l.dial(l.client, "udp", hostFour, 5353)
	for range 2 {
		_, err := exchange(c, []byte("x"))
		require.NoError(t, err)
		l.eventually("the flow expires", func() bool { return l.stats().Active == 0 })
		_, routes := l.namespace.has()
		require.Zero(t, routes)
	}
}

func TestFlowTableIsBounded(t *testing.T) {
	const most = 20
	l := newLab(t, func(c *forward.Config) { c.MaxFlows = most })
	l.serveUDP("[::]:53", func(_ netip.AddrPort, d []byte) []byte {
		if string(d) == "flood" {
			return nil
		}
		return d
	})
	l.publish(mapping(conf.UDP, 5353, 53))
	kept := l.dial(l.client, "udp", hostFour, 5353)
	_, err := exchange(kept, []byte("x"))
	require.NoError(t, err)
	for range 5 * most {
		_, err := l.dial(l.client, "udp", hostFour, 5353).Write([]byte("flood"))
		require.NoError(t, err)
	}
	l.eventually("the flood has been seen", func() bool { return l.stats().Total == 5*most+1 })
	require.EqualValues(t, most, l.stats().Active)
	_, err = exchange(kept, []byte("x"))
	require.NoError(t, err)
	require.EqualValues(t, 5*most+1, l.stats().Total, "the flow that had an answer was kept")
	// With conversations only, a new one is turned away.
	for range most - 1 {
		c := l.dial(l.client, "udp", hostFour, 5353)
		for range 2 {
			_, err := exchange(c, []byte("x"))
			require.NoError(t, err)
		}
	}
	dropped := l.stats().Dropped
	late := l.dial(l.client, "udp", hostFour, 5353)
	_, err = late.Write([]byte("x"))
	require.NoError(t, err)
	l.eventually("the late one is dropped", func() bool { return l.stats().Dropped > dropped })
}

// A flood of one port that fills the table does not keep clients of another one out, which another
// worker has.
func TestFlowsOfAnotherWorkerEnd(t *testing.T) {
	const most = 20
	l := newLab(t, func(c *forward.Config) { c.MaxFlows, c.MaxWorkers, c.UnrepliedTimeout = most, 2, time.Hour })
	l.serveUDP("[::]:53", func(_ netip.AddrPort, d []byte) []byte {
		if string(d) == "flood" {
			return nil
		}
		return d
	})
	l.publish(mapping(conf.UDP, 5353, 53))
	l.publish(mapping(conf.UDP, 5354, 53))
	for range most {
		_, err := l.dial(l.client, "udp", hostFour, 5353).Write([]byte("flood"))
		require.NoError(t, err)
	}
	active := func() (sum int64) {
		for _, s := range l.forwarder.Stats() {
			sum += s.Active
		}
		return sum
	}
	l.eventually("the table is full", func() bool { return active() == most })
	for range most / 4 {
		require.NoError(t, talk(l.dial(l.host, "udp", hostFour, 5354)))
	}
	l.eventually("as many have ended", func() bool { return active() == most })
	// Who has more than a share is not served at the cost of the other port.
	require.NoError(t, talk(l.dial(l.host, "udp", hostFour, 5354)))
	l.unanswered(l.dial(l.host, "udp", hostFour, 5354), "it has its share")
}

// Conversations that rest do not keep others out for as long as they may.
func TestRestingConversationsEnd(t *testing.T) {
	const most = 8
	l := newLab(t, func(c *forward.Config) {
		c.MaxFlows, c.MaxWorkers, c.UnrepliedTimeout, c.RepliedTimeout = most, 1, time.Second, time.Hour
	})
	l.serveUDP("[::]:53", echoDatagrams)
	l.publish(mapping(conf.UDP, 5353, 53))
	for range most { // of one client, who takes nothing from himself
		l.eventually("has one", func() bool { return talk(l.dial(l.client, "udp", hostFour, 5353)) == nil })
	}
	l.eventually("a new one takes the place of one that rests", func() bool {
		c := l.dial(l.client, "udp", hostFour, 5353)
		require.NoError(t, c.SetDeadline(time.Now().Add(time.Second)))
		return talk(c) == nil
	})
	require.LessOrEqual(t, l.stats().Active, int64(most))
}

// talk has two exchanges, which makes a conversation of them.
func talk(c net.Conn) error {
	for range 2 {
		if _, err := exchange(c, []byte("x")); err != nil {
			return err
		}
	}
	return nil
}

// unanswered is for a client that nobody answers, as far as can be waited for that.
func (l *lab) unanswered(c net.Conn, why string) {
	l.t.Helper()
	require.NoError(l.t, c.SetDeadline(time.Now().Add(2*time.Second)))
	require.ErrorIs(l.t, talk(c), os.ErrDeadlineExceeded, why)
}

// A client that has the table full of conversations leaves three quarters of it to others who
// come, and a port does so to another port; below that nobody takes from anybody.
func TestConversationsAreShared(t *testing.T) {
	const most = 40
	l := newLab(t, func(c *forward.Config) { c.MaxFlows, c.MaxWorkers = most, 1 })
	l.serveUDP("[::]:53", echoDatagrams)
	first, second := mapping(conf.UDP, 5353, 53), mapping(conf.UDP, 5354, 53)
	l.publish(first)
	l.publish(second)
	for range most {
		require.NoError(t, talk(l.dial(l.client, "udp", hostFour, 5353)))
	}
	// Another client of the same port, which the host itself is.
	for range most * 3 / 4 {
		require.NoError(t, talk(l.dial(l.host, "udp", hostFour, 5353)))
	}
	l.unanswered(l.dial(l.host, "udp", hostFour, 5353), "the first one has no more than its share")
	require.NoError(t, talk(l.dial(l.client, "udp", hostFour, 5354)), "the port has more than its share")
	got := map[uint16]forward.PortStats{}
	for _, s := range l.forwarder.Stats() {
		got[s.Mapping.HostPort] = s
	}
	require.EqualValues(t, most-1, got[5353].Active)
	require.EqualValues(t, most*3/4+1, got[5353].FlowsGaveWay)
	require.EqualValues(t, 1, got[5354].Active)
}

// A port that has most of all, and a client that has, take nothing from others, who have more
// than a share only together.
func TestWhoHasMostTakesNothing(t *testing.T) {
	const most = 40
	l := newLab(t, func(c *forward.Config) { c.MaxFlows, c.MaxWorkers = most, 1 })
	l.serveUDP("[::]:53", echoDatagrams)
	l.publish(mapping(conf.UDP, 5353, 53))
	l.publish(mapping(conf.UDP, 5354, 53))
	for _, from := range []*unit.Netns{l.client, l.host} {
		for range 9 {
			require.NoError(t, talk(l.dial(from, "udp", hostFour, 5354)))
		}
	}
	for range most - 2*9 {
		require.NoError(t, talk(l.dial(l.client, "udp", hostFour, 5353)))
	}
	l.unanswered(l.dial(l.client, "udp", hostFour, 5353), "who has the most of all")
	for _, s := range l.forwarder.Stats() {
		require.Zero(t, s.FlowsGaveWay, "%d", s.Mapping.HostPort)
	}
}

// Made-up clients without end take new flows from others, but not the conversations that
// there are.
func TestConversationsGoOnUnderAFloodOfClients(t *testing.T) {
	const rounds = 50
	l := newLab(t)
	l.serveUDP("[::]:53", echoDatagrams)
	l.publish(mapping(conf.UDP, 5353, 53))
	kept := l.dial(l.client, "udp", hostFour, 5353)
	for range 2 {
		_, err := exchange(kept, []byte("x"))
		require.NoError(t, err)
	}
	stop := l.floodClients(5353)
	defer stop()
	l.eventually("the flood has begun", func() bool { return l.stats().Total > 1000 })
	answered := 0
	for range rounds {
		_, err := kept.Write([]byte("x"))
		require.NoError(t, err)
		require.NoError(t, kept.SetReadDeadline(time.Now().Add(2*time.Second)))
		if _, err := kept.Read(make([]byte, 1)); err == nil {
			answered++
		}
	}
	t.Logf("%d of %d answered, %d clients", answered, rounds, l.stats().Total)
	require.Greater(t, answered, rounds/2)
}

// floodClients sends datagrams from ever new addresses and ports, until stop is called.
func (l *lab) floodClients(port uint16) (stop func()) {
	l.t.Helper()
	var fd int
	var err error
	l.in(l.client, func() { fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) })
	require.NoError(l.t, err)
	var ends atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		packet := append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 198, 18, 0, 0}, hostFour.AsSlice()...)
		packet = append(packet, 4, 0, byte(port>>8), byte(port), 0, 9, 0, 0, 'x')
		for n := uint32(0); !ends.Load(); n++ {
			binary.BigEndian.PutUint16(packet[14:], uint16(n))
			binary.BigEndian.PutUint16(packet[20:], uint16(1024+n>>16))
			_ = unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: hostFour.As4()}) // some are lost
		}
	})
	return func() {
		ends.Store(true)
		wg.Wait()
		unix.Close(fd)
	}
}

// A client that is done after one exchange, as who looks up a name, does not keep
// others out for three minutes.
func TestSingleExchangesAreNotBounded(t *testing.T) {
	const most = 20
	l := newLab(t, func(c *forward.Config) { c.MaxFlows = most })
	l.serveUDP("[::]:53", echoDatagrams)
	l.publish(mapping(conf.UDP, 5353, 53))
	conversation := l.dial(l.client, "udp", hostFour, 5353)
	for range 2 {
		_, err := exchange(conversation, []byte("x"))
		require.NoError(t, err)
	}
	for i := range 5 * most {
		_, err := exchange(l.dial(l.client, "udp", hostFour, 5353), []byte("x"))
		require.NoError(t, err, "client %d", i)
	}
	_, err := exchange(conversation, []byte("x"))
	require.NoError(t, err)
	s := l.stats()
	require.EqualValues(t, 5*most+1, s.Total, "the conversation was kept")
	require.EqualValues(t, most, s.Active)
	require.Zero(t, s.Dropped)
}

// A service that is not there is told by ICMP when the gateway asks; the client's
// later datagrams still get through once it is.
func TestServiceThatStartsLate(t *testing.T) {
	l := newLab(t)
	l.publish(mapping(conf.UDP, 5353, 53))
	c := l.dial(l.host, "udp", loopbackFour, 5353)
	_, err := c.Write([]byte("early"))
	require.NoError(t, err)
	l.eventually("the datagram was taken", func() bool { return l.stats().Total == 1 })
	l.serveUDP("[::]:53", echoDatagrams)
	l.eventually("an answer comes", func() bool {
		require.NoError(t, c.SetDeadline(time.Now().Add(100*time.Millisecond)))
		got, err := exchange(c, []byte("late"))
		return err == nil && string(got) == "late"
	})
}

func TestRouteThatCannotBeAddedMeansGateway(t *testing.T) {
	for _, protocol := range []conf.Protocol{conf.TCP, conf.UDP} {
		t.Run(string(protocol), func(t *testing.T) {
			l := newLab(t)
			l.serveReport(protocol, "[::]:53")
			l.publish(mapping(protocol, 5353, 53))
			// The gateway's own route is there before routes begin to fail.
			require.Equal(t, gatewayFour.String(), l.seen(protocol, l.host, loopbackFour, 5353))
			l.namespace.mu.Lock()
			l.namespace.failClient = errors.New("no")
			l.namespace.mu.Unlock()
			require.Equal(t, gatewayFour.String(), l.seen(protocol, l.client, hostFour, 5353))
			require.EqualValues(t, 2, l.stats().GatewayFallbacks)
		})
	}
}

// What the container itself sends from a published UDP port leaves by the tap,
// also while the port has clients.
func TestContainersOwnDatagramsAreNotCaptured(t *testing.T) {
	l := newLab(t)
	service := l.packet(l.container, "0.0.0.0:53")
	l.publish(mapping(conf.UDP, 5353, 53))
	c := l.dial(l.client, "udp", hostFour, 5353)
	_, err := c.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, service.SetDeadline(time.Now().Add(deadline)))
	_, from, err := service.ReadFromUDPAddrPort(make([]byte, 10))
	require.NoError(t, err)
	require.Equal(t, clientFour, from.Addr().Unmap())
	outside := l.packet(l.client, "203.0.113.7:123")
	require.NoError(t, outside.SetDeadline(time.Now().Add(deadline)))
	_, err = service.WriteToUDPAddrPort([]byte("time?"), netip.AddrPortFrom(elsewhere, 123))
	require.NoError(t, err)
	buffer := make([]byte, 10)
	n, from, err := outside.ReadFromUDPAddrPort(buffer)
	require.NoError(t, err)
	require.Equal(t, "time?", string(buffer[:n]))
	require.Equal(t, containerFour, from.Addr().Unmap())
}

// readAgain reads from a blocking descriptor, which Go's signals interrupt.
func readAgain(fd int, buffer []byte) (int, error) {
	for {
		if n, err := unix.Read(fd, buffer); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
