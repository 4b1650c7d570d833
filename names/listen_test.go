package names

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestRoomForAnswers: more may be on its way than what the kernel keeps for one container
// that does not answer ARP, which is a socket's usual room.
func TestRoomForAnswers(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	usual, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	require.NoError(t, err)
	require.NoError(t, prepare(fd, unix.AF_INET, unix.SOCK_DGRAM, "lo"))
	room, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	require.NoError(t, err)
	require.GreaterOrEqual(t, room, 2*usual)
}

// TestNoRoomToServe: a server that cannot have its sockets for UDP says so.
func TestNoRoomToServe(t *testing.T) {
	pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer pc.Close()
	f, err := pc.File()
	require.NoError(t, err)
	s := NewForwarder(filepath.Join(t.TempDir(), "resolv.conf"))
	defer s.Close()
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: before.Max}))
	err = s.Serve([]*os.File{f})
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before))
	require.ErrorIs(t, err, unix.EMFILE)
}
