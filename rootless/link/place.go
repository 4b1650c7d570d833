package link

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/nlsock"
)

// Place is a network namespace with the way into it, for who has the rights over it
// from a user namespace above.
type Place struct {
	Netns   *os.File
	Route   *nlsock.Socket // NETLINK_ROUTE
	route   *os.File
	folders map[string]*os.File // below its /proc/sys/net

	again func() (*Place, error) // opens it once more
}

// Enter opens the way into a network namespace that is owned by a user namespace below
// ours; owner is that one, or nil when it need not be joined, since we have CAP_SYS_ADMIN
// in our own and over that of the network namespace. The files stay the caller's.
func Enter(netns, owner *os.File) (*Place, error) {
	var fds []int
	var err error
	if owner == nil {
		err = nlsock.In(netns, func() (err error) {
			fds, err = openHere()
			return err
		})
	} else {
		fds, err = visitByFork(netns, owner)
	}
	if err != nil {
		return nil, fmt.Errorf("the container's network namespace: %w", err)
	}
	own, err := unix.FcntlInt(netns.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		closeAll(fds)
		return nil, os.NewSyscallError("fcntl", err)
	}
	p, err := FromFiles(asFiles(append(fds, own)))
	if err == nil {
		p.again = func() (*Place, error) { return Enter(p.Netns, owner) }
	}
	return p, err
}

// Here is the place in which the calling thread is.
func Here() (*Place, error) {
	fds, err := openHere()
	if err != nil {
		return nil, err
	}
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		closeAll(fds)
		return nil, fmt.Errorf("our own network namespace: %w", err)
	}
	return FromFiles(asFiles(append(fds, own)))
}

func openHere() ([]int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	fds := []int{fd}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		closeAll(fds)
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	for _, name := range sysctls {
		folder, err := unix.Open("/proc/sys/net/"+name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			closeAll(fds)
			return nil, os.NewSyscallError("open", err)
		}
		fds = append(fds, folder)
	}
	return fds, nil
}

// Files are what a place is made of, to be handed to another process, whose FromFiles
// makes it a place again.
func (p *Place) Files() []*os.File {
	files := []*os.File{p.Netns, p.route}
	for _, f := range p.folders {
		files = append(files, f)
	}
	return files
}

// FromFiles makes a place of the files of one, in any order. They are its own from then
// on, also after an error.
func FromFiles(files []*os.File) (*Place, error) {
	p := &Place{folders: map[string]*os.File{}}
	for _, f := range files {
		if err := p.take(f); err != nil {
			f.Close()
			p.Close()
			return nil, err
		}
	}
	if p.Netns == nil || p.route == nil {
		p.Close()
		return nil, errors.New("a network namespace was handed over, and not all of its files")
	}
	p.Route = nlsock.New(int(p.route.Fd()))
	return p, nil
}

// take finds out what a file is.
func (p *Place) take(f *os.File) error {
	where, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return fmt.Errorf("a network namespace was handed over: %w", err)
	}
	// One that was opened where it is mounted has the name of that place.
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	switch {
	case err == nil && kind == unix.CLONE_NEWNET && p.Netns == nil:
		p.Netns = f
	case strings.HasPrefix(where, "socket:[") && p.route == nil:
		p.route = f
	case strings.HasPrefix(where, "socket:["): // the child's "none"
		f.Close()
	case path.Base(path.Dir(where)) == "net":
		p.folders[path.Base(where)] = f
	default:
		return fmt.Errorf("a network namespace was handed over: %s is no file of one", where)
	}
	return nil
}

// reopen has another socket instead of one with a list under way.
func (p *Place) reopen() error {
	if p.again == nil {
		return errors.New("its lists are too long")
	}
	q, err := p.again()
	if err != nil {
		return err
	}
	p.route, q.route = q.route, p.route
	p.Route = nlsock.New(int(p.route.Fd()))
	q.Close()
	return nil
}

// Close closes all of it.
func (p *Place) Close() {
	for _, f := range p.folders {
		f.Close()
	}
	for _, f := range []*os.File{p.Netns, p.route} {
		if f != nil {
			f.Close()
		}
	}
}

func asFiles(fds []int) []*os.File {
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "network namespace")
	}
	return files
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Read reads a sysctl: its name is a path below /proc/sys/net.
func (p *Place) Read(name string) (string, error) {
	f, err := p.sysctl(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	const most = 4096 // a page: a sysctl's value has no more
	b := make([]byte, most)
	n, err := f.Read(b)
	if err != nil && n == 0 {
		return "", fmt.Errorf("net.%s: %w", dotted(name), err)
	}
	return strings.TrimSpace(string(b[:n])), nil
}

// Write writes one.
func (p *Place) Write(name, value string) error {
	f, err := p.sysctl(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("setting net.%s to %s: %w", dotted(name), value, err)
	}
	return nil
}

func (p *Place) sysctl(name string, how int) (*os.File, error) {
	folder, rest, _ := strings.Cut(name, "/")
	dir := p.folders[folder]
	if dir == nil {
		return nil, fmt.Errorf("net.%s: %w", dotted(name), fs.ErrNotExist)
	}
	fd, err := unix.Openat(int(dir.Fd()), rest, how|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("net.%s: %w", dotted(name), err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// dotted is a sysctl's name as people write it (sysctl(8)).
func dotted(name string) string { return strings.ReplaceAll(name, "/", ".") }
