package driver

import (
	"encoding/hex"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/e2e/lab/unit"
)

// TestMain has the tests make namespaces, whoever runs them.
func TestMain(m *testing.M) { os.Exit(unit.RunTests(m)) }

const toGateway = "ffffffffffff 020000000001 "

// ipv4To is the frame of a UDP datagram to an IPv4 address.
func ipv4To(address string) string {
	return toGateway + "0800 4500002400000000 4011 0000 0a000264 " + address + " 9c40 1b59 0010 0000 0000000000000000"
}

func ipv6To(address string) string {
	return toGateway + "86dd 60000000 0010 11 40 fd000000000000000000000000000064 " + address + " 9c40 1b59 0010 0000 0000000000000000"
}

// The filter as the kernel runs it, on a pair of sockets.
func TestLoopbackFilter(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	require.NoError(t, unix.SetsockoptSockFprog(fds[1], unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(loopbackFilter)), Filter: &loopbackFilter[0]}))
	for _, c := range []struct {
		name, frame string
		passes      bool
	}{
		{"192.0.2.1", ipv4To("c0000201"), true},
		{"1.0.0.0", ipv4To("01000000"), true},
		{"126.255.255.255", ipv4To("7effffff"), true},
		{"128.0.0.1", ipv4To("80000001"), true},
		{"10.127.0.0", ipv4To("0a7f0000"), true},
		{"255.255.255.255", ipv4To("ffffffff"), true},
		{"127.0.0.1", ipv4To("7f000001"), false},
		{"127.255.0.5", ipv4To("7fff0005"), false},
		{"0.0.0.0", ipv4To("00000000"), false},
		{"0.1.2.3", ipv4To("00010203"), false},
		{"2001:db8::1", ipv6To("20010db8000000000000000000000001"), true},
		{"0:1::1", ipv6To("00000001000000000000000000000001"), true},
		{"0:0:0:1::1", ipv6To("00000000000000010000000000000001"), true},
		{"::1:0:0", ipv6To("00000000000000000000000100000000"), true},
		{"::", ipv6To("00000000000000000000000000000000"), false},
		{"::1", ipv6To("00000000000000000000000000000001"), false},
		{"::127.0.0.1", ipv6To("0000000000000000000000007f000001"), false},
		{"::ffff:127.0.0.1", ipv6To("00000000000000000000ffff7f000001"), false},
		{"::ffff:192.0.2.1", ipv6To("00000000000000000000ffffc0000201"), false},
		{"ARP", toGateway + "0806 0001080006040001 020000000001 0a000264 000000000000 0a000202", true},
		{"802.1Q", toGateway + "8100 0001 0800 4500002400000000 4011 0000 0a000264 7f000001", false},
		{"no address", toGateway + "0800 4500", false},
		{"nothing", "ff", false},
	} {
		frame, err := hex.DecodeString(strings.ReplaceAll(c.frame, " ", ""))
		require.NoError(t, err, c.name)
		_, _ = unix.Write(fds[0], frame) // says EPERM of one that is dropped
		n, err := unix.Read(fds[1], make([]byte, 2048))
		if c.passes {
			require.NoError(t, err, c.name)
			require.Equal(t, len(frame), n, c.name)
		} else {
			require.ErrorIs(t, err, unix.EAGAIN, c.name)
		}
	}
}

// What the container has sent before the filter was there is not read, either.
func TestFramesBeforeTheFilter(t *testing.T) {
	n, err := unit.NewNetns()
	require.NoError(t, err)
	defer n.Close()
	runtime.LockOSThread() // for good: the thread goes with the test
	require.NoError(t, n.Enter())
	tap, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	require.NoError(t, err)
	defer unix.Close(tap)
	request, err := unix.NewIfreq("tap0")
	require.NoError(t, err)
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	require.NoError(t, unix.IoctlIfreq(tap, unix.TUNSETIFF, request))
	packet, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(packet)
	request.SetUint16(unix.IFF_UP)
	require.NoError(t, unix.IoctlIfreq(packet, unix.SIOCSIFFLAGS, request))
	require.NoError(t, unix.IoctlIfreq(packet, unix.SIOCGIFINDEX, request))
	at := &unix.SockaddrLinklayer{Ifindex: int(request.Uint32())}
	read := func() (frames int) {
		for b := make([]byte, 2048); ; {
			n, err := unix.Read(tap, b)
			if err != nil {
				return frames
			}
			if n > 30 && b[23] == unix.IPPROTO_UDP && b[12] == 8 {
				frames++
			}
		}
	}
	send := func(address string) {
		frame, err := hex.DecodeString(strings.ReplaceAll(ipv4To(address), " ", ""))
		require.NoError(t, err)
		require.NoError(t, unix.Sendto(packet, frame, 0, at))
	}
	send("7f000001")
	require.Equal(t, 1, read())
	send("7f000001")
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	require.NoError(t, err)
	defer unix.Close(self)
	require.NoError(t, filterTap(self))
	require.Zero(t, read())
	send("7f000001")
	send("c0000201")
	require.Equal(t, 1, read())
}

// The driver cannot say that it is ready, and go on to read, until we let it.
func TestFullPipe(t *testing.T) {
	read, write, held, err := fullPipe()
	require.NoError(t, err)
	defer read.Close()
	defer write.Close()
	room := func() bool {
		fds := []unix.PollFd{{Fd: int32(write.Fd()), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, 0)
		require.NoError(t, err)
		return n == 1
	}
	require.False(t, room())
	flags, err := unix.FcntlInt(write.Fd(), unix.F_GETFL, 0)
	require.NoError(t, err)
	require.Zero(t, flags&unix.O_NONBLOCK)
	_, err = read.Read(make([]byte, held))
	require.NoError(t, err)
	require.True(t, room())
}
