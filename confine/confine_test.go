package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
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
	"files": func(folder string) error {
		files := Files{Read: []string{"/proc"}, Write: []string{folder, folder + "/none"}}
		if err := errors.Join(NoNewPrivileges(), files.Only()); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(folder, "file"), nil, 0o600); err != nil {
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
		if err := Capabilities(1 << unix.CAP_NET_BIND_SERVICE); err != nil {
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
