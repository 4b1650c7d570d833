package hub

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

// This file is about which process a hub has at the moment. Its supervisor may have been killed
// and started again by its keeper, so neither hub.json nor a record can tell; the control
// socket can, which the two hold together.

// Lives says whether somebody holds the control socket: the supervisor, or the keeper, which is
// about to start another. That we cannot look, for want of descriptors, say, is no proof that
// nobody does.
func (h Hub) Lives() bool {
	fd, err := h.dial()
	if err == nil {
		unix.Close(fd)
	}
	return err == nil || !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist)
}

// Present is the process that listens on the control socket: the supervisor, or the keeper
// while there is none. Only we can have put the socket there, since the folder is closed to others.
func (h Hub) Present() (*record.Process, error) {
	fd, err := h.dial()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, err
	}
	p, err := record.ProcessOf(int(cred.Pid))
	if err != nil {
		return nil, err
	}
	return &p, nil
}

func (h Hub) dial() (int, error) {
	name, folder, err := record.SocketName(h.Path("sock"))
	if err != nil {
		return -1, err
	}
	defer folder.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	// As many wait as may (EAGAIN): so there is somebody.
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
