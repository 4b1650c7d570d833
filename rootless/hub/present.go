package hub

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

// This file is about which process a hub has at the moment. Its supervisor may have been killed
// and started again by its keeper, so neither hub.json nor a record can tell; the control
// socket can, which the two hold together.

// Lives says whether somebody holds the control socket: the supervisor, or the keeper, which is
// about to start another. That we cannot look, for want of descriptors, say, is no proof that
// nobody does; that as many wait as may is one that somebody does.
func (h Hub) Lives() bool {
	f, err := Dial(h.Path("sock"), time.Time{})
	if err == nil {
		f.Close()
	}
	return err == nil || !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist)
}

// presentPatience is long where many wait, each of whom is served at once.
const presentPatience = 10 * time.Second

// Present is the process that listens on the control socket: the supervisor, or the keeper
// while there is none, or has been stopped before it could be. Only we can have put the socket
// there, since the folder is closed to others.
func (h Hub) Present() (*record.Process, error) {
	f, err := Dial(h.Path("sock"), time.Now().Add(presentPatience))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cred, err := unix.GetsockoptUcred(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, err
	}
	p, err := record.ProcessOf(int(cred.Pid))
	if err == nil && p.Alive() {
		return &p, nil
	}
	return h.stopped(err)
}

// stopped is who holds the hub of which the process that listened last has ended, and has not
// noticed: the other does so at once, unless a signal has stopped it.
func (h Hub) stopped(gone error) (*record.Process, error) {
	for _, p := range record.Holders(h.Path("alive")) {
		if p.Stopped() {
			return &p, nil
		}
	}
	return nil, cmp.Or(gone, os.ErrProcessDone)
}

// Dial connects to a control socket. When more wait to be answered than may, it waits in the
// kernel: there everyone has a turn, and who only looks in now and then finds the place of another
// that is faster. After the deadline that is os.ErrDeadlineExceeded, and at once where that is the
// zero time.
func Dial(path string, deadline time.Time) (*os.File, error) {
	name, folder, err := record.SocketName(path)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	kind := unix.SOCK_STREAM | unix.SOCK_CLOEXEC
	if deadline.IsZero() {
		kind |= unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), path)
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		left := unix.NsecToTimeval(max(time.Until(deadline), time.Millisecond).Nanoseconds())
		if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &left); err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: name})
		}
	}
	if errors.Is(err, unix.EAGAIN) {
		err = os.ErrDeadlineExceeded
	}
	if err != nil {
		f.Close()
		return nil, os.NewSyscallError("connect", err)
	}
	return f, nil
}
