package confine

import "golang.org/x/sys/unix"

const (
	auditArch  = unix.AUDIT_ARCH_ARM
	lowHalf    = 0 // where the lower half of an argument is
	cloneFlags = 0 // which argument of clone(2) they are
)

// ofArch are calls that Go makes on this architecture only.
func ofArch() []Call {
	return Calls(unix.SYS_RENAMEAT, unix.SYS_MMAP2, unix.SYS_FSTATAT64, unix.SYS_FSTAT64, unix.SYS_STAT64, unix.SYS_LSTAT64, unix.SYS_FCNTL64, unix.SYS__LLSEEK, unix.SYS_UGETRLIMIT, unix.SYS_SETRLIMIT, unix.SYS_FTRUNCATE64,
		unix.SYS_POLL, unix.SYS_EPOLL_WAIT, unix.SYS_OPEN, unix.SYS_READLINK, unix.SYS_ACCEPT, unix.SYS_SEND, unix.SYS_RECV, unix.SYS_SIGRETURN,
		unix.SYS_CLOCK_GETTIME64, unix.SYS_CLOCK_NANOSLEEP_TIME64, unix.SYS_FUTEX_TIME64, unix.SYS_PPOLL_TIME64, unix.SYS_RECVMMSG_TIME64, unix.SYS_TIMER_SETTIME64,
		0xf0002, 0xf0005) // cacheflush, set_tls (arch/arm/include/uapi/asm/unistd.h)
}
