package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The offsets in struct seccomp_data, little-endian.
const number, firstArgument, thirdArgument = 0, 16, 32

// refusals are what can be taken away, each as filters of system calls (seccomp(2)).
var refusals = map[string][]unix.SockFilter{
	// As on a kernel without nf_tables.
	"nftables": {
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SOCKET, Jf: 5},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: firstArgument},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AF_NETLINK, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: thirdArgument},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.NETLINK_NETFILTER, Jf: 1},
		refuse(unix.EPROTONOSUPPORT),
	},
	// As on a kernel without one of them.
	"landlock": refuseCall(unix.SYS_LANDLOCK_CREATE_RULESET),
	"seccomp":  refuseCall(unix.SYS_SECCOMP),
	// As on Debian with the sysctl kernel.unprivileged_userns_clone at 0.
	"userns": refuseFlag(unix.SYS_CLONE, unix.CLONE_NEWUSER),
	// As on Ubuntu with the sysctl kernel.apparmor_restrict_unprivileged_userns at 1: a user
	// namespace is made, and what takes a capability in it is refused.
	"rights": refuseFlag(unix.SYS_UNSHARE, unix.CLONE_NEWNET),
}

func refuse(errno unix.Errno) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0x00050000 | uint32(errno)} // SECCOMP_RET_ERRNO
}

func refuseCall(call uint32) []unix.SockFilter {
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		refuse(unix.ENOSYS),
	}
}

func refuseFlag(call, flag uint32) []unix.SockFilter {
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: firstArgument},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: flag, Jf: 1},
		refuse(unix.EPERM),
	}
}

// without runs a program as on a kernel or host that lacks something. It does not return.
func without(args []string) error {
	filter := refusals[args[0]]
	if filter == nil {
		return fmt.Errorf("without %q: only nftables, userns, rights, landlock and seccomp can be taken away", args[0])
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0x7fff0000}) // SECCOMP_RET_ALLOW
	path, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the filter is this thread's, which execve(2) keeps
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return fmt.Errorf("seccomp filter: %w", err)
	}
	return unix.Exec(path, args[1:], os.Environ())
}
