package confine

import (
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Call is a system call (its number here), or one with some values of an argument only.
type Call struct {
	Number   uintptr
	Argument int      // 0 is the first
	Are      []uint32 // none: whatever it is
	But      []uint32 // all others
	None     uint32   // bits that are not in it
	Some     uint32   // bits of which one is in it
}

// Calls are system calls without more ado.
func Calls(numbers ...uintptr) []Call {
	calls := make([]Call, len(numbers))
	for i, n := range numbers {
		calls[i].Number = n
	}
	return calls
}

// AllowOnly refuses every thread, and all that it starts, all system calls but these
// (seccomp(2)). A refused one fails with ENOSYS, as one that the kernel does not know: that is
// what programs have another way for. The first ones of the list cost least.
func AllowOnly(calls []Call) error { return install(assemble(calls, allowed, refusal)) }

// Refuse refuses these and allows all others.
func Refuse(calls []Call) error { return install(assemble(calls, refusal, allowed)) }

const (
	allowed = uint32(unix.SECCOMP_RET_ALLOW)
	refusal = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
)

// Where the data of a system call are (struct seccomp_data).
const (
	atNumber = 0
	atArch   = 4
	atArgs   = 16
)

// foreign is the first number of another way to call the same kernel: x32, on amd64.
const foreign = 0x40000000

// assemble is the program (classic BPF) that answers listed calls with one action, and others
// with another. Calls of another architecture's numbers are refused.
func assemble(calls []Call, listed, otherwise uint32) []unix.SockFilter {
	program := []unix.SockFilter{
		load(atArch), jump(unix.BPF_JEQ, auditArch, 1, 0), answer(refusal),
		load(atNumber), jump(unix.BPF_JGE, foreign, 0, 1), answer(refusal),
	}
	for _, c := range calls {
		test := c.test(listed, otherwise)
		program = append(program, jump(unix.BPF_JEQ, uint32(c.Number), 0, uint8(len(test))))
		program = append(program, test...)
	}
	return append(program, answer(otherwise))
}

// test is what comes for a call whose number it is.
func (c Call) test(listed, otherwise uint32) (program []unix.SockFilter) {
	if c.Are == nil && c.But == nil && c.None == 0 && c.Some == 0 {
		return []unix.SockFilter{answer(listed)}
	}
	program = append(program, load(atArgs+8*uint32(c.Argument)+lowHalf))
	for _, value := range c.Are {
		program = append(program, jump(unix.BPF_JEQ, value, 0, 1), answer(listed))
	}
	for _, value := range c.But {
		program = append(program, jump(unix.BPF_JEQ, value, 0, 1), answer(otherwise))
	}
	if c.But != nil {
		return append(program, answer(listed))
	}
	if c.Some != 0 {
		program = append(program, jump(unix.BPF_JSET, c.Some, 0, 1), answer(listed))
	}
	if c.None != 0 {
		program = append(program, jump(unix.BPF_JSET, c.None, 1, 0), answer(listed))
	}
	return append(program, answer(otherwise))
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// jump skips so many instructions if the test is true, or if it is not.
func jump(test uint16, value uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | test, K: value, Jt: yes, Jf: no}
}

func answer(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}

// install needs [NoNewPrivileges] first, or CAP_SYS_ADMIN over the process's user namespace.
func install(filter []unix.SockFilter) error {
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// Before Linux 5.16 a filter slows the processor down, against code that guesses secrets in
	// its own process, which we have none of (SPEC_ALLOW; Linux 4.17).
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	// Another thread that cannot have it is the result, its ID.
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	switch {
	case errno != 0:
		return lack("seccomp", os.NewSyscallError("seccomp", errno))
	case thread != 0:
		return lack("seccomp", unix.ESRCH) // as newer kernels say of it
	}
	return nil
}

func haveSeccomp() error {
	action := refusal & unix.SECCOMP_RET_ACTION_FULL
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	return os.NewSyscallError("seccomp", errnoOrNil(errno))
}

// Runtime are the calls of Go's runtime and of the packages os and net, as far as they make
// files, sockets and threads: what nearly every process needs.
func Runtime() []Call {
	return slices.Concat(Calls(
		unix.SYS_FUTEX, unix.SYS_EPOLL_PWAIT, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_RECVMSG, unix.SYS_SENDMSG,
		unix.SYS_RECVMMSG, unix.SYS_SENDMMSG, unix.SYS_RECVFROM, unix.SYS_SENDTO, unix.SYS_NANOSLEEP, unix.SYS_MADVISE,
		unix.SYS_SCHED_YIELD, unix.SYS_GETTID, unix.SYS_TGKILL, unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGACTION,
		unix.SYS_SIGALTSTACK, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_GETTIMEOFDAY, unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_MINCORE, unix.SYS_BRK,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EVENTFD2, unix.SYS_PIPE2, unix.SYS_RESTART_SYSCALL,
		unix.SYS_OPENAT, unix.SYS_CLOSE, unix.SYS_LSEEK, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_GETDENTS64,
		unix.SYS_FSTAT, unix.SYS_STATX, unix.SYS_FACCESSAT, unix.SYS_READLINKAT, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_FCNTL, unix.SYS_CLOSE_RANGE,
		unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT4, unix.SYS_SHUTDOWN,
		unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT,
		unix.SYS_GETPID, unix.SYS_GETPPID, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_GETCWD, unix.SYS_UNAME,
		unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETRANDOM, unix.SYS_PRLIMIT64, unix.SYS_SYSINFO, unix.SYS_PRCTL, unix.SYS_CAPGET,
		unix.SYS_PPOLL, unix.SYS_PSELECT6, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	), []Call{Forks()}, ofArch())
}

// Dangerous are calls that hardly any program needs, and that flaws of the kernel were reached
// by, or that reach into other processes or the whole host.
func Dangerous() []Call {
	return Calls(
		unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP, unix.SYS_PROCESS_MADVISE,
		unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
		unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
		unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_REBOOT,
		unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_SYSLOG,
		unix.SYS_QUOTACTL, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT, unix.SYS_LOOKUP_DCOOKIE,
		unix.SYS_SETDOMAINNAME, unix.SYS_SETHOSTNAME, unix.SYS_VHANGUP, unix.SYS_PERSONALITY, unix.SYS_MBIND, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES,
		// The newer way to mount. Who mounts has the older one.
		unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_MOUNT_SETATTR,
	)
}

// Rare are calls that no program of a hub needs in which no plugins run: sockets of other families than those
// of networks, of this host and of netlink, one of which reaches the host of a virtual machine past
// every namespace of networks (vsock(7)), and memory, semaphores and messages that processes of a user have in
// common (sysvipc(7), mq_overview(7)). On s390x Go makes sockets by socketcall(2), whose arguments no
// filter sees.
func Rare() []Call {
	return append(Calls(unix.SYS_SHMGET, unix.SYS_SHMAT, unix.SYS_SHMCTL, unix.SYS_SEMGET, unix.SYS_SEMCTL,
		unix.SYS_MSGGET, unix.SYS_MSGSND, unix.SYS_MSGRCV, unix.SYS_MSGCTL, unix.SYS_MQ_OPEN, unix.SYS_MQ_UNLINK, unix.SYS_VMSPLICE),
		Call{Number: unix.SYS_SOCKET, But: []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}},
		Call{Number: unix.SYS_SOCKETPAIR, But: []uint32{unix.AF_UNIX}})
}

// Mounting is all that changes what is mounted where, and that gives a process namespaces.
func Mounting() []Call {
	// The flags of clone3(2) are not to be seen. Who is refused it has clone(2).
	return append(Calls(unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_UNSHARE, unix.SYS_CLONE3),
		Call{Number: unix.SYS_CLONE, Argument: cloneFlags, Some: namespaces})
}

const namespaces = unix.CLONE_NEWCGROUP | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUSER | unix.CLONE_NEWUTS

// Forks is clone(2), as long as what comes of it is in no namespace of its own.
func Forks() Call {
	return Call{Number: unix.SYS_CLONE, Argument: cloneFlags, None: namespaces}
}

// SocketsOf is socket(2) for these families of addresses only.
func SocketsOf(families ...uint32) Call { return Call{Number: unix.SYS_SOCKET, Are: families} }
