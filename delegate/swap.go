package delegate

import (
	"bytes"
	"net"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/inside"
)

// This file notices that CNI_NETNS was made to lead elsewhere, to the host's own
// namespace for example, while ADD runs. Delegates open the path one after the other
// and have to be given it as it came (specification section 4), so what they did is
// looked at afterwards, and undone where they did it.

// hold opens the container's namespace, which has to be the one that the caller has
// looked at (NetnsInode).
func (c *Chain) hold() (*os.File, error) {
	f, err := os.Open(c.Attachment.NetnsPath)
	if err != nil {
		return nil, conf.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %q: %v", c.Attachment.NetnsPath, err)
	}
	if st, err := statOf(f); c.NetnsInode != 0 && (err != nil || st.Ino != c.NetnsInode) {
		f.Close()
		return nil, c.swapped()
	}
	return f, nil
}

func (c *Chain) swapped() error {
	return conf.Mendf(conf.Errorf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %q: it was made to lead to another namespace during ADD", c.Attachment.NetnsPath), "find out who changes it, and give the path of a namespace that stays")
}

// strayed returns the namespace that a delegate has worked in when that is not the
// container's; nil when it is. A result whose interface is no link at all is right.
func (c *Chain) strayed(container *os.File, result *types100.Result) *os.File {
	mac, _ := lookOf(c.Attachment.IfName, result)
	link, _ := linkIn(container, c.Attachment.IfName)
	if link == nil && mac != nil {
		if f := withLink(c.Attachment.IfName, mac); f != nil {
			return f
		}
	}
	if c.leadsTo(container) {
		return nil
	}
	return container
}

// strayedAndFailed is the same for a delegate that has failed and told nothing. What
// bridge and ptp have begun is known by its looks; otherwise nothing is undone but in
// the container, for the path may lead to somebody's interface of the same name.
func (c *Chain) strayedAndFailed(container *os.File) *os.File {
	for _, path := range []string{"/proc/self/ns/net", c.Attachment.NetnsPath} {
		there, err := os.Stat(path)
		if err != nil || isSame(there, container) || kinds[c.Delegates[0].Type] != "veth" {
			continue
		}
		if link, err := inside.Link(path, c.Attachment.IfName); err == nil && link != nil && !c.hasAnothers(path, nil) {
			if f, err := os.Open(path); err == nil {
				return f
			}
		}
	}
	if c.leadsTo(container) {
		return nil
	}
	return container
}

func (c *Chain) leadsTo(container *os.File) bool {
	now, err := os.Stat(c.Attachment.NetnsPath)
	return err == nil && isSame(now, container)
}

func isSame(there os.FileInfo, f *os.File) bool {
	st, err := f.Stat()
	return err == nil && os.SameFile(there, st)
}

// withLink is the namespace that has a link of this name and MAC address, our own
// included; nil when none has.
func withLink(name string, mac net.HardwareAddr) (has *os.File) {
	all := namespaces(0)
	if own, err := os.Open("/proc/self/ns/net"); err == nil {
		all = append(all, own)
	}
	for _, f := range all {
		var link netlink.Link
		if has == nil {
			link, _ = linkIn(f, name)
		}
		if link != nil && bytes.Equal(link.Attrs().HardwareAddr, mac) {
			has = f
		} else {
			f.Close()
		}
	}
	return has
}
