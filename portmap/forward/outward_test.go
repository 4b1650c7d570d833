package forward_test

import (
	"log/slog"
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/portmap/forward"
)

// TestOutwardThatCannotStart says why, and leaves no worker behind.
func TestOutwardThatCannotStart(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer file.Close()
	before := openDescriptors(t)
	_, err = forward.NewOutward(forward.OutwardConfig{Packets: -1, Listeners: []int{int(file.Fd())}, Logger: slog.New(slog.DiscardHandler)})
	require.ErrorIs(t, err, unix.ENOTSOCK)
	require.LessOrEqual(t, openDescriptors(t), before)
}

// gate calls something of an Outward where it may be called: on its worker.
type gate struct{ call func() }

func (g *gate) Packet([]byte)                           { g.call() }
func (g *gate) Work() bool                              { return false }
func (g *gate) Answered(forward.Call, []byte)           {}
func (g *gate) Tick()                                   {}
func (g *gate) Failed(forward.Call, []byte, unix.Errno) {}

// A container that asks for ever other UDP destinations leaves some for others.
func TestDestinationsAreShared(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for transparent sockets")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	g := &gate{}
	o, err := forward.NewOutward(forward.OutwardConfig{
		Gate: g, Packets: pair[0], Inside: unix.Socket, From: func(bool) netip.Addr { return netip.Addr{} }, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	defer o.Close()
	greedy, other := netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("10.0.2.3")
	opened, hasOne := 0, false
	done := make(chan struct{})
	g.call = func() {
		defer close(done)
		at := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), 53)
		for port := uint16(1); port < 60000 && o.Open(greedy, netip.AddrPortFrom(netip.MustParseAddr("198.18.0.1"), port), at); port++ {
			opened++
		}
		hasOne = o.Open(other, netip.AddrPortFrom(netip.MustParseAddr("198.18.0.2"), 53), at)
	}
	_, err = unix.Write(pair[1], []byte("x"))
	require.NoError(t, err)
	<-done
	t.Logf("%d destinations", opened)
	require.Greater(t, opened, 100)
	require.True(t, hasOne)
}
