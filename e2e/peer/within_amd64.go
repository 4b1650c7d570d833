package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// within has a thread of another process make system calls, as a debugger can: so they meet
// what that process is confined by, and nothing of it has to be in the product.
type within struct {
	pid   int
	saved unix.PtraceRegsAmd64
	at    uint64 // an instruction that makes a system call
	room  uint64 // a page of memory, for arguments
	used  uint64

	ended  bool             // for what was tried last
	missed []syscall.Signal // that came meanwhile
}

const pageSize = 4096

// stopWithin stops the main thread of a process. The caller is locked to its thread.
func stopWithin(pid int) (*within, error) {
	w := &within{pid: pid}
	if err := unix.PtraceSeize(pid); err != nil {
		return nil, fmt.Errorf("seizing %d: %w", pid, err)
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		return nil, fmt.Errorf("stopping %d: %w", pid, err)
	}
	if err := w.await(); err != nil {
		return nil, err
	}
	if err := unix.PtraceGetRegsAmd64(pid, &w.saved); err != nil {
		return nil, err
	}
	// It waits in a system call, which is made again when it goes on.
	w.at = w.saved.Rip - uint64(len(syscallInstruction))
	code := make([]byte, len(syscallInstruction))
	if _, err := unix.PtracePeekText(pid, uintptr(w.at), code); err != nil {
		return nil, err
	}
	if !bytes.Equal(code, syscallInstruction) {
		w.release()
		return nil, errors.New("it is not in a system call")
	}
	room, errno := w.call(unix.SYS_MMAP, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
	if errno != 0 {
		w.release()
		return nil, fmt.Errorf("memory in it: %w", errno)
	}
	w.room = room
	return w, nil
}

var syscallInstruction = []byte{0x0f, 0x05}

func (w *within) await() error {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(w.pid, &status, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case status.Signaled() && status.Signal() == unix.SIGSYS:
			return errEndedForIt
		case !status.Stopped():
			return fmt.Errorf("process %d has ended (%#x)", w.pid, int(status))
		case status.StopSignal() != unix.SIGTRAP:
			w.missed = append(w.missed, status.StopSignal())
		}
		return nil
	}
}

// errEndedForIt: that is what a filter of system calls may answer.
var errEndedForIt = errors.New("ended for it")

// call makes one system call in the process. That it cannot be made there is not what the
// process may not do: it ends the program.
func (w *within) call(number uint64, args ...uint64) (uint64, unix.Errno) {
	args = append(args, make([]uint64, 6-len(args))...)
	regs := w.saved
	regs.Rip, regs.Rax, regs.Orig_rax = w.at, number, ^uint64(0)
	regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8, regs.R9 = args[0], args[1], args[2], args[3], args[4], args[5]
	must(unix.PtraceSetRegsAmd64(w.pid, &regs))
	for {
		must(unix.PtraceSingleStep(w.pid))
		if err := w.await(); errors.Is(err, errEndedForIt) {
			w.ended = true
			return 0, unix.ENOSYS
		} else {
			must(err)
		}
		must(unix.PtraceGetRegsAmd64(w.pid, &regs))
		if regs.Rip != w.at { // else a signal of the process's own came first
			break
		}
	}
	if result := int64(regs.Rax); result < 0 && result > -pageSize {
		return 0, unix.Errno(-result)
	}
	return regs.Rax, 0
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "a system call in it:", err)
		os.Exit(1)
	}
}

// put writes an argument into the process, and returns its address.
func (w *within) put(b []byte) uint64 {
	at := w.room + w.used
	w.used += uint64(len(b)+15) &^ 15
	_, err := unix.PtracePokeData(w.pid, uintptr(at), b)
	must(err)
	return at
}

func (w *within) text(s string) uint64 { return w.put(append([]byte(s), 0)) }

// release lets it go on as if nothing had been.
func (w *within) release() {
	if w.room != 0 {
		w.call(unix.SYS_MUNMAP, w.room, pageSize)
	}
	_ = unix.PtraceSetRegsAmd64(w.pid, &w.saved)
	_ = unix.PtraceDetach(w.pid)
	for _, signal := range w.missed { // Go's runtime waits for those that it sends itself
		_ = unix.Tgkill(w.pid, w.pid, signal)
	}
}

type misuse struct {
	what string
	try  func() unix.Errno
}

// misuses are what a process that was taken over would try. File, socket and victim are what
// they are tried on.
func misuses(w *within, file, socket string, victim uint64) []misuse {
	only := func(number uint64, args ...uint64) func() unix.Errno {
		return func() unix.Errno {
			_, errno := w.call(number, args...)
			return errno
		}
	}
	makes := func(family, kind, protocol uint64) func() unix.Errno {
		return only(unix.SYS_SOCKET, family, kind, protocol)
	}
	here := uint64(0xffffffffffffff9c) // AT_FDCWD
	return []misuse{
		{"open a file of a home folder", only(unix.SYS_OPENAT, here, w.text(file), unix.O_RDONLY)},
		{"write a file of the host", only(unix.SYS_OPENAT, here, w.text("/etc/evil"), unix.O_CREAT|unix.O_WRONLY, 0o600)},
		{"write into a home folder", only(unix.SYS_OPENAT, here, w.text(file+".evil"), unix.O_CREAT|unix.O_WRONLY, 0o600)},
		{"list a home folder", only(unix.SYS_OPENAT, here, w.text(filepath.Dir(file)), unix.O_RDONLY|unix.O_DIRECTORY)},
		{"trace a process", only(unix.SYS_PTRACE, unix.PTRACE_ATTACH, victim)},
		{"read a process's memory", only(unix.SYS_PROCESS_VM_READV, victim, 0, 0, 0, 0, 0)},
		{"signal a process", only(unix.SYS_KILL, victim, 0)},
		{"mount", only(unix.SYS_MOUNT, w.text("none"), w.text("/mnt"), w.text("tmpfs"), 0, 0)},
		{"have a mount namespace", only(unix.SYS_UNSHARE, unix.CLONE_NEWNS)},
		{"send raw packets", makes(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)},
		{"see all packets", makes(unix.AF_PACKET, unix.SOCK_RAW, 0)},
		{"connect to a control socket", func() unix.Errno { return w.connect(socket) }},
		{"load a program into the kernel", only(unix.SYS_BPF, unix.BPF_MAP_CREATE, w.put(words(unix.BPF_MAP_TYPE_ARRAY, 4, 4, 1)), 16)},
		{"use io_uring", only(unix.SYS_IO_URING_SETUP, 1, w.put(make([]byte, 120)))},
		{"use userfaultfd", only(unix.SYS_USERFAULTFD, 1)},
		{"read keys", only(unix.SYS_KEYCTL, 0, 0xfffffffd, 0)},
		{"add a key", only(unix.SYS_ADD_KEY, w.text("user"), w.text("k"), w.text("v"), 1, 0xfffffffd)},
		{"reach the hypervisor", makes(unix.AF_VSOCK, unix.SOCK_STREAM, 0)},
		{"have memory in common", w.shareMemory},
		{"watch the processor", only(unix.SYS_PERF_EVENT_OPEN, w.put(words(unix.PERF_TYPE_SOFTWARE, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)), 0, ^uint64(0), ^uint64(0), 0)},
		{"load a module", only(unix.SYS_FINIT_MODULE, 0, w.text(""), 0)},
		{"take a descriptor", func() unix.Errno { return w.takeDescriptor(victim) }},
		{"have a user namespace", only(unix.SYS_UNSHARE, unix.CLONE_NEWUSER)},
		{"be looked into", w.isDumpable},
	}
}

func words(values ...uint32) (b []byte) {
	for _, v := range values {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

func (w *within) connect(path string) unix.Errno {
	fd, errno := w.call(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return errno
	}
	defer w.call(unix.SYS_CLOSE, fd)
	address := binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX)
	address = append(append(address, path...), 0)
	_, errno = w.call(unix.SYS_CONNECT, fd, w.put(address), uint64(len(address)))
	return errno
}

// isDumpable: so others of its user may look into it.
func (w *within) isDumpable() unix.Errno {
	dumpable, errno := w.call(unix.SYS_PRCTL, unix.PR_GET_DUMPABLE)
	if errno == 0 && dumpable != 1 {
		return unix.EPERM
	}
	return errno
}

// shareMemory makes a segment for all of its user, and removes it again.
func (w *within) shareMemory() unix.Errno {
	segment, errno := w.call(unix.SYS_SHMGET, 0, pageSize, unix.IPC_CREAT|0o600) // IPC_PRIVATE
	if errno == 0 {
		w.call(unix.SYS_SHMCTL, segment, unix.IPC_RMID, 0)
	}
	return errno
}

func (w *within) takeDescriptor(victim uint64) unix.Errno {
	pidfd, errno := w.call(unix.SYS_PIDFD_OPEN, victim, 0)
	if errno != 0 {
		return errno
	}
	defer w.call(unix.SYS_CLOSE, pidfd)
	_, errno = w.call(unix.SYS_PIDFD_GETFD, pidfd, 0, 0)
	return errno
}

// tryWithin prints of each attempt whether the process may. There is another process, and a
// control socket, which everybody may connect to.
func tryWithin(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	victim := exec.Command("sleep", "infinity")
	victim.SysProcAttr = &unix.SysProcAttr{Credential: ownerOf(pid)}
	if err := victim.Start(); err != nil {
		return err
	}
	defer func() { _ = victim.Process.Kill() }()
	folder, err := os.MkdirTemp("", "within")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	socket := filepath.Join(folder, "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := errors.Join(os.Chmod(folder, 0o755), os.Chmod(socket, 0o777)); err != nil {
		return err
	}
	runtime.LockOSThread()
	w, err := stopWithin(pid)
	if err != nil {
		return err
	}
	for _, m := range misuses(w, args[1], socket, uint64(victim.Process.Pid)) {
		said := "could"
		if errno := m.try(); errno != 0 {
			said = "cannot: " + errno.Error()
		}
		fmt.Printf("%s: %s\n", m.what, said)
		if w.ended {
			return nil // of the rest nobody knows
		}
	}
	if len(args) == 2 {
		w.release()
		return nil
	}
	// At the end, since it is another program then.
	if _, errno := w.call(unix.SYS_EXECVE, w.text("/bin/sleep"), 0, 0); errno != 0 {
		fmt.Println("run a program: cannot:", errno)
		w.release()
		return nil
	}
	fmt.Println("run a program: could")
	return unix.PtraceDetach(pid)
}

// ownerOf has another process run as the user of this one. (The files in /proc of one that
// is not dumpable are root's.)
func ownerOf(pid int) *syscall.Credential {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, uids, _ := strings.Cut(string(status), "\nUid:")
	_, gids, _ := strings.Cut(string(status), "\nGid:")
	owner := syscall.Credential{NoSetGroups: true}
	_, _ = fmt.Sscan(uids, &owner.Uid)
	_, _ = fmt.Sscan(gids, &owner.Gid)
	return &owner
}
