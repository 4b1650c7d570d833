package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"

	"github.com/ambi-cni/ambi/conf"
	"github.com/ambi-cni/ambi/flock"
	"github.com/ambi-cni/ambi/nlsock"
)

// addresses is host-local's store of one network: a file per address, named by it,
// with the owner's container ID and interface name on two lines, and a lock. It
// survives when everything else about an attachment is lost. The package that chooses
// addresses is not used: for the sake of one function it brings a library for nftables
// into every process, with 0.3 ms and 100 KB at its start.
type addresses struct {
	*disk.Store
	ctx  context.Context
	dir  string
	lock *os.File
}

func openAddresses(ctx context.Context, dataDir, network string) (*addresses, error) {
	s, err := disk.New(network, dataDir)
	if err != nil {
		return nil, fmt.Errorf("folder of the addresses of network %q: %w", network, err)
	}
	return &addresses{Store: s, ctx: ctx, dir: filepath.Join(dataDir, network)}, nil
}

// Lock is that of host-local, on the same file, but does not wait for ever.
func (s *addresses) Lock() (err error) {
	s.lock, err = lockFile(s.ctx, filepath.Join(s.dir, "lock"), flock.Exclusive)
	return err
}

func (s *addresses) Unlock() error { return s.lock.Close() }

// take gives an attachment an address of a subnet: the one asked for, else the next
// one that is free. id is the number of the subnet in the network.
//
// host-local first reads every file, to see that the attachment has no address yet.
// Here the attachment's lock and its interface on the host say that.
func (s *addresses) take(k conf.Key, subnet netip.Prefix, id int, asked netip.Addr) (netip.Prefix, error) {
	if err := s.mayHave(k, subnet, asked); err != nil {
		return netip.Prefix{}, err
	}
	if err := s.Lock(); err != nil {
		return netip.Prefix{}, fmt.Errorf("addresses of network %q: %w", k.Network, err)
	}
	defer s.lock.Close()
	rangeID := strconv.Itoa(id)
	for ip := range s.candidates(subnet, rangeID, asked) {
		reserved, err := s.Reserve(k.ContainerID, k.IfName, ip.AsSlice(), rangeID)
		if err == nil && !reserved {
			err = s.ctx.Err()
		}
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("addresses of network %q: %w", k.Network, err)
		}
		if reserved {
			return netip.PrefixFrom(ip, subnet.Bits()), nil
		}
	}
	return netip.Prefix{}, s.refused(k, subnet, asked)
}

// candidates are the addresses to try, in host-local's order: all of the subnet but
// the gateway's, beginning after the one given out last, so that an address that was
// let go stays free for as long as may be.
func (s *addresses) candidates(subnet netip.Prefix, rangeID string, asked netip.Addr) iter.Seq[netip.Addr] {
	if asked.IsValid() {
		return slices.Values([]netip.Addr{asked})
	}
	first, last := gatewayOf(subnet).Addr().Next(), nlsock.LastAddress(subnet)
	if last.Is4() {
		last = last.Prev() // broadcast
	}
	next := func(ip netip.Addr) netip.Addr {
		if ip.Less(last) {
			return ip.Next()
		}
		return first
	}
	start := first
	if b, err := s.LastReservedIP(rangeID); err == nil {
		if ip, ok := netip.AddrFromSlice(b); ok && subnet.Contains(ip.Unmap()) && !ip.Unmap().Less(first) {
			start = next(ip.Unmap())
		}
	}
	return func(yield func(netip.Addr) bool) {
		for ip := start; yield(ip); {
			if ip = next(ip); ip == start {
				return
			}
		}
	}
}

// mayHave says why an address that was asked for can be nobody's.
func (s *addresses) mayHave(k conf.Key, subnet netip.Prefix, asked netip.Addr) error {
	why := ""
	switch {
	case !asked.IsValid():
	case asked == gatewayOf(subnet).Addr():
		why = "is the gateway's"
	case asked == subnet.Addr() || asked.Is4() && asked == nlsock.LastAddress(subnet):
		why = "stands for all of " + subnet.String()
	}
	if why == "" {
		return nil
	}
	return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: address %s was asked for and %s", k.Network, asked, why), "ask for another one of %s", subnet)
}

func (s *addresses) refused(k conf.Key, subnet netip.Prefix, asked netip.Addr) error {
	if asked.IsValid() {
		owner, _ := s.owner(asked)
		return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: address %s was asked for and belongs to container %s, interface %s", k.Network, asked, owner.ContainerID, owner.IfName), "ask for another one of %s, or remove that container (ambi gc takes away what containers that are gone have left)", subnet)
	}
	return conf.Mendf(conf.Errorf(conf.ErrNetwork, "network %q: no address of %s is free, %d are given out (%s)", k.Network, subnet, s.count(subnet), s.dir), "remove containers, let ambi gc take away what those that are gone have left, or give the network a larger subnet with the key bridge.subnet")
}

// owner says who has an address, and whether anybody has it.
func (s *addresses) owner(ip netip.Addr) (owner types.GCAttachment, taken bool) {
	owner, taken, _ = s.read(ip)
	return owner, taken
}

// read is owner, with the error that the file cannot be read.
func (s *addresses) read(ip netip.Addr) (owner types.GCAttachment, taken bool, err error) {
	content, err := os.ReadFile(filepath.Join(s.dir, ip.String()))
	if errors.Is(err, fs.ErrNotExist) {
		return owner, false, nil
	}
	if err != nil {
		return owner, false, err
	}
	containerID, ifName, _ := strings.Cut(strings.TrimSpace(string(content)), "\n")
	owner = types.GCAttachment{ContainerID: strings.TrimSpace(containerID), IfName: strings.TrimSpace(ifName)}
	// A process killed while it wrote, or a host that lost power, leaves an empty file or
	// one of zeros.
	return owner, utils.ValidateContainerID(owner.ContainerID) == nil, nil
}

func (s *addresses) owns(k conf.Key, ip netip.Addr) bool {
	o, taken := s.owner(ip)
	return taken && isOf(o, k)
}

func isOf(o types.GCAttachment, k conf.Key) bool {
	return o.ContainerID == k.ContainerID && (o.IfName == "" || o.IfName == k.IfName)
}

// all are the addresses that are given out.
func (s *addresses) all() ([]netip.Addr, error) {
	entries, err := os.ReadDir(s.dir)
	var all []netip.Addr
	for _, e := range entries {
		// Other names are its lock, and the addresses it gave out last.
		if ip, err := netip.ParseAddr(e.Name()); err == nil {
			all = append(all, ip)
		}
	}
	return all, err
}

func (s *addresses) count(subnet netip.Prefix) int {
	n := 0
	all, _ := s.all() // for an error that is about something else
	for _, ip := range all {
		if subnet.Contains(ip) {
			n++
		}
	}
	return n
}

// of are the addresses of an attachment. It reads every file, and goes on after an
// error.
func (s *addresses) of(k conf.Key) ([]netip.Addr, error) {
	var of []netip.Addr
	err := s.each(func(ip netip.Addr, o types.GCAttachment) {
		if isOf(o, k) {
			of = append(of, ip)
		}
	})
	return of, err
}

// holders are the attachments that have an address of the network.
func (s *addresses) holders(network string) ([]conf.Key, error) {
	var holders []conf.Key
	err := s.each(func(_ netip.Addr, o types.GCAttachment) {
		k := conf.Key{Network: network, ContainerID: o.ContainerID, IfName: o.IfName}
		if o.IfName != "" && !slices.Contains(holders, k) {
			holders = append(holders, k)
		}
	})
	return holders, err
}

// each calls f with every address that somebody has, and goes on after an error.
func (s *addresses) each(f func(netip.Addr, types.GCAttachment)) error {
	all, err := s.all()
	errs := []error{err}
	for _, ip := range all {
		owner, taken, err := s.read(ip)
		errs = append(errs, err)
		if taken {
			f(ip, owner)
		}
	}
	return errors.Join(errs...)
}

// release lets addresses go, those of them that are the attachment's, or that say of
// nobody that he has them: these nobody else would ever let go.
func (s *addresses) release(k conf.Key, ips []netip.Addr) error {
	if len(ips) == 0 {
		return nil
	}
	// The lock keeps a file from being taken for damaged while it is written.
	if err := s.Lock(); err != nil {
		return fmt.Errorf("addresses of network %q: %w", k.Network, err)
	}
	defer s.lock.Close()
	var errs []error
	for _, ip := range ips {
		owner, taken, err := s.read(ip)
		if err != nil {
			errs = append(errs, err)
		}
		if err != nil || taken && !isOf(owner, k) {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, ip.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
