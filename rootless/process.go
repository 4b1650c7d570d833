package rootless

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

	"github.com/ambi-cni/ambi/record"
)

// identify reads what tells a process from a later one of the same pid.
func identify(pid int) (record.Process, error) {
	_, start, err := procStat(pid)
	return record.Process{PID: pid, StartTime: start}, err
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

// openProcess returns a pidfd of exactly this process, or os.ErrProcessDone when
// it has ended. Start times are compared after the pidfd is open, so a recycled
// pid cannot come between. A zombie has ended: only its parent can free it.
func openProcess(p record.Process) (*os.File, error) {
	f, state, err := openAnyway(p)
	if err == nil && ended(state) {
		f.Close()
		return nil, os.ErrProcessDone
	}
	return f, err
}

// ended says so of a process's state.
func ended(state byte) bool { return state == 'Z' || state == 'X' }

// openAnyway opens also what has ended: while the first thread of a killed process
// is a zombie, others may still be on their way out, with everything open.
func openAnyway(p record.Process) (pidfd *os.File, state byte, err error) {
	fd, err := unix.PidfdOpen(p.PID, 0) // Linux 5.3
	if errors.Is(err, unix.ESRCH) || isThread(err) {
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

// alive says whether the process still runs. That we cannot look, for want of
// descriptors, say, is no proof of its end.
func alive(p *record.Process) bool {
	if p == nil {
		return false
	}
	f, err := openProcess(*p)
	if err == nil {
		f.Close()
	}
	return !errors.Is(err, os.ErrProcessDone)
}

// hasEnded says whether the last thread of the process has ended, without opening
// anything.
func hasEnded(pidfd *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// The patience of stop with a process before it is killed, and after.
const (
	stopGrace = 5 * time.Second
	killGrace = 5 * time.Second
)

// stop ends a process: SIGTERM, then SIGKILL, and returns when it is gone. A
// process that has ended is success.
func stop(ctx context.Context, p record.Process) error {
	pidfd, state, err := openAnyway(p)
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
