package delegate

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
)

// standIn is a network namespace that looks to a delegate's DEL like that of a
// container which is gone. Plugins such as bridge learn from the interface's
// addresses which rules to remove, and with an empty CNI_NETNS leave them
// behind (plugins#810).
//
// It exists as long as its file is open and has no name in any file system, so
// nothing is left behind when we are killed.
type standIn struct {
	file *os.File
	path string // of the namespace, for a child of ours
}

// newStandIn makes a stand-in with an interface of this name, and with the
// addresses and the MAC address that the result gives it (nil: none).
func newStandIn(ifName string, result *types100.Result) (*standIn, error) {
	type made struct {
		file *os.File
		err  error
	}
	done := make(chan made)
	go func() {
		// The thread is never unlocked: it belongs to the new namespace, and the
		// runtime throws it away when this function ends.
		runtime.LockOSThread()
		file, err := unshareNetns()
		if err == nil {
			err = furnish(ifName, result)
		}
		done <- made{file, err}
	}()
	m := <-done
	if m.err != nil {
		if m.file != nil {
			m.file.Close()
		}
		return nil, m.err
	}
	return &standIn{m.file, pathOf(m.file)}, nil
}

// Close lets the namespace and all in it go.
func (s *standIn) Close() { s.file.Close() }

// unshareNetns moves the current thread into a new network namespace.
func unshareNetns() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("new network namespace: %w", err)
	}
	return os.Open("/proc/thread-self/ns/net")
}

// furnish makes the interface in the current thread's namespace: one end of a
// veth pair whose other end is there too, so that deleting it, as delegates do,
// deletes both and touches no link of the host.
func furnish(ifName string, result *types100.Result) error {
	if ifName == "" || ifName == "lo" {
		return nil
	}
	peer := "peer0"
	if ifName == peer {
		peer = "peer1"
	}
	mac, addresses := lookOf(ifName, result)
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: peer}
	veth.Name, veth.HardwareAddr = ifName, mac
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("interface %s: %w", ifName, err)
	}
	// A host may switch IPv6 off for new interfaces and on for containers.
	_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", ifName, "disable_ipv6"), []byte("0"), 0)
	// The chain's own come first, those of a prevResult behind them; the kernel compares
	// each with all before it.
	for _, address := range addresses[:min(len(addresses), mostEntries)] {
		err := netlink.AddrAdd(veth, &netlink.Addr{IPNet: address})
		// No interface can have some addresses of IPv6 (::1, multicast), whatever a result
		// says; the container's had none either, and DEL is not to fail on it for ever.
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("address %s: %w", address, err)
		}
	}
	return nil
}

// lookOf is the MAC address and the addresses that a result gives the container's
// interface of this name.
func lookOf(ifName string, result *types100.Result) (mac net.HardwareAddr, addresses []*net.IPNet) {
	if result == nil {
		return nil, nil
	}
	if i := conf.InterfaceOf(result, ifName); i != nil {
		mac, _ = net.ParseMAC(i.Mac) // any will do if it is not one
	}
	if len(mac) != 6 {
		mac = nil
	}
	for _, ip := range conf.AddressesOf(result, ifName) {
		addresses = append(addresses, &ip.Address)
	}
	return mac, addresses
}

// isNamespace says whether path is a namespace, rather than missing or an
// ordinary file.
func isNamespace(path string) bool { return ns.IsNSorErr(path) == nil }
