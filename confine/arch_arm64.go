package confine

import "golang.org/x/sys/unix"

const (
	auditArch  = unix.AUDIT_ARCH_AARCH64
	lowHalf    = 0 // where the lower half of an argument is
	cloneFlags = 0 // which argument of clone(2) they are
)

// ofArch are calls that Go makes on this architecture only.
func ofArch() []Call {
	return Calls(unix.SYS_RENAMEAT, unix.SYS_MMAP, unix.SYS_NEWFSTATAT, unix.SYS_GETRLIMIT, unix.SYS_SETRLIMIT)
}
