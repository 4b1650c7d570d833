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
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

// process is one running slirp4netns.
type process struct {
	helper []string // see Files
	cmd    *exec.Cmd
	ready  *os.File // held bytes of ours, and one when the interface is there (--ready-fd)
	held   int
	// folder of the API socket, while the driver binds that
	folder *os.File
	exit   *os.File      // closing it makes slirp4netns leave (--exit-fd)
	done   chan struct{} // closed when it has ended
	err    error         // how it ended; read after done
	tail   *tail
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
	s := &process{helper: files.Helper, exit: exitWrite, ready: readyRead, held: held, done: make(chan struct{}), tail: &tail{log: log}}
	s.cmd = exec.Command(c.Path, c.Args...)
	s.cmd.ExtraFiles = []*os.File{exitRead, readyWrite, files.Netns, files.Alive}
	s.cmd.Stdout, s.cmd.Stderr = s.tail, s.tail
	s.cmd.Env, s.cmd.Dir = []string{}, "/"
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
	err = s.cmd.Start()
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

func (s *process) wait() {
	s.err = s.cmd.Wait()
	close(s.done)
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
	select {
	case <-s.done:
	case <-time.After(leaveGrace):
		return fmt.Errorf("slirp4netns runs and could not say whether it is ready: %s", s.tail.last())
	}
	return fmt.Errorf("slirp4netns ended before it was ready (%s): %s", s.exitStatus(), s.tail.last())
}

func (s *process) exitStatus() string {
	if s.err == nil {
		return "exit status 0"
	}
	return s.err.Error()
}

func (s *process) PID() int               { return s.cmd.Process.Pid }
func (s *process) Ended() <-chan struct{} { return s.done }
func (s *process) Dismiss()               { s.exit.Close() }

func (s *process) Ending() string {
	return fmt.Sprintf("slirp4netns ended (%s): %s", s.exitStatus(), s.tail.last())
}

func (s *process) Stop() {
	s.Dismiss()
	select {
	case <-s.done:
	case <-time.After(leaveGrace):
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}

// tail keeps the last lines of the driver's output and logs each.
type tail struct {
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
	if line == "" {
		return
	}
	t.log.Info("slirp4netns", "says", line)
	t.lines = append(t.lines, line)
	if len(t.lines) > tailLines {
		t.lines = append([]string{}, t.lines[1:]...)
	}
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
