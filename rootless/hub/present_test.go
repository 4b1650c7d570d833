package hub

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

// TestPresentOfABesetHub: where as many wait as may, one that asks which process is there has its
// turn, too, and that it lives is known at once.
func TestPresentOfABesetHub(t *testing.T) {
	store, err := record.Open(filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	h := Hub{store, "web.1"}
	require.NoError(t, os.Mkdir(h.Dir(), 0o700))
	require.False(t, h.Lives())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.Path("sock"), Net: "unix"})
	require.NoError(t, err)
	defer l.Close()
	raw, err := l.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }))
	require.NoError(t, err)
	waiting, err := net.Dial("unix", h.Path("sock"))
	require.NoError(t, err)
	defer waiting.Close()
	require.True(t, h.Lives())

	type answer struct {
		*record.Process
		error
	}
	present := make(chan answer, 1)
	go func() {
		p, err := h.Present()
		present <- answer{p, err}
	}()
	select {
	case a := <-present:
		require.NoError(t, a.error)
	case <-time.After(50 * time.Millisecond): // if it is slower it does not wait, and has its turn
	}
	for range 2 { // at the second one it has come in
		conn, err := l.Accept()
		require.NoError(t, err)
		conn.Close()
	}
	a := <-present
	require.NoError(t, a.error)
	require.Equal(t, os.Getpid(), a.PID)
	l.SetUnlinkOnClose(false)
	l.Close()
	require.False(t, h.Lives())
}
