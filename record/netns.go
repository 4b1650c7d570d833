package record

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/inside"
)

// Netns is a network namespace: its path, and what tells it from another one
// that may later stand under the same path (namespaces(7), device and inode).
type Netns struct {
	Path  string `json:"path"`
	Dev   uint64 `json:"dev,omitempty"`
	Inode uint64 `json:"inode,omitempty"`
}

// OpenNetns opens CNI_NETNS, whatever its form (/run/netns/NAME,
// /proc/PID/ns/net, /proc/PID/fd/N), and tells which namespace it is. Errors have
// code 4 and say what to do.
func OpenNetns(path string) (*os.File, Netns, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, Netns{}, NetnsError(path, reason(err), openHint(path, err))
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE) // Linux 4.11
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, Netns{}, NetnsError(path, "it is not a network namespace", openHint(path, nil))
	}
	n, err := netnsOf(path, f)
	if err != nil {
		f.Close()
		return nil, Netns{}, NetnsError(path, err.Error(), openHint(path, err))
	}
	return f, n, nil
}

func netnsOf(path string, f *os.File) (Netns, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Netns{}, err
	}
	return Netns{Path: path, Dev: st.Dev, Inode: st.Ino}, nil
}

// Same says whether two paths lead, or led, to one namespace.
func (n Netns) Same(other Netns) bool {
	return n.Inode != 0 && n.Inode == other.Inode && n.Dev == other.Dev
}

// Gone says that the path leads nowhere or to another namespace now. Anything
// else that keeps us from looking is no proof.
func (n Netns) Gone() bool {
	var st unix.Stat_t
	err := unix.Stat(n.Path, &st)
	for _, missing := range []error{unix.ENOENT, unix.ESRCH, unix.ENOTDIR} {
		if errors.Is(err, missing) {
			return true
		}
	}
	if errors.Is(err, unix.EACCES) {
		return n.ofZombie()
	}
	return err == nil && (st.Ino != n.Inode || st.Dev != n.Dev)
}

// ofZombie says that the path is one of a process that has ended and that nobody has
// waited for yet. It has no namespaces any more, but whoever may not trace it
// (ptrace(2)) is not told so.
func (n Netns) ofZombie() bool {
	rest, ok := strings.CutPrefix(n.Path, "/proc/")
	name, _, _ := strings.Cut(rest, "/")
	pid, err := strconv.Atoi(name)
	if !ok || err != nil {
		return false
	}
	state, _, err := procStat(pid)
	return err == nil && ended(state)
}

// Inhabited says that processes are in the namespace, so that it lives, whatever its path
// leads to here: in another mount namespace than the engine's it may be an empty file, or
// missing, and one under /proc/PID goes with that process alone.
func (n Netns) Inhabited() bool {
	paths, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	return slices.ContainsFunc(paths, func(path string) bool {
		var st unix.Stat_t
		return unix.Stat(path, &st) == nil && st.Ino == n.Inode && st.Dev == n.Dev
	})
}

// WayOut is the name of the interface that the namespace's default route leads out of:
// the IPv4 one with the lowest metric, else the IPv6 one. Empty without one, and for a
// namespace that cannot be looked into.
func (n Netns) WayOut() string {
	f, now, err := OpenNetns(n.Path)
	if err != nil {
		return ""
	}
	defer f.Close()
	handle, err := inside.At(f)
	if err != nil || !n.Same(now) {
		return ""
	}
	defer handle.Close()
	filter := &netlink.Route{Type: unix.RTN_UNICAST} // Dst nil: the default
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, _ := handle.RouteListFiltered(family, filter, netlink.RT_FILTER_DST|netlink.RT_FILTER_TYPE)
		if len(routes) == 0 {
			continue
		}
		best := slices.MinFunc(routes, func(a, b netlink.Route) int { return a.Priority - b.Priority })
		if link, err := handle.LinkByIndex(best.LinkIndex); err == nil {
			return link.Attrs().Name
		}
	}
	return ""
}

// NetnsError is code 4 of the specification for CNI_NETNS.
func NetnsError(path, why, hint string) error {
	return conf.Mendf(conf.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %q: %s", path, why), "%s", hint)
}

func openHint(path string, err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission) && isClosed(path):
		return "its process keeps itself closed to its own user, as crun's does until the container's program runs: call from a poststart hook, or give the path of a namespace made before"
	case errors.Is(err, fs.ErrPermission):
		return "run as the user who made the namespace"
	}
	return "give the path of a network namespace, such as /run/netns/NAME or /proc/PID/ns/net"
}

// isClosed says that the process of a path in /proc is the caller's and not
// dumpable (PR_SET_DUMPABLE in prctl(2)): its files in /proc are root's then.
func isClosed(path string) bool {
	rest, ok := strings.CutPrefix(path, "/proc/")
	pid, _, _ := strings.Cut(rest, "/")
	status, err := os.ReadFile("/proc/" + pid + "/status")
	var st unix.Stat_t
	if !ok || err != nil || unix.Stat("/proc/"+pid+"/ns", &st) != nil {
		return false
	}
	_, after, _ := strings.Cut(string(status), "\nUid:")
	fields := strings.Fields(after)
	return len(fields) > 0 && fields[0] == strconv.Itoa(os.Getuid()) && int(st.Uid) != os.Getuid()
}

// reason is the last cause of an error, without the operation and path that the
// message around it already has.
func reason(err error) string {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err.Error()
	}
	return err.Error()
}
