package link

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) { os.Exit(unit.RunTests(m)) }

// container is a process in user and network namespaces of its own.
type container struct {
	pid          int
	netns, owner *os.File
}

func newContainer(t testing.TB) *container {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c := &container{pid: cmd.Process.Pid}
	open := func(what string) *os.File {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", c.pid, what))
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	c.netns, c.owner = open("net"), open("user")
	return c
}

func (c *container) enter(t testing.TB) *Place {
	t.Helper()
	p, err := Enter(c.netns, c.owner)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

// run runs a program inside.
func (c *container) run(t require.TestingT, args ...string) string {
	argv := append([]string{"nsenter", "-t", fmt.Sprint(c.pid), "-U", "--preserve-credentials", "-n"}, args...)
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	require.NoError(t, err, "%s: %s", args, out)
	return string(out)
}

func TestEnter(t *testing.T) {
	c := newContainer(t)
	p := c.enter(t)
	require.NoError(t, p.Write("ipv4/ip_forward", "1"))
	require.Equal(t, "1\n", c.run(t, "cat", "/proc/sys/net/ipv4/ip_forward"))
	got, err := p.Read("ipv4/ip_forward")
	require.NoError(t, err)
	require.Equal(t, "1", got)
}

func BenchmarkEnter(b *testing.B) {
	c := newContainer(b)
	for b.Loop() {
		p, err := Enter(c.netns, c.owner)
		require.NoError(b, err)
		p.Close()
	}
}
