package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// inChild is set in a process that a test has started, to say what that confines itself by.
const inChild = "AMBI_CONFINE_TEST"

// children are run in processes of their own, since nothing here can be undone.
var children = map[string]func(folder string) error{
	"allow": func(string) error {
		calls := append(Runtime(), SocketsOf(unix.AF_INET))
		if err := errors.Join(NoNewPrivileges(), AllowOnly(calls)); err != nil {
			return err
		}
		if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err != nil {
			return fmt.Errorf("a socket of a family that is allowed: %w", err)
		} else {
			unix.Close(fd)
		}
		_, other := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
		_, _, namespace := unix.Syscall6(unix.SYS_CLONE, unix.CLONE_NEWUTS|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		// In another thread than the one that has installed it.
		unshared := make(chan error)
		go func() { unshared <- unix.Unshare(unix.CLONE_FS) }()
		return refusedAll(map[string]error{"another family": other, "clone": namespace, "unshare": <-unshared})
	},
	"refuse": func(string) error {
		if err := errors.Join(NoNewPrivileges(), Refuse(append(Mounting(), Calls(unix.SYS_KEYCTL, unix.SYS_PTRACE)...))); err != nil {
			return err
		}
		_, key := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
		_, _, namespace := unix.Syscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if err := exec.Command("true").Run(); err != nil {
			return fmt.Errorf("a program that has no namespace: %w", err)
		}
		return refusedAll(map[string]error{"keyctl": key, "ptrace": unix.PtraceAttach(1), "clone": namespace})
	},
	"rare": func(string) error {
		if err := errors.Join(NoNewPrivileges(), Refuse(Rare())); err != nil {
			return err
		}
		for _, family := range []int{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK} {
			fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
			if errors.Is(err, unix.ENOSYS) {
				return fmt.Errorf("a socket of family %d: %w", family, err)
			}
			unix.Close(fd)
		}
		if _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); err != nil {
			return fmt.Errorf("a pair of sockets: %w", err)
		}
		_, hypervisor := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
		_, packets := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		_, pair := unix.Socketpair(unix.AF_TIPC, unix.SOCK_STREAM, 0)
		_, memory := unix.SysvShmGet(unix.IPC_PRIVATE, 1, unix.IPC_CREAT)
		return refusedAll(map[string]error{"vsock": hypervisor, "packet": packets, "pair": pair, "shmget": memory})
	},
	"files": func(folder string) error {
		files := Files{Read: []string{"/proc"}, Write: []string{folder, folder + "/none", os.DevNull}}
		if Held() {
			return errors.New("it takes itself for confined")
		}
		if err := errors.Join(NoNewPrivileges(), files.Only()); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(folder, "file"), nil, 0o600); err != nil {
			return err
		}
		if err := os.WriteFile(os.DevNull, nil, 0o600); err != nil {
			return err
		}
		if !Held() {
			return errors.New("it does not know that it is confined")
		}
		// What threads of one process have to do with each other goes on.
		if err := everyThread("getpid", unix.SYS_GETPID, 0, 0, 0); err != nil {
			return err
		}
		_, err := os.ReadDir("/")
		_, err2 := os.ReadFile("/etc/passwd")
		if !errors.Is(err, fs.ErrPermission) || !errors.Is(err2, fs.ErrPermission) {
			return fmt.Errorf("what is not in the list can be read: %w, %w", err, err2)
		}
		return nil
	},
	"ordinary": func(string) error {
		unix.Umask(0)
		if err := errors.Join(Ordinary(), Hide()); err != nil {
			return err
		}
		var core unix.Rlimit
		_ = unix.Getrlimit(unix.RLIMIT_CORE, &core)
		dumpable, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		folder, _ := os.Getwd()
		if umask := unix.Umask(0); umask != 0o077 || core != (unix.Rlimit{}) || folder != "/" || dumpable != 0 {
			return fmt.Errorf("umask %o, core %v, folder %s, dumpable %d", umask, core, folder, dumpable)
		}
		return nil
	},
	"capabilities": func(string) error {
		if err := Capabilities(1<<unix.CAP_NET_BIND_SERVICE, 1<<unix.CAP_NET_BIND_SERVICE); err != nil {
			return err
		}
		status, err := os.ReadFile("/proc/self/status")
		for _, set := range []string{"Prm", "Eff", "Bnd"} {
			if !strings.Contains(string(status), "Cap"+set+":\t0000000000000400\n") {
				return fmt.Errorf("%s", status)
			}
		}
		return err
	},
}

func refusedAll(errs map[string]error) error {
	for what, err := range errs {
		if !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

func TestMain(m *testing.M) {
	child, ok := children[os.Getenv(inChild)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := child(os.Args[len(os.Args)-1]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func TestConfined(t *testing.T) {
	for name := range children {
		t.Run(name, func(t *testing.T) {
			if name == "capabilities" && os.Geteuid() != 0 {
				t.Skip("needs root, to have some")
			}
			if name == "files" && haveLandlock() != nil {
				t.Skip("this kernel has no Landlock")
			}
			cmd := exec.Command(os.Args[0], t.TempDir())
			cmd.Env = append(os.Environ(), inChild+"="+name)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
}

// What a kernel has it does not lack, and the other way round.
func TestLacks(t *testing.T) {
	var lacks []string
	for _, l := range Lacks() {
		lacks = append(lacks, l.Means)
	}
	require.Equal(t, haveLandlock() != nil, slices.Contains(lacks, "Landlock"), "%q", lacks)
	require.Equal(t, haveSeccomp() != nil, slices.Contains(lacks, "seccomp"), "%q", lacks)
}

// Raising is always allowed, so one that is spared needs no rights to give that up.
func TestUnspare(t *testing.T) {
	for before, after := range map[string]string{"-999\n": "0", "-1\n": "0", "0\n": "0\n", "500\n": "500\n"} {
		file := filepath.Join(t.TempDir(), "oom_score_adj")
		require.NoError(t, os.WriteFile(file, []byte(before), 0o600))
		unspare(file)
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, after, string(b))
	}
}
