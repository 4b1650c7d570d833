package driver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

// child is a running program that is a driver.
type child struct {
	name   string
	helper []string // see Files
	hides  bool     // see Command.Hides
	most   uint64   // see Files
	cmd    *exec.Cmd
	done   chan struct{} // closed when it has ended
	err    error         // how it ended; read after done
	tail   *tail
}

func newChild(name string, files Files, log *slog.Logger, argv ...string) child {
	c := child{
		name: name, helper: files.Helper, most: files.Most, cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{}),
		tail: &tail{name: name, log: log},
	}
	c.cmd.Stdout, c.cmd.Stderr = c.tail, c.tail
	c.cmd.Env, c.cmd.Dir = giveBack, "/"
	return c
}

// giveBack has glibc take each piece of memory from the kernel by itself, and give it back
// when it is free (mallopt(3)): all from 200 bytes on, and no room is kept for later ones.
//
// It is for the two buffers of a connection in libslirp, which makes them 128 KiB long and,
// when it knows the segments' size, 192 KiB. If they are pieces of their own the kernel
// moves them there, with one page of each in use. In glibc's own pool, which has room
// whenever others have come and gone, they are copied: 264 KiB for a connection that never
// carried a byte, and the busier the driver the more of them.
//
// A flow that has little under way is then five pages at most, 20 KiB: what libslirp knows
// of it (2), the buffers (2), and the packet that began it (1). So the bound of open files
// bounds the memory: see mostOfShared in rootless/supervisor. The price is that each packet
// of a driver with more than 30 UDP flows, which keep a packet each, takes its memory anew.
var giveBack = []string{"MALLOC_MMAP_THRESHOLD_=200", "MALLOC_TOP_PAD_=0", "MALLOC_TRIM_THRESHOLD_=65536"}

// bound sets the limit of open files of a program that was just started and has not read a
// frame yet.
func (c *child) bound() {
	_ = unix.Prlimit(c.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: c.most, Max: c.most}, nil) // of one that has ended
}

func (c *child) wait() {
	c.err = c.cmd.Wait()
	close(c.done)
}

// startUnderUs starts the program by the helper from a thread that stays: the kernel ends
// it with the thread that has started it (PR_SET_PDEATHSIG in prctl(2)).
func (c *child) startUnderUs(argv []string) error {
	c.cmd.Path = "/proc/self/exe"
	c.cmd.Args = slices.Concat(c.helper, []string{underUs, strconv.Itoa(os.Getpid())}, argv)
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		if err == nil {
			c.bound()
		}
		started <- err
		if err == nil {
			c.wait()
		}
	}()
	return <-started
}

// underUs is the first argument of a helper that becomes another program, which ends with
// the process of the PID that follows. The helper does it, since the kernel forgets it at an
// execve(2) that gives capabilities, as that of a supervisor does which has given up its own.
const underUs = "under"

func becomeUnder(args []string) error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("having it end with the supervisor: %w", err)
	}
	if strconv.Itoa(os.Getppid()) != args[0] {
		return errors.New("the supervisor has ended meanwhile")
	}
	return unix.Exec(args[1], args[1:], os.Environ())
}

func (c *child) exitStatus() string {
	if c.err == nil {
		return "exit status 0"
	}
	return c.err.Error()
}

func (c *child) PID() int               { return c.cmd.Process.Pid }
func (c *child) Ended() <-chan struct{} { return c.done }

func (c *child) Ending() string {
	return fmt.Sprintf("%s ended (%s): %s", c.name, c.exitStatus(), c.tail.last())
}

// awaitEnd waits for one that was told to leave.
func (c *child) awaitEnd() {
	select {
	case <-c.done:
	case <-time.After(leaveGrace):
		_ = c.cmd.Process.Kill()
		<-c.done
	}
}

// notReady is the error of one that has closed its ready pipe and said nothing.
func (c *child) notReady() error {
	select {
	case <-c.done:
	case <-time.After(leaveGrace):
		return fmt.Errorf("%s runs and could not say whether it is ready: %s", c.name, c.tail.last())
	}
	return fmt.Errorf("%s ended before it was ready (%s): %s", c.name, c.exitStatus(), c.tail.last())
}

// process is one running slirp4netns. It leaves when nobody has exit open any more.
type process struct {
	child
	pidfd, output *os.File // for who goes on with it, and output for tail
	copied        chan struct{}
	ready         *os.File // held bytes of ours, and one when the interface is there (--ready-fd)
	held          int
	// folder of the API socket, while the driver binds that
	folder *os.File
	exit   *os.File // closing it makes slirp4netns leave (--exit-fd)
}

// The descriptors that slirp4netns gets, in the order of ExtraFiles.
const (
	exitFD = 3 + iota
	readyFD
	netnsFD
	_ // the alive lock
)

// readyPatience is the patience with a driver that is alive and says nothing. It only ends
// what hangs: a hundred that start at once on a busy machine take a quarter of a minute.
const readyPatience = time.Minute

// leaveGrace is the patience with a driver that was told to leave, before it is killed.
const leaveGrace = 5 * time.Second

func (slirp4netns) start(c *Command, files Files, log *slog.Logger) (Process, error) {
	outbound, err := slirpOutbound(c)
	if err != nil {
		return nil, err
	}
	exitRead, exitWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting slirp4netns: %w", err)
	}
	defer exitRead.Close()
	readyRead, readyWrite, held, err := fullPipe()
	if err != nil {
		exitWrite.Close()
		return nil, fmt.Errorf("starting slirp4netns: %w", err)
	}
	s := &process{
		child: newChild("slirp4netns", files, log, slices.Concat([]string{c.Path}, c.Args, outbound)...),
		exit:  exitWrite, ready: readyRead, held: held, copied: make(chan struct{}),
	}
	s.cmd.ExtraFiles = []*os.File{exitRead, readyWrite, files.Netns, files.Alive}
	if c.APISocket != "" {
		if err := s.addAPISocket(c.APISocket); err != nil {
			exitWrite.Close()
			readyRead.Close()
			readyWrite.Close()
			return nil, fmt.Errorf("API socket for slirp4netns: %w", err)
		}
	}
	s.cmd.Args = append(s.cmd.Args, fmt.Sprintf("--exit-fd=%d", exitFD), fmt.Sprintf("--ready-fd=%d", readyFD),
		"--", fmt.Sprintf("/proc/self/fd/%d", netnsFD), c.IfName) // an interface may be called --help
	err = s.startSpeaking()
	// Our copy of the write end goes at once, so that a driver that dies is the end
	// of file on the read end and not a time-out.
	readyWrite.Close()
	if err != nil {
		exitWrite.Close()
		readyRead.Close()
		s.closeFolder()
		return nil, fmt.Errorf("starting slirp4netns: %w", err)
	}
	go s.wait()
	return s, nil
}

// startSpeaking starts it with a pipe for what it says.
func (s *process) startSpeaking() error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer write.Close()
	s.output, s.cmd.Stdout, s.cmd.Stderr = read, write, write
	if err := s.cmd.Start(); err != nil {
		read.Close()
		return err
	}
	s.bound()
	s.pidfd = pidfdOf(s.PID())
	go func() {
		_, _ = io.Copy(s.tail, read)
		close(s.copied)
	}()
	return nil
}

// pidfdOf is a pidfd of a child that nobody has waited for, which Go's poller waits for; nil
// without. (That of os.Process has to block.)
func pidfdOf(child int) *os.File {
	fd, err := unix.PidfdOpen(child, unix.PIDFD_NONBLOCK) // Linux 5.10
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "pidfd")
}

func (s *process) wait() {
	s.err = s.cmd.Wait()
	<-s.copied
	s.output.Close()
	if s.pidfd != nil {
		s.pidfd.Close()
	}
	close(s.done)
}

func (s *process) Survivor() *Survivor {
	if s.pidfd == nil {
		return nil
	}
	return &Survivor{PID: s.PID(), Files: []*os.File{s.pidfd, s.exit, s.output}}
}

// adopted is a slirp4netns that another process has started, and is ready.
type adopted struct {
	pid                 int
	pidfd, exit, output *os.File
	tail                *tail
	done                chan struct{}
}

func (d slirp4netns) adopt(_ *Command, survivor Survivor, _ Files, log *slog.Logger) (Process, error) {
	if len(survivor.Files) != 3 || record.HasEnded(survivor.Files[0]) {
		return nil, errNoDriver
	}
	a := &adopted{
		pid: survivor.PID, pidfd: survivor.Files[0], exit: survivor.Files[1], output: survivor.Files[2],
		tail: &tail{name: d.Name(), log: log}, done: make(chan struct{}),
	}
	go a.wait()
	return a, nil
}

func (a *adopted) wait() {
	_, _ = io.Copy(a.tail, a.output) // until nobody has the other end
	record.AwaitExit(a.pidfd)
	a.output.Close()
	a.pidfd.Close()
	close(a.done)
}

func (a *adopted) Survivor() *Survivor {
	return &Survivor{PID: a.pid, Files: []*os.File{a.pidfd, a.exit, a.output}}
}

func (a *adopted) AwaitReady() error      { return nil }
func (a *adopted) PID() int               { return a.pid }
func (a *adopted) Ended() <-chan struct{} { return a.done }
func (a *adopted) Ending() string         { return "slirp4netns ended: " + a.tail.last() }
func (a *adopted) Dismiss()               { a.exit.Close() }

func (a *adopted) Stop() {
	a.Dismiss()
	select {
	case <-a.done:
	case <-time.After(leaveGrace):
		record.KillFD(a.pidfd)
		<-a.done
	}
}

// fullPipe is a pipe that is full: the driver, which says that it is ready before it
// reads the first frame, waits until the given number of bytes has been read.
func fullPipe() (read, write *os.File, size int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, 0, err
	}
	write = os.NewFile(uintptr(fds[1]), "ready pipe") // blocking, as the driver writes once
	_ = unix.SetNonblock(fds[0], true)                // for a deadline
	read = os.NewFile(uintptr(fds[0]), "ready pipe")
	if size, err = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, os.Getpagesize()); err == nil {
		_, err = write.Write(make([]byte, size))
	}
	if err != nil {
		read.Close()
		write.Close()
	}
	return read, write, size, err
}

// addAPISocket has slirp4netns bind its API socket by a descriptor of the folder,
// for the length of a socket's name (unix(7)). The descriptor is ours: one of its own
// would lead out of the driver's sandbox.
func (s *process) addAPISocket(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	_, folder, err := record.SocketName(path)
	if err != nil {
		return err
	}
	s.folder = folder
	s.cmd.Args = append(s.cmd.Args, fmt.Sprintf("--api-socket=/proc/%d/fd/%d/%s", os.Getpid(), folder.Fd(), filepath.Base(path)))
	return nil
}

func (s *process) closeFolder() {
	if s.folder != nil {
		s.folder.Close()
		s.folder = nil
	}
}

func (s *process) AwaitReady() error {
	defer s.ready.Close()
	defer s.closeFolder()
	if err := s.closeLoopback(); err != nil {
		return err
	}
	if err := s.ready.SetReadDeadline(time.Now().Add(readyPatience)); err != nil {
		return fmt.Errorf("waiting for slirp4netns: %w", err)
	}
	if _, err := io.ReadFull(s.ready, make([]byte, s.held+1)); err == nil {
		return nil
	} else if !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("waiting for slirp4netns to become ready: %w: %s", err, s.tail.last())
	}
	return s.notReady()
}

func (s *process) Dismiss() { s.exit.Close() }

func (s *process) Stop() {
	s.Dismiss()
	s.awaitEnd()
}

// tail keeps the last lines of the driver's output and logs each.
type tail struct {
	name  string
	log   *slog.Logger
	mu    sync.Mutex
	lines []string
	part  []byte
}

const tailLines = 5

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.part = append(t.part, b...)
	for {
		line, rest, ok := bytes.Cut(t.part, []byte("\n"))
		if !ok {
			break
		}
		t.keep(string(line))
		t.part = rest
	}
	if len(t.part) > 4096 {
		t.keep(string(t.part))
		t.part = nil
	}
	return len(b), nil
}

func (t *tail) keep(line string) {
	if line == "" || isNoise(line) {
		return
	}
	t.log.Info(t.name, "says", line)
	t.lines = append(t.lines, line)
	if len(t.lines) > tailLines {
		t.lines = append([]string{}, t.lines[1:]...)
	}
}

// isNoise says that a line is about the others: without a system log a pasta of before
// 2023-06 follows each of its lines with one.
func isNoise(line string) bool {
	return strings.HasPrefix(line, "Failed to send ") && strings.HasSuffix(line, " bytes to syslog")
}

func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := LastLines(withoutWarnings(append(slices.Clone(t.lines), string(t.part))), 2)
	if text == "" {
		return "it printed nothing"
	}
	return text
}

// withoutWarnings leaves the reasons: slirp4netns warns of each option that it
// calls experimental, on another stream than its errors, which may lack the end of
// the line.
func withoutWarnings(lines []string) string {
	reasons := make([]string, 0, len(lines))
	for _, line := range lines {
		reason, _, _ := strings.Cut(line, "WARNING: Support for ")
		reasons = append(reasons, reason)
	}
	return joinLines(reasons)
}

func joinLines(lines []string) string {
	var b bytes.Buffer
	for _, l := range lines {
		if l != "" {
			b.WriteString(l + "\n")
		}
	}
	return b.String()
}
