package confine

import (
	"bytes"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Lack is a means that this kernel, or what we run in, does not give.
type Lack struct {
	Means string // in the field's words
	Err   error
}

func (l *Lack) Error() string { return l.Means + ": " + l.Err.Error() }
func (l *Lack) Unwrap() error { return l.Err }

func lack(means string, err error) error {
	if err == nil {
		return nil
	}
	return &Lack{means, err}
}

// Ordinary leaves what is inherited from a caller without being asked for: the umask, the
// working directory, that cores are dumped (core(5)), and that the kernel shall spare it when
// memory is short (proc_pid_oom_score_adj(5)): an engine that it spares does not speak for
// what its containers use. To be killed more readily than others may be meant.
func Ordinary() error {
	unix.Umask(0o077)
	unspare("/proc/self/oom_score_adj")
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return os.NewSyscallError("setrlimit", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
}

func unspare(file string) {
	if b, err := os.ReadFile(file); err == nil && bytes.HasPrefix(b, []byte("-")) {
		_ = os.WriteFile(file, []byte("0"), 0)
	}
}

// Hide keeps other processes of the same user from looking into this one, and its memory
// from a core (PR_SET_DUMPABLE in prctl(2)). An execve(2) ends it.
func Hide() error { return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)) }

// NoNewPrivileges has no execve(2) give rights, in every thread, for this process and all
// that it starts: also not to uid 0.
func NoNewPrivileges() error {
	return lack("no_new_privs", everyThread("prctl", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0))
}

// Capabilities gives up all capabilities (bits, capabilities(7)) but these, in every thread.
// What is permitted, and not effective, is what a program may have that it starts as uid 0:
// with [NoNewPrivileges] no more than that. The bounding set is cut down to it; inheritable and
// ambient is none.
func Capabilities(effective, permitted uint64) error {
	if err := BoundThreads(permitted); err != nil {
		return err
	}
	return SetCapabilities(effective, permitted)
}

// BoundThreads cuts the bounding set of every thread down to these capabilities, if this one's has more
// in it. It needs CAP_SETPCAP, and stops all threads for each capability that goes.
func BoundThreads(permitted uint64) error { return bound(permitted, everyThread) }

// BoundThread is [BoundThreads] of this one alone, and says whether there was more.
func BoundThread(permitted uint64) (was bool, err error) {
	err = bound(permitted, func(name string, trap, a, b, c uintptr) error {
		was = true
		if _, _, errno := unix.RawSyscall(trap, a, b, c); errno != 0 {
			return os.NewSyscallError(name, errno)
		}
		return nil
	})
	return was, err
}

// bound drops by the given way what this thread's bounding set has besides these.
func bound(permitted uint64, drop func(name string, trap, a, b, c uintptr) error) error {
	for c := 0; ; c++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil { // there is no such capability, nor a later one
			return nil
		}
		if has == 0 || permitted>>c&1 != 0 {
			continue
		}
		if err := drop("prctl", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0); err != nil {
			return lack("the bounding set", err)
		}
	}
}

// SetCapabilities is [Capabilities] with the bounding set as it is: what the process starts as
// uid 0 has all of that.
func SetCapabilities(effective, permitted uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(effective), Permitted: uint32(permitted)},
		{Effective: uint32(effective >> 32), Permitted: uint32(permitted >> 32)},
	}
	// What is not inheritable is not ambient.
	return everyThread("capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
}

// Rest is for a process that only waits: no capability is effective, and what was permitted
// stays so for what it starts.
func Rest() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	return SetCapabilities(0, uint64(data[0].Permitted)|uint64(data[1].Permitted)<<32)
}

// HasNoNewPrivileges says whether [NoNewPrivileges] was done.
func HasNoNewPrivileges() bool {
	has, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	return has == 1
}

// Lacks are the means that this kernel, or what we run in, does not have.
func Lacks() (lacks []*Lack) {
	for _, of := range []struct {
		means string
		have  func() error
	}{{"seccomp", haveSeccomp}, {"Landlock", haveLandlock}} {
		if err := of.have(); err != nil {
			lacks = append(lacks, &Lack{of.means, err})
		}
	}
	return lacks
}

// HasFilter says whether system calls are refused already ([Refuse], [AllowOnly]).
func HasFilter() bool {
	mode, _ := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0)
	return mode == unix.SECCOMP_MODE_FILTER
}

// everyThread is a system call in each thread, of which the kernel keeps such rights apart.
// Arguments that are pointers are of memory that stays where it is meanwhile, which a stack does not.
//
//go:uintptrescapes
func everyThread(name string, trap, a, b, c uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a, b, c, 0, 0, 0); errno != 0 {
		return os.NewSyscallError(name, errno) // ENOTSUP: with cgo there may be threads that Go does not know
	}
	return nil
}
