package forward

import (
	"errors"

	"golang.org/x/sys/unix"
)

const noDescriptor int32 = -1

// socketMaker makes sockets inside the container's namespace.
type socketMaker interface {
	socket(domain, typ, proto int) (int32, unix.Errno)
}

// ownSockets is for a worker whose thread is inside the namespace itself.
type ownSockets struct{}

func (ownSockets) socket(domain, typ, proto int) (int32, unix.Errno) {
	return sysSocket(domain, typ, proto)
}

// namespaceSockets asks the namespace's own thread.
type namespaceSockets struct{ namespace Namespace }

func (s namespaceSockets) socket(domain, typ, proto int) (int32, unix.Errno) {
	fd, err := s.namespace.Socket(domain, typ, proto)
	if err == nil {
		return int32(fd), 0
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		errno = unix.EIO
	}
	return noDescriptor, errno
}

// socket makes a non-blocking socket inside, of the target's family, as long as the
// process has descriptors left for it.
func (w *worker) socket(t *target, typ int) (int32, unix.Errno) {
	fd, errno := w.sockets.socket(t.family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno == 0 && !w.forwarder.budget.allows(fd) {
		sysClose(fd)
		return noDescriptor, unix.EMFILE
	}
	return fd, errno
}

// spare takes a TCP socket inside that is there already, or makes one.
func (w *worker) spare(t *target) (int32, unix.Errno) {
	kept := w.spareOf(t)
	if fd := *kept; fd >= 0 {
		*kept = -1
		return fd, 0
	}
	return w.socket(t, unix.SOCK_STREAM)
}

// keep puts back a socket that was not needed.
func (w *worker) keep(t *target, fd int32) {
	kept := w.spareOf(t)
	if *kept >= 0 {
		sysClose(fd)
		return
	}
	*kept = fd
}

func (w *worker) spareOf(t *target) *int32 {
	if t.family == unix.AF_INET6 {
		return &w.unused[1]
	}
	return &w.unused[0]
}
