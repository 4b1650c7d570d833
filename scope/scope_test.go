package scope

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestInScope(t *testing.T) {
	t.Parallel()
	for lines, in := range map[string]bool{
		"": false, "0::/": false, "nonsense": false,
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/ambi-web-7.scope\n": true,
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/ambi-web.service\n": false,
		"0::/app.slice/ambi-web-7.scope/below\n":                                        false,
		"5:memory:/ambi-web-7.scope\n1:name=systemd:/app.slice/web.service\n":           false,
		"5:memory:/web.service\n1:name=systemd:/system.slice/ambi-web-7.scope\n0::/\n":  true,
	} {
		require.Equal(t, in, inScope(lines), lines)
	}
}

func TestUnitName(t *testing.T) {
	t.Parallel()
	require.Regexp(t, `^ambi-web_1\.a-[0-9]+\.scope$`, unitName("web_1.a"))
	require.Regexp(t, `^ambi-a\\x2db\\x40-[0-9]+\.scope$`, unitName("a-b@"))
	require.Less(t, len(unitName(strings.Repeat("-", 1000))), 255)
}

func TestManagers(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"/run/systemd/private"}, managers(true, "/run/user/0"))
	require.NotContains(t, managers(false, "run"), "run/systemd/private", "a relative one is none")
	require.Equal(t, "/run/mine/systemd/private", managers(false, "/run/mine")[0])
}

func TestSweep(t *testing.T) {
	t.Parallel()
	for _, parent := range []string{"plain.slice", `app-a\x2db.slice`, "a[b.slice"} {
		above := filepath.Join(t.TempDir(), parent)
		for _, name := range []string{"ambi-web.1.hub", "ambi-web.names", "ambi-mine", "other.hub"} {
			require.NoError(t, os.MkdirAll(filepath.Join(above, name), 0o700))
		}
		sweep(above)
		left, err := os.ReadDir(above)
		require.NoError(t, err)
		require.Len(t, left, 2, "what is not ours stays: %s", parent)
	}
}

// A manager that sends without end is read a bounded piece of.
func TestManagerWithoutEnd(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "private")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()
	sent := make(chan int)
	go func() {
		n, err := 0, error(nil)
		if conn, acceptErr := l.Accept(); acceptErr == nil {
			for b := []byte(strings.Repeat("x", 64<<10)); err == nil && n < 1<<30; {
				var some int
				some, err = conn.Write(b)
				n += some
			}
			conn.Close()
		}
		sent <- n
	}()
	require.Error(t, ask(context.Background(), socket, "web", nil))
	require.Less(t, <-sent, 16<<20, "it hung up")
}

// listenerVariable has this test's program listen on the path that it is.
const listenerVariable = "AMBI_TEST_LISTENER"

// A manager in a PID namespace below ours has other numbers for processes than we, as one above has.
func TestManagerInAnotherPIDNamespace(t *testing.T) {
	if socket := os.Getenv(listenerVariable); socket != "" {
		l, err := net.Listen("unix", socket)
		require.NoError(t, err)
		conn, err := l.Accept()
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, conn) // it is looked at meanwhile
		return
	}
	t.Parallel()
	for name, flags := range map[string]uintptr{"ours": 0, "below": unix.CLONE_NEWUSER | unix.CLONE_NEWPID} {
		socket := filepath.Join(t.TempDir(), "private")
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), listenerVariable+"="+socket)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
		if flags != 0 {
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		}
		require.NoError(t, cmd.Start())
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		defer func() { _ = cmd.Process.Kill(); <-ended }()
		var conn *net.UnixConn
		err := os.ErrNotExist
		for errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
			conn, err = dial(t.Context(), socket)
		}
		if flags == 0 {
			require.NoError(t, err, name)
			conn.Close()
			continue
		}
		require.ErrorContains(t, err, "it is in a PID namespace inside of ours")
	}
}
