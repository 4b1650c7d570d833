package rootless

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/record"
)

// namespace is an open network namespace and what we may do with it.
type namespace struct {
	record.Netns
	file  *os.File
	owner *os.File // its owning user namespace, when it has to be joined first
}

func (n *namespace) Close() {
	n.file.Close()
	if n.owner != nil {
		n.owner.Close()
	}
}

// openNamespace opens CNI_NETNS and finds, from it alone, the user namespace that
// has to be joined to configure it (ioctl_nsfs(2), NS_GET_USERNS, Linux 4.9).
// Errors have code 4 and say what to do.
func openNamespace(path string) (*namespace, error) {
	for _, own := range []string{"/proc/self/", "/proc/thread-self/", "/dev/fd/"} {
		if strings.HasPrefix(filepath.Clean(path), own) {
			return nil, record.NetnsError(path, "it means something else in every process, and the one that watches over the container has to follow it, too",
				"give the path that others see, /proc/PID/fd/N or /proc/PID/ns/net")
		}
	}
	f, netns, err := record.OpenNetns(path)
	if err != nil {
		return nil, err
	}
	n := &namespace{Netns: netns, file: f}
	if err := n.findOwner(path); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *namespace) findOwner(path string) error {
	fd, err := unix.IoctlRetInt(int(n.file.Fd()), unix.NS_GET_USERNS)
	if errors.Is(err, unix.EPERM) {
		return record.NetnsError(path, "it is owned by a user namespace outside ours, which we cannot enter",
			"run as root, or let the same user make the namespace (unshare -Urn)")
	}
	if err != nil {
		return record.NetnsError(path, fmt.Sprintf("finding its owning user namespace: %v", err), "Linux 4.9 or newer is needed")
	}
	owner := os.NewFile(uintptr(fd), "owning user namespace")
	admin := record.HaveCapability(unix.CAP_SYS_ADMIN)
	switch {
	case admin:
		// Our rights reach down into every user namespace below ours, so there is
		// nothing to join (user_namespaces(7), "Capabilities").
		owner.Close()
		return nil
	case isOwnUserNamespace(owner):
		owner.Close()
		return record.NetnsError(path, fmt.Sprintf("it is owned by this user namespace, in which uid %d has no CAP_SYS_ADMIN", os.Geteuid()),
			"run as root, or let this user make the namespace in a user namespace of its own (unshare -Urn)")
	case !mayJoin(owner):
		uid, _ := unix.IoctlGetUint32(fd, unix.NS_GET_OWNER_UID)
		owner.Close()
		return record.NetnsError(path, fmt.Sprintf("it is owned by a user namespace of uid %d, which uid %d cannot enter", uid, os.Geteuid()),
			"run as that user or as root")
	}
	n.owner = owner
	return nil
}

func isOwnUserNamespace(f *os.File) bool {
	own, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return false
	}
	other, err := f.Stat()
	return err == nil && os.SameFile(own, other)
}

// mayJoin says whether setns(2) into the user namespace would be allowed: who has made
// it from here, or the one of its ancestors that was made from here, has all
// capabilities in it (user_namespaces(7), "Capabilities").
func mayJoin(target *os.File) bool {
	for ns := target; ; {
		fd, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_PARENT)
		if err != nil {
			return false // EPERM: it is not below ours
		}
		parent := os.NewFile(uintptr(fd), "parent user namespace")
		defer parent.Close()
		if isOwnUserNamespace(parent) {
			uid, err := unix.IoctlGetUint32(int(ns.Fd()), unix.NS_GET_OWNER_UID)
			return err == nil && int(uid) == os.Geteuid()
		}
		ns = parent
	}
}
