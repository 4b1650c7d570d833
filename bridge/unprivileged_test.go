package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/e2e/lab/unit"
	"github.com/ambi-cni/ambi/nlsock"
)

// The test binary plays two other programs: a user without any right, and a process
// inside namespaces of its own that hands out sockets of these.
func TestMain(m *testing.M) {
	switch role := os.Getenv("BRIDGE_TEST_ROLE"); role {
	case "user":
		if err := asUser(os.Getenv("BRIDGE_TEST_DIR")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case "inside":
		if err := handOut(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
	default:
		os.Exit(unit.RunTests(m))
	}
}

// Without root the side of the bridge is a hub, which belongs to the user and in which
// no process of the plugin is: it works over sockets that were opened there.
func TestWithoutAnyRight(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it becomes another user")
	}
	const uid = 64999
	dir := t.TempDir()
	err := os.Chown(dir, uid, uid)
	if errors.Is(err, unix.EINVAL) {
		t.Skip("needs root of the host: it becomes another user, and this user namespace has none")
	}
	require.NoError(t, err)
	for d := dir; d != "/tmp" && d != "/"; d = d[:max(1, lastSlash(d))] {
		require.NoError(t, os.Chmod(d, 0o755))
	}
	binary := dir + "/test"
	self, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(binary, self, 0o755))
	cmd := exec.Command(binary)
	cmd.Dir = dir
	cmd.Env = []string{"BRIDGE_TEST_ROLE=user", "BRIDGE_TEST_DIR=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, NoSetGroups: false}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}

func lastSlash(s string) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == '/' {
			return i
		}
	}
	return 0
}

// asUser makes two user namespaces with a network namespace each, a hub and a
// container, and joins them by the built-in network from outside of both.
func asUser(dir string) error {
	hub, err := newInside()
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	defer hub.end()
	container, err := newInside()
	if err != nil {
		return fmt.Errorf("container: %w", err)
	}
	defer container.end()
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", container.cmd.Process.Pid))
	if err != nil {
		return err
	}
	n := &Network{
		Name: "web", Dir: dir + "/ipam", Log: slog.New(slog.DiscardHandler),
		Config: conf.Bridge{Isolate: true, Subnet: netip.MustParsePrefix("10.88.5.0/24"), Subnet6: netip.MustParsePrefix("fd88::/64")},
		Host:   Host{Route: hub.route, Filter: hub.filter, Sysctl: asWanted{}},
	}
	c := &Container{Path: "container", Namespace: namespace, Route: container.route, Sysctl: asWanted{}}
	a := &conf.Attachment{Key: conf.Key{Network: "web", ContainerID: "a", IfName: "eth0"},
		Bandwidth: conf.Bandwidth{IngressRate: 8e6, IngressBurst: 8e5}}
	ctx := context.Background()
	result, err := n.Add(ctx, c, a)
	if err != nil {
		return fmt.Errorf("add: %w", err)
	}
	if err := n.Check(ctx, c, a, result, result); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	return n.Del(ctx, a.Key, nil)
}

// asWanted stands for a helper that writes what it is told inside the hub.
type asWanted struct{}

func (asWanted) Read(string) (string, error) { return "?", nil }
func (asWanted) Write(string, string) error  { return nil }

// insider is a process inside namespaces of its own, and sockets of them.
type insider struct {
	cmd           *exec.Cmd
	stdin         io.Closer
	route, filter *nlsock.Socket
}

func newInside() (*insider, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "sockets")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"BRIDGE_TEST_ROLE=inside"}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET, UidMappings: one, GidMappings: one}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	theirs.Close()
	b, oob := make([]byte, 1), make([]byte, 64)
	_, n, _, _, err := unix.Recvmsg(pair[0], b, oob, 0)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) == 0 {
		return nil, fmt.Errorf("no sockets came: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	return &insider{cmd, stdin, nlsock.New(fds[0]), nlsock.New(fds[1])}, nil
}

func (i *insider) end() {
	i.stdin.Close()
	_ = i.cmd.Wait()
}

func handOut() error {
	var fds []int
	for _, protocol := range []int{unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER} {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	return unix.Sendmsg(3, []byte("x"), unix.UnixRights(fds...), nil, 0)
}
