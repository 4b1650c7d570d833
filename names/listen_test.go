package names

import (
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
