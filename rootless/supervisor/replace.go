package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/confine"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/rootless/driver"
	"github.com/ambi-cni/ambi/rootless/netns"
)

// This file is how a supervisor makes room for another program: a keeper of that program holds
// all that its own has held, and starts a supervisor beside this one, which serves nobody new. The
// connections that it has may come to their end, and end with it after a while (drainTime).

// lastWord is the patience with a caller who does not take the answer.
const lastWord = 2 * time.Second

// errReplaced: the one that is there now is to be asked.
var errReplaced = errors.New("this supervisor has been replaced")

// replace says whether this process ends. It does not where it runs that program already.
func (s *supervisor) replace(r request, files []*os.File) (leaving bool, err error) {
	if len(files) != 1 {
		return false, conf.Errorf(types.ErrDecodingFailure, "control request %s: it takes one file, the program", r.Op)
	}
	same, err := isOurs(files[0])
	if err != nil || same {
		return false, err
	}
	// Whatever changes meanwhile would be in neither: it is asked for again, of the one that answers then.
	s.changing.Lock()
	defer s.changing.Unlock()
	if s.replaced.Load() {
		return false, errReplaced
	}
	if s.hub.verbs.Load() > 0 {
		return false, conf.Mendf(conf.Errorf(types.ErrTryAgainLater, "delegates are at work in the hub"), "try again when they are done")
	}
	err = s.replaceKeeper(files[0])
	if errors.Is(err, unix.EACCES) && confine.Held() {
		// A supervisor that starts nobody may run its own file only, and what has none.
		if files[0], err = withoutFile(files[0]); err == nil {
			err = s.replaceKeeper(files[0])
		}
	}
	if err != nil {
		return false, fmt.Errorf("starting a keeper of the new program: %w", err)
	}
	s.log.Info("making room for another program")
	s.makeRoom()
	if err := s.twin.next(s.hub.inside.Generation()); err != nil {
		s.log.Error("having another supervisor started", "error", err) // it is when this one has ended
		os.Exit(1)
	}
	go func() {
		s.drain()
		select {
		case <-r.caller.Done():
		case <-time.After(lastWord):
		}
		os.Exit(0)
	}()
	return true, nil
}

// makeRoom leaves all to another supervisor, but for the connections that there are. The rules and
// routes by which they come back stay for them.
func (s *supervisor) makeRoom() {
	s.replaced.Store(true)
	if len(s.hub.before) == netns.Generations-1 {
		s.hub.before[0].end()
	}
	s.work.Lock() // and keep it: nothing is started any more
	s.mu.Lock()
	process := s.driver
	s.mu.Unlock()
	if d, ok := process.(driver.Drainer); ok {
		d.Drain()
	} else if process != nil && process.Survivor() != nil {
		process.Dismiss() // by us: the keeper has it
	} else if process != nil {
		process.Stop() // or another could not have its interface
	}
	_ = os.WriteFile("/proc/self/comm", []byte("ambi-drain"), 0) // for ps, and who looks for the supervisor
	s.control.Close()
	s.hub.makeRoom()
	s.files.Alive.Close()
}

func (s *supervisor) replaceKeeper(program *os.File) error {
	return withFDs([]*os.File{program}, nil, func(fds ...int) error { return s.twin.replace("/proc/self/fd/" + strconv.Itoa(fds[0])) })
}

// withoutFile is a copy of a program in memory (memfd_create(2)). It closes the file. Where that has been
// read to is not ours: it goes to one network after the other.
func withoutFile(program *os.File) (*os.File, error) {
	defer program.Close()
	fd, err := unix.MemfdCreate("ambi", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	memory := os.NewFile(uintptr(fd), "memfd")
	defer memory.Close()
	if _, err := io.Copy(memory, io.NewSectionReader(program, 0, math.MaxInt64)); err != nil {
		return nil, fmt.Errorf("a copy of the new program: %w", err)
	}
	// Open for writing it cannot be run.
	return os.Open("/proc/self/fd/" + strconv.Itoa(fd))
}

func (h *hub) makeRoom() {
	h.inside.LeaveAtOnce()
	h.names.mu.Lock()
	h.names.close()
	h.names.mu.Unlock()
	h.mu.Lock()
	var ports []Socket
	for _, sockets := range h.published {
		ports = append(ports, sockets...)
	}
	h.mu.Unlock()
	for m := range mappingsOf(ports) {
		_ = h.forwarder.Leave(m) // of what it has not there is nothing to wait for
	}
}

// drainTime is how long connections have to come to their end.
const drainTime = 30 * time.Second

// drain lets connections come to their end. Whoever ends the network ends them, too; if it was
// killed, nobody holds the control socket any more.
func (s *supervisor) drain() {
	const pause = 10 * time.Millisecond
	for deadline := time.Now().Add(drainTime); s.connections() > 0 && s.hub.members.hub.Lives() && time.Now().Before(deadline); {
		time.Sleep(pause)
	}
}

func (s *supervisor) connections() int {
	n := s.hub.forwarder.Connections()
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.driver.(driver.Drainer); ok {
		n += d.Connections()
	}
	return n
}

// draining is a supervisor that has been replaced and still has connections, as the next ones see
// it.
type draining struct {
	generation int
	pidfd      *os.File
	over       chan struct{} // closed when it has ended, and what it has left is taken back
}

// drainingOf are those that live.
func drainingOf(from items) (before []*draining) {
	for key := range from {
		number, ok := strings.CutPrefix(key, keyDraining)
		if !ok {
			continue
		}
		files, err := from.files(key, 1)
		generation, notANumber := strconv.Atoi(number)
		if err != nil || notANumber != nil || record.HasEnded(files[0]) {
			closeAll(files)
			continue
		}
		before = append(before, &draining{generation, files[0], make(chan struct{})})
	}
	return before
}

// generationAfter is the first one that none of these is; theirs are others.
func generationAfter(before []*draining) (generation int, others []int) {
	for _, d := range before {
		others = append(others, d.generation)
	}
	for slices.Contains(others, generation) {
		generation++
	}
	return generation, others
}

// attend takes back what one has left when it ends.
func (s *supervisor) attend(d *draining) {
	key := keyDraining + strconv.Itoa(d.generation)
	s.twin.note(key, held{files: withFiles(d.pidfd)})
	go func() {
		defer close(d.over)
		record.AwaitExit(d.pidfd)
		if err := s.hub.inside.TakeBack(d.generation); err != nil {
			s.log.Warn("taking over from the supervisor before", "error", err)
		}
		_ = s.twin.drop(key, func() error { return nil })
	}()
}

func endAll(before []*draining) {
	for _, d := range before {
		d.end()
	}
}

// end ends it, and returns when it has.
func (d *draining) end() {
	record.KillFD(d.pidfd)
	<-d.over
}

// isOurs says whether it is the program that this process runs.
func isOurs(program *os.File) (bool, error) {
	var own, other unix.Stat_t
	err := withFDs([]*os.File{program}, nil, func(fds ...int) error {
		return errors.Join(unix.Stat(ownProgram, &own), unix.Fstat(fds[0], &other))
	})
	if err == nil && other.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("it is no file")
	}
	if err != nil {
		return false, fmt.Errorf("the program that is to take over: %w", err)
	}
	if own.Dev == other.Dev && own.Ino == other.Ino {
		return true, nil
	}
	// One in memory has no name (withoutFile).
	return own.Nlink == 0 && own.Size == other.Size && isCopy(program), nil
}

// isCopy says whether the program has the same bytes as the one that this process runs.
func isCopy(program *os.File) bool {
	own, err := os.Open(ownProgram)
	if err != nil {
		return false
	}
	defer own.Close()
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; at += int64(len(a)) {
		n, errA := own.ReadAt(a, at)
		m, errB := program.ReadAt(b, at)
		if n != m || !bytes.Equal(a[:n], b[:m]) {
			return false
		}
		if errA != nil || errB != nil {
			return errors.Is(errA, io.EOF) && errors.Is(errB, io.EOF)
		}
	}
}
