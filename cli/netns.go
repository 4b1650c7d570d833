package cli

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/ambi-cni/ambi/inside"
)

// linkOf is the attachment's interface in its namespace, which we have to have the
// rights to enter: as root.
func linkOf(t *attachment) (netlink.Link, error) {
	path := t.record.Netns.Path
	link, err := inside.Link(path, t.IfName)
	if err != nil {
		return nil, fmt.Errorf("its interface %s in its namespace %s: %w", t.IfName, path, err)
	}
	if link == nil {
		return nil, fmt.Errorf("its interface %s is not in the namespace", t.IfName)
	}
	return link, nil
}
