// Package unit gives unit tests the namespaces that they need: Netns is one of the network,
// RunTests has them made by who is not root, too. Whole machines are those of package lab.
//
// It takes unshare(2), and the program ip.
package unit

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// The first thread is the main goroutine's, so that no other one enters a namespace on
// it: its namespaces are what /proc/self/ns shows, and it does not end with a goroutine.
func init() { runtime.LockOSThread() }

// Netns is a network namespace for a unit test: as the kernel makes it, and without a
// name, so that it goes when it is closed and nobody is in it.
type Netns struct{ file *os.File }

// NewNetns makes one.
func NewNetns() (n *Netns, err error) {
	OnThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("making a network namespace: %w; it takes root", err)
			return
		}
		n, err = openOwn()
	})
	return n, err
}

// lowest is the least number that the descriptor of the next namespace may have.
var lowest atomic.Int32

func init() { lowest.Store(100) }

// openOwn opens the thread's namespace under a number that no other one has had: a
// program that a test has left behind would find the next test's namespace at its Path.
func openOwn() (*Netns, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, int(lowest.Add(1)))
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	for least := lowest.Load(); int(least) < fd && !lowest.CompareAndSwap(least, int32(fd)); least = lowest.Load() {
	}
	return &Netns{os.NewFile(uintptr(fd), f.Name())}, nil
}

// File is it, opened; it is closed by Close only.
func (n *Netns) File() *os.File { return n.file }

// Fd is its descriptor.
func (n *Netns) Fd() int { return int(n.file.Fd()) }

// Path leads to it from any process, while this one has it open.
func (n *Netns) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.Fd()) }

// Enter has the thread that calls it be in the namespace from now on: one that is
// locked to its goroutine (runtime.LockOSThread), and never unlocked.
func (n *Netns) Enter() error { return unix.Setns(n.Fd(), unix.CLONE_NEWNET) }

// Do runs f inside. Sockets that f makes, and programs that it starts, stay there.
func (n *Netns) Do(f func()) (err error) {
	OnThread(func() {
		if err = n.Enter(); err == nil {
			f()
		}
	})
	return err
}

// MountOn gives it a name: a file, made for it.
func (n *Netns) MountOn(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.NewSyscallError("mount", unix.Mount(n.Path(), path, "", unix.MS_BIND, ""))
}

// Close lets it go.
func (n *Netns) Close() error { return n.file.Close() }

// OnThread runs f on a thread that ends with it, so that no other goroutine ever runs
// in the namespaces that f enters.
func OnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)      // also when f ends the goroutine, as a failing test does
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		f()
	}()
	<-done
}

// insideVariable is set for the process that RunTests has put into namespaces.
const insideVariable = "AMBI_UNIT_INSIDE"

// RunTests is m.Run (*testing.M) with the rights to make namespaces: who is not root
// runs the test binary again, as root of user, network and mount namespaces of his own,
// with an empty /run. Where he may not have those, what takes root skips itself, or says
// so.
func RunTests(m interface{ Run() int }) int {
	if os.Getenv(insideVariable) != "" {
		if err := furnishForTests(); err != nil {
			fmt.Fprintln(os.Stderr, "namespaces for the tests:", err)
			return 1
		}
		_ = os.Unsetenv(insideVariable) // our own children are there already
	}
	if os.Geteuid() == 0 {
		return m.Run()
	}
	cmd := again()
	err := cmd.Run()
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "no user namespace for the tests, run them as root:", err)
		return m.Run()
	}
	return cmd.ProcessState.ExitCode() // it has said why
}

func furnishForTests() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("an empty /run: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("loopback: %w: %s", err, out)
	}
	return nil
}

// again is this program in namespaces of the user's own, as their root.
func again() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL, // of the first thread
	}
	return cmd
}
