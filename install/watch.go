package install

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// rescan is how long a change may go unseen when the kernel tells of none: the folder was
// not there, or is another one by now.
const rescan = 5 * time.Second

// Watch calls again whenever something in the folder of conflists changes, and every few
// seconds, until ctx ends. Errors are told, once each, and do not end it.
func (n Node) Watch(ctx context.Context, again func(context.Context) error) error {
	told := ""
	for {
		changed, stop := watchFolder(n.ConfDir) // before the look, so that nothing is missed
		err := again(ctx)
		if ctx.Err() != nil {
			stop()
			return nil
		}
		if err != nil && err.Error() != told {
			n.Tell("%v", err)
		}
		told = ""
		if err != nil {
			told = err.Error()
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(rescan):
		}
		stop()
	}
}

// watchFolder closes changed when something in a folder changes.
func watchFolder(path string) (changed <-chan struct{}, stop func()) {
	seen := make(chan struct{})
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return seen, func() {}
	}
	const events = unix.IN_CREATE | unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ATTRIB
	end := [2]int{-1, -1}
	_, err = unix.InotifyAddWatch(fd, path, events|unix.IN_ONLYDIR)
	if err = errors.Join(err, unix.Pipe2(end[:], unix.O_CLOEXEC)); err != nil {
		unix.Close(fd)
		return seen, func() {}
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		wait := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(end[0]), Events: unix.POLLIN | unix.POLLHUP}}
		for {
			if _, err := unix.Poll(wait, -1); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if wait[0].Revents != 0 {
			close(seen)
		}
	}()
	return seen, func() {
		unix.Close(end[1])
		<-gone
		unix.Close(end[0])
		unix.Close(fd)
	}
}
