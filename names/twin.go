package names

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

// twin is a second process that waits for the end of the server and then takes its place,
// with the same sockets: questions that come meanwhile wait in them. It is forked without
// exec, and executes this program when its time comes. Until then it has no memory of its
// own but a few pages, and its code may not so much as grow its stack: all that it needs is
// made before it is forked, in pages that nothing else is in.
type twin struct {
	server  uintptr // a pidfd of the server
	last    uintptr // the last of the descriptors that are the server's from its start on
	program [16]byte
	name    [8]byte  // for ps(1) and pgrep(1); of the thread that forks it is another one
	again   [2]start // what it executes: the server has lived for long; it has not
	env     [1]*byte

	poll        pollFD
	began, now  unix.Timespec
	clone       [2]uintptr // the arguments of clone(2)
	all, before uint64     // signal masks
	pages       [128]span
	page        uintptr // the size of the kernel's pages
	size        uintptr // of this, with what again points to, in whole pages
}

// start is how the program is started, after a while.
type start struct {
	args [6]*byte
	wait unix.Timespec
}

type pollFD struct {
	fd              int32
	events, revents int16
}

// span is memory from one address to another.
type span struct{ from, to uintptr }

// soon is, in seconds, how long a server has to live for its successor to begin at once.
const soon = 1

// longestWait is what one waits at most that ended soon again and again.
const longestWait = 10 * time.Second

// waitAfter is how long the next start waits after so many servers that ended soon. Some may have
// been killed.
func waitAfter(quick int) time.Duration {
	const first, killed = 50 * time.Millisecond, 5
	if quick == 0 {
		return 0
	}
	return min(longestWait, first<<min(max(quick-killed, 0), 10))
}

// newTwin prepares one; sockets is how many the server was started with, and quick how many
// servers before this one ended soon.
func newTwin(stateDir, network string, sockets, quick int) (*twin, error) {
	size := int(unsafe.Sizeof(twin{}))
	args := [len(twin{}.again)][]string{}
	for i, next := range []int{0, quick + 1} {
		args[i] = []string{"ambi", Role, stateDir, network, strconv.Itoa(next)}
		size += len(strings.Join(args[i], " ")) + 1
	}
	page := os.Getpagesize()
	size = (size + page - 1) / page * page
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	t := (*twin)(unsafe.Pointer(&b[0]))
	t.page, t.size = uintptr(page), uintptr(size)
	t.last = uintptr(socketFD + sockets - 1)
	t.all = ^uint64(0)
	t.clone[0] = uintptr(unix.SIGCHLD)
	if runtime.GOARCH == "s390x" { // which has them in another order
		t.clone[0], t.clone[1] = t.clone[1], t.clone[0]
	}
	copy(t.program[:], "/proc/self/exe")
	copy(t.name[:], processName)
	t.poll.events = unix.POLLIN
	room := b[unsafe.Sizeof(*t):]
	for i := range t.again {
		t.again[i].wait = unix.NsecToTimespec(int64(waitAfter(i * quick)))
		for j, arg := range args[i] {
			t.again[i].args[j] = &room[0]
			room = room[copy(room, arg)+1:]
		}
	}
	return t, nil
}

// free gives its memory back.
func (t *twin) free() {
	_, _, _ = unix.Syscall(unix.SYS_MUNMAP, uintptr(unsafe.Pointer(t)), t.size, 0)
}

// startTwin forks a process that is the server when this one has ended. SIGCHLD tells of
// its own end.
func startTwin(stateDir, network string, sockets, quick int) (*record.Process, error) {
	t, err := newTwin(stateDir, network, sockets, quick)
	if err != nil {
		return nil, err
	}
	defer t.free()
	server, err := unix.PidfdOpen(os.Getpid(), 0) // Linux 5.3
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(server)
	t.server = uintptr(server)
	if err := t.listPages(); err != nil {
		return nil, err
	}
	pid, errno := t.fork()
	if errno != 0 {
		return nil, os.NewSyscallError("clone", errno)
	}
	p, err := record.ProcessOf(int(pid))
	return &p, err
}

// listPages lists the memory that is this process's own, for the twin to give it back.
func (t *twin) listPages() error {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	n := 0
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var s span
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &s.from, &s.to, &mode); err != nil || mode != "rw-p" || strings.HasSuffix(lines.Text(), "[stack]") {
			continue // the stack has the command line, which ps(1) shows
		}
		own := span{uintptr(unsafe.Pointer(t)), uintptr(unsafe.Pointer(t)) + t.size}
		for _, part := range []span{{s.from, min(s.to, own.from)}, {max(s.from, own.to), s.to}} {
			if part.from < part.to && n < len(t.pages) {
				t.pages[n] = part
				n++
			}
		}
	}
	return nil
}

// fork is fork(2), with all signals blocked from before it until after it, and in the twin
// until it executes the program: none of Go's handlers could work there.
//
//go:norace
//go:nosplit
//go:noinline
func (t *twin) fork() (pid uintptr, errno syscall.Errno) {
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&t.all)), uintptr(unsafe.Pointer(&t.before)), 8, 0, 0)
	pid, _, errno = unix.RawSyscall6(unix.SYS_CLONE, t.clone[0], t.clone[1], 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		t.live() // does not return
	}
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&t.before)), 0, 8, 0, 0)
	return pid, errno
}

// live is the life of the twin. It is alone in a copy of the server's memory: other threads,
// which may hold any lock, do not exist. So: system calls and stores, nothing else.
//
//go:norace
//go:nosplit
//go:noinline
func (t *twin) live() {
	unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&t.name)), 0)
	t.poll.fd = int32(t.last + 1)
	if t.server != t.last+1 {
		unix.RawSyscall(unix.SYS_DUP3, t.server, t.last+1, unix.O_CLOEXEC)
	}
	unix.RawSyscall(unix.SYS_CLOSE_RANGE, t.last+2, uintptr(^uint32(0)), 0) // Linux 5.9
	t.giveBack()
	unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&t.began)), 0)
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&t.poll)), 1, 0, 0, 0, 0)
		if errno == 0 && n > 0 {
			break
		}
		if errno != 0 && errno != unix.EINTR {
			t.end()
		}
	}
	unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&t.now)), 0)
	next := &t.again[0]
	if t.now.Sec-t.began.Sec < soon {
		next = &t.again[1]
	}
	unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&next.wait)), 0, 0)
	t.execute(next)
}

// giveBack drops the copy of the server's memory, but for where the stack is.
//
//go:norace
//go:nosplit
func (t *twin) giveBack() {
	var here byte
	stack := t.around(uintptr(unsafe.Pointer(&here)))
	for i := range t.pages {
		s := t.pages[i]
		if s.from < stack.from && stack.to < s.to {
			unix.RawSyscall(unix.SYS_MADVISE, s.from, stack.from-s.from, unix.MADV_DONTNEED)
			s.from = stack.to
		}
		if s.from < s.to && (stack.to <= s.from || s.to <= stack.from) {
			unix.RawSyscall(unix.SYS_MADVISE, s.from, s.to-s.from, unix.MADV_DONTNEED)
		}
	}
}

// around is the page of an address, with some before and behind it.
//
//go:norace
//go:nosplit
func (t *twin) around(address uintptr) span {
	const pages = 2
	page := address &^ (t.page - 1)
	return span{page - pages*t.page, page + pages*t.page}
}

// execute becomes the server. Where there is no memory for that it tries again, and not
// for ever: without it the next verb starts another one.
//
//go:norace
//go:nosplit
func (t *twin) execute(next *start) {
	for fd := uintptr(aliveFD); fd <= t.last; fd++ {
		unix.RawSyscall(unix.SYS_FCNTL, fd, unix.F_SETFD, 0)
	}
	for range 10 {
		unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&t.before)), 0, 8, 0, 0)
		unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(&t.program)), uintptr(unsafe.Pointer(&next.args)), uintptr(unsafe.Pointer(&t.env)))
		unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&t.all)), 0, 8, 0, 0)
		t.now = unix.Timespec{Sec: 1}
		unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&t.now)), 0, 0)
	}
	t.end()
}

//go:norace
//go:nosplit
func (t *twin) end() {
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	}
}

// reap takes note of the end of a child, without waiting for it; false: it lives.
func reap(child *record.Process) bool {
	pid, err := unix.Wait4(child.PID, nil, unix.WNOHANG, nil)
	return pid == child.PID || errors.Is(err, unix.ECHILD)
}
