package main

import "golang.org/x/sys/unix"

// manyFiles is the limit of open files for everyone in the world.
const manyFiles = 1 << 20

// raiseLimit allows this process and its children as many open files as it can.
func raiseLimit() {
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: manyFiles, Max: manyFiles}) == nil {
		return
	}
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil {
		l.Cur = l.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
	}
}

// openFiles is the limit of open files that raiseLimit has come to.
func openFiles() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 1024
	}
	return int(min(l.Cur, manyFiles))
}
