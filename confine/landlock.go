package confine

import (
	"errors"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Files are what a process may do with files (landlock(7)): all that is below these paths.
// One that there is not is passed over.
type Files struct {
	Read, Write, Execute []string
	Ports                bool // it may bind ports of TCP
	Signals              bool // it may signal whom its user may
}

// What Landlock is asked to refuse where no rule allows it, by the versions of its
// interface.
const (
	readOnly = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	since1   = 1<<13 - 1 // execute, write, read, make, remove
	since2   = unix.LANDLOCK_ACCESS_FS_REFER
	since3   = unix.LANDLOCK_ACCESS_FS_TRUNCATE
	since4   = unix.LANDLOCK_ACCESS_NET_BIND_TCP
	since5   = unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	since6   = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
	ofFiles  = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE | since3 | since5
)

// landlockVersion is that of the interface: Linux 5.13 has the first one.
func landlockVersion() (uintptr, error) {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, os.NewSyscallError("landlock_create_ruleset", errno)
	}
	return version, nil
}

func haveLandlock() error {
	_, err := landlockVersion()
	return err
}

// Weaker says of a kernel with Landlock what that one cannot keep a process from.
func Weaker() string {
	switch version, _ := landlockVersion(); {
	case version < 4:
		return " (for files, not for ports and signals: before Linux 6.7)"
	case version < 6 || errata()&errSignals == 0:
		return " (for files and ports, not for signals: before Linux 6.15, and the first ones of 6.12)"
	}
	return ""
}

// Held says that this process is confined to files already: by one that has started it. Each
// time adds to what the kernel looks at, sixteen times at most, and takes nothing away.
func Held() bool {
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return errors.Is(err, unix.EACCES)
}

// Only confines every thread to these files. Where the kernel can it may, besides, bind no
// port of TCP without Ports (Linux 6.7), and connect to no abstract socket of others, nor signal other
// processes but those that the same thread starts: to the kernel each thread is confined by
// itself (Linux 6.12). It may never mount, either, and needs [NoNewPrivileges] first.
func (f Files) Only() error {
	version, err := landlockVersion()
	if err != nil {
		return lack("Landlock", err)
	}
	return lack("Landlock", f.only(version))
}

func (f Files) only(version uintptr) error {
	ask := refused(version)
	if f.Ports {
		ask.Handled_access_net = 0
	}
	if f.Signals {
		ask.Scoped &^= unix.LANDLOCK_SCOPE_SIGNAL
	}
	return restrict(ask, []rule{
		{f.Read, readOnly},
		{f.Write, ask.Handled_access_fs &^ unix.LANDLOCK_ACCESS_FS_EXECUTE},
		{f.Execute, unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE},
	})
}

type rule struct {
	paths  []string
	rights uint64
}

// restrict refuses every thread what is asked for, but for the rules.
func restrict(ask unix.LandlockRulesetAttr, rules []rule) error {
	set, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&ask)), unsafe.Sizeof(ask), 0)
	if errno != 0 {
		return os.NewSyscallError("landlock_create_ruleset", errno)
	}
	defer unix.Close(int(set))
	for _, r := range rules {
		for _, path := range r.paths {
			if err := allow(set, path, r.rights); err != nil {
				return err
			}
		}
	}
	return everyThread("landlock_restrict_self", unix.SYS_LANDLOCK_RESTRICT_SELF, set, 0, 0)
}

// refused is what a kernel with that version of the interface can refuse. An older one takes
// the structure if what it does not know is zero.
func refused(version uintptr) unix.LandlockRulesetAttr {
	ask := unix.LandlockRulesetAttr{Handled_access_fs: since1}
	for _, x := range []struct {
		version uintptr
		rights  uint64
	}{{2, since2}, {3, since3}, {5, since5}} {
		if version >= x.version {
			ask.Handled_access_fs |= x.rights
		}
	}
	if version >= 4 {
		ask.Handled_access_net = since4
	}
	if version >= 6 {
		ask.Scoped = since6
	}
	if version >= 6 && errata()&errSignals == 0 {
		ask.Scoped &^= unix.LANDLOCK_SCOPE_SIGNAL
	}
	return ask
}

// errSignals: the kernel does not take threads of one process, which are confined each by
// itself, for strangers (erratum 2 in landlock(7), Linux 6.15 and later ones of 6.12). Where it
// does, a Go program could not go on: its runtime signals its own threads.
const errSignals = 1 << 1

// errata are the faults that are mended in this kernel.
func errata() uintptr {
	mended, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_ERRATA)
	if errno != 0 {
		return 0
	}
	return mended
}

// allow adds a rule. Of what is not a folder, a right of folders would be an error.
func allow(rules uintptr, path string, rights uint64) error {
	f, err := os.OpenFile(path, unix.O_PATH, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= ofFiles
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(f.Fd())}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, rules, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	return os.NewSyscallError("landlock_add_rule", errnoOrNil(errno))
}

func errnoOrNil(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
