package names

import (
	"errors"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confine gives up what the server of a network has as root and does not need: every
// capability, the way to new ones, and, where the kernel has Landlock (Linux 5.13,
// landlock(7)), to write anything outside the state folder, to start another program, and to
// signal others (Linux 6.12). Its sockets it has already. It stays uid 0, whose are the
// records.
func confine(stateDir string) error {
	errs := []error{
		everyThread("prctl", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0),
		landlock(stateDir),
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	errs = append(errs, everyThread("capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none[0])), 0),
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
	return errors.Join(errs...)
}

// everyThread is a system call in each thread, of which the kernel keeps such rights apart.
func everyThread(name string, trap, a, b, c uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a, b, c, 0, 0, 0); errno != 0 {
		return os.NewSyscallError(name, errno)
	}
	return nil
}

// What Landlock is asked to refuse where no rule allows it, by the versions of its
// interface.
const (
	readOnly = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	since1   = 1<<13 - 1 // execute, write, read, make, remove
	since2   = unix.LANDLOCK_ACCESS_FS_REFER
	since3   = unix.LANDLOCK_ACCESS_FS_TRUNCATE
	since5   = unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	since6   = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
)

func landlock(stateDir string) error {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return nil // the kernel has none
	}
	ask := unix.LandlockRulesetAttr{Handled_access_fs: since1}
	for _, x := range []struct {
		version uintptr
		rights  uint64
	}{{2, since2}, {3, since3}, {5, since5}} {
		if version >= x.version {
			ask.Handled_access_fs |= x.rights
		}
	}
	if version >= 6 {
		ask.Scoped = since6
	}
	rules, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&ask)), unsafe.Sizeof(ask), 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(rules))
	for path, rights := range map[string]uint64{
		"/":              readOnly,
		stateDir:         ask.Handled_access_fs &^ unix.LANDLOCK_ACCESS_FS_EXECUTE,
		"/proc/self/exe": unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE, // its twin
	} {
		if err := allow(rules, path, rights); err != nil {
			return err
		}
	}
	return everyThread("landlock", unix.SYS_LANDLOCK_RESTRICT_SELF, rules, 0, 0)
}

func allow(rules uintptr, path string, rights uint64) error {
	f, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(f.Fd())}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, rules, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
