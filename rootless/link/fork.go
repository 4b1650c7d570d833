package link

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sysctls are the folders of /proc/sys/net that a network namespace has of its own;
// which of them there are depends on the kernel's modules.
var sysctls = [...]string{"core", "ipv4", "ipv6", "netfilter", "mptcp", "unix"}

// visit is what the forked child needs: everything is made before it is forked, since it
// may not so much as grow its stack.
type visit struct {
	owner, netns, out uintptr // descriptors; owner may be none
	parent            uintptr // our process ID

	open    [1 + len(sysctls)]int32 // what it opened: the socket, and the folders
	folders [len(sysctls)][32]byte  // their paths
	local   unix.RawSockaddrNetlink
	message unix.Msghdr
	vector  unix.Iovec
	word    [2]byte // the step that failed, and errno
	control []byte  // of message: open
	header  uintptr // its size

	all, before uint64 // signal masks
}

const none = ^uintptr(0)

// The steps of the child, for errors.
const (
	stepDone = iota
	stepOrphan
	stepHide
	stepUser
	stepNet
	stepSocket
	stepSysctls
	stepPass
)

var stepNames = map[byte]string{
	stepOrphan:  "having it end with us",
	stepHide:    "hiding it from the container",
	stepUser:    "joining its user namespace",
	stepNet:     "joining it",
	stepSocket:  "opening a netlink socket in it",
	stepSysctls: "opening its sysctls",
	stepPass:    "passing out what was opened in it",
}

// visitByFork has a child join the user namespace, then the network namespace, open
// what we need there, and pass it out. It returns descriptors.
func visitByFork(netns, owner *os.File) ([]int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	v := newVisit(netns, owner, pair[1])
	runtime.LockOSThread() // the child ends with the thread that forked it
	defer runtime.UnlockOSThread()
	pid, errno := v.fork()
	unix.Close(pair[1])
	runtime.KeepAlive(v)
	if errno != 0 {
		return nil, os.NewSyscallError("clone", errno)
	}
	defer reap(int(pid))
	return receive(pair[0])
}

func newVisit(netns, owner *os.File, out int) *visit {
	v := &visit{
		owner: none, netns: netns.Fd(), out: uintptr(out), parent: uintptr(os.Getpid()),
		local: unix.RawSockaddrNetlink{Family: unix.AF_NETLINK}, all: ^uint64(0),
	}
	if owner != nil {
		v.owner = owner.Fd()
	}
	for i, name := range sysctls {
		copy(v.folders[i][:len(v.folders[i])-1], "/proc/sys/net/"+name)
	}
	v.control = unix.UnixRights(make([]int, len(v.open))...)
	v.header = uintptr(unix.CmsgLen(0))
	v.vector.Base = &v.word[0]
	v.vector.SetLen(len(v.word))
	v.message.Iov, v.message.Control = &v.vector, &v.control[0]
	v.message.SetIovlen(1)
	v.message.SetControllen(len(v.control))
	return v
}

// fork is clone(2), without CLONE_VM: what runs in the container's user namespace shall
// not share memory with us. All signals are blocked from before it until after it, and
// for ever in the child, in which none of Go's handlers could work; that is what
// package syscall has the runtime do before it forks. The signal at the child's end is
// none, so that who waits for any child does not get this one.
//
//go:norace
//go:nosplit
//go:noinline
func (v *visit) fork() (pid uintptr, errno syscall.Errno) {
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&v.all)), uintptr(unsafe.Pointer(&v.before)), 8, 0, 0)
	pid, _, errno = unix.RawSyscall6(unix.SYS_CLONE, 0, 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		v.child() // does not return
	}
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&v.before)), 0, 8, 0, 0)
	return pid, errno
}

// child is the life of the child. It is alone in a copy of our memory: other threads,
// which may hold any lock, do not exist. So: system calls and stores, nothing else.
//
//go:norace
//go:nosplit
//go:noinline
func (v *visit) child() {
	v.hide()
	v.closeOthers()
	if v.owner != none {
		if _, _, e := unix.RawSyscall(unix.SYS_SETNS, v.owner, unix.CLONE_NEWUSER, 0); e != 0 {
			v.end(stepUser, e)
		}
		v.hide() // new credentials undo both
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETNS, v.netns, unix.CLONE_NEWNET, 0); e != 0 {
		v.end(stepNet, e)
	}
	v.openAll()
	for i := range v.open {
		*(*int32)(unsafe.Pointer(uintptr(unsafe.Pointer(v.message.Control)) + v.header + uintptr(i)*4)) = v.open[i]
	}
	v.end(stepDone, 0)
}

// hide keeps the container's root from tracing the child, and has it end with us.
//
//go:norace
//go:nosplit
func (v *visit) hide() {
	if _, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0); e != 0 {
		v.end(stepHide, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0); e != 0 {
		v.end(stepOrphan, e)
	}
	if parent, _, _ := unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0); parent != v.parent {
		v.end(stepOrphan, unix.ESRCH)
	}
}

// closeOthers closes what the child does not need. Before Linux 5.9 there is no
// close_range(2), and that the child cannot be traced has to do.
//
//go:norace
//go:nosplit
func (v *visit) closeOthers() {
	first := uintptr(0)
	for {
		next := none
		if v.netns >= first && v.netns < next {
			next = v.netns
		}
		if v.out >= first && v.out < next {
			next = v.out
		}
		if v.owner != none && v.owner >= first && v.owner < next {
			next = v.owner
		}
		if next == none {
			unix.RawSyscall(unix.SYS_CLOSE_RANGE, first, uintptr(^uint32(0)), 0)
			return
		}
		if next > first {
			unix.RawSyscall(unix.SYS_CLOSE_RANGE, first, next-1, 0)
		}
		first = next + 1
	}
}

// openAll opens the socket and the folders; instead of one that there is not it puts
// the socket once more.
//
//go:norace
//go:nosplit
func (v *visit) openAll() {
	fd, _, e := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if e == 0 {
		_, _, e = unix.RawSyscall(unix.SYS_BIND, fd, uintptr(unsafe.Pointer(&v.local)), unix.SizeofSockaddrNetlink)
	}
	if e != 0 {
		v.end(stepSocket, e)
	}
	for i := range v.open {
		v.open[i] = int32(fd)
	}
	for i := range v.folders {
		const how = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
		folder, _, e := unix.RawSyscall6(unix.SYS_OPENAT, none, uintptr(unsafe.Pointer(&v.folders[i])), how, 0, 0, 0)
		if e != 0 && e != unix.ENOENT {
			v.end(stepSysctls, e)
		}
		if e == 0 {
			v.open[1+i] = int32(folder)
		}
	}
}

// end sends the child's one message, and ends it.
//
//go:norace
//go:nosplit
func (v *visit) end(step byte, e syscall.Errno) {
	v.word[0], v.word[1] = step, byte(e)
	if step != stepDone {
		v.message.Controllen = 0
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SENDMSG, v.out, uintptr(unsafe.Pointer(&v.message)), 0); e != 0 {
		// ETOOMANYREFS: processes of this user have as many descriptors under way as may be.
		v.word[0], v.word[1] = stepPass, byte(e)
		v.message.Controllen = 0
		unix.RawSyscall(unix.SYS_SENDMSG, v.out, uintptr(unsafe.Pointer(&v.message)), 0)
	}
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// receive waits for the child's message. The container's root may stop the child where
// it sees its process ID, so the wait has an end.
func receive(from int) ([]int, error) {
	const patience = 60 // seconds; it takes less than a millisecond
	_ = unix.SetsockoptTimeval(from, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience})
	word, control := make([]byte, 2), make([]byte, unix.CmsgLen(4*(1+len(sysctls))))
	n, controls, flags, _, err := unix.Recvmsg(from, word, control, unix.MSG_CMSG_CLOEXEC)
	for errors.Is(err, unix.EINTR) {
		n, controls, flags, _, err = unix.Recvmsg(from, word, control, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("waiting for the process that enters it: %w", err)
	}
	const about = "what the process that enters it passed out: %w"
	fds, err := passed(control[:controls])
	switch {
	case err != nil:
		err = fmt.Errorf(about, err)
	case flags&unix.MSG_CTRUNC != 0:
		err = fmt.Errorf(about, unix.EMFILE)
	case n == 0:
		err = errors.New("the process that enters it was killed")
	case word[0] != stepDone:
		err = &stepError{word[0], unix.Errno(word[1])}
	case len(fds) == 0:
		err = fmt.Errorf(about, unix.EBADMSG)
	default:
		return fds, nil
	}
	closeAll(fds)
	return nil, err
}

// passed are the descriptors in control messages.
func passed(control []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	for i := range messages {
		some, rightsErr := unix.ParseUnixRights(&messages[i])
		fds, err = append(fds, some...), errors.Join(err, rightsErr)
	}
	return fds, err
}

// stepError is a step of the child that failed.
type stepError struct {
	step  byte
	errno unix.Errno
}

func (e *stepError) Error() string { return stepNames[e.step] + ": " + e.errno.Error() }
func (e *stepError) Unwrap() error { return e.errno }

// Refused says of an error of Enter whether we may not go in. What failed inside is
// another matter.
func Refused(err error) bool {
	e, ok := errors.AsType[*stepError](err)
	return ok && e.errno == unix.EPERM && (e.step == stepUser || e.step == stepNet)
}

// reap ends the child, in whatever state it is, and waits for that.
func reap(pid int) {
	_ = unix.Kill(pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(pid, nil, unix.WALL, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
