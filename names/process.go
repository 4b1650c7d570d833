package names

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/memory"
	"github.com/ambi-cni/ambi/record"
)

// Role is the first argument of a process that is to be a name server; the state folder
// and the network follow.
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
	if s.Process, err = p.run(append([]*os.File{alive}, files...), log); err != nil {
		return p.errorf(err)
	}
	return p.save(s)
}

// run starts this very program as the server.
func (p Place) run(files []*os.File, log *os.File) (record.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return record.Process{}, err
	}
	// No descriptor that our own caller left open by mistake.
	_ = unix.CloseRange(aliveFD, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11
	cmd := &exec.Cmd{
		Path: self, Args: []string{"ambi", Role, p.Store.Dir(), p.Network}, Env: []string{}, Dir: "/",
		Stderr: log, ExtraFiles: files, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return record.Process{}, err
	}
	process, err := record.ProcessOf(cmd.Process.Pid)
	if err != nil {
		return process, err
	}
	return process, cmd.Process.Release()
}

func (p Place) save(s *State) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	file, half := p.path("server.json"), p.path("server.json.tmp")
	if err := os.WriteFile(half, b, 0o600); err != nil {
		return p.errorf(err)
	}
	return p.errorf(os.Rename(half, file))
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
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
	const folderAndNetwork = 2
	args = append(args, make([]string, folderAndNetwork)...) // ambi itself starts it, with both
	debug.SetGCPercent(50)
	_ = os.WriteFile("/proc/self/comm", []byte("ambi"), 0) // for ps and pgrep
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	store, err := record.OpenExisting(args[0])
	if err != nil {
		return err
	}
	p := Place{store, args[1]}
	if err := confine(args[0]); err != nil {
		log.Warn("giving up rights", "error", err)
	}
	server := New(store, p.Network, ResolvConf)
	defer server.Close()
	if err := server.Serve(inherited()); err != nil {
		return err
	}
	started := time.AfterFunc(trimAfter, memory.GiveBack)
	defer started.Stop()
	for asked := uint64(0); ; {
		select {
		case <-signals:
			return nil
		case <-time.After(lookEvery):
			if p.deserted() {
				return nil
			}
			if now := server.asked.Load(); now != asked {
				asked = now
				memory.GiveBack()
			}
		}
	}
}

// inherited are the sockets that we were given.
func inherited() (files []*os.File) {
	for fd := socketFD; ; fd++ {
		if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
			return files
		}
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "name server"))
	}
}

// deserted says that nobody is there any more, nor coming, and removes what is on disk.
func (p Place) deserted() bool {
	if members, err := Members(p.Store, p.Network); err != nil || len(members) > 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	lock, err := flock.Folder(ctx, p.Dir(), flock.Exclusive)
	if err != nil {
		return false // somebody is coming, or sees to it
	}
	defer lock.Close()
	if members, err := Members(p.Store, p.Network); err != nil || len(members) > 0 {
		return false
	}
	_ = os.RemoveAll(p.Dir())
	return true
}
