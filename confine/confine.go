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
	if b, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil && bytes.HasPrefix(b, []byte("-")) {
		_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return os.NewSyscallError("setrlimit", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
}

// Hide keeps other processes of the same user from looking into this one, and its memory
// from a core (PR_SET_DUMPABLE in prctl(2)). An execve(2) ends it.
func Hide() error { return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)) }

// NoNewPrivileges has no execve(2) give rights, in every thread, for this process and all
// that it starts: also not to uid 0.
func NoNewPrivileges() error {
	return lack("no_new_privs", everyThread("prctl", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0))
}

// Capabilities gives up all but these (bits, capabilities(7)), in every thread: effective,
// permitted, and bounding. Inheritable and ambient is none.
func Capabilities(kept uint64) error {
	for c := 0; ; c++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil { // there is no such capability, nor a later one
			return SetCapabilities(kept)
		}
		if has == 0 || kept>>c&1 != 0 {
			continue
		}
		if err := everyThread("prctl", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0); err != nil {
			return lack("the bounding set", err)
		}
	}
}

// SetCapabilities is Capabilities without the bounding set, so that an execve(2) as uid 0 gives
// the others back.
func SetCapabilities(kept uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(kept), Permitted: uint32(kept)},
		{Effective: uint32(kept >> 32), Permitted: uint32(kept >> 32)},
	}
	// What is not inheritable is not ambient.
	return everyThread("capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
}

// everyThread is a system call in each thread, of which the kernel keeps such rights apart.
func everyThread(name string, trap, a, b, c uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a, b, c, 0, 0, 0); errno != 0 {
		return os.NewSyscallError(name, errno) // ENOTSUP: with cgo there may be threads that Go does not know
	}
	return nil
}
