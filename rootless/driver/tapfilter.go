package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/confine"
	"github.com/ambi-cni/ambi/record"
)

// This file closes the host's loopback to the container. libslirp connects to whatever
// address a frame names, 127.0.0.1, too, and --disable-host-loopback closes the
// gateway's address only. So the tap has a filter (packet(7), "classic BPF") that the
// container cannot take away: it belongs to the driver's descriptor. That is borrowed
// from the running driver (pidfd_getfd(2), Linux 5.6), since slirp4netns makes it itself.

// loopbackFilter passes ARP, IPv4 and IPv6 frames, but for those to an address that a
// host may take for its own loopback: 0.0.0.0/8 and 127.0.0.0/8; ::, ::1, and the IPv4
// addresses in ::/96 and ::ffff:0:0/96. It drops all others, tagged ones as well
// (IEEE 802.1Q), which libslirp has no use for.
var loopbackFilter = []unix.SockFilter{
	0:  {Code: loadHalf, K: 12}, // the type, in an Ethernet header of 14 bytes
	1:  ifEqual(unix.ETH_P_ARP, 15, 2, 1),
	2:  ifEqual(unix.ETH_P_IP, 3, 6, 2),
	3:  {Code: loadByte, K: 14 + 16}, // destination
	4:  ifEqual(0, 14, 5, 4),
	5:  ifEqual(127, 14, 15, 5),
	6:  ifEqual(unix.ETH_P_IPV6, 7, 14, 6),
	7:  {Code: loadWord, K: 14 + 24}, // destination
	8:  ifEqual(0, 9, 15, 8),
	9:  {Code: loadWord, K: 14 + 28},
	10: ifEqual(0, 11, 15, 10),
	11: {Code: loadWord, K: 14 + 32},
	12: ifEqual(0, 14, 13, 12),
	13: ifEqual(0xffff, 14, 15, 13),
	14: {Code: unix.BPF_RET | unix.BPF_K, K: 0}, // drop; so is a frame too short to be looked at
	15: {Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
}

const (
	loadWord = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	loadHalf = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS
	loadByte = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
)

// ifEqual goes on at the line then or otherwise. It stands at the line at.
func ifEqual(value uint32, then, otherwise, at uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jt: then - at - 1, Jf: otherwise - at - 1}
}

// mostDescriptors is many times what a slirp4netns has when it starts.
const mostDescriptors = 256

// errNoDriver: it has ended, and will say why.
var errNoDriver = errors.New("the driver has ended")

// filterTap waits until the driver has its tap and sets the filter. Then it throws away
// what the container has sent meanwhile: the filter looks at a frame when it is sent.
// The driver must not read it either, see fullPipe.
func filterTap(pidfd int) error {
	began := time.Now()
	deadline := began.Add(readyPatience)
	// The longer it takes the less often we look, which is hundreds of system calls: many
	// that start at once on a busy machine would take the time from the drivers they wait for.
	for ; time.Now().Before(deadline); time.Sleep(min(max(time.Since(began)/4, time.Millisecond), 20*time.Millisecond)) {
		tap, err := borrowTap(pidfd)
		if err != nil {
			return err
		}
		if tap >= 0 {
			defer unix.Close(tap)
			if err := attachFilter(tap); err != nil {
				return err
			}
			stay(tap)
			return discardFrames(tap, deadline)
		}
	}
	return errors.New("it has no tap device")
}

// borrowTap is a descriptor of the driver's tap; -1 while it has none.
func borrowTap(pidfd int) (int, error) {
	for number := range mostDescriptors {
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		switch {
		case errors.Is(err, unix.EBADF):
			continue
		case errors.Is(err, unix.ESRCH):
			return -1, errNoDriver
		case err != nil:
			return -1, fmt.Errorf("pidfd_getfd: %w", err)
		}
		if isTap(fd) {
			return fd, nil
		}
		unix.Close(fd)
	}
	return -1, nil
}

func isTap(fd int) bool {
	request, err := unix.NewIfreq("")
	return err == nil && unix.IoctlIfreq(fd, unix.TUNGETIFF, request) == nil && request.Uint16()&unix.IFF_TAP != 0
}

// attachFilter. The kernel remembers the address of the instructions, and looks there, in the
// memory of the next driver, when that opens the same interface (tun_attach in drivers/net/tun.c,
// which goes on where there is nothing): so it is one that nobody has for long.
func attachFilter(tap int) error {
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(memory) }()
	filter := (*unix.SockFilter)(unsafe.Pointer(&memory[0]))
	copy(unsafe.Slice(filter, len(loopbackFilter)), loopbackFilter)
	program := unix.SockFprog{Len: uint16(len(loopbackFilter)), Filter: filter}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(tap), unix.TUNATTACHFILTER, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(&program)
	if errno != 0 {
		return fmt.Errorf("TUNATTACHFILTER: %w", errno)
	}
	return nil
}

// stay has the tap be there until somebody removes it, or the namespace goes: the driver's end
// would take as long as it takes the kernel to forget all about an interface (rcu_barrier, by
// netdev_run_todo in net/core/dev.c), and with the namespace it does that when nobody waits.
// Where that fails, the driver's end takes longer.
func stay(tap int) { _ = unix.IoctlSetInt(tap, unix.TUNSETPERSIST, 1) }

func discardFrames(tap int, deadline time.Time) error {
	frame := make([]byte, 64<<10)
	for {
		fds := []unix.PollFd{{Fd: int32(tap), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 0); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			return nil
		}
		if _, err := unix.Read(tap, frame); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("the container sends without end")
		}
	}
}

// closeLoopback sets the filter.
func (s *child) closeLoopback() error {
	set := filterTap
	// Who cannot be looked into takes this capability. Without no_new_privs a driver has more of
	// them than we have, so that it is the same with any. A helper has it, as uid 0 of the hub.
	if !record.HaveCapability(unix.CAP_SYS_PTRACE) && (s.hides || !confine.HasNoNewPrivileges()) {
		set = s.filterTapByHelper
	}
	var err error
	if noHandle := s.cmd.Process.WithHandle(func(pidfd uintptr) { err = set(int(pidfd)) }); noHandle != nil {
		err = noHandle
	}
	if err == nil || errors.Is(err, errNoDriver) || errors.Is(err, os.ErrProcessDone) {
		return nil // one that has ended says why on the ready pipe
	}
	return conf.Mendf(conf.Errorf(conf.ErrNetwork, "closing the host's loopback to the container (a filter on the tap of %s): %v", s.name, err), "it takes Linux 5.6, a seccomp profile that allows pidfd_getfd, and the sysctl kernel.yama.ptrace_scope below 3")
}

func (s *child) filterTapByHelper(pidfd int) error {
	own, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(own), "pidfd")
	defer file.Close()
	ctx, cancel := context.WithTimeout(context.Background(), readyPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = s.helper
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.ExtraFiles = []*os.File{file}
	said, err := cmd.CombinedOutput()
	if err != nil && len(said) > 0 {
		return errors.New(string(bytes.TrimSpace(said)))
	}
	return err
}

// HelperMain is the main function of a process that sets the filter for a supervisor
// which has given up the rights to: exec gives them back to uid 0, for this moment. The
// pidfd of the driver is its first descriptor. It returns the exit status.
//
// With arguments it becomes a driver, see startUnderUs.
func HelperMain(args []string) int {
	const pidfd = 3
	if len(args) > 2 && args[0] == underUs {
		err := becomeUnder(args[1:])
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := filterTap(pidfd); err != nil && !errors.Is(err, errNoDriver) {
		fmt.Println(err)
		return 1
	}
	return 0
}
