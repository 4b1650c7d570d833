package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/flock"
)

// AwaitEnd waits until no process holds the lock on a file of an attachment: BASE.alive,
// of a supervisor and its driver, which leaves by itself when its supervisor was killed;
// BASE.busy, of delegates. One that does not let go is killed. No file is success.
func AwaitEnd(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lock of an attachment: %w", err)
	}
	defer f.Close()
	if free, err := freed(ctx, f, stopGrace); free || err != nil {
		return err
	}
	holders := holding(f)
	for _, p := range holders {
		if err := p.Stop(ctx); err != nil {
			return err
		}
	}
	if free, err := freed(ctx, f, killGrace); free || err != nil {
		return err
	}
	return fmt.Errorf("processes %v of the attachment do not end", holders)
}

// Holders are the processes that hold the lock on a file of an attachment, as AwaitEnd has it.
func Holders(path string) []Process {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	return holding(f)
}

// freed says whether the lock is free within that time.
func freed(ctx context.Context, f *os.File, patience time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := flock.Lock(ctx, f, flock.Exclusive)
	if errors.Is(err, flock.ErrHeld) {
		return false, nil
	}
	return err == nil, err
}

// holding finds the other processes that hold the lock (flock(2)) on the file. Who has it
// open without the lock is none of them. /proc/locks names the one who took it, which
// may be gone; fdinfo (proc_pid_fdinfo(5), "lock:") has it for every descriptor that was
// inherited with it. Nothing here looks at the files themselves: one on a server that is
// gone would have us wait.
func holding(f *os.File) []Process {
	name, err := nameOfLocks(f)
	if err != nil {
		return nil
	}
	var found []Process
	infos, _ := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	for _, info := range infos {
		b, err := os.ReadFile(info)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(info))))
		if err != nil || pid == os.Getpid() || lockedFile(b, "FLOCK") != name {
			continue
		}
		if p, err := ProcessOf(pid); err == nil && !slices.Contains(found, p) {
			found = append(found, p)
		}
	}
	return found
}

// nameOfLocks is what the kernel calls the file in its lists of locks: device and inode
// of the file system's own, which stat(2) does not show on every one. It takes a lock of
// the other kind (fcntl(2)), which does not meet the first, to see it.
func nameOfLocks(f *os.File) (string, error) {
	lock := unix.Flock_t{Type: unix.F_RDLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return "", err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	lock.Type = unix.F_UNLCK
	_ = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock)
	return lockedFile(b, "OFDLCK"), err
}

// lockedFile is the file of a lock of a kind in an fdinfo; empty without one. Its line is
// "lock: 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF".
func lockedFile(info []byte, kind string) string {
	for line := range bytes.Lines(info) {
		fields := bytes.Fields(line)
		if len(fields) > 6 && string(fields[0]) == "lock:" && string(fields[2]) == kind {
			return string(fields[6])
		}
	}
	return ""
}
