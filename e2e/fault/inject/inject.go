// Package inject runs a program, with all that it starts, and does one thing to it
// at one moment: makes a system call fail, or sends a signal. Which moment is
// counted over all threads and processes of a role, such as "the 7th openat(2) of
// the supervisor"; strace's fault injection counts for every thread by itself.
//
// It is a small tracer (ptrace(2), PTRACE_SEIZE), for amd64. When the program that
// was started ends, the processes that it leaves behind run on untraced.
package inject

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Fault is what is to happen, and when. Exactly one of Errno and Signal is set.
type Fault struct {
	Role string `json:"role"` // the program's name; "supervisor" is ambi's; see RoleOf
	Call string `json:"call"` // the system call's name, or Step
	N    int    `json:"n"`    // the how manieth, from 1
	// About has only those counted that are about what ends in it, see Hit.
	About string `json:"about,omitempty"`

	Errno  string `json:"errno,omitempty"`  // the call does not happen and fails with it
	Signal string `json:"signal,omitempty"` // is sent to the process before the call
}

func (f Fault) String() string {
	call := f.Call
	if f.About != "" {
		call += "(…" + f.About + ")"
	}
	return fmt.Sprintf("%s %s #%d %s", f.Role, call, f.N, f.Errno+f.Signal)
}

// Step as Fault.Call is every system call that changes something outside the
// process, asks for it, or waits for it: between two others a signal finds the same
// machine.
const Step = "step"

// aside are the system calls that are counted and are no Step.
var aside = map[string]bool{
	"mmap": true, "mprotect": true, "brk": true, "fstat": true, "fcntl": true, "getsockname": true, "umask": true, "prlimit64": true, "epoll_ctl": true,
	"epoll_create1": true, "eventfd2": true, "getsockopt": true, "capget": true, "fstatfs": true, "pread64": true,
}

// Hit is a fault that happened.
type Hit struct {
	Pid  int    `json:"pid"`
	Call string `json:"call"` // with what it is about: openat(/run/ambi/web@box@eth0.json)
}

// Report is what was seen.
type Report struct {
	Hit    *Hit                      `json:"hit"`    // nil: the moment never came
	Counts map[string]map[string]int `json:"counts"` // by role and system call
	Exit   int                       `json:"exit"`   // the program's status, or 128 + the signal that ended it
}

// Program is what to run.
type Program struct {
	Cmd *exec.Cmd // not started; without ExtraFiles
	// Also are processes that are there already and belong to it, with all their
	// threads, such as the daemon that the program will talk to.
	Also []int
}

// hold waits until it is traced before it becomes the program.
const hold = `read -r go <&3; exec 3<&-; exec "$0" "$@"`

// Run runs a program to its end. A nil fault only counts. The caller's process has
// to have no other children: all that end are taken for the program's.
func Run(p Program, fault *Fault) (*Report, error) {
	// Only the thread that attached may go on.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	t := &tracer{
		fault: fault, tasks: map[int]*task{}, roles: map[int]string{},
		report: &Report{Counts: map[string]map[string]int{}},
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	defer write.Close()
	argv := append([]string{"sh", "-c", hold}, p.Cmd.Args...)
	argv[3] = p.Cmd.Path
	p.Cmd.Path, p.Cmd.Args = "/bin/sh", argv
	p.Cmd.ExtraFiles = []*os.File{read}
	if err := p.Cmd.Start(); err != nil {
		return nil, err
	}
	t.main = p.Cmd.Process.Pid
	if err := t.seize(t.main); err != nil {
		_ = p.Cmd.Process.Kill()
		return nil, err
	}
	for _, pid := range p.Also {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, thread := range threads {
			var tid int
			if _, err := fmt.Sscan(filepath.Base(thread), &tid); err == nil {
				_ = t.seize(tid) // unless it has ended
			}
		}
	}
	t.release = func() { _, _ = io.WriteString(write, "\n") }
	return t.report, t.loop()
}

// Inside is the role of an ambi that a supervisor runs.
const Inside = "ambi inside"

// RoleOf is the name of a process: that of its program, except that ambi's
// supervisor has one of its own, and so has what that runs of ambi.
func RoleOf(pid int) string {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	name := filepath.Base(exe)
	if argv := strings.Split(string(args), "\x00"); name == "ambi" && len(argv) > 1 && (argv[1] == "supervisor" || argv[1] == "keeper") {
		return argv[1]
	}
	if name == "ambi" && RoleOf(parentOf(pid)) == "supervisor" {
		return Inside
	}
	return name
}

func parentOf(pid int) (parent int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "PPid:\t%d", &parent)
	}
	return parent
}

type tracer struct {
	fault   *Fault
	report  *Report
	main    int
	release func()         // lets the program start
	tasks   map[int]*task  // by thread
	roles   map[int]string // by process
	alike   int            // calls that the fault counts, where it says what about
}

// task is a traced thread.
type task struct {
	process int
	failing unix.Errno // the call that it is in is to return this
}

const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC

// seize attaches to a running thread and has it stop, so that its system calls are
// seen from now on.
func (t *tracer) seize(tid int) error {
	if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, options, 0, 0); errno != 0 {
		return fmt.Errorf("ptrace of process %d: %w", tid, errno)
	}
	t.task(tid)
	return unix.PtraceInterrupt(tid)
}

func (t *tracer) task(tid int) *task {
	if known := t.tasks[tid]; known != nil {
		return known
	}
	process, parent := tid, 0
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "Tgid:\t%d", &process)
		_, _ = fmt.Sscanf(line, "PPid:\t%d", &parent)
	}
	if t.roles[process] == "" {
		t.roles[process] = RoleOf(process)
		if role, ours := t.roles[parent]; ours {
			// Has been forked and has not become another program yet.
			t.roles[process] = strings.TrimSuffix(role, forked) + forked
		}
	}
	t.tasks[tid] = &task{process: process}
	return t.tasks[tid]
}

// forked marks the role of a process that still is a copy of its parent.
const forked = " (forked)"

func (t *tracer) loop() error {
	for {
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("waiting for the traced processes: %w", err)
		case status.Exited() || status.Signaled():
			if tid == t.main {
				t.report.Exit = status.ExitStatus()
				if status.Signaled() {
					t.report.Exit = 128 + int(status.Signal())
				}
				return nil
			}
			delete(t.tasks, tid)
			delete(t.roles, tid)
		case status.Stopped():
			t.stopped(tid, status)
		}
	}
}

// stopped handles a stop and lets the thread go on. It may be killed at any time,
// so nothing that fails here matters.
func (t *tracer) stopped(tid int, status unix.WaitStatus) {
	signal, event := status.StopSignal(), int(uint32(status)>>16)
	current := t.task(tid)
	switch {
	case signal == unix.SIGTRAP|0x80:
		t.systemCall(tid, current)
		signal = 0
	case event == unix.PTRACE_EVENT_STOP && signal != unix.SIGTRAP:
		_, _, _ = unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_LISTEN, uintptr(tid), 0, 0, 0, 0)
		return
	case event == unix.PTRACE_EVENT_EXEC:
		t.roles[tid] = RoleOf(tid)
		current.process, current.failing = tid, 0
		signal = 0
	case event != 0:
		signal = 0
	}
	_ = unix.PtraceSyscall(tid, int(signal))
	if release := t.release; release != nil && tid == t.main {
		t.release = nil
		release()
	}
}

// callInfo is struct ptrace_syscall_info.
type callInfo struct {
	op     uint8
	_      [3]uint8
	arch   uint32
	ip, sp uint64
	nr     uint64 // of an entry
	args   [6]uint64
	_      [16]byte
}

const (
	atEntry = 1 // PTRACE_SYSCALL_INFO_ENTRY
	atExit  = 2 // PTRACE_SYSCALL_INFO_EXIT
)

func (t *tracer) systemCall(tid int, current *task) {
	var info callInfo
	if _, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0); errno != 0 {
		return
	}
	switch {
	case info.op == atEntry:
		t.entry(tid, current, &info)
	case info.op == atExit && current.failing != 0:
		_ = setResult(tid, current.failing)
		current.failing = 0
	}
}

// eventFile is what an eventfd(2) is called in /proc. A write to one fails with EAGAIN or
// EINVAL only, and Go's runtime, which wakes its poller by it, ends the program at
// anything else.
const eventFile = "anon_inode:[eventfd]"

func (t *tracer) entry(tid int, current *task, info *callInfo) {
	name, known := callNames[int(info.nr)]
	if !known {
		return // of the runtime
	}
	if name == "write" && about(tid, name, info.args) == eventFile {
		return
	}
	role := t.roles[current.process]
	counts := t.report.Counts[role]
	if counts == nil {
		counts = map[string]int{}
		t.report.Counts[role] = counts
	}
	counts[name]++
	if !aside[name] {
		counts[Step]++
	}
	f := t.fault
	if f == nil || t.report.Hit != nil || f.Role != role || (f.Call != name && (f.Call != Step || aside[name])) {
		return
	}
	n := counts[f.Call]
	if f.About != "" {
		if !strings.HasSuffix(about(tid, name, info.args), f.About) {
			return
		}
		t.alike++
		n = t.alike
	}
	if n != f.N {
		return
	}
	t.report.Hit = &Hit{current.process, name + "(" + about(tid, name, info.args) + ")"}
	if f.Signal != "" {
		_ = unix.Kill(current.process, unix.SignalNum(f.Signal))
		return
	}
	current.failing = errnos[f.Errno]
	_ = skipCall(tid)
}

// about says what a system call is about: its path, or what its descriptor is.
func about(tid int, name string, args [6]uint64) string {
	if i, has := pathArgument[name]; has {
		return text(tid, args[i])
	}
	if descriptorFirst[name] {
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, int32(args[0])))
		return target
	}
	return ""
}

// text reads a string of another process.
func text(tid int, address uint64) string {
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", tid))
	if err != nil {
		return ""
	}
	defer memory.Close()
	b := make([]byte, 256)
	n, _ := memory.ReadAt(b, int64(address))
	s, _, _ := strings.Cut(string(b[:n]), "\x00")
	return s
}

// Errnos are the errors that a fault may have.
var errnos = map[string]unix.Errno{
	"ENOSPC": unix.ENOSPC, "EMFILE": unix.EMFILE, "ENOMEM": unix.ENOMEM, "EPERM": unix.EPERM, "EIO": unix.EIO,
}
