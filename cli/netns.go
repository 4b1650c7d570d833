package cli

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// linkOf is the attachment's interface in its namespace, which we have to have the
// rights to enter: as root.
func linkOf(t *attachment) (netlink.Link, error) {
	path := t.record.Netns.Path
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("its namespace %s: %w", path, err)
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("entering its namespace %s: %w", path, err)
	}
	defer handle.Close()
	link, err := handle.LinkByName(t.IfName)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, fmt.Errorf("its interface %s is not in the namespace", t.IfName)
	}
	if err != nil {
		return nil, fmt.Errorf("its interface %s: %w", t.IfName, err)
	}
	return link, nil
}
