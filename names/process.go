package names

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/confine"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/memory"
	"github.com/ambi-cni/ambi/record"
	"github.com/ambi-cni/ambi/scope"
)

// Role is the first argument of a process that is to be a name server; the state folder
// and the network follow, and for one that takes another's place how many before it ended
// soon.
const Role = "nameserver"

// The descriptors that it is started with, beside standard error, which is its log.
const (
	aliveFD  = 3 + iota // a locked file
	socketFD            // the first of its sockets
)

// start starts the server. Its sockets are made here, so that questions wait for it. Only
// who is alone may.
func (p Place) start(s *State) error {
	files, err := Listen(s.Addresses, s.Device, unix.Socket)
	if err != nil {
		return err
	}
	defer closeAll(files)
	alive, err := os.OpenFile(p.path("alive"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		defer alive.Close()
		err = flock.Try(alive, flock.Exclusive)
	}
	var log *os.File
	if err == nil {
		log, err = os.OpenFile(p.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	}
	if err != nil {
		return p.errorf(err)
	}
	defer log.Close()
	_ = os.Remove(p.path(pairFile)) // of one before
	if s.Process, s.Cgroup, err = p.run(append([]*os.File{alive}, files...), log); err != nil {
		return p.errorf(err)
	}
	return p.save(stateFile, s)
}

// run starts this very program as the server.
func (p Place) run(files []*os.File, log *os.File) (process record.Process, cgroup string, err error) {
	self, err := os.Executable()
	if err != nil {
		return process, "", err
	}
	// No descriptor that our own caller left open by mistake.
	_ = unix.CloseRange(aliveFD, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11
	cmd, cgroup, err := scope.Find("").Start(p.Dir(), func() *exec.Cmd {
		return &exec.Cmd{
			Path: self, Args: []string{"ambi", Role, p.Store.Dir(), p.Network}, Env: []string{}, Dir: "/",
			Stderr: log, ExtraFiles: files, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
		}
	})
	if err != nil {
		return process, "", err
	}
	if process, err = record.ProcessOf(cmd.Process.Pid); err != nil {
		return process, cgroup, err
	}
	return process, cgroup, cmd.Process.Release()
}

// present writes down that this process is the server, and who its twin is.
func (p Place) present(twin *record.Process) error {
	server, err := record.ProcessOf(os.Getpid())
	if err != nil {
		return p.errorf(err)
	}
	return p.save(pairFile, []record.Process{server, *twin})
}

func (p Place) save(file string, what any) error {
	b, err := json.Marshal(what)
	if err != nil {
		return err
	}
	half := p.path(file + ".tmp")
	if err := os.WriteFile(half, b, 0o600); err != nil {
		return p.errorf(err)
	}
	return p.errorf(os.Rename(half, p.path(file)))
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

const processName = "ambi"

// The server has a name for ps and pgrep, which is that of the first thread. The main goroutine is on it for
// sure only until Main is called, and the file with the process's name cannot be written by one
// that was a twin.
func init() {
	if len(os.Args) < 2 || os.Args[1] != Role {
		return
	}
	var name [8]byte
	copy(name[:], processName)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name)), 0, 0, 0)
}

// Main is the main function of the server process; it returns the exit status.
func Main(args []string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := serve(args, log); err != nil {
		log.Error("name server", "error", err)
		return 1
	}
	return 0
}

// lookEvery is the pace at which the server sees whether it is still needed, in case that
// the DEL that ends it never comes.
const lookEvery = 10 * time.Second

// trimAfter is when memory is given back first: not while ADD may still be at work.
const trimAfter = 300 * time.Millisecond

func serve(args []string, log *slog.Logger) error {
	// The thread that forks the twin is the one that ends it: each thread has a domain of
	// Landlock of its own, and one may not signal what another has forked (landlock(7)).
	runtime.LockOSThread()
	const first = 2
	args = append(args, make([]string, first)...) // ambi itself starts it, with both
	debug.SetGCPercent(50)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	store, err := record.OpenExisting(args[0])
	if err != nil {
		return err
	}
	p := Place{store, args[1]}
	again := len(args) > 2*first // then the rights are given up already
	if !again {
		leaveUnit(p.Network, log)
		if err := giveUpRights(args[0]); err != nil {
			log.Warn("giving up rights", "error", err)
		}
	}
	if err := confine.Hide(); err != nil {
		log.Warn("giving up rights", "error", err)
	}
	server := New(store, p.Network, ResolvConf)
	defer server.Close()
	sockets := inherited()
	files, err := duplicates(sockets)
	if err == nil {
		err = server.Serve(files)
	}
	if err != nil {
		return err
	}
	l := life{place: p, sockets: sockets, log: log}
	if again {
		l.quick, _ = strconv.Atoi(args[first])
		log.Warn("the name server had ended, its twin is the server now", "network", p.Network)
	}
	defer l.endTwin()
	return l.wait(server, signals)
}

// leaveUnit has systemd put the server into a scope of its own, out of the unit of whoever called
// ADD. What is asked meanwhile waits; a manager that does not answer is not to delay it for long.
func leaveUnit(network string, log *slog.Logger) {
	const patience = 3 * time.Second
	way := scope.Find("")
	if len(way.Managers) == 0 || scope.Out() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := scope.Ask(ctx, way.Managers, network, os.Getpid()); err != nil {
		log.Warn("the name server stays in the unit in which it was started, and ends with that", "network", network, "error", err)
	}
}

// life is that of the process.
type life struct {
	place   Place
	sockets int
	quick   int // servers before it that ended soon
	twin    *record.Process
	forked  time.Time        // when the twin was
	again   <-chan time.Time // when one is missing that had ended soon
	log     *slog.Logger
}

// wait sees to the twin, until a signal comes or nobody is left.
func (l *life) wait(server *Server, signals <-chan os.Signal) error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	l.seeToTwin()
	started := time.AfterFunc(trimAfter, memory.GiveBack)
	defer started.Stop()
	var seen record.Mark
	for asked := uint64(0); ; {
		select {
		case <-signals:
			return nil
		case <-ended:
			l.follow()
		case <-l.again:
			l.seeToTwin()
		case <-time.After(lookEvery):
			mark, err := record.MarkOf(l.place.Store.Dir())
			changed := err != nil || !mark.Same(seen)
			if changed {
				deserted, needed := l.place.deserted(l.endTwin)
				if deserted {
					return nil
				}
				if needed {
					seen = mark
				}
			}
			l.seeToTwin()
			if now := server.asked.Load(); changed || now != asked {
				asked = now
				memory.GiveBack()
			}
		}
	}
}

// follow has another twin live after one that has ended. One that ended soon is missed for a
// moment: whatever ended it may end the next one as well.
func (l *life) follow() {
	if l.twin == nil || !reap(l.twin) {
		return
	}
	l.twin = nil
	l.log.Warn("the name server's twin had ended", "network", l.place.Network)
	if time.Since(l.forked) < soon*time.Second {
		const moment = 200 * time.Millisecond
		l.again = time.After(moment)
		return
	}
	l.seeToTwin()
}

// seeToTwin has a twin live. Without one this goes on alone, and tries again later.
func (l *life) seeToTwin() {
	if l.twin != nil {
		return // follow is told of its end
	}
	l.forked = time.Now()
	var err error
	if l.twin, err = startTwin(l.place.Store.Dir(), l.place.Network, l.sockets, l.quick); err == nil {
		err = l.place.present(l.twin)
	}
	if err != nil {
		l.log.Warn("the name server's twin could not be started", "network", l.place.Network, "error", err)
	}
}

// endTwin ends the twin, before this process ends for good.
func (l *life) endTwin() {
	if l.twin != nil {
		_ = unix.Kill(l.twin.PID, unix.SIGKILL) // our child, whose end we have not seen
		_, _ = unix.Wait4(l.twin.PID, nil, 0, nil)
		l.twin = nil
	}
}

// inherited says how many sockets we were given, and keeps them from others.
func inherited() (sockets int) {
	for fd := socketFD; ; fd++ {
		if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
			return sockets
		}
		unix.CloseOnExec(fd)
		sockets++
	}
}

// duplicates are the sockets for this process; the ones we were given are the twin's.
func duplicates(sockets int) (files []*os.File, err error) {
	for i := range sockets {
		fd, err := unix.FcntlInt(uintptr(socketFD+i), unix.F_DUPFD_CLOEXEC, socketFD+sockets+1)
		if err != nil {
			closeAll(files)
			return nil, os.NewSyscallError("fcntl", err)
		}
		files = append(files, os.NewFile(uintptr(fd), "name server"))
	}
	return files, nil
}

// deserted says that nobody is there any more, nor coming, and removes what is on disk after
// the last that is to be done; needed that somebody is there.
func (p Place) deserted(last func()) (deserted, needed bool) {
	if members, err := Members(p.Store, p.Network); lost(err) {
		last()
		return true, false
	} else if err != nil || len(members) > 0 {
		return false, err == nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	lock, err := flock.Folder(ctx, p.Dir(), flock.Exclusive)
	if lost(err) {
		last()
		return true, false
	}
	if err != nil {
		return false, false // somebody is coming, or sees to it
	}
	defer lock.Close()
	if members, err := Members(p.Store, p.Network); err != nil || len(members) > 0 {
		return false, err == nil
	}
	last()
	_ = os.RemoveAll(p.Dir())
	return true, false
}

// lost says that somebody has removed the state folder, and perhaps made another: to that one we
// have no right (giveUpRights), and nobody finds us by it.
func lost(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)
}
