package inject

import "golang.org/x/sys/unix"

// callNames are the system calls that are counted: those that change something, take
// something of which there is only so much, or wait for something outside.
var callNames = map[int]string{
	unix.SYS_READ: "read", unix.SYS_PREAD64: "pread64", unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_WRITEV: "writev",
	unix.SYS_OPEN: "open", unix.SYS_OPENAT: "openat", unix.SYS_OPENAT2: "openat2", unix.SYS_CLOSE: "close",
	unix.SYS_STAT: "stat", unix.SYS_LSTAT: "lstat", unix.SYS_FSTAT: "fstat", unix.SYS_NEWFSTATAT: "newfstatat", unix.SYS_STATX: "statx",
	unix.SYS_READLINK: "readlink", unix.SYS_READLINKAT: "readlinkat", unix.SYS_GETDENTS64: "getdents64", unix.SYS_STATFS: "statfs", unix.SYS_FSTATFS: "fstatfs",
	unix.SYS_MKDIR: "mkdir", unix.SYS_MKDIRAT: "mkdirat", unix.SYS_UNLINK: "unlink", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_RMDIR: "rmdir",
	unix.SYS_RENAME: "rename", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_LINKAT: "linkat", unix.SYS_SYMLINKAT: "symlinkat",
	unix.SYS_FSYNC: "fsync", unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_CHMOD: "chmod",
	unix.SYS_FCHOWN: "fchown", unix.SYS_CHOWN: "chown", unix.SYS_FLOCK: "flock",
	unix.SYS_PIPE2: "pipe2", unix.SYS_DUP: "dup", unix.SYS_DUP2: "dup2", unix.SYS_DUP3: "dup3", unix.SYS_FCNTL: "fcntl", unix.SYS_EVENTFD2: "eventfd2",
	unix.SYS_EPOLL_CREATE1: "epoll_create1", unix.SYS_EPOLL_CTL: "epoll_ctl", unix.SYS_MEMFD_CREATE: "memfd_create", unix.SYS_IOCTL: "ioctl",
	unix.SYS_SOCKET: "socket", unix.SYS_SOCKETPAIR: "socketpair", unix.SYS_BIND: "bind", unix.SYS_LISTEN: "listen", unix.SYS_CONNECT: "connect", unix.SYS_ACCEPT4: "accept4",
	unix.SYS_SENDTO: "sendto", unix.SYS_SENDMSG: "sendmsg", unix.SYS_RECVFROM: "recvfrom", unix.SYS_RECVMSG: "recvmsg",
	unix.SYS_SETSOCKOPT: "setsockopt", unix.SYS_GETSOCKOPT: "getsockopt", unix.SYS_GETSOCKNAME: "getsockname", unix.SYS_SHUTDOWN: "shutdown",
	unix.SYS_MMAP: "mmap", unix.SYS_MPROTECT: "mprotect", unix.SYS_BRK: "brk",
	unix.SYS_CLONE: "clone", unix.SYS_CLONE3: "clone3", unix.SYS_FORK: "fork", unix.SYS_VFORK: "vfork", unix.SYS_EXECVE: "execve", unix.SYS_WAIT4: "wait4", unix.SYS_WAITID: "waitid",
	unix.SYS_KILL: "kill", unix.SYS_PIDFD_OPEN: "pidfd_open", unix.SYS_PIDFD_SEND_SIGNAL: "pidfd_send_signal",
	unix.SYS_SETNS: "setns", unix.SYS_UNSHARE: "unshare", unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount2", unix.SYS_PIVOT_ROOT: "pivot_root", unix.SYS_CHROOT: "chroot", unix.SYS_CHDIR: "chdir",
	unix.SYS_PRCTL: "prctl", unix.SYS_CAPSET: "capset", unix.SYS_CAPGET: "capget", unix.SYS_SETSID: "setsid", unix.SYS_SETUID: "setuid", unix.SYS_SETGID: "setgid",
	unix.SYS_PRLIMIT64: "prlimit64", unix.SYS_POLL: "poll", unix.SYS_PPOLL: "ppoll", unix.SYS_UMASK: "umask", unix.SYS_EXIT_GROUP: "exit_group",
}

// pathArgument says which argument is a path.
var pathArgument = map[string]int{
	"open": 0, "openat": 1, "openat2": 1, "stat": 0, "lstat": 0, "newfstatat": 1, "statx": 1, "readlink": 0, "readlinkat": 1, "statfs": 0,
	"mkdir": 0, "mkdirat": 1, "unlink": 0, "unlinkat": 1, "rmdir": 0, "rename": 1, "renameat": 3, "renameat2": 3, "linkat": 3, "symlinkat": 2,
	"fchmodat": 1, "chmod": 0, "chown": 0, "execve": 0, "mount": 1, "umount2": 0, "chroot": 0, "chdir": 0,
}

// descriptorFirst are the calls whose first argument is a descriptor.
var descriptorFirst = map[string]bool{
	"read": true, "pread64": true, "write": true, "pwrite64": true, "writev": true, "close": true, "fstat": true, "getdents64": true, "fstatfs": true,
	"fsync": true, "ftruncate": true, "fchmod": true, "fchown": true, "flock": true, "dup": true, "dup2": true, "dup3": true, "fcntl": true, "ioctl": true,
	"bind": true, "listen": true, "connect": true, "accept4": true, "sendto": true, "sendmsg": true, "recvfrom": true, "recvmsg": true,
	"setsockopt": true, "getsockopt": true, "getsockname": true, "shutdown": true, "setns": true, "pidfd_send_signal": true,
}

// skipCall has the system call that a thread is about to enter not happen.
func skipCall(tid int) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &regs); err != nil {
		return err
	}
	regs.Orig_rax = ^uint64(0)
	return unix.PtraceSetRegs(tid, &regs)
}

// setResult has the system call that a thread comes out of fail.
func setResult(tid int, errno unix.Errno) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &regs); err != nil {
		return err
	}
	regs.Rax = uint64(-int64(errno))
	return unix.PtraceSetRegs(tid, &regs)
}
