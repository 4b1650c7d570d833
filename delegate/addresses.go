package delegate

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/flock"
)

// This file reads host-local's store, the only account of who has which address
// that survives when everything else about an attachment is lost or old: a file
// per address, named by it, with the owner's container ID and interface name on
// two lines.

// trueResult is the result that DEL works with. A nil one is made up of the
// addresses that the store has under this attachment: an ADD that was killed
// left no result but may have left rules. Of any other, addresses are taken out
// that belong to another attachment by now, so that a late DEL does not remove
// the new owner's rules, which firewall knows by nothing but the address.
func (c *Chain) trueResult(result *types100.Result) *types100.Result {
	dir := c.store()
	if dir == "" {
		return result
	}
	if result == nil {
		return c.resultOf(dir)
	}
	kept := *result
	kept.IPs = nil
	for _, ip := range result.IPs {
		if ip == nil {
			continue
		}
		if o, taken := readOwner(dir, ip.Address.IP); taken && !c.owns(o) {
			c.log().Warn("address has another owner by now, its rules are left alone", "address", ip.Address.String(), "owner", o.containerID)
			continue
		}
		kept.IPs = append(kept.IPs, ip)
	}
	return &kept
}

// resultOf is what can be said of an attachment by the store alone; nil when it
// has no address there.
func (c *Chain) resultOf(dir string) *types100.Result {
	a := c.Attachment
	result := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: a.IfName, Sandbox: a.NetnsPath}},
	}
	if a.NetnsPath == "" {
		result.Interfaces[0].Sandbox = "gone" // empty would mean the host
	}
	for _, ip := range storedIn(dir) {
		if o, taken := readOwner(dir, ip); !taken || !c.owns(o) {
			continue
		}
		bits := 8 * len(ip)
		result.IPs = append(result.IPs, &types100.IPConfig{
			Interface: types100.Int(0),
			Address:   net.IPNet{IP: ip, Mask: net.CIDRMask(bits, bits)},
		})
	}
	if len(result.IPs) == 0 {
		return nil
	}
	return result
}

// Holders are the attachments that have addresses of the network.
func (c *Chain) Holders() []types.GCAttachment {
	var holders []types.GCAttachment
	seen := map[types.GCAttachment]bool{}
	for _, d := range c.Delegates {
		dir := storeOf(d, c.Attachment.NetConf.Name)
		for _, ip := range storedIn(dir) {
			o, taken := readOwner(dir, ip)
			holder := types.GCAttachment{ContainerID: o.containerID, IfName: o.ifName}
			if taken && o.ifName != "" && !seen[holder] {
				seen[holder] = true
				holders = append(holders, holder)
			}
		}
	}
	return holders
}

// owner is who an address belongs to. The interface name is empty in files that
// an old host-local wrote.
type owner struct{ containerID, ifName string }

func (c *Chain) owns(o owner) bool {
	return o.containerID == c.Attachment.ContainerID && (o.ifName == "" || o.ifName == c.Attachment.IfName)
}

// store is the folder of the first delegate that uses host-local, or empty.
func (c *Chain) store() string {
	for _, d := range c.Delegates {
		if dir := storeOf(d, c.Attachment.NetConf.Name); dir != "" {
			return dir
		}
	}
	return ""
}

// hostLocal is the type of the IPAM plugin whose store this file reads.
const hostLocal = "host-local"

// storeOf is the folder in which a delegate's host-local keeps the addresses of a
// network, or empty.
func storeOf(d conf.Delegate, network string) string {
	var c struct {
		IPAM struct {
			Type    string `json:"type"`
			DataDir string `json:"dataDir"`
		} `json:"ipam"`
	}
	if json.Unmarshal(d.Raw, &c) != nil || c.IPAM.Type != hostLocal {
		return ""
	}
	if c.IPAM.DataDir == "" {
		c.IPAM.DataDir = "/var/lib/cni/networks" // host-local's default
	}
	return filepath.Join(c.IPAM.DataDir, network)
}

// storedIn is the addresses that are given out, IPv4 ones in four bytes.
func storedIn(dir string) []net.IP {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var stored []net.IP
	for _, e := range entries {
		// Other names are its lock, and the addresses it gave out last.
		if ip := net.ParseIP(e.Name()); ip != nil {
			stored = append(stored, shortest(ip))
		}
	}
	return stored
}

// readOwner says who has an address, and whether anybody has it.
func readOwner(dir string, ip net.IP) (o owner, taken bool) {
	content, err := os.ReadFile(filepath.Join(dir, ip.String()))
	if err != nil {
		return owner{}, false
	}
	containerID, ifName, _ := strings.Cut(strings.TrimSpace(string(content)), "\n")
	o = owner{strings.TrimSpace(containerID), strings.TrimSpace(ifName)}
	// A host-local killed while it wrote, or a host that lost power, leaves an empty
	// file or one of zeros.
	return o, utils.ValidateContainerID(o.containerID) == nil
}

// releaseDamaged frees the addresses of a result whose files name no owner, which a
// host-local leaves that is killed while it writes one. host-local itself looks for the
// file that names the container, so it never finds these, and the addresses would stay
// taken for ever. It is called after the delegates' DEL has freed all that do name one.
// host-local holds the lock while it writes: with it, no file that is just being
// written is taken for a damaged one.
func (c *Chain) releaseDamaged(ctx context.Context, result *types100.Result) {
	dir := c.store()
	if dir == "" || result == nil {
		return
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return // nothing was ever given out here
	}
	defer lock.Close()
	// host-local holds it for milliseconds; one that hangs is not to hang DEL.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := flock.Lock(ctx, lock, flock.Exclusive); err != nil {
		return // the next DEL or GC finds them
	}
	for _, ip := range result.IPs {
		if ip == nil {
			continue
		}
		path := filepath.Join(dir, ip.Address.IP.String())
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if o, taken := readOwner(dir, ip.Address.IP); !taken {
			c.log().Warn("address released whose file was damaged", "file", path, "content", o.containerID)
			os.Remove(path)
		}
	}
}

func shortest(ip net.IP) net.IP {
	if four := ip.To4(); four != nil {
		return four
	}
	return ip
}
