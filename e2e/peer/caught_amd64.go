package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// caught runs a command, as a debugger would, and stops the first process that one of its programs
// forks without executing another in it and that has entered a network namespace, when that is about to
// say what it has done there (sendmsg(2)). Its process ID is in the file, until that is removed: then all
// goes on.
func caught(args []string) error {
	runtime.LockOSThread()
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	t := &trap{file: args[0], root: cmd.Process.Pid, forked: map[int]bool{}, early: map[int]unix.WaitStatus{}, told: map[int]bool{}}
	err := t.follow()
	if err == nil && !t.done {
		err = errors.New("none was caught")
	}
	return err
}

type trap struct {
	file   string
	root   int
	forked map[int]bool            // without exec, by one that is followed; the value: it is in the namespace
	told   map[int]bool            // all that are followed, as their parents' stops have told
	early  map[int]unix.WaitStatus // that have stopped before that
	done   bool                    // one was caught
}

func (t *trap) follow() error {
	const followed = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACEEXEC
	for first := true; ; first = false {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case pid == t.root && !status.Stopped(): // what it leaves running goes on when we end
			if status.ExitStatus() != 0 {
				return fmt.Errorf("it ended with %d", status.ExitStatus())
			}
			return nil
		case !status.Stopped():
			continue
		}
		if first {
			if err := unix.PtraceSetOptions(pid, followed); err != nil {
				return err
			}
		}
		t.goOn(pid, status)
	}
}

const ofSyscall = unix.SIGTRAP | 0x80 // PTRACE_O_TRACESYSGOOD

// goOn is what comes after a stop.
func (t *trap) goOn(pid int, status unix.WaitStatus) {
	if pid != t.root && !t.told[pid] {
		t.early[pid] = status // what it is says its parent
		return
	}
	signal := 0
	switch s := status.StopSignal(); {
	case s == ofSyscall:
		t.look(pid)
	case s == unix.SIGTRAP && status.TrapCause() > 0 && status.TrapCause() <= unix.PTRACE_EVENT_CLONE:
		if child, err := unix.PtraceGetEventMsg(pid); err == nil {
			// Threads come so, too. The exit signal of the one that is meant is none.
			if status.TrapCause() == unix.PTRACE_EVENT_CLONE && !t.done && leads(int(child)) {
				t.forked[int(child)] = false
			}
			t.follows(int(child))
		}
	case s != unix.SIGTRAP && s != unix.SIGSTOP:
		signal = int(s)
	}
	if _, ok := t.forked[pid]; ok && !t.done {
		_ = unix.PtraceSyscall(pid, signal)
		return
	}
	_ = unix.PtraceCont(pid, signal) // of one that has ended
}

// follows is called when a parent has told of a child.
func (t *trap) follows(child int) {
	t.told[child] = true
	if status, ok := t.early[child]; ok {
		delete(t.early, child)
		t.goOn(child, status)
	}
}

// leads says that it is a process and not a thread of one.
func leads(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && strings.Contains(string(status), fmt.Sprintf("\nTgid:\t%d\n", pid))
}

// look is at the begin and the end of each system call of one that was forked.
func (t *trap) look(pid int) {
	var regs unix.PtraceRegsAmd64
	if unix.PtraceGetRegsAmd64(pid, &regs) != nil {
		return
	}
	switch regs.Orig_rax {
	case unix.SYS_SETNS:
		t.forked[pid] = regs.Rsi == unix.CLONE_NEWNET
	case unix.SYS_SENDMSG:
		if !t.forked[pid] {
			return
		}
		t.done = true
		must(os.WriteFile(t.file+".new", fmt.Appendln(nil, pid), 0o644))
		must(os.Rename(t.file+".new", t.file))
		for exists(t.file) {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
