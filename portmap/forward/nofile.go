package forward

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// RaiseNoFile raises this process's soft limit of open descriptors to its hard
// limit (getrlimit(2), RLIMIT_NOFILE): a TCP connection takes two descriptors, a
// UDP flow one, a published port one per address family.
func RaiseNoFile() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("reading RLIMIT_NOFILE: %w", err)
	}
	if limit.Cur == limit.Max {
		return nil
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raising RLIMIT_NOFILE to %d: %w", limit.Max, err)
	}
	return nil
}

// affordablePipes keeps the descriptors of pipes (two each) a small part of those
// that connections may need.
func affordablePipes() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return defaultMaxPipes
	}
	return int(min(defaultMaxPipes, limit.Cur/16))
}

func affordableWorkers() int {
	return min(runtime.NumCPU(), runtime.GOMAXPROCS(0), mostWorkers)
}
