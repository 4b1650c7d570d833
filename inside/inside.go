package inside

import (
	"errors"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Open opens netlink in the network namespace at a path; close it after use.
func Open(path string) (*netlink.Handle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
}

// At is Open of a namespace that is open already.
func At(file *os.File) (*netlink.Handle, error) {
	return netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
}

// Link is the link of this name in the network namespace at a path; nil when that has
// none.
func Link(path, name string) (netlink.Link, error) {
	handle, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	link, err := handle.LinkByName(name)
	if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
		return nil, nil
	}
	return link, err
}
