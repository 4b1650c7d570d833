package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ProcessOf reads what tells a process from a later one of the same pid.
func ProcessOf(pid int) (Process, error) {
	_, start, err := procStat(pid)
	return Process{PID: pid, StartTime: start}, err
}

// procStat reads state and start time of a process (proc_pid_stat(5), fields 3
// and 22). The command name before them may hold blanks and brackets.
func procStat(pid int) (state byte, startTime uint64, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	return parseStat(b)
}

func parseStat(b []byte) (state byte, startTime uint64, err error) {
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const stateField, startField = 0, 22 - 3 // field 3 is the first of them
	if len(fields) <= startField {
		return 0, 0, fmt.Errorf("proc_pid_stat(5) has %d fields", len(fields))
	}
	startTime, err = strconv.ParseUint(fields[startField], 10, 64)
	return fields[stateField][0], startTime, err
}

// ended says so of a process's state.
func ended(state byte) bool { return state == 'Z' || state == 'X' }

// open returns a pidfd of exactly this process and its state, or os.ErrProcessDone. Start
// times are compared after the pidfd is open, so a recycled pid cannot come between. It
// opens also what has ended: while the first thread of a killed process is a zombie,
// others may still be on their way out, with everything open.
func (p Process) open() (pidfd *os.File, state byte, err error) {
	fd, err := unix.PidfdOpen(p.PID, 0) // Linux 5.3
	if errors.Is(err, unix.ESRCH) || IsThread(err) {
		return nil, 0, os.ErrProcessDone
	}
	if err != nil {
		return nil, 0, fmt.Errorf("process %d: %w", p.PID, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	state, start, err := procStat(p.PID)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH), err == nil && start != p.StartTime:
		err = os.ErrProcessDone
	case err != nil:
		err = fmt.Errorf("process %d: %w", p.PID, err)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, state, nil
}

// Alive says whether the process still runs; nil does not. A zombie has ended: only its
// parent can free it. That we cannot look, for want of descriptors, say, is no proof of
// an end.
func (p *Process) Alive() bool {
	if p == nil {
		return false
	}
	f, state, err := p.open()
	if err == nil {
		f.Close()
		return !ended(state)
	}
	return !errors.Is(err, os.ErrProcessDone)
}

// Stopped says that a signal has stopped the process (signal(7), "Standard signals").
func (p *Process) Stopped() bool {
	if p == nil {
		return false
	}
	f, state, err := p.open()
	if err == nil {
		f.Close()
	}
	return err == nil && state == 'T'
}

// Continue has a stopped process go on. One that ends meanwhile is success.
func (p Process) Continue() error {
	f, _, err := p.open()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.PidfdSendSignal(int(f.Fd()), unix.SIGCONT, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("continuing process %d: %w", p.PID, err)
	}
	return nil
}

// There says that the process is there, if only as a zombie.
func (p Process) There() bool {
	f, _, err := p.open()
	if err == nil {
		f.Close()
	}
	return err == nil
}

// HasEnded says whether the last thread of the process has ended, without opening
// anything.
func HasEnded(pidfd *os.File) bool { return HasEndedFD(pidfd.Fd()) }

// HasEndedFD is HasEnded of a descriptor.
func HasEndedFD(pidfd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// KillFD ends a process by its pidfd. One that has ended already is no error.
func KillFD(pidfd *os.File) {
	if raw, err := pidfd.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
}

// AwaitExit waits for the end of a process. The pidfd is one that Go's poller waits for, not
// blocking, or else it takes up to a second to be noticed.
func AwaitExit(pidfd *os.File) {
	raw, err := pidfd.SyscallConn()
	if err == nil {
		err = raw.Read(HasEndedFD)
	}
	for err != nil && !HasEnded(pidfd) {
		time.Sleep(time.Second) // a kernel that cannot have it polled
	}
}

// The patience of Stop with a process before it is killed, and after.
const (
	stopGrace = 5 * time.Second
	killGrace = time.Minute // for the kernel alone, which on a busy machine has much to do
)

// Stop ends a process: SIGTERM, then SIGKILL, and returns when it is gone. A process that
// has ended is success.
func (p Process) Stop(ctx context.Context) error {
	pidfd, state, err := p.open()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pidfd.Close()
	if ended(state) && awaitEnd(ctx, pidfd, killGrace) {
		return nil
	}
	for _, step := range []struct {
		signal unix.Signal
		grace  time.Duration
	}{{unix.SIGTERM, stopGrace}, {unix.SIGKILL, killGrace}} {
		err := unix.PidfdSendSignal(int(pidfd.Fd()), step.signal, nil, 0)
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("sending %s to process %d: %w", unix.SignalName(step.signal), p.PID, err)
		}
		if awaitEnd(ctx, pidfd, step.grace) {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end, not even by SIGKILL", p.PID)
}

// awaitEnd waits until the last thread of the process ends; its pidfd is readable
// then.
func awaitEnd(ctx context.Context, pidfd *os.File, grace time.Duration) bool {
	deadline := time.Now().Add(grace)
	for ctx.Err() == nil {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(min(left, 100*time.Millisecond)/time.Millisecond)+1)
		if n > 0 && err == nil {
			return true
		}
	}
	return false
}

// IsThread: pidfd_open(2) says so of a thread that is not its process's first one,
// since Linux 6.15 by the second error.
func IsThread(err error) bool { return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) }

// HaveCapability says whether the capability (capabilities(7)) is in our effective set.
func HaveCapability(capability uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}
