package link

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"unsafe"

	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/nlsock"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { os.Exit(unit.RunTests(m)) }

// container is a process in network namespaces, and mostly user namespaces, of its own.
type container struct {
	pid          int
	netns, owner *os.File
}

// newContainer is one as a runtime without root makes it.
func newContainer(t testing.TB) *container { return start(t, "unshare", "-Urn") }

// inUserNamespaceOf makes one that shares the user namespace of another one.
func (c *container) inUserNamespaceOf(t testing.TB) *container {
	return start(t, "nsenter", "-t", fmt.Sprint(c.pid), "-U", "--preserve-credentials", "unshare", "-n")
}

// below makes one in a user namespace that is below that of another one.
func (c *container) below(t testing.TB) *container {
	return start(t, "nsenter", "-t", fmt.Sprint(c.pid), "-U", "--preserve-credentials", "unshare", "-Urn")
}

// start has a program that runs another one make namespaces for it.
func start(t testing.TB, with ...string) *container {
	t.Helper()
	argv := append(with, "sh", "-c", "echo $$; exec cat")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe() // it ends with us
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	c := &container{}
	_, err = fmt.Fscan(out, &c.pid)
	require.NoError(t, err)
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

// ordinary runs f without any capability: as a user who is nobody in particular, but
// the one who made the containers' user namespaces.
func ordinary(t *testing.T, f func()) {
	t.Helper()
	unit.OnThread(func() {
		var none [2]unix.CapUserData
		require.NoError(t, unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]))
		f()
	})
}

// TestEnter enters containers of all kinds as an ordinary user, makes a link from each
// to each, and sets sysctls.
func TestEnter(t *testing.T) {
	one := newContainer(t)
	kinds := map[string]*container{"own": newContainer(t), "shared": one.inUserNamespaceOf(t), "below": one.below(t), "one": one}
	ordinary(t, func() {
		places := map[string]*Place{}
		for kind, c := range kinds {
			places[kind] = c.enter(t)
			require.NoError(t, places[kind].Write("ipv4/ip_forward", "1"), kind)
		}
		for a, from := range places {
			for b, to := range places {
				if a == b {
					continue
				}
				makeLink(t, from, a+b)
				l, err := Move(from, to, linkIn(t, from, a+b).Index, "to"+b)
				require.NoError(t, err, "%s %s", a, b)
				require.Equal(t, "to"+b, l.Name)
				_, err = Move(to, from, l.Index, a+b)
				require.NoError(t, err, "%s %s", a, b)
			}
		}
	})
	for kind, c := range kinds {
		require.Equal(t, "1\n", c.run(t, "cat", "/proc/sys/net/ipv4/ip_forward"), kind)
	}
}

// makeLink makes a veth pair; its other end has another name.
func makeLink(t *testing.T, p *Place, name string) {
	var b nlsock.Batch
	b.Add("making "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nlsock.IfInfoMsg(0, 0, 0, 0), func(e *nlsock.Encoder) {
		e.String(unix.IFLA_IFNAME, name)
		e.Nested(unix.IFLA_LINKINFO, func(e *nlsock.Encoder) error {
			e.Bytes(unix.IFLA_INFO_KIND, []byte("veth"))
			return nil
		})
	})
	_, err := b.Send(p.Route)
	require.NoError(t, err)
}

func linkIn(t *testing.T, p *Place, name string) *Link {
	l, err := p.Link(name)
	require.NoError(t, err)
	require.NotNil(t, l, name)
	return l
}

// TestEnterOwn enters a namespace of the caller's own user namespace: with the right to,
// and without.
func TestEnterOwn(t *testing.T) {
	n, err := unit.NewNetns()
	require.NoError(t, err)
	defer n.Close()
	file, err := os.Open(n.Path())
	require.NoError(t, err)
	defer file.Close()
	p, err := Enter(file, nil)
	require.NoError(t, err)
	defer p.Close()
	require.NoError(t, p.Write("ipv4/ip_forward", "1"))
	makeLink(t, p, "own")
	c := newContainer(t)
	_, err = Move(p, c.enter(t), linkIn(t, p, "own").Index, "eth0")
	require.NoError(t, err)
}

// TestRefused enters namespaces without the right to: a thread that enters one by itself
// needs a capability, which nobody of this process has any more.
func TestRefused(t *testing.T) {
	if os.Getenv("AMBI_TEST_REFUSED") == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestRefused$")
		cmd.Env = append(os.Environ(), "AMBI_TEST_REFUSED=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		return
	}
	n, err := unit.NewNetns()
	require.NoError(t, err)
	c, file := newContainer(t), open(t, n.Path())
	header, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none)), 0)
	if errno == unix.ENOTSUP {
		t.Skip("the tests were built with cgo")
	}
	require.Zero(t, errno)
	_, err = Enter(file, nil)
	require.EqualError(t, err, "the container's network namespace: entering the network namespace: operation not permitted")
	_, err = Enter(file, open(t, "/proc/self/ns/user"))
	require.EqualError(t, err, "the container's network namespace: joining its user namespace: invalid argument")
	_, err = Enter(file, c.owner)
	require.EqualError(t, err, "the container's network namespace: joining it: operation not permitted")
}

// TestHandedOver makes a place of the files of one.
func TestHandedOver(t *testing.T) {
	c := newContainer(t)
	p := c.enter(t)
	var copies []*os.File
	for _, f := range p.Files() {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		require.NoError(t, err)
		copies = append(copies, os.NewFile(uintptr(fd), ""))
	}
	q, err := FromFiles(copies)
	require.NoError(t, err)
	defer q.Close()
	require.NoError(t, q.Write("core/somaxconn", "77"))
	makeLink(t, q, "eth0")
	require.NotNil(t, linkIn(t, p, "eth0"))
	for _, files := range [][]*os.File{{}, {open(t, "/dev/null")}, {open(t, fmt.Sprintf("/proc/%d/ns/net", c.pid))}} {
		_, err := FromFiles(files)
		require.ErrorContains(t, err, "a network namespace was handed over")
	}
}

func open(t *testing.T, path string) *os.File {
	f, err := os.Open(path)
	require.NoError(t, err)
	return f
}
