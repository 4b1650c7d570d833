package delegate

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/inside"
)

// This file finds a container's namespace that nobody told us the path of: the
// record is lost and CNI_NETNS empty, or the path leads elsewhere by now while a
// process still lives in the namespace. With a stand-in alone its interface would
// stay.

// locate returns the namespace that has the interface of the result; nil when
// there is none for sure. inode is that of the namespace, or 0 when it is not
// known.
func (c *Chain) locate(result *types100.Result, inode uint64) *os.File {
	mac, addresses := lookOf(c.Attachment.IfName, result)
	if len(addresses) == 0 {
		return nil
	}
	var ours *os.File
	for _, f := range namespaces(inode) {
		if ours == nil && c.hasOurs(f, mac, addresses) {
			ours = f
		} else {
			f.Close()
		}
	}
	return ours
}

// namespaces opens the network namespaces but our own that have a name or a
// process; with an inode only those of that number. A number is used again when
// its namespace is gone.
func namespaces(inode uint64) []*os.File {
	var own unix.Stat_t
	if unix.Stat("/proc/self/ns/net", &own) != nil {
		return nil
	}
	seen := []uint64{own.Ino}
	var found []*os.File
	for _, pattern := range []string{"/run/netns/*", "/proc/[0-9]*/ns/net"} {
		paths, _ := filepath.Glob(pattern) // the pattern is well formed
		for _, path := range paths {
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil || st.Dev != own.Dev || slices.Contains(seen, st.Ino) || (inode != 0 && inode != st.Ino) {
				continue
			}
			if f, err := os.Open(path); err == nil {
				seen = append(seen, st.Ino)
				found = append(found, f)
			}
		}
	}
	return found
}

// hasOurs says whether a namespace has the attachment's interface. Its name and
// address alone prove nothing, for two networks may have the same subnet: it has
// to have the MAC address of the result, or where that is not known, to be
// connected to where the first delegate would have put it.
func (c *Chain) hasOurs(f *os.File, mac net.HardwareAddr, addresses []*net.IPNet) bool {
	link, there := linkIn(f, c.Attachment.IfName)
	if link == nil || !haveCommon(there, addresses) {
		return false
	}
	return bytes.Equal(mac, link.Attrs().HardwareAddr) || c.isConnected(link, addresses[0].IP)
}

// kinds are the links that interface plugins make (netlink.Link.Type).
var kinds = map[string]string{
	"bridge": "veth", "ptp": "veth", "macvlan": "macvlan", "ipvlan": "ipvlan", "vlan": "vlan", "tap": "tuntap", "dummy": "dummy",
}

// hasAnothers says whether the namespace at a path that nobody vouches for has
// somebody else's interface under the attachment's name: the path may lead to
// another container's by now, or ADD was refused because the interface was there
// already. bridge and ptp delete whatever has the name, so what cannot be told for
// theirs is another's; of the others we would not know where to look.
func (c *Chain) hasAnothers(path string, result *types100.Result) bool {
	mac, addresses := lookOf(c.Attachment.IfName, result)
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	link, there := linkIn(f, c.Attachment.IfName)
	if link == nil || (mac != nil && bytes.Equal(mac, link.Attrs().HardwareAddr)) {
		return false
	}
	kind, known := kinds[c.Delegates[0].Type]
	switch {
	case known && link.Type() != kind:
		return true
	case kind != "veth" && (mac == nil || len(addresses) == 0), kind == "veth" && isUnfinished(link, there):
		return false
	}
	// An ADD that was killed may have got an address and not given it to the
	// interface yet.
	bare := mac == nil && !slices.ContainsFunc(there, func(a netlink.Addr) bool { return a.IP.IsGlobalUnicast() })
	if len(addresses) == 0 {
		return !c.isConnected(link, nil)
	}
	return !bare && !haveCommon(there, addresses) || !c.isConnected(link, addresses[0].IP)
}

// hostVeth is the name that the plugins' library gives the host's end of a veth
// (ip.RandomVethName in containernetworking/plugins).
var hostVeth = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^veth[0-9a-f]{8}$`) })

// isUnfinished says whether a veth is what bridge and ptp leave when they are killed
// before they connect it: without address, down, its other end here and unused.
func isUnfinished(link netlink.Link, there []netlink.Addr) bool {
	peer := peerOf(link)
	return peer != nil && len(there) == 0 && link.Attrs().Flags&net.FlagUp == 0 &&
		peer.Attrs().MasterIndex == 0 && hostVeth().MatchString(peer.Attrs().Name)
}

// peerOf is the end of a veth that is in our own namespace; nil when none is.
func peerOf(link netlink.Link) netlink.Link {
	peer, err := netlink.LinkByIndex(link.Attrs().ParentIndex)
	if err != nil || link.Type() != "veth" || peer.Attrs().ParentIndex != link.Attrs().Index {
		return nil
	}
	return peer
}

func statOf(f *os.File) (st unix.Stat_t, err error) {
	return st, unix.Fstat(int(f.Fd()), &st)
}

// linkIn is the link of this name in a namespace, and its addresses; nil when
// there is none to be seen.
func linkIn(f *os.File, name string) (netlink.Link, []netlink.Addr) {
	handle, err := inside.At(f)
	if err != nil {
		return nil, nil
	}
	defer handle.Close()
	link, err := handle.LinkByName(name)
	if err != nil {
		return nil, nil
	}
	there, err := handle.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil
	}
	return link, there
}

func haveCommon(there []netlink.Addr, addresses []*net.IPNet) bool {
	wanted := map[string]bool{}
	for _, a := range addresses {
		wanted[a.IP.String()] = true
	}
	return slices.ContainsFunc(there, func(a netlink.Addr) bool { return wanted[a.IP.String()] })
}

// isConnected says whether the other end of a veth is a port of the bridge that
// the first delegate names; or where the host's route to the address leads, which
// may be nowhere yet when ADD was killed. Without an address only a bridge tells.
func (c *Chain) isConnected(link netlink.Link, ip net.IP) bool {
	peer := peerOf(link)
	if peer == nil {
		return false
	}
	if bridge := c.bridge(); bridge != "" {
		master, err := netlink.LinkByIndex(peer.Attrs().MasterIndex)
		return err == nil && master.Attrs().Name == bridge
	}
	if ip == nil {
		return false
	}
	routes, err := netlink.RouteGet(ip)
	nowhere := err != nil || len(routes) == 0 || routes[0].Gw != nil
	return peer.Attrs().MasterIndex == 0 && (nowhere || routes[0].LinkIndex == peer.Attrs().Index)
}

// bridge is the link that the first delegate, being the bridge plugin, makes the
// interface a port of; empty when it is another plugin.
func (c *Chain) bridge() string {
	first := c.Delegates[0]
	told := struct{ Bridge string }{"cni0"} // the plugin's default
	if first.Type != "bridge" || json.Unmarshal(first.Raw, &told) != nil {
		return ""
	}
	return told.Bridge
}

// pathOf is a path of one of our open files that holds for our children as well.
func pathOf(f *os.File) string {
	// The delegates' /proc may be that of another PID namespace than the one we
	// have a number in, but it is ours.
	self, err := os.Readlink("/proc/self")
	if err != nil {
		self = strconv.Itoa(os.Getpid())
	}
	return filepath.Join("/proc", self, "fd", strconv.Itoa(int(f.Fd())))
}
