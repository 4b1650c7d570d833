package rootless

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

// holding finds the other processes that hold the lock (flock(2)) on the file. Who has it
// open without the lock is none of them. /proc/locks names the one who took it, which
// may be gone; fdinfo (proc_pid_fdinfo(5), "lock:") has it for every descriptor that was
// inherited with it. Nothing here looks at the files themselves: one on a server that is
// gone would have us wait.
func holding(f *os.File) []record.Process {
	name, err := nameOfLocks(f)
	if err != nil {
		return nil
	}
	var found []record.Process
	infos, _ := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	for _, info := range infos {
		b, err := os.ReadFile(info)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(info))))
		if err != nil || pid == os.Getpid() || lockedFile(b, "FLOCK") != name {
			continue
		}
		if p, err := identify(pid); err == nil && !slices.Contains(found, p) {
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
